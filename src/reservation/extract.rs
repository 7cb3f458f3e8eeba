//! The guard as an axum extractor, refusals as axum responses, and the two overrides of the rule.

pub(crate) use axum::extract::MatchedPath as Matched;
use axum_core::extract::FromRequestParts;
use axum_core::response::{IntoResponse, Response};
use http::request::Parts;

use super::guard::{GuardEngine, ReservationGuard};
use super::rejection::{ReservationError, ReservationRejection};
use crate::core::Ending;

impl<S: Sync, D: GuardEngine> FromRequestParts<S> for ReservationGuard<D> {
    type Rejection = ReservationRejection;

    /// The database never fails an extraction: nothing is opened yet.
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ReservationRejection> {
        Ok(Self::from_extensions(&parts.extensions)?)
    }
}

impl IntoResponse for ReservationRejection {
    fn into_response(self) -> Response {
        self.response().map(axum_core::body::Body::from)
    }
}

impl IntoResponse for ReservationError {
    fn into_response(self) -> Response {
        ReservationRejection::from(self).into_response()
    }
}

/// The path that an axum router has matched.
pub(crate) fn matched(extensions: &http::Extensions) -> Option<Matched> {
    extensions.get::<Matched>().cloned()
}

/// Commits whatever the status: a refusal can keep its audit row.
#[derive(Clone, Copy, Debug)]
pub struct Commit<R>(pub R);

/// Rolls back whatever the status.
#[derive(Clone, Copy, Debug)]
pub struct Rollback<R>(pub R);

impl<R: IntoResponse> IntoResponse for Commit<R> {
    fn into_response(self) -> Response {
        said(self.0, Ending::Commit)
    }
}

impl<R: IntoResponse> IntoResponse for Rollback<R> {
    fn into_response(self) -> Response {
        said(self.0, Ending::Rollback)
    }
}

fn said(response: impl IntoResponse, ending: Ending) -> Response {
    let mut response = response.into_response();
    response.extensions_mut().insert(ending);
    response
}
