//! What all clones of one layer share: the store, the local level, the stamps and the fetches under way.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::time::Duration;

use http::HeaderMap;
use parking_lot::Mutex;

use crate::core::{Clock, StoreError, StoreFuture, SystemClock, telemetry};

use super::ask::Ask;
use super::collect::Unfinished;
use super::entry::Entry;
use super::flight::Flights;
use super::handle::{Counters, InvalidateOutcome};
use super::policy::{self, Use};
use super::stamps::{Change, Stamp, Stamps, Verdict};
use super::store::{
    Found, FoundEntry, Hash128, Lease, Local, Lookup, Place, ResponseStore, Ticket, Want,
};

/// A local copy answers only if the stamps were confirmed this lately, in real microseconds.
const BELIEVED: u64 = 1_000_000;
/// While there are local hits the stamps are asked for this often.
const ASK_EVERY: u64 = 250_000;
/// After a stale answer has stood in, the key is answered so without asking, in real microseconds.
const STAND_IN: u64 = 1_000_000;
const MOST_STAND_INS: usize = 10_000;
/// How long a key is known as uncacheable.
const MARKED: Duration = Duration::from_secs(60);
const MARKED_BY_ERROR: Duration = Duration::from_secs(1);
/// As many targets as one call carries.
const TARGETS_PER_CALL: usize = 64;
/// The most refreshes behind answers at one time.
const MOST_REFRESHES: usize = 256;

pub(super) struct Cache {
    pub(super) store: Arc<dyn ResponseStore>,
    pub(super) place: Place,
    clock: Arc<dyn Clock>,
    real: Arc<dyn Clock>,
    /// The store's time less this machine's, as the last look-up showed it.
    offset: AtomicI64,
    pub(super) local: Local,
    keeps_copies: bool,
    pub(super) stamps: Stamps,
    pub(super) flights: Arc<Flights>,
    pub(super) unfinished: Arc<Unfinished>,
    pub(super) counters: Counters,
    asking: AtomicBool,
    refreshes: AtomicUsize,
    stand_ins: Mutex<std::collections::HashMap<Hash128, u64>>,
}

/// An answer that is there without waiting, or the knowledge that there is none.
pub(super) enum Tried {
    /// Use it now.
    Hit(Arc<Entry>, u64),
    /// The key is known as uncacheable.
    Marked,
    /// The store has to be asked, or the inner service.
    Unknown,
}

/// What the store says of a request, judged by stamps that are up to date.
pub(super) struct Looked {
    pub(super) now: u64,
    pub(super) highest: Stamp,
    pub(super) marked: bool,
    pub(super) entry: Option<(Arc<Entry>, Use, Verdict)>,
    pub(super) lease: Option<Lease>,
}

impl Cache {
    pub(super) fn new(
        store: Arc<dyn ResponseStore>,
        local_bytes: usize,
        real: Option<Arc<dyn Clock>>,
    ) -> Self {
        let (place, clock) = (store.place(), store.clock());
        let copies = if place == Place::Shared {
            local_bytes
        } else {
            0
        };
        Self {
            store,
            place,
            clock,
            real: real.unwrap_or_else(|| Arc::new(SystemClock)),
            offset: AtomicI64::new(0),
            local: Local::new(copies),
            keeps_copies: copies > 0,
            stamps: Stamps::default(),
            flights: Arc::default(),
            unfinished: Arc::new(Unfinished::new((local_bytes / 4).max(16 * 1_024 * 1_024))),
            counters: Counters::default(),
            asking: AtomicBool::new(false),
            refreshes: AtomicUsize::new(0),
            stand_ins: Mutex::default(),
        }
    }

    /// The store's time as this process knows it.
    pub(super) fn now(&self) -> u64 {
        self.clock
            .now_micros()
            .saturating_add_signed(self.offset.load(Ordering::Relaxed))
    }

