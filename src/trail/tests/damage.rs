//! What is not what was written is found.

use super::*;

fn is_damage(error: &Error) -> bool {
    matches!(error.kind(), Kind::TrailDamaged { .. } | Kind::Refused { .. } | Kind::TrailBehind { .. })
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to.join("readers")).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
        }
    }
}

#[test]
fn torn_at_any_length_it_ends_at_a_whole_transaction() {
    for key in [None, Some(1)] {
        let mut place = Place::new(key);
        place.config.segment_bytes = 900;
        let mut writer = place.create();
        fill(&mut writer, 100, 12);
        drop(writer);
        let (all, _) = place.read_from(100).unwrap();
        let last = place.segments().pop().unwrap();
        let bytes = fs::read(&last).unwrap();
        for has_mark in [true, false] {
            let mut ends = Vec::new();
            for length in 0..=bytes.len() {
                let torn = Place::new(key);
                copy(&place.config.dir, &torn.config.dir);
                fs::write(torn.config.dir.join(last.file_name().unwrap()), &bytes[..length]).unwrap();
                if !has_mark {
                    fs::remove_file(torn.config.dir.join("end")).unwrap();
                }
                match torn.open() {
                    Ok(writer) => {
                        ends.push(writer.end().as_u64());
                        drop(writer);
                        let (read, _) = torn.read_from(100).unwrap();
                        assert!(
                            all.starts_with(&read) && told(&read).last().is_some_and(|(.., payload)| payload == b"C")
                        );
                        assert!(verify(&torn.config).unwrap().segments.iter().all(|segment| segment.fault.is_none()));
                    }
                    // The header is there or not with the whole file, by a rename.
                    Err(error) => assert!(is_damage(&error) && error.to_string().contains("trail"), "{error}"),
                }
            }
            ends.dedup();
            assert!(ends.is_sorted() && *ends.last().unwrap() == 225, "{ends:?}");
            assert_eq!(ends.len() > 1, !has_mark, "what is before the mark is damage: {ends:?}");
        }
    }
}

#[test]
fn every_flipped_byte_is_found_or_harmless() {
    for key in [None, Some(1)] {
        let place = Place::new(key);
        let mut writer = place.create();
        fill(&mut writer, 100, 8);
        drop(writer);
        let all = place.read_from(100).unwrap();
        let (mut found, mut harmless) = (0, 0);
        for file in place.files() {
            let bytes = fs::read(&file).unwrap();
            let name = file.file_name().unwrap().to_str().unwrap();
            for at in 0..bytes.len() {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << (at % 8);
                fs::write(&file, &flipped).unwrap();
                match place.read_from(100) {
                    Ok(read) => {
                        harmless += 1;
                        assert_eq!(read, all, "{name}, byte {at}");
                    }
                    Err(error) => {
                        found += 1;
                        assert!(is_damage(&error) && error.to_string().contains(name), "{name}, byte {at}: {error}");
                    }
                }
                let verified = verify(&place.config);
                let is_sound = verified.is_ok_and(|trail| trail.segments.iter().all(|segment| segment.fault.is_none()));
                assert!(!is_sound, "{name}, byte {at} is not seen by verify");
            }
            fs::write(&file, &bytes).unwrap();
        }
        assert!(found > 1_000 && harmless == 0, "{found} found, {harmless} harmless");
    }
}

#[test]
fn a_writer_refuses_damage_before_the_mark_and_makes_the_mark_anew() {
    let place = Place::new(None);
    let mut writer = place.create();
    fill(&mut writer, 100, 3);
    drop(writer);
    let (last, mark) = (place.segments().pop().unwrap(), place.config.dir.join("end"));
    let (bytes, end) = (fs::read(&last).unwrap(), fs::read(&mark).unwrap());
    for at in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[at] ^= 0x10;
        fs::write(&last, &flipped).unwrap();
        let error = place.open().unwrap_err();
        assert!(matches!(error.kind(), Kind::TrailDamaged { .. }), "byte {at}: {error}");
    }
    fs::write(&last, &bytes).unwrap();
    for at in 0..end.len() {
        let mut flipped = end.clone();
        flipped[at] ^= 0x10;
        fs::write(&mark, &flipped).unwrap();
        assert_eq!(place.open().unwrap().end(), Lsn::new(135));
        assert_eq!(fs::read(&mark).unwrap(), end);
    }
}

#[test]
fn a_missing_segment_is_a_gap_for_reader_and_writer() {
    let place = Place::new(None);
    let mut writer = place.create();
    fill(&mut writer, 100, 30);
    drop(writer);
    let segments = place.segments();
    for (n, path) in segments.iter().enumerate() {
        let away = place.folder.path().join("away");
        fs::rename(path, &away).unwrap();
        let read = place.read_from(100);
        match n {
            0 => assert!(read.unwrap_err().to_string().contains("past the target's progress 0/64")),
            _ => assert!(read.unwrap_err().to_string().contains(path.file_name().unwrap().to_str().unwrap())),
        }
        // Without its beginning it is one that was pruned.
        assert_eq!(place.open().is_err(), n > 0, "{n}");
        fs::rename(&away, path).unwrap();
    }
    // And where it goes while it is read.
    let mut tail = Tail::open(&place.config, Lsn::new(100)).unwrap();
    fs::remove_file(&segments[3]).unwrap();
    let error = loop {
        match tail.read() {
            Ok(Tailed::Drained) => panic!("it came to the end"),
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(error.kind(), Kind::Refused { .. }), "{error}");
}

#[test]
fn kept_inputs_of_the_fuzz_target_pass_its_check() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/trail");
    let mut inputs = 0;
    for entry in fs::read_dir(&corpus).unwrap() {
        check::segment(&fs::read(entry.unwrap().path()).unwrap());
        inputs += 1;
    }
    assert!(inputs >= 4, "{inputs} inputs");
}

/// Segments of a small trail, whole and torn.
#[test]
#[ignore = "writes into fuzz/corpus"]
fn write_seeds() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/trail");
    fs::create_dir_all(&corpus).unwrap();
    let place = Place::new(None);
    fill(&mut place.create(), 100, 8);
    for (number, path) in place.files().iter().enumerate() {
        let bytes = fs::read(path).unwrap();
        fs::write(corpus.join(format!("seed-{number:02}")), &bytes).unwrap();
        fs::write(corpus.join(format!("seed-{number:02}-torn")), &bytes[..bytes.len() * 3 / 4]).unwrap();
    }
}
