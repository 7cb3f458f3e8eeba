//! Where holds live: the trait, what goes in and what comes out.

mod memory;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod sql;
mod steps;

#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub(crate) use sql::{is_on, request_of};

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::Extensions;
use serde::Serialize;

use super::event::{EventId, EventSet, ReservationEvent};
use super::hold::{Claimant, HoldId, HoldRef, HoldState, Payment, TokenHash};
use super::slot::Slot;
use crate::core::{
    AfterWork, Ending, RollbackCause, StoreError, StoreErrorKind, StoreFuture, Timestamp, Vote,
};

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

    /// Ends due holds, at most a batch, each counted by exactly one sweeper; removes what is long closed.
    ///
    /// # Errors
    /// The store's; nothing was swept then.
    fn sweep(&self, limits: SweepLimits) -> StoreFuture<SweptBatch>;

    /// Takes due events for `lease`, oldest first.
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
    /// The store's; the transaction is doomed.
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

/// How a transaction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It is durable.
    Committed,
    /// Nothing of it was stored.
    RolledBack(RollbackCause),
    /// The reply to the commit was lost.
    Unknown,
    /// Somebody else finishes it; the vote was cast.
    Member,
}

/// A wish for a hold; everything in it has been checked.
#[derive(Clone, Debug)]
pub struct HoldWish {
    /// What the hold will be called.
    pub id: HoldId,
    /// Sorted by lane and start, without overlaps.
    pub slots: Arc<[Slot]>,
    /// Whose it will be.
    pub holder: Box<str>,
    /// Tells apart two wishes of one holder for the same slots.
    pub key: Box<str>,
    /// The hash of its token.
    pub token: TokenHash,
    /// Its life.
    pub hold_for: Duration,
    /// Which events are written.
    pub record: EventSet,
}

/// What became of a wish.
#[derive(Clone, Debug)]
pub enum HoldDecision {
    /// Held.
    Created(HoldRecord),
    /// The same wish has its own running hold: that one, unchanged.
    Reused(HoldRecord),
    /// Others are in the way.
    Taken(Blockers),
    /// So many places are left.
    Full {
        /// Places left at the busiest instant.
        left: u32,
    },
}

/// All that leaves the store about what is in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blockers {
    /// Some of them are confirmed.
    pub booked: bool,
    /// Some of them are confirmed, and the asker's own.
    pub booked_by_you: bool,
    /// When the last of those that can expire does.
    pub held_until: Timestamp,
    /// All of them are the asker's own.
    pub by_you: bool,
    /// The store's time of this answer.
    pub now: Timestamp,
}

/// What should become of a hold.
#[derive(Clone, Debug)]
pub enum Change {
    /// Moves the end.
    Extend {
        /// Who asks.
        claimant: Claimant,
        /// The new end, from now.
        by: Duration,
        /// The latest end, from creation.
        at_most: Duration,
    },
    /// Attaches a payment.
    Attach {
        /// Which.
        payment: Payment,
        /// The latest end, from creation.
        at_most: Duration,
    },
    /// A slow payment is under way.
    Processing {
        /// The new end, from now.
        lasting: Duration,
        /// The latest end, from creation.
        at_most: Duration,
    },
    /// It was paid for.
    Confirm {
        /// Attaches this payment in the same step.
        paid_by: Option<Payment>,
        /// What becomes of it when it comes too late.
        late: LateConfirm,
    },
    /// Gives the slots back.
    Release {
        /// Who asks.
        claimant: Claimant,
    },
    /// Releases what is still held, for a request that failed after its commit.
    Compensate,
    /// Takes a confirmed hold back.
    Cancel {
        /// Who asks.
        claimant: Claimant,
    },
}

/// What a confirmation of a hold that is over becomes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LateConfirm {
    /// Confirmed, if all slots are still free.
    #[default]
    IfFree,
    /// Always a late conflict.
    Reject,
}

/// What became of a change.
#[derive(Clone, Debug)]
pub enum ChangeDecision {
    /// Done; or, for a confirmation, confirmed.
    Done(HoldRecord),
    /// It was so already.
    Same(HoldRecord),
    /// It was confirmed before.
    AlreadyConfirmed(HoldRecord),
    /// Too late, and somebody else has the slots.
    LateConflict(HoldRecord),
    /// Another payment was first.
    DuplicatePayment(HoldRecord),
    /// There is no such hold, or it is not the claimant's: one answer.
    NotFound,
    /// There is no such payment.
    PaymentNotFound,
    /// The hold is over.
    Expired,
    /// Not possible in this state.
    State(HoldState),
    /// The payment belongs to another hold.
    PaymentInUse,
    /// The payment can be paid for longer than the hold may last.
    PaymentOutlivesHold,
}

