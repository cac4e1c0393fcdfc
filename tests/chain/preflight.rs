//! Facts about the servers and C's tables that are refused before the first row.

use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use pgsluice_testkit::{ChainOptions, Engine, Output, Server, run, wait_for};
use tempfile::TempDir;

use crate::load::{settle, stop, wait_log};
use crate::replication::{DATABASE, DEADLINE, ENGINE, Replication, SETUP};

fn ensure_refused(output: &Output, said: &[&str]) -> Result<()> {
    ensure!(output.code == Some(3), "ended with {:?}: {}", output.code, output.stderr);
    for text in said {
        ensure!(output.stderr.contains(text), "does not say \"{text}\": {}", output.stderr);
    }
    Ok(())
}

const RUN: [&str; 3] = ["run", "--stop-at", "current"];
const T: &str = "CREATE TABLE t (id int PRIMARY KEY, v text)";

/// What row security hides from the role would look like rows that are missing, and a policy would pass their changes over.
#[tokio::test]
async fn row_security_that_hides_rows_of_the_target_is_refused() -> Result<()> {
    let skip = "[[conflict]]\ntable = \"public.*\"\non_missing_row = \"skip\"\n";
    let replication = Replication::start(&format!("{T}; CREATE TABLE own (id int PRIMARY KEY)")).await?;
    let [a, _, c] = replication.servers();
    replication.configure_unprivileged_target(skip).await?;
    let secure = "CREATE POLICY few ON t USING (id < 5); ALTER TABLE t ENABLE ROW LEVEL SECURITY;
        ALTER TABLE own OWNER TO writer; ALTER TABLE own ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY";
    c.sql(DATABASE, secure).await?;
    let mend = ["ALTER ROLE \"writer\" BYPASSRLS", "ALTER TABLE \"public\".\"own\" NO FORCE ROW LEVEL SECURITY"];
    ensure_refused(&replication.command(&["setup"]).await?, &mend)?;
    assert_eq!(a.scalar(DATABASE, "SELECT count(*) FROM pg_publication").await?, "0");
    // It comes to be on after setup.
    c.sql(DATABASE, "ALTER TABLE t DISABLE ROW LEVEL SECURITY; ALTER TABLE own DISABLE ROW LEVEL SECURITY").await?;
    replication.setup().await?;
    let tables = ["public.t", "public.own"];
    replication.replicate("INSERT INTO t SELECT generate_series(1, 9); INSERT INTO own VALUES (1)", &tables).await?;
    c.sql(DATABASE, "ALTER TABLE t ENABLE ROW LEVEL SECURITY; ALTER TABLE own ENABLE ROW LEVEL SECURITY").await?;
    a.sql(DATABASE, "DELETE FROM t WHERE id > 6; DELETE FROM own").await?;
    ensure_refused(&replication.command(&RUN).await?, &mend)?;
    for statement in mend {
        c.sql(DATABASE, statement).await?;
    }
    replication.catch_up().await?;
    replication.assert_same(&tables).await?;

    // Or under an engine at work: the statement fails, rather than find nothing.
    let engine = replication.spawn()?;
    wait_log(&engine, "streaming starts", 1).await?;
    c.sql(DATABASE, "ALTER ROLE writer NOBYPASSRLS").await?;
    a.sql(DATABASE, "UPDATE t SET v = 'x' WHERE id = 6").await?;
    wait_log(&engine, "ALTER ROLE \"writer\" BYPASSRLS", 1).await?;
    ensure!(engine.stderr().contains("42501"), "{}", engine.stderr());
    c.sql(DATABASE, "ALTER ROLE writer BYPASSRLS").await?;
    settle(&replication, &engine, &tables).await?;
    stop(&engine).await
}

