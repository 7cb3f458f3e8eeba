//! The one refusal: a client wanted a stored answer or none, and there is none.

use std::fmt;

use bytes::Bytes;
use http::{Response, StatusCode};

use crate::core::{Problem, ResponseCacheOutcome};

use super::config::Config;

/// Why the cache refused; also in the response's extensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ResponseCacheRejection {
    /// The request said `only-if-cached`, and nothing usable is stored (RFC 9111 §5.2.1.7).
    NotStored,
}

impl fmt::Display for ResponseCacheRejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nothing usable is stored, and the request allows no other answer")
    }
}

impl std::error::Error for ResponseCacheRejection {}

impl ResponseCacheRejection {
    /// Makes the response: 504, a problem document, changed by the layer's hook if there is one.
    pub(super) fn response(self, config: &Config) -> Response<Bytes> {
        let mut response = Problem::new(StatusCode::GATEWAY_TIMEOUT, "NOT_STORED")
            .detail("nothing usable is stored, and only-if-cached allows no other answer")
            .response();
        if let Some(hook) = &config.on_rejection {
            hook(&self, &mut response);
        }
        let extensions = response.extensions_mut();
        extensions.insert(self);
        extensions.insert(ResponseCacheOutcome::Refused);
        response
    }
}
