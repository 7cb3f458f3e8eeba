//! Where queues live: one atomic step per method.

mod fallback;
#[cfg(feature = "conformance")]
mod fault;
mod memory;
#[cfg(feature = "redis")]
mod redis;
mod room;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod sql;
mod values;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub use sql::QueueEngine;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub(super) use sql::register;
pub use values::{
    Again, Attempt, Claim, DEAD_KEPT, DEAD_KEPT_FOR, DIGEST_BYTES, Depth, DigestWish, Due,
    EnqueueOutcome, JobId, JobState, LEASE_BYTES, LONGEST_ERROR, Leased, Listed, Listing, NewJob,
    NotAJobId, Priority, QueueName, Rules, SWEPT_AT_ONCE, Settle, Settled, Swept, Token,
};

use crate::core::{Key, NoticeCallback, StoreFuture, Subscription};

/// Keeps jobs until they are acked, cancelled or dead.
///
/// # Behaviour
/// - Every method is one atomic step. Times are whole milliseconds of the passed clock if any, else the engine's.
/// - Ready jobs are ordered by priority, due time, enqueueing; with aging by due time + priority × aging, enqueueing.
/// - No job is ready before it is due. Unless leased it is dead, `expired`, from `expire_after` after it was due.
/// - `lease`, `list`, `count`, and an `enqueue` without room first put some of what is over away, a bounded number: they take
///   back leases that ended (ready again, or dead after the last attempt), promote jobs that are due, bury those that
///   expired, and forget dead letters over the limits and ids whose time is over and whose job is gone. A `lease` may leave
///   what nobody would get meanwhile (the last three) to another one, as long as they do not pile up: whoever buries
///   forgets as many dead letters that are too many. An `enqueue` is refused only where what is over makes no room.
/// - An id that was given once is known while its job lives. One that is over does not, though nobody has buried it yet, but
///   for one that is leased.
/// - Nothing is ever evicted.
pub trait QueueStore: fmt::Debug + Send + Sync + 'static {
    /// Adds jobs, all or none.
    ///
    /// # Behaviour
    /// In order, each: an id known from `once` → [`EnqueueOutcome::Duplicate`], or `Replaced` where that is asked for
    /// and the job is this recipient's, was never leased and has one item; an open digest of the same recipient and key
    /// with room → `Joined`; else `New`.
    /// A digest is due one window after its first item, at once when it is full; a lease closes it.
    ///
    /// # Errors
    /// `Full`: the queue or a recipient has no room, nothing was added. `Unavailable`, `TimedOut`: unknown.
    fn enqueue(
        &self,
        queue: &QueueName,
        jobs: Vec<NewJob>,
        rules: &Rules,
    ) -> StoreFuture<Vec<EnqueueOutcome>>;

    /// Leases the first ready job, and up to `most` - 1 more of its recipient and priority; of a given recipient, any.
    ///
    /// # Behaviour
    /// Counts the attempt. At the lease's end the job is ready again, or dead after the last attempt. Stops early
    /// where the payloads exceed 1 MiB.
    ///
    /// # Errors
    /// As the engine has them; what was leased without an answer returns at its end.
    fn lease(&self, queue: &QueueName, claim: Claim, rules: &Rules) -> StoreFuture<Leased>;

    /// Ends jobs for good.
    ///
    /// # Behaviour
    /// Only under the token of a lease that runs; else nothing is changed: [`Settled::Lost`], or `Gone` where there is no
    /// such job any more.
    ///
    /// # Errors
    /// As the engine has them; a repeat finds jobs gone.
    fn ack(&self, queue: &QueueName, token: Token, ids: Vec<JobId>) -> StoreFuture<Vec<Settled>>;

    /// Gives jobs back before the lease's end: to be tried later, by nobody, or as if never leased.
    ///
    /// # Behaviour
    /// As `ack`. After the last attempt a retry is a death.
    ///
    /// # Errors
    /// As the engine has them.
    fn nack(
        &self,
        queue: &QueueName,
        token: Token,
        jobs: Vec<(JobId, Settle)>,
        rules: &Rules,
    ) -> StoreFuture<Vec<Settled>>;

    /// Moves the end of leases to `lease` from now.
    ///
    /// # Behaviour
    /// As `ack`.
    ///
    /// # Errors
    /// As the engine has them; a repeat is harmless.
    fn extend(
        &self,
        queue: &QueueName,
        token: Token,
        ids: Vec<JobId>,
        lease: Duration,
    ) -> StoreFuture<Vec<Settled>>;

    /// Removes jobs of `recipient` that are neither leased nor dead; returns those.
    ///
    /// # Errors
    /// As the engine has them.
    fn cancel(
        &self,
        queue: &QueueName,
        recipient: &Key,
        ids: Vec<JobId>,
    ) -> StoreFuture<Vec<JobId>>;

    /// Shows jobs: of a recipient those leased, ready and delayed, in this order; by id; or the dead, last first.
    ///
    /// # Behaviour
    /// Which jobs is one step. Where their payloads exceed 1 MiB they may be read in several: each is shown once, as it is then.
    ///
    /// # Errors
    /// As the engine has them.
    fn list(&self, queue: &QueueName, listing: Listing, rules: &Rules) -> StoreFuture<Vec<Listed>>;

    /// Counts the jobs of the whole queue, or of one recipient (dead letters only for the whole).
    ///
    /// # Errors
    /// As the engine has them.
    fn count(
        &self,
        queue: &QueueName,
        recipient: Option<&Key>,
        rules: &Rules,
    ) -> StoreFuture<Depth>;

    /// Makes dead letters ready, with fresh attempts; returns those. An id that was forgotten meanwhile stays so.
    ///
    /// # Errors
    /// `Full`: no room, none was revived.
    fn revive(&self, queue: &QueueName, ids: Vec<JobId>, rules: &Rules) -> StoreFuture<Vec<JobId>>;

    /// Calls back when a job became ready in an empty queue, or will be before all others. Any call may be lost.
    ///
    /// # Errors
    /// As the engine has them.
    fn subscribe(&self, queue: &QueueName, callback: NoticeCallback) -> StoreFuture<Subscription>;

    /// Lets the handle remember that the service `name` keeps `what`; returns `true` the first time that it was told
    /// something else, since one of the two then reads what it cannot understand.
    fn contradicts(&self, name: &str, what: &str) -> bool;
}

