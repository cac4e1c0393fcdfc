//! What setup does, as SQL for somebody else to run.

use super::{STAGE, on_replication_connection};
use crate::checkpoint::{Progress, SCHEMA_SQL, TABLES};
use crate::config::{Config, Pattern, Role, Shard, TrailConfig};
use crate::error::Error;
use crate::postgres::{self, quote_ident, quote_literal};
use crate::shards::record_sql;
use crate::source::publication::{self, Heartbeat};
use crate::source::server::Server;

/// The SQL that a DBA would run instead of [`set_up`](super::set_up), for the tables that the source has now; that of each
/// shard by itself.
///
/// # Errors
/// As [`set_up`](super::set_up), a refusal of tables that become unwritable by it and that are not allowed to.
pub async fn sql(config: &Config, allow_unwritable: &[Pattern]) -> Result<String, Error> {
    let mut statements = String::new();
    for config in &config.split() {
        if let Some(Shard { number, count, .. }) = config.shard() {
            statements.push_str(&format!("-- Shard {number} of {count}\n\n"));
        }
        statements.push_str(&sql_of_one(config, allow_unwritable).await?);
        statements.push('\n');
    }
    Ok(statements)
}

async fn sql_of_one(config: &Config, allow_unwritable: &[Pattern]) -> Result<String, Error> {
    if let Some(trail) = config.trail.as_ref().filter(|_| config.only_applies()) {
        return sql_of_reader(config, trail);
    }
    let source = postgres::connect(&config.source, STAGE).await?;
    let facts = Server::inspect(&source, Role::Source, STAGE).await?;
    let mut tables = publication::select_tables(&source, Role::Source, &config.tables, STAGE).await?;
    tables.retain(|published| config.tables.selects(&published.table.schema, &published.table.name));
    let unwritable = super::writable::check((&source, Role::Source), config, &tables, allow_unwritable).await?;
    // A name may hold the end of a line.
    let one_line = |text: String| text.replace(char::is_control, " ");
    let warnings: String = unwritable.iter().map(|one| format!("-- {}\n", one_line(one.to_string()))).collect();
    let identity = on_replication_connection(config, |connection| connection.identify_system()).await?;
    let name = config.slot();
    let heartbeat = config.stream.heartbeat.map_or(Heartbeat::None, |_| Heartbeat::By(&config.publisher().user));
    let create = publication::create_sql(&config.publication(), &tables, heartbeat);
    let slot = quote_literal(&name);
    let (standby_note, snapshot) = if facts.in_recovery {
        (
            "\n-- It waits for the primary; run there, in another session, until it returns:\n\
             --   SELECT pg_log_standby_snapshot();",
            " It must have replayed the publication:\n--   SELECT * FROM pg_publication_tables;",
        )
    } else {
        ("", "")
    };
    let identifier = quote_literal(&facts.system_identifier);
    let record =
        config.shard().map_or(String::new(), |shard| format!("{};\n", record_sql(shard, config.name.as_str())));
    Ok(format!(
        "-- 1. On the primary, database {database}, as the owner of the tables:\n{warnings}{create};\n\n\
         -- 2. On the source, as a role with REPLICATION.{snapshot}{standby_note}\n\
         SELECT lsn FROM pg_create_logical_replication_slot({slot}, 'pgoutput');\n\n\
         -- 3. On the target:\n{SCHEMA_SQL}\n{tables}\n\
         -- With the lsn of step 2 in place of <LSN>:\n\
         INSERT INTO pgsluice.progress (name, system_identifier, timeline, slot, consistent_point, end_lsn)\n\
         VALUES ({progress_name}, {identifier}, {timeline}, {slot}, '<LSN>', '<LSN>');\n\
         {record}{begin_trail}GRANT USAGE ON SCHEMA pgsluice TO {user};\n\
         GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA pgsluice TO {user};\n",
        tables = TABLES.map(|(_, create)| create).concat(),
        database = quote_ident(&facts.database),
        progress_name = quote_literal(config.name.as_str()),
        timeline = identity.timeline,
        begin_trail = if config.trail.is_some() { "-- Afterwards `pgsluice setup` begins the trail.\n" } else { "" },
        user = quote_ident(&config.target.user),
    ))
}

/// For another target of a trail, as the trail is now.
fn sql_of_reader(config: &Config, trail: &TrailConfig) -> Result<String, Error> {
    let progress = super::trail::first_progress(config, trail, None)?;
    let Progress { system_identifier, timeline, slot, end_lsn, .. } = progress;
    let [name, identifier, slot] = [config.name.as_str(), &system_identifier, &slot].map(quote_literal);
    Ok(format!(
        "-- On the target; the trail keeps what follows from now on:\n{SCHEMA_SQL}\n{tables}\n\
         INSERT INTO pgsluice.progress (name, system_identifier, timeline, slot, consistent_point, end_lsn)\n\
         VALUES ({name}, {identifier}, {timeline}, {slot}, '{end_lsn}', '{end_lsn}');\n\
         GRANT USAGE ON SCHEMA pgsluice TO {user};\n\
         GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA pgsluice TO {user};\n",
        tables = TABLES.map(|(_, create)| create).concat(),
        user = quote_ident(&config.target.user),
    ))
}
