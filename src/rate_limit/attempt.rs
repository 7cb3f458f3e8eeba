//! What goes into a limiter and what comes out: attempts, decisions, grants, denials, status, errors.

use std::fmt;
use std::time::Duration;

use smallvec::SmallVec;

use super::decide::Decided;
use super::partition::PartitionKey;
use super::rejection::RateLimitRejection;
use super::status::PolicyStatus;
use super::store::Source;
use crate::core::{StoreError, Timestamp};

/// What is attempted: keys for the policies that apply, and a cost.
#[derive(Clone, Debug)]
#[must_use]
pub struct Attempt {
    pub(super) keys: SmallVec<[(Box<str>, PartitionKey); 3]>,
    pub(super) cost: u32,
}

impl Attempt {
    /// Starts an attempt of cost 1 to which no policy applies yet.
    pub fn new() -> Self {
        Self {
            keys: SmallVec::new(),
            cost: 1,
        }
    }

    /// Applies `policy` by `key`. A second key for the same policy takes the place of the first.
    ///
    /// Where all policies of a limiter count by the same partition they take the same key: their states lie together, on
    /// one shard of a cluster. Another key for each is [`RateLimitErrorKind::KeysDiffer`].
    pub fn on(mut self, policy: &str, key: impl Into<PartitionKey>) -> Self {
        self.keys.retain(|(name, _)| **name != *policy);
        self.keys.push((Box::from(policy), key.into()));
        self
    }

    /// Sets the units that the attempt costs.
    pub fn cost(mut self, units: u32) -> Self {
        self.cost = units;
        self
    }
}

impl Default for Attempt {
    fn default() -> Self {
        Self::new()
    }
}

/// What became of an attempt.
#[derive(Debug)]
pub enum Decision {
    /// It is admitted; dropping the grant lets the charge stand.
    Allowed(Grant),
    /// It is refused, and nothing was charged.
    Denied(Denial),
}

impl Decision {
    /// Says whether the attempt is admitted.
    #[must_use]
    pub fn is_allowed(&self) -> bool {
        matches!(self, Self::Allowed(_))
    }
}

/// An admitted attempt: what the policies said, and what a refund needs.
#[derive(Debug)]
pub struct Grant {
    pub(super) decided: Option<Decided>,
}

impl Grant {
    /// Returns what the policies said; nothing where none applied, or where the store was down and the limiter is open.
    pub fn states(&self) -> impl Iterator<Item = &PolicyStatus> {
        self.decided.iter().flat_map(|decided| &decided.own)
    }

    /// Returns who decided; `None` where no policy applied, or where the store was down and the limiter is open.
    #[must_use]
    pub fn source(&self) -> Option<Source> {
        self.decided.as_ref().map(|decided| decided.source)
    }
}

/// A refused attempt.
#[derive(Debug)]
pub struct Denial {
    pub(super) decided: Decided,
    pub(super) rejection: RateLimitRejection,
}

impl Denial {
    /// Returns what the policies said.
    pub fn states(&self) -> impl Iterator<Item = &PolicyStatus> {
        self.decided.own.iter()
    }

    /// Returns the refusal as a response would carry it.
    #[must_use]
    pub fn rejection(&self) -> &RateLimitRejection {
        &self.rejection
    }
}

impl From<Denial> for RateLimitRejection {
    fn from(denial: Denial) -> Self {
        denial.rejection
    }
}

/// What one policy says about a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// The units that may be in use at once.
    pub limit: u32,
    /// The units in use.
    pub attempts: u32,
    /// The units that are left.
    pub remaining: u32,
    /// When more is left; now, when nothing is used.
    pub reset_time: Timestamp,
    /// The time until one unit is admitted; `None` when it is now.
    pub retry_after: Option<Duration>,
    /// Whether the key is blocked.
    pub blocked: bool,
}

/// A limiter that could not do what it was asked.
#[derive(Debug)]
pub struct RateLimitError {
    kind: RateLimitErrorKind,
    source: Option<StoreError>,
}

/// Why a limiter could not do what it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RateLimitErrorKind {
    /// The limiter has no policy of that name.
    UnknownPolicy,
    /// The policies of the limiter all count by the same partition, and so live under one key; the attempt names several.
    /// Give the policies partitions of their own, for example by [`Partition::custom`](super::Partition::custom).
    KeysDiffer,
    /// The store could not answer.
    Store,
}

impl RateLimitError {
    /// Returns the kind.
    #[must_use]
    pub fn kind(&self) -> RateLimitErrorKind {
        self.kind
    }

    /// Returns the store's error, if that is the cause.
    #[must_use]
    pub fn store_error(&self) -> Option<&StoreError> {
        self.source.as_ref()
    }

    pub(super) const fn unknown_policy() -> Self {
        Self {
            kind: RateLimitErrorKind::UnknownPolicy,
            source: None,
        }
    }

    pub(super) const fn keys_differ() -> Self {
        Self {
            kind: RateLimitErrorKind::KeysDiffer,
            source: None,
        }
    }
}

impl From<StoreError> for RateLimitError {
    fn from(source: StoreError) -> Self {
        Self {
            kind: RateLimitErrorKind::Store,
            source: Some(source),
        }
    }
}

impl fmt::Display for RateLimitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            RateLimitErrorKind::UnknownPolicy => "the limiter has no policy of that name",
            RateLimitErrorKind::KeysDiffer => {
                "policies of one partition take one key: give them partitions of their own"
            }
            RateLimitErrorKind::Store => "the rate limit's store could not answer",
        })
    }
}

impl std::error::Error for RateLimitError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| source as _)
    }
}
