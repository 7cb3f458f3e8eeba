//! What is kept under one key: a head of 84 bytes, then the answer or what is left of it (`content.rs`).

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

pub use super::content::{Answer, AnswerContent, StoredAnswer, Tombstone, TombstoneReason};
use super::content::{decode_answer, decode_tombstone};
pub use super::id::{NotARecordId, RecordId, ScopeTag};
use super::policy::LeaseEnd;
use crate::core::Timestamp;

/// The length of a record's head in bytes.
pub const HEAD_BYTES: usize = 84;
/// An undecided outcome is kept at least this long, so that an operator can resolve it.
pub const UNKNOWN_KEPT: Duration = Duration::from_secs(7 * 86_400);

/// Names one owner of one claim: 16 bytes that no other claim has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Nonce(pub [u8; 16]);

/// Rises with every owner of a key, over all its lives: for the handler's own fenced writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fence(pub u64);

impl Fence {
    /// The store's time at the claim, unless its clock had stepped back.
    pub(super) const fn time(self) -> Timestamp {
        Timestamp::from_millis(self.0 / 1_000)
    }
}

/// The keyed hash of a request's payload, and the rule by which it was made.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint {
    /// The tag of the rule; fingerprints of different rules are never compared.
    pub rule: u8,
    /// The hash.
    pub hash: [u8; 32],
}

impl Fingerprint {
    /// Says whether both were made by one rule and differ; the hashes are compared in constant time.
    #[must_use]
    pub fn contradicts(&self, other: &Self) -> bool {
        use subtle::ConstantTimeEq;
        self.rule == other.rule && !bool::from(self.words().ct_eq(&other.words()))
    }

    /// The hash in four words: an eighth of the steps of a comparison by bytes.
    fn words(&self) -> [u64; 4] {
        let (words, _) = self.hash.as_chunks();
        std::array::from_fn(|n| words.get(n).map_or(0, |word| u64::from_ne_bytes(*word)))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fingerprint")
            .field("rule", &self.rule)
            .finish_non_exhaustive()
    }
}

/// What a record says of its run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Claimed: running, or left behind by a crash once its lease is over.
    Claimed,
    /// The whole answer is kept.
    Answered,
    /// It ran, but the answer cannot be given again.
    Tombstone,
    /// It ran, perhaps: the record cannot be decoded.
    Unreadable,
}

/// The part of a record that every decision needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// What the record says of its run.
    pub state: State,
    /// What the end of the lease means, by the policy of the run that wrote it.
    pub at_lease_end: LeaseEnd,
    /// Who owns it.
    pub nonce: Nonce,
    /// The owner's fence.
    pub fence: Fence,
    /// The payload it belongs to.
    pub fingerprint: Fingerprint,
    /// When the key was first claimed.
    pub created: Timestamp,
    /// At exactly this moment the lease is over.
    pub lease_until: Timestamp,
    /// At exactly this moment the record is gone.
    pub expires_at: Timestamp,
    /// The store's time when it was read; not stored.
    pub read_at: Timestamp,
}

impl Head {
    /// The head of what cannot be read.
    const fn unreadable(read_at: Timestamp) -> Self {
        Self {
            state: State::Unreadable,
            at_lease_end: LeaseEnd::Indeterminate,
            nonce: Nonce([0; 16]),
            fence: Fence(0),
            fingerprint: Fingerprint {
                rule: 0,
                hash: [0; 32],
            },
            created: Timestamp::EPOCH,
            lease_until: Timestamp::EPOCH,
            expires_at: Timestamp::MAX,
            read_at,
        }
    }

    /// Says whether a claim's lease still runs.
    #[must_use]
    pub fn is_leased(&self) -> bool {
        self.state == State::Claimed && self.read_at < self.lease_until
    }

    /// Writes the head: big-endian, version 1.
    #[must_use]
    pub fn encode(&self) -> [u8; HEAD_BYTES] {
        let mut out = [0; HEAD_BYTES];
        let state = match self.state {
            State::Claimed => 1,
            State::Answered => 2,
            State::Tombstone => 3,
            State::Unreadable => 0,
        };
        out[..4].copy_from_slice(&[1, state, self.at_lease_end.byte(), self.fingerprint.rule]);
        out[4..20].copy_from_slice(&self.nonce.0);
        out[20..28].copy_from_slice(&self.fence.0.to_be_bytes());
        out[28..60].copy_from_slice(&self.fingerprint.hash);
        let times = [self.created, self.lease_until, self.expires_at];
        for (time, place) in times.into_iter().zip(out[60..].chunks_exact_mut(8)) {
            place.copy_from_slice(&time.as_millis().to_be_bytes());
        }
        out
    }

    /// Reads a head; `None` for another version or damage.
    #[must_use]
    pub fn decode(bytes: &[u8], read_at: Timestamp) -> Option<Self> {
        let bytes: &[u8; HEAD_BYTES] = bytes.first_chunk()?;
        let state = match (bytes[0], bytes[1]) {
            (1, 1) => State::Claimed,
            (1, 2) => State::Answered,
            (1, 3) => State::Tombstone,
            _ => return None,
        };
        let time = |at: usize| {
            let millis = number(bytes, at)?;
            (millis <= Timestamp::MAX.as_millis()).then(|| Timestamp::from_millis(millis))
        };
        Some(Self {
            state,
            at_lease_end: LeaseEnd::from_byte(bytes[2])?,
            nonce: Nonce(*bytes[4..].first_chunk()?),
            fence: Fence(number(bytes, 20)?),
            fingerprint: Fingerprint {
                rule: bytes[3],
                hash: *bytes[28..].first_chunk()?,
            },
            created: time(60)?,
            lease_until: time(68)?,
            expires_at: time(76)?,
            read_at,
        })
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// A record as a store hands it out.
#[derive(Clone, Debug)]
pub struct Record {
    /// The head.
    pub head: Head,
    /// What comes after it.
    pub content: Content,
}

/// What a record holds beside its head.
#[derive(Clone, Debug)]
pub enum Content {
    /// Nothing yet.
    Claimed,
    /// The whole answer.
    Full(Arc<StoredAnswer>),
    /// What is left of an answer that cannot be given again.
    Tombstone(Arc<Tombstone>),
    /// Bytes that this version cannot decode.
    Unreadable,
}

impl Record {
    /// Reads a record. Values and body are slices of `bytes`; damage gives [`Content::Unreadable`], never a panic.
    #[must_use]
    pub fn decode(bytes: &Bytes, read_at: Timestamp) -> Self {
        let Some(head) = Head::decode(bytes, read_at) else {
            return Self::unreadable(read_at);
        };
        Self::of(head, bytes.slice(HEAD_BYTES..))
    }

    /// Reads what follows a head.
    pub(super) fn of(head: Head, rest: Bytes) -> Self {
        let content = match head.state {
            State::Claimed => rest.is_empty().then_some(Content::Claimed),
            State::Answered => decode_answer(rest).map(|answer| Content::Full(Arc::new(answer))),
            _ => decode_tombstone(rest).map(|left| Content::Tombstone(Arc::new(left))),
        };
        match content {
            Some(content) => Self { head, content },
            None => Self::unreadable(head.read_at),
        }
    }

    /// A record that this version cannot read.
    pub(super) const fn unreadable(read_at: Timestamp) -> Self {
        Self {
            head: Head::unreadable(read_at),
            content: Content::Unreadable,
        }
    }
}

#[cfg(test)]
mod tests;
