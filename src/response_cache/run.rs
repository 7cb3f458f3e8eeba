//! A considered request that nothing in this process could answer at once: look-up, flight, fetch.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{Method, Request, Response};
use tokio::time::{Instant, sleep, timeout_at};
use tower_service::Service;

use crate::core::{Body, ResponseCacheOutcome, Visitor};

use super::answer::{self, Asked};
use super::ask::Ask;
use super::body::{BoxError, ResponseBody};
use super::cache::{Cache, Looked};
use super::config::{Config, Setup};
use super::entry::Entry;
use super::fetch::Fetch;
use super::flight::{Entered, Leader, Leading, LeadingMark, Outcome};
use super::inner::Inner;
use super::policy::{self, Use};
use super::rejection::ResponseCacheRejection;
use super::stamps::Verdict;
use super::status::{Forward, Said};
use super::store::{Hash128, Lease, Ticket, Want};

/// The first waits for somebody else's lease; the last one repeats.
const WAITS: [u64; 4] = [25, 50, 100, 200];

pub(super) type Answer<R, E> = Result<Response<ResponseBody<R>>, E>;

/// What a leader does next.
enum Step {
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
    pub(super) setup: Arc<Setup>,
    pub(super) inner: Inner<S>,
    pub(super) ask: Ask,
    pub(super) parts: Parts,
    pub(super) leading: Arc<Leading>,
}

