//! axum: the extractor of `Last-Event-ID`, and feeds and errors as responses.

use std::convert::Infallible;

use axum_core::extract::FromRequestParts;
use axum_core::response::{IntoResponse, Response};
use http::StatusCode;
use http::request::Parts;

use super::error::{TopicError, TopicErrorKind};
use super::sse::{LastEventId, TopicSse};
use crate::core::Problem;

impl<S: Sync> FromRequestParts<S> for LastEventId {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self::from_request(&parts.headers, parts.uri.query()))
    }
}

impl IntoResponse for TopicSse {
    fn into_response(self) -> Response {
        self.response().map(axum_core::body::Body::new)
    }
}

impl IntoResponse for TopicError {
    fn into_response(self) -> Response {
        let problem = match self.kind() {
            TopicErrorKind::Unavailable { retry_after } | TopicErrorKind::Full { retry_after } => {
                Problem::store_unavailable(retry_after)
            }
            TopicErrorKind::TimedOut => Problem::store_unavailable(1),
            TopicErrorKind::TooLarge { .. } => {
                Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "BODY_TOO_LARGE")
            }
            TopicErrorKind::Unencodable | TopicErrorKind::Failed => {
                Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "INTERNAL")
            }
        };
        problem.response().map(axum_core::body::Body::from)
    }
}
