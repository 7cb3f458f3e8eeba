//! A hold, how it is named, who may claim it, and what pays for it.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use uuid::Uuid;

use super::slot::{Slot, is_text};
use super::store::HoldRecord;
use crate::core::{Timestamp, base64url};

/// The name of a hold: a UUID of version 7 (RFC 9562), so that ids sort by their making.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct HoldId(Uuid);

impl HoldId {
    pub(crate) fn fresh(now: Timestamp) -> Self {
        let millis = now.as_millis();
        let at = uuid::Timestamp::from_unix(
            uuid::NoContext,
            millis / 1_000,
            u32::try_from(millis % 1_000).unwrap_or(0) * 1_000_000,
        );
        Self(Uuid::new_v7(at))
    }

    /// Returns the UUID.
    #[must_use]
    pub const fn as_uuid(self) -> Uuid {
        self.0
    }
}

impl From<Uuid> for HoldId {
    fn from(id: Uuid) -> Self {
        Self(id)
    }
}

impl FromStr for HoldId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, uuid::Error> {
        text.parse().map(Self)
    }
}

impl fmt::Display for HoldId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Proves that its bearer made the hold: 128 random bits, shown once, stored as a hash.
#[derive(Clone, PartialEq, Eq)]
pub struct HoldToken(Box<str>);

impl HoldToken {
    pub(crate) fn fresh() -> Result<Self, getrandom::Error> {
        let mut bits = [0_u8; 16];
        getrandom::fill(&mut bits)?;
        Ok(Self(base64url(&bits).into()))
    }

    pub(crate) fn hash(&self) -> TokenHash {
        TokenHash(Sha256::digest(self.0.as_bytes()).into())
    }

    /// Returns the secret text.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<&str> for HoldToken {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl fmt::Debug for HoldToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HoldToken(…)")
    }
}

impl Serialize for HoldToken {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// SHA-256 of a token; compared in constant time.
#[derive(Clone, Copy)]
pub struct TokenHash(pub [u8; 32]);

impl TokenHash {
    /// Compares in constant time.
    #[must_use]
    pub fn matches(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenHash(…)")
    }
}

/// Where a hold stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HoldState {
    /// Blocks its slots until it expires.
    Held,
    /// Blocks while a slow payment is under way.
    Processing,
    /// Blocks for good.
    Confirmed,
    /// Given back.
    Released,
    /// Its time was over.
    Expired,
    /// Was confirmed, and taken back.
    Cancelled,
    /// Was paid for too late: somebody else has the slots, or late payments are refused.
    LateConflict,
}

impl HoldState {
    /// Returns the number that stores write.
    #[must_use]
    pub const fn code(self) -> i16 {
        match self {
            Self::Held => 1,
            Self::Processing => 2,
            Self::Confirmed => 3,
            Self::Released => 4,
            Self::Expired => 5,
            Self::Cancelled => 6,
            Self::LateConflict => 7,
        }
    }

    /// Reads the number that stores write.
    #[must_use]
    pub const fn of_code(code: i16) -> Option<Self> {
        Some(match code {
            1 => Self::Held,
            2 => Self::Processing,
            3 => Self::Confirmed,
            4 => Self::Released,
            5 => Self::Expired,
            6 => Self::Cancelled,
            7 => Self::LateConflict,
            _ => return None,
        })
    }

    /// Returns the name as it is in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Processing => "processing",
            Self::Confirmed => "confirmed",
            Self::Released => "released",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
            Self::LateConflict => "late_conflict",
        }
    }

    /// Says whether slots are blocked in this state, as long as it has not expired.
    #[must_use]
    pub const fn blocks(self) -> bool {
        matches!(self, Self::Held | Self::Processing | Self::Confirmed)
    }

    /// Says whether it can expire.
    #[must_use]
    pub const fn is_running(self) -> bool {
        matches!(self, Self::Held | Self::Processing)
    }
}

/// Names a hold: by its id, or by a payment that was attached to it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HoldRef {
    /// By its id.
    Id(HoldId),
    /// By a payment's id.
    Payment(Box<str>),
}

impl HoldRef {
    /// Names the hold by a payment.
    #[must_use]
    pub fn payment(id: impl AsRef<str>) -> Self {
        Self::Payment(id.as_ref().into())
    }

    /// Says whether anything may be called so: a payment's name comes from outside.
    pub(crate) fn may_exist(&self) -> bool {
        match self {
            Self::Id(_) => true,
            Self::Payment(payment) => is_text(payment, 1, 255),
        }
    }
}

impl From<HoldId> for HoldRef {
    fn from(id: HoldId) -> Self {
        Self::Id(id)
    }
}

impl From<&Hold> for HoldRef {
    fn from(hold: &Hold) -> Self {
        Self::Id(hold.id)
    }
}

/// Who says that a hold is theirs.
#[derive(Clone)]
pub struct Claimant(pub(crate) Claim);

#[derive(Clone)]
pub(crate) enum Claim {
    Holder(Box<str>),
    Token(TokenHash),
    System,
}

impl Claimant {
    /// The application itself: may act on any hold.
    #[must_use]
    pub const fn system() -> Self {
        Self(Claim::System)
    }

    /// Says whether the claim is true of a hold with this holder and token.
    #[must_use]
    pub fn holds(&self, holder: &str, token: &TokenHash) -> bool {
        match &self.0 {
            Claim::Holder(claimed) => &**claimed == holder,
            Claim::Token(claimed) => claimed.matches(token),
            Claim::System => true,
        }
    }
}

