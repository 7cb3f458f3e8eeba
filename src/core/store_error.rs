//! How a store says that it could not answer.

use std::error::Error;
use std::fmt;
use std::time::Duration;

/// What kind of failure a store met, and so what is known of the effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StoreErrorKind {
    /// The store could not be reached, or its answer was lost: **unknown** whether anything was done.
    Unavailable,
    /// No answer came in time: **unknown** whether anything was done.
    TimedOut,
    /// The store has no room, and nothing may be evicted: nothing was done.
    Full,
    /// The value is larger than the store takes: nothing was done.
    TooLarge,
    /// Others held what was needed for too long: nothing was done, try again.
    Contention,
    /// The store refused or was not understood. As a rule nothing was done; what it refused half-way, or said so that nobody
    /// understands it, may have been done in part.
    Failed,
}

/// A failure of a store: a kind, and a source for the log. Its text never reaches a client.
#[derive(Debug)]
pub struct StoreError {
    kind: StoreErrorKind,
    retry_after: Option<Duration>,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl StoreError {
    /// Makes an error without a source.
    #[must_use]
    pub const fn new(kind: StoreErrorKind) -> Self {
        Self {
            kind,
            retry_after: None,
            source: None,
        }
    }

    /// Makes an error that keeps what the driver said.
    #[must_use]
    pub fn with_source(
        kind: StoreErrorKind,
        source: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        Self {
            kind,
            retry_after: None,
            source: Some(source.into()),
        }
    }

    /// Adds the time after which the store will be asked again.
    #[must_use]
    pub const fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// Returns the kind.
    #[must_use]
    pub const fn kind(&self) -> StoreErrorKind {
        self.kind
    }

    /// Returns whether it is unknown if anything was done.
    #[must_use]
    pub const fn is_unknown(&self) -> bool {
        matches!(
            self.kind,
            StoreErrorKind::Unavailable | StoreErrorKind::TimedOut
        )
    }

    /// Returns whole seconds for a `Retry-After` field, from 1 to 30 (1 where nothing is known).
    #[must_use]
    pub fn retry_after_secs(&self) -> u64 {
        let after = self.retry_after.unwrap_or(Duration::ZERO);
        after.as_millis().div_ceil(1_000).clamp(1, 30) as u64
    }
}

impl From<StoreErrorKind> for StoreError {
    fn from(kind: StoreErrorKind) -> Self {
        Self::new(kind)
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            StoreErrorKind::Unavailable => "the store cannot be reached",
            StoreErrorKind::TimedOut => "the store did not answer in time",
            StoreErrorKind::Full => "the store is full",
            StoreErrorKind::TooLarge => "the value is too large for the store",
            StoreErrorKind::Contention => "others held the same entry for too long",
            StoreErrorKind::Failed => "the store could not do it",
        })
    }
}

impl Error for StoreError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source
            .as_deref()
            .map(|source| source as &(dyn Error + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_rounded_up_and_stays_within_1_and_30_seconds() {
        let after = |ms| {
            StoreError::new(StoreErrorKind::Unavailable).retry_after(Duration::from_millis(ms))
        };
        assert_eq!(StoreError::new(StoreErrorKind::Full).retry_after_secs(), 1);
        assert_eq!(after(1_001).retry_after_secs(), 2);
        assert_eq!(after(90_000).retry_after_secs(), 30);
    }
}
