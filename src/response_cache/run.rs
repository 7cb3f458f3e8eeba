//! A considered request that nothing in this process could answer at once: look-up, flight, fetch.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{Method, Request, Response};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep, timeout_at};
use tower_service::Service;

use crate::core::{Body, ResponseCacheOutcome};

use super::answer;
use super::ask::Ask;
use super::body::{BoxError, ResponseBody};
use super::cache::{Cache, Looked};
use super::config::Config;
use super::entry::Entry;
use super::fetch::Fetch;
use super::flight::{Entered, Flight, Leader, Outcome};
use super::policy::{self, Use};
use super::rejection::ResponseCacheRejection;
use super::stamps::Verdict;
use super::status::{Forward, Said};
use super::store::{Lease, Ticket, Want};

/// The first waits for somebody else's lease; the last one repeats.
const WAITS: [u64; 4] = [25, 50, 100, 200];

pub(super) type Answer<R, E> = Result<Response<ResponseBody<R>>, E>;

/// The flight that a request leads at this moment, for whoever has to decide when its client leaves.
#[derive(Debug, Default)]
pub(super) struct Leading(Mutex<Option<Arc<Flight>>>);

impl Leading {
    /// Says whether others wait for what this request leads.
    pub(super) fn is_waited_for(&self) -> bool {
        self.0
            .lock()
            .as_ref()
            .is_some_and(|flight| flight.waiters() > 0)
    }

    fn lead(self: &Arc<Self>, leader: &Leader) -> LeadingMark {
        *self.0.lock() = Some(leader.flight());
        LeadingMark(Arc::clone(self))
    }
}

/// Ends the lead when it is dropped, also by a panic.
pub(super) struct LeadingMark(Arc<Leading>);

impl Drop for LeadingMark {
    fn drop(&mut self) {
        *self.0.0.lock() = None;
    }
}

/// One request on its way.
pub(super) struct Run<S> {
    pub(super) cache: Arc<Cache>,
    pub(super) config: Arc<Config>,
    pub(super) inner: Inner<S>,
    pub(super) ask: Ask,
    pub(super) parts: Parts,
    pub(super) leading: Arc<Leading>,
}

impl<S> Run<S> {
    /// Finds an answer, or makes the inner service give one.
    pub(super) async fn go<B, R>(mut self) -> Answer<R, S::Error>
    where
        S: Service<Request<Body<B>>, Response = Response<R>> + Clone + Send + 'static,
        S::Future: Send,
        B: Send + 'static,
        R: http_body::Body<Data = Bytes> + Send + 'static,
        R::Error: Into<BoxError>,
    {
        if self.ask.demands.only_if_cached {
            return Ok(self.only_stored().await);
        }
        if self.ask.is_alone() {
            return self.alone().await;
        }
        let until = Instant::now() + 2 * self.config.lease;
        loop {
            let (key, ask) = (self.ask.flight_key(), &self.ask);
            match self
                .cache
                .flights
                .enter(key, &self.cache.stamps, || ask.targets())
            {
                Entered::Lead(leader) => {
                    let mark = self.leading.lead(&leader);
                    return self.lead(leader, mark, until).await;
                }
                Entered::Wait(waiter) => match timeout_at(until, waiter.wait()).await {
                    Err(_) => {
                        let fetch = Fetch::alone(self.cache.ticket(), Forward::UriMiss);
                        return self.fetch(fetch.impatient()).await;
                    }
                    Ok(Outcome::Lost) => {}
                    Ok(Outcome::Done(entry)) => {
                        self.ask.select(&entry.head().names, &self.parts.headers);
                        if self.ask.matches(&entry) {
                            return Ok(self.collapsed(&entry));
                        }
                        if self.ask.flight_key() == key {
                            let fetch = Fetch::alone(self.cache.ticket(), Forward::VaryMiss);
                            return self.fetch(fetch).await;
                        }
                    }
                    Ok(Outcome::StandIn(entry, status)) if self.ask.matches(&entry) => {
                        return Ok(self.stand_in(&entry, status));
                    }
                    Ok(Outcome::StandIn(..) | Outcome::Released) => {
                        let fetch = Fetch::alone(self.cache.ticket(), Forward::UriMiss);
                        return self.fetch(fetch.collapsed()).await;
                    }
                },
            }
        }
    }

