//! Which route a request went to, for the log.

use std::fmt;

use http::{Method, Request, Uri};

/// The method, and the path as the router knows it: without a client's values in it. Where no router says, the path as
/// it was asked for.
#[derive(Debug)]
pub(crate) struct Route {
    method: Method,
    #[cfg(feature = "axum")]
    matched: Option<super::extract::Matched>,
    asked: Option<Uri>,
}

impl Route {
    /// Takes handles only: nothing is copied for a request that ends well.
    pub(crate) fn of<B>(request: &Request<B>) -> Self {
        #[cfg(feature = "axum")]
        let matched = super::extract::matched(request.extensions());
        #[cfg(feature = "axum")]
        let is_known = matched.is_some();
        #[cfg(not(feature = "axum"))]
        let is_known = false;
        Self {
            method: request.method().clone(),
            #[cfg(feature = "axum")]
            matched,
            asked: (!is_known).then(|| request.uri().clone()),
        }
    }

    fn path(&self) -> &str {
        #[cfg(feature = "axum")]
        if let Some(matched) = &self.matched {
            return matched.as_str();
        }
        self.asked.as_ref().map_or("", Uri::path)
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.path())
    }
}
