//! The session as an axum extractor, and refusals as axum responses.

use axum_core::extract::FromRequestParts;
use axum_core::response::{IntoResponse, Response};
use http::request::Parts;

use super::error::{SessionError, SessionErrorKind};
use super::handle::Session;
use super::rejection::SessionRejection;
use crate::core::telemetry::{Once, error, seldom};

/// Takes the handle; touches nothing. 500 without the layer.
impl<S: Send + Sync> FromRequestParts<S> for Session {
    type Rejection = SessionError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, SessionError> {
        static SAID: Once = Once::new();
        let Some(session) = Self::of(&parts.extensions) else {
            if SAID.first() {
                error!("a handler wants a session, but its route has no SessionLayer");
            }
            return Err(SessionError::new(SessionErrorKind::NoLayer));
        };
        session.begin();
        Ok(session)
    }
}

impl IntoResponse for SessionError {
    fn into_response(self) -> Response {
        SessionRejection::Fault(self).into_response()
    }
}

impl IntoResponse for SessionRejection {
    fn into_response(self) -> Response {
        if self.status() == http::StatusCode::INTERNAL_SERVER_ERROR {
            seldom!(error, "a handler misused its session: {self}");
        }
        self.response().map(Into::into)
    }
}