impl From<&str> for Claimant {
    fn from(holder: &str) -> Self {
        Self(Claim::Holder(holder.into()))
    }
}

impl From<&String> for Claimant {
    fn from(holder: &String) -> Self {
        holder.as_str().into()
    }
}

impl From<HoldToken> for Claimant {
    fn from(token: HoldToken) -> Self {
        Self(Claim::Token(token.hash()))
    }
}

impl From<&HoldToken> for Claimant {
    fn from(token: &HoldToken) -> Self {
        Self(Claim::Token(token.hash()))
    }
}

impl fmt::Debug for Claimant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Claim::Holder(_) => "Claimant(holder)",
            Claim::Token(_) => "Claimant(token)",
            Claim::System => "Claimant(system)",
        })
    }
}

/// A payment that stands for a hold; belongs to one hold for good.
#[derive(Clone, PartialEq, Eq)]
pub struct Payment {
    pub(crate) id: Box<str>,
    pub(crate) valid_until: Option<Timestamp>,
}

impl Payment {
    /// Names a payment by the one identifier that every event of it carries.
    #[must_use]
    pub fn new(id: impl AsRef<str>) -> Self {
        Self {
            id: id.as_ref().into(),
            valid_until: None,
        }
    }

    /// Says until when it can be paid: the hold lasts at least as long.
    #[must_use]
    pub fn valid_until(mut self, end: impl Into<Timestamp>) -> Self {
        self.valid_until = Some(end.into());
        self
    }

    /// Returns its id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    pub(crate) fn is_valid(&self) -> bool {
        is_text(&self.id, 1, 255)
    }
}

impl fmt::Debug for Payment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Payment")
            .field("valid_until", &self.valid_until)
            .finish_non_exhaustive()
    }
}

/// What a handler sees of a hold; never the holder.
#[derive(Clone, Debug, Serialize)]
pub struct Hold {
    pub(crate) id: HoldId,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) token: Option<HoldToken>,
    pub(crate) state: HoldState,
    pub(crate) slots: Arc<[Slot]>,
    pub(crate) expires_at: Option<Timestamp>,
    pub(crate) version: u32,
    pub(crate) outcome: HoldOutcome,
}

/// How a hold came to the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HoldOutcome {
    /// Made by this call.
    Created,
    /// The same wish met its own running hold.
    Reused,
    /// Read or changed.
    Known,
}

impl Hold {
    /// What a handler may see of a record, as it stood when it was read.
    pub(crate) fn of(record: HoldRecord, outcome: HoldOutcome) -> Self {
        Self {
            id: record.id,
            token: None,
            state: record.state_at(record.read_at),
            slots: record.slots,
            expires_at: record.expires_at,
            version: record.version,
            outcome,
        }
    }

    /// Returns its name.
    #[must_use]
    pub const fn id(&self) -> HoldId {
        self.id
    }

    /// Returns the token, on creation only.
    #[must_use]
    pub const fn token(&self) -> Option<&HoldToken> {
        self.token.as_ref()
    }

    /// Returns where it stood when it was read; one that is over reads expired.
    #[must_use]
    pub const fn state(&self) -> HoldState {
        self.state
    }

    /// Returns its slots, sorted by lane and start.
    #[must_use]
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// Returns when it expires, if it can.
    #[must_use]
    pub const fn expires_at(&self) -> Option<Timestamp> {
        self.expires_at
    }

    /// Returns how often it was changed, from 1.
    #[must_use]
    pub const fn version(&self) -> u32 {
        self.version
    }

    /// Returns how it came to the caller.
    #[must_use]
    pub const fn outcome(&self) -> HoldOutcome {
        self.outcome
    }
}

/// What became of a confirmation; each is an answer to a webhook, none an error.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Settled {
    /// Confirmed now, in time or late with the slots still free.
    Confirmed(Hold),
    /// The same payment again, or the first to reach a hold confirmed without one; the state tells more.
    AlreadyConfirmed(Hold),
    /// Nothing is left to pay for (slots gone, hold cancelled, or late payments refused): give the money back.
    LateConflict(Hold),
    /// Paid twice by different payments: give this one back.
    DuplicatePayment(Hold),
}

impl Settled {
    /// Returns the hold.
    #[must_use]
    pub const fn hold(&self) -> &Hold {
        match self {
            Self::Confirmed(hold)
            | Self::AlreadyConfirmed(hold)
            | Self::LateConflict(hold)
            | Self::DuplicatePayment(hold) => hold,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_redacted_and_compared_by_hash() {
        let token = HoldToken::fresh().unwrap();
        assert!(!format!("{token:?}").contains(token.expose()));
        assert!(Claimant::from(&token).holds("nobody", &token.hash()));
        let other = HoldToken::fresh().unwrap();
        assert!(!Claimant::from(other).holds("nobody", &token.hash()));
        assert!(Claimant::from("ann").holds("ann", &token.hash()));
        assert!(!Claimant::from("ann").holds("bob", &token.hash()));
    }

    #[test]
    fn ids_sort_by_time_and_state_codes_read_back() {
        let early = HoldId::fresh(Timestamp::from_millis(1_000));
        assert!(early < HoldId::fresh(Timestamp::from_millis(2_000)));
        for code in 1..=7 {
            assert_eq!(HoldState::of_code(code).map(HoldState::code), Some(code));
        }
        assert_eq!(HoldState::of_code(8), None);
    }
}
