//! A considered request that nothing in this process could answer at once: look-up, flight, fetch.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::HeaderMap;
use http::{Extensions, Method, Request, Response, Uri, Version};
use tokio::time::{Instant, sleep, timeout_at};
use tower_service::Service;

use crate::core::{Body, Inner, ResponseCacheOutcome, telemetry};

use super::body::{BoxError, ResponseBody};
use super::entry::Entry;
use super::exchange::{Exchange, ticket_of};
use super::fetch::Fetch;
use super::flight::{Entered, Leader, Leading, LeadingMark, Outcome, Waiter};
use super::look::Looked;
use super::miss::Lead;
use super::policy::Use;
use super::rejection::ResponseCacheRejection;
use super::sent::Sent;
use super::stamps::Verdict;
use super::status::{Forward, Said};
use super::store::{Lease, Ticket, Want};

pub(super) type Answer<R, E> = Result<Response<ResponseBody<R>>, E>;

/// What a leader does next.
pub(super) enum Step {
    /// Known as uncacheable.
    Pass,
    Answer(Arc<Entry>, Use),
    StandIn(Arc<Entry>),
    /// Take the lease whatever is there: it was invalidated by what only its head names.
    Insist,
    Fetch(Ticket, Option<(Arc<Entry>, Verdict)>),
    /// Somebody else has the lease for so long.
    Wait(Duration, Option<(Arc<Entry>, Verdict)>),
}

/// One request on its way.
pub(super) struct Run<S> {
    pub(super) exchange: Box<Exchange>,
    pub(super) inner: Inner<S>,
    pub(super) uri: Uri,
    pub(super) version: Version,
    pub(super) extensions: Extensions,
    pub(super) leading: Arc<Leading>,
    /// It leads already, and has perhaps looked.
    pub(super) led: Option<Lead>,
}

impl<S: Clone> Run<S> {
    pub(super) fn new<B>(
        mut exchange: Box<Exchange>,
        inner: S,
        request: Request<B>,
        leading: &Arc<Leading>,
    ) -> Self {
        let (parts, _) = request.into_parts();
        exchange.fields = Sent::from(parts.headers);
        Self {
            exchange,
            inner: Inner::new(inner),
            uri: parts.uri,
            version: parts.version,
            extensions: parts.extensions,
            leading: Arc::clone(leading),
            led: None,
        }
    }
}

impl<S> Run<S> {
    /// Finds an answer, or makes the inner service give one.
    pub(super) async fn go<B, R>(mut self: Box<Self>) -> Answer<R, S::Error>
    where
        S: Service<Request<Body<B>>, Response = Response<R>> + Clone + Send + 'static,
        S::Future: Send,
        B: Send + 'static,
        R: http_body::Body<Data = Bytes> + Send + 'static,
        R::Error: Into<BoxError>,
    {
        if self.exchange.ask.demands.only_if_cached {
            return Ok(self.only_stored().await);
        }
        if self.exchange.ask.is_alone(&self.exchange.fields) {
            return self.alone().await;
        }
        // Patience is real time.
        let until = sleep(2 * self.exchange.setup.config.lease).deadline();
        if let Some(mut led) = self.led.take() {
            led.lease.leave();
            let mark = self.leading.lead(&led.leader);
            return self.lead(led.leader, mark, until, led.looked).await;
        }
        loop {
            self.exchange.cache().catch_up(&self.exchange.ask).await;
            let mut waiter = match self.enter() {
                Entered::Wait(waiter) => waiter,
                Entered::Lead(leader) => {
                    let mark = self.leading.lead(&leader);
                    return self.lead(leader, mark, until, None).await;
                }
            };
            self.inner.rest();
            match self.wait(&mut waiter, until).await {
                Waited::Answer(answer) => return Ok(answer),
                Waited::Fetch(fetch) => return self.fetch(fetch).await,
                Waited::Again => {}
            }
        }
    }

    fn enter(&self) -> Entered {
        let (cache, ask) = (self.exchange.cache(), &self.exchange.ask);
        let lease = self.exchange.setup.config.lease;
        cache.enter(ask, lease)
    }

