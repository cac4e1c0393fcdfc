//! What the kit writes into `postgresql.conf` and `pg_hba.conf`.

/// Server settings in order; of two with one name the last holds.
pub(crate) type Settings = Vec<(String, String)>;

/// A standby refuses to start with less of these than its primary has.
const MIN_AS_ON_PRIMARY: [&str; 5] = [
    "max_connections",
    "max_worker_processes",
    "max_wal_senders",
    "max_prepared_transactions",
    "max_locks_per_transaction",
];

/// Roles and rules for every password method; anybody else is trusted.
pub(crate) const PG_HBA: &str = "\
host  all,replication  scram_user  127.0.0.1/32  scram-sha-256
host  all,replication  md5_user    127.0.0.1/32  md5
host  all,replication  clear_user  127.0.0.1/32  password
local all,replication  all                       trust
host  all,replication  all         127.0.0.1/32  trust
host  all,replication  all         198.18.0.0/16 trust
";

/// What every server gets, whatever its part in a chain.
pub(crate) fn base(fsync: bool, autovacuum: bool) -> Settings {
    let mut settings = settings(&[
        ("listen_addresses", "127.0.0.1"),
        ("max_connections", "100"),
        ("max_wal_senders", "20"),
        ("max_replication_slots", "20"),
        ("max_prepared_transactions", "20"),
        ("shared_buffers", "32MB"),
        ("timezone", "UTC"),
        ("log_timezone", "UTC"),
        ("lc_messages", "C"),
        ("log_line_prefix", "%m [%p] %q%u@%d/%a "),
        ("log_replication_commands", "on"),
    ]);
    if !fsync {
        // Tests kill processes, never the machine. And what they kill leaves its shared memory where it is removed
        // with the data directory.
        settings.extend(self::settings(&[("fsync", "off"), ("dynamic_shared_memory_type", "mmap")]));
    }
    if !autovacuum {
        settings.extend(self::settings(&[("autovacuum", "off")]));
    }
    settings
}

pub(crate) fn settings(pairs: &[(&str, &str)]) -> Settings {
    pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// Those of a primary's settings that its standby has to share.
pub(crate) fn shared_with_standby(primary: &Settings) -> Settings {
    primary.iter().filter(|(name, _)| MIN_AS_ON_PRIMARY.contains(&name.as_str())).cloned().collect()
}

/// As lines of `postgresql.conf`.
pub(crate) fn render<N: AsRef<str>, V: AsRef<str>>(settings: &[(N, V)]) -> String {
    let line = |(name, value): &(N, V)| format!("{} = '{}'\n", name.as_ref(), value.as_ref().replace('\'', "''"));
    settings.iter().map(line).collect()
}
