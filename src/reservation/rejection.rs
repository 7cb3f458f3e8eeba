//! What a client sees when a reservation is refused: status, document, typed cause.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use http::{Response, StatusCode};

use super::hold::{HoldId, HoldState};
use super::policy;
use super::slot::SlotError;
use super::store::Blockers;
use crate::core::problem::{CONTENTION, STORE_UNAVAILABLE};
use crate::core::telemetry::seldom;
use crate::core::{Problem, RollbackCause, StoreError, StoreErrorKind, Timestamp};

/// A hold that was refused because of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Conflict {
    /// Somebody has it; until then if it is only held.
    SlotTaken {
        /// When the last hold in the way ends; `None` when it is booked.
        held_until: Option<Timestamp>,
        /// All of them are the asker's own.
        by_you: bool,
        /// Whole seconds until then, at least 1.
        retry_after: u64,
    },
    /// The asker has booked it already.
    AlreadyBookedByYou,
    /// Too few places are left.
    CapacityExceeded {
        /// So many are.
        left: u32,
    },
}

impl From<Blockers> for Conflict {
    fn from(blockers: Blockers) -> Self {
        policy::conflict(&blockers)
    }
}

/// Why an operation of the guard did not do what was asked.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum ReservationError {
    /// Others have the slot.
    Conflict(Conflict),
    /// The wish itself is impossible.
    SlotInvalid(SlotError),
    /// The slot is over, or has begun.
    SlotInPast,
    /// The schedule does not have it.
    SlotNotOffered,
    /// More than 10,000 spans are taken in the range whose availability was asked for.
    RangeTooWide,
    /// No such hold, or not the claimant's: one answer.
    HoldNotFound,
    /// No such payment.
    PaymentNotFound,
    /// The hold is over.
    HoldExpired,
    /// Not possible in this state.
    HoldState(HoldState),
    /// The payment belongs to another hold.
    PaymentInUse,
    /// The payment can be paid for longer than the hold may last.
    PaymentOutlivesHold,
    /// Locks, deadlocks, a busy database: nothing was done.
    Contention {
        /// Doing it all again at once may succeed.
        again: bool,
    },
    /// The store cannot be reached.
    StoreUnavailable {
        /// Whole seconds, 1–30.
        retry_after: u64,
    },
    /// The reply to the commit was lost.
    CommitUnknown {
        /// The holds that may or may not have been made.
        holds: Arc<[HoldId]>,
    },
    /// The transaction could only roll back.
    TransactionFailed(RollbackCause),
    /// A guard outlived its handler; nothing was stored.
    TransactionLeaked,
    /// `commit()` inside somebody else's transaction.
    NotOwner,
    /// No layer on the route, or the wrong engine.
    Misconfigured,
    /// Anything else.
    Internal,
}

