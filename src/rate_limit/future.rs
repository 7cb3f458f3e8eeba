//! The response future, written by hand: principal and store, inner service, refund.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{Request, Response, request};
use pin_project_lite::pin_project;
use smallvec::SmallVec;
use tower_service::Service;

use super::config::Config;
use super::head::Client;
use super::headers::RateLimitFields;
use super::service::{Advanced, Wait, with_answer, with_principal};
use super::status::Statuses;
use super::store::{Charge, Receipt, Refunded, Source};
use crate::core::{Body, StoreFuture};

pin_project! {
    /// The future of [`RateLimit`](super::RateLimit).
    ///
    /// Dropped while the store is asked: the request is perhaps charged, the inner service was not called.
    /// While the inner service runs: it is charged. During a refund: refunded or not. Nothing is left locked,
    /// and whatever was charged ages out within its window.
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<S, B>
    where
        S: Service<Request<B>>,
    {
        #[pin]
        state: State<S, B, S::Future, S::Response>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, B, F, R> {
        /// Nothing more to wait for.
        Refused { response: Option<Response<Bytes>> },
        /// For the principal, or for the store's decision.
        Waiting { waiting: Option<Box<Waiting<S, B>>> },
        Inner { #[pin] future: F, admitted: Option<Admitted> },
        Refund { answer: StoreFuture<Refunded>, config: Arc<Config>, response: Option<R> },
    }
}

/// What waits for an answer: the ready service and the request. Behind one pointer, to keep the future small.
pub(super) struct Waiting<S, B> {
    pub(super) wait: Box<Wait>,
    pub(super) inner: S,
    pub(super) parts: request::Parts,
    pub(super) body: B,
    pub(super) config: Arc<Config>,
}

/// What an admitted request still owes to its response.
#[derive(Debug)]
pub(super) struct Admitted {
    fields: RateLimitFields,
    refunds: Option<Box<Refunds>>,
}

struct Refunds {
    config: Arc<Config>,
    source: Source,
    charged: Statuses,
}

impl Admitted {
    pub(super) fn new(
        config: &Arc<Config>,
        source: Source,
        own: &Statuses,
        fields: RateLimitFields,
    ) -> Self {
        let refunds = config.refunds.then(|| {
            Box::new(Refunds {
                config: Arc::clone(config),
                source,
                charged: own.clone(),
            })
        });
        Self { fields, refunds }
    }
}

impl Refunds {
    /// Asks the policies whether this response is free of charge, and if so starts the refund of those that say yes.
    fn begin<R>(self, response: Response<R>) -> (Option<StoreFuture<Refunded>>, Response<R>) {
        let (parts, body) = response.into_parts();
        let mut charges: SmallVec<[Charge<'_>; 4]> = SmallVec::new();
        let mut states = SmallVec::<[_; 4]>::new();
        for entry in &self.charged {
            let rule = &self.config.rules[entry.rule];
            let wanted = rule.policy.refund_when.as_ref();
            if entry.state.entry.is_some() && wanted.is_some_and(|wanted| wanted(&parts)) {
                charges.push(entry.charge());
                states.push(entry.state);
            }
        }
        let refund = (!charges.is_empty()).then(|| {
            let receipt = Receipt::new(&charges, &states);
            self.config.store_of(self.source).refund(&receipt)
        });
        (refund, Response::from_parts(parts, body))
    }
}

impl fmt::Debug for Refunds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refunds").finish_non_exhaustive()
    }
}

impl<S, B> ResponseFuture<S, B>
where
    S: Service<Request<B>>,
{
    // Each is written as one literal: a helper in between would move the inner future once more.
    #[inline]
    pub(super) fn inner(future: S::Future, admitted: Option<Admitted>) -> Self {
        Self {
            state: State::Inner { future, admitted },
        }
    }

    #[inline]
    pub(super) fn refused(response: Response<Bytes>) -> Self {
        let response = Some(response);
        Self {
            state: State::Refused { response },
        }
    }

    pub(super) fn waiting(waiting: Waiting<S, B>) -> Self {
        let waiting = Some(Box::new(waiting));
        Self {
            state: State::Waiting { waiting },
        }
    }
}

impl<S, B, F, R> State<S, B, F, R> {
    /// Goes where the answer of a request that waited leads.
    fn after(advanced: Advanced, mut waiting: Box<Waiting<S, B>>) -> Self
    where
        S: Service<Request<B>, Future = F>,
    {
        let admitted = match advanced {
            Advanced::Pass => None,
            Advanced::Admitted(admitted) => Some(admitted),
            Advanced::Refused(response) => {
                return Self::Refused {
                    response: Some(response),
                };
            }
            Advanced::Wait(wait) => {
                waiting.wait = wait;
                return Self::Waiting {
                    waiting: Some(waiting),
                };
            }
        };
        let Waiting {
            mut inner,
            parts,
            body,
            ..
        } = *waiting;
        let future = inner.call(Request::from_parts(parts, body));
        Self::Inner { future, admitted }
    }
}

impl<S, B> Waiting<S, B> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Advanced> {
        Poll::Ready(match &mut *self.wait {
            Wait::Principal(answer) => {
                let principal = ready!(Pin::new(answer).poll(cx));
                let mut client = Client::known(&self.parts.extensions);
                with_principal(&self.config, &mut self.parts, &mut client, principal)
            }
            Wait::Store(answer, asked, own) => {
                let answer = ready!(Pin::new(answer).poll(cx));
                let (config, parts) = (&self.config, &mut self.parts);
                let mut client = Client::known(&parts.extensions);
                with_answer(config, parts, &mut client, answer, *asked, own)
            }
        })
    }
}

