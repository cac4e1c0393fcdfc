//! From what the file says to what it means: a [`RawConfig`] comes in, with the environment; defaults are filled in,
//! bounds are checked, passwords are fetched, and a [`Config`] goes out.

use std::ops::{Range, RangeInclusive};
use std::path::Path;
use std::time::Duration;

use toml::Spanned;

use super::file::{File, KIB, MIB, list_of, text_of};
use super::raw::{RawApply, RawConfig, RawEndpoint, RawMasks, Text};
use super::{
    ApplyConfig, Config, ConfigError, Endpoint, LogConfig, Name, Pattern, Policy, Problem, Role, Secret,
    SnapshotConfig, StreamConfig, TableSelection, ValueFormat, conflicts, dsn, rules, spool, trail,
};

const STATUS_INTERVAL: Duration = Duration::from_secs(10);
/// Below, updates are a load of their own; above, a source keeps WAL that it need not keep.
const STATUS_INTERVAL_RANGE: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(3_600);

const HEARTBEAT_RANGE: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(3_600);

const RETRY_LIMIT: Duration = Duration::from_secs(600);
/// Zero ends the run at the first failure. The upper bound keeps sums of times far from overflow.
/// Until then the source keeps what the target has.
const CONFIRM_DELAY_RANGE: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(86_400);
const RETRY_LIMIT_RANGE: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(30 * 86_400);

const BATCH_ROWS: usize = 10_000;
const BATCH_ROWS_RANGE: RangeInclusive<usize> = 1..=1_000_000;
const WORKERS: usize = 2;
/// Each is a session of the target, and holds a batch.
const WORKERS_RANGE: RangeInclusive<usize> = 1..=32;

const JOBS: usize = 4;
/// Each is a session on two servers.
const JOBS_RANGE: RangeInclusive<usize> = 1..=64;

const SHARDS: usize = 1;
/// Each is a walsender of the source, and two slots of it while tables are copied.
const SHARDS_RANGE: RangeInclusive<usize> = 1..=16;

const BATCH_BYTES: usize = 16 * MIB as usize;
/// A row can be larger than the least batch, which then holds that row alone; the most bounds memory per batch.
const BATCH_BYTES_RANGE: RangeInclusive<u64> = 64 * KIB..=256 * MIB;

const CHUNK_BYTES: u64 = 64 * MIB;
/// Below, a chunk is little more than its commit; above, much is done again after a crash.
const CHUNK_BYTES_RANGE: RangeInclusive<u64> = MIB..=1024 * 64 * MIB;

