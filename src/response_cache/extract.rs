//! axum: a [`CachePolicy`](super::CachePolicy) as part of a response.

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
