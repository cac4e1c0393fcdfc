//! A target that does not take a change: the engine stops, names what and where without showing rows, and goes on once
//! it is mended, with nothing lost and nothing twice.

use anyhow::Result;

use crate::replication::{DATABASE, Replication};

/// Would be seen in whatever shows a value of a row.
const CANARY: &str = "canary-4711";

/// What stands in the way of a change, and how it is cleared.
struct Conflict {
    /// On C, before the change.
    obstacle: &'static str,
    /// On A; `CANARY` stands for a value that must not be shown.
    change: &'static str,
    /// What the engine has to name.
    named: &'static [&'static str],
    /// On C.
    mend: &'static str,
}

const CONFLICTS: &[Conflict] = &[
    Conflict {
        obstacle: "DELETE FROM t WHERE id = 1",
        change: "UPDATE t SET note = 'CANARY' WHERE id = 1",
        named: &["\"public\".\"t\"", "UPDATE hit 0 rows"],
        mend: "INSERT INTO t VALUES (1, 'note 1', 1)",
    },
    Conflict {
        obstacle: "DELETE FROM t WHERE id = 2",
        change: "DELETE FROM t WHERE id = 2",
        named: &["\"public\".\"t\"", "DELETE hit 0 rows"],
        mend: "INSERT INTO t VALUES (2, 'whatever', 2)",
    },
    Conflict {
        obstacle: "INSERT INTO t VALUES (20, 'canary-4711', 20)",
        change: "INSERT INTO t VALUES (20, 'CANARY', 20)",
        named: &["\"public\".\"t\"", "t_pkey", "23505"],
        mend: "DELETE FROM t WHERE id = 20",
    },
    Conflict {
        obstacle: "INSERT INTO t VALUES (98, 'canary-4711', 98)",
        change: "INSERT INTO t VALUES (21, 'canary-4711', 21)",
        named: &["\"public\".\"t\"", "t_note_key", "23505"],
        mend: "DELETE FROM t WHERE id = 98",
    },
    Conflict {
        obstacle: "ALTER TABLE t ADD CONSTRAINT small CHECK (n < 1000)",
        change: "UPDATE t SET note = 'CANARY', n = 2000 WHERE id = 3",
        named: &["\"public\".\"t\"", "small", "23514"],
        mend: "ALTER TABLE t DROP CONSTRAINT small",
    },
    Conflict {
        obstacle: "ALTER TABLE t ALTER note TYPE varchar(20)",
        change: "UPDATE t SET note = 'CANARY is too long for C' WHERE id = 4",
        named: &["\"public\".\"t\"", "22001"],
        mend: "ALTER TABLE t ALTER note TYPE text",
    },
    Conflict {
        obstacle: "ALTER TABLE t ALTER n TYPE smallint",
        change: "UPDATE t SET n = 4711000 WHERE id = 5",
        named: &["\"public\".\"t\"", "22003"],
        mend: "ALTER TABLE t ALTER n TYPE int",
    },
    Conflict {
        obstacle: "ALTER TABLE t ALTER n SET NOT NULL",
        change: "UPDATE t SET note = 'CANARY', n = NULL WHERE id = 6",
        named: &["\"public\".\"t\"", "column: n", "23502"],
        mend: "ALTER TABLE t ALTER n DROP NOT NULL",
    },
    Conflict {
        obstacle: "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
                   RAISE EXCEPTION 'no % here', NEW.note USING ERRCODE = '23514', HINT = NEW.note; END $$; \
                   CREATE TRIGGER refuse BEFORE UPDATE ON t FOR EACH ROW EXECUTE FUNCTION refuse(); \
                   ALTER TABLE t ENABLE ALWAYS TRIGGER refuse",
        change: "UPDATE t SET note = 'CANARY' WHERE id = 7",
        named: &["\"public\".\"t\"", "23514"],
        mend: "DROP TRIGGER refuse ON t",
    },
    Conflict {
        obstacle: "CREATE FUNCTION skip() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$; \
                   CREATE TRIGGER skip BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION skip(); \
                   ALTER TABLE t ENABLE ALWAYS TRIGGER skip",
        change: "INSERT INTO t VALUES (22, 'CANARY', 22)",
        named: &["\"public\".\"t\"", "INSERT hit 0 rows"],
        mend: "DROP TRIGGER skip ON t",
    },
];

