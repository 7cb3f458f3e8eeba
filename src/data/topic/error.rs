//! Why a topic could not do it.

use std::error::Error;
use std::fmt;

use crate::core::{StoreError, StoreErrorKind};

/// Why an event was not published, or a feed not opened.
#[derive(Debug)]
pub struct TopicError {
    kind: TopicErrorKind,
    source: Option<Box<dyn Error + Send + Sync>>,
}

/// What kind of failure it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TopicErrorKind {
    /// The store cannot be reached: unknown whether the event was published.
    Unavailable {
        /// Whole seconds until it is asked again, 1 to 30.
        retry_after: u64,
    },
    /// The store did not answer in time: unknown whether the event was published.
    TimedOut,
    /// The handle has as many feeds open as it may, or the store has no room.
    Full {
        /// Whole seconds, 1 to 30.
        retry_after: u64,
    },
    /// The encoded value is larger than 64 KiB.
    TooLarge {
        /// In bytes.
        limit: usize,
    },
    /// The value cannot be written as JSON.
    Unencodable,
    /// The store refused.
    Failed,
}

impl TopicError {
    pub(super) const fn of(kind: TopicErrorKind) -> Self {
        Self { kind, source: None }
    }

    pub(super) fn unencodable(source: serde_json::Error) -> Self {
        Self {
            kind: TopicErrorKind::Unencodable,
            source: Some(source.into()),
        }
    }

    /// Returns the kind.
    #[must_use]
    pub const fn kind(&self) -> TopicErrorKind {
        self.kind
    }
}

impl From<StoreError> for TopicError {
    fn from(error: StoreError) -> Self {
        let retry_after = error.retry_after_secs();
        let kind = match error.kind() {
            StoreErrorKind::Unavailable | StoreErrorKind::Contention => {
                TopicErrorKind::Unavailable { retry_after }
            }
            StoreErrorKind::TimedOut => TopicErrorKind::TimedOut,
            StoreErrorKind::Full | StoreErrorKind::TooLarge => TopicErrorKind::Full { retry_after },
            StoreErrorKind::Failed => TopicErrorKind::Failed,
        };
        Self {
            kind,
            source: Some(error.into()),
        }
    }
}

impl fmt::Display for TopicError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            TopicErrorKind::Unavailable { .. } => "the topic's store cannot be reached",
            TopicErrorKind::TimedOut => "the topic's store did not answer in time",
            TopicErrorKind::Full { .. } => "too many feeds are open, try later",
            TopicErrorKind::TooLarge { .. } => "the value is larger than a topic takes",
            TopicErrorKind::Unencodable => "the value cannot be written as JSON",
            TopicErrorKind::Failed => "the topic's store refused",
        })
    }
}

impl Error for TopicError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source
            .as_deref()
            .map(|source| source as &(dyn Error + 'static))
    }
}
