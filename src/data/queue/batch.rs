//! Jobs at a worker.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::store::{JobId, JobState, Priority, Token};
use crate::core::{Key, Timestamp};

/// Jobs of one recipient, leased together.
#[derive(Debug)]
pub struct Batch<T> {
    /// For whom.
    pub recipient: Key,
    /// The jobs, in order; at least one.
    pub jobs: Vec<LeasedJob<T>>,
    pub(super) token: Token,
    pub(super) ends: Arc<Mutex<Instant>>,
    pub(super) failures: Arc<Mutex<Vec<(usize, JobError)>>>,
}

impl<T> Batch<T> {
    /// Notes that the job at `index` failed, in a worker's work: the others are delivered, it is tried again (or not,
    /// by [`JobError::dead`]). The last word about a job counts.
    pub fn fail(&self, index: usize, error: impl Into<JobError>) {
        self.failures.lock().push((index, error.into()));
    }

    /// Returns the handle for [`Batch::fail`] that outlives the batch, where the jobs are moved out of it.
    pub fn failures(&self) -> Failures {
        Failures(Arc::clone(&self.failures))
    }

    /// Returns all items of all jobs, in order.
    pub fn into_items(self) -> impl Iterator<Item = T> {
        self.jobs.into_iter().flat_map(|job| job.items)
    }

    /// Says how long the lease lasts, by this process's own clock; zero once it is over.
    #[must_use]
    pub fn lease_left(&self) -> Duration {
        let ends = *self.ends.lock();
        ends.saturating_duration_since(crate::core::monotonic())
    }

    pub(super) fn ids(&self) -> Vec<JobId> {
        self.jobs.iter().map(|job| job.id).collect()
    }
}

/// Where a worker's work notes which jobs failed.
#[derive(Clone, Debug)]
pub struct Failures(Arc<Mutex<Vec<(usize, JobError)>>>);

impl Failures {
    /// As [`Batch::fail`].
    pub fn fail(&self, index: usize, error: impl Into<JobError>) {
        self.0.lock().push((index, error.into()));
    }
}

/// One leased job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeasedJob<T> {
    /// Its number: the same over all attempts, for the provider's deduplication.
    pub id: JobId,
    /// How urgent.
    pub priority: Priority,
    /// The number of this try, from 1.
    pub attempt: u32,
    /// When it was due.
    pub due: Timestamp,
    /// Its items: one, or those of a digest in the order they came.
    pub items: Vec<T>,
    pub(super) token: Token,
}

/// A job as it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobView<T> {
    /// Its number.
    pub id: JobId,
    /// For whom.
    pub recipient: Key,
    /// Where it stands.
    pub state: JobState,
    /// How urgent.
    pub priority: Priority,
    /// Tries so far, the running one included.
    pub attempts: u32,
    /// When it is or was due.
    pub due: Timestamp,
    /// Its items; `None` where they cannot be decoded as this type.
    pub items: Option<Vec<T>>,
    /// Why its last try failed, up to 500 bytes.
    pub last_error: Option<String>,
}

/// What was settled under a lease, and what was not.
#[must_use]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SettleReport {
    /// Done.
    pub done: Vec<JobId>,
    /// The lease was over, another's, or the job is gone: nothing was changed.
    pub lost: Vec<JobId>,
}

impl SettleReport {
    /// Says whether all was done.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.lost.is_empty()
    }
}

/// Why a job failed, and whether it may be tried again. Any error becomes one by `?`.
pub struct JobError {
    what: Box<dyn Error + Send + Sync>,
    again: bool,
}

impl JobError {
    /// A failure that may pass: the job is tried again, after a while.
    #[must_use]
    pub fn retry(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self {
            what: error.into(),
            again: true,
        }
    }

    /// A failure that will not pass: the job is a dead letter at once.
    #[must_use]
    pub fn dead(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self {
            what: error.into(),
            again: false,
        }
    }

    pub(super) const fn is_worth_again(&self) -> bool {
        self.again
    }
}

impl<E: Error + Send + Sync + 'static> From<E> for JobError {
    fn from(error: E) -> Self {
        Self::retry(error)
    }
}

impl fmt::Display for JobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.what.fmt(f)
    }
}

impl fmt::Debug for JobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobError")
            .field("what", &self.what)
            .field("again", &self.again)
            .finish()
    }
}
