//! One fetch from the inner service, and what becomes of its answer.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap};
use http::{Request, Response, StatusCode};
use tower_service::Service;

use crate::core::fields::CACHE_STATUS;
use crate::core::{Body, Personal, ResponseCacheOutcome, telemetry};

use super::answer;
use super::body::{BoxError, ResponseBody};
use super::cache::Cache;
use super::config::CachePolicy;
use super::draft::Draft;
use super::entry::{Entry, Flags, Head};
use super::exchange::Exchange;
use super::flight::{Leader, LeadingMark, Outcome};
use super::keep::Fetched;
use super::meters::FetchMeter;
use super::policy::{self, Offer, Plan};
use super::revalidate;
use super::run::{Answer, Run};
use super::stamps::Verdict;
use super::status::{Forward, Reason, Said};
use super::store::{EntryKey, Ticket};

/// What a fetch is for, and who waits for it.
pub(super) struct Fetch {
    pub(super) leader: Option<(Leader, Option<LeadingMark>)>,
    pub(super) ticket: Option<Ticket>,
    stale: Option<(Arc<Entry>, Verdict)>,
    pub(super) forward: Forward,
    pub(super) kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Plain,
    /// Released by a flight that brought nothing to share.
    Collapsed,
    /// Waited too long.
    Impatient,
    /// Behind an answer.
    Refresh,
}

impl Fetch {
    const fn new(ticket: Option<Ticket>, forward: Forward, kind: Kind) -> Self {
        Self {
            leader: None,
            ticket,
            stale: None,
            forward,
            kind,
        }
    }

    /// For one request only.
    pub(super) fn alone(ticket: Ticket, forward: Forward) -> Self {
        Self::new(Some(ticket), forward, Kind::Plain)
    }

    /// For all who wait; without a ticket nothing is kept.
    pub(super) fn led(
        leader: Leader,
        mark: Option<LeadingMark>,
        ticket: Option<Ticket>,
        forward: Forward,
    ) -> Self {
        let mut fetch = Self::new(ticket, forward, Kind::Plain);
        fetch.leader = Some((leader, mark));
        fetch
    }

    /// Behind an answer.
    pub(super) const fn refresh(ticket: Ticket, forward: Forward) -> Self {
        Self::new(Some(ticket), forward, Kind::Refresh)
    }

    pub(super) fn with_ticket(mut self, ticket: Option<Ticket>) -> Self {
        self.ticket = ticket;
        self
    }

    pub(super) fn collapsed(mut self) -> Self {
        self.kind = Kind::Collapsed;
        self
    }

    pub(super) fn impatient(mut self) -> Self {
        telemetry::count!("keep_response_cache_alone_total", 1);
        self.kind = Kind::Impatient;
        self
    }

    /// Asks whether `stale` is still right.
    pub(super) fn validating(mut self, stale: Option<(Arc<Entry>, Verdict)>) -> Self {
        self.stale = stale;
        self
    }

    /// What it is for, as labels have it.
    fn label(&self) -> &'static str {
        match (self.kind, &self.stale) {
            (Kind::Refresh, _) => "refresh",
            (_, Some(_)) => "validate",
            (_, None) => "miss",
        }
    }

    pub(super) fn land(&mut self, outcome: Outcome) {
        if let Some((leader, _mark)) = self.leader.take() {
            leader.land(outcome);
        }
    }
}

impl<S> Run<S> {
    /// Calls the inner service and stores, shares, or passes on what it says.
    pub(super) async fn fetch<B, R>(mut self: Box<Self>, mut fetch: Fetch) -> Answer<R, S::Error>
    where
        S: Service<Request<Body<B>>, Response = Response<R>> + Clone + Send + 'static,
        S::Future: Send,
        B: Send + 'static,
        R: http_body::Body<Data = Bytes> + Send + 'static,
        R::Error: Into<BoxError>,
    {
        self.exchange.ask.mark_personal();
        let mut lease = LeaseHold::new(&self.exchange, fetch.ticket);
        let mut validate = true;
        loop {
            let asked = self.exchange.cache().now();
            let (request, conditional) = self.fetch_request::<B>(&fetch, validate);
            let response = {
                let meter = FetchMeter::begin(fetch.label());
                let watch = meter.watch();
                let answered = self.inner.call(request).await;
                drop(watch);
                meter.end(answered.is_ok());
                match answered {
                    Ok(response) => response,
                    Err(error) => return self.exchange.failed(fetch, error),
                }
            };
            let received = self.exchange.cache().now();
            if conditional
                && response.status() == StatusCode::NOT_MODIFIED
                && let Some((stale, _)) = fetch.stale.clone()
            {
                if revalidate::names_another(response.headers(), stale.head()) {
                    // It confirms something that is not stored here: once more, without conditions.
                    validate = false;
                    continue;
                }
                lease.leave();
                let times = (asked, received);
                return Ok(self.exchange.confirmed(fetch, &stale, &response, times));
            }
            if let Some((stale, verdict)) = &fetch.stale
                && self
                    .exchange
                    .may_stand_in(stale, *verdict, Some(response.status()))
            {
                return Ok(self.exchange.stands_in(fetch, Some(response.status())));
            }
            lease.leave();
            let mut response = Some(response);
            let exchange = &mut self.exchange;
            let fetched = poll_fn(|cx| {
                // Ready at once: there is a response for the one poll.
                response.take().map_or(Poll::Pending, |response| {
                    Poll::Ready(exchange.fetched(&mut fetch, response, (asked, received), cx))
                })
            });
            return Ok(match fetched.await {
                Fetched::Answer(answer) => answer,
                Fetched::Streams(unread) => self.exchange.pulled(fetch, *unread),
            });
        }
    }

