//! What real servers sent, decoded: `golden/pgMAJOR-SCENARIO.txt` holds the messages, one `lsn hex` a line, and
//! `.expected` beside it what they say.
//!
//! To capture again, say after a change of `golden/capture.sql` or for another major release:
//!
//! ```sh
//! proto/tests/golden/capture "$(scripts/postgres 16)"     # any bin directory of PostgreSQL 16 or later
//! proto/tests/golden/capture "$(scripts/postgres 18)"
//! UPDATE_GOLDEN=1 cargo test -p pgsluice-proto --test golden
//! ```
//!
//! LSNs, xids, OIDs and times differ from one capture to the next; read the rest of the difference before you keep it.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;

use pgsluice_proto::Lsn;
use pgsluice_proto::pgoutput::{Cell, Decoder, Message, OldTuple, Tuple};

#[allow(dead_code, reason = "the corpus test uses the rest")]
#[path = "support/checks.rs"]
mod checks;
#[path = "support/encode.rs"]
mod encode;
#[path = "support/golden.rs"]
mod golden;

use golden::Capture;

#[test]
fn messages_say_what_is_expected() {
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    for capture in golden::captures() {
        let path = capture.path.with_extension("expected");
        let mut actual = String::new();
        decode(&capture, |_, lsn, _, message| {
            writeln!(actual, "{lsn} {}", render(message)).expect("a String takes all")
        });
        if update {
            fs::write(&path, &actual).expect("the expected text can be written");
            continue;
        }
        let expected = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        for (line, (actual, expected)) in actual.lines().zip(expected.lines()).enumerate() {
            assert_eq!(actual, expected, "{}:{}", path.display(), line + 1);
        }
        assert_eq!(actual.lines().count(), expected.lines().count(), "{}", path.display());
    }
}

#[test]
fn messages_are_decoded_exactly() {
    for capture in golden::captures() {
        decode(&capture, |before, _, payload, message| checks::pgoutput_is_exact(before, payload, message));
    }
}

/// A bit without a meaning is refused and not passed over.
#[test]
fn changed_bits_are_refused_or_decoded() {
    // The bits beyond are those of values.
    const CHANGED_BYTES_MAX: usize = 256;
    for capture in golden::captures() {
        decode(&capture, |before, _, payload, _| {
            for bit in 0..payload.len().min(CHANGED_BYTES_MAX) * 8 {
                let mut changed = payload.to_vec();
                changed[bit / 8] ^= 1 << (bit % 8);
                if let Ok(message) = before.clone().decode(Lsn::INVALID, &changed) {
                    checks::pgoutput_encodes_back(&changed, &message);
                }
            }
        });
    }
}

/// Each major release's captures hold every kind of message, in every form that the format gives it, and of cell.
#[test]
fn captures_hold_everything() {
    for major in ["pg16", "pg18"] {
        let mut forms = BTreeSet::new();
        for capture in golden::captures().iter().filter(|capture| capture.name().starts_with(major)) {
            decode(capture, |_, _, _, message| forms.extend(forms_of(message)));
        }
        let forms: Vec<_> = forms.iter().map(String::as_str).collect();
        assert_eq!(forms, FORMS, "{major}");
    }
}

/// Sorted. "streamed" has an xid in front.
const FORMS: &[&str] = &[
    "Begin",
    "Begin Prepare",
    "Commit",
    "Commit Prepared",
    "Delete K",
    "Delete K streamed",
    "Delete O",
    "Insert",
    "Insert streamed",
    "Message",
    "Message transactional",
    "Message transactional streamed",
    "Origin",
    "Prepare",
    "Relation Default",
    "Relation Default streamed",
    "Relation Full",
    "Relation Index",
    "Relation Nothing",
    "Rollback Prepared",
    "Stream Abort subtransaction",
    "Stream Abort subtransaction with LSN",
    "Stream Abort transaction",
    "Stream Abort transaction with LSN",
    "Stream Commit",
    "Stream Prepare",
    "Stream Start",
    "Stream Start first",
    "Stream Stop",
    "Truncate",
    "Truncate cascade",
    "Truncate cascade restart identity",
    "Truncate restart identity",
    "Truncate streamed",
    "Type",
    "Type streamed",
    "Update K",
    "Update K streamed",
    "Update N",
    "Update N streamed",
    "Update O",
    "cell binary",
    "cell null",
    "cell text",
    "cell unchanged",
    "tuple empty",
];

