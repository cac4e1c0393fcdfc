//! Rows of every shape, changed in every way.

use anyhow::Result;

use crate::replication::Replication;

#[tokio::test]
async fn inserts_updates_and_deletes_by_primary_key() -> Result<()> {
    let replication = Replication::start("CREATE TABLE t (id int PRIMARY KEY, note text)").await?;
    replication.setup().await?;
    replication
        .replicate(
            "INSERT INTO t SELECT n, 'note ' || n FROM generate_series(1, 100) n; \
             UPDATE t SET note = note || '!' WHERE id % 3 = 0; DELETE FROM t WHERE id % 10 = 0; \
             UPDATE t SET note = NULL WHERE id = 7; UPDATE t SET id = id + 1000 WHERE id < 5",
            &["public.t"],
        )
        .await
}
