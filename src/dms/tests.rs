use super::*;
use crate::config::{Config, Mask, Renaming};

const FIXTURE: &str = include_str!("../../tests/fixtures/dms.json");
/// What a mapping does not say.
const LEAST: &str = "name = \"n\"\nsource.dsn = \"host=/s user=u\"\ntarget.dsn = \"host=/t user=u\"\n";

fn translated(text: &str) -> Translation {
    translate(text, Underscore::AnyCharacter).unwrap_or_else(|error| panic!("{error}"))
}

/// A mapping of rules that are written as the fields that differ, with an include of all tables as the first of them.
fn mapping(rules: &[&str]) -> String {
    let first = r#"{"rule-type": "selection", "rule-id": 1, "rule-action": "include",
                    "object-locator": {"schema-name": "%", "table-name": "%"}}"#;
    let rule = |(at, fields): (usize, &&str)| {
        let id = at + 2;
        format!(r#"{{"rule-type": "transformation", "rule-id": "{id}", "rule-name": "r{id}", {fields}}}"#)
    };
    let rules: Vec<_> = std::iter::once(first.to_owned()).chain(rules.iter().enumerate().map(rule)).collect();
    format!(r#"{{"rules": [{}]}}"#, rules.join(", "))
}

/// `rule-action`, `rule-target`, the place and further fields.
fn action(action: &str, target: &str, place: &str, more: &str) -> String {
    let parts = ["schema-name", "table-name", "column-name"].into_iter().zip(place.split('.'));
    let locator: Vec<_> = parts.map(|(key, name)| format!(r#""{key}": "{name}""#)).collect();
    let more = if more.is_empty() { String::new() } else { format!(", {more}") };
    let locator = locator.join(", ");
    format!(r#""rule-action": "{action}", "rule-target": "{target}", "object-locator": {{{locator}}}{more}"#)
}

fn config(translation: &Translation) -> Config {
    let text = format!("{LEAST}{}", translation.toml);
    Config::parse(&text, "p.toml".as_ref(), &|_| None).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

fn outcomes(translation: &Translation) -> Vec<Outcome> {
    translation.report.rules.iter().map(|entry| entry.verdict.outcome).collect()
}

fn notes(translation: &Translation, at: usize) -> String {
    translation.report.rules[at].verdict.notes.join("; ")
}

fn refused(text: &str) -> String {
    translate(text, Underscore::AnyCharacter).expect_err(text).to_string()
}

#[test]
fn the_fixture_becomes_a_configuration() {
    let translation = translated(FIXTURE);
    let config = config(&translation);
    assert!(config.tables.selects("shop", "orders") && config.tables.selects("audit", "AUDIT_LOG"));
    assert!(!config.tables.selects("shop", "tmp_import") && !config.tables.selects("audit", "other"));

    let of =
        |schema: &'static str, table: &'static str| config.rules.iter().filter(move |rule| rule.matches(schema, table));
    let filters = |schema, table| of(schema, table).filter_map(|rule| rule.filter.clone()).collect::<Vec<_>>();
    assert_eq!(
        filters("shop", "orders"),
        ["(id BETWEEN '1' AND '1000' OR id >= '5000') AND total_amt <= '9999.99' AND status <> 'draft'"]
    );
    assert_eq!(
        filters("shop", "customers"),
        ["(region = 'EU' OR region = 'UK') AND deleted_at IS NULL AND email IS NOT NULL"]
    );
    assert_eq!(filters("shop", "events"), ["ev_id <= '1000000' AND ev_code NOT BETWEEN '90' AND '99'"]);

    // The one that does not yield, or else the first.
    let table = |schema, table: &'static str| {
        let rules: Vec<_> = of(schema, table).filter(|rule| rule.rename_table.is_some()).collect();
        let stands = rules.iter().find(|rule| !rule.yields).or(rules.first());
        stands.and_then(|rule| rule.rename_table.as_ref()).map_or(table.to_owned(), |to| to.apply(table))
    };
    for (name, expected) in [
        ("orders", "purchases"),
        ("ref_country", "lookup_country"),
        ("events", "events_v2"),
        ("customers", "s_customers"),
        ("order_items", "s_order_items"),
    ] {
        assert_eq!(table("shop", name), expected);
    }
    assert_eq!(table("audit", "AUDIT_LOG"), "audit_log");
    let schema = of("audit", "AUDIT_LOG").find_map(|rule| rule.rename_schema.clone());
    assert_eq!(schema.map(|to| to.apply("audit")).as_deref(), Some("AUDIT"));
    assert!(of("shop", "orders").any(|rule| rule.rename_schema == Some(Renaming::To("store".to_owned()))));

    let column = |table, name: &str| {
        let mut renamings = of("shop", table).flat_map(|rule| &rule.rename_columns);
        renamings.find(|(pattern, _)| pattern.matches(name)).map(|(_, to)| to.apply(name))
    };
    assert_eq!(column("customers", "cust_no").as_deref(), Some("customer_number"));
    assert_eq!(column("events", "ev_id").as_deref(), Some("id"));
    assert_eq!(column("orders", "total_amt").as_deref(), Some("total_amount"));
    assert_eq!(column("ref_country", "label").as_deref(), Some("the_label"));
    assert_eq!(column("ref_country", "code").as_deref(), Some("code_iso"));
    assert_eq!(column("order_items", "qty").as_deref(), Some("quantity"));
    assert_eq!(column("order_items", "sku_tx").as_deref(), Some("sku"));

    let masks: Vec<_> = of("shop", "customers").flat_map(|rule| &rule.masks).map(|(_, mask)| mask.clone()).collect();
    assert_eq!(masks, [Mask::Digits { with: '#' }, Mask::DigitsRandom, Mask::Sha256 { length: 64 }]);
    let kept = of("shop", "products").find_map(|rule| rule.keep_columns.as_ref()).expect("columns are kept");
    assert_eq!(kept.iter().map(ToString::to_string).collect::<Vec<_>>(), ["id", "name"]);
    assert_eq!(of("shop", "order_items").flat_map(|rule| &rule.cast).count(), 1);
    // The columns of the log are renamed to lower case, and the key is of the target.
    let key = of("audit", "AUDIT_LOG").find_map(|rule| rule.key.clone());
    assert_eq!(key, Some(vec!["id".to_owned()]));
    assert!(of("shop", "events").any(|rule| rule.soft_delete && rule.set == [("op".to_owned(), "$op".to_owned())]));
    assert!(!of("shop", "orders").any(|rule| rule.soft_delete));
}

#[test]
fn every_rule_is_in_the_report_once() {
    let document: serde_json::Value = serde_json::from_str(FIXTURE).unwrap();
    let id = |rule: &serde_json::Value| rule["rule-id"].to_string().trim_matches('"').to_owned();
    let mut given: Vec<_> = document["rules"].as_array().unwrap().iter().map(id).collect();
    let mut reported: Vec<_> = translated(FIXTURE).report.rules.iter().map(|entry| entry.rule_id.to_string()).collect();
    given.sort();
    reported.sort();
    assert_eq!(given, reported);
}

#[test]
fn the_report_of_the_fixture() {
    let report = translated(FIXTURE).report;
    let of = |outcome| {
        let rules = report.rules.iter().filter(move |entry| entry.verdict.outcome == outcome);
        rules.map(|entry| entry.rule_id.to_string()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(of(Outcome::NotPossible), "7 36 42 46 51 52");
    assert_eq!(of(Outcome::Ignored), "16 28");
    assert_eq!(of(Outcome::Changed), "2 4 6 32 33 40 41 47 50");
    for entry in &report.rules {
        assert!(entry.verdict.outcome == Outcome::Carried || !entry.verdict.notes.is_empty(), "{entry:?}");
    }
    let table = report.to_string();
    assert!(table.starts_with("rule-id  outcome       rule\n1        carried       include shop.%\n"), "{table}");
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["rules"][6]["outcome"], "not_possible");
    assert_eq!(json["rules"][6]["rule_id"], "7");
}

#[test]
fn of_rules_that_meet_the_lowest_number_stands() {
    let rules = [
        action("rename", "table", "s.orders", r#""value": "a""#),
        action("add-prefix", "table", "s.%", r#""value": "x_""#),
        action("rename", "table", "s.orders", r#""value": "b""#),
        action("convert-lowercase", "column", "s.orders.Total", ""),
        action("change-data-type", "column", "s.orders.Total", r#""data-type": {"type": "int8"}"#),
        action("data-masking-hash-mask", "column", "s.orders.Total", ""),
        action("convert-uppercase", "column", "s.%.%", ""),
        action("change-data-type", "column", "s.orders.other", r#""data-type": "string""#),
    ];
    let translation = translated(&mapping(&rules.each_ref().map(String::as_str)));
    use Outcome::{Carried, Changed, Ignored};
    assert_eq!(
        outcomes(&translation),
        [Carried, Carried, Carried, Ignored, Carried, Ignored, Carried, Carried, Changed]
    );
    assert!(notes(&translation, 3).contains("rule 2 decides it already"));
    assert!(notes(&translation, 8).contains("rule 8 acts on the same column"), "{}", notes(&translation, 8));
    let yields: Vec<_> = config(&translation).rules.iter().map(|rule| rule.yields).collect();
    assert_eq!(yields, [false, true, false, false, true, false]);
}

#[test]
fn rules_are_taken_by_their_numbers_and_not_by_their_place() {
    let rules = [
        action("rename", "table", "s.t", r#""value": "late""#),
        action("rename", "table", "s.t", r#""value": "early""#),
    ];
    let text = mapping(&rules.each_ref().map(String::as_str)).replace(r#""rule-id": "2""#, r#""rule-id": "10""#);
    let translation = translated(&text);
    assert_eq!(outcomes(&translation), [Outcome::Carried, Outcome::Carried, Outcome::Ignored]);
    assert!(translation.toml.contains("early") && !translation.toml.contains("late"));
}

#[test]
fn columns_are_kept_together_or_not_at_all() {
    let rules = [
        action("include-column", "column", "s.t.a", ""),
        action("include-column", "column", "s.%.b", ""),
        action("include-column", "column", "s.t.c%", ""),
        action("remove-column", "column", "s.t.d", ""),
    ];
    let translation = translated(&mapping(&rules.each_ref().map(String::as_str)));
    use Outcome::{Carried, Ignored, NotPossible};
    assert_eq!(outcomes(&translation), [Carried, Carried, NotPossible, Carried, Ignored]);
    assert!(translation.toml.contains("# rule-id 2: r2\n# rule-id 4: r4\n"), "{}", translation.toml);
    assert!(translation.toml.contains(r#"keep_columns = ["a", "c*"]"#), "{}", translation.toml);
}

#[test]
fn what_is_lax_in_mappings_is_read() {
    let text = r#"{“rules”: [
        {"rule-type": "selection", "rule-id": 7, "rule-name": null, "rule-action": " include ", "load-order": "",
         "object-locator": {"schema-name": "s", "table-name": "a b", "table-type": null}, "filters": [{
             "filter-type": "source", "column-name": "n", "filter-conditions": [{"filter-operator": "eq", "value": 5}]}],
         "isAutoSegmentationChecked": true},
        {"rule-type": "transformation", "rule-id": "08", "rule-name": "x\ny", "rule-action": "rename",
         "rule-action": "remove-column", "rule-target": "column", "value": null, "old-value": null, "future": 1,
         "object-locator": {"schema-name": "s", "table-name": "a b", "column-name": "c*"}}
    ]}"#;
    let translation = translated(text);
    assert_eq!(outcomes(&translation), [Outcome::Carried, Outcome::Changed]);
    assert_eq!(
        notes(&translation, 1),
        "`rule-action` is given twice, and the last one counts; the unknown key `future` is left out"
    );
    let config = config(&translation);
    assert!(config.tables.selects("s", "a b"));
    assert_eq!(config.rules[0].filter.as_deref(), Some("n = '5'"));
    assert!(config.rules[1].drop_columns[0].matches("c*") && !config.rules[1].drop_columns[0].matches("cx"));
}

#[test]
fn underscores_are_wildcards_unless_it_is_said_otherwise() {
    let text = mapping(&[&action("rename", "table", "s.a_b", r#""value": "c""#)]);
    assert!(translated(&text).toml.contains("table = \"s.a?b\""));
    assert!(translate(&text, Underscore::Itself).unwrap().toml.contains("table = \"s.a_b\""));
}

#[test]
fn what_is_not_possible_is_not_written() {
    for (rule, reason) in [
        (action("change-data-type", "column", "s.t.%", r#""data-type": {"type": "int8"}"#), "name each of them"),
        (action("change-data-type", "column", "s.t.a", r#""data-type": {"type": "blob"}"#), "no cast to blob"),
        (action("change-data-type", "column", "s.t.a", r#""data-type": {"type": "int16"}"#), "no type of DMS"),
        (action("data-masking-digits-mask", "column", "s.t.a", r#""value": "xy""#), "one character"),
        (action("rename", "table", "s.t", r#""value": "${schema-name}_t""#), "variables"),
        (action("add-column", "column", "s.t", r#""value": "h", "expression": "hash_sha256($a)""#), "in the place of"),
        (action("add-column", "column", "s.t", r#""value": "h", "expression": "frob($a)""#), "frob is not known"),
        (action("rename", "table", "s x%.t", r#""value": "u""#), "can have no wildcards"),
    ] {
        let translation = translated(&mapping(&[&rule]));
        assert_eq!(outcomes(&translation), [Outcome::Carried, Outcome::NotPossible], "{rule}");
        assert!(notes(&translation, 1).contains(reason), "{}", notes(&translation, 1));
        assert!(config(&translation).rules.is_empty());
    }
    let in_place = action("add-column", "column", "s.t", r#""value": "a", "expression": "hash_sha256($a)""#);
    assert!(translated(&mapping(&[&in_place])).toml.contains(r#"mask = { a = "sha256" }"#));
}

#[test]
fn two_conditions_for_a_table_are_not_merged() {
    let filter = |id: u8| {
        format!(
            r#"{{"rule-type": "selection", "rule-id": {id}, "rule-action": "include", "object-locator":
               {{"schema-name": "s", "table-name": "t"}}, "filters": [{{"filter-type": "source", "column-name": "a",
               "filter-conditions": [{{"filter-operator": "eq", "value": "it's {id}"}}]}}]}}"#
        )
    };
    let translation = translated(&format!(r#"{{"rules": [{}, {}]}}"#, filter(1), filter(2)));
    assert_eq!(outcomes(&translation), [Outcome::Carried, Outcome::NotPossible]);
    assert_eq!(config(&translation).rules[0].filter.as_deref(), Some("a = 'it''s 1'"));
}

#[test]
fn a_mapping_that_includes_nothing_says_so() {
    let translation = translated(r#"{"rules": []}"#);
    assert!(translation.report.includes_nothing && translation.report.to_string().contains("No rule includes a table"));
}

#[test]
fn what_is_no_mapping_is_refused_with_its_place() {
    let selection = |fields: &str| {
        format!(
            r#"{{"rules": [{{"rule-type": "selection", "rule-id": 3, "rule-action": "include",
               "object-locator": {{"schema-name": "s", "table-name": "t"}}, {fields}}}]}}"#
        )
    };
    let filter = |condition: &str| {
        selection(&format!(
            r#""filters": [{{"filter-type": "source", "column-name": "a", "filter-conditions": [{condition}]}}]"#
        ))
    };
    let of_table = |name: &str, more: &str| mapping(&[&action(name, "table", "s.t", more)]);
    for (text, complaint) in [
        ("{\n\"rules\": [}".to_owned(), "this is no JSON: expected value at line 2 column 11"),
        (String::new(), "line 1 column 0"),
        ("[]".to_owned(), "no object with a list \"rules\""),
        ("{\"TableMappings\": \"\"}".to_owned(), "it has no list \"rules\""),
        ("{\"rules\": {}}".to_owned(), "are no list"),
        ("{\"rules\": [1]}".to_owned(), "rule 1 of the list: an object in braces"),
        ("{\"rules\": [{\"rule-type\": \"selection\"}]}".to_owned(), "rule 1 of the list: `rule-id` is missing"),
        ("{\"rules\": [{\"rule-id\": \"a\"}]}".to_owned(), "the rule-id \"a\" is no whole number"),
        ("{\"rules\": [{\"rule-id\": 1}]}".to_owned(), "rule-id 1: `rule-type` is missing"),
        (
            selection("\"x\": 1").replace("\"selection\"", "\"selektion\""),
            "rule-id 3: unknown rule-type \"selektion\"; did you mean `selection`?",
        ),
        (selection("\"filter\": [1]"), "rule-id 3: unknown key `filter`; did you mean `filters`?"),
        (selection("\"rule-action\": \"keep\""), "unknown rule-action \"keep\"; there is include, exclude, explicit"),
        (
            selection(
                "\"rule-action\": \"explicit\", \"object-locator\": {\"schema-name\": \"s\", \"table-name\": \"%\"}",
            ),
            "has a wildcard",
        ),
        (filter(r#"{"filter-operator": "like", "value": "a"}"#), "rule-id 3: unknown filter-operator \"like\""),
        (filter(r#"{"filter-operator": "between", "start-value": 1}"#), "`end-value` is missing"),
        (filter(""), "the filter of column \"a\" has no `filter-conditions`"),
        (of_table("add-prefix", ""), "rule-id 2: `value` is missing"),
        (of_table("drop", ""), "rule-id 2: unknown rule-action \"drop\""),
        (of_table("remove-column", ""), "rule-id 2: the rule-target of this rule-action is column"),
        (of_table("define-primary-key", ""), "`primary-key-def` is missing"),
        (mapping(&[&action("rename", "column", "s.t", r#""value": "x""#)]), "`column-name` is missing"),
        (mapping(&[&action("rename", "table", "s", r#""value": "x""#)]), "`table-name` is missing"),
        (mapping(&[&action("rename", "table", "s.t", r#""value": []"#)]), "`value` is no text"),
        (
            of_table("rename", r#""value": "x""#).replace("\"rule-id\": \"2\"", "\"rule-id\": \"1\""),
            "rule-id 1: another rule has the same number",
        ),
    ] {
        let found = refused(&text);
        assert!(found.contains(complaint), "{found}\nfor {text}");
    }
}

/// A generator of its own, so that a mapping is known by its seed.
struct Random(u64);

impl Random {
    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        choices[(mixed ^ (mixed >> 31)) as usize % choices.len()]
    }
}

/// As SQL's LIKE, with nothing of the code that is tested.
fn like(pattern: &[u8], name: &[u8]) -> bool {
    match pattern {
        [] => name.is_empty(),
        [b'%', rest @ ..] => (0..=name.len()).any(|at| like(rest, &name[at..])),
        [b'_', rest @ ..] => !name.is_empty() && like(rest, &name[1..]),
        [first, rest @ ..] => name.first() == Some(first) && like(rest, &name[1..]),
    }
}

#[test]
fn what_stands_is_what_dms_does_for_random_renamings() {
    const PATTERNS: [&str; 10] = ["%", "ab", "a%", "%b", "_b", "a_", "abc", "%c", "a%c", "ba"];
    const NAMES: [&str; 7] = ["a", "b", "ab", "ba", "abc", "bb", "cc"];
    for seed in 0..400 {
        let mut random = Random(seed);
        let target = random.of(&["table", "column"]);
        let rules: Vec<_> = (2..2 + random.of(&[1, 3, 6, 12]))
            .map(|id| (id, ["s", random.of(&PATTERNS), random.of(&PATTERNS)]))
            .collect();
        let texts: Vec<_> = rules
            .iter()
            .map(|(id, [schema, table, column])| {
                let place =
                    if target == "table" { format!("{schema}.{table}") } else { format!("{schema}.{table}.{column}") };
                action("rename", target, &place, &format!(r#""value": "to{id}""#))
            })
            .collect();
        let translation = translated(&mapping(&texts.iter().map(String::as_str).collect::<Vec<_>>()));
        assert_eq!(translation.report.rules.len(), rules.len() + 1, "seed {seed}");
        let config = config(&translation);
        for (table, column) in NAMES.iter().flat_map(|table| NAMES.map(|column| (*table, column))) {
            let acts = |(_, [_, tables, columns]): &&(i32, [&str; 3])| {
                like(tables.as_bytes(), table.as_bytes())
                    && (target == "table" || like(columns.as_bytes(), column.as_bytes()))
            };
            let expected = rules.iter().find(acts).map(|(id, _)| format!("to{id}"));
            let deciding = config.rules.iter().filter(|rule| rule.matches("s", table)).filter_map(|rule| {
                let of_column = rule.rename_columns.iter().find(|(pattern, _)| pattern.matches(column));
                let renaming = if target == "table" { rule.rename_table.as_ref() } else { of_column.map(|(_, to)| to) };
                Some((rule.yields, renaming?.apply("x")))
            });
            let (yielding, standing): (Vec<_>, Vec<_>) = deciding.partition(|(yields, _)| *yields);
            assert!(standing.len() <= 1, "seed {seed}: a collision at {table}.{column}\n{}", translation.toml);
            let stands = standing.first().or(yielding.first()).map(|(_, name)| name.clone());
            assert_eq!(stands, expected, "seed {seed} at {table}.{column}\n{}", translation.toml);
        }
    }
}