/// A crash of C would empty them while progress stays, or they commit apart from it.
#[tokio::test]
async fn tables_of_the_target_that_do_not_keep_what_is_committed_are_refused() -> Result<()> {
    let on_a = "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE p (id int, k int) PARTITION BY LIST (k); ALTER TABLE p REPLICA IDENTITY FULL;
        CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1); ALTER TABLE p1 REPLICA IDENTITY FULL";
    let on_c = "CREATE UNLOGGED TABLE t (id int PRIMARY KEY); CREATE TABLE p (id int, k int) PARTITION BY LIST (k);
        CREATE UNLOGGED TABLE p1 PARTITION OF p FOR VALUES IN (1); CREATE FOREIGN DATA WRAPPER far; CREATE SERVER far FOREIGN DATA WRAPPER far;
        CREATE FOREIGN TABLE p2 PARTITION OF p FOR VALUES IN (2) SERVER far";
    let replication = Replication::start_differing(ChainOptions::default(), on_a, on_c).await?;
    let c = &replication.chain.c;
    let said =
        ["ALTER TABLE public.t SET LOGGED", "ALTER TABLE public.p1 SET LOGGED", "public.p2, of", "is a foreign table"];
    ensure_refused(&replication.command(&["setup"]).await?, &said)?;
    c.sql(DATABASE, "ALTER TABLE public.t SET LOGGED; ALTER TABLE public.p1 SET LOGGED; DROP FOREIGN TABLE p2").await?;
    replication.setup().await?;
    let tables = ["public.t", "public.p"];
    replication.replicate("INSERT INTO t VALUES (1); INSERT INTO p VALUES (1, 1)", &tables).await?;
    c.sql(DATABASE, "ALTER TABLE t SET UNLOGGED").await?;
    ensure_refused(&replication.command(&RUN).await?, &said[..1])?;
    c.sql(DATABASE, "ALTER TABLE t SET LOGGED").await?;
    replication.replicate("DELETE FROM t; INSERT INTO t VALUES (2)", &tables).await
}

/// A key by which ON CONFLICT finds nothing is none to find a deleted row by.
#[tokio::test]
async fn soft_delete_wants_a_key_that_on_conflict_takes() -> Result<()> {
    let key = "PRIMARY KEY (id, during WITHOUT OVERLAPS)";
    let create = "CREATE UNIQUE INDEX ON \"public\".\"t\" (\"id\", \"during\")";
    let drop = "ALTER TABLE \"public\".\"t\" DROP CONSTRAINT \"t_pkey\"";
    // ON CONFLICT finds the deferrable one beside any other, and fails.
    let deferrable = "PRIMARY KEY (id, during) DEFERRABLE, UNIQUE (during, id)";
    let exclusion = "EXCLUDE USING gist (id WITH =, during WITH &&)";
    for (on_c, drop) in [(key, None), (deferrable, Some(drop)), (exclusion, None)] {
        let mend = format!("{}{create}", drop.map(|drop| format!("{drop}; ")).unwrap_or_default());
        let mend = mend.as_str();
        let replication = Replication::start("").await?;
        let [a, _, c] = replication.servers();
        let is_new = a.scalar(DATABASE, "SELECT current_setting('server_version_num')::int >= 180000").await? == "t";
        if !is_new && on_c == key {
            println!("skipped: WITHOUT OVERLAPS came with PostgreSQL 18");
            continue;
        }
        let of_a = if on_c == key { key } else { "PRIMARY KEY (id, during)" };
        a.sql(DATABASE, &format!("CREATE TABLE t (id int4range, during daterange, v text, {of_a})")).await?;
        c.sql(
            DATABASE,
            &format!("CREATE TABLE t (id int4range NOT NULL, during daterange NOT NULL, v text, op text, {on_c})"),
        )
        .await?;
        replication.chain.wait_b_caught_up().await?;
        replication.configure("[[conflict]]\ntable = \"public.t\"\non_duplicate = \"overwrite\"\n")?;
        if drop.is_none() {
            ensure_refused(
                &replication.command(&["setup"]).await?,
                &["on_duplicate = \"overwrite\"", "no unique index"],
            )
            .context(on_c)?;
        }
        replication.configure("[[rule]]\ntable = 'public.t'\nsoft_delete = true\nset = { op = '$op' }\n")?;
        ensure_refused(&replication.command(&["setup"]).await?, &["soft_delete", mend]).context(on_c)?;
        assert_eq!(a.scalar(DATABASE, "SELECT count(*) FROM pg_publication").await?, "0");
        c.sql(DATABASE, mend).await?;
        replication.setup().await?;
        a.sql(
            DATABASE,
            "INSERT INTO t VALUES ('[1,2)', '[2026-01-01,2026-02-01)', 'a'), ('[2,3)', '[2026-01-01,2026-02-01)', 'b')",
        )
        .await?;
        a.sql(DATABASE, "DELETE FROM t WHERE v = 'a'; INSERT INTO t VALUES ('[1,2)', '[2026-01-01,2026-02-01)', 'c')")
            .await?;
        a.sql(DATABASE, "DELETE FROM t WHERE v = 'b'").await?;
        replication.catch_up().await?;
        let rows = "SELECT string_agg(v || op, ' ' ORDER BY v) FROM t";
        assert_eq!(c.scalar(DATABASE, rows).await?, "bD cI", "{on_c}");
        // The key goes, and the next session says so.
        c.sql(DATABASE, "DROP INDEX t_id_during_idx").await?;
        c.sql(DATABASE, "ALTER TABLE t DROP CONSTRAINT IF EXISTS t_during_id_key").await?;
        ensure_refused(&replication.command(&RUN).await?, &["soft_delete", create])?;
    }
    Ok(())
}

