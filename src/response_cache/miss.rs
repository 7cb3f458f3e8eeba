//! The shortest way of a miss: a store of this process, and nobody else fetching.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::HeaderMap;
use http::{Request, Response};
use pin_project_lite::pin_project;

use crate::core::Body;

use super::body::BoxError;
use super::exchange::Exchange;
use super::fetch::{Fetch, LeaseHold};
use super::flight::{Entered, Leader};
use super::future::Leads;
use super::keep::Fetched;
use super::look::Looked;
use super::meters::FetchMeter;
use super::revalidate;
use super::run::{Answer, Step};
use super::store::{Place, Want};

/// A lead that was taken, and what the store has said already.
pub(super) struct Lead {
    pub(super) leader: Leader,
    pub(super) looked: Option<Looked>,
    /// Gives the lease back if nobody goes on.
    pub(super) lease: LeaseHold,
}

/// What a request that may lead found.
pub(super) enum Led {
    /// A miss: call the inner service at once.
    Miss(Fetch),
    /// It leads, but there is more to it.
    Leader(Lead),
    /// It does not lead.
    Not,
}

impl Exchange {
    /// Takes the lead, and the lease, where that needs no waiting; the store was asked `at` its time, just now.
    pub(super) fn lead_now(&mut self, request: &HeaderMap, at: Option<u64>) -> Led {
        let alone = self.ask.demands.only_if_cached || self.ask.is_alone(request);
        if alone || self.cache().place != Place::Process {
            return Led::Not;
        }
        let lease = self.setup.config.lease;
        let Entered::Lead(leader) = self.cache().enter_at(&self.ask, lease, at) else {
            return Led::Not;
        };
        let Self { setup, ask, .. } = self;
        let looked = setup
            .cache
            .look_now(ask, request, Want::EntryOrLease(lease));
        match looked.as_ref().map(|looked| self.step(looked)) {
            Some(Step::Fetch(ticket, None)) => {
                leader.begun(ticket.begun);
                let forward = self.forward(false);
                Led::Miss(Fetch::led(leader, None, Some(ticket), forward))
            }
            _ => {
                let lease = looked.as_ref().and_then(Looked::granted);
                Led::Leader(Lead {
                    leader,
                    lease: LeaseHold::new(self, lease),
                    looked,
                })
            }
        }
    }
}

/// Makes the client's request one for everybody.
pub(super) fn shared<B>(exchange: &Exchange, request: Request<B>) -> Request<Body<B>> {
    let mut request = request.map(|_| Body::empty());
    exchange.mark_fetch(request.extensions_mut());
    if exchange.ask.has_conditions() {
        revalidate::strip_conditions(request.headers_mut());
    }
    request
}

pin_project! {
    /// A fetch under way.
    pub(super) struct Fetching<F> {
        #[pin]
        call: F,
        state: Option<State>,
    }
}

struct State {
    exchange: Box<Exchange>,
    fetch: Fetch,
    lease: LeaseHold,
    asked: u64,
    meter: FetchMeter,
}

impl<F> Fetching<F> {
    pub(super) fn new(call: F, exchange: Box<Exchange>, fetch: Fetch, lease: LeaseHold) -> Self {
        let asked = fetch.ticket.map_or(0, |ticket| ticket.at);
        let state = Some(State {
            exchange,
            fetch,
            lease,
            asked,
            meter: FetchMeter::begin("miss"),
        });
        Self { call, state }
    }
}

impl<F, R, E> Leads for Fetching<F>
where
    F: Future<Output = Result<Response<R>, E>>,
    R: http_body::Body<Data = Bytes> + Send + 'static,
    R::Error: Into<BoxError>,
{
    fn is_waited_for(&self) -> bool {
        let fetch = self.state.as_ref().map(|state| &state.fetch);
        let leader = fetch.and_then(|fetch| fetch.leader.as_ref());
        leader.is_some_and(|(leader, _)| leader.is_waited_for())
    }
}

impl<F, R, E> Future for Fetching<F>
where
    F: Future<Output = Result<Response<R>, E>>,
    R: http_body::Body<Data = Bytes> + Send + 'static,
    R::Error: Into<BoxError>,
{
    type Output = Answer<R, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        // Polled again after its answer: pending for ever, as a fused future would be.
        let Some(state) = this.state else {
            return Poll::Pending;
        };
        let watch = state.meter.watch();
        let called = this.call.poll(cx);
        drop(watch);
        let called = ready!(called);
        state.meter.end(called.is_ok());
        let fetched = called.map(|response| {
            state.lease.leave();
            let times = (state.asked, state.exchange.cache().now());
            let (exchange, fetch) = (&mut state.exchange, &mut state.fetch);
            exchange.fetched(fetch, response, times, cx)
        });
        let Some(state) = this.state.take() else {
            return Poll::Pending;
        };
        Poll::Ready(match fetched {
            Ok(Fetched::Answer(answer)) => Ok(answer),
            Ok(Fetched::Streams(unread)) => {
                let State {
                    exchange, fetch, ..
                } = state;
                Ok(exchange.pulled(fetch, *unread))
            }
            Err(error) => state.exchange.failed(state.fetch, error),
        })
    }
}
