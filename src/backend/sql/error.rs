//! How a request's transaction says that it cannot go on.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use crate::core::{RollbackCause, StoreError, StoreErrorKind};

/// What a transaction met, and so what is known of its writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TransactionErrorKind {
    /// No connection, or it broke before COMMIT was sent: nothing was stored.
    Unavailable,
    /// Others held a lock for the whole lock timeout: nothing was stored.
    LockTimeout,
    /// Deadlock, serialisation failure or a busy database: nothing was stored, doing it again may succeed.
    Conflict,
    /// The transaction can only roll back, or was rolled back where a commit was asked for.
    Doomed(RollbackCause),
    /// The reply to COMMIT was lost, and the database cannot tell yet: **unknown** whether it was stored.
    Unknown,
    /// The transaction has ended; whoever still asks outlived its request.
    Ended,
    /// The transaction is on another engine than was asked for.
    WrongEngine,
    /// The database refused a statement or the commit: nothing was stored.
    Failed,
}

impl TransactionErrorKind {
    /// Sorts a driver's error by what it says about the transaction.
    #[must_use]
    pub fn of(error: &sqlx::Error) -> Self {
        classify(error)
    }
}

/// A failure of a request's transaction: a kind, and a source for the log.
#[derive(Debug)]
pub struct TransactionError {
    kind: TransactionErrorKind,
    retry_after: Option<Duration>,
    source: Option<sqlx::Error>,
}

impl TransactionError {
    pub(super) const fn new(kind: TransactionErrorKind) -> Self {
        Self {
            kind,
            retry_after: None,
            source: None,
        }
    }

    pub(super) const fn doomed(cause: RollbackCause) -> Self {
        Self::new(TransactionErrorKind::Doomed(cause))
    }

    /// The server did not answer in time, and nothing is stored.
    pub(crate) const fn unanswered() -> Self {
        Self::new(TransactionErrorKind::Unavailable)
    }

    /// Others were faster too often; doing it all again may succeed.
    pub(crate) const fn crowded() -> Self {
        Self::new(TransactionErrorKind::Conflict)
    }

    /// A row that was to be written is somebody else's.
    pub(crate) const fn crowded_out() -> Self {
        Self::new(TransactionErrorKind::Failed)
    }

    pub(super) const fn refused_for(pause: Duration) -> Self {
        Self {
            kind: TransactionErrorKind::Unavailable,
            retry_after: Some(pause),
            source: None,
        }
    }

    /// Returns the kind.
    #[must_use]
    pub const fn kind(&self) -> TransactionErrorKind {
        self.kind
    }

    /// Says whether the whole transaction, done again, may succeed at once.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        matches!(
            self.kind,
            TransactionErrorKind::Conflict
                | TransactionErrorKind::Doomed(RollbackCause::Aborted | RollbackCause::Contention)
        )
    }

    /// Says whether the connection was lost, so that another may do.
    pub(crate) fn is_lost(&self) -> bool {
        self.source.as_ref().is_some_and(is_lost)
    }

    /// Returns what the database said.
    #[cfg_attr(not(feature = "tracing"), allow(dead_code))]
    pub(super) const fn database(&self) -> Option<&sqlx::Error> {
        self.source.as_ref()
    }
}

impl From<sqlx::Error> for TransactionError {
    fn from(error: sqlx::Error) -> Self {
        Self {
            kind: classify(&error),
            retry_after: None,
            source: Some(error),
        }
    }
}

impl From<TransactionError> for StoreError {
    fn from(error: TransactionError) -> Self {
        let kind = match error.kind {
            TransactionErrorKind::Unavailable => StoreErrorKind::Unavailable,
            TransactionErrorKind::Unknown => StoreErrorKind::TimedOut,
            TransactionErrorKind::LockTimeout
            | TransactionErrorKind::Conflict
            | TransactionErrorKind::Doomed(RollbackCause::Aborted | RollbackCause::Contention) => {
                StoreErrorKind::Contention
            }
            _ => StoreErrorKind::Failed,
        };
        let pause = error.retry_after;
        let out = Self::with_source(kind, error);
        match pause {
            Some(pause) => out.retry_after(pause),
            None => out,
        }
    }
}

impl fmt::Display for TransactionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            TransactionErrorKind::Unavailable => "the database cannot be reached",
            TransactionErrorKind::LockTimeout => "others held a lock for too long",
            TransactionErrorKind::Conflict => "the transaction collided with another, do it again",
            TransactionErrorKind::Doomed(_) => "the transaction can only roll back",
            TransactionErrorKind::Unknown => "it is unknown whether the transaction was committed",
            TransactionErrorKind::Ended => "the transaction has ended",
            TransactionErrorKind::WrongEngine => "the transaction is on another engine",
            TransactionErrorKind::Failed => "the database refused the statement",
        })
    }
}

impl Error for TransactionError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source
            .as_ref()
            .map(|source| source as &(dyn Error + 'static))
    }
}

/// Sorts a driver's error by what it says about the transaction.
pub(super) fn classify(error: &sqlx::Error) -> TransactionErrorKind {
    match error {
        sqlx::Error::Database(database) => match database.code().as_deref() {
            Some(state) if state.len() == 5 => classify_state(state),
            Some(code) => classify_code(code),
            None => TransactionErrorKind::Failed,
        },
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::Protocol(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => TransactionErrorKind::Unavailable,
        _ => TransactionErrorKind::Failed,
    }
}

/// Says whether the connection itself was lost: by a cut, or because the server ended the session while it lay idle
/// in the pool (a restart, an operator, its limit for idle sessions). It says so in an error of its own, if the last
/// words still arrive.
pub(super) fn is_lost(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) => true,
        sqlx::Error::Database(database) => {
            matches!(
                database.code().as_deref(),
                Some("57P01" | "57P02" | "57P05")
            )
        }
        _ => false,
    }
}

/// SQLSTATE, Postgres.
fn classify_state(state: &str) -> TransactionErrorKind {
    match state {
        "55P03" => TransactionErrorKind::LockTimeout,
        "40001" | "40P01" => TransactionErrorKind::Conflict,
        "25P02" => TransactionErrorKind::Doomed(RollbackCause::Poisoned),
        "25P03" => TransactionErrorKind::Doomed(RollbackCause::Timeout),
        "53300" => TransactionErrorKind::Unavailable,
        _ if state.starts_with("08") || state.starts_with("57P") => {
            TransactionErrorKind::Unavailable
        }
        _ => TransactionErrorKind::Failed,
    }
}

/// SQLite's extended result code: the low byte is the primary one. 5 = BUSY, 6 = LOCKED.
fn classify_code(code: &str) -> TransactionErrorKind {
    match code.parse::<u32>().map(|code| code & 0xff) {
        Ok(5 | 6) => TransactionErrorKind::Conflict,
        // 10 = IOERR, 14 = CANTOPEN
        Ok(10 | 14) => TransactionErrorKind::Unavailable,
        _ => TransactionErrorKind::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_both_engines_are_told_apart_by_their_length() {
        assert_eq!(classify_state("40P01"), TransactionErrorKind::Conflict);
        assert_eq!(classify_state("23505"), TransactionErrorKind::Failed);
        assert_eq!(classify_state("57P01"), TransactionErrorKind::Unavailable);
        assert_eq!(classify_code("517"), TransactionErrorKind::Conflict);
        assert_eq!(classify_code("2067"), TransactionErrorKind::Failed);
    }
}
