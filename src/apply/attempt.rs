//! Statements that may be refused, in a transaction of the target that goes on all the same.

use tokio_postgres::Client;

use super::{behind, failed};
use crate::error::Error;

/// What trying something came to: the outer error ends the stream, the inner one is the target's refusal, and what was
/// tried is undone.
pub(super) type Tried<T> = Result<Result<T, Error>, Error>;

/// Does something that is undone if the target refuses what is to be written.
pub(super) async fn attempt(client: &Client, work: impl Future<Output = Result<(), Error>>) -> Tried<()> {
    let execute = async |sql| client.batch_execute(sql).await.map_err(failed);
    match behind(execute("SAVEPOINT attempt"), work).await {
        Ok(()) => {
            execute("RELEASE SAVEPOINT attempt").await?;
            Ok(Ok(()))
        }
        Err(error) if error.is_of_the_data() => {
            execute("ROLLBACK TO SAVEPOINT attempt; RELEASE SAVEPOINT attempt").await?;
            Ok(Err(error))
        }
        Err(error) => Err(error),
    }
}
