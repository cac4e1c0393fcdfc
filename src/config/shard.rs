//! One replication as several: a configuration with `shards = n` comes in, n ordinary ones go out, each with a name of its own
//! and its part of the tables.
//!
//! **Always holds:** in which shard a table is depends on its name and on n alone, and never changes from one version to
//! another.

use sha2::{Digest, Sha256};

use super::{Config, Name};

/// The part of the tables that one of several replications has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    /// What all of them together are called.
    pub whole: Name,
    /// From 1 on.
    pub number: usize,
    pub count: usize,
}

impl Shard {
    pub fn holds(&self, schema: &str, table: &str) -> bool {
        number_of(schema, table, self.count) == self.number
    }

    /// The publications of all shards, in their order.
    pub fn publications(&self) -> impl Iterator<Item = String> {
        (1..=self.count).map(|number| self.whole.of_shard(number).publication())
    }

    /// That of the shard that a table is in.
    pub fn publication_of(&self, schema: &str, table: &str) -> String {
        self.whole.of_shard(number_of(schema, table, self.count)).publication()
    }
}

/// The shard of `count` that a table is in: the first four bytes of the SHA-256 of `schema`, a zero byte and `table`, as a
/// number whose first byte counts most, modulo `count`, plus 1. No name holds a zero byte.
pub fn number_of(schema: &str, table: &str, count: usize) -> usize {
    let hash = Sha256::new().chain_update(schema).chain_update([0]).chain_update(table).finalize();
    let first = hash.iter().take(4).fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    (first % count.max(1) as u64) as usize + 1
}

impl Name {
    /// As many bytes as this are needed for the name of a shard beside that of the whole.
    pub(super) fn shard_suffix_bytes(count: usize) -> usize {
        if count > 1 { 1 + count.to_string().len() } else { 0 }
    }

    fn of_shard(&self, number: usize) -> Name {
        Name(format!("{self}_{number}"))
    }
}

impl Config {
    /// The replications that this one consists of: itself, unless it has shards.
    pub fn split(&self) -> Vec<Config> {
        self.split_into(self.shards)
    }

    /// The same, with another number of shards than the configuration has.
    pub fn split_into(&self, count: usize) -> Vec<Config> {
        if count <= 1 || self.shard().is_some() {
            return vec![self.clone()];
        }
        let shard = |number| {
            let shard = Shard { whole: self.name.clone(), number, count };
            let mut config = self.clone();
            config.name = self.name.of_shard(number);
            config.tables.bench = config.name.bench_table();
            config.tables.shard = Some(shard);
            config
        };
        (1..=count).map(shard).collect()
    }

    /// Which part of another replication this one is.
    pub fn shard(&self) -> Option<&Shard> {
        self.tables.shard()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: &str =
        "source.dsn = \"host=/s user=u\"\ntarget.dsn = \"host=/t user=u\"\ntables.include = [\"s.*\"]\n";

    fn config(top: &str) -> Result<Config, String> {
        Config::parse(&format!("{top}\n{LEAST}"), "p.toml".as_ref(), &|_| None).map_err(|error| error.to_string())
    }

    /// Written down, since tables that change their shard would be lost to the stream.
    #[test]
    fn a_table_stays_in_its_shard_for_ever() {
        let tables = [("public", "orders"), ("public", "customers"), ("shop", "Ünïcode"), ("a", "bc"), ("ab", "c")];
        let numbers = tables.map(|(schema, table)| [2, 3, 16].map(|count| number_of(schema, table, count)));
        assert_eq!(numbers, EXPECTED);
        assert_eq!(number_of("public", "orders", 1), 1);
    }

    const EXPECTED: [[usize; 3]; 5] = [[2, 3, 10], [1, 3, 3], [1, 1, 7], [2, 2, 14], [2, 2, 4]];

    #[test]
    fn every_table_is_in_one_shard() {
        let whole = config("name = \"shop\"\nshards = 3").unwrap();
        let shards = whole.split();
        let names: Vec<_> = shards.iter().map(|shard| shard.name.slot()).collect();
        assert_eq!(names, ["pgsluice_shop_1", "pgsluice_shop_2", "pgsluice_shop_3"]);
        let selecting = |table: &str| shards.iter().filter(|shard| shard.tables.selects("s", table)).count();
        assert!((0..100).all(|n| selecting(&format!("t{n}")) == 1) && selecting("t") == 1);
        assert!(shards.iter().all(|shard| (0..100).any(|n| shard.tables.selects("s", &format!("t{n}")))));
        assert!(shards.iter().all(|shard| !shard.tables.selects("other", "t") && shard.tables.covers("s", "t")));
        assert_eq!(shards[1].split().len(), 1);
    }

    #[test]
    fn one_shard_is_the_replication_itself() {
        for top in ["name = \"shop\"", "name = \"shop\"\nshards = 1"] {
            let shards = config(top).unwrap().split();
            assert!(shards.len() == 1 && shards[0].name.as_str() == "shop" && shards[0].shard().is_none());
        }
    }

    #[test]
    fn what_cannot_be_split_is_refused() {
        let name =
            |bytes: usize, shards: usize| config(&format!("name = \"{}\"\nshards = {shards}", "a".repeat(bytes)));
        assert!(name(50, 1).is_ok() && name(48, 9).is_ok() && name(47, 10).is_ok());
        let error = name(49, 9).unwrap_err();
        assert!(error.contains("`name`, line 1: a name is 1 to 48 of"), "{error}");
        assert!(name(48, 10).unwrap_err().contains("1 to 47"));
        for shards in ["0", "17", "-1"] {
            let error = config(&format!("name = \"a\"\nshards = {shards}")).unwrap_err();
            assert!(error.contains(&format!("`shards`, line 2: {shards} is outside of 1 to 16")), "{error}");
        }
        assert!(config("name = \"a\"\nshards = \"2\"").unwrap_err().contains("expected a whole number"));
    }
}
