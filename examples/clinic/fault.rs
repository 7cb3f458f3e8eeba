//! What handlers say when they cannot: one type, made of whatever the layers and services below them say.
//!
//! Try it: `curl -i localhost:8080/api/user/me`

use axum::body::Body;
use axum::extract::rejection::{FormRejection, JsonRejection};
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use tower_keep::core::{Problem, StoreError};
use tower_keep::data::cache::LoadError;
use tower_keep::data::lock::LockError;
use tower_keep::data::queue::QueueError;
use tower_keep::data::topic::TopicError;
use tower_keep::data::{DataError, DataErrorKind};
use tower_keep::reservation::{ReservationError, ReservationRejection};
use tower_keep::session::{SessionError, SessionRejection};

/// A refusal of a handler: a status, a code, a sentence.
#[derive(Debug)]
pub enum Fault {
    Plain(StatusCode, &'static str, &'static str),
    Ready(Box<Response>),
}

impl Fault {
    pub const NOT_FOUND: Self = Self::Plain(
        StatusCode::NOT_FOUND,
        "NOT_FOUND",
        "there is nothing here for you",
    );
    pub const UNAUTHENTICATED: Self =
        Self::Plain(StatusCode::UNAUTHORIZED, "UNAUTHENTICATED", "log in first");
    pub const FORBIDDEN: Self = Self::Plain(
        StatusCode::FORBIDDEN,
        "FORBIDDEN",
        "your role does not allow this",
    );
    pub const INVALID_VALUE: Self = Self::Plain(
        StatusCode::UNPROCESSABLE_ENTITY,
        "INVALID_VALUE",
        "one of the values cannot be taken",
    );
    pub const SLOT_NOT_OFFERED: Self = Self::Plain(
        StatusCode::UNPROCESSABLE_ENTITY,
        "SLOT_NOT_OFFERED",
        "this start is not offered",
    );
    pub const INTERNAL: Self = Self::Plain(
        StatusCode::INTERNAL_SERVER_ERROR,
        "INTERNAL",
        "something went wrong here",
    );
    pub const UNKNOWN_ROLE: Self = Self::Plain(
        StatusCode::UNPROCESSABLE_ENTITY,
        "UNKNOWN_ROLE",
        "roles are patient, expert, admin and superadmin",
    );

    pub const PAYMENT_PROVIDER: Self = Self::Plain(
        StatusCode::BAD_GATEWAY,
        "PAYMENT_PROVIDER",
        "the payment provider does not answer, try again",
    );
    pub const TOO_LARGE: Self = Self::Plain(
        StatusCode::PAYLOAD_TOO_LARGE,
        "BODY_TOO_LARGE",
        "a body has 64 KiB at most",
    );

    pub const fn validation(why: &'static str) -> Self {
        Self::Plain(StatusCode::BAD_REQUEST, "VALIDATION", why)
    }

    /// A form that is incomplete, or too large.
    #[allow(clippy::needless_pass_by_value, reason = "as a function for map_err")]
    pub fn of_form(rejection: FormRejection) -> Self {
        if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
            return Self::TOO_LARGE;
        }
        Self::validation("the form is incomplete")
    }

    pub const fn conflict(code: &'static str, why: &'static str) -> Self {
        Self::Plain(StatusCode::CONFLICT, code, why)
    }

    fn store_unavailable(retry_after: u64) -> Self {
        let problem = Problem::store_unavailable(retry_after);
        Self::Ready(Box::new(problem.response().map(Body::from)))
    }
}

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        match self {
            Self::Plain(status, code, why) => Problem::new(status, code)
                .detail(why)
                .response()
                .map(Body::from),
            Self::Ready(response) => *response,
        }
    }
}

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

/// A JSON body; whatever is wrong with it is 400 `VALIDATION`, or 413 when it is too large.
pub struct Input<T>(pub T);

impl<T: serde::de::DeserializeOwned, S: Send + Sync> FromRequest<S> for Input<T> {
    type Rejection = Fault;

    async fn from_request(request: Request, state: &S) -> Result<Self, Fault> {
        match axum::Json::from_request(request, state).await {
            Ok(axum::Json(value)) => Ok(Self(value)),
            Err(JsonRejection::BytesRejection(rejection))
                if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE =>
            {
                Err(Fault::TOO_LARGE)
            }
            Err(_) => Err(Fault::validation(
                "the body is not the JSON that this route takes",
            )),
        }
    }
}
