//! What evaluating an expression costs: counted, so a test of its own with an allocator of its own.

#[path = "../../benches/decode/allocations.rs"]
mod allocations;

use allocations::Allocations;
use pgsluice::transform::expression::{Expression, Value};
use pgsluice_proto::Oid;
use pgsluice_proto::pgoutput::Cell;

const COLUMNS: [(&str, u32, &str, &[u8]); 6] = [
    ("id", 23, "7", &[0, 0, 0, 7]),
    ("region", 25, "EU", b"EU"),
    ("active", 16, "t", &[1]),
    ("at", 1184, "2024-02-29 12:00:00+00", &[0, 2, 0xb5, 0xcb, 0x7d, 0, 0, 0]),
    ("owner", 2950, "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", &[0xa0; 16]),
    ("amount", 701, "2.5", &[0x40, 4, 0, 0, 0, 0, 0, 0]),
];

#[test]
fn a_filter_allocates_nothing() {
    let columns: Vec<_> = COLUMNS.iter().map(|(name, oid, ..)| ((*name).to_owned(), Oid(*oid))).collect();
    for text in [
        "id = 7",
        "id BETWEEN 1 AND 10 OR id IN (20, 30, 40)",
        "region = 'EU'",
        "region <> 'US' AND active AND NOT id IS NULL",
        "at >= '2024-01-01' AND at < TIMESTAMPTZ '2024-03-01 00:00:00+02'",
        "owner = 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'",
        "amount * 2 > 1",
        "region LIKE 'E%'",
        "CASE id WHEN 1 THEN region ELSE 'x' END = 'x'",
    ] {
        let expression = Expression::parse(text, &columns).unwrap_or_else(|error| panic!("{text}: {error}"));
        for is_binary in [false, true] {
            let cell = |at: usize| match is_binary {
                true => Cell::Binary(COLUMNS[at].3),
                false => Cell::Text(COLUMNS[at].2.as_bytes()),
            };
            let before = Allocations::now();
            let value = expression.evaluate(cell);
            let is_true = expression.is_true(cell);
            let made = Allocations::now() - before;
            assert!(matches!(value, Ok(Value::Bool(_))) && is_true.is_ok(), "{text}");
            assert_eq!((made.count, made.bytes), (0, 0), "{text}");
        }
    }
}
