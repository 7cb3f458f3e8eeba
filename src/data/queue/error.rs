//! Why a queue could not do it.

use std::error::Error;
use std::fmt;

use crate::core::{StoreError, StoreErrorKind};

/// Why a queue could not do what was asked. An empty queue is no error, an unreachable one is.
#[derive(Debug)]
pub struct QueueError {
    kind: QueueErrorKind,
    source: Option<Box<dyn Error + Send + Sync>>,
}

/// What kind of failure it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum QueueErrorKind {
    /// The store cannot be reached: unknown whether it was done.
    Unavailable {
        /// Whole seconds until it is asked again, 1 to 30.
        retry_after: u64,
    },
    /// The store did not answer in time: unknown whether it was done.
    TimedOut,
    /// The queue, a recipient or the store has no room: nothing was done.
    Full {
        /// Whole seconds, 1 to 30.
        retry_after: u64,
    },
    /// An item is larger than it may be: nothing was done.
    TooLarge {
        /// In bytes.
        limit: usize,
    },
    /// An item cannot be written as JSON: nothing was done.
    Unencodable,
    /// The store refused or was not understood. As a rule nothing was done; what it refused half-way may have been done in part.
    Failed,
}

impl QueueError {
    pub(super) fn too_large(limit: usize) -> Self {
        Self {
            kind: QueueErrorKind::TooLarge { limit },
            source: None,
        }
    }

    pub(super) fn unencodable(source: serde_json::Error) -> Self {
        Self {
            kind: QueueErrorKind::Unencodable,
            source: Some(source.into()),
        }
    }

    /// Returns the kind.
    #[must_use]
    pub const fn kind(&self) -> QueueErrorKind {
        self.kind
    }
}

impl From<StoreError> for QueueError {
    fn from(error: StoreError) -> Self {
        let retry_after = error.retry_after_secs();
        let kind = match error.kind() {
            StoreErrorKind::Unavailable | StoreErrorKind::Contention => {
                QueueErrorKind::Unavailable { retry_after }
            }
            StoreErrorKind::TimedOut => QueueErrorKind::TimedOut,
            StoreErrorKind::Full | StoreErrorKind::TooLarge => QueueErrorKind::Full { retry_after },
            StoreErrorKind::Failed => QueueErrorKind::Failed,
        };
        Self {
            kind,
            source: Some(error.into()),
        }
    }
}

impl fmt::Display for QueueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            QueueErrorKind::Unavailable { .. } => "the queue's store cannot be reached",
            QueueErrorKind::TimedOut => "the queue's store did not answer in time",
            QueueErrorKind::Full { .. } => "the queue or the recipient has no room, try later",
            QueueErrorKind::TooLarge { .. } => "the item is larger than a queue takes",
            QueueErrorKind::Unencodable => "the item cannot be written as JSON",
            QueueErrorKind::Failed => "the queue's store refused",
        })
    }
}

impl Error for QueueError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source
            .as_deref()
            .map(|source| source as &(dyn Error + 'static))
    }
}
