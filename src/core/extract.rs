//! axum: the principal as an extractor, and the URI before a router cut it.

use axum_core::extract::{FromRequestParts, OptionalFromRequestParts};
use axum_core::response::{IntoResponse, Response};
use http::request::Parts;
use http::{Extensions, Uri};

use super::principal::{Principal, PrincipalRejection, Visitor, principal_of};

/// Returns the URI that the client sent, where a router has taken a prefix away.
pub(crate) fn original_uri(extensions: &Extensions) -> Option<&Uri> {
    extensions
        .get::<axum::extract::OriginalUri>()
        .map(|original| &original.0)
}

impl IntoResponse for PrincipalRejection {
    fn into_response(self) -> Response {
        self.response().map(Into::into)
    }
}

/// Asks who the visitor is, and marks the answer as personal; 401 without a principal.
impl<S: Send + Sync> FromRequestParts<S> for Principal {
    type Rejection = PrincipalRejection;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, PrincipalRejection> {
        ask(parts).await?.ok_or(PrincipalRejection::Required)
    }
}

/// Asks who the visitor is, and marks the answer as personal.
impl<S: Send + Sync> OptionalFromRequestParts<S> for Principal {
    type Rejection = PrincipalRejection;

    async fn from_request_parts(
        parts: &mut Parts,
        _: &S,
    ) -> Result<Option<Self>, PrincipalRejection> {
        Ok(ask(parts).await?)
    }
}

async fn ask(parts: &Parts) -> Result<Option<Principal>, super::StoreError> {
    if let Some(visitor) = parts.extensions.get::<Visitor>() {
        visitor.mark_personal();
    }
    principal_of(&parts.extensions).await
}