impl<S> Run<S> {
    pub(super) fn new<B>(
        setup: &Arc<Setup>,
        inner: S,
        mut ask: Ask,
        request: Request<B>,
        leading: &Arc<Leading>,
    ) -> Self
    where
        S: Clone,
    {
        ask.keep_conditions(request.headers());
        ask.visitor = request.extensions().get::<Visitor>().cloned();
        Self {
            setup: Arc::clone(setup),
            inner: Inner::new(inner),
            ask,
            parts: request.into_parts().0,
            leading: Arc::clone(leading),
        }
    }

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
        // The one thing that is measured in real time here.
        let until = sleep(2 * self.setup.config.lease).deadline();
        loop {
            let (key, ask) = (self.ask.flight_key(), &self.ask);
            match self.setup.cache.flights.enter(
                key,
                &self.setup.cache.stamps,
                self.setup.config.lease,
                || ask.targets(),
            ) {
                Entered::Lead(leader) => {
                    let mark = self.leading.lead(&leader);
                    return self.lead(leader, mark, until).await;
                }
                Entered::Wait(waiter) => match timeout_at(until, waiter.wait()).await {
                    Err(_) => {
                        let fetch = Fetch::alone(self.setup.cache.ticket(), Forward::UriMiss);
                        return self.fetch(fetch.impatient()).await;
                    }
                    Ok(Outcome::Lost) => {}
                    Ok(Outcome::Done(entry)) => {
                        if self.takes(&entry) {
                            return Ok(self.collapsed(&entry));
                        }
                        if self.ask.flight_key() == key {
                            let fetch = self.apart();
                            return self.fetch(fetch).await;
                        }
                    }
                    Ok(Outcome::Found(entry)) => {
                        let takes = self.takes(&entry);
                        if takes && self.may_use(&entry) {
                            return Ok(self.collapsed(&entry));
                        }
                        if !takes && self.ask.flight_key() == key {
                            let fetch = self.apart();
                            return self.fetch(fetch).await;
                        }
                    }
                    Ok(Outcome::StandIn(entry, status))
                        if self.ask.matches(&entry)
                            && self.may_stand_in(
                                &entry,
                                self.setup.cache.stamps.judge(&entry),
                                status,
                            ) =>
                    {
                        return Ok(self.stand_in(&entry, status));
                    }
                    Ok(Outcome::StandIn(..) | Outcome::Released) => {
                        let fetch = Fetch::alone(self.setup.cache.ticket(), Forward::UriMiss);
                        return self.fetch(fetch.collapsed()).await;
                    }
                },
            }
        }
    }

    /// Says whether what somebody else's flight brought is an answer to this request, too.
    fn takes(&mut self, entry: &Entry) -> bool {
        self.ask.select(&entry.head().names, &self.parts.headers);
        self.ask.matches(entry)
    }

    /// A fetch for this request only, as the flight brought another variant.
    fn apart(&self) -> Fetch {
        Fetch::alone(self.setup.cache.ticket(), Forward::VaryMiss)
    }

    /// `only-if-cached`: what is stored, or 504.
    async fn only_stored<R>(mut self) -> Response<ResponseBody<R>> {
        let looked = self
            .setup
            .cache
            .look(&mut self.ask, &self.parts.headers, Want::Entry)
            .await;
        if let Ok(looked) = &looked
            && let Some((entry, usable, _)) = &looked.entry
            && *usable != Use::Validate
        {
            return self.stored(entry, looked.now);
        }
        self.setup
            .cache
            .counters
            .count(ResponseCacheOutcome::Refused);
        let refused = ResponseCacheRejection::NotStored.response(&self.setup.config);
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
            .setup
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
                self.setup.cache.failed("lookup");
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
        let fetch = Fetch::alone(self.setup.cache.ticket(), forward).with_ticket(ticket);
        self.fetch(fetch).await
    }

    fn ticket_of(looked: &Looked) -> Ticket {
        Ticket {
            token: 0,
            selector: Hash128::default(),
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
        let mut want = Want::EntryOrLease(self.setup.config.lease);
        let mut waited = 0;
        loop {
            let looked = self
                .setup
                .cache
                .look(&mut self.ask, &self.parts.headers, want)
                .await;
            let Ok(looked) = looked else {
                self.setup.cache.failed("lookup");
                let fetch = Fetch::led(leader, mark, None, Forward::Store);
                return self.fetch(fetch).await;
            };
            match self.step(&looked) {
                Step::Pass => {
                    leader.land(Outcome::Released);
                    let fetch = Fetch::alone(Self::ticket_of(&looked), Forward::UriMiss);
                    return self.fetch(fetch).await;
                }
                Step::Answer(entry, usable) => {
                    return Ok(self.share(leader, mark, &looked, entry, usable));
                }
                Step::StandIn(entry) => {
                    leader.land(Outcome::StandIn(Arc::clone(&entry), None));
                    self.give_back(&looked);
                    return Ok(self.stand_in(&entry, None));
                }
                Step::Fetch(ticket, stale) => {
                    leader.begun(ticket.begun);
                    let forward = self.forward(stale.is_some());
                    let fetch = Fetch::led(leader, mark, Some(ticket), forward);
                    return self.fetch(fetch.validating(stale)).await;
                }
                Step::Insist => want = Want::Lease(self.setup.config.lease),
                Step::Wait(left, stale) => {
                    want = Want::EntryOrLease(self.setup.config.lease);
                    if timeout_at(until, sleep(wait(waited, left))).await.is_err() {
                        leader.land(Outcome::Released);
                        let forward = self.forward(stale.is_some());
                        let fetch = Fetch::alone(Self::ticket_of(&looked), forward);
                        return self.fetch(fetch.impatient().validating(stale)).await;
                    }
                    waited += 1;
                }
            }
        }
    }

    /// Decides what to do with what the store said.
    fn step(&self, looked: &Looked) -> Step {
        if looked.marked {
            return Step::Pass;
        }
        let stale = match &looked.entry {
            // Stale by an invalidation that only its head names: the store takes it for fresh, and gave no lease.
            Some((_, Use::StaleWhileRevalidate, _)) if looked.lease.is_none() => {
                return Step::Insist;
            }
            Some((entry, usable, _)) if *usable != Use::Validate => {
                return Step::Answer(Arc::clone(entry), *usable);
            }
            Some((entry, _, verdict)) => Some((Arc::clone(entry), *verdict)),
            None => None,
        };
        if let Some((entry, verdict)) = &stale
            && self.setup.cache.is_standing_in(&self.ask)
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

    fn forward(&self, stale: bool) -> Forward {
        match (stale, self.ask.demands.reload(), self.ask.names.is_empty()) {
            (true, true, _) => Forward::Request,
            (true, false, _) => Forward::Stale,
            (false, _, true) => Forward::UriMiss,
            (false, _, false) => Forward::VaryMiss,
        }
    }

    /// Says whether a stored answer that somebody else found will do for this request's own demands.
    fn may_use(&self, entry: &Entry) -> bool {
        let verdict = self.setup.cache.stamps.judge(entry);
        let usable = policy::use_of(
            entry.head(),
            self.setup.cache.now(),
            verdict,
            &self.ask.demands,
        );
        !matches!(usable, Use::Validate | Use::Gone)
    }

    pub(super) fn may_stand_in(
        &self,
        entry: &Entry,
        verdict: Verdict,
        error: Option<http::StatusCode>,
    ) -> bool {
        let asked = self.ask.demands.stale_if_error;
        policy::may_stand_in(entry.head(), self.setup.cache.now(), verdict, asked, error)
    }

    pub(super) fn stored<R>(&self, entry: &Entry, now: u64) -> Response<ResponseBody<R>> {
        self.mark_personal();
        hit(
            &self.setup.cache,
            &self.setup.config,
            self.ask.form.asked(),
            entry,
            now,
        )
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
        let said = Said::StandIn(status, answer::ttl(entry.head(), self.setup.cache.now()));
        self.answer(entry, said, ResponseCacheOutcome::StandIn)
    }

    fn answer<R>(
        &self,
        entry: &Entry,
        said: Said,
        outcome: ResponseCacheOutcome,
    ) -> Response<ResponseBody<R>> {
        self.setup.cache.counters.count(outcome);
        answer::stored(
            entry,
            &self.ask.form,
            &self.setup.config,
            self.setup.cache.now(),
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
        self.setup.config.status.say(response.headers_mut(), said);
        self.setup
            .cache
            .counters
            .count(ResponseCacheOutcome::Bypass);
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
    asked: Asked<'_>,
    entry: &Entry,
    now: u64,
) -> Response<ResponseBody<R>> {
    let fresh = entry.head().age(now) < entry.head().lifetime;
    let outcome = if fresh {
        ResponseCacheOutcome::Hit
    } else {
        ResponseCacheOutcome::StaleHit
    };
    cache.counters.count(outcome);
    answer::hit(entry, asked, config, now, outcome)
}

/// How long to wait for somebody else's lease: a little longer each time, never past its end, and not all at once.
fn wait(waited: usize, left: Duration) -> Duration {
    let base = WAITS[waited.min(WAITS.len() - 1)];
    let jitter = 80 + super::key::random() % 41;
    Duration::from_micros(base * 10 * jitter).min(left.max(Duration::from_millis(1)))
}
