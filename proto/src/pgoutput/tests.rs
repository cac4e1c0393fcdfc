use super::*;
use crate::{Oid, Xid};

fn decode(payload: &[u8]) -> Result<Message<'_>, DecodeError> {
    Decoder::new().decode(Lsn::new(0x10), payload)
}

fn insert_bytes() -> Vec<u8> {
    let mut payload = vec![b'I'];
    payload.extend(7_u32.to_be_bytes());
    payload.extend([b'N', 0, 4, b'n', b'u', b't', 0, 0, 0, 2, b'h', b'i', b'b', 0, 0, 0, 0]);
    payload
}

#[test]
fn the_four_states_of_a_cell() {
    let payload = insert_bytes();
    let Message::Insert(insert) = decode(&payload).unwrap() else { panic!("not an insert") };
    assert_eq!((insert.xid, insert.relation, insert.new.len()), (None, Oid(7), 4));
    let cells: Vec<_> = insert.new.cells().collect();
    assert_eq!(cells, [Cell::Null, Cell::Unchanged, Cell::Text(b"hi"), Cell::Binary(b"")]);
}

#[test]
fn every_cut_of_a_message_is_short_input_and_every_extra_byte_is_trailing() {
    let payload = insert_bytes();
    for cut in 0..payload.len() {
        let error = decode(&payload[..cut]).unwrap_err();
        assert!(matches!(error.kind, DecodeErrorKind::ShortInput { .. }), "{cut}: {error}");
        assert_eq!(error.lsn, Lsn::new(0x10));
    }
    let mut long = payload.clone();
    long.push(b'x');
    let error = decode(&long).unwrap_err();
    assert_eq!((error.offset, error.kind), (payload.len(), DecodeErrorKind::TrailingBytes { remaining: 1 }));
}

#[test]
fn unknown_tags_and_negative_lengths_name_their_offset() {
    assert_eq!(decode(b"?").unwrap_err().offset, 0);
    let mut payload = insert_bytes();
    payload[8] = b'z';
    let error = decode(&payload).unwrap_err();
    assert_eq!((error.offset, error.kind), (8, DecodeErrorKind::UnknownTag { field: "tuple cell", tag: b'z' }));
    let mut payload = insert_bytes();
    payload[11] = 0xff;
    let error = decode(&payload).unwrap_err();
    assert_eq!(error.offset, 11);
    assert!(matches!(error.kind, DecodeErrorKind::InvalidLength { length: ..0, .. }), "{error}");
}

#[test]
fn rows_carry_an_xid_only_inside_a_segment() {
    let mut decoder = Decoder::new();
    let mut streamed = insert_bytes();
    streamed.splice(1..1, 99_u32.to_be_bytes());
    let start = [b'S', 0, 0, 0, 99, 1];
    assert!(matches!(decoder.decode(Lsn::INVALID, &start), Ok(Message::StreamStart(_))));
    let Message::Insert(insert) = decoder.decode(Lsn::INVALID, &streamed).unwrap() else { panic!("not an insert") };
    assert_eq!(insert.xid, Some(Xid(99)));
    assert_eq!(decoder.decode(Lsn::INVALID, b"E"), Ok(Message::StreamStop));
    let plain = insert_bytes();
    let Message::Insert(insert) = decoder.decode(Lsn::INVALID, &plain).unwrap() else { panic!("not an insert") };
    assert_eq!(insert.xid, None);
}

#[test]
fn segments_do_not_nest_and_hold_no_commit() {
    let start = [b'S', 0, 0, 0, 99, 1];
    let mut begin = vec![b'B'];
    begin.extend([0; 20]);
    let mut decoder = Decoder::new();
    let error = decoder.decode(Lsn::INVALID, b"E").unwrap_err();
    assert!(matches!(error.kind, DecodeErrorKind::OutOfSequence { .. }), "{error}");
    decoder.decode(Lsn::INVALID, &start).unwrap();
    for payload in [&start[..], &begin[..]] {
        let error = decoder.decode(Lsn::INVALID, payload).unwrap_err();
        assert!(matches!(error.kind, DecodeErrorKind::OutOfSequence { .. }), "{error}");
    }
}

#[test]
fn truncate_lists_its_relations() {
    let payload = [b'T', 0, 0, 0, 2, 3, 0, 0, 0, 5, 0, 0, 1, 0];
    let Message::Truncate(truncate) = decode(&payload).unwrap() else { panic!("not a truncate") };
    assert!(truncate.cascade && truncate.restart_identity);
    assert_eq!(truncate.relations().collect::<Vec<_>>(), [Oid(5), Oid(256)]);
    let absurd = [b'T', 0x7f, 0xff, 0xff, 0xff, 0];
    assert!(matches!(decode(&absurd).unwrap_err().kind, DecodeErrorKind::ShortInput { .. }));
    let unknown_option = [b'T', 0, 0, 0, 0, 4];
    assert_eq!(decode(&unknown_option).unwrap_err().offset, 5);
}

#[test]
fn a_relation_lists_its_columns() {
    let mut payload = vec![b'R', 0, 0, 0, 9];
    payload.extend(b"app\0orders\0d\0\x02");
    payload.extend(b"\x01id\0\0\0\0\x14\xff\xff\xff\xff");
    payload.extend(b"\x00note\0\0\0\0\x19\xff\xff\xff\xff");
    let Message::Relation(relation) = decode(&payload).unwrap() else { panic!("not a relation") };
    assert_eq!((relation.namespace, relation.name), ("app", "orders"));
    assert_eq!(relation.replica_identity, ReplicaIdentity::Default);
    let columns: Vec<_> = relation.columns().map(|c| (c.is_identity, c.name, c.type_oid, c.type_modifier)).collect();
    assert_eq!(columns, [(true, "id", Oid(20), -1), (false, "note", Oid(25), -1)]);
}