pub(super) fn resolve(
    raw: RawConfig,
    text: &str,
    path: &Path,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Config, ConfigError> {
    let file = File { text, path, env };
    let shards = file.count("", "shards", raw.shards, SHARDS_RANGE)?.unwrap_or(SHARDS);
    let name = file.name(raw.name, shards)?;
    let (include, include_at) =
        list_of(file.required(raw.tables.include, "tables", "include", "include = [\"public.*\"] under [tables]")?);
    if include.is_empty() {
        return Err(file.value("tables", "include", &include_at, Problem::NoPatterns));
    }
    let (exclude, exclude_at) = raw.tables.exclude.map(list_of).unwrap_or_default();
    let secret = file.mask_secret(raw.masks)?;
    let has_heartbeat = raw.stream.heartbeat.is_some();
    // What a trail keeps fits whatever target comes later.
    let format = match raw.trail {
        Some(_) => ValueFormat::Text,
        None => raw.stream.format.unwrap_or_default(),
    };
    let around = trail::Around { name: &name, shards, has_heartbeat, format: raw.stream.format };
    let RawApply { on_duplicate, on_missing_row, on_error, .. } = raw.apply;
    let defaults = Policy { on_duplicate, on_missing_row, on_error };
    Ok(Config {
        name: name.clone(),
        shards,
        source: file.endpoint(Role::Source, raw.source)?,
        primary: raw.primary.map(|primary| file.endpoint(Role::Primary, primary)).transpose()?,
        target: file.endpoint(Role::Target, raw.target)?,
        tables: TableSelection {
            include: file.patterns("include", &include, &include_at)?,
            exclude: file.patterns("exclude", &exclude, &exclude_at)?,
            bench: name.bench_table(),
            shard: None,
        },
        snapshot: SnapshotConfig {
            copy_data: raw.snapshot.copy_data.unwrap_or(true),
            jobs: file.count("snapshot", "jobs", raw.snapshot.jobs, JOBS_RANGE)?.unwrap_or(JOBS),
            chunk_bytes: file
                .size("snapshot", "chunk_bytes", raw.snapshot.chunk_bytes, CHUNK_BYTES_RANGE)?
                .unwrap_or(CHUNK_BYTES),
        },
        stream: StreamConfig {
            format,
            status_interval: file
                .duration("stream", "status_interval", raw.stream.status_interval, STATUS_INTERVAL_RANGE)?
                .unwrap_or(STATUS_INTERVAL),
            retry_limit: file
                .duration("stream", "retry_limit", raw.stream.retry_limit, RETRY_LIMIT_RANGE)?
                .unwrap_or(RETRY_LIMIT),
            heartbeat: file.duration("stream", "heartbeat", raw.stream.heartbeat, HEARTBEAT_RANGE)?,
            streaming: raw.stream.streaming.unwrap_or(true),
        },
        spool: spool::resolve(&file, raw.spool)?,
        trail: raw.trail.map(|trail| trail::resolve(&file, trail, around)).transpose()?,
        apply: ApplyConfig {
            batch_rows: file
                .count("apply", "batch_rows", raw.apply.batch_rows, BATCH_ROWS_RANGE)?
                .unwrap_or(BATCH_ROWS),
            // The range's upper end fits every usize of 32 bits.
            batch_bytes: file
                .size("apply", "batch_bytes", raw.apply.batch_bytes, BATCH_BYTES_RANGE)?
                .map_or(BATCH_BYTES, |bytes| bytes as usize),
            workers: file.count("apply", "workers", raw.apply.workers, WORKERS_RANGE)?.unwrap_or(WORKERS),
            netting: raw.apply.netting.unwrap_or(true),
            synchronous_commit: raw.apply.synchronous_commit.unwrap_or_default(),
            confirm_delay: file
                .duration("apply", "confirm_delay", raw.apply.confirm_delay, CONFIRM_DELAY_RANGE)?
                .unwrap_or_default(),
            ddl: raw.apply.ddl.unwrap_or_default(),
        },
        log: LogConfig { row_values: raw.log.row_values.unwrap_or(false) },
        rules: rules::resolve(&file, raw.rule, secret)?,
        conflicts: conflicts::resolve(&file, defaults, raw.conflict)?,
    })
}

impl File<'_> {
    /// Short enough that those of all shards are names too.
    fn name(&self, raw: Option<Spanned<Text>>, shards: usize) -> Result<Name, ConfigError> {
        let (name, at) = text_of(self.required(raw, "", "name", "name = \"shop\"")?);
        let bytes_max = Name::BYTES_MAX - Name::shard_suffix_bytes(shards);
        let fits = Name::new(&name).filter(|name| name.as_str().len() <= bytes_max);
        fits.ok_or_else(|| self.value("", "name", &at, Problem::Name { bytes_max }))
    }

    fn endpoint(&self, role: Role, raw: RawEndpoint) -> Result<Endpoint, ConfigError> {
        let table = role.to_string();
        let example = match role {
            Role::Source => "dsn = \"host=standby dbname=shop user=pgsluice\" under [source]",
            Role::Primary => "dsn = \"host=primary dbname=shop user=pgsluice\" under [primary]",
            Role::Target => "dsn = \"host=target dbname=shop user=pgsluice\" under [target]",
        };
        let (text, at) = text_of(self.required(raw.dsn, &table, "dsn", example)?);
        let mut endpoint =
            dsn::parse(role, &text).map_err(|error| self.value(&table, "dsn", &at, Problem::Dsn(error)))?;

        endpoint.password = match (endpoint.password.take(), raw.password_file, raw.password_env) {
            (password, None, None) => password,
            (None, Some(file), None) => Some(self.secret_file(&table, "password_file", file)?),
            (None, None, Some(variable)) => Some(self.secret_env(&table, "password_env", variable)?),
            (Some(_), Some(second), _) => return Err(self.second_password(&table, "password_file", second, "dsn")),
            (Some(_), None, Some(second)) => return Err(self.second_password(&table, "password_env", second, "dsn")),
            (None, Some(_), Some(second)) => {
                return Err(self.second_password(&table, "password_env", second, "password_file"));
            }
        };
        Ok(endpoint)
    }

    /// The key of masks.
    fn mask_secret(&self, raw: RawMasks) -> Result<Option<Secret>, ConfigError> {
        const TABLE: &str = "masks";
        let (key, at, secret) = match (raw.secret_file, raw.secret_env) {
            (None, None) => return Ok(None),
            (Some(_), Some(second)) => {
                return Err(self.second_password(TABLE, "secret_env", second, "secret_file"));
            }
            (Some(file), None) => ("secret_file", file.span(), self.secret_file(TABLE, "secret_file", file)?),
            (None, Some(variable)) => ("secret_env", variable.span(), self.secret_env(TABLE, "secret_env", variable)?),
        };
        rules::check_secret(&secret).map_err(|fault| self.value(TABLE, key, &at, Problem::Type(fault)))?;
        Ok(Some(secret))
    }

    fn patterns(&self, key: &str, list: &[String], at: &Range<usize>) -> Result<Vec<Pattern>, ConfigError> {
        list.iter()
            .map(|text| text.parse().map_err(|error| self.value("tables", key, at, Problem::Pattern(error))))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Host;

    const LEAST: &str = "name = \"shop\"\nsource.dsn = \"host=/s user=u\"\ntarget.dsn = \"host=::1 user=u\"\n";

    fn parse(text: &str) -> Result<Config, ConfigError> {
        let env = |name: &str| (name == "PG_PASSWORD").then(|| "hunter2".to_owned());
        Config::parse(text, "/etc/p.toml".as_ref(), &env)
    }

    fn with(text: &str) -> Result<Config, ConfigError> {
        parse(&format!("{LEAST}tables.include = [\"shop.*\"]\n{text}"))
    }

    /// The message behind the place, which is the last line of the text.
    fn complaint(text: &str) -> String {
        let message = with(text).unwrap_err().to_string();
        let line = format!("line {}", 4 + text.lines().count());
        assert!(message.starts_with("/etc/p.toml: ") && message.contains(&line), "{message}");
        assert!(!message.contains("hunter2"), "{message}");
        message.split_once(&line).unwrap().1.to_owned()
    }

    #[test]
    fn the_least_file_has_the_defaults() {
        let config = with("").unwrap();
        assert_eq!((config.name.slot(), config.name.publication()), ("pgsluice_shop".into(), "pgsluice_shop".into()));
        assert_eq!(config.source.host, Host::Unix("/s".into()));
        assert_eq!(config.target.to_string(), "target [::1]:5432, database u, user u");
        assert!(config.primary.is_none() && !config.log.row_values);
        assert_eq!(config.stream.format, ValueFormat::Auto);
        assert_eq!(config.stream.status_interval, Duration::from_secs(10));
        assert_eq!(config.stream.retry_limit, Duration::from_secs(600));
        assert_eq!((config.apply.batch_rows, config.apply.batch_bytes), (10_000, 16 << 20));
        let snapshot = config.snapshot;
        assert_eq!((snapshot.copy_data, snapshot.jobs, snapshot.chunk_bytes), (true, 4, 64 << 20));
    }

    #[test]
    fn every_key_has_its_effect() {
        let config = parse(
            r#"
            name = "a_1"
            [source]
            dsn = "host=localhost user=u dbname=d"
            password_env = "PG_PASSWORD"
            [primary]
            dsn = "postgres://u:hunter2@127.0.0.1/d"
            [target]
            dsn = "host=localhost user=u"
            [tables]
            include = ["shop.*", "\"A\".b"]
            exclude = ["shop.tmp_*"]
            [stream]
            format = "binary"
            status_interval = "250ms"
            retry_limit = "0s"
            [apply]
            batch_rows = 1
            batch_bytes = "10MB"
            [log]
            row_values = true
            "#,
        )
        .unwrap();
        let primary = config.primary.as_ref().unwrap();
        for endpoint in [&config.source, primary] {
            assert_eq!(endpoint.password.as_ref().unwrap().expose(), "hunter2");
        }
        assert!(!format!("{config:?} {primary}").contains("hunter2"));
        assert!(format!("{config:?}").contains("Secret(…)"));
        assert!(config.tables.selects("shop", "orders") && config.tables.selects("A", "b"));
        assert!(!config.tables.selects("shop", "tmp_1") && !config.tables.selects("public", "orders"));
        assert!(config.tables.selects("pgsluice", "bench_a_1") && !config.tables.selects("pgsluice", "bench_a_2"));
        assert_eq!(config.tables.includes().len(), 2);
        assert_eq!(config.stream.format, ValueFormat::Binary);
        assert_eq!(config.stream.status_interval, Duration::from_millis(250));
        assert_eq!(config.stream.retry_limit, Duration::ZERO);
        assert_eq!((config.apply.batch_rows, config.apply.batch_bytes), (1, 10_000_000));
        assert!(config.log.row_values);
    }

    #[test]
    fn sizes_are_exact_or_refused() {
        for (text, bytes) in [("\"64KiB\"", 65_536), ("65536", 65_536), ("\"70 kB\"", 70_000), ("\"256MiB\"", 1 << 28)]
        {
            assert_eq!(with(&format!("apply.batch_bytes = {text}")).unwrap().apply.batch_bytes, bytes, "{text}");
        }
        for text in ["\"\"", "\"MiB\"", "\"1.5MiB\"", "\"16M\"", "\"-1MiB\"", "\"99999999999GiB\""] {
            assert!(complaint(&format!("apply.batch_bytes = {text}")).contains("is not a size"), "{text}");
        }
    }

    #[test]
    fn values_out_of_bounds_are_refused_with_the_bounds() {
        for (text, message) in [
            ("apply.batch_rows = 0", ": 0 is outside of 1 to 1000000"),
            ("snapshot.jobs = 65", ": 65 is outside of 1 to 64"),
            ("snapshot.chunk_bytes = \"1kB\"", ": 1000 bytes is outside of 1MiB to 65536MiB"),
            ("apply.batch_rows = -3", ": -3 is outside of 1 to 1000000"),
            ("apply.batch_bytes = -1", ": -1 is outside of 64KiB to 256MiB"),
            ("apply.batch_bytes = \"1GiB\"", ": 1024MiB is outside of 64KiB to 256MiB"),
            ("stream.status_interval = \"99ms\"", ": 99ms is outside of 100ms to 1h"),
            ("stream.retry_limit = \"31d\"", ": 1month 13h 26m 24s is outside of 0s to 30days"),
        ] {
            assert_eq!(complaint(text), message);
        }
        assert!(complaint("stream.retry_limit = \"5\"").starts_with(": \"5\" is not a duration: "));
    }

    #[test]
    fn values_of_a_wrong_type_are_refused_without_being_shown() {
        for (text, message) in [
            ("apply.batch_rows = \"hunter2\"", ": expected a whole number, such as 10000"),
            ("apply.batch_bytes = [1]", ": expected a size, such as \"16MiB\", or a whole number of bytes"),
            ("primary.dsn = [\"password=hunter2\"]", ": expected a string in quotes"),
            ("primary = \"password=hunter2\"", ": expected a table, written as [primary] on a line of its own"),
            ("tables.exclude = \"a.b\"", ": expected a list of strings, such as [\"public.*\"]"),
            ("stream.status_interval = 10", ": expected a string in quotes"),
        ] {
            assert_eq!(complaint(text), message);
        }
        let key = with("[stream]\nformat = 5").unwrap_err().to_string();
        assert!(key.starts_with("/etc/p.toml: `format` in [stream], line 6: "), "{key}");
        assert!(complaint("stream.format = \"txt\"").contains("`auto`, `text`, `binary`"));
        assert!(complaint("log.row_values = 1").contains("expected a boolean"));
        assert!(complaint("primary.dsn = \"password=hunter2").contains(" is not TOML: "));
    }

    #[test]
    fn what_is_missing_is_named_with_an_example() {
        for (text, start) in [
            ("", "`name` is missing; add, for example, name = \"shop\""),
            ("name = \"a\"\ntables.include = [\"a.b\"]", "`dsn` in [source] is missing; add, for example, dsn ="),
            (LEAST, "`include` in [tables] is missing; add, for example, include = [\"public.*\"] under [tables]"),
        ] {
            let message = parse(text).unwrap_err().to_string();
            assert!(message.starts_with(&format!("/etc/p.toml: {start}")), "{message}");
        }
        assert!(with("[primary]").unwrap_err().to_string().contains("`dsn` in [primary] is missing"));
        assert!(parse(&format!("{LEAST}tables.include = []")).unwrap_err().to_string().contains("the list is empty"));
    }

    #[test]
    fn names_and_patterns_are_checked() {
        for name in ["", "Shop", "a-b", "ü", &"a".repeat(51)] {
            let error = parse(&format!("name = \"{name}\"\n{}tables.include = [\"a.b\"]", &LEAST[14..])).unwrap_err();
            assert!(error.to_string().starts_with("/etc/p.toml: `name`, line 1: a name is 1 to 50 of"), "{error}");
        }
        assert!(complaint("tables.exclude = [\"a.b\", \"c\"]").starts_with(": \"c\" names no schema"));
    }

    #[test]
    fn a_password_comes_from_one_place() {
        let folder = std::env::temp_dir().join(format!("pgsluice-config-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        for (content, expected) in [
            ("s3\n", Ok("s3")),
            (" s 3\r\n", Ok(" s 3")),
            ("a\n\n", Ok("a\n")),
            ("\n", Err("is empty")),
            ("a\0", Err("zero")),
        ] {
            std::fs::write(folder.join("password"), content).unwrap();
            let text = format!("{LEAST}tables.include = [\"a.b\"]\nsource.password_file = \"password\"");
            let config = Config::parse(&text, &folder.join("p.toml"), &|_| None);
            match (config, expected) {
                (Ok(config), Ok(password)) => assert_eq!(config.source.password.unwrap().expose(), password),
                (Err(error), Err(message)) => assert!(error.to_string().contains(message), "{error}"),
                (config, _) => panic!("{content:?}: {config:?}"),
            }
        }
        std::fs::remove_dir_all(&folder).unwrap();
        let missing = format!(": cannot read the file {}: ", folder.join("x").display());
        let file = format!("source.password_file = \"{}\"", folder.join("x").display());
        assert!(complaint(&file).starts_with(&missing));
        assert!(complaint("source.password_env = \"hunter2\"").contains("is unset"));
        for text in ["password_file = \"/x\"", "password_env = \"PG_PASSWORD\""] {
            let text = format!("[primary]\ndsn = \"host=/s user=u password=hunter2\"\n{text}");
            assert_eq!(complaint(&text), ": the secret is also given by `dsn`; keep one of the two");
        }
        assert!(complaint("source.password_file = \"/x\"\nsource.password_env = \"X\"").contains("`password_file`"));
    }
}
