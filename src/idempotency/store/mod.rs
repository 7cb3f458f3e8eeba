//! Where idempotency records live: one atomic step per method.

mod fallback;
#[cfg(feature = "conformance")]
mod fault;
mod memory;
#[cfg(feature = "redis")]
mod redis;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub(super) mod sql;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::policy::LeaseEnd;
use super::record::{Answer, Fence, Fingerprint, Head, Nonce, Record, RecordId, ScopeTag};
use crate::core::StoreFuture;

/// What a new owner asks for.
#[derive(Clone, Copy, Debug)]
pub struct Claim {
    /// Drawn by the caller; repeating a call with it gives the same result.
    pub nonce: Nonce,
    /// The payload.
    pub fingerprint: Fingerprint,
    /// How long the claim holds without renewal.
    pub lease: Duration,
    /// How long the claim's record is kept.
    pub keep: Duration,
    /// What the end of the lease means.
    pub at_lease_end: LeaseEnd,
}

/// What [`IdempotencyStore::begin`] found.
#[derive(Clone, Debug)]
pub enum Begin {
    /// The key is yours: run.
    Run(Fence),
    /// The key belongs to another payload.
    Mismatch(Head),
    /// Its owner's lease runs.
    Running(Head),
    /// Its owner is gone, and nobody knows whether the effect happened.
    Unknown(Head),
    /// It ran: an answer, a tombstone, or a record that cannot be read.
    Done(Record),
}

/// Whether the caller still owns the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owned {
    /// Yes, and it is done.
    Yes,
    /// No, and nothing was changed.
    Lost,
}

/// What an operator makes of a record.
#[derive(Clone, Debug)]
pub enum Resolution {
    /// Forgets it: a retry runs.
    Release,
    /// Puts an answer there, for this long.
    Answer(Answer, Duration),
}

/// What became of a [`Resolution`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolved {
    /// Done.
    Done,
    /// The record is not the one that was looked at; nothing was changed.
    Changed,
    /// Its owner's lease runs; nothing was changed.
    Live,
}

/// How far a store can be relied on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It answers, and keeps what it was given.
    Good,
    /// It answers, but may throw live records away when its memory is full: such a key may run again.
    MayEvict,
}

/// Where [`IdempotencyStore::purge`] goes on; it means something to the store that made it only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor(pub [u8; 32]);

/// What one page of [`IdempotencyStore::purge`] came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Purged {
    /// Live answers and tombstones that it removed.
    pub removed: u64,
    /// Where the next page begins; `None` when this was the last.
    pub next: Option<Cursor>,
}