impl ReservationError {
    /// Returns the code that clients see.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Conflict(Conflict::SlotTaken {
                held_until: Some(_),
                ..
            }) => "SLOT_TEMPORARILY_RESERVED",
            Self::Conflict(Conflict::SlotTaken { .. }) => "SLOT_ALREADY_BOOKED",
            Self::Conflict(Conflict::AlreadyBookedByYou) => "ALREADY_BOOKED_BY_YOU",
            Self::Conflict(Conflict::CapacityExceeded { .. }) => "CAPACITY_EXCEEDED",
            Self::SlotInvalid(_) => "SLOT_INVALID",
            Self::SlotInPast => "SLOT_IN_PAST",
            Self::SlotNotOffered => "SLOT_NOT_OFFERED",
            Self::RangeTooWide => "RANGE_TOO_WIDE",
            Self::HoldNotFound => "HOLD_NOT_FOUND",
            Self::PaymentNotFound => "PAYMENT_NOT_FOUND",
            Self::HoldExpired => "HOLD_EXPIRED",
            Self::HoldState(_) => "HOLD_STATE",
            Self::PaymentInUse => "PAYMENT_IN_USE",
            Self::PaymentOutlivesHold => "PAYMENT_OUTLIVES_HOLD",
            Self::Contention { .. } => CONTENTION,
            Self::StoreUnavailable { .. } => STORE_UNAVAILABLE,
            Self::CommitUnknown { .. } => "COMMIT_UNKNOWN",
            Self::TransactionFailed(_) => "TRANSACTION_FAILED",
            Self::TransactionLeaked => "TRANSACTION_LEAKED",
            Self::NotOwner | Self::Misconfigured => "MISCONFIGURED",
            Self::Internal => "INTERNAL",
        }
    }

    /// Returns the status that clients see.
    #[must_use]
    pub const fn status(&self) -> StatusCode {
        match self {
            Self::Conflict(_) | Self::HoldState(_) | Self::PaymentInUse => StatusCode::CONFLICT,
            Self::SlotInvalid(_) | Self::SlotInPast | Self::SlotNotOffered | Self::RangeTooWide => {
                StatusCode::UNPROCESSABLE_ENTITY
            }
            Self::HoldNotFound | Self::PaymentNotFound => StatusCode::NOT_FOUND,
            Self::HoldExpired => StatusCode::GONE,
            Self::Contention { .. }
            | Self::StoreUnavailable { .. }
            | Self::CommitUnknown { .. } => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// Says whether the client may send the same again later.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        match self {
            Self::Conflict(conflict) => matches!(
                conflict,
                Conflict::SlotTaken {
                    held_until: Some(_),
                    ..
                } | Conflict::CapacityExceeded { .. }
            ),
            Self::PaymentNotFound
            | Self::Contention { .. }
            | Self::StoreUnavailable { .. }
            | Self::CommitUnknown { .. }
            | Self::TransactionFailed(_)
            | Self::TransactionLeaked => true,
            _ => false,
        }
    }

    fn problem(&self) -> Problem {
        let problem = match self {
            Self::StoreUnavailable { retry_after } => Problem::store_unavailable(*retry_after),
            Self::Contention { .. } => Problem::contention(),
            _ => Problem::new(self.status(), self.code()).detail(self.to_string()),
        };
        let problem = problem
            .member("instance", uuid::Uuid::new_v4().urn().to_string())
            .member("retryable", self.is_retryable());
        match self {
            Self::Conflict(Conflict::SlotTaken {
                held_until: Some(end),
                by_you,
                retry_after,
            }) => problem
                .member("held_until", end.to_string())
                .member("by_you", *by_you)
                .retry_after(*retry_after),
            Self::Conflict(Conflict::CapacityExceeded { left }) => problem.member("left", *left),
            Self::HoldState(state) => problem.member("state", state.as_str()),
            Self::CommitUnknown { holds } => {
                let holds: Vec<String> = holds.iter().map(HoldId::to_string).collect();
                problem.member("holds", holds).retry_after(5)
            }
            _ => problem,
        }
    }
}

impl fmt::Display for ReservationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Conflict(Conflict::SlotTaken {
                held_until: Some(_),
                ..
            }) => "the slot is held, it may become free",
            Self::Conflict(Conflict::SlotTaken { .. }) => "the slot is booked",
            Self::Conflict(Conflict::AlreadyBookedByYou) => "you have booked this already",
            Self::Conflict(Conflict::CapacityExceeded { .. }) => "too few places are left",
            Self::SlotInvalid(why) => return why.fmt(f),
            Self::SlotInPast => "the slot lies in the past",
            Self::SlotNotOffered => "the slot is not offered",
            Self::RangeTooWide => {
                "more than 10,000 spans are taken in this range, ask for a shorter one"
            }
            Self::HoldNotFound => "there is no such hold",
            Self::PaymentNotFound => "there is no such payment",
            Self::HoldExpired => "the hold is over",
            Self::HoldState(_) => "the hold does not allow it any more",
            Self::PaymentInUse => "the payment belongs to another hold",
            Self::PaymentOutlivesHold => "the payment can be paid for longer than the hold lasts",
            Self::Contention { .. } => "too many requests want the same thing, nothing was done",
            Self::StoreUnavailable { .. } => "the store cannot be reached",
            Self::CommitUnknown { .. } => "it is unknown whether this was stored, ask for the hold",
            Self::TransactionFailed(_) => "the request could not be completed, nothing was stored",
            Self::TransactionLeaked => "the request could not be completed, nothing was stored",
            Self::NotOwner => "the transaction belongs to an outer layer",
            Self::Misconfigured | Self::Internal => "the request could not be completed",
        })
    }
}

