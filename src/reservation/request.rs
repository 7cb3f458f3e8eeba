//! What one request keeps about its reservations: the transaction, its guards, and what they did.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use http::Extensions;
use parking_lot::Mutex;
use smallvec::SmallVec;

use super::config::Config;
use super::hold::{HoldId, HoldRef};
use super::rejection::{Conflict, ReservationError};
use super::store::{Change, ChangeDecision, Ended, Opened};
use crate::core::telemetry::{count, error};
use crate::core::{Ending, RollbackCause, StoreError, StoreFuture, Vote};

/// Shared by the layer and the guards of one request.
pub(crate) struct Request {
    pub(crate) config: Arc<Config>,
    pub(crate) transaction: Opened,
    /// Inside [`Reservations::run`](super::Reservations::run), which commits and nobody else.
    pub(crate) is_run: bool,
    guards: AtomicUsize,
    said: Mutex<Said>,
    /// The last refusal; hooks that outlive the request ask for it. Made by the first refusal or hook.
    conflict: OnceLock<Arc<Mutex<Option<Conflict>>>>,
}

#[derive(Default)]
struct Said {
    closed: bool,
    made: SmallVec<[Made; 1]>,
}

/// A hold that this request made.
struct Made {
    id: HoldId,
    /// Its version as this request sees it.
    version: u32,
    /// Its versions as early commits may have left it, the newest last: the last that is known, and those under way or of
    /// unknown outcome since. If the response fails it is released, unless somebody else has had it since.
    left_at: SmallVec<[u32; 2]>,
    /// Made in the open transaction.
    is_open: bool,
}

impl Request {
    pub(crate) fn open(config: &Arc<Config>, extensions: Option<&mut Extensions>) -> Arc<Self> {
        Arc::new(Self {
            is_run: extensions.is_none(),
            transaction: config.store.lend(extensions),
            config: Arc::clone(config),
            guards: AtomicUsize::new(0),
            said: Mutex::new(Said::default()),
            conflict: OnceLock::new(),
        })
    }

    pub(crate) fn enter(&self) {
        self.guards.fetch_add(1, Ordering::SeqCst);
    }

    pub(crate) fn leave(&self) {
        self.guards.fetch_sub(1, Ordering::SeqCst);
    }

    pub(crate) fn usable(&self) -> Result<(), ReservationError> {
        if self.said.lock().closed {
            return Err(ReservationError::TransactionLeaked);
        }
        Ok(())
    }

    pub(crate) fn note_conflict(&self, conflict: Conflict) {
        *self.conflict_cell().lock() = Some(conflict);
    }

    /// A wish was granted: an earlier refusal is behind us, and not why anything fails now.
    pub(crate) fn forget_conflict(&self) {
        if let Some(refused) = self.conflict.get() {
            *refused.lock() = None;
        }
    }

    pub(crate) fn conflict(&self) -> Option<Conflict> {
        *self.conflict.get()?.lock()
    }

    pub(crate) fn conflict_cell(&self) -> &Arc<Mutex<Option<Conflict>>> {
        self.conflict.get_or_init(Arc::default)
    }

    pub(crate) fn note_made(&self, id: HoldId, version: u32) {
        self.said.lock().made.push(Made {
            id,
            version,
            left_at: SmallVec::new(),
            is_open: true,
        });
    }

    /// Notes where a hold stands after a step that wrote so many versions. One that went further is no longer this request's
    /// own.
    pub(crate) fn note_seen(&self, id: HoldId, version: u32, written: u32) {
        let mut said = self.said.lock();
        said.made.retain_mut(|made| {
            let is_other = made.id != id;
            let is_own = version <= made.version + written;
            if !is_other {
                made.version = version;
            }
            is_other || is_own || made.is_open
        });
    }

    pub(crate) fn made(&self) -> Arc<[HoldId]> {
        let said = self.said.lock();
        let open = said.made.iter().filter(|made| made.is_open);
        open.map(|made| made.id).collect()
    }

