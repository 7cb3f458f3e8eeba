//! The service: takes locks, waits for them, and runs work under them.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::error::LockError;
use super::guard::{Attempt, LockGuard};
use super::lane::{Lanes, Place};
use super::policy;
use super::store::{Acquired, Asking, Fence, LockKey, LockState, LockStore};
use crate::core::telemetry::{count, seconds};
use crate::core::ttl::{LONGEST, MINUTE, SECOND};
use crate::core::{IntoKey, Key, NotAServiceName, ServiceName, monotonic};
use crate::data::bell::Bell;

/// Mutual exclusion by key, over all processes on one store: a lease with an owner, a fence and a signal of its loss.
///
/// Clones share the order of waiting; a setter starts a service of its own.
#[derive(Clone)]
#[must_use]
pub struct Lock {
    pub(super) config: Arc<Config>,
    lanes: Arc<Lanes>,
}

/// What all guards of a service share.
#[derive(Clone, Debug)]
pub(super) struct Config {
    pub(super) store: Arc<dyn LockStore>,
    pub(super) name: ServiceName,
    pub(super) lease: Duration,
    pub(super) hold_at_most: Duration,
}

impl Lock {
    /// Makes locks of this name: leases of 30 s, held for at most 10 minutes.
    ///
    /// # Panics
    /// If `name` is not 1 to 64 of `a-z 0-9 . _ -`.
    #[track_caller]
    pub fn new(store: impl LockStore, name: &str) -> Self {
        Self::of(store, ServiceName::new(name))
    }

    /// Like [`Lock::new`], for a name that is known only at run time.
    ///
    /// # Errors
    /// The name is not 1 to 64 of `a-z 0-9 . _ -`.
    pub fn try_new(store: impl LockStore, name: &str) -> Result<Self, NotAServiceName> {
        Ok(Self::of(store, ServiceName::try_new(name)?))
    }

    fn of(store: impl LockStore, name: ServiceName) -> Self {
        Self {
            config: Arc::new(Config {
                store: Arc::new(store),
                name,
                lease: 30 * SECOND,
                hold_at_most: 10 * MINUTE,
            }),
            lanes: Arc::default(),
        }
    }

    /// Sets the lease (30 s): how long after its holder's death a lock stays taken. Renewed at a third of it. At
    /// least 10 ms, at most 366 days; a sensible one outlasts a pause of the process and a few round trips.
    pub fn lease(self, lease: impl Into<Duration>) -> Self {
        let lease = lease.into().clamp(policy::SHORTEST_LEASE, LONGEST);
        self.with(|config| config.lease = lease)
    }

    /// Sets how long one holder may have a lock, renewals included (10 minutes).
    pub fn hold_at_most(self, longest: impl Into<Duration>) -> Self {
        let longest = longest.into().clamp(policy::SHORTEST_LEASE, LONGEST);
        self.with(|config| config.hold_at_most = longest)
    }

    fn with(mut self, change: impl FnOnce(&mut Config)) -> Self {
        change(Arc::make_mut(&mut self.config));
        self.lanes = Arc::default();
        self
    }

    /// Takes the lock of `key`, or says at once that another has it.
    ///
    /// # Errors
    /// [`LockError::Busy`]; or the store's.
    pub async fn try_acquire(&self, key: impl IntoKey) -> Result<LockGuard, LockError> {
        let mut attempt = Attempt::new(&self.config, self.key(key.into_key()))?;
        match attempt.ask(Asking::Once).await? {
            Acquired::Granted(fence) => Ok(self.granted(attempt, fence)),
            Acquired::Busy { left } => Err(self.busy(left)),
        }
    }