fn forms_of(message: &Message<'_>) -> Vec<String> {
    let mut forms = Vec::new();
    let mut form = message.name().to_owned();
    let xid = match message {
        Message::Insert(insert) => insert.xid,
        Message::Update(update) => {
            form += match update.old {
                Some(OldTuple::Key(_)) => " K",
                Some(OldTuple::Full(_)) => " O",
                None => " N",
            };
            update.xid
        }
        Message::Delete(delete) => {
            form += if matches!(delete.old, OldTuple::Key(_)) { " K" } else { " O" };
            delete.xid
        }
        Message::Truncate(truncate) => {
            form += if truncate.cascade { " cascade" } else { "" };
            form += if truncate.restart_identity { " restart identity" } else { "" };
            truncate.xid
        }
        Message::Logical(logical) => {
            form += if logical.transactional { " transactional" } else { "" };
            logical.xid
        }
        Message::Relation(relation) => {
            write!(form, " {:?}", relation.replica_identity).expect("a String takes all");
            relation.xid
        }
        Message::Type(named) => named.xid,
        Message::StreamStart(start) => {
            form += if start.first_segment { " first" } else { "" };
            None
        }
        Message::StreamAbort(stream) => {
            form += if stream.subxid == stream.xid { " transaction" } else { " subtransaction" };
            form += if stream.abort.is_some() { " with LSN" } else { "" };
            None
        }
        _ => None,
    };
    form += if xid.is_some() { " streamed" } else { "" };
    forms.push(form);
    for tuple in checks::tuples(message).into_iter().flatten() {
        forms.extend(tuple.is_empty().then(|| "tuple empty".to_owned()));
        forms.extend(tuple.cells().map(|cell| {
            let kind = match cell {
                Cell::Null => "null",
                Cell::Unchanged => "unchanged",
                Cell::Text(_) => "text",
                Cell::Binary(_) => "binary",
            };
            format!("cell {kind}")
        }));
    }
    forms
}

/// Decodes a capture as one stream; `see` gets the decoder as it was before each message.
fn decode(capture: &Capture, mut see: impl FnMut(&Decoder, Lsn, &[u8], &Message<'_>)) {
    let mut decoder = Decoder::new();
    for (lsn, payload) in &capture.messages {
        let before = decoder.clone();
        let message = decoder.decode(*lsn, payload).unwrap_or_else(|error| panic!("{}: {error}", capture.name()));
        see(&before, *lsn, payload, &message);
    }
}

/// One line, with all that the message holds.
fn render(message: &Message<'_>) -> String {
    match message {
        Message::Relation(relation) => {
            let mut line = format!(
                "Relation {{ xid: {:?}, id: {}, name: {:?}.{:?}, replica_identity: {:?}, columns: [",
                relation.xid, relation.id, relation.namespace, relation.name, relation.replica_identity,
            );
            for (position, column) in relation.columns().enumerate() {
                let comma = if position > 0 { ", " } else { "" };
                let key = if column.is_identity { "*" } else { "" };
                write!(line, "{comma}{key}{:?} {}({})", column.name, column.type_oid, column.type_modifier)
                    .expect("a String takes all");
            }
            line + "] }"
        }
        Message::Insert(insert) => {
            format!("Insert {{ xid: {:?}, relation: {}, new: {} }}", insert.xid, insert.relation, row(&insert.new))
        }
        Message::Update(update) => {
            let (xid, relation, new) = (update.xid, update.relation, row(&update.new));
            let old = update.old.as_ref().map_or_else(|| "None".to_owned(), old_row);
            format!("Update {{ xid: {xid:?}, relation: {relation}, old: {old}, new: {new} }}")
        }
        Message::Delete(delete) => {
            format!("Delete {{ xid: {:?}, relation: {}, old: {} }}", delete.xid, delete.relation, old_row(&delete.old))
        }
        Message::Truncate(truncate) => format!(
            "Truncate {{ xid: {:?}, cascade: {}, restart_identity: {}, relations: {:?} }}",
            truncate.xid,
            truncate.cascade,
            truncate.restart_identity,
            truncate.relations().map(|oid| oid.0).collect::<Vec<_>>(),
        ),
        Message::Logical(logical) => format!(
            "Message {{ xid: {:?}, transactional: {}, lsn: {}, prefix: {:?}, content: \"{}\" }}",
            logical.xid,
            logical.transactional,
            logical.lsn,
            logical.prefix,
            logical.content.escape_ascii(),
        ),
        other => format!("{other:?}"),
    }
}

fn old_row(old: &OldTuple<'_>) -> String {
    match old {
        OldTuple::Key(tuple) => format!("K{}", row(tuple)),
        OldTuple::Full(tuple) => format!("O{}", row(tuple)),
    }
}

fn row(tuple: &Tuple<'_>) -> String {
    let cells: Vec<_> = tuple.cells().map(|cell| render_cell(&cell)).collect();
    format!("[{}]", cells.join(", "))
}

fn render_cell(cell: &Cell<'_>) -> String {
    const SHOWN_BYTES_MAX: usize = 40;
    let shorten = |value: &[u8], show: fn(&[u8]) -> String| match value.get(..SHOWN_BYTES_MAX) {
        Some(start) if value.len() > SHOWN_BYTES_MAX => format!("{}… ({} bytes)", show(start), value.len()),
        _ => show(value),
    };
    match cell {
        Cell::Null => "null".to_owned(),
        Cell::Unchanged => "unchanged".to_owned(),
        Cell::Text(value) => shorten(value, |text| format!("{:?}", String::from_utf8_lossy(text))),
        Cell::Binary(value) => shorten(value, |bytes| format!("x{}", hex(bytes))),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