    /// Notes an early commit before it is sent: whoever waits for it may vanish, and it goes on.
    pub(crate) fn note_committing(&self) {
        let mut said = self.said.lock();
        for made in &mut said.made {
            made.left_at.push(made.version);
        }
    }

    /// Notes what an early commit came to. What may have been committed stays noted as such.
    pub(crate) fn note_commit(&self, ended: &Ended) {
        let mut said = self.said.lock();
        for made in &mut said.made {
            match ended {
                Ended::Committed => {
                    made.left_at = SmallVec::from_slice(&[made.version]);
                    made.is_open = false;
                }
                Ended::RolledBack(_) | Ended::Member => {
                    made.left_at.pop();
                }
                Ended::Unknown => {}
            }
        }
    }

    /// Closes the guards; says whether one outlived its handler.
    pub(crate) fn close(&self) -> bool {
        self.said.lock().closed = true;
        self.guards.load(Ordering::SeqCst) > 0
    }

    /// Commits. If that cannot be, what an earlier `commit()` of this request had held is released.
    /// Started at the call.
    pub(crate) fn commit(&self) -> StoreFuture<Ended> {
        let ended = self.transaction.end(Ending::Commit);
        self.compensated(ended, Ended::Unknown)
    }

    /// Rolls back, and releases what an earlier `commit()` of this request had held. Started at the call.
    pub(crate) fn roll_back(&self, cause: RollbackCause) -> StoreFuture<Ended> {
        self.transaction.vote(Vote::Rollback(cause));
        let ended = self.transaction.end(Ending::Rollback);
        self.compensated(ended, Ended::RolledBack(cause))
    }

    /// Releases early committed holds after a rollback, in a task. `lost` is the answer if the task dies.
    fn compensated(&self, ended: StoreFuture<Ended>, lost: Ended) -> StoreFuture<Ended> {
        let mut said = self.said.lock();
        let made = said.made.iter_mut();
        let left = made.map(|made| (made.id, std::mem::take(&mut made.left_at)));
        let committed: Vec<_> = left.filter(|(_, left_at)| !left_at.is_empty()).collect();
        drop(said);
        let runtime = tokio::runtime::Handle::try_current();
        let (false, Ok(runtime)) = (committed.is_empty(), runtime) else {
            return ended;
        };
        let config = Arc::clone(&self.config);
        let task = runtime.spawn(async move {
            let ended = ended.await;
            if matches!(ended, Ok(Ended::RolledBack(_) | Ended::Member)) {
                for (hold, left_at) in committed {
                    compensate(&config, hold, &left_at).await;
                }
            }
            ended
        });
        StoreFuture::boxed(async move { task.await.unwrap_or(Ok(lost)) })
    }
}

/// Releases a hold if it still is as its request left it; if that fails, it expires.
async fn compensate(config: &Config, hold: HoldId, left_at: &[u32]) {
    let transaction = config.store.open(None);
    let release = async {
        let mut kept = ChangeDecision::NotFound;
        for &left_at in left_at.iter().rev() {
            let change = Change::Compensate { left_at };
            let change = transaction.change(HoldRef::Id(hold), change, config.record);
            kept = change.await?;
            if matches!(kept, ChangeDecision::Done(_)) {
                break;
            }
        }
        Ok(kept)
    };
    let done: Result<_, StoreError> = release.await;
    let answer = match done {
        Ok(decided) => match transaction.end(Ending::Commit).await {
            Ok(Ended::Committed) if matches!(decided, ChangeDecision::Done(_)) => "released",
            Ok(Ended::Committed) => "kept",
            _ => "failed",
        },
        Err(problem) => {
            let _ = &problem;
            error!(error = ?problem, "a hold of a failed request was not released, it will expire");
            drop(transaction.end(Ending::Rollback));
            "failed"
        }
    };
    count!("keep_reservation_compensations_total", 1, "answer" => answer);
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("transaction", &self.transaction)
            .finish_non_exhaustive()
    }
}