/// Writes the methods of [`QueueStore`] that hand everything to another store.
macro_rules! delegate {
    (|$own:ident| $to:expr) => {
        fn enqueue(
            &self,
            queue: &QueueName,
            jobs: Vec<NewJob>,
            rules: &Rules,
        ) -> StoreFuture<Vec<EnqueueOutcome>> {
            let $own = self;
            $to.enqueue(queue, jobs, rules)
        }

        fn lease(&self, queue: &QueueName, claim: Claim, rules: &Rules) -> StoreFuture<Leased> {
            let $own = self;
            $to.lease(queue, claim, rules)
        }

        fn ack(
            &self,
            queue: &QueueName,
            token: Token,
            ids: Vec<JobId>,
        ) -> StoreFuture<Vec<Settled>> {
            let $own = self;
            $to.ack(queue, token, ids)
        }

        fn nack(
            &self,
            queue: &QueueName,
            token: Token,
            jobs: Vec<(JobId, Settle)>,
            rules: &Rules,
        ) -> StoreFuture<Vec<Settled>> {
            let $own = self;
            $to.nack(queue, token, jobs, rules)
        }

        fn extend(
            &self,
            queue: &QueueName,
            token: Token,
            ids: Vec<JobId>,
            lease: Duration,
        ) -> StoreFuture<Vec<Settled>> {
            let $own = self;
            $to.extend(queue, token, ids, lease)
        }

        fn cancel(
            &self,
            queue: &QueueName,
            recipient: &Key,
            ids: Vec<JobId>,
        ) -> StoreFuture<Vec<JobId>> {
            let $own = self;
            $to.cancel(queue, recipient, ids)
        }

        fn list(
            &self,
            queue: &QueueName,
            listing: Listing,
            rules: &Rules,
        ) -> StoreFuture<Vec<Listed>> {
            let $own = self;
            $to.list(queue, listing, rules)
        }

        fn count(
            &self,
            queue: &QueueName,
            recipient: Option<&Key>,
            rules: &Rules,
        ) -> StoreFuture<Depth> {
            let $own = self;
            $to.count(queue, recipient, rules)
        }

        fn revive(
            &self,
            queue: &QueueName,
            ids: Vec<JobId>,
            rules: &Rules,
        ) -> StoreFuture<Vec<JobId>> {
            let $own = self;
            $to.revive(queue, ids, rules)
        }

        fn subscribe(
            &self,
            queue: &QueueName,
            callback: NoticeCallback,
        ) -> StoreFuture<Subscription> {
            let $own = self;
            $to.subscribe(queue, callback)
        }

        fn contradicts(&self, name: &str, what: &str) -> bool {
            let $own = self;
            $to.contradicts(name, what)
        }
    };
}
use delegate;

impl<T: QueueStore + ?Sized> QueueStore for Arc<T> {
    delegate!(|own| (**own));
}
