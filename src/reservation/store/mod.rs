//! Where holds live: the trait, what goes in and what comes out.

mod calendar;
mod memory;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod sql;
mod steps;
mod values;

#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub(crate) use sql::{is_on, request_of, schema};

use std::any::Any;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use http::Extensions;

pub use self::values::{
    AvailabilityQuery, Blockers, Busy, BusyState, Change, ChangeDecision, Delivery, Ended,
    HoldDecision, HoldRecord, HoldWish, LateConfirm, PaymentRecord, Standing, SweepLimits,
    SweptBatch,
};
use super::event::{EventId, EventSet, ReservationEvent};
use super::hold::HoldRef;
use crate::core::{AfterWork, Ending, StoreError, StoreErrorKind, StoreFuture, Timestamp, Vote};

/// Keeps holds. Each method is one transaction of its own.
///
/// # Behaviour
/// - No two live exclusive holds ever overlap in a lane, and no counted lane is ever over its capacity.
/// - At exactly `expires_at` a held or processing hold is over: it blocks nothing and reads expired.
/// - An expiry is written once, by whoever finds it first.
/// - A call that refuses leaves nothing of itself.
pub trait ReservationStore: fmt::Debug + Send + Sync + 'static {
    /// Returns the time by which this store decides.
    fn now(&self) -> Timestamp;

    /// Joins the request's transaction, or prepares one of its own. No I/O.
    fn open(&self, request: Option<&mut Extensions>) -> Arc<dyn ReservationTransaction>;

    /// The same, to lie where the request is kept.
    #[doc(hidden)]
    fn lend(&self, request: Option<&mut Extensions>) -> Opened {
        Opened(Kept::Shared(self.open(request)))
    }

    /// Holds, in a step of its own.
    ///
    /// # Errors
    /// The store's; nothing is held then, unless it is unknown.
    fn hold(&self, wish: HoldWish) -> StoreFuture<HoldDecision>;

    /// Finds a hold as it was committed.
    ///
    /// # Errors
    /// The store's.
    fn find(&self, by: HoldRef) -> StoreFuture<Option<HoldRecord>>;

    /// Lists what blocks a resource, ordered by unit and start.
    ///
    /// # Errors
    /// The store's; [`TooLarge`](crate::core::StoreErrorKind::TooLarge) beyond 10,000 spans.
    fn availability(&self, query: AvailabilityQuery) -> StoreFuture<Vec<Busy>>;

    /// Ends due holds, at most a batch, each counted by exactly one sweeper; removes what is long closed. Whoever finds
    /// less than a batch of each tells how many events wait ([`SweptBatch::pending`]): that sweep is over.
    ///
    /// # Errors
    /// The store's; nothing was swept then.
    fn sweep(&self, limits: SweepLimits) -> StoreFuture<SweptBatch>;

    /// Makes or upgrades what the store keeps things in; done by itself before the first step.
    ///
    /// # Errors
    /// The store's.
    fn migrate(&self) -> StoreFuture<()> {
        StoreFuture::ok(())
    }

    /// Resolves when this process may have written events since the last time. It only saves time: a
    /// store that cannot tell never resolves it.
    fn told(&self) -> StoreFuture<()> {
        StoreFuture::boxed(std::future::pending())
    }

    /// Takes the events that became due first for `lease`; those of one batch come oldest first.
    ///
    /// # Errors
    /// The store's.
    fn take_events(&self, limit: u32, lease: Duration) -> StoreFuture<Vec<ReservationEvent>>;

    /// Writes how deliveries went.
    ///
    /// # Errors
    /// The store's; the events are delivered again then.
    fn settle_events(&self, outcomes: Vec<(EventId, Delivery)>) -> StoreFuture<()>;
}

