//! What all clones of one layer share: the store, the local level, the stamps and the fetches under way.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::core::{Clock, Raised, StoreError, StoreFuture, Subscription, SystemClock, telemetry};

use super::ask::Ask;
use super::collect::Unfinished;
use super::counters::Counters;
use super::entry::Entry;
use super::flight::{Entered, Flights};
use super::hit::BELIEVED;
use super::stamps::{Stamp, Stamps};
use super::store::{
    Hash128, Local, Lookup, Place, ResponseStore, StoreNotice, Stored, Ticket, Want,
};
use super::vary::Names;
use super::waits::Filled;

/// After a stale answer has stood in, the key is answered so without asking, in real microseconds.
const STAND_IN: u64 = 1_000_000;
const MOST_STAND_INS: usize = 10_000;
/// How long a key is known as uncacheable.
const MARKED: Duration = Duration::from_secs(60);
const MARKED_BY_ERROR: Duration = Duration::from_secs(1);
/// The most refreshes behind answers at one time.
const MOST_REFRESHES: usize = 256;
/// After so many requests without a principal, and none with one, a private route is told of.
const MOST_STRANGERS: usize = 100;

pub(super) struct Cache {
    pub(super) store: Arc<dyn ResponseStore>,
    pub(super) place: Place,
    clock: Arc<dyn Clock>,
    pub(super) real: Arc<dyn Clock>,
    /// The store is in this process and follows its system clock, as waits do.
    one_clock: bool,
    /// The store's time less this machine's, as the last look-up showed it.
    offset: AtomicI64,
    pub(super) local: Local,
    pub(super) keeps_copies: bool,
    pub(super) stamps: Stamps,
    pub(super) flights: Arc<Flights>,
    /// Leaders that wait for leases of other processes.
    pub(super) filled: Filled,
    pub(super) unfinished: Arc<Unfinished>,
    pub(super) counters: Counters,
    /// Requests on private routes that nobody is known to have sent, until the first that somebody has.
    strangers: AtomicUsize,
    asking: Arc<AtomicBool>,
    /// How many of those who would join have begun to ask what was invalidated elsewhere.
    catch_ups: AtomicU64,
    /// The last of them that has ended.
    catching_up: tokio::sync::Mutex<u64>,
    /// `None` until it is confirmed, and where the staleness bound is under test.
    told: Mutex<Option<Subscription>>,
    /// It was asked for, or is not to be.
    listening: Arc<AtomicBool>,
    refreshes: AtomicUsize,
    stand_ins: Mutex<std::collections::HashMap<Hash128, u64>>,
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
        let listening = Arc::new(AtomicBool::new(real.is_some()));
        let one_clock = place == Place::Process && real.is_none() && clock.is_system();
        Self {
            store,
            place,
            one_clock,
            clock,
            real: real.unwrap_or_else(|| Arc::new(SystemClock)),
            offset: AtomicI64::new(0),
            local: Local::new(copies),
            keeps_copies: copies > 0,
            stamps: Stamps::default(),
            flights: Arc::default(),
            filled: Filled::default(),
            unfinished: Arc::new(Unfinished::new((local_bytes / 4).max(16 * 1_024 * 1_024))),
            counters: Counters::new(place),
            strangers: AtomicUsize::new(0),
            asking: Arc::default(),
            catch_ups: AtomicU64::new(0),
            catching_up: tokio::sync::Mutex::default(),
            told: Mutex::default(),
            listening,
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
            begun: self.stamps.issued(),
            at: self.now(),
            ..Ticket::default()
        }
    }

    /// Asks for changes behind an answer, one at a time.
    pub(super) fn ask_behind(self: &Arc<Self>) {
        let Some(asking) = Raised::raise(&self.asking) else {
            return;
        };
        let cache = Arc::clone(self);
        spawn(async move {
            // Failing, it has already put the copies in doubt.
            let _ = cache.sync().await;
            drop(asking);
        });
    }

    /// Listens for invalidations elsewhere, so that they are obeyed sooner than they must be.
    pub(super) fn listen(self: &Arc<Self>) {
        if self.place == Place::Process {
            return;
        }
        let Some(listening) = Raised::raise(&self.listening) else {
            return;
        };
        let cache = Arc::downgrade(self);
        let on = move |notice: StoreNotice| {
            let Some(cache) = cache.upgrade() else {
                return;
            };
            match notice {
                // Lost ones are made up for by asking; so nothing is believed because of a notice alone.
                StoreNotice::Changed => cache.ask_behind(),
                StoreNotice::Filled(primary) => cache.filled.wake(primary),
            }
        };
        let (asked, cache) = (self.store.subscribe(Arc::new(on)), Arc::downgrade(self));
        spawn(async move {
            let subscription = asked.await.ok();
            if let Some(cache) = cache.upgrade() {
                *cache.told.lock() = subscription;
            }
            listening.stay();
        });
    }

    pub(super) fn sync_now(&self) {
        if let Ok(Ok(news)) = self.store.changes(self.stamps.highest()).try_now() {
            self.stamps.apply(&news);
        }
    }

    /// Joins the fetch of what `ask` asks for, or leads a new one.
    pub(super) fn enter(&self, ask: &Ask, lease: Duration) -> Entered {
        self.enter_at(ask, lease, None)
    }

    /// The same; with the store's time as it was just read, where the clocks are one, they are not read again.
    pub(super) fn enter_at(&self, ask: &Ask, lease: Duration, at: Option<u64>) -> Entered {
        let read = at.filter(|_| self.one_clock);
        let now = read.unwrap_or_else(|| self.real.now_micros());
        let times = (now, now.saturating_add(micros(lease)));
        let (flights, key) = (&self.flights, ask.flight_key());
        flights.enter(key, &self.stamps, times, || ask.targets())
    }

    /// Learns of invalidations elsewhere before a fetch is joined that they may have hit: with copies if it began a while
    /// ago, without them always. One asks for all who came before it asked.
    pub(super) async fn catch_up(&self, ask: &Ask) {
        if self.place == Place::Process || !self.may_join_too_late(ask) {
            return;
        }
        let came = self.catch_ups.load(Ordering::Acquire);
        let mut last_ended = self.catching_up.lock().await;
        if *last_ended > came {
            return;
        }
        let this = self.catch_ups.fetch_add(1, Ordering::AcqRel) + 1;
        // With the store away a fetch is shared all the same.
        let _ = self.sync().await;
        *last_ended = this;
    }

    fn may_join_too_late(&self, ask: &Ask) -> bool {
        let key = ask.flight_key();
        if !self.keeps_copies {
            return self.flights.is_older(key, u64::MAX);
        }
        let now = self.real.now_micros();
        let then = now.saturating_sub(BELIEVED);
        self.stamps.confirmed() <= then && self.flights.is_older(key, then)
    }

    /// Fetches the stamps that this process lacks.
    pub(super) async fn sync(&self) -> Result<(), StoreError> {
        if let Err(error) = self.tell_queued().await {
            self.stamps.doubt();
            return Err(error);
        }
        let before = self.real.now_micros();
        let news = self.store.changes(self.stamps.highest()).await;
        let synced = news.map(|news| {
            self.stamps.apply(&news);
            self.stamps.confirm(before);
        });
        if synced.is_err() {
            self.stamps.doubt();
        }
        self.show();
        synced
    }

    /// Notes whether anybody is known to ask on a private route; where nobody ever was, a layer is missing outside.
    pub(super) fn asked_by(&self, somebody: bool) {
        const KNOWN: usize = usize::MAX;
        let before = self.strangers.load(Ordering::Relaxed);
        if before == KNOWN {
            return;
        }
        if somebody {
            self.strangers.store(KNOWN, Ordering::Relaxed);
        } else if before < MOST_STRANGERS {
            self.strangers.fetch_add(1, Ordering::Relaxed);
            if before + 1 == MOST_STRANGERS {
                telemetry::warn!(
                    "response cache: a private route never saw a principal, and caches nothing"
                );
            }
        }
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

    pub(super) fn follow_clock(&self, now: u64) {
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

    /// Asks the store which names select variants of what `ask` asks for.
    pub(super) async fn names(&self, ask: &Ask, begun: Stamp) -> Result<Names, StoreError> {
        let lookup = Lookup {
            key: ask.entry_key(self.place),
            names: Names::default(),
            not_before: begun,
            have: None,
            want: Want::Entry,
        };
        let found = self.store.lookup(lookup).await;
        if found.is_err() {
            self.failed("lookup");
        }
        found.map(|found| found.names)
    }

    /// Stores an entry: in this process at once, in a shared store behind the answer.
    pub(super) fn put(self: &Arc<Self>, ask: &Ask, ticket: Ticket, entry: &Arc<Entry>) {
        self.keep_copy(ask, entry);
        let key = ask.entry_key(self.place);
        let stored = self.store.store(key, ticket, Arc::clone(entry));
        let stored = self.or_no_copy(ask.local(), entry, stored.map(noted));
        self.finish("store", stored);
        // Once more under its language, for those who like that best and whose own variant is not there.
        if let Some((local, key)) = ask.in_language_of(entry.head(), self.place) {
            let place = (ask.key.local, local);
            if self.keeps_copies {
                let now = self.now();
                self.local.put(place.0, place.1, Arc::clone(entry), now);
            }
            let ticket = Ticket { token: 0, ..ticket };
            let stored = self.store.store(key, ticket, Arc::clone(entry));
            let stored = self.or_no_copy(place, entry, stored.map(noted));
            self.finish("store", stored);
        }
    }

    /// Gives a stored answer a new head: in this process at once, in a shared store behind the answer.
    pub(super) fn freshen(self: &Arc<Self>, ask: &Ask, ticket: Ticket, entry: &Arc<Entry>) {
        self.keep_copy(ask, entry);
        let key = ask.entry_key(self.place);
        let freshened = self.store.freshen(key, ticket, Arc::clone(entry));
        let freshened = self.or_no_copy(ask.local(), entry, freshened);
        self.finish("freshen", freshened);
    }

    /// Drops this process's copy where the store refuses the entry: what another process knew better is no good here
    /// either.
    fn or_no_copy(
        self: &Arc<Self>,
        (primary, selector): (Hash128, Hash128),
        entry: &Arc<Entry>,
        stored: StoreFuture<Stored>,
    ) -> StoreFuture<Stored> {
        if !self.keeps_copies {
            return stored;
        }
        let (cache, entry) = (Arc::clone(self), Arc::clone(entry));
        stored.map(move |stored| {
            if stored == Stored::Superseded {
                let now = cache.now();
                cache.local.drop_copy(primary, selector, &entry, now);
            }
            stored
        })
    }

    pub(super) fn failed(&self, method: &'static str) {
        self.counters.store_errors.fetch_add(1, Ordering::Relaxed);
        telemetry::count!("keep_response_cache_store_errors_total", 1, "method" => method);
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

/// Counts what came too late.
fn noted(stored: Stored) -> Stored {
    if stored == Stored::Superseded {
        telemetry::count!("keep_response_cache_superseded_total", 1);
    }
    stored
}

fn micros(length: Duration) -> u64 {
    u64::try_from(length.as_micros()).unwrap_or(u64::MAX)
}
