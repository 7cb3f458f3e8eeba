//! What a database's error is to a reservation.

use crate::backend::sql::{TransactionError, TransactionErrorKind};
use crate::reservation::rejection::{ReservationError, ReservationRejection};
use crate::reservation::reservations::Retryable;

impl Retryable for sqlx::Error {
    fn is_worth_again(&self) -> bool {
        TransactionErrorKind::of(self) == TransactionErrorKind::Conflict
    }

    fn reason(&self) -> &'static str {
        let code = self.as_database_error().and_then(|error| error.code());
        match code.as_deref() {
            Some("40001") => "serialization",
            Some("40P01") => "deadlock",
            _ => "contention",
        }
    }
}

impl From<sqlx::Error> for ReservationError {
    /// The database's text goes to the log and nowhere else.
    fn from(error: sqlx::Error) -> Self {
        match TransactionErrorKind::of(&error) {
            TransactionErrorKind::Conflict => Self::Contention { again: true },
            TransactionErrorKind::LockTimeout => Self::Contention { again: false },
            TransactionErrorKind::Unavailable => Self::StoreUnavailable { retry_after: 1 },
            _ => {
                crate::core::telemetry::seldom!(error, %error, "a handler's statement failed");
                Self::Internal
            }
        }
    }
}

impl From<sqlx::Error> for ReservationRejection {
    fn from(error: sqlx::Error) -> Self {
        ReservationError::from(error).into()
    }
}

impl From<TransactionError> for ReservationError {
    fn from(error: TransactionError) -> Self {
        match error.kind() {
            TransactionErrorKind::WrongEngine => Self::Misconfigured,
            TransactionErrorKind::Doomed(cause) => Self::TransactionFailed(cause),
            _ => crate::core::StoreError::from(error).into(),
        }
    }
}