/// One open transaction. Each operation is all or nothing within it; `end` makes the whole one step.
///
/// # Behaviour
/// - A refused operation leaves nothing of itself and the transaction usable.
/// - An operation dropped before its answer dooms the transaction: it can only roll back.
/// - After `commit` the next operation begins a new transaction; after `end` every operation fails.
/// - Dropped without `end`, it rolls back.
pub trait ReservationTransaction: fmt::Debug + Send + Sync + 'static {
    /// Holds.
    ///
    /// # Errors
    /// The store's; the transaction is doomed.
    fn hold(&self, wish: HoldWish) -> StoreFuture<HoldDecision>;

    /// Changes a hold. `record` says which events are written with it.
    ///
    /// # Errors
    /// The store's; the transaction is doomed.
    fn change(
        &self,
        target: HoldRef,
        change: Change,
        record: EventSet,
    ) -> StoreFuture<ChangeDecision>;

    /// Finds a hold, own writes included.
    ///
    /// # Errors
    /// The store's; the transaction is doomed.
    fn find(&self, by: HoldRef) -> StoreFuture<Option<HoldRecord>>;

    /// Lists what blocks a resource, own writes included.
    ///
    /// # Errors
    /// The store's; the transaction is doomed. [`TooLarge`](crate::core::StoreErrorKind::TooLarge) beyond 10,000 spans,
    /// which dooms nothing.
    fn availability(&self, query: AvailabilityQuery) -> StoreFuture<Vec<Busy>>;

    /// Says how the transaction should end; one vote for a rollback decides.
    fn vote(&self, vote: Vote);

    /// Registers work for after the end.
    fn after(&self, work: AfterWork);

    /// Commits what was written so far. [`Ended::Member`] if somebody else finishes: nothing was done.
    ///
    /// # Errors
    /// Never for a refusal: that is in [`Ended`].
    fn commit(&self) -> StoreFuture<Ended>;

    /// Ends it. Started at the call: dropping the answer changes nothing. A rollback takes its cause from
    /// the votes.
    ///
    /// # Errors
    /// Never for a refusal: that is in [`Ended`].
    fn end(&self, ending: Ending) -> StoreFuture<Ended>;

    /// The typed guard finds its connection here.
    fn as_any(&self) -> &dyn Any;
}

/// An open transaction, as its request keeps it.
#[doc(hidden)]
#[derive(Debug)]
pub struct Opened(Kept);

#[derive(Debug)]
enum Kept {
    #[cfg(any(feature = "sqlite", feature = "postgres"))]
    Sql(sql::SqlReservations),
    Shared(Arc<dyn ReservationTransaction>),
}

impl Deref for Opened {
    type Target = dyn ReservationTransaction;

    fn deref(&self) -> &Self::Target {
        match &self.0 {
            #[cfg(any(feature = "sqlite", feature = "postgres"))]
            Kept::Sql(own) => own,
            Kept::Shared(other) => &**other,
        }
    }
}

impl<T: ReservationStore + ?Sized> ReservationStore for Arc<T> {
    fn now(&self) -> Timestamp {
        (**self).now()
    }

    fn open(&self, request: Option<&mut Extensions>) -> Arc<dyn ReservationTransaction> {
        (**self).open(request)
    }

    fn lend(&self, request: Option<&mut Extensions>) -> Opened {
        (**self).lend(request)
    }

    fn hold(&self, wish: HoldWish) -> StoreFuture<HoldDecision> {
        (**self).hold(wish)
    }

    fn find(&self, by: HoldRef) -> StoreFuture<Option<HoldRecord>> {
        (**self).find(by)
    }

    fn availability(&self, query: AvailabilityQuery) -> StoreFuture<Vec<Busy>> {
        (**self).availability(query)
    }

    fn sweep(&self, limits: SweepLimits) -> StoreFuture<SweptBatch> {
        (**self).sweep(limits)
    }

    fn migrate(&self) -> StoreFuture<()> {
        (**self).migrate()
    }

    fn told(&self) -> StoreFuture<()> {
        (**self).told()
    }

    fn take_events(&self, limit: u32, lease: Duration) -> StoreFuture<Vec<ReservationEvent>> {
        (**self).take_events(limit, lease)
    }

    fn settle_events(&self, outcomes: Vec<(EventId, Delivery)>) -> StoreFuture<()> {
        (**self).settle_events(outcomes)
    }
}

/// The most spans of one availability answer.
pub(crate) const MOST_SPANS: usize = 10_000;
/// Failures after which an event is parked.
pub(crate) const MOST_ATTEMPTS: u32 = 20;
/// How long delivered events are kept.
pub(crate) const KEEP_DELIVERED: Duration = Duration::from_secs(7 * 86_400);

/// Says whether the whole transaction may succeed when it is done again at once: after a deadlock, not
/// after a lock timeout.
pub(crate) fn is_worth_again(error: &StoreError) -> bool {
    #[cfg(any(feature = "sqlite", feature = "postgres"))]
    if let Some(source) = std::error::Error::source(error) {
        let known = source.downcast_ref::<crate::backend::sql::TransactionError>();
        return known.is_some_and(crate::backend::sql::TransactionError::is_retryable);
    }
    let _ = error;
    false
}

/// Refuses an answer that is too long to be useful.
pub(crate) fn bounded(spans: Result<Vec<Busy>, StoreError>) -> Result<Vec<Busy>, StoreError> {
    match spans {
        Ok(spans) if spans.len() > MOST_SPANS => Err(StoreErrorKind::TooLarge.into()),
        other => other,
    }
}

/// Returns the pause before the next delivery of an event that has failed so often.
pub(crate) fn event_pause(attempts: u32) -> Duration {
    Duration::from_secs(1_u64 << attempts.saturating_sub(1).min(12)).min(Duration::from_secs(3_600))
}