    fn fetch_request<B>(&self, fetch: &Fetch, validate: bool) -> (Request<Body<B>>, bool) {
        let mut request = self.request();
        self.exchange.mark_fetch(request.extensions_mut());
        revalidate::strip_conditions(request.headers_mut());
        let stale = fetch.stale.as_ref().filter(|_| validate);
        let conditional = stale.is_some_and(|(stale, _)| {
            revalidate::put_conditions(request.headers_mut(), stale.head())
        });
        (request, conditional)
    }
}

impl Exchange {
    /// An error is not shared: everybody asks for himself, unless a stale answer may stand in.
    pub(super) fn failed<R, E>(&self, mut fetch: Fetch, error: E) -> Answer<R, E> {
        if let Some((stale, verdict)) = &fetch.stale
            && self.may_stand_in(stale, *verdict, None)
        {
            return Ok(self.stands_in(fetch, None));
        }
        fetch.land(Outcome::Released);
        Err(error)
    }

    fn stands_in<R>(
        &self,
        mut fetch: Fetch,
        status: Option<StatusCode>,
    ) -> Response<ResponseBody<R>> {
        // What one client's request made fail says nothing of others'.
        if !self.ask.is_alone(&self.fields) {
            self.cache().stands_in(&self.ask);
        }
        let stale = fetch.stale.take();
        // The caller has just looked at it.
        let Some((stale, _)) = stale else {
            return Response::new(ResponseBody::empty());
        };
        fetch.land(Outcome::StandIn(Arc::clone(&stale), status));
        self.stand_in(&stale, status)
    }

    pub(super) fn plan(
        &self,
        status: StatusCode,
        fields: &HeaderMap,
        policy: Option<&CachePolicy>,
        personal: bool,
        times: (u64, u64),
    ) -> Result<Plan, Reason> {
        let plan = policy::plan(&Offer {
            config: &self.setup.config,
            request: &self.fields,
            host: self.ask.key.host_bytes(),
            status,
            fields,
            policy,
            personal,
            signals: self.ask.signals,
            asked: times.0,
            received: times.1,
        })?;
        // Per key the names of all answers count together; what they select must stay bounded, too.
        if !plan.names.is_empty() && self.ask.names.union(&plan.names).are_too_many() {
            return Err(Reason::Vary);
        }
        Ok(plan)
    }

    /// A 304 from inside: the stored body under renewed fields.
    fn confirmed<R>(
        &mut self,
        mut fetch: Fetch,
        stale: &Arc<Entry>,
        confirmed: &Response<R>,
        times: (u64, u64),
    ) -> Response<ResponseBody<R>> {
        let fields = revalidate::merged(stale.head(), confirmed.headers());
        let (status, forward) = (stale.head().status, fetch.forward);
        let said = |stored| Said::Fetched {
            forward,
            status: Some(StatusCode::NOT_MODIFIED),
            stored,
        };
        let policy = confirmed
            .extensions()
            .get::<CachePolicy>()
            .cloned()
            .or_else(|| policy_of(stale.head()));
        let personal = confirmed.extensions().get::<Personal>().is_some() || self.ask.is_personal();
        let planned = self.plan(status, &fields, policy.as_ref(), personal, times);
        let (plan, ticket) = match (planned, fetch.ticket) {
            (Ok(plan), Some(ticket)) => (plan, ticket),
            (planned, _) => {
                let reason = planned.err();
                match reason {
                    Some(reason) => self.refuse(&mut fetch, status, reason),
                    None => fetch.land(Outcome::Released),
                }
                let said = said(Err(reason));
                return self.refused(stale, fields, confirmed.headers(), said);
            }
        };
        let names = self.ask.names.union(&plan.names);
        self.ask.select(&names, &self.fields);
        let draft = Draft::new(self, plan, ticket, status, &fields, times.1);
        let entry = Arc::new(stale.with_head(draft.confirm(stale.head())));
        let said = said(Ok(answer::ttl(entry.head(), times.1)));
        if entry.head().names == stale.head().names {
            self.cache().freshen(&self.ask, ticket, &entry);
        } else {
            // Under the new names nothing lies yet that a new head could be given to.
            self.cache().put(&self.ask, ticket, &entry);
        }
        fetch.land(Outcome::Done(Arc::clone(&entry)));
        let outcome = ResponseCacheOutcome::Validated;
        self.cache().counters.count(outcome);
        let mut fields = HeaderMap::clone(&entry.head().fields);
        if !self.setup.config.replay_set_cookie {
            for cookie in confirmed.headers().get_all(header::SET_COOKIE) {
                fields.append(header::SET_COOKIE, cookie.clone());
            }
        }
        let config = &self.setup.config;
        let mut response = answer::fetched(&entry, self.asked(), config, fields, said, outcome);
        put_inner_status(response.headers_mut(), confirmed.headers());
        response
    }