#[tokio::test]
async fn every_conflict_stops_the_engine_and_is_mended() -> Result<()> {
    let ddl = "CREATE TABLE t (id int PRIMARY KEY, note text UNIQUE, n int); CREATE TABLE other (id int)";
    let replication = Replication::start(ddl).await?;
    replication.setup().await?;
    let tables = ["public.t", "public.other"];
    replication.replicate("INSERT INTO t SELECT n, 'note ' || n, n FROM generate_series(1, 10) n", &tables).await?;
    let [a, _, c] = replication.servers();
    for (n, Conflict { obstacle, change, named, mend }) in CONFLICTS.iter().enumerate() {
        c.sql(DATABASE, obstacle).await?;
        // Before it and behind it in the same batch.
        a.sql(DATABASE, &format!("INSERT INTO other VALUES ({n})")).await?;
        a.sql(DATABASE, &change.replace("CANARY", &format!("{CANARY} {n}"))).await?;
        a.sql(DATABASE, &format!("INSERT INTO other VALUES ({n} + 100)")).await?;
        let said = replication.halt().await?;
        assert!(named.iter().all(|name| said.contains(name)) && said.contains("at LSN"), "{change}: {said}");
        assert!(!said.contains(CANARY) && !said.contains("4711000"), "{change}: {said}");
        c.sql(DATABASE, mend).await?;
        replication.catch_up().await?;
        replication.assert_same(&tables).await?;
    }
    Ok(())
}

/// What was committed on A before the conflict is on C while somebody looks into it; the conflict is named by its LSN.
#[tokio::test]
async fn what_comes_before_a_conflict_is_applied() -> Result<()> {
    let replication = Replication::start("CREATE TABLE t (id int PRIMARY KEY, note text)").await?;
    replication.setup().await?;
    replication.chain.c.sql(DATABASE, "INSERT INTO t VALUES (3, 'of C')").await?;
    replication
        .run_each("INSERT INTO t VALUES (1, 'a'); INSERT INTO t VALUES (2, 'b'); INSERT INTO t VALUES (3, 'c'); DELETE FROM t")
        .await?;
    for _ in 0..2 {
        let said = replication.halt().await?;
        assert!(said.contains("at LSN") && said.contains("table \"public\".\"t\""), "{said}");
        let ids = "SELECT string_agg(id || note, ' ' ORDER BY id) FROM t";
        assert_eq!(replication.chain.c.scalar(DATABASE, ids).await?, "1a 2b 3of C");
    }
    replication.chain.c.sql(DATABASE, "DELETE FROM t WHERE id = 3").await?;
    replication.replicate("INSERT INTO t VALUES (4, 'd')", &["public.t"]).await
}

