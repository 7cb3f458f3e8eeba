//! axum: what a request was told, as an extractor; a refusal, as a response.

use std::convert::Infallible;

use axum_core::body::Body;
use axum_core::extract::FromRequestParts;
use axum_core::response::{IntoResponse, Response};
use http::Extensions;
use http::request::Parts;

use super::rejection::RateLimitRejection;
use super::status::RateLimitStatus;

/// The route that axum matched.
pub(super) fn matched_path(extensions: &Extensions) -> Option<&str> {
    let matched = extensions.get::<axum::extract::MatchedPath>();
    matched.map(|path| path.as_str())
}

impl<S: Sync> FromRequestParts<S> for RateLimitStatus {
    type Rejection = Infallible;

    /// Returns the states so far; empty where no limit applied.
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(parts.extensions.get().cloned().unwrap_or_default())
    }
}

impl IntoResponse for RateLimitRejection {
    fn into_response(self) -> Response {
        self.response().map(Body::from)
    }
}
