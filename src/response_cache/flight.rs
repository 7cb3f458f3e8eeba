//! One fetch for many: in this process the first asker of a key leads, the others wait for what it finds.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use hashbrown::HashTable;
use http::StatusCode;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::entry::Entry;
use super::feed::Stream;
use super::stamps::{Stamp, Stamps, Verdict};
use super::store::Hash128;
use super::target::Target;

/// What flies: a key, the values that select a variant, and whether a fresh answer is demanded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct FlightKey {
    pub(super) primary: Hash128,
    pub(super) selector: Hash128,
    pub(super) reload: bool,
}

impl FlightKey {
    /// The primary hash is seeded already; variants of one key lie beside each other.
    fn hash(&self) -> u64 {
        u128::from_le_bytes(self.primary.0) as u64
    }
}

/// What a flight brought.
#[derive(Clone, Debug)]
pub(super) enum Outcome {
    /// A fetched answer that may be shared.
    Done(Arc<Entry>),
    /// One that may be shared, whose body is still on its way.
    Streams(Arc<Stream>),
    /// A stored answer that was good enough for the leader; each who waits judges it by its own demands.
    Found(Arc<Entry>),
    /// A stale answer in place of an error.
    StandIn(Arc<Entry>, Option<StatusCode>),
    /// Nothing that may be shared: everybody calls for himself, in parallel.
    Released,
    /// The leader is gone; somebody else leads.
    Lost,
}

/// A fetch under way.
#[derive(Debug)]
pub(super) struct Flight {
    key: FlightKey,
    state: Mutex<State>,
    changed: Notify,
    waiters: AtomicUsize,
    begun: AtomicU64,
    /// When it was started, in real microseconds.
    started: u64,
    /// When its run has lasted a lease: newcomers start the next one.
    overdue: u64,
    /// The version of the stamps when it started: what was known then it cannot miss.
    version: u64,
}

#[derive(Debug)]
enum State {
    Calling,
    Streams(Arc<Stream>),
    Landed(Outcome),
}

impl Flight {
    /// How many wait.
    pub(super) fn waiters(&self) -> usize {
        self.waiters.load(Ordering::Acquire)
    }

    /// Says whether an invalidation since it began may hit what it brings.
    fn is_outdated(&self, stamps: &Stamps, known: impl FnOnce() -> Vec<Target>) -> bool {
        if self.version == stamps.version() {
            return false;
        }
        if let State::Streams(stream) = &*self.state.lock() {
            return stamps.judge_head(&stream.head) != Verdict::Live;
        }
        stamps.may_hit(Stamp(self.begun.load(Ordering::Acquire)), &known())
    }

    fn change(&self, state: State) {
        *self.state.lock() = state;
        self.changed.notify_waiters();
    }
}

/// All fetches under way in this process.
#[derive(Debug, Default)]
pub(super) struct Flights {
    running: Mutex<HashTable<Arc<Flight>>>,
}

/// The part that one asker plays.
pub(super) enum Entered {
    Lead(Leader),
    Wait(Waiter),
}

impl Flights {
    /// Joins the flight of `key`, or starts one that is overdue at `overdue`; `now` in real microseconds. One that
    /// an invalidation of its targets has hit, or whose run has lasted a lease, is left alone.
    pub(super) fn enter(
        self: &Arc<Self>,
        key: FlightKey,
        stamps: &Stamps,
        (now, overdue): (u64, u64),
        targets: impl FnOnce() -> Vec<Target>,
    ) -> Entered {
        let hash = key.hash();
        let mut running = self.running.lock();
        let there = running.find_mut(hash, |flight| flight.key == key);
        if let Some(flight) = &there
            && now < flight.overdue
            && !flight.is_outdated(stamps, targets)
        {
            return Entered::Wait(Waiter::new(flight));
        }
        let flight = Arc::new(Flight {
            key,
            state: Mutex::new(State::Calling),
            changed: Notify::new(),
            waiters: AtomicUsize::new(0),
            begun: AtomicU64::new(stamps.highest().0),
            started: now,
            overdue,
            version: stamps.version(),
        });
        match there {
            Some(there) => *there = Arc::clone(&flight),
            None => {
                let own = Arc::clone(&flight);
                running.insert_unique(hash, own, |flight| flight.key.hash());
            }
        }
        drop(running);
        Entered::Lead(Leader {
            flights: Arc::clone(self),
            flight,
            landed: false,
        })
    }

