//! Trails in folders: what is written is read.

mod damage;

use std::fs;
use std::path::{Path, PathBuf};

use pgsluice_proto::{Lsn, TimelineId};
use tempfile::TempDir;

use super::*;
use crate::config::DiskKey;
use crate::decode::Arrival;
use crate::error::Kind;

/// A message as it is read.
type Read = (u64, Option<u64>, Vec<u8>);

struct Place {
    folder: TempDir,
    config: TrailConfig,
}

impl Place {
    fn new(key: Option<u8>) -> Place {
        // What is synced there costs nothing, and a crash of the machine is none of these tests'.
        let memory = Path::new("/dev/shm");
        let folder = tempfile::tempdir_in(if memory.is_dir() { memory } else { Path::new("/tmp") }).unwrap();
        let config = TrailConfig {
            dir: folder.path().join("trail"),
            of: None,
            max_bytes: 1 << 30,
            segment_bytes: 600,
            key: key.map(|byte| DiskKey::new([byte; 32])),
            old_keys: Vec::new(),
        };
        Place { folder, config }
    }

    fn create(&self) -> Writer {
        let origin = Origin { system_identifier: "7".to_owned(), slot: "s".to_owned(), consistent_point: Some(100) };
        let lock = lock_new(&self.config).unwrap().unwrap();
        Writer::create(&self.config, &lock, origin, TimelineId(1), Lsn::new(100)).unwrap()
    }

    fn open(&self) -> Result<Writer, Error> {
        let lock = lock(&self.config, Command::Run).unwrap().expect("nobody writes");
        Writer::open(&self.config, &lock)
    }

    fn read_from(&self, progress: u64) -> Result<(Vec<Read>, Lsn), Error> {
        let mut tail = Tail::open(&self.config, Lsn::new(progress))?;
        let (mut read, mut position) = (Vec::new(), Lsn::INVALID);
        loop {
            match tail.read()? {
                Tailed::Drained => return Ok((read, position)),
                Tailed::Position(lsn) => position = lsn,
                Tailed::Message(record) => {
                    let arrival = record.arrival.map(Arrival::as_u64);
                    read.push((record.lsn.as_u64(), arrival, record.payload.to_vec()));
                }
            }
        }
    }

    fn files(&self) -> Vec<PathBuf> {
        let mut files: Vec<_> = fs::read_dir(&self.config.dir).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.retain(|path| path.is_file() && !path.ends_with("writer.lock") && !path.ends_with("identity"));
        files.sort();
        files
    }

    fn segments(&self) -> Vec<PathBuf> {
        let is_segment = |path: &PathBuf| path.extension().is_some_and(|suffix| suffix == "trail");
        self.files().into_iter().filter(is_segment).collect()
    }
}

fn record(place: &Place, name: &str, position: Lsn) -> Result<(), Error> {
    record_reader(&place.config, ReaderOf { name, target: None }, position)
}

fn take(writer: &mut Writer, lsn: u64, payload: &[u8]) {
    let arrival = payload.starts_with(b"R").then(|| Arrival::after_segments(lsn));
    assert_eq!(writer.make_room(payload.starts_with(b"B")).unwrap(), Room::There);
    writer.append(&Record { lsn: Lsn::new(lsn), arrival, payload });
}

/// A transaction that ends at `end`, with so many bytes of rows.
fn transaction(writer: &mut Writer, end: u64, bytes: usize) {
    take(writer, end - 5, b"B");
    if end.is_multiple_of(3) {
        take(writer, end - 4, b"R\0\0\0\x01 a relation");
    }
    for chunk in vec![b'I'; bytes].chunks(100_000) {
        take(writer, end - 3, chunk);
    }
    writer.commit(&Record { lsn: Lsn::new(end - 1), arrival: None, payload: b"C" }, Lsn::new(end));
}

/// Ends in a position.
fn fill(writer: &mut Writer, from: u64, transactions: u64) {
    for n in 1..=transactions {
        transaction(writer, from + 10 * n, 40);
        assert_eq!(writer.sync().unwrap(), Room::There);
    }
    writer.advance(Lsn::new(from + 10 * transactions + 5));
    writer.sync().unwrap();
}

