//! The service: opens the way for guards, calls inside, and ends the transaction before anybody sees the answer.

use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use tower_service::Service;

use super::config::Config;
use super::future::ResponseFuture;
use super::guard::GuardSource;
use super::request;
use super::route::Route;
use crate::core::Body;

/// Middleware made by [`ReservationLayer`](super::ReservationLayer).
#[derive(Clone, Debug)]
pub struct Reservation<S> {
    inner: S,
    config: Arc<Config>,
}

impl<S> Reservation<S> {
    pub(crate) const fn new(inner: S, config: Arc<Config>) -> Self {
        Self { inner, config }
    }
}

impl<S, B, ResBody> Service<Request<B>> for Reservation<S>
where
    S: Service<Request<B>, Response = Response<ResBody>> + Clone,
{
    type Response = Response<Body<ResBody>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, ResBody, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let route = Route::of(&request);
        let own = request::Request::open(&self.config, Some(request.extensions_mut()));
        request
            .extensions_mut()
            .insert(GuardSource(Arc::clone(&own)));
        // Called right here: it is the one that was made ready, and no clone of it has to be left.
        ResponseFuture::new(self.inner.call(request), own, route)
    }
}