    /// Takes the lock of `key`, waiting for up to `wait` while another has it.
    ///
    /// First come, first served within the process; woken by the release. Dropping the future gives back what it
    /// may have got.
    ///
    /// # Errors
    /// [`LockError::Busy`] after `wait`; or the store's, at once.
    pub async fn acquire(&self, key: impl IntoKey, wait: Duration) -> Result<LockGuard, LockError> {
        let key = key.into_key();
        let started = monotonic();
        let until = started + wait.min(LONGEST);
        let place = self.lanes.enter(&key);
        let Ok(turn) = tokio::time::timeout_at(until, place.turn()).await else {
            return Err(self.busy(rest(&place)));
        };
        let taken = self.acquire_first(key, until, &place).await;
        drop(turn);
        seconds!("keep_lock_wait_seconds", monotonic() - started, "lock" => self.config.name.to_string());
        taken
    }

    /// Runs `work` under the lock of `key`, waiting for it for up to `wait`. The work is dropped when the lock is
    /// lost; pass its fence to whatever it writes.
    ///
    /// # Errors
    /// As [`Lock::acquire`], and [`LockError::Lost`] when the work was dropped.
    pub async fn run<T, W>(
        &self,
        key: impl IntoKey,
        wait: Duration,
        work: impl FnOnce(Fence) -> W,
    ) -> Result<T, LockError>
    where
        W: Future<Output = T>,
    {
        let guard = self.acquire(key, wait).await?;
        let done = tokio::select! {
            biased;
            () = guard.lost() => return Err(LockError::Lost),
            done = work(guard.fence()) => done,
        };
        // What was done stays done: a release that fails leaves the lock to its end.
        let _ = guard.release().await;
        Ok(done)
    }

    /// Says who has the lock of `key`, if anybody.
    ///
    /// # Errors
    /// The store's.
    pub async fn inspect(&self, key: impl IntoKey) -> Result<Option<LockState>, LockError> {
        let key = self.key(key.into_key());
        Ok(self.config.store.inspect(&key).await?)
    }

    /// The one of this process who asks the store.
    async fn acquire_first(
        &self,
        key: Key,
        until: Instant,
        place: &Place,
    ) -> Result<LockGuard, LockError> {
        let key = self.key(key);
        let mut attempt = Attempt::new(&self.config, key.clone())?;
        if let Acquired::Granted(fence) = attempt.ask(Asking::Once).await? {
            return Ok(self.granted(attempt, fence));
        }
        let bell = Arc::new(Bell::default());
        let listening = self.config.store.subscribe(&key, bell.callback()).await?;
        // Asked after listening began, so no release goes unheard in between.
        let taken = loop {
            bell.hush();
            let left = match attempt.ask(Asking::Waiting).await? {
                Acquired::Granted(fence) => break Ok(self.granted(attempt, fence)),
                Acquired::Busy { left } => left,
            };
            let now = monotonic();
            let left = left.min(LONGEST);
            place.heard(now + left);
            if now >= until {
                break Err(self.busy(left));
            }
            let random = getrandom::u32().unwrap_or_default();
            let again = now + policy::ask_again_after(left, random);
            let _either = tokio::time::timeout_at(again.min(until), bell.rung()).await;
        };
        drop(listening);
        taken
    }

    fn key(&self, key: Key) -> LockKey {
        LockKey {
            name: self.config.name.shared(),
            key,
        }
    }

    fn granted(&self, attempt: Attempt, fence: Fence) -> LockGuard {
        count!("keep_lock_acquired_total", 1, "lock" => self.config.name.to_string());
        attempt.hold(fence)
    }

    fn busy(&self, left: Duration) -> LockError {
        count!("keep_lock_busy_total", 1, "lock" => self.config.name.to_string());
        LockError::Busy {
            retry_after: policy::retry_after(left),
        }
    }
}

fn rest(place: &Place) -> Duration {
    let until = place.busy_until();
    until.map_or(Duration::ZERO, |until| {
        until.saturating_duration_since(monotonic())
    })
}

impl fmt::Debug for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lock")
            .field("name", &self.config.name)
            .field("lease", &self.config.lease)
            .finish_non_exhaustive()
    }
}