/// Without the right to turn them off, foreign keys and triggers of C work, and rows come in the source's order.
#[tokio::test]
async fn foreign_keys_and_triggers_work_for_a_role_that_may_not_turn_them_off() -> Result<()> {
    let ddl = "\
        CREATE TABLE parent (id int PRIMARY KEY, note text);
        CREATE TABLE child (id int PRIMARY KEY, parent int NOT NULL REFERENCES parent);";
    let on_c = "\
        CREATE TABLE seen (note text);
        CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN
            IF NEW.note = 'forbidden' THEN RAISE EXCEPTION 'not %', NEW.note; END IF;
            INSERT INTO public.seen VALUES (NEW.note); RETURN NEW; END $$;
        CREATE TRIGGER see BEFORE INSERT ON parent FOR EACH ROW EXECUTE FUNCTION see();";
    let options = pgsluice_testkit::ChainOptions::default();
    let replication = Replication::start_differing(options, ddl, &format!("{ddl}{on_c}")).await?;
    replication.configure_unprivileged_target("").await?;
    replication.setup().await?;
    let tables = ["public.parent", "public.child"];
    replication
        .run_each(
            "INSERT INTO parent SELECT n, 'n' || n FROM generate_series(1, 5) n; INSERT INTO child SELECT n, n FROM \
             generate_series(1, 5) n; BEGIN; DELETE FROM child WHERE id = 1; DELETE FROM parent WHERE id = 1; COMMIT",
        )
        .await?;
    let output = replication.command(&["run", "--stop-at", "current"]).await?;
    assert!(output.code == Some(0) && output.stderr.contains("GRANT SET ON PARAMETER"), "{}", output.stderr);
    replication.assert_same(&tables).await?;
    let c = &replication.chain.c;
    // The row that came and went in one batch comes to nothing.
    assert_eq!(c.scalar(DATABASE, "SELECT count(*) FROM seen").await?, "4");

    replication.chain.a.sql(DATABASE, "INSERT INTO parent VALUES (6, 'forbidden')").await?;
    let said = replication.halt().await?;
    assert!(said.contains("P0001") && said.contains("\"parent\"") && !said.contains("forbidden"), "{said}");
    let text = std::fs::read_to_string(replication.config())?;
    std::fs::write(replication.config(), format!("{text}[log]\nrow_values = true\n"))?;
    let said = replication.halt().await?;
    assert!(said.contains("not forbidden"), "{said}");
    c.sql(DATABASE, "ALTER TABLE parent DISABLE TRIGGER see").await?;
    replication.catch_up().await?;
    replication.assert_same(&tables).await?;

    // A child that C alone has: the constraint is checked at the end, and named.
    c.sql(DATABASE, "INSERT INTO child VALUES (99, 2)").await?;
    replication.run_each("DELETE FROM child WHERE parent = 2; DELETE FROM parent WHERE id = 2").await?;
    let said = replication.halt().await?;
    assert!(said.contains("child_parent_fkey") && said.contains("\"parent\"") && said.contains("at LSN"), "{said}");
    c.sql(DATABASE, "DELETE FROM child WHERE id = 99").await?;
    replication.catch_up().await?;
    replication.assert_same(&tables).await
}

/// Where the role may turn triggers off, only those work that are meant to (`ALTER TABLE … ENABLE REPLICA | ALWAYS TRIGGER`), and
/// these are named.
#[tokio::test]
async fn of_the_targets_triggers_those_fire_that_are_meant_for_replicas() -> Result<()> {
    let ddl = "CREATE TABLE t (id int PRIMARY KEY, note text);";
    let kinds =
        [("ordinary", "ENABLE"), ("replica", "ENABLE REPLICA"), ("always", "ENABLE ALWAYS"), ("off", "DISABLE")];
    let mut on_c = format!(
        "{ddl} CREATE TABLE seen (kind text, op text, id int);
         CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             INSERT INTO public.seen VALUES (TG_ARGV[0], TG_OP, coalesce(NEW.id, OLD.id)); RETURN coalesce(NEW, OLD); END $$;"
    );
    for (kind, enable) in kinds {
        on_c += &format!(
            "CREATE TRIGGER {kind} BEFORE INSERT OR UPDATE OR DELETE ON t FOR EACH ROW EXECUTE FUNCTION see('{kind}');
             ALTER TABLE t {enable} TRIGGER {kind};"
        );
    }
    let replication = Replication::start_differing(pgsluice_testkit::ChainOptions::default(), ddl, &on_c).await?;
    replication.setup().await?;
    replication.run_each("INSERT INTO t VALUES (1, 'a'), (2, 'b')").await?;
    let output = replication.command(&["run", "--stop-at", "current"]).await?;
    replication.run_each("UPDATE t SET note = 'c' WHERE id = 1; DELETE FROM t WHERE id = 2").await?;
    replication.catch_up().await?;
    replication.assert_same(&["public.t"]).await?;
    for (kind, _) in kinds {
        let fires = ["replica", "always"].contains(&kind);
        let said = format!("trigger {kind} of public.t fires on the target for every row that is applied");
        assert_eq!(output.stderr.contains(&said), fires, "{kind}: {}", output.stderr);
        let sql =
            format!("SELECT coalesce(string_agg(op || id, ' ' ORDER BY op, id), '') FROM seen WHERE kind = '{kind}'");
        let expected = if fires { "DELETE2 INSERT1 INSERT2 UPDATE1" } else { "" };
        assert_eq!(replication.chain.c.scalar(DATABASE, &sql).await?, expected, "{kind}");
    }
    Ok(())
}

