//! One considered request, kept while it is answered: what it asks for, under which settings.

use std::sync::Arc;

use http::{Extensions, Request, Response, StatusCode};

use crate::core::{CacheOutside, ResponseCacheOutcome, Visitor, telemetry};

use super::answer::{self, Asked};
use super::ask::Ask;
use super::body::ResponseBody;
use super::cache::Cache;
use super::config::Setup;
use super::counters::Level;
use super::entry::Entry;
use super::feed::Stream;
use super::fetch::LeaseHold;
use super::look::Looked;
use super::policy::{self, Use};
use super::sent::Sent;
use super::stamps::Verdict;
use super::status::{Forward, Said};
use super::store::{Lease, Place, Ticket};

/// A request and its answer to be; in a box, as it moves from hand to hand.
pub(super) struct Exchange {
    pub(super) setup: Arc<Setup>,
    pub(super) ask: Ask,
    /// The fields as the client sent them, its conditions among them; empty until it goes inwards.
    pub(super) fields: Sent,
}

impl Exchange {
    pub(super) fn new<B>(setup: &Arc<Setup>, mut ask: Ask, request: &Request<B>) -> Box<Self> {
        ask.visitor = request.extensions().get::<Visitor>().cloned();
        let mut exchange = Box::new(Self {
            setup: Arc::clone(setup),
            ask,
            fields: Sent::default(),
        });
        if let Some(outside) = request.extensions().get::<CacheOutside>() {
            exchange.ask.nested = outside.fetched.contains(&exchange.name());
        }
        exchange
    }

    /// What is being fetched, and by which cache.
    fn name(&self) -> (usize, [u8; 16]) {
        (Arc::as_ptr(self.cache()) as usize, self.ask.local().0.0)
    }

    /// Marks a request that goes inwards: a layer that stands twice around one service must not wait for itself.
    pub(super) fn mark_fetch(&self, extensions: &mut Extensions) {
        let name = self.name();
        if let Some(outside) = extensions.get_mut::<CacheOutside>() {
            outside.fetched.push(name);
        } else {
            let fetched = std::iter::once(name).collect();
            extensions.insert(CacheOutside { fetched });
        }
    }

    pub(super) fn cache(&self) -> &Arc<Cache> {
        &self.setup.cache
    }

    /// Where an answer comes from that a look-up has found.
    fn level(&self) -> Level {
        match self.cache().place {
            Place::Process => Level::Local,
            Place::Shared => Level::Shared,
        }
    }

    pub(super) fn asked(&self) -> Asked<'_> {
        Asked {
            head: self.ask.head,
            conditions: self.ask.has_conditions().then(|| &*self.fields),
        }
    }

    /// Selects the variant by the names of `entry`; says whether it answers this very request.
    pub(super) fn takes(&mut self, entry: &Entry) -> bool {
        self.ask.select(&entry.head().names, &self.fields);
        self.ask.matches(entry.head())
    }

    /// Says whether a stored answer that somebody else found will do for this request's own demands.
    pub(super) fn may_use(&self, entry: &Entry) -> bool {
        let cache = self.cache();
        let verdict = cache.stamps.judge(entry);
        let usable = policy::use_of(entry.head(), cache.now(), verdict, &self.ask.demands);
        !matches!(usable, Use::Validate | Use::Gone)
    }

    pub(super) fn may_stand_in(
        &self,
        entry: &Entry,
        verdict: Verdict,
        error: Option<StatusCode>,
    ) -> bool {
        let asked = self.ask.demands.stale_if_error;
        policy::may_stand_in(entry.head(), self.cache().now(), verdict, asked, error)
    }

    pub(super) fn forward(&self, stale: bool) -> Forward {
        match (stale, self.ask.demands.reload(), self.ask.names.is_empty()) {
            (true, true, _) => Forward::Request,
            (true, false, _) => Forward::Stale,
            (false, _, true) => Forward::UriMiss,
            (false, _, false) => Forward::VaryMiss,
        }
    }

    pub(super) fn give_back(&self, looked: &Looked) {
        if let Some(Lease::Granted(ticket)) = looked.lease {
            self.cache().release(&self.ask, ticket, None);
        }
    }

    /// Finds an answer in the language that the request likes best; then the lease is given back.
    pub(super) async fn in_language(&self, ticket: Ticket) -> Option<(Arc<Entry>, u64)> {
        let mut lease = LeaseHold::new(self, Some(ticket));
        let found = self.cache().look_in_language(&self.ask).await;
        if found.is_none() {
            lease.leave();
        }
        found
    }

    pub(super) fn stored<R>(&self, entry: &Entry, now: u64) -> Response<ResponseBody<R>> {
        self.ask.mark_personal();
        hit(
            &self.setup,
            self.asked(),
            entry,
            now,
            self.level(),
            Extensions::new(),
        )
    }

    pub(super) fn collapsed<R>(&self, entry: &Entry) -> Response<ResponseBody<R>> {
        self.ask.mark_personal();
        let said = Said::Collapsed(self.forward(false));
        self.answer(entry, said, ResponseCacheOutcome::Collapsed)
    }

    /// Reads along with somebody else's fetch; `None` where that is not possible any more.
    pub(super) fn joined<R>(&self, stream: &Stream) -> Option<Response<ResponseBody<R>>> {
        let reader = stream.join()?;
        self.ask.mark_personal();
        let outcome = ResponseCacheOutcome::Collapsed;
        self.cache().counters.count(outcome);
        telemetry::count!("keep_response_cache_joined_total", 1);
        let said = Said::Collapsed(self.forward(false));
        let now = self.cache().now();
        Some(answer::joined(
            &stream.head,
            reader,
            &self.setup.config,
            now,
            said,
            outcome,
        ))
    }

    pub(super) fn stand_in<R>(
        &self,
        entry: &Entry,
        status: Option<StatusCode>,
    ) -> Response<ResponseBody<R>> {
        self.ask.mark_personal();
        let said = Said::StandIn(status, answer::ttl(entry.head(), self.cache().now()));
        self.answer(entry, said, ResponseCacheOutcome::StandIn)
    }

    fn answer<R>(
        &self,
        entry: &Entry,
        said: Said,
        outcome: ResponseCacheOutcome,
    ) -> Response<ResponseBody<R>> {
        let cache = self.cache();
        cache.counters.count(outcome);
        answer::stored(
            entry,
            self.asked(),
            &self.setup.config,
            cache.now(),
            said,
            outcome,
        )
    }
}

/// A ticket without a lease, begun now.
pub(super) fn ticket_of(looked: &Looked) -> Ticket {
    Ticket {
        begun: looked.highest,
        at: looked.now,
        ..Ticket::default()
    }
}

/// Answers from a stored response that is usable as it is; `spare` is where it puts its extensions.
pub(super) fn hit<R>(
    setup: &Setup,
    asked: Asked<'_>,
    entry: &Entry,
    now: u64,
    level: Level,
    spare: Extensions,
) -> Response<ResponseBody<R>> {
    // What was made stale by an invalidation is so within its lifetime, too.
    let live = setup.cache.stamps.judge(entry) == Verdict::Live;
    let fresh = live && entry.head().age(now) < entry.head().lifetime;
    let outcome = if fresh {
        ResponseCacheOutcome::Hit
    } else {
        ResponseCacheOutcome::StaleHit
    };
    setup.cache.counters.count_at(outcome, level);
    let mut response = answer::hit(entry, asked, &setup.config, now, outcome);
    *response.extensions_mut() = spare;
    response.extensions_mut().insert(outcome);
    response
}
