//! Jobs in the caller's own transaction: the outbox of what a handler sends.

use serde::Serialize;

use super::error::QueueError;
use super::handle::Queue;
use super::job::Job;
use super::store::EnqueueOutcome;
use crate::backend::sql::{Lease, SqlStore};
use crate::core::{StoreError, StoreErrorKind};

pub use super::store::QueueEngine;

/// Names the queue's tables to `db`; call it before [`SqlStore::migrate`] at the start of the program, so that they are
/// there before a transaction begins. (Any earlier use of a queue on `db` does as well.)
pub fn register(db: &SqlStore) {
    super::store::register(db);
}

/// Adds a job in the transaction that `lease` lends: rolled back, there is no job; committed, it is delivered, within a
/// second where a worker waits.
///
/// ```
/// # #[cfg(feature = "sqlite")]
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tower_keep::backend::sql::{RequestTransaction, SqlStore, Sqlite};
/// use tower_keep::data::queue::{self, Job, Queue};
///
/// let db = SqlStore::connect("sqlite::memory:").await?;
/// queue::sql::register(&db);
/// db.migrate().await?;
/// let notices: Queue<String> = Queue::new(db.clone(), "notifications");
///
/// // In a handler the transaction comes from the reservation guard: `guard.transaction().await?`.
/// let (transaction, finisher) = RequestTransaction::alone(&db);
/// let mut lease = transaction.lease::<Sqlite>().await?;
/// let job = Job::to("u1", "booked".to_owned());
/// queue::sql::enqueue(&db, &mut lease, &notices, job).await?;
/// drop(lease);
/// finisher.commit().await?;
/// assert_eq!(notices.depth().await?.ready, 1);
/// # Ok(()) }
/// # #[cfg(not(feature = "sqlite"))] fn main() {}
/// ```
///
/// # Errors
/// Full, too large, or the database's: then the transaction can only be rolled back (on Postgres).
pub async fn enqueue<D: QueueEngine, T: Serialize>(
    db: &SqlStore,
    lease: &mut Lease<'_, D>,
    queue: &Queue<T>,
    job: Job<T>,
) -> Result<EnqueueOutcome, QueueError> {
    let jobs = [job.encode()?];
    let (name, rules) = (queue.name(), &queue.config.rules);
    let added = D::enqueue(db, lease, name, &jobs, rules).await;
    let added = added.map_err(StoreError::from)?;
    let first = added
        .ok_or(StoreErrorKind::Full)
        .map(|added| added.first().copied());
    let none = || StoreError::new(StoreErrorKind::Failed);
    Ok(first.map_err(StoreError::from)?.ok_or_else(none)?)
}
