//! What all members of one request's transaction share: the connection, taken in turns, and what was said.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{MutexGuard, Notify};

use super::error::{TransactionError, TransactionErrorKind};
use super::open::Open;
use super::proof::Probe;
use super::store::SqlStore;
use super::watch::Due;
use crate::core::telemetry::{count, error};
use crate::core::{AfterWork, RollbackCause, Vote};

pub(super) struct Shared {
    pub(super) db: SqlStore,
    /// Begun at first use; whoever holds the lock has the turn.
    pub(super) slot: tokio::sync::Mutex<Option<Open>>,
    pub(super) said: Mutex<Said>,
    /// Wakes who waits for a turn or an answer when its time is over.
    over: Notify,
    /// Extracted guards that are still alive.
    pub(super) guards: AtomicUsize,
}

/// What members and the database have said so far.
#[derive(Default)]
pub(super) struct Said {
    pub(super) closed: bool,
    /// When the open transaction must have ended; `None` from when it is being ended.
    pub(super) due: Option<Due>,
    /// Its time is over, and the connection is being taken back: nothing heals it, whatever doomed it first.
    pub(super) overdue: bool,
    pub(super) doom: Option<RollbackCause>,
    pub(super) commit: bool,
    pub(super) rollback: Option<RollbackCause>,
    pub(super) after: Vec<AfterWork>,
    /// How the owner tells what became of a commit whose reply was lost.
    pub(super) probe: Option<Probe>,
}

impl Shared {
    pub(super) fn new(db: SqlStore) -> Arc<Self> {
        Arc::new(Self {
            db,
            slot: tokio::sync::Mutex::new(None),
            said: Mutex::new(Said::default()),
            over: Notify::new(),
            guards: AtomicUsize::new(0),
        })
    }

    /// Waits for the turn and begins if nobody has.
    pub(super) async fn enter(
        self: &Arc<Self>,
        lock_timeout: Duration,
    ) -> Result<MutexGuard<'_, Option<Open>>, TransactionError> {
        self.usable()?;
        let mut slot = match self.slot.try_lock() {
            Ok(slot) => slot,
            Err(_) => self.in_time(self.turn()).await?,
        };
        self.usable()?;
        if slot.is_none() {
            // The tables must be there before the only connection of a memory database is taken.
            self.db.prepare().await?;
            let mut open = Open::begin(&self.db, lock_timeout).await?;
            let longest = self.db.inner.settings.transaction_timeout;
            // The lock keeps the deadline waiting until it is known here.
            let mut said = self.said.lock();
            let deadline = self.db.inner.deadlines.enter(self, longest);
            said.due = Some(deadline.due());
            open.deadline = Some(deadline);
            *slot = Some(open);
        }
        Ok(slot)
    }

    /// Waits for the turn.
    pub(super) async fn turn(&self) -> Result<MutexGuard<'_, Option<Open>>, TransactionError> {
        Ok(self.slot.lock().await)
    }

    /// Waits for `work` no longer than the transaction may last: whoever has the turn may be the one who waits, and a
    /// server may have fallen silent.
    pub(super) async fn in_time<T>(
        &self,
        work: impl Future<Output = Result<T, TransactionError>>,
    ) -> Result<T, TransactionError> {
        // From here on it hears of the end, asked for or not.
        let over = self.over.notified();
        if self.is_overdue() {
            return Err(TransactionError::doomed(RollbackCause::Timeout));
        }
        tokio::select! {
            biased;
            done = work => done,
            () = over => Err(TransactionError::doomed(RollbackCause::Timeout)),
        }
    }

    /// Says whether another operation may run.
    pub(super) fn usable(&self) -> Result<(), TransactionError> {
        let said = self.said.lock();
        if said.closed {
            return Err(TransactionError::new(TransactionErrorKind::Ended));
        }
        said.doom
            .map_or(Ok(()), |cause| Err(TransactionError::doomed(cause)))
    }

    /// From now on it can only roll back; the first cause stays.
    pub(super) fn doom(&self, cause: RollbackCause) {
        self.said.lock().doom.get_or_insert(cause);
    }

    pub(super) fn vote(&self, vote: Vote) {
        let mut said = self.said.lock();
        match vote {
            Vote::Commit => said.commit = true,
            Vote::Rollback(cause) => {
                said.rollback.get_or_insert(cause);
            }
        }
    }

    pub(super) fn verdict(&self) -> Option<Vote> {
        let said = self.said.lock();
        let refused = said.rollback.map(Vote::Rollback);
        refused.or_else(|| said.commit.then_some(Vote::Commit))
    }

    /// Says whether its time was over before it was ended: then nobody need have leaked it.
    pub(super) fn is_overdue(&self) -> bool {
        self.said.lock().overdue
    }

    /// Closes it for everybody; says whether a guard outlived its handler.
    pub(super) fn close(&self) -> bool {
        self.said.lock().closed = true;
        self.guards.load(Ordering::SeqCst) > 0
    }

    /// The transaction timeout has passed: it is doomed, who waits for it is told, and the connection taken back as soon
    /// as nobody has it. Who ends it meanwhile finds the doom, and does not take our turn for a leak.
    pub(super) async fn overdue(&self, due: Due) {
        {
            let mut said = self.said.lock();
            if said.closed || said.due != Some(due) {
                return;
            }
            said.overdue = true;
            said.doom.get_or_insert(RollbackCause::Timeout);
        }
        self.over.notify_waiters();
        let Some(open) = self.slot.lock().await.take() else {
            return;
        };
        count!("keep_sql_transactions_total", 1, "end" => "timeout");
        error!("a transaction was open for longer than the transaction timeout");
        open.rollback().await;
    }
}