/// Without what segments repeat of what is known.
fn told(read: &[Read]) -> Vec<&Read> {
    read.iter().filter(|(_, arrival, _)| arrival.is_none_or(|arrival| !arrival.is_multiple_of(2))).collect()
}

#[test]
fn what_is_synced_is_read_with_or_without_a_key() {
    for key in [None, Some(1)] {
        let place = Place::new(key);
        let mut writer = place.create();
        assert_eq!(place.read_from(100).unwrap(), (Vec::new(), Lsn::INVALID));
        transaction(&mut writer, 110, 40);
        assert_eq!(place.read_from(100).unwrap().0.len(), 0, "nothing is read that is not synced");
        writer.sync().unwrap();
        assert_eq!((writer.end(), place.read_from(100).unwrap().1), (Lsn::new(110), Lsn::new(110)));
        fill(&mut writer, 110, 20);
        let (read, position) = place.read_from(100).unwrap();
        assert_eq!(position, Lsn::new(315));
        let ends: Vec<_> = read.iter().filter(|(.., payload)| payload == b"C").map(|(lsn, ..)| lsn + 1).collect();
        assert_eq!(ends, (11..=31).map(|n| n * 10).collect::<Vec<_>>());
        assert!(place.segments().len() > 3, "{:?}", place.segments());
        let clear =
            place.segments().iter().any(|path| fs::read(path).unwrap().windows(9).any(|window| window == b"IIIIIIIII"));
        assert_eq!(clear, key.is_none());
    }
}

#[test]
fn a_reader_may_begin_anywhere_and_knows_what_was_described() {
    let place = Place::new(None);
    let mut writer = place.create();
    fill(&mut writer, 100, 20);
    let (all, _) = place.read_from(100).unwrap();
    for progress in 101..=305 {
        let (read, position) = place.read_from(progress).unwrap();
        assert_eq!(position, Lsn::new(305));
        let (all, read_told) = (told(&all), told(&read));
        assert!(all.ends_with(&read_told), "from {progress}");
        let Some(first_change) = read.iter().find(|(_, arrival, _)| arrival.is_none()) else { continue };
        assert!(first_change.0 <= progress + 5, "from {progress}: {first_change:?}");
        if first_change.0 > 125 {
            // The description that came first, as one within a segment of a stream.
            assert!(read[0].2.starts_with(b"R") && read[0].1.unwrap().is_multiple_of(2), "from {progress}: {read:?}");
        }
    }
    let behind = place.read_from(306).unwrap_err();
    assert!(matches!(behind.kind(), Kind::TrailBehind { .. }), "{behind}");
    assert!(place.read_from(99).unwrap_err().to_string().contains("begins at 0/64, past"));
}

#[test]
fn a_tail_sees_what_comes_later() {
    let place = Place::new(Some(3));
    let mut writer = place.create();
    let mut tail = Tail::open(&place.config, Lsn::new(100)).unwrap();
    let mut seen = 0;
    for round in 0..30 {
        assert!(matches!(tail.read().unwrap(), Tailed::Drained));
        // One that has many blocks among them.
        transaction(&mut writer, 110 + 10 * round, if round == 7 { 2_000_000 } else { 40 });
        writer.sync().unwrap();
        assert!(matches!(tail.read().unwrap(), Tailed::Drained), "it has not looked");
        tail.look().unwrap();
        loop {
            match tail.read().unwrap() {
                Tailed::Drained => break,
                Tailed::Message(record) => seen += usize::from(record.payload == b"C"),
                Tailed::Position(position) => assert_eq!(position, Lsn::new(110 + 10 * round)),
            }
        }
        assert_eq!(seen, round as usize + 1);
    }
    assert!(verify(&place.config).unwrap().segments.iter().all(|segment| segment.fault.is_none()));
}