    /// Waits for somebody else's fetch.
    async fn wait<R>(&mut self, waiter: &mut Waiter, until: Instant) -> Waited<R> {
        let key = self.exchange.ask.flight_key();
        loop {
            let Ok(outcome) = timeout_at(until, waiter.wait()).await else {
                return Waited::Fetch(self.apart(Forward::UriMiss).impatient());
            };
            let exchange = &mut self.exchange;
            let taken = match &outcome {
                Outcome::Lost => return Waited::Again,
                Outcome::Streams(stream) => {
                    exchange.ask.select(&stream.head.names, &exchange.fields);
                    let matches = exchange.ask.matches(&stream.head);
                    if matches
                        && exchange.asked().conditions.is_none()
                        && let Some(answer) = exchange.joined(stream)
                    {
                        return Waited::Answer(answer);
                    }
                    if matches {
                        // A part, or a condition on the whole: when the whole is there.
                        waiter.let_stream();
                        continue;
                    }
                    false
                }
                Outcome::Done(entry) => {
                    if exchange.takes(entry) {
                        return Waited::Answer(exchange.collapsed(entry));
                    }
                    false
                }
                Outcome::Found(entry) => {
                    let takes = exchange.takes(entry);
                    if takes && exchange.may_use(entry) {
                        return Waited::Answer(exchange.collapsed(entry));
                    }
                    takes
                }
                Outcome::StandIn(entry, status) => {
                    let verdict = exchange.cache().stamps.judge(entry);
                    let matches = exchange.ask.matches(entry.head());
                    if matches && exchange.may_stand_in(entry, verdict, *status) {
                        return Waited::Answer(exchange.stand_in(entry, *status));
                    }
                    return Waited::Fetch(self.apart(Forward::UriMiss).collapsed());
                }
                Outcome::Released => {
                    return Waited::Fetch(self.apart(Forward::UriMiss).collapsed());
                }
            };
            // Another variant: it flies by itself, under its own name if that is known now.
            let apart = !taken && self.exchange.ask.flight_key() == key;
            return if apart {
                Waited::Fetch(self.apart(Forward::VaryMiss))
            } else {
                Waited::Again
            };
        }
    }

    /// A fetch for this request only.
    fn apart(&self, forward: Forward) -> Fetch {
        Fetch::alone(self.exchange.cache().ticket(), forward)
    }

    /// `only-if-cached`: what is stored, or 504.
    async fn only_stored<R>(mut self: Box<Self>) -> Response<ResponseBody<R>> {
        let looked = self.look(Want::Entry).await;
        if let Ok(looked) = &looked
            && let Some((entry, usable, _)) = &looked.entry
            && *usable != Use::Validate
        {
            return self.exchange.stored(entry, looked.now);
        }
        let exchange = &self.exchange;
        if let Some((entry, now)) = exchange.cache().look_in_language(&exchange.ask).await {
            return exchange.stored(&entry, now);
        }
        let setup = &self.exchange.setup;
        setup.cache.counters.count(ResponseCacheOutcome::Refused);
        let refused = ResponseCacheRejection::NotStored.response(&setup.config);
        refused.map(|document| ResponseBody::bytes(document, None))
    }

    pub(super) async fn look(&mut self, want: Want) -> Result<Looked, crate::core::StoreError> {
        let Exchange { setup, ask, fields } = &mut *self.exchange;
        setup.cache.look(ask, fields, want).await
    }