    /// The stored body under fields of a 304 that may not be stored.
    fn refused<R>(
        &self,
        stale: &Entry,
        mut fields: HeaderMap,
        confirmed: &HeaderMap,
        said: Said,
    ) -> Response<ResponseBody<R>> {
        let outcome = ResponseCacheOutcome::Uncacheable;
        self.cache().counters.count(outcome);
        let config = &self.setup.config;
        // Where nobody says anything of caches, clients are told what they were told before.
        let mut flags = Flags::default();
        let silent = !fields.contains_key(header::CACHE_CONTROL);
        flags.set(
            Flags::OWN_CACHE_CONTROL,
            silent && stale.head().flags.has(Flags::OWN_CACHE_CONTROL),
        );
        answer::put_downstream(&mut fields, flags, config);
        let (status, body) = answer::shape(stale, self.asked(), &mut fields, || {
            (stale.body(), stale.head().trailers.clone())
        });
        config.status.say(&mut fields, said);
        put_inner_status(&mut fields, confirmed);
        let mut response = Response::new(body);
        *response.status_mut() = status;
        *response.headers_mut() = fields;
        response.extensions_mut().insert(outcome);
        response
    }

    /// Not storable: all who wait are released at once, and the key is known as uncacheable for a while.
    pub(super) fn refuse(&self, fetch: &mut Fetch, status: StatusCode, reason: Reason) {
        self.cache().counters.refused(reason);
        // What only this request's cookies or credentials cause, a cut, or the load says nothing about the key;
        // only who holds its lease speaks for it, and nobody by credentials that may be forged.
        let of_request = matches!(reason, Reason::Authorization | Reason::Cut | Reason::Bounds)
            || (reason == Reason::Lifetime && self.ask.signals.cookie)
            || (self.ask.signals.authorization && !self.ask.private);
        if let Some(ticket) = fetch.ticket {
            let speaks = ticket.token != 0 && !of_request;
            self.cache()
                .release(&self.ask, ticket, speaks.then(|| Cache::mark_for(status)));
        }
        fetch.land(Outcome::Released);
    }
}

/// Puts what inner caches say of a 304 before our own member: they speak of this exchange.
fn put_inner_status(fields: &mut HeaderMap, confirmed: &HeaderMap) {
    if !confirmed.contains_key(CACHE_STATUS) {
        return;
    }
    let own = fields.remove(CACHE_STATUS);
    for said in confirmed.get_all(CACHE_STATUS).iter().chain(&own) {
        fields.append(CACHE_STATUS, said.clone());
    }
}

/// What the policies said when the entry was stored, for a 304 that says nothing.
pub(super) fn policy_of(head: &Head) -> Option<CachePolicy> {
    let by_policy = head.flags.has(Flags::BY_POLICY);
    by_policy.then(|| {
        let mut policy = CachePolicy::new().ttl(Duration::from_micros(head.lifetime));
        policy.refresh_after = head.refresh_after.map(Duration::from_micros);
        policy.stale_if_error = head.stale_if_error.map(Duration::from_micros);
        policy.stale_while_revalidate = Some(Duration::from_micros(head.stale_while_revalidate));
        policy
    })
}

/// Gives the lease back if the fetch is dropped before anything came of it.
pub(super) struct LeaseHold {
    cache: Arc<Cache>,
    key: EntryKey,
    ticket: Option<Ticket>,
}

impl LeaseHold {
    pub(super) fn new(exchange: &Exchange, ticket: Option<Ticket>) -> Self {
        let cache = exchange.cache();
        Self {
            cache: Arc::clone(cache),
            key: exchange.ask.entry_key(cache.place),
            ticket,
        }
    }

    /// Leaves it to whoever stores.
    pub(super) const fn leave(&mut self) {
        self.ticket = None;
    }
}

impl Drop for LeaseHold {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take().filter(|ticket| ticket.token != 0) {
            self.cache
                .finish("release", self.cache.store.release(self.key, ticket, None));
        }
    }
}
