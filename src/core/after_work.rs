//! Work for after the end: registered inside the transaction, run when it has ended.

use std::fmt;
use std::pin::Pin;
use std::time::Duration;

use super::telemetry::{count, error};
use super::transaction::RollbackCause;

/// How long one piece of work may take.
const LONGEST: Duration = Duration::from_secs(30);

type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Work to be done once the transaction has ended, one way or the other.
///
/// It runs in the task that ended it, in order of registration, each at most 30 s, panics caught; at
/// most once, and lost with the process.
pub struct AfterWork {
    when: When,
}

enum When {
    Committed(Work),
    RolledBack(Box<dyn FnOnce(RollbackCause) -> Work + Send>),
}

/// How it ended.
#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    Committed,
    RolledBack(RollbackCause),
}

impl AfterWork {
    /// Work for after a commit.
    pub fn committed(work: impl Future<Output = ()> + Send + 'static) -> Self {
        Self {
            when: When::Committed(Box::pin(work)),
        }
    }

    /// Work for after a rollback, told why.
    pub fn rolled_back<F, W>(work: F) -> Self
    where
        F: FnOnce(RollbackCause) -> W + Send + 'static,
        W: Future<Output = ()> + Send + 'static,
    {
        Self {
            when: When::RolledBack(Box::new(move |cause| Box::pin(work(cause)))),
        }
    }

    #[cfg(any(feature = "sqlite", feature = "postgres"))]
    pub(crate) const fn waits_for_commit(&self) -> bool {
        matches!(self.when, When::Committed(_))
    }
}

impl fmt::Debug for AfterWork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AfterWork").finish_non_exhaustive()
    }
}

/// Runs what fits the end, one after the other.
pub(crate) async fn run_all(work: Vec<AfterWork>, end: End) {
    for piece in work {
        run(piece, end).await;
    }
}

async fn run(piece: AfterWork, end: End) {
    let work = match (piece.when, end) {
        (When::Committed(work), End::Committed) => work,
        (When::RolledBack(work), End::RolledBack(cause)) => Box::pin(async move {
            work(cause).await;
        }),
        _ => return,
    };
    // A task of its own, so that a panic in it stays in it.
    let task = tokio::spawn(work);
    let abort = task.abort_handle();
    match tokio::time::timeout(LONGEST, task).await {
        Ok(Ok(())) => {}
        _ => {
            abort.abort();
            count!("keep_sql_after_work_failures_total", 1);
            error!("work after the end of a transaction panicked or took too long");
        }
    }
}
