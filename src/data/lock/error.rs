//! Why a lock is not held.

use std::error::Error;
use std::fmt;

use crate::core::{StoreError, StoreErrorKind};

/// Why a lock could not be taken, or was not kept.
#[derive(Debug)]
#[non_exhaustive]
pub enum LockError {
    /// Another holds it, and did so for as long as the caller would wait.
    Busy {
        /// The rest of the holder's lease in whole seconds, at least 1.
        retry_after: u64,
    },
    /// It was held, and is gone: taken over, or not renewed in time.
    Lost,
    /// The store cannot be reached. There is never a local lock instead.
    Unavailable(StoreError),
    /// The store did not answer in time.
    TimedOut(StoreError),
    /// The store has no room for another lock.
    Full(StoreError),
    /// The store refused.
    Failed(StoreError),
}

/// [`LockError`] without what it carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LockErrorKind {
    /// Another holds it.
    Busy,
    /// It is gone.
    Lost,
    /// The store cannot be reached.
    Unavailable,
    /// The store did not answer in time.
    TimedOut,
    /// The store has no room.
    Full,
    /// The store refused.
    Failed,
}

impl LockError {
    /// Returns the kind.
    #[must_use]
    pub const fn kind(&self) -> LockErrorKind {
        match self {
            Self::Busy { .. } => LockErrorKind::Busy,
            Self::Lost => LockErrorKind::Lost,
            Self::Unavailable(_) => LockErrorKind::Unavailable,
            Self::TimedOut(_) => LockErrorKind::TimedOut,
            Self::Full(_) => LockErrorKind::Full,
            Self::Failed(_) => LockErrorKind::Failed,
        }
    }

    /// Returns whole seconds for a `Retry-After` field, at least 1.
    #[must_use]
    pub fn retry_after(&self) -> u64 {
        match self {
            Self::Busy { retry_after } => *retry_after,
            Self::Lost => 1,
            Self::Unavailable(error)
            | Self::TimedOut(error)
            | Self::Full(error)
            | Self::Failed(error) => error.retry_after_secs(),
        }
    }
}

impl From<StoreError> for LockError {
    fn from(error: StoreError) -> Self {
        match error.kind() {
            StoreErrorKind::Unavailable | StoreErrorKind::Contention => Self::Unavailable(error),
            StoreErrorKind::TimedOut => Self::TimedOut(error),
            StoreErrorKind::Full | StoreErrorKind::TooLarge => Self::Full(error),
            StoreErrorKind::Failed => Self::Failed(error),
        }
    }
}

impl fmt::Display for LockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Busy { retry_after } => {
                write!(f, "the lock is taken, try again in {retry_after} s")
            }
            Self::Lost => f.write_str("the lock was lost"),
            Self::Unavailable(_) => f.write_str("the store of the lock cannot be reached"),
            Self::TimedOut(_) => f.write_str("the store of the lock did not answer in time"),
            Self::Full(_) => f.write_str("the store has no room for another lock"),
            Self::Failed(_) => f.write_str("the store refused the lock"),
        }
    }
}

impl Error for LockError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Unavailable(error)
            | Self::TimedOut(error)
            | Self::Full(error)
            | Self::Failed(error) => Some(error),
            Self::Busy { .. } | Self::Lost => None,
        }
    }
}
