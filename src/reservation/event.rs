//! What is told to the application after the commit: the outbox's events.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::hold::HoldId;
use crate::core::{Timestamp, base64url};

/// What happened to a hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum EventKind {
    /// A hold was made.
    Created,
    /// Its end was moved.
    Extended,
    /// A payment was attached.
    PaymentAttached,
    /// A slow payment is under way.
    Processing,
    /// It was confirmed.
    Confirmed,
    /// It was given back.
    Released,
    /// Its time was over.
    Expired,
    /// It was cancelled.
    Cancelled,
    /// It was paid for too late: give the money back.
    LateConflict,
    /// It was paid for twice: give this payment back.
    DuplicatePayment,
}

const KINDS: [(EventKind, &str); 10] = [
    (EventKind::Created, "created"),
    (EventKind::Extended, "extended"),
    (EventKind::PaymentAttached, "payment_attached"),
    (EventKind::Processing, "processing"),
    (EventKind::Confirmed, "confirmed"),
    (EventKind::Released, "released"),
    (EventKind::Expired, "expired"),
    (EventKind::Cancelled, "cancelled"),
    (EventKind::LateConflict, "late_conflict"),
    (EventKind::DuplicatePayment, "duplicate_payment"),
];

impl EventKind {
    /// Returns the name that stores write.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        let known = KINDS.iter().find(|(kind, _)| *kind == self);
        known.map_or("", |(_, name)| name)
    }

    /// Reads the name that stores write.
    #[must_use]
    pub fn of_str(name: &str) -> Option<Self> {
        let known = KINDS.iter().find(|(_, known)| *known == name);
        known.map(|(kind, _)| *kind)
    }

    const fn bit(self) -> u16 {
        1 << self as u16
    }
}

/// Which kinds are recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventSet(u16);

impl EventSet {
    /// What must not be lost: expired, late conflict, duplicate payment.
    pub const DUE: Self = Self(
        EventKind::Expired.bit()
            | EventKind::LateConflict.bit()
            | EventKind::DuplicatePayment.bit(),
    );
    /// Nothing at all.
    pub const NONE: Self = Self(0);

    /// Every kind.
    #[must_use]
    pub const fn all() -> Self {
        Self((1 << KINDS.len()) - 1)
    }

    /// Adds a kind.
    #[must_use]
    pub const fn with(self, kind: EventKind) -> Self {
        Self(self.0 | kind.bit())
    }

    /// Says whether a kind is recorded.
    #[must_use]
    pub const fn contains(self, kind: EventKind) -> bool {
        self.0 & kind.bit() != 0
    }
}

/// The stable name of an event: the same change has the same, however often it is delivered.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EventId(Box<str>);

impl EventId {
    pub(crate) fn of_change(hold: HoldId, version: u32) -> Self {
        Self(format!("{hold}:{version}").into())
    }

    pub(crate) fn of_payment(hold: HoldId, payment: &str) -> Self {
        let digest = Sha256::digest(payment.as_bytes());
        Self(format!("{hold}:{}", base64url(&digest[..16])).into())
    }

    /// Returns the text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for EventId {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Something that happened to a hold, delivered at least once. It carries no token.
#[derive(Clone, PartialEq, Eq)]
pub struct ReservationEvent {
    /// Its stable name: use it as an idempotency key.
    pub id: EventId,
    /// What happened.
    pub kind: EventKind,
    /// To which hold.
    pub hold: HoldId,
    /// Whose hold it is; for the server, not for answers.
    pub holder: Box<str>,
    /// The payment concerned, if one is.
    pub payment: Option<Box<str>>,
    /// When.
    pub at: Timestamp,
    /// How often its delivery has failed.
    pub attempts: u32,
}

impl fmt::Debug for ReservationEvent {
    /// Holder and payment are left out: Debug text ends up in logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReservationEvent")
            .field("id", &self.id)
            .field("kind", &self.kind)
            .field("at", &self.at)
            .field("attempts", &self.attempts)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back_and_sets_contain_what_was_put_in() {
        for (kind, name) in KINDS {
            assert_eq!((EventKind::of_str(name), kind.as_str()), (Some(kind), name));
            assert!(EventSet::all().contains(kind));
            assert!(EventSet::NONE.with(kind).contains(kind));
        }
        assert!(EventSet::DUE.contains(EventKind::Expired));
        assert!(!EventSet::DUE.contains(EventKind::Confirmed));
    }
}