    /// `only-if-cached`: what is stored, or 504.
    async fn only_stored<R>(mut self) -> Response<ResponseBody<R>> {
        let looked = self
            .cache
            .look(&mut self.ask, &self.parts.headers, Want::Entry)
            .await;
        if let Ok(looked) = &looked
            && let Some((entry, usable, _)) = &looked.entry
            && *usable != Use::Validate
        {
            return self.stored(entry, looked.now);
        }
        self.cache.counters.count(ResponseCacheOutcome::Refused);
        let refused = ResponseCacheRejection::NotStored.response(&self.config);
        refused.map(|document| ResponseBody::bytes(document, None))
    }

    /// A request that shares no fetch: it takes what is stored, else it goes inwards by itself.
    async fn alone<B, R>(mut self) -> Answer<R, S::Error>
    where
        S: Service<Request<Body<B>>, Response = Response<R>> + Clone + Send + 'static,
        S::Future: Send,
        B: Send + 'static,
        R: http_body::Body<Data = Bytes> + Send + 'static,
        R::Error: Into<BoxError>,
    {
        let looked = self
            .cache
            .look(&mut self.ask, &self.parts.headers, Want::Entry)
            .await;
        let (ticket, forward) = match &looked {
            Ok(looked) => match &looked.entry {
                Some((entry, usable, _)) if *usable != Use::Validate => {
                    return Ok(self.stored(entry, looked.now));
                }
                Some(_) => (Some(Self::ticket_of(looked)), Forward::Stale),
                None => (Some(Self::ticket_of(looked)), Forward::UriMiss),
            },
            Err(_) => {
                self.cache.failed("lookup");
                (None, Forward::Store)
            }
        };
        if self.ask.form.head || self.ask.demands.no_store || self.ask.is_partial() {
            let forward = if self.ask.form.head {
                Forward::Method
            } else if self.ask.demands.no_store {
                Forward::Request
            } else {
                Forward::Partial
            };
            return self.pass(forward).await;
        }
        let fetch = Fetch::alone(self.cache.ticket(), forward).with_ticket(ticket);
        self.fetch(fetch).await
    }

    const fn ticket_of(looked: &Looked) -> Ticket {
        Ticket {
            token: 0,
            begun: looked.highest,
            at: looked.now,
        }
    }

    /// Leads: one look-up for all who wait, then an answer from the store or a fetch.
    async fn lead<B, R>(
        mut self,
        leader: Leader,
        mark: LeadingMark,
        until: Instant,
    ) -> Answer<R, S::Error>
    where
        S: Service<Request<Body<B>>, Response = Response<R>> + Clone + Send + 'static,
        S::Future: Send,
        B: Send + 'static,
        R: http_body::Body<Data = Bytes> + Send + 'static,
        R::Error: Into<BoxError>,
    {
        let mut want = Want::EntryOrLease(self.config.lease);
        let mut waited = 0;
        loop {
            let looked = match self
                .cache
                .look(&mut self.ask, &self.parts.headers, want)
                .await
            {
                Ok(looked) => looked,
                Err(_) => {
                    self.cache.failed("lookup");
                    return self
                        .fetch(Fetch::led(leader, mark, None, Forward::Store))
                        .await;
                }
            };
            if looked.marked {
                leader.land(Outcome::Released);
                let ticket = Self::ticket_of(&looked);
                return self.fetch(Fetch::alone(ticket, Forward::UriMiss)).await;
            }
            let (stale, verdict) = match &looked.entry {
                // Stale by an invalidation that only its head names: the store takes it for fresh, and gave no lease.
                Some((_, Use::StaleWhileRevalidate, _)) if looked.lease.is_none() => {
                    want = Want::Lease(self.config.lease);
                    continue;
                }
                Some((entry, usable, _)) if *usable != Use::Validate => {
                    return Ok(self.share(leader, mark, &looked, Arc::clone(entry), *usable));
                }
                Some((entry, _, verdict)) => (Some(Arc::clone(entry)), *verdict),
                None => (None, Verdict::Gone),
            };
            if let Some(entry) = &stale
                && self.cache.is_standing_in(&self.ask)
                && self.may_stand_in(entry, verdict, None)
            {
                leader.land(Outcome::StandIn(Arc::clone(entry), None));
                self.give_back(&looked);
                return Ok(self.stand_in(entry, None));
            }
            match looked.lease {
                Some(Lease::Granted(ticket)) => {
                    leader.begun(ticket.begun);
                    let forward = self.forward(stale.is_some());
                    let fetch = Fetch::led(leader, mark, Some(ticket), forward);
                    return self.fetch(fetch.validating(stale, verdict)).await;
                }
                // The store takes the entry for fresh; an invalidation of what only its head names says otherwise.
                None => want = Want::Lease(self.config.lease),
                Some(Lease::Held(left)) => {
                    if Instant::now() >= until {
                        leader.land(Outcome::Released);
                        let fetch =
                            Fetch::alone(Self::ticket_of(&looked), self.forward(stale.is_some()));
                        return self
                            .fetch(fetch.impatient().validating(stale, verdict))
                            .await;
                    }
                    want = Want::EntryOrLease(self.config.lease);
                    sleep(wait(waited, left)).await;
                    waited += 1;
                }
            }
        }
    }

