//! The service: reads top-down like the specification.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use tower_service::Service;

use super::ask::{self, Classified};
use super::config::Config;
use super::decide::{self, Decided, Failed};
use super::future::{Admitted, ResponseFuture, Waiting};
use super::head::{Client, Head};
use super::headers::RateLimitFields;
use super::refuse::{limited, refused};
use super::rejection::RateLimitRejection;
use super::rule::Asks;
use super::status::RateLimitStatus;
use super::store::{Source, Verdict};
use crate::core::{Body, Principal, StoreError, StoreFuture, principal_of, take_ready};

/// The service that [`RateLimitLayer`](super::RateLimitLayer) makes.
#[derive(Clone)]
pub struct RateLimit<S> {
    inner: S,
    config: Arc<Config>,
}

impl<S> RateLimit<S> {
    pub(super) fn new(inner: S, config: Arc<Config>) -> Self {
        Self { inner, config }
    }
}

impl<S: fmt::Debug> fmt::Debug for RateLimit<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimit")
            .field("inner", &self.inner)
            .field("group", &self.config.settings.group)
            .finish_non_exhaustive()
    }
}

impl<S, B, R> Service<Request<B>> for RateLimit<S>
where
    S: Service<Request<B>, Response = Response<R>> + Clone,
{
    type Response = Response<Body<R>>;
    type Error = S::Error;
    type Future = ResponseFuture<S, B>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    /// What is already known (memory, and everything that needs no store) is decided here and now, on the
    /// service that is ready; only where an answer is on its way the ready service moves into the future.
    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        if !self.config.reads_parts {
            let advanced = begin(&self.config, &mut request);
            return self.go(advanced, request);
        }
        let (mut parts, body) = request.into_parts();
        let advanced = begin(&self.config, &mut parts);
        self.go(advanced, Request::from_parts(parts, body))
    }
}

impl<S> RateLimit<S> {
    #[inline]
    fn go<B, R>(&mut self, advanced: Advanced, request: Request<B>) -> ResponseFuture<S, B>
    where
        S: Service<Request<B>, Response = Response<R>> + Clone,
    {
        match advanced {
            Advanced::Pass => ResponseFuture::pass(self.inner.call(request)),
            Advanced::Admitted(admitted) => {
                ResponseFuture::admitted(self.inner.call(request), admitted)
            }
            Advanced::Refused(refused) => {
                // Whatever readiness reserved is given back.
                drop(take_ready(&mut self.inner));
                ResponseFuture::refused(refused)
            }
            Advanced::Wait(wait) => {
                let (parts, body) = request.into_parts();
                ResponseFuture::waiting(Waiting {
                    wait,
                    inner: take_ready(&mut self.inner),
                    parts,
                    body,
                    config: Arc::clone(&self.config),
                })
            }
        }
    }
}

/// Where that leads: to an end, or to the next answer.
pub(super) enum Advanced {
    Pass,
    Admitted(Admitted),
    Refused(Response<bytes::Bytes>),
    Wait(Box<Wait>),
}

/// An answer that is on its way.
#[allow(
    clippy::large_enum_variant,
    reason = "always boxed, and the larger variant is the usual one"
)]
pub(super) enum Wait {
    Principal(StoreFuture<Option<Principal>>),
    Store(StoreFuture<Verdict>, Source, Asks),
}

fn begin(config: &Arc<Config>, head: &mut impl Head) -> Advanced {
    let (classified, mut client) = ask::classify(config, head.view());
    match classified {
        Classified::Pass => {
            config.meters.passed.add_one();
            client.hand_on(head);
            return Advanced::Pass;
        }
        Classified::Refuse(rejection) => {
            config.meters.listed.add_one();
            return refuse(config, rejection);
        }
        Classified::Limit => {}
    }
    if config.reads_parts || config.asks_principal {
        client.hand_on(head);
    }
    if !config.asks_principal {
        return with_principal(config, head, client, Ok(None));
    }
    match principal_of(head.view().extensions).try_now() {
        Ok(principal) => with_principal(config, head, client, principal),
        Err(later) => Advanced::Wait(Box::new(Wait::Principal(later))),
    }
}

/// Goes on once it is known who asks.
pub(super) fn with_principal(
    config: &Arc<Config>,
    head: &mut impl Head,
    mut client: Client,
    principal: Result<Option<Principal>, StoreError>,
) -> Advanced {
    let unguarded = principal.is_err();
    let mut asks = Asks::new();
    match ask::ask(config, head.view(), client, principal, &mut asks) {
        Ok(()) if asks.is_empty() => {
            let meters = &config.meters;
            let meter = if unguarded {
                &meters.unguarded
            } else {
                &meters.passed
            };
            meter.add_one();
            client.hand_on(head);
            Advanced::Pass
        }
        Ok(()) => ask_store(config, head, client, &mut asks, Source::Store),
        Err(rejection) => {
            config.meters.unavailable.add_one();
            refuse(config, rejection)
        }
    }
}

fn ask_store(
    config: &Arc<Config>,
    head: &mut impl Head,
    mut client: Client,
    asks: &mut Asks,
    source: Source,
) -> Advanced {
    let answer = config
        .store_of(source)
        .check_and_record(&config.charges(asks, source));
    match answer.try_now() {
        Ok(answer) => with_answer(config, head, client, answer, source, asks),
        Err(later) => {
            client.hand_on(head);
            Advanced::Wait(Box::new(Wait::Store(later, source, std::mem::take(asks))))
        }
    }
}

/// Goes on once the store has answered.
pub(super) fn with_answer(
    config: &Arc<Config>,
    head: &mut impl Head,
    mut client: Client,
    answer: Result<Verdict, StoreError>,
    source: Source,
    asks: &mut Asks,
) -> Advanced {
    match decide::answered(config, answer, source) {
        Err(Failed::AskLocal) => ask_store(config, head, client, asks, Source::Local),
        Err(Failed::Unguarded) => {
            config.meters.unguarded.add_one();
            client.hand_on(head);
            Advanced::Pass
        }
        Err(Failed::Refuse(fault)) => {
            config.meters.unavailable.add_one();
            refuse(config, RateLimitRejection::unavailable(&fault))
        }
        Ok(verdict) => {
            let decided = Decided::of(config, asks, &verdict);
            let earlier = head.extensions_mut().get_mut::<RateLimitStatus>();
            if !decided.admitted {
                config.meters.limited.add_one();
                return Advanced::Refused(limited(config, earlier.as_deref(), decided));
            }
            let fields = RateLimitFields::render(config, earlier.as_deref(), &decided.own);
            config.meters.admitted.add_one();
            let admitted = Admitted::new(config, &decided, fields);
            let older = config.settings.fields.legacy;
            match earlier {
                Some(status) => status.extend(decided.own, older),
                None => drop(
                    head.extensions_mut()
                        .insert(RateLimitStatus::of(decided.own, older)),
                ),
            }
            client.hand_on(head);
            Advanced::Admitted(admitted)
        }
    }
}

fn refuse(config: &Config, rejection: RateLimitRejection) -> Advanced {
    Advanced::Refused(refused(config, rejection))
}