/// A hold as it is stored.
#[derive(Clone, Debug)]
pub struct HoldRecord {
    /// Its name.
    pub id: HoldId,
    /// Whose it is.
    pub holder: Box<str>,
    /// The key of its wish.
    pub key: Box<str>,
    /// The hash of its token.
    pub token: TokenHash,
    /// The stored state; see [`state_at`](Self::state_at).
    pub state: HoldState,
    /// Its slots, sorted.
    pub slots: Arc<[Slot]>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it expires, if it can.
    pub expires_at: Option<Timestamp>,
    /// When it was last changed.
    pub changed_at: Timestamp,
    /// How often it was changed, from 1.
    pub version: u32,
    /// The store's time when it was read.
    pub read_at: Timestamp,
}

impl HoldRecord {
    /// Returns the state at `now`: one that is over reads expired, whether or not anybody has noticed.
    #[must_use]
    pub fn state_at(&self, now: Timestamp) -> HoldState {
        super::policy::state_at(self.state, self.expires_at, now)
    }
}

/// A payment as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PaymentRecord {
    /// Its name.
    pub payment: Box<str>,
    /// The one hold it belongs to.
    pub hold: HoldId,
    /// Until when it can be paid.
    pub valid_until: Option<Timestamp>,
    /// What it turned out to be.
    pub standing: Standing,
}

/// What a payment turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Attached, not paid as far as we know.
    Attached,
    /// The one that paid for the hold.
    Paid,
    /// Paid after another: to be given back.
    Duplicate,
    /// Paid too late: to be given back.
    Late,
}

impl Standing {
    /// Returns the number that stores write.
    #[must_use]
    pub const fn code(self) -> i16 {
        match self {
            Self::Attached => 0,
            Self::Paid => 1,
            Self::Duplicate => 2,
            Self::Late => 3,
        }
    }

    /// Reads the number that stores write.
    #[must_use]
    pub const fn of_code(code: i16) -> Self {
        match code {
            1 => Self::Paid,
            2 => Self::Duplicate,
            3 => Self::Late,
            _ => Self::Attached,
        }
    }
}

/// Which part of which resource's calendar is asked for.
#[derive(Clone, Debug)]
pub struct AvailabilityQuery {
    /// The resource.
    pub resource: Box<str>,
    /// From when.
    pub from: Timestamp,
    /// Until when.
    pub to: Timestamp,
}

/// A span of a lane that is not free.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Busy {
    /// The unit.
    pub unit: Box<str>,
    /// The start as shown.
    pub start: Timestamp,
    /// The end as shown.
    pub end: Timestamp,
    /// From when it blocks, buffer included.
    #[serde(skip)]
    pub blocks_from: Timestamp,
    /// Until when it blocks, buffer included.
    #[serde(skip)]
    pub blocks_to: Timestamp,
    /// Held or booked.
    #[serde(flatten)]
    pub state: BusyState,
    /// How many places.
    pub units: u32,
}

/// How a span is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", content = "until", rename_all = "snake_case")]
pub enum BusyState {
    /// Until then at most, unless it is confirmed.
    Held(Timestamp),
    /// For good.
    Booked,
}

/// How much a sweep does.
#[derive(Clone, Copy, Debug)]
pub struct SweepLimits {
    /// At most so many holds are ended.
    pub batch: u32,
    /// Closed holds are removed after that time.
    pub keep_closed: Duration,
    /// Which events are written.
    pub record: EventSet,
}

/// What a sweep did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SweptBatch {
    /// Holds that this sweep ended.
    pub expired: u64,
    /// Holds and delivered events that were removed.
    pub purged: u64,
}

/// How a delivery went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// The application took it.
    Delivered,
    /// It failed: again after a pause, parked after 20 times.
    Failed,
    /// From the beginning, whatever became of it.
    Again,
}

impl<T: ReservationStore + ?Sized> ReservationStore for Arc<T> {
    fn now(&self) -> Timestamp {
        (**self).now()
    }

    fn open(&self, request: Option<&mut Extensions>) -> Arc<dyn ReservationTransaction> {
        (**self).open(request)
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
