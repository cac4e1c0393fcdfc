//! What partitions have of their own comes back as theirs.

use anyhow::{Result, ensure};
use pgsluice_testkit::ChainOptions;

use super::{COPY, definitions};
use crate::replication::{DATABASE, Replication};

/// Look-alikes that PostgreSQL would attach in place of those that were: in another order, with another name, in several levels, and
/// beside an index that was never made whole.
const DDL: &str = "\
    CREATE TABLE parent (id int PRIMARY KEY);
    CREATE TABLE p (id int PRIMARY KEY, v int, w int, r int) PARTITION BY RANGE (id);
    CREATE TABLE p_a PARTITION OF p FOR VALUES FROM (0) TO (100);
    CREATE TABLE p_b PARTITION OF p FOR VALUES FROM (100) TO (1000) PARTITION BY RANGE (id);
    CREATE TABLE p_b_1 PARTITION OF p_b FOR VALUES FROM (100) TO (500); CREATE TABLE p_b_2 PARTITION OF p_b DEFAULT;
    CREATE INDEX p_v ON p (v); CREATE INDEX a_leaf ON p_a (v DESC); CREATE INDEX b_leaf ON p_b_1 (v DESC NULLS LAST);
    CREATE INDEX a_same ON p_a (v);
    CREATE INDEX own_w ON p_a (w DESC); CREATE INDEX p_w ON p (w); CREATE INDEX z_w ON p_a (w);
    CREATE INDEX p_r_part ON ONLY p (r); CREATE INDEX r_of_a ON p_a (r); ALTER INDEX p_r_part ATTACH PARTITION r_of_a;
    CREATE INDEX p_r ON p (r); CREATE INDEX a_r ON p_a (r);
    CREATE UNIQUE INDEX u_index ON p_a (id, v); ALTER TABLE p ADD CONSTRAINT p_u UNIQUE (id, v);
    ALTER TABLE p_a ADD CONSTRAINT a_u UNIQUE (id, v);
    ALTER TABLE p_a ADD CONSTRAINT a_to_parent FOREIGN KEY (r) REFERENCES parent; COMMENT ON CONSTRAINT a_to_parent ON p_a IS 'own';";
const NOT_VALID: &str = "ALTER TABLE p ADD CONSTRAINT p_to_parent FOREIGN KEY (r) REFERENCES parent NOT VALID;";
const VALID: &str = "ALTER TABLE p ADD CONSTRAINT p_to_parent FOREIGN KEY (r) REFERENCES parent;";
const ROWS: &str = "\
    INSERT INTO parent SELECT generate_series(1, 999); INSERT INTO p SELECT g, g, g, g FROM generate_series(1, 999) g;";

#[tokio::test]
async fn what_partitions_have_of_their_own_comes_back() -> Result<()> {
    for foreign_key in [NOT_VALID, VALID] {
        let replication = Replication::start_differing(ChainOptions::default(), &format!("{DDL}{ROWS}"), DDL).await?;
        let c = &replication.chain.c;
        // Before 18 there is no such key of a partitioned table.
        if c.sql(DATABASE, foreign_key).await.is_err() {
            ensure!(foreign_key == NOT_VALID, "a foreign key of a partitioned table");
            c.sql(DATABASE, VALID).await?;
        }
        replication.configure(COPY)?;
        replication.setup().await?;
        let before = definitions(&replication).await?;
        for _ in 0..2 {
            let output = replication.command(&["run", "--defer-indexes", "--stop-at", "current"]).await?;
            ensure!(output.code == Some(0), "{}", output.stderr);
            ensure!(output.stderr.contains("dropped until the tables are copied"), "{}", output.stderr);
            let after = definitions(&replication).await?;
            let lacks: Vec<_> = before.iter().filter(|one| !after.contains(one)).collect();
            let strange: Vec<_> = after.iter().filter(|one| !before.contains(one)).collect();
            ensure!(before == after, "{foreign_key}: C lacks {lacks:#?} and has besides {strange:#?}");
            replication.assert_same(&["public.parent", "public.p"]).await?;
            replication.succeed(&["resync", "--yes", "public.p", "public.parent"]).await?;
        }
    }
    Ok(())
}
