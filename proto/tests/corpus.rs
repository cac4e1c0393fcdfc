//! Replays the inputs that fuzzing has kept, `fuzz/corpus/TARGET/*`, through the fuzz targets' own checks.
//!
//! The seeds among them come from the golden captures. To write them again after a new capture:
//!
//! ```sh
//! cargo test -p pgsluice-proto --test corpus -- --ignored write_seeds
//! ```

use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use pgsluice_proto::frame::{Frame, PrimaryKeepalive, XLogData};
use pgsluice_proto::pgoutput::{Cell, Decoder, Message};
use pgsluice_proto::{Lsn, PgTimestamp, wire};

#[path = "support/checks.rs"]
mod checks;
#[path = "support/encode.rs"]
mod encode;
#[path = "support/golden.rs"]
mod golden;

#[test]
fn kept_inputs_pass_their_checks() {
    for (target, check) in checks::TARGETS {
        let folder = folder(target);
        let mut paths: Vec<PathBuf> = fs::read_dir(&folder)
            .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
            .map(|entry| entry.unwrap().path())
            .collect();
        assert!(!paths.is_empty(), "{} is empty", folder.display());
        paths.sort();
        for path in paths {
            let input = fs::read(&path).unwrap();
            let outcome = catch_unwind(AssertUnwindSafe(|| check(&input)));
            assert!(outcome.is_ok(), "{target} fails on {}", path.display());
        }
    }
}

#[test]
fn every_target_is_fuzzed() {
    let mut fuzzed: Vec<String> = fs::read_dir(fuzz().join("fuzz_targets"))
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    fuzzed.sort();
    // The trail is no protocol: its corpus is replayed by the tests beside it, `src/trail/tests.rs`.
    let mut checked: Vec<_> = checks::TARGETS.iter().map(|(target, _)| *target).chain(["trail"]).collect();
    checked.sort_unstable();
    assert_eq!(fuzzed, checked);
}

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz")
}

fn folder(target: &str) -> PathBuf {
    fuzz().join("corpus").join(target)
}

#[test]
#[ignore = "writes into fuzz/corpus"]
fn write_seeds() {
    let groups = distinct_groups();
    let seeds: [(&str, Vec<Vec<u8>>); 5] = [
        ("wire", wire_seeds(&groups)),
        ("frame", frame_seeds(&groups)),
        ("pgoutput", groups.iter().map(pgoutput_seed).collect()),
        ("feedback", feedback_seeds()),
        ("lsn", lsn_seeds()),
    ];
    for (target, inputs) in seeds {
        let folder = folder(target);
        fs::create_dir_all(&folder).unwrap();
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.file_name().unwrap().to_string_lossy().starts_with("seed-") {
                fs::remove_file(path).unwrap();
            }
        }
        for (number, input) in inputs.iter().enumerate() {
            fs::write(folder.join(format!("seed-{number:02}")), input).unwrap();
        }
    }
}

/// Consecutive messages of a capture that a new decoder can start with: a transaction, or a segment of one.
type Group = Vec<(Lsn, Vec<u8>)>;

/// Those small ones that each hold a message unlike all before it: of another kind, or with other kinds of cells.
fn distinct_groups() -> Vec<Group> {
    const GROUP_BYTES_MAX: usize = 1_000;
    let (mut seen, mut groups) = (BTreeSet::new(), Vec::new());
    for capture in golden::captures() {
        let name = capture.name().to_owned();
        let (mut decoder, mut group, mut shapes) = (Decoder::new(), Group::new(), BTreeSet::new());
        let mut in_segment = false;
        for (lsn, payload) in capture.messages {
            let message = decoder.decode(lsn, &payload).unwrap_or_else(|error| panic!("{name}: {error}"));
            shapes.insert((message.name(), in_segment, cell_letters(&message)));
            in_segment = match message {
                Message::StreamStart(_) => true,
                Message::StreamStop => false,
                _ => in_segment,
            };
            let ends = ends_group(&message, in_segment);
            group.push((lsn, payload));
            if ends {
                let (group, mut shapes) = (std::mem::take(&mut group), std::mem::take(&mut shapes));
                let small = group.iter().map(|(_, payload)| payload.len()).sum::<usize>() <= GROUP_BYTES_MAX;
                if small && !shapes.is_subset(&seen) {
                    seen.append(&mut shapes);
                    groups.push(group);
                }
            }
        }
    }
    groups
}

fn ends_group(message: &Message<'_>, in_segment: bool) -> bool {
    match message {
        Message::Logical(logical) => !in_segment && !logical.transactional,
        Message::Commit(_)
        | Message::StreamStop
        | Message::StreamCommit(_)
        | Message::StreamAbort(_)
        | Message::Prepare(_)
        | Message::CommitPrepared(_)
        | Message::RollbackPrepared(_)
        | Message::StreamPrepare(_) => true,
        _ => false,
    }
}