#[test]
fn who_comes_again_goes_on_and_cuts_off_what_is_not_whole() {
    for key in [None, Some(1)] {
        let place = Place::new(key);
        let mut writer = place.create();
        fill(&mut writer, 100, 5);
        // Written, but not to its end.
        take(&mut writer, 160, b"B");
        (0..10).for_each(|_| take(&mut writer, 161, &[b'I'; 100_000]));
        writer.make_room(true).unwrap();
        writer.sync().unwrap();
        assert_eq!(writer.end(), Lsn::new(155));
        let arrivals = writer.arrivals_before();
        drop(writer);
        let (before, _) = place.read_from(100).unwrap();
        let mut writer = place.open().unwrap();
        assert_eq!(writer.end(), Lsn::new(155));
        assert!(writer.arrivals_before() > arrivals && writer.arrivals_before().is_multiple_of(2));
        assert_eq!(place.read_from(100).unwrap().0, before);
        let salts: Vec<_> = place.segments();
        fill(&mut writer, 155, 1);
        assert!(place.segments().len() > salts.len(), "what was cut off is not written over");
        drop(writer);
        assert_eq!(place.read_from(100).unwrap().1, Lsn::new(170));
        // Without a cut it goes on, but for what is encrypted.
        let segments = place.segments().len();
        let mut writer = place.open().unwrap();
        writer.make_room(false).unwrap();
        assert_eq!(place.segments().len() > segments, key.is_some());
    }
}

/// Copies what is in a folder, but for folders in it.
#[test]
fn what_every_reader_has_passed_goes_and_no_more() {
    let place = Place::new(None);
    let mut writer = place.create();
    fill(&mut writer, 100, 30);
    let all = place.segments().len();
    writer.prune().unwrap();
    assert_eq!(place.segments().len(), all, "without a reader all is kept");
    record(&place, "slow", Lsn::new(100)).unwrap();
    record(&place, "fast", Lsn::new(405)).unwrap();
    writer.prune().unwrap();
    assert_eq!(place.segments().len(), all);
    for position in (100..=405).step_by(5) {
        record(&place, "slow", Lsn::new(position)).unwrap();
        writer.prune().unwrap();
        place.read_from(position).unwrap();
        assert_eq!(writer.bytes(), list(&place.config).unwrap().bytes);
        let next = Lsn::new(position).as_u64();
        let listed = list(&place.config).unwrap();
        assert!(listed.segments.len() < 2 || listed.segments[1].starts_at.unwrap().as_u64() > next, "{listed:?}");
    }
    assert!(place.segments().len() <= 2);
    let names: Vec<_> = readers(&place.config).unwrap().into_iter().map(|reader| reader.name).collect();
    assert_eq!(names, ["fast", "slow"]);
    forget_reader(&place.config, "slow").unwrap();
    assert!(forget_reader(&place.config, "slow").unwrap_err().to_string().contains("there are fast"));
    // One that cannot be read keeps everything.
    fs::write(place.config.dir.join("readers/odd"), "{").unwrap();
    assert!(writer.prune().unwrap_err().to_string().contains("odd"));
    fs::remove_file(place.config.dir.join("readers/odd")).unwrap();
    drop(writer);
    let lock = lock(&place.config, Command::Run).unwrap().unwrap();
    assert!(remove(&place.config, &lock).unwrap());
    assert!(read(&place.config).unwrap().is_none() && place.files().is_empty());
}

#[test]
fn no_more_is_taken_than_may_be_there_but_for_a_transaction_that_has_begun() {
    let mut place = Place::new(None);
    (place.config.max_bytes, place.config.segment_bytes) = (4_000, 1_000);
    let mut writer = place.create();
    let mut end = 100;
    while writer.make_room(true).unwrap() == Room::There {
        end += 10;
        transaction(&mut writer, end, 100);
        writer.sync().unwrap();
    }
    assert_eq!(writer.make_room(true).unwrap(), Room::TrailFull);
    assert!((4_000..5_000).contains(&writer.bytes()), "{}", writer.bytes());
    assert_eq!(writer.end(), Lsn::new(end));
    record(&place, "r", Lsn::new(end)).unwrap();
    writer.prune().unwrap();
    assert_eq!(writer.make_room(true).unwrap(), Room::There);
    transaction(&mut writer, end + 10, 3_000_000);
    writer.sync().unwrap();
    assert_eq!(writer.make_room(true).unwrap(), Room::TrailFull);
    record(&place, "r", Lsn::new(end + 10)).unwrap();
    writer.prune().unwrap();
    assert_eq!(writer.make_room(true).unwrap(), Room::There, "a large transaction is not in the way for ever");
}