/// Keeps one record per idempotency key.
///
/// # Behaviour
/// - Every method is one atomic step. Times are the store's own, in whole milliseconds (UTC).
/// - At exactly `lease_until` a lease is over, at exactly `expires_at` a record is gone.
/// - A live record is never evicted; a store without room refuses new claims.
/// - A repeated call with the same nonce gives the same result: a repeat after a lost reply is harmless.
pub trait IdempotencyStore: fmt::Debug + Send + Sync + 'static {
    /// Claims `key`, or says what is already there.
    ///
    /// # Behaviour
    /// The first that fits: absent → the claim is written, [`Begin::Run`]; another fingerprint of the same
    /// rule → [`Begin::Mismatch`]; claimed with this nonce → `Run` again; lease live → [`Begin::Running`];
    /// lease over, indeterminate → [`Begin::Unknown`]; lease over → taken over under a higher fence, `Run`;
    /// else [`Begin::Done`]. Of many concurrent claims exactly one gets `Run`. `created` outlives a takeover.
    ///
    /// # Errors
    /// `Full`: nothing was claimed. `Unavailable`, `TimedOut`: unknown whether anything was.
    fn begin(&self, key: &RecordId, claim: &Claim) -> StoreFuture<Begin>;

    /// Moves the end of the lease to `lease` from now; zero gives it up at once.
    ///
    /// # Behaviour
    /// Only for the nonce of a claim; sets what the end of the lease means, and keeps an indeterminate one at least 7 days.
    ///
    /// # Errors
    /// As the engine has them; a repeat is harmless.
    fn renew(
        &self,
        key: &RecordId,
        nonce: Nonce,
        lease: Duration,
        end: LeaseEnd,
    ) -> StoreFuture<Owned>;

    /// Writes the answer, for `ttl` from now.
    ///
    /// # Behaviour
    /// Nonce equal in any state, or record absent (a failover lost it): written. `created`, fence and
    /// fingerprint of the record stay.
    ///
    /// # Errors
    /// `TooLarge`: nothing was changed, a tombstone fits.
    fn complete(
        &self,
        key: &RecordId,
        nonce: Nonce,
        answer: Answer,
        ttl: Duration,
    ) -> StoreFuture<Owned>;

    /// Removes a claim: the next request runs.
    ///
    /// # Behaviour
    /// Only for the nonce of a claim; where there is no record, that is what was wanted. An answer stays.
    ///
    /// # Errors
    /// As the engine has them; a repeat is harmless.
    fn release(&self, key: &RecordId, nonce: Nonce) -> StoreFuture<Owned>;

    /// Reads a record and changes nothing.
    ///
    /// # Errors
    /// As the engine has them.
    fn peek(&self, key: &RecordId) -> StoreFuture<Option<Record>>;

    /// Ends a record by an operator's word.
    ///
    /// # Behaviour
    /// Only while the fence is the one that was looked at and no lease runs. A late owner can no longer change an answer put there.
    ///
    /// # Errors
    /// `TooLarge`: nothing was changed.
    fn resolve(&self, key: &RecordId, fence: Fence, to: Resolution) -> StoreFuture<Resolved>;

    /// Removes a page of a caller's answers and tombstones: their keys run again.
    ///
    /// # Behaviour
    /// A claim stays, whether its lease runs or not, and so does what cannot be read. From the first page (no cursor)
    /// to the last, everything is met that was there all the time; what is written meanwhile may stay. On Redis not
    /// across a failover, a restart or slots that move between two pages: then begin again.
    ///
    /// # Errors
    /// As the engine has them; a repeat is harmless.
    fn purge(&self, scope: ScopeTag, page: Option<Cursor>) -> StoreFuture<Purged>;

    /// Says whether the store answers, and whether it keeps what it is given.
    ///
    /// # Errors
    /// As the engine has them.
    fn health(&self) -> StoreFuture<Health> {
        StoreFuture::ok(Health::Good)
    }
}

/// Counts a claim that was written over one whose owner had gone.
fn took_over() {
    crate::core::telemetry::count!("keep_idempotency_takeovers_total", 1);
}

impl<T: IdempotencyStore + ?Sized> IdempotencyStore for Arc<T> {
    fn begin(&self, key: &RecordId, claim: &Claim) -> StoreFuture<Begin> {
        (**self).begin(key, claim)
    }

    fn renew(
        &self,
        key: &RecordId,
        nonce: Nonce,
        lease: Duration,
        end: LeaseEnd,
    ) -> StoreFuture<Owned> {
        (**self).renew(key, nonce, lease, end)
    }

    fn complete(
        &self,
        key: &RecordId,
        nonce: Nonce,
        answer: Answer,
        ttl: Duration,
    ) -> StoreFuture<Owned> {
        (**self).complete(key, nonce, answer, ttl)
    }

    fn release(&self, key: &RecordId, nonce: Nonce) -> StoreFuture<Owned> {
        (**self).release(key, nonce)
    }

    fn peek(&self, key: &RecordId) -> StoreFuture<Option<Record>> {
        (**self).peek(key)
    }

    fn resolve(&self, key: &RecordId, fence: Fence, to: Resolution) -> StoreFuture<Resolved> {
        (**self).resolve(key, fence, to)
    }

    fn purge(&self, scope: ScopeTag, page: Option<Cursor>) -> StoreFuture<Purged> {
        (**self).purge(scope, page)
    }

    fn health(&self) -> StoreFuture<Health> {
        (**self).health()
    }
}
