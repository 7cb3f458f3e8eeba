//! The service: reads top-down like the specification.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use tower_service::Service;

use super::ask::{self, Classified};
use super::config::Config;
use super::decide::{self, Failed};
use super::future::{Admitted, ResponseFuture, Waiting};
use super::head::{Client, Head};
use super::headers::RateLimitFields;
use super::refuse::{limited, refused};
use super::rejection::RateLimitRejection;
use super::status::{RateLimitStatus, Statuses};
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
        let advanced = if self.config.reads_parts {
            let (mut parts, body) = request.into_parts();
            let advanced = begin(&self.config, &mut parts);
            request = Request::from_parts(parts, body);
            advanced
        } else {
            begin(&self.config, &mut request)
        };
        match advanced {
            Advanced::Pass => ResponseFuture::inner(self.inner.call(request), None),
            Advanced::Admitted(admitted) => {
                ResponseFuture::inner(self.inner.call(request), Some(admitted))
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
    Store(StoreFuture<Verdict>, Source, Statuses),
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
        return with_principal(config, head, &mut client, Ok(None));
    }
    match principal_of(head.view().extensions).try_now() {
        Ok(principal) => with_principal(config, head, &mut client, principal),
        Err(later) => Advanced::Wait(Box::new(Wait::Principal(later))),
    }
}

/// Goes on once it is known who asks.
pub(super) fn with_principal(
    config: &Arc<Config>,
    head: &mut impl Head,
    client: &mut Client,
    principal: Result<Option<Principal>, StoreError>,
) -> Advanced {
    let unguarded = principal.is_err();
    let mut own = Statuses::new();
    match ask::ask(config, head.view(), client, principal, &mut own) {
        Ok(()) if own.is_empty() => {
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
        Ok(()) => ask_store(config, head, client, &mut own, Source::Store),
        Err(rejection) => {
            config.meters.unavailable.add_one();
            refuse(config, rejection)
        }
    }
}

fn ask_store(
    config: &Arc<Config>,
    head: &mut impl Head,
    client: &mut Client,
    own: &mut Statuses,
    asked: Source,
) -> Advanced {
    let answer = config
        .store_of(asked)
        .check_and_record(&config.charges(own, asked));
    // Read where it lies: the usual answer is known by now, and large.
    if let Some(verdict) = answer.known() {
        return decided(config, head, client, verdict, asked, own);
    }
    match answer.try_now() {
        Ok(answer) => with_answer(config, head, client, answer, asked, own),
        Err(later) => {
            client.hand_on(head);
            Advanced::Wait(Box::new(Wait::Store(later, asked, std::mem::take(own))))
        }
    }
}

/// Goes on once the store has answered.
pub(super) fn with_answer(
    config: &Arc<Config>,
    head: &mut impl Head,
    client: &mut Client,
    answer: Result<Verdict, StoreError>,
    asked: Source,
    own: &mut Statuses,
) -> Advanced {
    let fault = match answer {
        Ok(verdict) => return decided(config, head, client, &verdict, asked, own),
        Err(fault) => fault,
    };
    match decide::failed(config, fault, asked) {
        Failed::AskLocal => ask_store(config, head, client, own, Source::Local),
        Failed::Unguarded => {
            config.meters.unguarded.add_one();
            client.hand_on(head);
            Advanced::Pass
        }
        Failed::Refuse(fault) => {
            config.meters.unavailable.add_one();
            refuse(config, RateLimitRejection::unavailable(&fault))
        }
    }
}

#[inline]
fn decided(
    config: &Arc<Config>,
    head: &mut impl Head,
    client: &mut Client,
    verdict: &Verdict,
    asked: Source,
    own: &mut Statuses,
) -> Advanced {
    let source = decide::answered(config, verdict, asked);
    decide::note(config, own, verdict, source);
    if !verdict.admitted {
        config.meters.limited.add_one();
        // The request goes nowhere: the table of its extensions is free for the answer's.
        let extensions = std::mem::take(head.extensions_mut());
        return Advanced::Refused(limited(config, extensions, std::mem::take(own)));
    }
    config.meters.admitted.add_one();
    let earlier = head.extensions_mut().get_mut::<RateLimitStatus>();
    let fields = RateLimitFields::render(config, earlier.as_deref(), own);
    let admitted = Admitted::new(config, source, own, fields);
    let (own, older) = (std::mem::take(own), config.settings.fields.legacy);
    match earlier {
        Some(status) => status.extend(own, older),
        None => drop(
            head.extensions_mut()
                .insert(RateLimitStatus::of(own, older)),
        ),
    }
    client.hand_on(head);
    Advanced::Admitted(admitted)
}

fn refuse(config: &Config, rejection: RateLimitRejection) -> Advanced {
    Advanced::Refused(refused(config, rejection))
}