/// What is checked late leaves a table with checks to come, and PostgreSQL empties none that has some.
#[tokio::test]
async fn a_truncate_follows_rows_whose_foreign_keys_are_checked_late() -> Result<()> {
    let ddl = "CREATE TABLE parent (id int PRIMARY KEY);
               CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent DEFERRABLE)";
    let replication = Replication::start(ddl).await?;
    replication.configure_unprivileged_target("").await?;
    replication.setup().await?;
    replication
        .run_each(
            "INSERT INTO parent VALUES (1); INSERT INTO child VALUES (1, 1); TRUNCATE parent, child;
             BEGIN; INSERT INTO parent VALUES (1); INSERT INTO child VALUES (2, 1); TRUNCATE child;
             SET CONSTRAINTS ALL DEFERRED; INSERT INTO child VALUES (3, 2); INSERT INTO parent VALUES (2); COMMIT",
        )
        .await?;
    replication.catch_up().await?;
    replication.assert_same(&["public.parent", "public.child"]).await
}

/// Under REPLICA IDENTITY FULL only C may know a key. Then rows of one key need not be one row on A.
#[tokio::test]
async fn a_key_that_only_the_target_has_does_not_make_rows_of_the_source_one() -> Result<()> {
    let ddl = "CREATE TABLE t (id int NOT NULL, note text); ALTER TABLE t REPLICA IDENTITY FULL";
    let on_c = format!("{ddl}; ALTER TABLE t ADD PRIMARY KEY (id)");
    let replication = Replication::start_differing(pgsluice_testkit::ChainOptions::default(), ddl, &on_c).await?;
    replication.setup().await?;
    replication
        .replicate("INSERT INTO t SELECT n, 'first' FROM generate_series(1, 30) n WHERE n <> 5", &["public.t"])
        .await?;
    // Enough beside them to be worth a net.
    let changes = [
        "INSERT INTO t VALUES (1, 'second'); DELETE FROM t WHERE id = 1 AND note = 'first'; UPDATE t SET note = 'x' WHERE id > 9",
        "INSERT INTO t VALUES (2, 'second'); UPDATE t SET note = 'third' WHERE id = 2 AND note = 'first';
         DELETE FROM t WHERE id = 2 AND note = 'second'; UPDATE t SET note = 'y' WHERE id > 9",
        "INSERT INTO t VALUES (5, 'a'), (5, 'b'); DELETE FROM t WHERE id = 5 AND note = 'b'; UPDATE t SET note = 'z' WHERE id > 9",
    ];
    let c = &replication.chain.c;
    for change in changes {
        replication.chain.a.sql(DATABASE, &format!("BEGIN; {change}; COMMIT")).await?;
        let said = replication.halt().await?;
        assert!(said.contains("23505") && said.contains("t_pkey"), "{change}: {said}");
        c.sql(DATABASE, "ALTER TABLE t DROP CONSTRAINT t_pkey").await?;
        replication.catch_up().await?;
        replication.assert_same(&["public.t"]).await?;
        c.sql(DATABASE, "ALTER TABLE t ADD PRIMARY KEY (id)").await?;
    }
    Ok(())
}

/// Under the replica role PostgreSQL does not check them, so a person has to know.
#[tokio::test]
async fn deferrable_unique_constraints_of_c_are_named_when_a_session_starts() -> Result<()> {
    let replication = Replication::start("CREATE TABLE t (id int PRIMARY KEY, place int UNIQUE DEFERRABLE)").await?;
    replication.setup().await?;
    replication.chain.a.sql(DATABASE, "INSERT INTO t VALUES (1, 1)").await?;
    let output = replication.command(&["run", "--stop-at", "current"]).await?;
    let named = "constraint t_place_key of public.t on the target is DEFERRABLE";
    assert!(output.code == Some(0) && output.stderr.contains(named), "{}", output.stderr);
    replication.assert_same(&["public.t"]).await
}