#[test]
fn one_writes() {
    let place = Place::new(None);
    place.create();
    let mut held = lock(&place.config, Command::Run).unwrap().unwrap();
    assert!(lock(&place.config, Command::Run).unwrap().is_none());
    let state = list(&place.config).unwrap().writer.unwrap();
    assert_eq!((state.pid, state.paused), (std::process::id(), None));
    held.say(Some("the disk is full"));
    assert_eq!(list(&place.config).unwrap().writer.unwrap().paused.as_deref(), Some("the disk is full"));
    drop(held);
    assert!(list(&place.config).unwrap().writer.is_none());
    assert!(lock(&place.config, Command::Run).unwrap().is_some());
}

#[test]
fn a_new_key_is_for_what_comes_and_the_old_one_for_what_is_there() {
    let mut place = Place::new(Some(1));
    fill(&mut place.create(), 100, 3);
    let change = |config: &mut TrailConfig, key: Option<u8>, old: &[u8]| {
        config.key = key.map(|byte| DiskKey::new([byte; 32]));
        config.old_keys = old.iter().map(|byte| DiskKey::new([*byte; 32])).collect();
    };
    change(&mut place.config, Some(2), &[]);
    for error in [place.open().unwrap_err(), place.read_from(100).unwrap_err()] {
        let error = error.to_string();
        assert!(error.contains(".trail is encrypted under the key ") && error.contains("old_key_files"), "{error}");
    }
    change(&mut place.config, Some(2), &[1]);
    fill(&mut place.open().unwrap(), 135, 3);
    change(&mut place.config, None, &[2, 1]);
    fill(&mut place.open().unwrap(), 170, 3);
    let (read, position) = place.read_from(100).unwrap();
    assert_eq!((position, read.iter().filter(|(.., payload)| payload == b"C").count()), (Lsn::new(205), 9));
    let ids: Vec<_> = list(&place.config).unwrap().segments.into_iter().map(|segment| segment.key_id).collect();
    let mut distinct = ids.clone();
    distinct.dedup();
    assert!(distinct.len() == 3 && distinct[2].is_none() && distinct[0] != distinct[1], "{ids:?}");
}

#[test]
fn another_timeline_begins_a_segment() {
    let place = Place::new(None);
    let mut writer = place.create();
    fill(&mut writer, 100, 2);
    writer.follow_timeline(TimelineId(3));
    fill(&mut writer, 125, 2);
    drop(writer);
    let known = read(&place.config).unwrap().unwrap();
    assert_eq!((known.timeline, known.history), (TimelineId(3), vec![(TimelineId(1), Lsn::new(125))]));
    assert_eq!(place.open().unwrap().timeline(), TimelineId(3));
}

/// A connection of the source describes again what it brings, and tables that were dropped before it are not among that.
#[test]
fn what_an_earlier_connection_has_described_is_not_repeated_for_ever() {
    let place = Place::new(None);
    let mut writer = place.create();
    for table in 0..100_u8 {
        let end = 110 + 10 * u64::from(table);
        take(&mut writer, end - 5, b"B");
        take(&mut writer, end - 4, &[b"R\0\0\0".as_slice(), &[table], b" a table that is dropped afterwards"].concat());
        writer.commit(&Record { lsn: Lsn::new(end - 1), arrival: None, payload: b"C" }, Lsn::new(end));
        writer.sync().unwrap();
    }
    drop(writer);
    let mut writer = place.open().unwrap();
    fill(&mut writer, 1100, 60);
    let newest = fs::metadata(place.segments().pop().unwrap()).unwrap().len();
    assert!(newest < 3_000, "a segment of 600 bytes has {newest}");
    let (all, _) = place.read_from(100).unwrap();
    for progress in (1110..1700).step_by(10) {
        let (read, _) = place.read_from(progress).unwrap();
        assert!(told(&all).ends_with(&told(&read)), "from {progress}");
        // Whatever a row is of is described before it, by its own connection.
        let described = read.iter().position(|(.., payload)| payload == b"R\0\0\0\x01 a relation");
        let row = read.iter().position(|(lsn, _, payload)| *lsn > 1_150 && payload.starts_with(b"I"));
        assert!(described < row && described.is_some(), "from {progress}: {described:?}, {row:?}");
    }
}

