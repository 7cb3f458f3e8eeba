//! The one place that takes the ready inner service, and gives readiness back that is not used.

use std::future::poll_fn;

use tower_service::Service;

/// Takes the service that `poll_ready` made ready and leaves a fresh clone in its place.
///
/// Tower's contract: only the very value that was polled ready may be called. A middleware that keeps
/// working after `call` returns must take that one along, not a clone of it.
pub fn take_ready<S: Clone>(service: &mut S) -> S {
    let fresh = service.clone();
    std::mem::replace(service, fresh)
}

/// Empties the extensions of a request that ends here: its answer puts its own in their place, and need not make any.
pub(crate) fn emptied(extensions: &mut http::Extensions) -> http::Extensions {
    let mut spare = std::mem::take(extensions);
    spare.clear();
    spare
}

/// The URI that the client sent: nothing but axum's routers cuts prefixes.
#[cfg(not(feature = "axum"))]
pub(crate) const fn original_uri(_: &http::Extensions) -> Option<&http::Uri> {
    None
}

/// The inner service of one request that may have to wait: readied for the first call, and again for any further one.
pub(crate) struct Inner<S> {
    service: S,
    is_ready: bool,
}

impl<S: Clone> Inner<S> {
    pub(crate) const fn new(ready: S) -> Self {
        Self {
            service: ready,
            is_ready: true,
        }
    }

    /// Gives readiness back while this request waits for others: it may be a place that they need.
    pub(crate) fn rest(&mut self) {
        if std::mem::take(&mut self.is_ready) {
            drop(take_ready(&mut self.service));
        }
    }
}

impl<S> Inner<S> {
    /// Waits for readiness where that was given back, or used up by an earlier call.
    pub(crate) async fn ready<Q>(&mut self) -> Result<(), S::Error>
    where
        S: Service<Q>,
    {
        if !self.is_ready {
            poll_fn(|cx| self.service.poll_ready(cx)).await?;
            self.is_ready = true;
        }
        Ok(())
    }

    /// Calls it once it is ready.
    pub(crate) async fn call<Q>(&mut self, request: Q) -> Result<S::Response, S::Error>
    where
        S: Service<Q>,
    {
        self.ready().await?;
        self.is_ready = false;
        self.service.call(request).await
    }
}