/// Another replication, the other way round.
struct Back {
    config: PathBuf,
    _folder: TempDir,
}

impl Back {
    fn make(replication: &Replication, tables: &str) -> Result<Back> {
        let folder = TempDir::new()?;
        let config = folder.path().join("back.toml");
        let [a, _, c] = replication.servers().map(|server| server.dsn(DATABASE));
        let text = format!(
            "name = \"back\"\n[source]\ndsn = \"{c}\"\n[target]\ndsn = \"{a}\"\n[tables]\ninclude = [\"{tables}\"]\n\
             [snapshot]\ncopy_data = false\n[apply]\non_duplicate = \"overwrite\"\n"
        );
        std::fs::write(&config, text)?;
        Ok(Back { config, _folder: folder })
    }

    async fn command(&self, arguments: &[&str]) -> Result<Output> {
        let config = self.config.to_str().context("a path in UTF-8")?;
        run(Path::new(ENGINE), &[arguments, &["-c", config]].concat()).await
    }
}

/// From A to C and from C to A at once, each change would go round.
#[tokio::test]
async fn replications_that_write_each_others_tables_are_refused() -> Result<()> {
    let options = ChainOptions::default().c_conf("wal_level", "logical");
    let replication =
        Replication::start_with(options, &format!("{T}; CREATE TABLE other (id int PRIMARY KEY)")).await?;
    let [a, _, c] = replication.servers();
    let forward = "[apply]\non_duplicate = \"overwrite\"\n[tables]\ninclude = [\"public.t\"]\n";
    replication.configure(forward)?;
    replication.setup().await?;
    let circle = ["\"public\".\"t\" on the source: replication \"test\"", "pgsluice teardown"];
    ensure_refused(&Back::make(&replication, "public.*")?.command(&["setup"]).await?, &circle)?;
    assert_eq!(c.scalar(DATABASE, "SELECT count(*) FROM pg_publication").await?, "0");
    // Of other tables it is no circle.
    let back = Back::make(&replication, "public.other")?;
    let output = back.command(&["setup"]).await?;
    ensure!(output.code == Some(0), "{}", output.stderr);
    replication.replicate("INSERT INTO t VALUES (1, 'a')", &["public.t"]).await?;
    c.sql(DATABASE, "INSERT INTO other VALUES (7)").await?;
    let output = back.command(&RUN).await?;
    ensure!(output.code == Some(0), "{}", output.stderr);
    assert_eq!(a.scalar(DATABASE, "SELECT string_agg(id::text, ' ') FROM other").await?, "7");
    // The other one comes to write there, as one could that a former version had set up.
    let joins = "INSERT INTO pgsluice.table_state (name, schema_name, table_name, state, place) \
                 VALUES ('back', 'public', 't', 'ready', '\"public\".\"t\"')";
    a.sql(DATABASE, joins).await?;
    a.sql(DATABASE, "INSERT INTO t VALUES (2, 'b')").await?;
    replication.chain.wait_b_caught_up().await?;
    ensure_refused(&replication.command(&RUN).await?, &["\"public\".\"t\" on the source: replication \"back\""])?;
    let output = back.command(&["teardown", "--yes"]).await?;
    ensure!(output.code == Some(0), "{}", output.stderr);
    replication.replicate("INSERT INTO t VALUES (3, 'c')", &["public.t"]).await
}

/// pgbouncer before a server, of this pool mode.
struct Pooler {
    process: Engine,
    port: u16,
    _folder: TempDir,
}