    /// A request that shares no fetch: it takes what is stored, else it goes inwards by itself.
    async fn alone<B, R>(mut self: Box<Self>) -> Answer<R, S::Error>
    where
        S: Service<Request<Body<B>>, Response = Response<R>> + Clone + Send + 'static,
        S::Future: Send,
        B: Send + 'static,
        R: http_body::Body<Data = Bytes> + Send + 'static,
        R::Error: Into<BoxError>,
    {
        let mut stored = None;
        let (ticket, mut forward) = match self.look(Want::Entry).await {
            Ok(looked) => {
                let ticket = ticket_of(&looked);
                match looked.entry {
                    Some((entry, usable, _)) if usable != Use::Validate => {
                        let response = self.exchange.stored(&entry, looked.now);
                        if matches!(usable, Use::Due | Use::StaleWhileRevalidate) {
                            self.refresh_alone();
                        }
                        return Ok(response);
                    }
                    // The same cache outside has it, too, and asks whether it is still right.
                    Some(_) if self.exchange.ask.nested => (Some(ticket), Forward::Stale),
                    Some((entry, _, verdict)) => {
                        let exchange = &self.exchange;
                        if exchange.cache().is_standing_in(&exchange.ask)
                            && exchange.may_stand_in(&entry, verdict, None)
                        {
                            return Ok(exchange.stand_in(&entry, None));
                        }
                        stored = Some((entry, verdict));
                        (Some(ticket), Forward::Stale)
                    }
                    None => {
                        let (cache, ask) = (self.exchange.cache(), &self.exchange.ask);
                        if let Some((entry, now)) = cache.look_in_language(ask).await {
                            return Ok(self.exchange.stored(&entry, now));
                        }
                        (Some(ticket), Forward::UriMiss)
                    }
                }
            }
            Err(_) => {
                self.exchange.cache().failed("lookup");
                (None, Forward::Store)
            }
        };
        let ask = &self.exchange.ask;
        if ask.head {
            forward = Forward::Method;
        } else if ask.demands.no_store {
            forward = Forward::Request;
        } else if ask.is_partial(&self.exchange.fields) {
            forward = Forward::Partial;
        } else {
            let fetch = self.apart(forward).with_ticket(ticket);
            return self.fetch(fetch.validating(stored)).await;
        }
        self.pass(forward, stored.zip(ticket)).await
    }

    /// Leads: one look-up for all who wait, then an answer from the store or a fetch.
    async fn lead<B, R>(
        mut self: Box<Self>,
        leader: Leader,
        mark: LeadingMark,
        until: Instant,
        mut looked: Option<Looked>,
    ) -> Answer<R, S::Error>
    where
        S: Service<Request<Body<B>>, Response = Response<R>> + Clone + Send + 'static,
        S::Future: Send,
        B: Send + 'static,
        R: http_body::Body<Data = Bytes> + Send + 'static,
        R::Error: Into<BoxError>,
    {
        let lease = self.exchange.setup.config.lease;
        let mut want = Want::EntryOrLease(lease);
        let cache = Arc::clone(self.exchange.cache());
        let mut wait = None;
        loop {
            let looked = match looked.take() {
                Some(looked) => Ok(looked),
                None => self.look(want).await,
            };
            let Ok(looked) = looked else {
                self.exchange.cache().failed("lookup");
                let fetch = Fetch::led(leader, Some(mark), None, Forward::Store);
                return self.fetch(fetch).await;
            };
            match self.exchange.step(&looked) {
                Step::Pass => {
                    leader.land(Outcome::Released);
                    let fetch = Fetch::alone(ticket_of(&looked), Forward::UriMiss);
                    return self.fetch(fetch).await;
                }
                Step::Answer(entry, usable) => {
                    return Ok(self.share(leader, mark, &looked, entry, usable));
                }
                Step::StandIn(entry) => {
                    leader.land(Outcome::StandIn(Arc::clone(&entry), None));
                    self.exchange.give_back(&looked);
                    return Ok(self.exchange.stand_in(&entry, None));
                }
                Step::Fetch(ticket, stale) => {
                    took_over(wait.is_some());
                    leader.begun(ticket.begun);
                    if stale.is_none()
                        && let Some((entry, now)) = self.exchange.in_language(ticket).await
                    {
                        leader.land(Outcome::Found(Arc::clone(&entry)));
                        return Ok(self.exchange.stored(&entry, now));
                    }
                    let forward = self.exchange.forward(stale.is_some());
                    let fetch = Fetch::led(leader, Some(mark), Some(ticket), forward);
                    return self.fetch(fetch.validating(stale)).await;
                }
                Step::Insist => want = Want::Lease(lease),
                Step::Wait(left, stale) => {
                    want = Want::EntryOrLease(lease);
                    self.inner.rest();
                    let key = self.exchange.ask.entry_key(cache.place).primary;
                    let wait = wait.get_or_insert_with(|| cache.filled.wait_for(key));
                    if timeout_at(until, wait.next(left)).await.is_err() {
                        leader.land(Outcome::Released);
                        let forward = self.exchange.forward(stale.is_some());
                        let fetch = Fetch::alone(ticket_of(&looked), forward);
                        return self.fetch(fetch.impatient().validating(stale)).await;
                    }
                }
            }
        }
    }

