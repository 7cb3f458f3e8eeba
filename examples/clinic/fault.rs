//! What handlers say when they cannot: one type, made of whatever the layers and services below them say.
//!
//! Try it: `curl -i localhost:8080/api/user/me`
//!
//! Proof: `wrong_wishes_get_their_code_and_hold_nothing`

mod causes;
mod input;
mod text;

use axum::body::Body;
use axum::extract::rejection::FormRejection;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use tower_keep::core::Problem;

pub use self::input::Input;
pub use self::text::{line, lines};

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
    pub const TOO_SLOW: Self = Self::Plain(
        StatusCode::REQUEST_TIMEOUT,
        "REQUEST_TIMEOUT",
        "a body has ten seconds to come",
    );

    /// A value that cannot be taken: which member, and why.
    pub fn invalid(field: &'static str, why: &str) -> Self {
        let problem = Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "INVALID_VALUE")
            .detail(format!("{field} {why}"))
            .member("field", field);
        Self::Ready(Box::new(problem.response().map(Body::from)))
    }

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
