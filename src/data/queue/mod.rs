//! Jobs that are delivered at least once: priorities, schedules, retries, digests, dead letters, batches.
//!
//! ```
//! use tower_keep::backend::memory::MemoryStore;
//! use tower_keep::data::queue::{Batch, Job, JobError, Priority, Queue};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let notices: Queue<String> = Queue::new(MemoryStore::new(), "notifications");
//! let job = Job::to("u1", "your booking is confirmed".to_owned());
//! notices.enqueue(job.priority(Priority::High).once("booked:r17")).await?;
//!
//! let worker = notices.worker(|batch: Batch<String>| async move {
//!     for (index, job) in batch.jobs.iter().enumerate() {
//!         if job.items[0].is_empty() {
//!             batch.fail(index, JobError::dead("nothing to say"));
//!         }
//!     }
//!     Ok::<(), JobError>(())
//! });
//! assert_eq!(worker.run_until_idle().await?.delivered, 1);
//! # Ok(()) }
//! ```
//!
//! # What holds
//! - Every job ends acked, cancelled, or as a dead letter; nothing vanishes silently. Full is an error, and adds nothing.
//! - Order: priority, due time, enqueueing. Never before its time; dead, `expired`, if it could not be delivered within
//!   [`Queue::expire_after`] of it.
//! - A lease gives jobs of one recipient and priority to one caller and counts the attempt; ack, nack and extend need its
//!   token, and a late one changes nothing. At its end a job is ready again, or dead after the last attempt.
//! - At least once: a worker that dies between sending and ack sends again after the lease, under the same [`JobId`].
//! - Retries wait a random time up to 10, 20, 40, 80 s by default; then the job is dead, with its last error.
//! - Dead letters: the last 10,000, for 7 days. [`Queue::revive`] gives them fresh attempts.
//!
//! # What it does not do
//! It promises no order per recipient: two workers may have jobs of one recipient at once. On Redis a queue lasts as long
//! as what Redis persists, and its keys have no expiry of their own; Redis must not evict (`noeviction`).

mod batch;
mod error;
mod handle;
mod job;
mod meter;
mod policy;
mod settle;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub mod sql;
pub mod store;
mod worker;

pub use batch::{Batch, Failures, JobError, JobView, LeasedJob, SettleReport};
pub use error::{QueueError, QueueErrorKind};
pub use handle::Queue;
pub use job::{Digest, Job};
pub use policy::Backoff;
pub use settle::Retry;
pub use store::{Depth, EnqueueOutcome, JobId, JobState, Priority, QueueStore};
pub use worker::{WorkReport, Worker};
