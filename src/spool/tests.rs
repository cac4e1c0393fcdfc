use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::Path;

use pgsluice_proto::PgTimestamp;
use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use crate::config::DiskKey;

const BLOCK: usize = 64;
const TOP: Xid = Xid(100);

fn spool(memory_bytes: usize, key: Option<[u8; 32]>) -> Spool {
    let config = SpoolConfig { dir: std::env::temp_dir(), memory_bytes, key: key.map(DiskKey::new) };
    Spool::with_blocks(config, BLOCK)
}

fn part(xid: Xid, text: &[u8]) -> StreamedPart<'_> {
    StreamedPart { xid: Some(xid), is_relation: text.starts_with(b"relation"), tag: b'I', rest: text }
}

fn take(spool: &mut Spool, xid: Xid, subxid: Xid, text: &str) {
    assert_eq!(spool.make_room().unwrap(), Room::There);
    spool.take(xid, Lsn::new(7), Arrival::in_segment(3), &part(subxid, text.as_bytes())).unwrap();
}

fn commit(xid: Xid) -> StreamCommit {
    let commit_time = PgTimestamp::from_micros(5);
    StreamCommit { xid, commit_lsn: Lsn::new(90), end_lsn: Lsn::new(95), commit_time }
}

/// What is replayed, without Begin and Commit, which it has to have around it.
fn replay(spool: &mut Spool, xid: Xid) -> Vec<String> {
    try_replay(spool, xid).unwrap()
}

fn try_replay(spool: &mut Spool, xid: Xid) -> io::Result<Vec<String>> {
    let mut replay = spool.commit(commit(xid)).unwrap();
    let mut payloads = Vec::new();
    while !replay.has_ended() {
        let Replayed { payload, arrival, .. } = replay.read()?;
        let is_relation = payload.get(1..).is_some_and(|rest| rest.starts_with(b"relation"));
        assert_eq!(arrival, is_relation.then(|| Arrival::in_segment(3)));
        payloads.push(payload.to_vec());
    }
    let (mut first, mut last) = (Vec::new(), Vec::new());
    commit(xid).begin().encode(&mut first);
    commit(xid).commit().encode(&mut last);
    assert_eq!((&payloads[0], payloads.last()), (&first, Some(&last)));
    let text = |payload: &Vec<u8>| {
        assert_eq!(payload[0], b'I');
        String::from_utf8(payload[1..].to_vec()).unwrap()
    };
    Ok(payloads[1..payloads.len() - 1].iter().map(text).collect())
}

#[test]
fn a_subtransaction_that_is_undone_takes_those_inside_of_it_along() {
    for memory_bytes in [0, usize::MAX] {
        let mut spool = spool(memory_bytes, None);
        spool.begin(TOP);
        take(&mut spool, TOP, TOP, "kept");
        take(&mut spool, TOP, Xid(101), "outer");
        take(&mut spool, TOP, Xid(102), "inner");
        spool.undo(TOP, Xid(102)).unwrap();
        take(&mut spool, TOP, Xid(101), "outer again");
        take(&mut spool, TOP, Xid(103), "inner again");
        spool.undo(TOP, Xid(101)).unwrap();
        // It is forgotten with the one around it, and undone once more in vain.
        spool.undo(TOP, Xid(103)).unwrap();
        spool.undo(TOP, Xid(104)).unwrap();
        take(&mut spool, TOP, Xid(105), "relation of its own");
        take(&mut spool, TOP, TOP, "the end");
        assert_eq!(replay(&mut spool, TOP), ["kept", "relation of its own", "the end"]);
        assert_eq!((spool.blocks_in_memory, spool.subtransactions, spool.bytes_on_disk()), (0, 0, 0));
    }
}