    /// A ticket for a fetch that holds no lease. Its stamp may lag behind, which only makes it end sooner.
    pub(super) fn ticket(&self) -> Ticket {
        Ticket {
            token: 0,
            begun: self.stamps.highest(),
            at: self.now(),
        }
    }

    /// Looks for a fresh answer that needs nobody.
    pub(super) fn try_now(self: &Arc<Self>, ask: &mut Ask, request: &HeaderMap) -> Tried {
        match self.place {
            Place::Process => self.try_store(ask, request),
            Place::Shared => self.try_copy(ask, request),
        }
    }

    fn try_store(&self, ask: &mut Ask, request: &HeaderMap) -> Tried {
        loop {
            let lookup = self.question(ask, Want::Entry, Stamp::default(), None);
            let Ok(Ok(found)) = self.store.lookup(lookup).try_now() else {
                return Tried::Unknown;
            };
            if found.names != ask.names {
                ask.select(&found.names, request);
                continue;
            }
            if found.mark.is_some() {
                return Tried::Marked;
            }
            if found.highest > self.stamps.highest() {
                self.sync_now();
            }
            let FoundEntry::Entry(entry) = found.entry else {
                return Tried::Unknown;
            };
            return self.if_fresh(ask, entry, found.now);
        }
    }

    fn try_copy(self: &Arc<Self>, ask: &mut Ask, request: &HeaderMap) -> Tried {
        let (now, real) = (self.now(), self.real.now_micros());
        let found = self.local.find(ask.key.local, now, |names| {
            ask.select(names, request);
            ask.local().1
        });
        if found.mark_until > real {
            return Tried::Marked;
        }
        let Some(entry) = found.entry.filter(|_| self.keeps_copies) else {
            return Tried::Unknown;
        };
        // A copy is believed for one second after the stamps were last known to be complete.
        let since = real.saturating_sub(self.stamps.confirmed());
        if since >= BELIEVED {
            return Tried::Unknown;
        }
        if since >= ASK_EVERY {
            self.ask_behind();
        }
        self.if_fresh(ask, entry, now)
    }

    fn if_fresh(&self, ask: &Ask, entry: Arc<Entry>, now: u64) -> Tried {
        if !ask.matches(&entry) {
            return Tried::Unknown;
        }
        let verdict = self.stamps.judge(&entry);
        match policy::use_of(entry.head(), now, verdict, &ask.demands) {
            Use::Fresh => Tried::Hit(entry, now),
            _ => Tried::Unknown,
        }
    }

    /// Asks for changes behind an answer, one at a time.
    fn ask_behind(self: &Arc<Self>) {
        if self.asking.swap(true, Ordering::AcqRel) {
            return;
        }
        let cache = Arc::clone(self);
        let ran = spawn(async move {
            // Failing, it has already put the copies in doubt.
            let _ = cache.sync().await;
            cache.asking.store(false, Ordering::Release);
        });
        if !ran {
            self.asking.store(false, Ordering::Release);
        }
    }

    fn sync_now(&self) {
        if let Ok(Ok(news)) = self.store.changes(self.stamps.highest()).try_now() {
            self.stamps.apply(&news);
        }
    }

    /// Fetches the stamps that this process lacks.
    pub(super) async fn sync(&self) -> Result<(), StoreError> {
        let before = self.real.now_micros();
        match self.store.changes(self.stamps.highest()).await {
            Ok(news) => {
                self.stamps.apply(&news);
                self.stamps.confirm(before);
                Ok(())
            }
            Err(error) => {
                self.stamps.doubt();
                Err(error)
            }
        }
    }

    fn question(
        &self,
        ask: &Ask,
        want: Want,
        not_before: Stamp,
        have: Option<&Arc<Entry>>,
    ) -> Lookup {
        Lookup {
            key: ask.entry_key(self.place),
            names: ask.names.clone(),
            not_before,
            have: have.map(|entry| entry.id()),
            want,
        }
    }

