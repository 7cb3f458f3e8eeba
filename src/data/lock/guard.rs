//! A held lock: renewed in a task, lost at its own deadline, given back on drop.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::error::LockError;
use super::handle::Config;
use super::policy;
use super::store::{Acquired, Asking, Fence, LockKey, Owned, Owner};
use crate::core::telemetry::{count, seconds, warn};
use crate::core::{StoreError, StoreErrorKind, digest22, monotonic};
use crate::data::once_more;

/// How long after its caller has left a call is thought to take effect.
const LANDS_WITHIN: Duration = Duration::from_secs(3);

/// An owner on its way to a lock. Dropped while it is unknown whether it has one, it gives that back.
pub(super) struct Attempt {
    config: Arc<Config>,
    key: LockKey,
    owner: Owner,
    sent: Instant,
    unsettled: bool,
    runtime: Handle,
}

impl Attempt {
    pub(super) fn new(config: &Arc<Config>, key: LockKey) -> Result<Self, LockError> {
        let mut bits = [0; 16];
        getrandom::fill(&mut bits)
            .map_err(|error| StoreError::with_source(StoreErrorKind::Failed, error))?;
        Ok(Self {
            config: Arc::clone(config),
            key,
            owner: Owner(bits),
            sent: monotonic(),
            unsettled: false,
            runtime: Handle::current(),
        })
    }

    pub(super) async fn ask(&mut self, asking: Asking) -> Result<Acquired, StoreError> {
        self.sent = monotonic();
        self.unsettled = true;
        let (store, lease) = (&self.config.store, first_lease(&self.config));
        let answer = once_more(|| store.acquire(&self.key, self.owner, lease, asking)).await;
        self.unsettled = match &answer {
            Ok(_) => false,
            Err(error) => error.is_unknown(),
        };
        answer
    }

    /// Makes the guard of what was granted by the last call.
    pub(super) fn hold(mut self, fence: Fence) -> LockGuard {
        self.unsettled = false;
        let lease = first_lease(&self.config);
        let held = Arc::new(Held {
            config: Arc::clone(&self.config),
            key: self.key.clone(),
            owner: self.owner,
            fence,
            since: self.sent,
            until: Mutex::new(self.sent + policy::usable(lease)),
            gone: watch::Sender::new(false),
        });
        let renewing = self.runtime.spawn(renew(Arc::clone(&held), lease));
        LockGuard {
            held,
            renewing: renewing.abort_handle(),
            runtime: self.runtime.clone(),
            released: false,
        }
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if self.unsettled {
            give_back_late(&self.runtime, &self.config, &self.key, self.owner);
        }
    }
}

fn first_lease(config: &Config) -> Duration {
    config.lease.min(config.hold_at_most)
}

/// Releases what an attempt may have got. What was on its way when its caller left may land later (a COMMIT, say), so where
/// nothing is found it is looked for once more. A store that is away is not asked again: in an outage there are as many
/// attempts as callers, and hardly one of them has a lock.
fn give_back_late(runtime: &Handle, config: &Arc<Config>, key: &LockKey, owner: Owner) {
    let (config, key) = (Arc::clone(config), key.clone());
    runtime.spawn(async move {
        for pause in [Duration::ZERO, LANDS_WITHIN] {
            sleep_until(monotonic() + pause).await;
            if let Ok(Owned::Yes) | Err(_) = once_more(|| config.store.release(&key, owner)).await {
                return;
            }
        }
    });
}

/// Releases in a task; a store that is away, or takes no write, is asked again for `tries`.
fn give_back(runtime: &Handle, config: &Arc<Config>, key: &LockKey, owner: Owner, tries: Duration) {
    let (config, key) = (Arc::clone(config), key.clone());
    let until = monotonic() + tries;
    runtime.spawn(async move {
        while let Err(error) = once_more(|| config.store.release(&key, owner)).await {
            let again = monotonic() + Duration::from_secs(error.retry_after_secs());
            if again >= until {
                return;
            }
            sleep_until(again).await;
        }
    });
}

/// What became of a lock when it was released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReleaseOutcome {
    /// It was held until now, and is free.
    Released,
    /// It had been lost before.
    WasLost,
}

/// A lock that is held until it is released, dropped, or lost.
///
/// Dropping it releases it in a task, which asks a store that is away again while the lease may last; where there is no
/// runtime any more it is free at its end.
#[must_use = "dropping the guard releases the lock"]
pub struct LockGuard {
    held: Arc<Held>,
    renewing: AbortHandle,
    runtime: Handle,
    released: bool,
}

