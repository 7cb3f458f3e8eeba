//! The service: puts the handle into the request, and lets the future look at what became of it.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use tower_service::Service;

use super::config::Config;
use super::future::ResponseFuture;
use super::handle::Session;
use crate::core::Body;
use crate::core::telemetry::warn;

/// The service that [`SessionLayer`](super::SessionLayer) makes.
#[derive(Clone)]
pub struct SessionService<S> {
    inner: S,
    config: Arc<Config>,
}

impl<S> SessionService<S> {
    pub(super) const fn new(inner: S, config: Arc<Config>) -> Self {
        Self { inner, config }
    }
}

impl<S: fmt::Debug> fmt::Debug for SessionService<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionService")
            .field("inner", &self.inner)
            .field("config", &self.config)
            .finish()
    }
}

impl<S, B, R> Service<Request<B>> for SessionService<S>
where
    S: Service<Request<B>, Response = Response<R>>,
{
    type Response = Response<Body<R>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, R>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let outer = Session::of(request.extensions());
        if outer.is_some_and(|outer| outer.has_cookie(self.config.cookie.name())) {
            if self.config.said.nested.first() {
                warn!("two session layers with one cookie: the inner one lets requests pass");
            }
            return ResponseFuture::pass(self.inner.call(request));
        }
        let mut is_passive = false;
        if let Some(decide) = &self.config.is_passive {
            // Taking a request apart and joining it again is not free: only where a closure reads its parts.
            let (parts, body) = request.into_parts();
            is_passive = decide(&parts);
            request = Request::from_parts(parts, body);
        }
        // The handle, as the visitor that it is; nothing is decoded, nothing asked.
        let (fields, extensions) = (request.headers(), request.extensions());
        let session = Session::new(fields, extensions, is_passive, &self.config);
        request.extensions_mut().insert(session.visitor());
        ResponseFuture::new(self.inner.call(request), session)
    }
}