    /// Asks the store, and judges what it has by stamps that are up to date.
    pub(super) async fn look(
        &self,
        ask: &mut Ask,
        request: &HeaderMap,
        want: Want,
    ) -> Result<Looked, StoreError> {
        self.tell_queued().await?;
        let not_before = self.stamps.not_before(&ask.targets());
        loop {
            let copy = self.copy_of(ask, request);
            let before = self.real.now_micros();
            let question = self.question(ask, want, not_before, copy.as_ref());
            let found = match self.store.lookup(question).await {
                Ok(found) => found,
                Err(error) => {
                    self.stamps.doubt();
                    return Err(error);
                }
            };
            self.follow_clock(found.now);
            if found.names != ask.names {
                ask.select(&found.names, request);
                if self.place == Place::Shared {
                    self.local.learn(ask.key.local, &found.names, found.now);
                }
                continue;
            }
            if found.highest > self.stamps.highest() {
                self.sync().await?;
            } else {
                self.stamps.confirm(before);
            }
            return Ok(self.judged(ask, found, copy));
        }
    }

    fn judged(&self, ask: &Ask, found: Found, copy: Option<Arc<Entry>>) -> Looked {
        let entry = match found.entry {
            FoundEntry::None => None,
            FoundEntry::Same => copy,
            FoundEntry::Entry(entry) => {
                self.keep_copy(ask, &entry);
                Some(entry)
            }
        };
        let judged = entry.filter(|entry| ask.matches(entry)).and_then(|entry| {
            let verdict = self.stamps.judge(&entry);
            match policy::use_of(entry.head(), found.now, verdict, &ask.demands) {
                Use::Gone => None,
                usable => Some((entry, usable, verdict)),
            }
        });
        Looked {
            now: found.now,
            highest: found.highest,
            marked: found.mark.is_some(),
            entry: judged,
            lease: found.lease,
        }
    }

    fn copy_of(&self, ask: &mut Ask, request: &HeaderMap) -> Option<Arc<Entry>> {
        if !self.keeps_copies {
            return None;
        }
        let found = self.local.find(ask.key.local, self.now(), |names| {
            ask.select(names, request);
            ask.local().1
        });
        found.entry.filter(|entry| ask.matches(entry))
    }

    /// Keeps a copy of a shared entry in this process.
    pub(super) fn keep_copy(&self, ask: &Ask, entry: &Arc<Entry>) {
        let (primary, selector) = ask.local();
        if self.keeps_copies {
            self.local
                .put(primary, selector, Arc::clone(entry), self.now());
        } else if self.place == Place::Shared && !entry.head().names.is_empty() {
            self.local.learn(primary, &entry.head().names, self.now());
        }
    }

    fn follow_clock(&self, now: u64) {
        if self.place == Place::Shared {
            let offset = now
                .cast_signed()
                .wrapping_sub(self.clock.now_micros().cast_signed());
            self.offset.store(offset, Ordering::Relaxed);
        }
    }

    /// How long an answer of this status makes its key known as uncacheable.
    pub(super) const fn mark_for(status: http::StatusCode) -> Duration {
        if status.as_u16() >= 500 {
            MARKED_BY_ERROR
        } else {
            MARKED
        }
    }

    /// Drops a lease, and notes an uncacheable key in this process and in the store.
    pub(super) fn release(self: &Arc<Self>, ask: &Ask, ticket: Ticket, mark: Option<Duration>) {
        let (primary, selector) = ask.local();
        if self.place == Place::Shared
            && let Some(mark) = mark
        {
            let until = self.real.now_micros().saturating_add(micros(mark));
            self.local.mark(primary, selector, until, self.now());
        }
        if ticket.token != 0 || mark.is_some() {
            self.finish(
                "release",
                self.store.release(ask.entry_key(self.place), ticket, mark),
            );
        }
    }