    /// Says whether a fetch of `key` is under way that started before `then`, in real microseconds.
    pub(super) fn is_older(&self, key: FlightKey, then: u64) -> bool {
        let running = self.running.lock();
        let flight = running.find(key.hash(), |flight| flight.key == key);
        flight.is_some_and(|flight| flight.started < then)
    }

    pub(super) fn len(&self) -> usize {
        self.running.lock().len()
    }

    pub(super) fn waiters(&self) -> usize {
        self.running
            .lock()
            .iter()
            .map(|flight| flight.waiters())
            .sum()
    }
}

/// The leader's hold on its flight. Dropped before it has landed, the flight is lost and another one leads.
#[derive(Debug)]
pub(super) struct Leader {
    flights: Arc<Flights>,
    flight: Arc<Flight>,
    landed: bool,
}

impl Leader {
    pub(super) fn flight(&self) -> Arc<Flight> {
        Arc::clone(&self.flight)
    }

    pub(super) fn is_waited_for(&self) -> bool {
        self.flight.waiters() > 0
    }

    /// Notes the stamp that the store gave the fetch.
    pub(super) fn begun(&self, at: Stamp) {
        self.flight.begun.fetch_max(at.0, Ordering::AcqRel);
    }

    /// Lets those who wait, and newcomers, read along from the first byte.
    pub(super) fn streams(&self, stream: &Arc<Stream>) {
        self.flight.change(State::Streams(Arc::clone(stream)));
    }

    /// Ends the flight for all who wait.
    pub(super) fn land(mut self, outcome: Outcome) {
        self.end(outcome);
    }

    fn end(&mut self, outcome: Outcome) {
        if std::mem::replace(&mut self.landed, true) {
            return;
        }
        let mut running = self.flights.running.lock();
        let own = running.find_entry(self.flight.key.hash(), |flight| {
            Arc::ptr_eq(flight, &self.flight)
        });
        if let Ok(own) = own {
            own.remove();
        }
        drop(running);
        // Nobody can come any more: without anybody here nobody is told.
        if self.is_waited_for() {
            self.flight.change(State::Landed(outcome));
        }
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        self.end(Outcome::Lost);
    }
}

/// Waits for a flight. May be dropped freely: it owns nothing.
pub(super) struct Waiter {
    flight: Arc<Flight>,
    /// It has seen the stream, and does not read along.
    lets_stream: bool,
}

impl Waiter {
    fn new(flight: &Arc<Flight>) -> Self {
        flight.waiters.fetch_add(1, Ordering::AcqRel);
        Self {
            flight: Arc::clone(flight),
            lets_stream: false,
        }
    }

    /// Waits for the end only, not for a stream to read along.
    pub(super) const fn let_stream(&mut self) {
        self.lets_stream = true;
    }

    pub(super) async fn wait(&mut self) -> Outcome {
        loop {
            // Made before the look: what changes after it is not missed.
            let changed = self.flight.changed.notified();
            match &*self.flight.state.lock() {
                State::Landed(outcome) => return outcome.clone(),
                State::Streams(stream) if !self.lets_stream => {
                    return Outcome::Streams(Arc::clone(stream));
                }
                State::Streams(_) | State::Calling => {}
            }
            changed.await;
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.flight.waiters.fetch_sub(1, Ordering::AcqRel);
    }
}

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

    pub(super) fn lead(self: &Arc<Self>, leader: &Leader) -> LeadingMark {
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