#[test]
fn what_does_not_fit_into_memory_is_on_disk_and_comes_back_the_same() {
    let mut spool = spool(3 * BLOCK, None);
    let others = [TOP, Xid(200), Xid(300)];
    others.iter().for_each(|&xid| spool.begin(xid));
    let text = |xid: Xid, n: usize| format!("{} {n} {}", xid.0, "x".repeat(n % 150));
    for n in 0..500 {
        others.iter().for_each(|&xid| take(&mut spool, xid, xid, &text(xid, n)));
        assert!(spool.blocks_in_memory <= 3 + 3, "{} blocks in memory", spool.blocks_in_memory);
    }
    assert!(spool.bytes_on_disk() > 100_000);
    spool.forget(Xid(200));
    for xid in [Xid(300), TOP] {
        assert_eq!(replay(&mut spool, xid), (0..500).map(|n| text(xid, n)).collect::<Vec<_>>());
    }
    assert_eq!((spool.blocks_in_memory, spool.bytes_on_disk()), (0, 0));
    assert!(spool.commit(commit(TOP)).is_none());
}

#[test]
fn on_disk_are_other_bytes_and_a_flipped_bit_is_an_error() {
    const CLEAR: &str = "clear text of a row";
    let file_holds = |spool: &Spool| {
        let file = spool.transactions[&TOP.0].log.file().unwrap().raw();
        let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes.windows(10).any(|window| CLEAR.as_bytes().windows(10).any(|clear| clear == window))
    };
    for (key, is_clear) in [(None, true), (Some([9; 32]), false)] {
        let mut spool = spool(0, key);
        spool.begin(TOP);
        (0..20).for_each(|_| take(&mut spool, TOP, TOP, CLEAR));
        assert_eq!(spool.make_room().unwrap(), Room::There);
        assert_eq!(file_holds(&spool), is_clear);
        if is_clear {
            continue;
        }
        let file = spool.transactions[&TOP.0].log.file().unwrap().raw();
        let mut byte = [0];
        file.read_exact_at(&mut byte, 200).unwrap();
        file.write_all_at(&[byte[0] ^ 4], 200).unwrap();
        let error = try_replay(&mut spool, TOP).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        let error = spool.replay_failed(error).to_string();
        assert!(error.contains("cannot read: a block was altered on the disk") && !error.contains("clear"), "{error}");
    }
}

#[test]
fn a_directory_that_is_none_is_named() {
    let config = SpoolConfig { dir: "/nowhere/at/all".into(), memory_bytes: 0, key: None };
    let error = Spool::check(&config).unwrap_err().to_string();
    assert!(error.contains("the spool in /nowhere/at/all: cannot make a file"), "{error}");
    let mut spool = Spool::with_blocks(config, BLOCK);
    spool.begin(TOP);
    spool.take(TOP, Lsn::INVALID, Arrival::in_segment(1), &part(TOP, &[0; 100])).unwrap();
    assert!(
        matches!(spool.make_room().unwrap_err().kind(), Kind::Spool { dir, .. } if dir == Path::new("/nowhere/at/all"))
    );
}

#[test]
fn one_that_was_given_up_is_not_followed_again() {
    let mut spool = spool(1_000 * BLOCK, None);
    for (xid, text) in [(1, "the largest of all"), (2, "large"), (3, "")] {
        spool.begin(Xid(xid));
        take(&mut spool, Xid(xid), Xid(xid), text);
    }
    for next in [Some(Xid(1)), Some(Xid(2)), Some(Xid(3)), None] {
        assert_eq!(spool.largest(0), next);
        next.into_iter().for_each(|xid| {
            spool.follow(xid);
            spool.unfollow(xid);
        });
    }
    // Another one of this number is another one.
    spool.forget(Xid(2));
    spool.begin(Xid(2));
    take(&mut spool, Xid(2), Xid(2), "again");
    assert_eq!(spool.largest(0), Some(Xid(2)));
}

