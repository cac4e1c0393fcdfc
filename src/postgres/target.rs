//! Sessions that write to the target.

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::config::Role;
use crate::error::{Error, Stage};

/// A backend whose engine is gone has to notice, at rest as well as amid a build or while it waits for a lock. The setting came
/// with 14.
pub const NOTICE_LOST_CLIENT: &str =
    "SELECT set_config(name, '1s', false) FROM pg_settings WHERE name = 'client_connection_check_interval'";

/// What is confirmed to the source must be on the target's disk, whatever the role's default is. Rows are
/// found by index, one after the other, with a plan that is made once: the planner knows nothing of the arrays' lengths.
const TARGET_SETTINGS: &str = "\
    SELECT set_config('synchronous_commit', 'local', false) WHERE current_setting('synchronous_commit') = 'off'; \
    SET enable_hashjoin = off; SET enable_mergejoin = off; SET enable_seqscan = off; SET jit = off; \
    SET plan_cache_mode = 'force_generic_plan'";

/// Settings of a session that writes, beyond those of every session. True where the target's foreign keys and triggers
/// fire, because the role may not say otherwise.
pub async fn prepare_target(target: &Client, stage: Stage) -> Result<bool, Error> {
    let failed = |error| Error::from_postgres(stage, Role::Target, error);
    target.batch_execute(&format!("{NOTICE_LOST_CLIENT}; {TARGET_SETTINGS}")).await.map_err(failed)?;
    match target.batch_execute("SET session_replication_role = 'replica'").await {
        Ok(()) => Ok(false),
        Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => Ok(true),
        Err(error) => Err(failed(error)),
    }
}

/// From here on nothing is written outside of a block that says READ WRITE. A statement that is sent behind a BEGIN which fails,
/// because somebody cancels it or memory runs out, would else commit by itself: progress without its rows, or rows without progress.
pub async fn write_in_blocks_only(target: &Client, stage: Stage) -> Result<(), Error> {
    let failed = |error| Error::from_postgres(stage, Role::Target, error);
    target.batch_execute("SET default_transaction_read_only = on").await.map_err(failed)
}
