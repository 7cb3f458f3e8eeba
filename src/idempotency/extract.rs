//! axum: the run as an argument, the directive as a part of a response; the errors of its bodies.

use std::any::Any;
use std::error::Error;

#[cfg(feature = "axum")]
mod axum {
    use std::convert::Infallible;

    use axum_core::extract::{FromRequestParts, OptionalFromRequestParts};
    use axum_core::response::{IntoResponse, IntoResponseParts, Response, ResponseParts};
    use http::StatusCode;
    use http::request::Parts;

    use crate::idempotency::{Directive, IdempotentRun};

    /// A handler asked for the run of a request that no [`IdempotencyLayer`](crate::idempotency::IdempotencyLayer) guards:
    /// 500, since the route is set up wrongly. Where the key is optional, ask for an `Option`.
    #[derive(Clone, Copy, Debug)]
    pub struct NoIdempotentRun;

    impl IntoResponse for NoIdempotentRun {
        fn into_response(self) -> Response {
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }

    impl<S: Sync> FromRequestParts<S> for IdempotentRun {
        type Rejection = NoIdempotentRun;

        async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, NoIdempotentRun> {
            parts.extensions.get().cloned().ok_or(NoIdempotentRun)
        }
    }

    impl<S: Sync> OptionalFromRequestParts<S> for IdempotentRun {
        type Rejection = Infallible;

        async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Infallible> {
            Ok(parts.extensions.get().cloned())
        }
    }

    impl IntoResponseParts for Directive {
        type Error = Infallible;

        fn into_response_parts(
            self,
            mut parts: ResponseParts,
        ) -> Result<ResponseParts, Infallible> {
            parts.extensions_mut().insert(self);
            Ok(parts)
        }
    }
}

#[cfg(feature = "axum")]
pub use axum::NoIdempotentRun;

/// Returns the error of one of axum's own bodies.
#[cfg(feature = "axum")]
pub(super) fn body_error(error: &dyn Any) -> Option<&(dyn Error + 'static)> {
    let own = error.downcast_ref::<axum_core::Error>()?;
    Some(own)
}

#[cfg(not(feature = "axum"))]
pub(super) fn body_error(_: &dyn Any) -> Option<&(dyn Error + 'static)> {
    None
}