/// What the guard and its renewal share.
struct Held {
    config: Arc<Config>,
    key: LockKey,
    owner: Owner,
    fence: Fence,
    since: Instant,
    /// The holder's own deadline, ahead of the store's, by the monotonic clock.
    until: Mutex<Instant>,
    gone: watch::Sender<bool>,
}

impl LockGuard {
    /// Returns the fence: pass it to the resource, which refuses a lower one than it has seen. Without such a check no
    /// lock with a lease stops a holder that was paused for longer than the lease.
    #[must_use]
    pub fn fence(&self) -> Fence {
        self.held.fence
    }

    /// Says whether the lock is still held, by this process's own clock; asks nobody.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.held.is_held()
    }

    /// Resolves when the lock is gone: at once if another owner was seen, else at the holder's own deadline, which
    /// comes before the store's, reachable or not. Never while it is held.
    pub async fn lost(&self) {
        let mut gone = self.held.gone.subscribe();
        while self.held.is_held() {
            let until = self.held.until();
            tokio::select! {
                _ = gone.wait_for(|gone| *gone) => {}
                // Not only the renewal tells: it may be starved.
                () = sleep_until(until) => {}
            }
        }
        // Whoever sees it first tells: the renewal may never come to it.
        self.held.lose();
    }

    /// Releases the lock and waits until the store has done so.
    ///
    /// # Errors
    /// The store's: unknown whether it is free now; it is at its end.
    pub async fn release(mut self) -> Result<ReleaseOutcome, LockError> {
        self.renewing.abort();
        let held = Arc::clone(&self.held);
        let answer = once_more(|| held.config.store.release(&held.key, held.owner)).await;
        // Only an answer spares the release on drop.
        self.released = answer.is_ok();
        Ok(match answer? {
            Owned::Yes => ReleaseOutcome::Released,
            Owned::Lost => ReleaseOutcome::WasLost,
        })
    }
}

impl Drop for LockGuard {
    fn drop(&mut self) {
        self.renewing.abort();
        let held = &self.held;
        seconds!("keep_lock_held_seconds", monotonic() - held.since, "lock" => held.config.name.to_string());
        if !self.released {
            // For as long as the lease may last: then the lock is free at its end.
            let tries = first_lease(&held.config);
            give_back(&self.runtime, &held.config, &held.key, held.owner, tries);
        }
    }
}

impl Held {
    fn until(&self) -> Instant {
        *self.until.lock()
    }

    fn is_held(&self) -> bool {
        !*self.gone.borrow() && monotonic() < self.until()
    }

    fn lose(&self) {
        if self.gone.send_replace(true) {
            return;
        }
        count!("keep_lock_lost_total", 1, "lock" => self.config.name.to_string());
        let key = digest22(self.key.key.as_str().as_bytes());
        let _ = &key;
        warn!(lock = %self.config.name, key, fence = self.fence.0, "a lock was lost");
    }

    /// The lease to ask for next; `None` when the longest hold is used up.
    fn next_lease(&self) -> Option<Duration> {
        let end = self.since + self.config.hold_at_most;
        let rest = end.saturating_duration_since(monotonic());
        policy::next_lease(self.config.lease, rest)
    }
}

/// Renews until the longest hold is used up, and says when the lock is gone.
async fn renew(held: Arc<Held>, lease: Duration) {
    let mut next = held.since + policy::renew_after(lease);
    loop {
        let until = held.until();
        sleep_until(next.min(until)).await;
        let asked = held.next_lease();
        let (true, Some(lease)) = (monotonic() < until, asked) else {
            sleep_until(until).await;
            return held.lose();
        };
        let sent = monotonic();
        let extended = held.config.store.extend(&held.key, held.owner, lease);
        match timeout_at(until, extended).await {
            Ok(Ok(Owned::Yes)) => {
                *held.until.lock() = sent + policy::usable(lease);
                // The last one is not followed by ever smaller ones.
                next = if lease < held.config.lease {
                    held.until()
                } else {
                    sent + policy::renew_after(lease)
                };
            }
            Ok(Ok(Owned::Lost)) | Err(_) => return held.lose(),
            Ok(Err(_)) => next = monotonic() + policy::retry_pause(held.config.lease),
        }
    }
}

impl fmt::Debug for LockGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockGuard")
            .field("lock", &self.held.config.name)
            .field("fence", &self.held.fence)
            .field("held", &self.is_held())
            .finish_non_exhaustive()
    }
}