fn cell_letters(message: &Message<'_>) -> BTreeSet<char> {
    let letter = |cell| match cell {
        Cell::Null => 'n',
        Cell::Unchanged => 'u',
        Cell::Text(_) => 't',
        Cell::Binary(_) => 'b',
    };
    checks::tuples(message).into_iter().flatten().flat_map(|tuple| tuple.cells()).map(letter).collect()
}

fn pgoutput_seed(group: &Group) -> Vec<u8> {
    let mut input = Vec::new();
    for (_, payload) in group {
        input.extend(u16::try_from(payload.len()).expect("groups are small").to_be_bytes());
        input.extend(payload);
    }
    input
}

fn frame_body(frame: &Frame<'_>) -> Vec<u8> {
    let mut body = Vec::new();
    encode::frame(frame, &mut body);
    body
}

fn data_frame(lsn: Lsn, data: &[u8]) -> Vec<u8> {
    frame_body(&Frame::XLogData(XLogData { start_lsn: lsn, end_lsn: lsn, sent_at: PgTimestamp::from_micros(1), data }))
}

fn keepalive_frame(reply_requested: bool) -> Vec<u8> {
    let (wal_end, sent_at) = (Lsn::new(0x1_6B37_4D84), PgTimestamp::from_micros(-1));
    frame_body(&Frame::PrimaryKeepalive(PrimaryKeepalive { wal_end, sent_at, reply_requested }))
}

/// One data frame for each first byte of a payload, the keepalives, and nothing.
fn frame_seeds(groups: &[Group]) -> Vec<Vec<u8>> {
    let mut seeds = vec![Vec::new(), keepalive_frame(false), keepalive_frame(true), data_frame(Lsn::INVALID, b"")];
    let mut seen = BTreeSet::new();
    for (lsn, payload) in groups.iter().flatten() {
        if seen.insert(payload[0]) {
            seeds.push(data_frame(*lsn, payload));
        }
    }
    seeds
}

/// Groups as the walsender frames them, between other messages, in differing chunks; and streams that lose their framing.
fn wire_seeds(groups: &[Group]) -> Vec<Vec<u8>> {
    const CHUNKINGS: [&[u8]; 5] = [&[], &[1], &[4, 1], &[200, 3, 7], &[16]];
    const GROUPS_APART: usize = 3;
    let mut seeds = Vec::new();
    for (group, sizes) in groups.iter().step_by(GROUPS_APART).zip(CHUNKINGS.iter().cycle()) {
        let mut stream = vec![wire::PARAMETER_STATUS, 0, 0, 0, 8, b'a', 0, b'b', 0];
        for (lsn, payload) in group {
            wire::put_copy_data(&mut stream, |body| body.extend(data_frame(*lsn, payload)));
        }
        wire::put_copy_data(&mut stream, |body| body.extend(keepalive_frame(false)));
        wire::put_copy_done(&mut stream);
        stream.extend([wire::READY_FOR_QUERY, 0, 0, 0, 5, b'I']);
        seeds.push(wire_seed(sizes, &stream));
    }
    for length in [0, 3, 0x3fff_ffff, 0x4000_0000, -1_i32] {
        seeds.push(wire_seed(&[3], &[&[b'Z', 0, 0, 0, 5, b'I', b'd'][..], &length.to_be_bytes()].concat()));
    }
    seeds
}

fn wire_seed(sizes: &[u8], stream: &[u8]) -> Vec<u8> {
    let count = u8::try_from(sizes.len()).expect("there are few sizes");
    [&[count], sizes, stream].concat()
}

fn feedback_seeds() -> Vec<Vec<u8>> {
    const RECEIVED: u8 = 0;
    const KEEPALIVE: u8 = 1;
    const KEEPALIVE_REPLY: u8 = 2;
    const FLUSHED: u8 = 3;
    const WAIT_MS: u8 = 4;
    const SEND_NOW: u8 = 5;
    const NO_POLL: u8 = 0xc0;
    let scripts: [&[(u8, u64)]; 4] = [
        &[],
        &[(RECEIVED, 0x100), (KEEPALIVE, 0x200), (WAIT_MS, 9_999), (WAIT_MS, 1), (FLUSHED, 0x180), (SEND_NOW, 0)],
        &[(FLUSHED, 0x300), (KEEPALIVE_REPLY, 0x200), (RECEIVED, 0x100), (FLUSHED, 0x200), (WAIT_MS, 24_999)],
        &[(KEEPALIVE_REPLY | NO_POLL, u64::MAX), (WAIT_MS | NO_POLL, 12_000), (FLUSHED, u64::MAX)],
    ];
    let seed = |script: &[(u8, u64)]| {
        let mut input = 0xff_u64.to_be_bytes().to_vec();
        for (kind, number) in script {
            input.push(*kind);
            input.extend(number.to_be_bytes());
        }
        input
    };
    scripts.into_iter().map(seed).collect()
}

fn lsn_seeds() -> Vec<Vec<u8>> {
    let texts = ["0/0", "16/B374D848", "FFFFFFFF/FFFFFFFF", "a/f", "0/0/0", "+1/1", "123456789/0", "00000000/00000001"];
    texts.map(|text| text.as_bytes().to_vec()).to_vec()
}