impl std::error::Error for ReservationError {}

impl From<Conflict> for ReservationError {
    fn from(conflict: Conflict) -> Self {
        Self::Conflict(conflict)
    }
}

impl From<SlotError> for ReservationError {
    fn from(error: SlotError) -> Self {
        Self::SlotInvalid(error)
    }
}

impl From<StoreError> for ReservationError {
    /// The store's text goes to the log and nowhere else.
    fn from(problem: StoreError) -> Self {
        match problem.kind() {
            StoreErrorKind::Contention => Self::Contention {
                again: super::store::is_worth_again(&problem),
            },
            StoreErrorKind::Unavailable | StoreErrorKind::TimedOut | StoreErrorKind::Full => {
                seldom!(error, error = ?problem, "the reservation store did not answer");
                Self::StoreUnavailable {
                    retry_after: problem.retry_after_secs(),
                }
            }
            _ => {
                seldom!(error, error = ?problem, "the reservation store failed");
                Self::TransactionFailed(RollbackCause::Poisoned)
            }
        }
    }
}

impl ReservationError {
    /// What a store says that was asked for a calendar.
    pub(super) fn of_availability(problem: StoreError) -> Self {
        if problem.kind() == StoreErrorKind::TooLarge {
            return Self::RangeTooWide;
        }
        problem.into()
    }
}

/// Why the layer or the guard refused; in the response extensions, and the error type of handlers.
#[derive(Clone, Debug)]
pub struct ReservationRejection {
    error: ReservationError,
}

impl ReservationRejection {
    /// Returns what happened.
    #[must_use]
    pub const fn error(&self) -> &ReservationError {
        &self.error
    }

    /// Returns the code that clients see.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        self.error.code()
    }

    /// Returns the status that clients see.
    #[must_use]
    pub const fn status(&self) -> StatusCode {
        self.error.status()
    }

    /// Makes the problem document, with this cause in its extensions.
    #[must_use]
    pub fn response(&self) -> Response<Bytes> {
        let mut response = self.error.problem().response();
        response.extensions_mut().insert(self.clone());
        response
    }
}

impl From<ReservationError> for ReservationRejection {
    fn from(error: ReservationError) -> Self {
        Self { error }
    }
}

impl From<SlotError> for ReservationRejection {
    fn from(error: SlotError) -> Self {
        ReservationError::from(error).into()
    }
}

impl fmt::Display for ReservationRejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for ReservationRejection {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_what_the_page_of_codes_says_of_it() {
        let taken = |held_until| {
            ReservationError::Conflict(Conflict::SlotTaken {
                held_until,
                by_you: false,
                retry_after: 1,
            })
        };
        let holds = Arc::from([]);
        for error in [
            taken(Some(Timestamp::MAX)),
            taken(None),
            ReservationError::Conflict(Conflict::AlreadyBookedByYou),
            ReservationError::Conflict(Conflict::CapacityExceeded { left: 1 }),
            ReservationError::SlotInvalid(SlotError::Range),
            ReservationError::SlotInPast,
            ReservationError::SlotNotOffered,
            ReservationError::RangeTooWide,
            ReservationError::HoldNotFound,
            ReservationError::PaymentNotFound,
            ReservationError::HoldExpired,
            ReservationError::HoldState(HoldState::Released),
            ReservationError::PaymentInUse,
            ReservationError::PaymentOutlivesHold,
            ReservationError::Contention { again: false },
            ReservationError::StoreUnavailable { retry_after: 1 },
            ReservationError::CommitUnknown { holds },
            ReservationError::TransactionFailed(RollbackCause::Poisoned),
            ReservationError::TransactionLeaked,
            ReservationError::NotOwner,
            ReservationError::Misconfigured,
            ReservationError::Internal,
        ] {
            let says = Some((error.status().as_u16(), error.is_retryable()));
            assert_eq!(
                says,
                crate::problem_codes::promised(error.code()),
                "{error:?}"
            );
        }
    }
}
