//! What the layers and services below say when they cannot, as a fault: the store that is away is 503 wherever it was asked.
//!
//! Try it: `curl -i localhost:8080/api/experts/e1/slots?day=tomorrow`
//!
//! Proof: `store_outage`

use axum::response::IntoResponse;
use tower_keep::core::StoreError;
use tower_keep::data::cache::LoadError;
use tower_keep::data::lock::LockError;
use tower_keep::data::queue::QueueError;
use tower_keep::data::topic::TopicError;
use tower_keep::data::{DataError, DataErrorKind};
use tower_keep::reservation::{ReservationError, ReservationRejection};
use tower_keep::session::{SessionError, SessionRejection};

use super::Fault;

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        Self::store_unavailable(error.retry_after_secs())
    }
}

impl From<SessionError> for Fault {
    fn from(error: SessionError) -> Self {
        SessionRejection::from(error).into()
    }
}

impl From<SessionRejection> for Fault {
    fn from(rejection: SessionRejection) -> Self {
        Self::Ready(Box::new(rejection.into_response()))
    }
}

impl From<ReservationRejection> for Fault {
    fn from(rejection: ReservationRejection) -> Self {
        Self::Ready(Box::new(rejection.into_response()))
    }
}

impl From<ReservationError> for Fault {
    fn from(error: ReservationError) -> Self {
        ReservationRejection::from(error).into()
    }
}

impl From<sqlx::Error> for Fault {
    fn from(error: sqlx::Error) -> Self {
        ReservationRejection::from(error).into()
    }
}

impl From<TopicError> for Fault {
    fn from(error: TopicError) -> Self {
        Self::Ready(Box::new(error.into_response()))
    }
}

impl From<QueueError> for Fault {
    fn from(error: QueueError) -> Self {
        tracing::warn!(%error, "the queue cannot answer");
        Self::store_unavailable(1)
    }
}

impl From<DataError> for Fault {
    fn from(error: DataError) -> Self {
        match error.kind() {
            DataErrorKind::TooLarge { .. } => Self::TOO_LARGE,
            DataErrorKind::Unavailable { retry_after } | DataErrorKind::Full { retry_after } => {
                Self::store_unavailable(retry_after)
            }
            _ => Self::store_unavailable(1),
        }
    }
}

/// Somebody else is at it for longer than we would wait, or the store cannot tell: nothing was done.
impl From<LockError> for Fault {
    fn from(error: LockError) -> Self {
        Self::store_unavailable(error.retry_after().min(30))
    }
}

/// What we load in this practice, we load from the payment provider.
impl From<LoadError> for Fault {
    fn from(error: LoadError) -> Self {
        tracing::warn!(%error, "the payment provider does not answer");
        Self::PAYMENT_PROVIDER
    }
}
