//! What goes into a store of holds and what comes out.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::core::{RollbackCause, Timestamp};
use crate::reservation::event::EventSet;
use crate::reservation::hold::{Claimant, HoldId, HoldState, Payment, TokenHash};
use crate::reservation::policy;
use crate::reservation::slot::Slot;

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

impl HoldWish {
    /// The hold that it becomes where it is granted `at` that time.
    pub(super) fn granted(&self, at: Timestamp) -> HoldRecord {
        HoldRecord {
            id: self.id,
            holder: self.holder.clone(),
            key: self.key.clone(),
            token: self.token,
            state: HoldState::Held,
            slots: Arc::clone(&self.slots),
            created_at: at,
            expires_at: Some(at.plus(self.hold_for)),
            changed_at: at,
            version: 1,
            read_at: at,
        }
    }
}

/// What became of a wish.
#[derive(Clone, Debug)]
pub enum HoldDecision {
    /// Held.
    Created(HoldRecord),
    /// The same wish has its own running hold: that one, unchanged but for its version, which tells that somebody
    /// else relies on it, too.
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
    Compensate {
        /// The hold's version as that request left it: any other says that somebody else has had it since.
        left_at: u32,
    },
    /// Takes a confirmed hold back.
    Cancel {
        /// Who asks.
        claimant: Claimant,
    },
}

impl Change {
    /// Returns the payment that comes with it.
    pub(crate) const fn carried(&self) -> Option<&Payment> {
        match self {
            Self::Attach { payment, .. } => Some(payment),
            Self::Confirm { paid_by, .. } => paid_by.as_ref(),
            _ => None,
        }
    }
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
        policy::state_at(self.state, self.expires_at, now)
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

/// What a batch of a sweep did, and what it found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SweptBatch {
    /// Holds that this sweep ended.
    pub expired: u64,
    /// Holds and delivered events that were removed.
    pub purged: u64,
    /// For how long the first of the due holds had been over; zero if none was.
    pub lag: Duration,
    /// Events not delivered and not parked, counted up to 100,000; told when there was no more to sweep.
    pub pending: Option<u64>,
}

impl SweptBatch {
    /// Says whether there was no more to sweep. Whoever did nothing at all is not asked again, though nothing was counted.
    #[must_use]
    pub const fn is_last(&self) -> bool {
        self.pending.is_some() || (self.expired == 0 && self.purged == 0)
    }
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
