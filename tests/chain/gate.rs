//! Holds an engine on C in the midst of what it does.

use anyhow::Result;
use tokio_postgres::Client;

use crate::replication::{DATABASE, Replication};

/// The transactions of the engine wait in these triggers, for advisory locks that the test holds.
const TRIGGERS: &str = "\
    CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF TG_TABLE_NAME = 'deferred' THEN PERFORM pg_advisory_xact_lock_shared(2); RETURN OLD; END IF;
        IF (SELECT count(*) >= {chunks} FROM pgsluice.chunk_state) THEN PERFORM pg_advisory_xact_lock_shared(1); END IF;
        RETURN NEW; END $$;
    CREATE TRIGGER gate BEFORE INSERT ON pgsluice.chunk_state FOR EACH ROW EXECUTE FUNCTION wait();
    ALTER TABLE pgsluice.chunk_state ENABLE ALWAYS TRIGGER gate;
    CREATE TRIGGER gate BEFORE DELETE ON pgsluice.deferred FOR EACH ROW WHEN (OLD.object_name = '{object}')
        EXECUTE FUNCTION wait();";

/// Open again when dropped.
pub struct Gate(Client);

impl Gate {
    /// From now on a copy stops after so many chunks, and before the record of this index is removed.
    pub async fn close(replication: &Replication, chunks: u32, object: &str) -> Result<Gate> {
        let client = replication.chain.c.connect(DATABASE).await?;
        let triggers = TRIGGERS.replace("{chunks}", &chunks.to_string()).replace("{object}", object);
        client.batch_execute(&format!("{triggers} SELECT pg_advisory_lock(1), pg_advisory_lock(2)")).await?;
        Ok(Gate(client))
    }

    pub async fn open_for_chunks(&self) -> Result<()> {
        Ok(self.0.batch_execute("SELECT pg_advisory_unlock(1)").await?)
    }

    pub async fn open_for_indexes(&self) -> Result<()> {
        Ok(self.0.batch_execute("SELECT pg_advisory_unlock(2)").await?)
    }
}