    fn forward(&self, stale: bool) -> Forward {
        match (stale, self.ask.demands.reload(), self.ask.names.is_empty()) {
            (true, true, _) => Forward::Request,
            (true, false, _) => Forward::Stale,
            (false, _, true) => Forward::UriMiss,
            (false, _, false) => Forward::VaryMiss,
        }
    }

    /// Answers all who wait from the store; what is due is refreshed behind them.
    fn share<B, R>(
        self,
        leader: Leader,
        mark: LeadingMark,
        looked: &Looked,
        entry: Arc<Entry>,
        usable: Use,
    ) -> Response<ResponseBody<R>>
    where
        S: Service<Request<Body<B>>, Response = Response<R>> + Clone + Send + 'static,
        S::Future: Send,
        B: Send + 'static,
        R: http_body::Body<Data = Bytes> + Send + 'static,
        R::Error: Into<BoxError>,
    {
        drop(mark);
        leader.land(Outcome::Done(Arc::clone(&entry)));
        let response = self.stored(&entry, looked.now);
        if matches!(usable, Use::Due | Use::StaleWhileRevalidate) {
            self.refresh(looked, entry);
        } else {
            self.give_back(looked);
        }
        response
    }

    fn give_back(&self, looked: &Looked) {
        if let Some(Lease::Granted(ticket)) = looked.lease {
            self.cache.release(&self.ask, ticket, None);
        }
    }

    /// Fetches behind an answer, if this process got the lease and has room.
    fn refresh<B, R>(mut self, looked: &Looked, entry: Arc<Entry>)
    where
        S: Service<Request<Body<B>>, Response = Response<R>> + Clone + Send + 'static,
        S::Future: Send,
        B: Send + 'static,
        R: http_body::Body<Data = Bytes> + Send + 'static,
        R::Error: Into<BoxError>,
    {
        let Some(Lease::Granted(ticket)) = looked.lease else {
            return;
        };
        let Some(place) = self.cache.begin_refresh() else {
            return self.give_back(looked);
        };
        // The refresh is for everybody: nothing of this client's conditions goes along.
        self.ask.form = answer::Form::default();
        let (cache, lease) = (Arc::clone(&self.cache), self.config.lease);
        let key = self.ask.entry_key(cache.place);
        let ran = super::cache::spawn(async move {
            let fetch =
                Fetch::refresh(ticket, Forward::Stale).validating(Some(entry), Verdict::Live);
            // Its body, if it is not stored, is dropped unread; an error leaves the stale entry in place.
            let _ = tokio::time::timeout(
                lease.max(Duration::from_secs(60)),
                self.fetch::<B, R>(fetch),
            )
            .await;
            drop(place);
        });
        if !ran {
            cache.finish("release", cache.store.release(key, ticket, None));
        }
    }

    pub(super) fn may_stand_in(
        &self,
        entry: &Entry,
        verdict: Verdict,
        error: Option<http::StatusCode>,
    ) -> bool {
        let asked = self.ask.demands.stale_if_error;
        policy::may_stand_in(entry.head(), self.cache.now(), verdict, asked, error)
    }

