//! The service: passes what is not guarded, refuses what has no valid key, and hands the rest to its run.

use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body as HttpBody;
use tower_service::Service;

use super::claim;
use super::config::Config;
use super::fingerprint::FingerprintRule;
use super::future::ResponseFuture;
use super::intake::Gist;
use super::key::ClientKey;
use super::rejection::{IdempotencyRejection, RejectionCause};
use super::running::Runs;
use crate::core::{Body, take_ready};

/// Guards the service inside; made by [`IdempotencyLayer`](super::IdempotencyLayer).
#[derive(Clone, Debug)]
pub struct Idempotency<S> {
    inner: S,
    shared: Arc<Shared>,
}

/// What all requests of one service share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) config: Arc<Config>,
    pub(super) runs: Arc<Runs>,
    pub(super) rule: FingerprintRule,
    pub(super) rule_tag: u8,
}

impl Shared {
    pub(super) fn new(config: &Arc<Config>, runs: &Arc<Runs>) -> Arc<Self> {
        let rule = config.rule();
        Arc::new(Self {
            config: Arc::clone(config),
            runs: Arc::clone(runs),
            rule_tag: rule.tag(),
            rule,
        })
    }
}

impl<S> Idempotency<S> {
    pub(super) const fn new(inner: S, shared: Arc<Shared>) -> Self {
        Self { inner, shared }
    }
}

impl<S, B, R> Service<Request<B>> for Idempotency<S>
where
    S: Service<Request<Body<B>>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Send,
    R: HttpBody<Data = Bytes> + Send + 'static,
    R::Error: Send,
{
    type Response = Response<Body<R>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, R, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let mut inner = take_ready(&mut self.inner);
        match admit(&self.shared.config, &mut request) {
            Admitted::Pass => ResponseFuture::pass(inner.call(request.map(Body::pass))),
            Admitted::Refused(cause) => {
                let rejection = IdempotencyRejection::new(cause, None);
                ResponseFuture::refused(claim::refuse(&self.shared.config, rejection))
            }
            Admitted::Guard(key) => {
                let shared = Arc::clone(&self.shared);
                let state = Arc::new(shared.runs.came());
                let (parts, body) = request.into_parts();
                let request = (Gist::of(parts), body);
                let guarded = claim::guarded(inner, request, key, shared, Arc::clone(&state));
                #[cfg(feature = "tracing")]
                {
                    let span = super::span::of_request();
                    // One that nobody listens to costs the request no room.
                    if !span.is_disabled() {
                        let guarded = tracing::Instrument::instrument(guarded, span);
                        return ResponseFuture::guarded(Box::pin(guarded), state);
                    }
                }
                ResponseFuture::guarded(Box::pin(guarded), state)
            }
        }
    }
}

enum Admitted {
    Pass,
    Refused(RejectionCause),
    /// With the client's key, or without one where it is derived.
    Guard(Option<ClientKey>),
}

fn admit<B>(config: &Config, request: &mut Request<B>) -> Admitted {
    if !config.methods.guard(request.method()) {
        return Admitted::Pass;
    }
    if config.derive.is_some() {
        return Admitted::Guard(None);
    }
    let mut lines = request.headers().get_all(&config.key_field).iter();
    let key = match (lines.next(), lines.next()) {
        (None, _) if config.key_required => return Admitted::Refused(RejectionCause::KeyMissing),
        (None, _) => return Admitted::Pass,
        (Some(line), None) => config.key_format.read(line),
        (Some(_), Some(_)) => None,
    };
    let Some(key) = key else {
        return Admitted::Refused(RejectionCause::KeyInvalid);
    };
    if let Some(line) = request.headers_mut().get_mut(&config.key_field) {
        line.set_sensitive(true);
    }
    Admitted::Guard(Some(key))
}