/// What another process is just making is not a file that a crash has left.
#[test]
fn files_that_readers_are_making_are_left_alone() {
    let place = Place::new(None);
    drop(place.create());
    let readers = place.config.dir.join("readers");
    let [fresh, old] = ["one.77.new", "two.78.new"].map(|name| readers.join(name));
    let own = place.config.dir.join("0000000000000009.trail.77.new");
    for path in [&fresh, &old, &own] {
        fs::write(path, "half").unwrap();
    }
    let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(3_600);
    fs::File::options().write(true).open(&old).unwrap().set_modified(long_ago).unwrap();
    place.open().unwrap();
    assert_eq!((fresh.exists(), old.exists(), own.exists()), (true, false, false));
    assert!(readers_of(&place).is_empty());
}

fn readers_of(place: &Place) -> Vec<(String, u64, Option<String>)> {
    let readers = readers(&place.config).unwrap();
    readers.into_iter().map(|reader| (reader.name, reader.position.as_u64(), reader.target)).collect()
}

/// Progress that was read before its commit was known to be durable has nothing let go.
#[test]
fn a_reader_that_comes_again_has_nothing_let_go_that_was_kept_for_it() {
    let place = Place::new(None);
    fill(&mut place.create(), 100, 10);
    let reader = |target| ReaderOf { name: "r", target };
    let claim = |target, progress| claim_reader(&place.config, reader(target), Lsn::new(progress)).unwrap().as_u64();
    assert_eq!(claim(None, 150), 100, "one that was not known keeps all that there is");
    record(&place, "r", Lsn::new(120)).unwrap();
    assert_eq!(claim(Some("7"), 150), 120, "and one that was, what it kept");
    assert_eq!(readers_of(&place), [("r".to_owned(), 120, Some("7".to_owned()))]);
    assert_eq!(claim(Some("7"), 110), 110, "a target that has lost something gets it again");
    record(&place, "r", Lsn::new(130)).unwrap();
    assert_eq!(readers_of(&place), [("r".to_owned(), 130, Some("7".to_owned()))], "who it is stays known");
    for refused in [
        claim_reader(&place.config, reader(Some("8")), Lsn::new(150)).unwrap_err(),
        record_reader(&place.config, reader(Some("8")), Lsn::new(150)).unwrap_err(),
        check_reader(&place.config, reader(Some("8"))).unwrap_err(),
    ] {
        assert!(refused.to_string().contains("database 7, and this one is 8"), "{refused}");
    }
    assert_eq!(readers_of(&place)[0].1, 130);
}

#[test]
fn an_empty_folder_is_no_trail_to_whoever_does_not_begin_one() {
    let place = Place::new(None);
    for is_there in [false, true] {
        if is_there {
            fs::create_dir(&place.config.dir).unwrap();
        }
        let refused = [
            lock(&place.config, Command::Run).map(drop).unwrap_err(),
            expect(&place.config).map(drop).unwrap_err(),
            Tail::open(&place.config, Lsn::new(100)).map(drop).unwrap_err(),
            record(&place, "r", Lsn::new(100)).unwrap_err(),
            forget_reader(&place.config, "r").unwrap_err(),
        ];
        for error in refused {
            assert!(matches!(error.kind(), Kind::Refused { .. }) && error.to_string().contains("mounted"), "{error}");
        }
        assert_eq!(place.config.dir.exists(), is_there);
        assert!(!is_there || fs::read_dir(&place.config.dir).unwrap().next().is_none());
    }
}

#[test]
fn descriptions_that_are_not_given_again_are_kept() {
    let place = Place::new(None);
    let mut writer = place.create();
    let description = Record { lsn: Lsn::new(90), arrival: Some(Arrival::from_u64(1)), payload: b"R\0\0\0\x07 seven" };
    writer.make_room(true).unwrap();
    writer.describe(&description);
    writer.describe(&description);
    transaction(&mut writer, 110, 10);
    writer.sync().unwrap();
    let (read, _) = place.read_from(100).unwrap();
    assert_eq!(read.iter().filter(|(.., payload)| payload.starts_with(b"R")).count(), 1, "{read:?}");
    assert_eq!((read[0].0, read[0].1), (90, Some(1)));
}