impl<S, B, R> Future for ResponseFuture<S, B>
where
    S: Service<Request<B>, Response = Response<R>>,
{
    type Output = Result<Response<Body<R>>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            let next = match state.as_mut().project() {
                StateProj::Refused { response } => {
                    return take(response).map(|response| Ok(response.map(Body::bytes)));
                }
                StateProj::Waiting { waiting: slot } => {
                    let mut waiting = ready!(take(slot));
                    match waiting.poll(cx) {
                        Poll::Ready(advanced) => State::after(advanced, waiting),
                        Poll::Pending => {
                            *slot = Some(waiting);
                            return Poll::Pending;
                        }
                    }
                }
                StateProj::Inner { future, admitted } => {
                    let mut response = ready!(future.poll(cx))?;
                    let Some(admitted) = admitted.take() else {
                        return Poll::Ready(Ok(response.map(Body::pass)));
                    };
                    admitted.fields.apply(response.headers_mut());
                    let Some(refunds) = admitted.refunds else {
                        return Poll::Ready(Ok(response.map(Body::pass)));
                    };
                    let config = Arc::clone(&refunds.config);
                    match refunds.begin(response) {
                        (None, response) => return Poll::Ready(Ok(response.map(Body::pass))),
                        (Some(answer), response) => State::Refund {
                            answer,
                            config,
                            response: Some(response),
                        },
                    }
                }
                StateProj::Refund {
                    answer,
                    config,
                    response,
                } => {
                    let refunded = ready!(Pin::new(answer).poll(cx));
                    config.meters.refund(refunded.ok());
                    return take(response).map(|response| Ok(response.map(Body::pass)));
                }
            };
            state.set(next);
        }
    }
}

/// Takes what can be taken once; a future polled after its end stays pending.
fn take<T>(slot: &mut Option<T>) -> Poll<T> {
    slot.take().map_or(Poll::Pending, Poll::Ready)
}

impl<S, B> fmt::Debug for ResponseFuture<S, B>
where
    S: Service<Request<B>>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Refused { .. } => "refused",
            State::Waiting { .. } => "waiting",
            State::Inner { .. } => "inner",
            State::Refund { .. } => "refund",
        };
        f.debug_struct("ResponseFuture")
            .field("state", &state)
            .finish()
    }
}