#[test]
fn a_file_has_no_name() {
    let folder = tempfile::tempdir().unwrap();
    let config = SpoolConfig { dir: folder.path().into(), memory_bytes: 0, key: None };
    let mut spool = Spool::with_blocks(config, BLOCK);
    spool.begin(TOP);
    (0..20).for_each(|n| take(&mut spool, TOP, TOP, &format!("row {n}")));
    assert!(spool.bytes_on_disk() > 0);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// What happens to one of the transactions.
#[derive(Clone, Debug)]
enum Step {
    Begin,
    /// A message of the innermost savepoint that is open.
    Take {
        bytes: usize,
    },
    Savepoint,
    /// The savepoint stays, and counts as what is around it.
    Release,
    /// To one of those that are open.
    Rollback(Index),
    Abort,
    Commit,
}

fn step() -> impl Strategy<Value = (u32, Step)> {
    let step = prop_oneof![
        1 => Just(Step::Begin),
        8 => prop_oneof![0..40_usize, 0..400_usize].prop_map(|bytes| Step::Take { bytes }),
        2 => Just(Step::Savepoint),
        1 => Just(Step::Release),
        2 => any::<Index>().prop_map(Step::Rollback),
        1 => Just(Step::Abort),
        1 => Just(Step::Commit),
    ];
    (1..4_u32, step)
}

/// A transaction as it should come out.
#[derive(Default)]
struct Model {
    messages: Vec<String>,
    /// Savepoints that are open, with the number that each has, and what there was before it.
    open: Vec<(Xid, usize)>,
    /// Released ones, each inside of one that is open.
    released: Vec<(Xid, usize)>,
}

/// Subtransactions count on from here, as they do on a server: the outer one has its number before the inner one.
struct Numbers(u32);

impl Numbers {
    fn next(&mut self) -> Xid {
        self.0 += 1;
        Xid(self.0)
    }
}

fn run(spool: &mut Spool, steps: &[(u32, Step)]) {
    let mut models: BTreeMap<u32, Model> = BTreeMap::new();
    let mut numbers = Numbers(1_000);
    for (n, (xid, step)) in steps.iter().enumerate() {
        let (number, xid) = (*xid, Xid(*xid));
        if let (Step::Begin, false) = (step, models.contains_key(&number)) {
            spool.begin(xid);
            models.insert(number, Model::default());
        }
        let Some(model) = models.get_mut(&number) else { continue };
        match step {
            Step::Begin => {}
            Step::Take { bytes } => {
                let text = format!("{n} {}", "x".repeat(*bytes));
                take(spool, xid, model.open.last().map_or(xid, |(subxid, _)| *subxid), &text);
                model.messages.push(text);
            }
            Step::Savepoint => model.open.push((numbers.next(), model.messages.len())),
            Step::Release => model.released.extend(model.open.pop()),
            Step::Rollback(index) if !model.open.is_empty() => {
                let place = index.index(model.open.len());
                let (outer, before) = model.open[place];
                // Those inside of it first, as the source says it.
                let inner = model.open.drain(place..).skip(1).rev();
                let is_inside = |one: &(Xid, usize)| one.0.0 > outer.0;
                let released: Vec<_> = model.released.iter().copied().filter(is_inside).collect();
                for (subxid, _) in inner.chain(released).chain([(outer, before)]) {
                    spool.undo(xid, subxid).unwrap();
                }
                model.released.retain(|one| !is_inside(one));
                model.messages.truncate(before);
            }
            Step::Rollback(_) => {}
            Step::Abort => {
                spool.forget(xid);
                models.remove(&number);
            }
            Step::Commit => {
                let expected = std::mem::take(&mut model.messages);
                models.remove(&number);
                assert_eq!(replay(spool, xid), expected);
            }
        }
    }
    for (number, model) in models {
        assert_eq!(replay(spool, Xid(number)), model.messages);
    }
    assert_eq!((spool.blocks_in_memory, spool.subtransactions, spool.bytes_on_disk()), (0, 0, 0));
}

proptest! {
    #[test]
    fn a_replay_is_what_was_taken_and_not_undone(
        steps in prop::collection::vec(step(), 0..120),
        memory_blocks in prop_oneof![Just(0_usize), 0..8_usize, Just(1_000)],
        key in prop::option::of(any::<[u8; 32]>()),
    ) {
        run(&mut spool(memory_blocks * BLOCK, key), &steps);
    }
}
