//! What can go wrong with a session call.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use crate::core::{StoreError, StoreErrorKind};

/// What kind of fault a session call met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SessionErrorKind {
    /// The store cannot answer: 503.
    Unavailable,
    /// Others changed the same value 64 times in a row: 503.
    Busy,
    /// The session is over; nothing was done: 401.
    Ended,
    /// More than 64 keys or the data limit: 413.
    TooLarge,
    /// What was to be incremented is no integer within ±(2^53 − 1): 500.
    NotANumber,
    /// A name or an identity is out of its bounds: 500.
    Key,
    /// A value cannot be written as JSON: 500.
    Encode,
    /// The headers have left; this call would vanish or needs a header: 500.
    Sealed,
    /// The route has no session layer: 500.
    NoLayer,
}

/// A fault of a session call. Its text never reaches a client.
#[derive(Clone, Debug)]
pub struct SessionError {
    kind: SessionErrorKind,
    retry_after: u64,
    source: Option<Arc<dyn Error + Send + Sync>>,
}

impl SessionError {
    pub(super) const fn new(kind: SessionErrorKind) -> Self {
        Self {
            kind,
            retry_after: 1,
            source: None,
        }
    }

    pub(super) fn encode(error: serde_json::Error) -> Self {
        Self {
            source: Some(Arc::new(error)),
            ..Self::new(SessionErrorKind::Encode)
        }
    }

    /// Returns the kind.
    #[must_use]
    pub const fn kind(&self) -> SessionErrorKind {
        self.kind
    }

    /// Returns whole seconds until it may work again, 1 to 30.
    #[must_use]
    pub const fn retry_after_secs(&self) -> u64 {
        self.retry_after
    }

    /// The same fault for a layer that asks the visitor.
    pub(super) fn to_store_error(&self) -> StoreError {
        StoreError::new(StoreErrorKind::Unavailable)
            .retry_after(std::time::Duration::from_secs(self.retry_after))
    }
}

impl From<StoreError> for SessionError {
    fn from(error: StoreError) -> Self {
        Self {
            retry_after: error.retry_after_secs(),
            source: Some(Arc::new(error)),
            ..Self::new(SessionErrorKind::Unavailable)
        }
    }
}

impl fmt::Display for SessionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            SessionErrorKind::Unavailable => "the session store cannot answer",
            SessionErrorKind::Busy => "others kept changing the same value, send the request again",
            SessionErrorKind::Ended => "the session is over",
            SessionErrorKind::TooLarge => "the session has too many keys or bytes, keep less in it",
            SessionErrorKind::NotANumber => "the value is no integer, set one before incrementing it",
            SessionErrorKind::Key => {
                "a key has 1 to 128 bytes, a user id 1 to 128, roles 1 to 64 each, 32 and 1 KiB in all"
            }
            SessionErrorKind::Encode => "the value cannot be written as JSON",
            SessionErrorKind::Sealed => {
                "the response headers have left, change the session before answering"
            }
            SessionErrorKind::NoLayer => "the route has no session layer, add a SessionLayer",
        })
    }
}

impl Error for SessionError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source
            .as_deref()
            .map(|source| source as &(dyn Error + 'static))
    }
}