impl Pooler {
    /// `None` where this machine has no pgbouncer.
    async fn start(server: &Server, mode: &str) -> Result<Option<Pooler>> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::env::split_paths(&path).chain(["/usr/sbin".into()]);
        let Some(program) = folders.map(|folder| folder.join("pgbouncer")).find(|file| file.is_file()) else {
            println!("skipped: there is no pgbouncer on this machine");
            return Ok(None);
        };
        let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let folder = TempDir::new()?;
        // It does not run as root.
        let user = if std::fs::metadata("/proc/self")?.uid() == 0 { "user = nobody\n" } else { "" };
        let text = format!(
            "[databases]\n{DATABASE} = host=127.0.0.1 port={} dbname={DATABASE} user=postgres\n[pgbouncer]\n{user}\
             listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\npool_mode = {mode}\n",
            server.port()
        );
        let config = folder.path().join("pgbouncer.ini");
        std::fs::write(&config, text)?;
        let mut command = Command::new(program);
        command.arg("-q").arg(&config);
        let process = Engine::spawn_command(command)?;
        wait_for("pgbouncer to listen", DEADLINE, || async {
            ensure!(process.is_running(), "pgbouncer has ended: {}", process.stderr());
            Ok(tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok().map(drop))
        })
        .await?;
        Ok(Some(Pooler { process, port, _folder: folder }))
    }

    fn dsn(&self) -> String {
        format!("host=127.0.0.1 port={} user=postgres dbname={DATABASE}", self.port)
    }

    async fn stop(self) -> Result<()> {
        self.process.sigkill().await.map(drop)
    }
}

/// Settings, prepared statements and locks belong to a session, which such a pooler lends to others.
#[tokio::test]
async fn a_pooler_that_divides_sessions_is_found_at_setup_and_at_run() -> Result<()> {
    let replication = Replication::start(T).await?;
    let [a, b, c] = replication.servers();
    for mode in ["transaction", "statement"] {
        let Some(pooler) = Pooler::start(c, mode).await? else { return Ok(()) };
        replication.configure_servers(&b.dsn(DATABASE), Some(&a.dsn(DATABASE)), &pooler.dsn(), "")?;
        ensure_refused(&replication.command(&["setup"]).await?, &["[target]", "pooler", "session mode"])
            .context(mode)?;
        assert_eq!(a.scalar(DATABASE, "SELECT count(*) FROM pg_publication").await?, "0");
        // Of a source it is the same, and so of a run behind a setup without it.
        pooler.stop().await?;
    }
    replication.configure("")?;
    replication.setup().await?;
    let Some(pooler) = Pooler::start(c, "transaction").await? else { return Ok(()) };
    replication.configure_servers(&b.dsn(DATABASE), Some(&a.dsn(DATABASE)), &pooler.dsn(), "")?;
    ensure_refused(&replication.command(&RUN).await?, &["[target]", "pooler"])?;
    pooler.stop().await?;
    let Some(pooler) = Pooler::start(b, "transaction").await? else { return Ok(()) };
    replication.configure_servers(&pooler.dsn(), Some(&a.dsn(DATABASE)), &c.dsn(DATABASE), "")?;
    ensure_refused(&replication.command(&["setup"]).await?, &["[source]", "pooler"])?;
    pooler.stop().await
}

/// A pool in session mode is as good as the server.
#[tokio::test]
async fn a_pooler_in_session_mode_passes() -> Result<()> {
    let replication = Replication::start(T).await?;
    let [a, b, c] = replication.servers();
    let Some(pooler) = Pooler::start(c, "session").await? else { return Ok(()) };
    let more = "[apply]\nworkers = 3\n[snapshot]\ncopy_data = true\n";
    replication.configure_servers(&b.dsn(DATABASE), Some(&a.dsn(DATABASE)), &pooler.dsn(), more)?;
    a.sql(DATABASE, "INSERT INTO t SELECT generate_series(1, 1000)").await?;
    replication.setup().await?;
    replication.replicate("UPDATE t SET v = 'x'; DELETE FROM t WHERE id % 7 = 0", &["public.t"]).await?;
    replication.replicate("INSERT INTO t VALUES (0)", &["public.t"]).await?;
    pooler.stop().await
}