    /// Sends the request inwards as the client made it. An answer to HEAD may renew what is stored for GET; for an error
    /// that may stand in.
    async fn pass<B, R>(
        mut self: Box<Self>,
        forward: Forward,
        stored: Option<((Arc<Entry>, Verdict), Ticket)>,
    ) -> Answer<R, S::Error>
    where
        S: Service<Request<Body<B>>, Response = Response<R>> + Clone + Send + 'static,
    {
        self.exchange.ask.mark_personal();
        let mut request = self.request::<B>();
        if self.exchange.ask.head {
            *request.method_mut() = Method::HEAD;
        }
        let asked = self.exchange.cache().now();
        let called = self.inner.call(request).await;
        let exchange = &mut self.exchange;
        if let Some(((stored, verdict), ticket)) = stored {
            let status = called.as_ref().ok().map(Response::status);
            if exchange.may_stand_in(&stored, verdict, status) {
                return Ok(exchange.stand_in(&stored, status));
            }
            if let (true, Ok(response)) = (exchange.ask.head, &called) {
                let times = (asked, exchange.cache().now());
                exchange.headed(&stored, ticket, response, times);
            }
        }
        let mut response = called?;
        let said = Said::Fetched {
            forward,
            status: None,
            stored: Err(None),
        };
        let setup = &self.exchange.setup;
        setup.config.status.say(response.headers_mut(), said);
        setup.cache.counters.count(ResponseCacheOutcome::Bypass);
        response
            .extensions_mut()
            .insert(ResponseCacheOutcome::Bypass);
        Ok(response.map(ResponseBody::pass))
    }

    /// The client's request as a GET without a body.
    pub(super) fn request<B>(&self) -> Request<Body<B>> {
        let mut request = Request::new(Body::empty());
        *request.uri_mut() = self.uri.clone();
        *request.version_mut() = self.version;
        *request.headers_mut() = HeaderMap::clone(&self.exchange.fields);
        *request.extensions_mut() = self.extensions.clone();
        request
    }
}

/// Counts a fetch that had to wait until somebody else's lease was over.
fn took_over(waited: bool) {
    if waited {
        telemetry::count!("keep_response_cache_takeovers_total", 1);
    }
}

/// What became of waiting.
enum Waited<R> {
    Answer(Response<ResponseBody<R>>),
    Fetch(Fetch),
    Again,
}

impl Exchange {
    /// Decides what to do with what the store said.
    pub(super) fn step(&self, looked: &Looked) -> Step {
        if looked.marked {
            return Step::Pass;
        }
        if looked.is_stale_before_its_time() {
            return Step::Insist;
        }
        let stale = match &looked.entry {
            Some((entry, usable, _)) if *usable != Use::Validate => {
                return Step::Answer(Arc::clone(entry), *usable);
            }
            Some((entry, _, verdict)) => Some((Arc::clone(entry), *verdict)),
            None => None,
        };
        if let Some((entry, verdict)) = &stale
            && self.cache().is_standing_in(&self.ask)
            && self.may_stand_in(entry, *verdict, None)
        {
            return Step::StandIn(Arc::clone(entry));
        }
        match looked.lease {
            Some(Lease::Granted(ticket)) => Step::Fetch(ticket, stale),
            Some(Lease::Held(left)) => Step::Wait(left, stale),
            None => Step::Insist,
        }
    }
}
