//! The one who ends a request's transaction.
//!
//! Every ending is carried to its end: dropping whoever waits for it changes nothing, it goes on in a task
//! then. Work for after the end runs in a task too.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;

use super::ending::{Part, start_commit, start_rollback};
use super::error::{TransactionError, TransactionErrorKind};
use super::proof::{AnyLease, ProofFuture};
use super::shared::Shared;
use crate::core::{Carried, End, RollbackCause, Vote, run_all};

/// How long a refusal waits for its ROLLBACK; then it leaves, and the rollback goes on.
const ROLLBACK_AWAITED: Duration = Duration::from_secs(1);

/// Ends a transaction. Not `Clone`: only whoever joined first has it. Dropped, it rolls back in a task.
pub struct Finisher {
    shared: Arc<Shared>,
    /// Work registered before the mark survives a rewind; `None` without a mark.
    marked: Option<usize>,
    ended: bool,
}

impl Finisher {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            marked: None,
            ended: false,
        }
    }

    /// Begins now, with another wait for locks; for an owner that writes before anybody else.
    ///
    /// # Errors
    /// As [`RequestTransaction::lease`](super::RequestTransaction::lease).
    pub async fn begin(&self, lock_timeout: Duration) -> Result<(), TransactionError> {
        self.shared.enter(lock_timeout).await.map(drop)
    }

    /// Sets the mark that [`rewind`](Self::rewind) goes back to, and the usual wait for locks; one message.
    ///
    /// # Errors
    /// As [`RequestTransaction::lease`](super::RequestTransaction::lease); the transaction is doomed then.
    pub async fn mark(&mut self) -> Result<(), TransactionError> {
        let lock_timeout = self.shared.db.inner.settings.lock_timeout;
        let mut slot = self.shared.enter(lock_timeout).await?;
        let Some(open) = slot.as_mut() else {
            return Err(TransactionError::new(TransactionErrorKind::Ended));
        };
        let sql = match self.shared.db.dialect() {
            #[cfg(feature = "postgres")]
            super::Dialect::Postgres => format!(
                "SAVEPOINT keep_mark; SET LOCAL lock_timeout = {}",
                super::postgres::millis(lock_timeout)
            ),
            #[cfg(feature = "sqlite")]
            super::Dialect::Sqlite => "SAVEPOINT keep_mark".to_owned(),
        };
        let marking = async {
            open.check().await?;
            Ok(open.connection()?.run(sql).await?)
        };
        if let Err(error) = self.shared.in_time(marking).await {
            self.shared.doom(RollbackCause::Poisoned);
            return Err(error);
        }
        self.marked = Some(self.shared.said.lock().after.len());
        Ok(())
    }

    /// Goes back to the mark: undoes what was written since, heals a failed statement, forgets votes and
    /// work for after the commit. Work for after a rollback stays, and runs with `cause` now.
    ///
    /// # Errors
    /// When there is no mark, or the transaction is lost: then all can only be rolled back.
    pub async fn rewind(&mut self, cause: RollbackCause) -> Result<(), TransactionError> {
        let Some(kept) = self.marked else {
            return Err(TransactionError::new(TransactionErrorKind::Ended));
        };
        // Nobody may have the connection any more: who still does has leaked it, and may never give it back.
        let Ok(mut slot) = self.shared.slot.try_lock() else {
            self.shared.doom(RollbackCause::Leaked);
            // The first cause stays: past its time, it may be the timeout's own turn.
            return Err(TransactionError::doomed(
                self.doom().unwrap_or(RollbackCause::Leaked),
            ));
        };
        let Some(open) = slot.as_mut() else {
            return Err(TransactionError::doomed(RollbackCause::Timeout));
        };
        if let Err(error) = self.shared.in_time(open.rewind()).await {
            self.shared.doom(RollbackCause::Poisoned);
            return Err(error);
        }
        drop(slot);
        let undone = {
            let mut said = self.shared.said.lock();
            // Past its time nothing heals it.
            if said.overdue {
                return Err(TransactionError::doomed(RollbackCause::Timeout));
            }
            said.doom = None;
            said.commit = false;
            said.rollback = None;
            said.after.split_off(kept)
        };
        let work: Vec<_> = undone
            .into_iter()
            .filter(|work| !work.waits_for_commit())
            .collect();
        if !work.is_empty() {
            let after = run_all(work, End::RolledBack(cause));
            let tasks = &self.shared.db.inner.tasks;
            tasks.spawn(&Handle::current(), after);
        }
        Ok(())
    }

    /// Returns what the members have voted: one `Rollback` decides; `None` if nobody has.
    #[must_use]
    pub fn verdict(&self) -> Option<Vote> {
        self.shared.verdict()
    }

    /// Says how to tell, should the reply to COMMIT be lost and the database not know the transaction any
    /// more (SQLite never does), whether what was written is there. Holds until the next commit.
    pub fn proof<P>(&mut self, probe: P)
    where
        P: for<'c> Fn(AnyLease<'c>) -> ProofFuture<'c> + Send + Sync + 'static,
    {
        self.shared.said.lock().probe = Some(Arc::new(probe));
    }

    /// Says whether anything was begun: an untouched transaction ends without any I/O.
    #[must_use]
    pub fn is_begun(&self) -> bool {
        self.shared
            .slot
            .try_lock()
            .map_or(true, |slot| slot.is_some())
    }

    /// Says whether somebody still has the connection, or a guard outlived its handler.
    pub(crate) fn is_leaked(&self) -> bool {
        let guards = self.shared.guards.load(std::sync::atomic::Ordering::SeqCst);
        guards > 0 || (self.shared.slot.try_lock().is_err() && !self.shared.is_overdue())
    }

    /// Returns why it can only roll back, if it can.
    pub(crate) fn doom(&self) -> Option<RollbackCause> {
        self.shared.said.lock().doom
    }

    /// Says whether nothing was begun and no work waits for the end.
    pub(crate) fn is_untouched(&self) -> bool {
        let begun = self.is_begun();
        let said = self.shared.said.lock();
        !begun && said.after.is_empty() && said.doom.is_none()
    }

    /// Ends a transaction that nobody has touched, without a task.
    pub(crate) fn close(mut self) {
        self.ended = true;
        self.shared.close();
    }

    /// Commits. `Ok` means that it is durable.
    ///
    /// # Errors
    /// [`TransactionErrorKind::Doomed`] when it was rolled back instead (a failed statement, a leaked guard,
    /// a vote, the timeout), [`TransactionErrorKind::Unknown`] when the reply was lost and stays lost.
    ///
    /// Dropping the answer changes nothing: it is carried to its end in a task then.
    pub fn commit(mut self) -> impl Future<Output = Result<(), TransactionError>> + Send + use<> {
        self.ended = true;
        start_commit(&self.shared, Part::Last, std::convert::identity)
    }

    /// The same, told as `told` says it.
    pub(crate) fn commit_told<T: Send + 'static>(
        mut self,
        told: fn(Result<(), TransactionError>) -> T,
    ) -> Carried<T> {
        self.ended = true;
        start_commit(&self.shared, Part::Last, told)
    }

    /// Commits what was written so far; the next statement begins a new transaction.
    ///
    /// # Errors
    /// As [`commit`](Self::commit).
    pub fn commit_so_far(
        &mut self,
    ) -> impl Future<Output = Result<(), TransactionError>> + Send + use<> {
        self.marked = None;
        start_commit(&self.shared, Part::SoFar, std::convert::identity)
    }

    /// Rolls back: started at the call, and awaited for up to one second, so that locks are free.
    pub fn rollback(mut self, cause: RollbackCause) -> impl Future<Output = ()> + Send + 'static {
        self.ended = true;
        let ended = start_rollback(&self.shared, cause);
        async move {
            let _ = tokio::time::timeout(ROLLBACK_AWAITED, ended).await;
        }
    }
}

impl Drop for Finisher {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let cause = match self.shared.verdict() {
            Some(Vote::Rollback(cause)) => cause,
            _ if std::thread::panicking() => RollbackCause::Panic,
            _ => RollbackCause::Cancelled,
        };
        drop(start_rollback(&self.shared, cause));
    }
}

impl fmt::Debug for Finisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Finisher")
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}
