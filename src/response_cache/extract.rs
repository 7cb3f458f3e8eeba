//! axum's side: a [`CachePolicy`](super::CachePolicy) as part of a response, and the URI before a router cut it.

use http::{Extensions, Uri};

/// Returns the URI that the client sent, where a router has taken a prefix away.
#[cfg(feature = "axum")]
pub(super) fn original_uri(extensions: &Extensions) -> Option<&Uri> {
    extensions
        .get::<axum::extract::OriginalUri>()
        .map(|original| &original.0)
}

#[cfg(not(feature = "axum"))]
pub(super) const fn original_uri(_: &Extensions) -> Option<&Uri> {
    None
}

#[cfg(feature = "axum")]
impl axum_core::response::IntoResponseParts for super::CachePolicy {
    type Error = std::convert::Infallible;

    fn into_response_parts(
        self,
        mut response: axum_core::response::ResponseParts,
    ) -> Result<axum_core::response::ResponseParts, Self::Error> {
        response.extensions_mut().insert(self);
        Ok(response)
    }
}
