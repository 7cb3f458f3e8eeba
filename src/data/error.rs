//! Why a data service could not do it: the kinds that counters, one-time values and caches share.

use std::error::Error;
use std::fmt;

use crate::core::{StoreError, StoreErrorKind};

/// Why a counter, a one-time value or a cache could not do what was asked. Never a made-up value instead.
#[derive(Debug)]
pub struct DataError {
    kind: DataErrorKind,
    source: Option<Box<dyn Error + Send + Sync>>,
}

/// What kind of failure it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DataErrorKind {
    /// The store cannot be reached: unknown whether it was done.
    Unavailable {
        /// Whole seconds until it is asked again, 1 to 30.
        retry_after: u64,
    },
    /// The store did not answer in time: unknown whether it was done.
    TimedOut,
    /// There is no room: nothing was done.
    Full {
        /// Whole seconds, 1 to 30.
        retry_after: u64,
    },
    /// The value is larger than it may be: nothing was done.
    TooLarge {
        /// In bytes.
        limit: usize,
    },
    /// The token has fewer than 16 bytes: nothing was done.
    WeakToken,
    /// The value cannot be written as JSON: nothing was done.
    Unencodable,
    /// The store, or the system's random source, refused, or was not understood. As a rule nothing was done; what the store
    /// refused half-way may have been done in part.
    Failed,
}

impl DataError {
    pub(crate) const fn of(kind: DataErrorKind) -> Self {
        Self { kind, source: None }
    }

    pub(crate) fn with_source(
        kind: DataErrorKind,
        source: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        Self {
            kind,
            source: Some(source.into()),
        }
    }

    /// Returns the kind.
    #[must_use]
    pub const fn kind(&self) -> DataErrorKind {
        self.kind
    }
}

impl From<StoreError> for DataError {
    fn from(error: StoreError) -> Self {
        let retry_after = error.retry_after_secs();
        let kind = match error.kind() {
            StoreErrorKind::Unavailable | StoreErrorKind::Contention => {
                DataErrorKind::Unavailable { retry_after }
            }
            StoreErrorKind::TimedOut => DataErrorKind::TimedOut,
            StoreErrorKind::Full | StoreErrorKind::TooLarge => DataErrorKind::Full { retry_after },
            StoreErrorKind::Failed => DataErrorKind::Failed,
        };
        Self::with_source(kind, error)
    }
}

impl fmt::Display for DataError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            DataErrorKind::Unavailable { .. } => "the store cannot be reached",
            DataErrorKind::TimedOut => "the store did not answer in time",
            DataErrorKind::Full { .. } => "there is no room, try later",
            DataErrorKind::TooLarge { .. } => "the value is larger than may be kept",
            DataErrorKind::WeakToken => "a token needs at least 16 bytes",
            DataErrorKind::Unencodable => "the value cannot be written as JSON",
            DataErrorKind::Failed => "the store refused",
        })
    }
}

impl Error for DataError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source
            .as_deref()
            .map(|source| source as &(dyn Error + 'static))
    }
}