    /// Lets a store call end behind the answer; where it is already known nothing is spawned.
    pub(super) fn finish<T: Send + 'static>(
        self: &Arc<Self>,
        method: &'static str,
        call: StoreFuture<T>,
    ) {
        let later = match call.try_now() {
            Ok(Ok(_)) => return,
            Ok(Err(_)) => return self.failed(method),
            Err(later) => later,
        };
        let cache = Arc::clone(self);
        // Outside a runtime nobody could drive the call: a lease ends by itself, an entry is not stored.
        spawn(async move {
            if later.await.is_err() {
                cache.failed(method);
            }
        });
    }

    /// Stores an entry: in this process at once, in a shared store behind the answer.
    pub(super) fn put(self: &Arc<Self>, ask: &Ask, ticket: Ticket, entry: &Arc<Entry>) {
        self.keep_copy(ask, entry);
        let key = ask.entry_key(self.place);
        self.finish("store", self.store.store(key, ticket, Arc::clone(entry)));
    }

    pub(super) fn failed(&self, method: &'static str) {
        self.counters.store_errors.fetch_add(1, Ordering::Relaxed);
        telemetry::count!("keep_response_cache_store_errors_total", 1, "method" => method);
    }

    /// Invalidates here and in the store; what the store cannot hear now is kept for it.
    pub(super) async fn invalidate(&self, mut changes: Vec<Change>) -> InvalidateOutcome {
        changes.sort_unstable();
        changes.dedup();
        let mut outcome = InvalidateOutcome::Done;
        for part in changes.chunks(TARGETS_PER_CALL) {
            match self.store.invalidate(part).await {
                Ok(stamp) => self.stamps.apply_own(part, stamp),
                Err(_) => {
                    self.failed("invalidate");
                    self.stamps.queue(part);
                    outcome = InvalidateOutcome::Queued;
                }
            }
        }
        if self.place == Place::Process {
            self.sync_now();
        }
        outcome
    }

    /// Tells the store what was invalidated while it was away, before it is believed again.
    async fn tell_queued(&self) -> Result<(), StoreError> {
        let queued = self.stamps.queued();
        for part in queued.chunks(TARGETS_PER_CALL) {
            let stamp = self.store.invalidate(part).await?;
            self.stamps.told(part, stamp);
        }
        Ok(())
    }

    /// Notes that a stale answer stands in, so that a failing service is asked once a second.
    pub(super) fn stands_in(&self, ask: &Ask) {
        let now = self.real.now_micros();
        let mut all = self.stand_ins.lock();
        if all.len() >= MOST_STAND_INS {
            all.retain(|_, until| *until > now);
        }
        if all.len() < MOST_STAND_INS {
            all.insert(ask.key.local, now.saturating_add(STAND_IN));
        }
    }

    pub(super) fn is_standing_in(&self, ask: &Ask) -> bool {
        let all = self.stand_ins.lock();
        all.get(&ask.key.local)
            .is_some_and(|until| *until > self.real.now_micros())
    }

    /// Takes one of the places for refreshes behind answers.
    pub(super) fn begin_refresh(self: &Arc<Self>) -> Option<Refreshing> {
        let before = self.refreshes.fetch_add(1, Ordering::AcqRel);
        let place = Refreshing {
            cache: Arc::clone(self),
        };
        (before < MOST_REFRESHES).then_some(place)
    }

    pub(super) fn refreshes(&self) -> usize {
        self.refreshes.load(Ordering::Acquire)
    }
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache")
            .field("store", &self.store)
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

/// A place among the refreshes behind answers.
pub(super) struct Refreshing {
    cache: Arc<Cache>,
}

impl Drop for Refreshing {
    fn drop(&mut self) {
        self.cache.refreshes.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Spawns a task if there is a runtime; says whether there was one.
pub(super) fn spawn(task: impl Future<Output = ()> + Send + 'static) -> bool {
    match tokio::runtime::Handle::try_current() {
        Ok(runtime) => {
            runtime.spawn(task);
            true
        }
        Err(_) => false,
    }
}

fn micros(length: Duration) -> u64 {
    u64::try_from(length.as_micros()).unwrap_or(u64::MAX)
}