/// The rights that the documentation asks for do not restart a sequence, and do not have to.
#[tokio::test]
async fn truncate_restart_identity_takes_no_rights_beyond_those_of_the_table() -> Result<()> {
    let ddl = "CREATE TABLE made (id int GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, v text);
        CREATE TABLE serials (id serial PRIMARY KEY); CREATE TABLE plain (id int PRIMARY KEY);
        CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE p1 (id int PRIMARY KEY, CHECK (id < 100));
        CREATE SEQUENCE of_p1 OWNED BY p1.id; ALTER TABLE p ATTACH PARTITION p1 FOR VALUES FROM (0) TO (100)";
    let replication = Replication::start(ddl).await?;
    let c = &replication.chain.c;
    replication.configure_unprivileged_target("").await?;
    replication.setup().await?;
    let tables = ["public.made", "public.serials", "public.plain", "public.p"];
    let fill = "INSERT INTO made (v) VALUES ('a'), ('b'); INSERT INTO serials DEFAULT VALUES; INSERT INTO plain VALUES (1); \
                INSERT INTO p VALUES (1)";
    replication.replicate(fill, &tables).await?;
    c.sql(DATABASE, "SELECT setval('made_id_seq', 70), setval('serials_id_seq', 80), setval('of_p1', 90)").await?;
    let a = &replication.chain.a;
    a.sql(DATABASE, &format!("TRUNCATE made, serials, plain RESTART IDENTITY; TRUNCATE p RESTART IDENTITY; {fill}"))
        .await?;
    let output = replication.command(&RUN).await?;
    ensure!(output.code == Some(0), "{}", output.stderr);
    for said in ["CONTINUE IDENTITY", "\"public\".\"made\", \"public\".\"serials\", which", "\"public\".\"p\", which"] {
        ensure!(output.stderr.contains(said), "{said}: {}", output.stderr);
    }
    replication.assert_same(&tables).await?;
    let values = "SELECT (SELECT last_value FROM made_id_seq) || ' ' || (SELECT last_value FROM serials_id_seq) || ' ' || (SELECT last_value FROM of_p1)";
    assert_eq!(c.scalar(DATABASE, values).await?, "70 80 90");
    // Whoever owns them restarts them.
    c.sql(DATABASE, "ALTER TABLE made OWNER TO writer; ALTER TABLE serials OWNER TO writer").await?;
    replication.replicate("TRUNCATE made, serials, plain RESTART IDENTITY", &tables).await?;
    assert_eq!(c.scalar(DATABASE, values).await?, "1 1 90");
    Ok(())
}

/// The first words of every session that the engine has opened on a server, by process.
fn sessions(log: &str) -> Vec<(&str, Vec<&str>)> {
    let mut sessions: Vec<(&str, Vec<&str>)> = Vec::new();
    for line in log.lines() {
        let Some((pid, text)) = line.strip_prefix("pgsluice <").and_then(|rest| rest.split_once('>')) else { continue };
        let Some((_, statement)) = text.split_once("statement: ") else { continue };
        match sessions.iter_mut().find(|(known, _)| *known == pid) {
            Some((_, statements)) => statements.push(statement),
            None => sessions.push((pid, vec![statement])),
        }
    }
    sessions
}

/// Rows that row security hides are an error everywhere, and no row of B comes from an index alone.
#[tokio::test]
async fn every_session_says_what_it_relies_on() -> Result<()> {
    let options = ["log_statement", "log_line_prefix"].into_iter().zip(["all", "%a <%p> "]);
    let options = options.fold(ChainOptions::default(), |options, (name, value)| {
        options.a_conf(name, value).b_conf(name, value).c_conf(name, value)
    });
    let replication = Replication::start_with(options, T).await?;
    replication.configure("[snapshot]\ncopy_data = true\n")?;
    replication.chain.a.sql(DATABASE, "INSERT INTO t SELECT generate_series(1, 1000)").await?;
    replication.succeed(&SETUP).await?;
    replication.replicate("UPDATE t SET v = 'x'", &["public.t"]).await?;
    replication.succeed(&["status"]).await?;
    for (server, least) in replication.servers().into_iter().zip([2, 5, 5]) {
        let log = server.log();
        let sessions = sessions(&log);
        ensure!(sessions.len() >= least, "{} has seen {} sessions", server.name(), sessions.len());
        for (pid, statements) in sessions {
            // One that a command gave up while it was being opened has done nothing yet.
            if statements.iter().all(|statement| statement.starts_with("SET ") || statement.contains("set_config(")) {
                continue;
            }
            let says = |setting: &str| statements.iter().any(|statement| statement.contains(setting));
            ensure!(says("SET row_security = off"), "{} {pid}: {statements:?}", server.name());
            let of_source = server.port() != replication.chain.b.port() || says("SET enable_indexonlyscan = off");
            ensure!(of_source, "{} {pid}: {statements:?}", server.name());
        }
    }
    Ok(())
}