    fn stored<R>(&self, entry: &Entry, now: u64) -> Response<ResponseBody<R>> {
        self.mark_personal();
        hit(&self.cache, &self.config, &self.ask, entry, now)
    }

    fn collapsed<R>(&self, entry: &Entry) -> Response<ResponseBody<R>> {
        self.mark_personal();
        let said = Said::Collapsed(self.forward(false));
        self.answer(entry, said, ResponseCacheOutcome::Collapsed)
    }

    pub(super) fn stand_in<R>(
        &self,
        entry: &Entry,
        status: Option<http::StatusCode>,
    ) -> Response<ResponseBody<R>> {
        self.mark_personal();
        let said = Said::StandIn(status, answer::ttl(entry.head(), self.cache.now()));
        self.answer(entry, said, ResponseCacheOutcome::StandIn)
    }

    fn answer<R>(
        &self,
        entry: &Entry,
        said: Said,
        outcome: ResponseCacheOutcome,
    ) -> Response<ResponseBody<R>> {
        self.cache.counters.count(outcome);
        answer::stored(
            entry,
            &self.ask.form,
            &self.config,
            self.cache.now(),
            said,
            outcome,
        )
    }

    pub(super) fn mark_personal(&self) {
        self.ask.mark_personal();
    }

    /// Sends the request inwards as the client made it, with nothing stored.
    async fn pass<B, R>(mut self, forward: Forward) -> Answer<R, S::Error>
    where
        S: Service<Request<Body<B>>, Response = Response<R>> + Clone + Send + 'static,
    {
        if let Some(conditions) = self.ask.form.conditions.take() {
            self.parts.headers = *conditions;
        }
        if self.ask.form.head {
            self.parts.method = Method::HEAD;
        }
        self.mark_personal();
        let mut response = self
            .inner
            .call(Request::from_parts(self.parts, Body::empty()))
            .await?;
        let said = Said::Fetched {
            forward,
            status: None,
            stored: Err(None),
        };
        self.config.status.say(response.headers_mut(), said);
        self.cache.counters.count(ResponseCacheOutcome::Bypass);
        response
            .extensions_mut()
            .insert(ResponseCacheOutcome::Bypass);
        Ok(response.map(ResponseBody::pass))
    }
}

/// Answers from a stored response that is usable as it is.
pub(super) fn hit<R>(
    cache: &Cache,
    config: &Config,
    ask: &Ask,
    entry: &Entry,
    now: u64,
) -> Response<ResponseBody<R>> {
    let ttl = answer::ttl(entry.head(), now);
    let fresh = entry.head().age(now) < entry.head().lifetime;
    let outcome = if fresh {
        ResponseCacheOutcome::Hit
    } else {
        ResponseCacheOutcome::StaleHit
    };
    cache.counters.count(outcome);
    answer::stored(entry, &ask.form, config, now, Said::Hit(ttl), outcome)
}

/// How long to wait for somebody else's lease: a little longer each time, never past its end, and not all at once.
fn wait(waited: usize, left: Duration) -> Duration {
    let base = WAITS[waited.min(WAITS.len() - 1)];
    let jitter = 80 + super::key::random() % 41;
    Duration::from_micros(base * 10 * jitter).min(left.max(Duration::from_millis(1)))
}

/// The inner service: the readied one for the first call, clones of it for any further one.
pub(super) struct Inner<S> {
    ready: Option<S>,
    spare: Option<S>,
}

impl<S: Clone> Inner<S> {
    pub(super) const fn new(ready: S) -> Self {
        Self {
            ready: Some(ready),
            spare: None,
        }
    }

    /// Calls it, waiting for readiness where that was used up by an earlier call.
    pub(super) async fn call<Q>(&mut self, request: Q) -> Result<S::Response, S::Error>
    where
        S: Service<Q>,
    {
        let mut service = match self.ready.take() {
            Some(ready) => ready,
            None => {
                // There is a spare from the first call on.
                let Some(mut service) = self.spare.take() else {
                    return std::future::pending().await;
                };
                poll_fn(|cx| service.poll_ready(cx)).await?;
                service
            }
        };
        let call = service.call(request);
        self.spare = Some(service);
        call.await
    }
}
