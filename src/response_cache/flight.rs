//! One fetch for many: in this process the first asker of a key leads, the others wait for what it finds.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::StatusCode;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::entry::Entry;
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

/// What a flight brought.
#[derive(Clone, Debug)]
pub(super) enum Outcome {
    /// A fetched answer that may be shared.
    Done(Arc<Entry>),
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
    outcome: watch::Sender<Option<Outcome>>,
    begun: AtomicU64,
    /// When its run has lasted a lease: newcomers start the next one.
    overdue: Instant,
    /// The version of the stamps when it started: what was known then it cannot miss.
    version: u64,
    /// When the answer's fetch began and what may hit it, once its head is known.
    head: OnceLock<(Stamp, Box<[Target]>)>,
}

impl Flight {
    /// How many wait.
    pub(super) fn waiters(&self) -> usize {
        self.outcome.receiver_count()
    }

    /// Says whether an invalidation since it began may hit what it brings.
    fn is_outdated(&self, stamps: &Stamps, known: impl FnOnce() -> Vec<Target>) -> bool {
        if self.version == stamps.version() {
            return false;
        }
        let known = known();
        match self.head.get() {
            Some((begun, said)) => {
                let targets = known.iter().chain(said);
                stamps.judge_targets(*begun, targets) != Verdict::Live
            }
            None => stamps.may_hit(Stamp(self.begun.load(Ordering::Acquire)), &known),
        }
    }
}

/// All fetches under way in this process.
#[derive(Debug, Default)]
pub(super) struct Flights {
    running: Mutex<HashMap<FlightKey, Arc<Flight>>>,
}

/// The part that one asker plays.
pub(super) enum Entered {
    Lead(Leader),
    Wait(Waiter),
}

impl Flights {
    /// Joins the flight of `key`, or starts it. One that an invalidation of its targets has hit, or whose run
    /// has lasted a lease, is left alone.
    pub(super) fn enter(
        self: &Arc<Self>,
        key: FlightKey,
        stamps: &Stamps,
        lease: Duration,
        targets: impl FnOnce() -> Vec<Target>,
    ) -> Entered {
        // Leases are real time.
        let now = sleep(Duration::ZERO).deadline();
        let mut running = self.running.lock();
        if let Some(flight) = running.get(&key)
            && now < flight.overdue
            && !flight.is_outdated(stamps, targets)
        {
            return Entered::Wait(Waiter {
                outcome: flight.outcome.subscribe(),
            });
        }
        let flight = Arc::new(Flight {
            outcome: watch::Sender::new(None),
            begun: AtomicU64::new(stamps.highest().0),
            overdue: now + lease,
            version: stamps.version(),
            head: OnceLock::new(),
        });
        running.insert(key, Arc::clone(&flight));
        Entered::Lead(Leader {
            flights: Arc::clone(self),
            key,
            flight,
            landed: false,
        })
    }

    pub(super) fn len(&self) -> usize {
        self.running.lock().len()
    }
}

/// The leader's hold on its flight. Dropped before it has landed, the flight is lost and another one leads.
#[derive(Debug)]
pub(super) struct Leader {
    flights: Arc<Flights>,
    key: FlightKey,
    flight: Arc<Flight>,
    landed: bool,
}

impl Leader {
    pub(super) fn flight(&self) -> Arc<Flight> {
        Arc::clone(&self.flight)
    }

    /// Notes the stamp that the store gave the fetch.
    pub(super) fn begun(&self, at: Stamp) {
        self.flight.begun.fetch_max(at.0, Ordering::AcqRel);
    }

    /// Notes the head, so that newcomers know its targets.
    pub(super) fn heads_for(&self, begun: Stamp, said: &[Target]) {
        // A flight has one head; a second one would be the same fetch's.
        let _ = self.flight.head.set((begun, said.into()));
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
        if running
            .get(&self.key)
            .is_some_and(|own| Arc::ptr_eq(own, &self.flight))
        {
            running.remove(&self.key);
        }
        drop(running);
        self.flight.outcome.send_replace(Some(outcome));
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        self.end(Outcome::Lost);
    }
}

/// Waits for a flight to land. May be dropped freely: it owns nothing.
pub(super) struct Waiter {
    outcome: watch::Receiver<Option<Outcome>>,
}

impl Waiter {
    pub(super) async fn wait(mut self) -> Outcome {
        match self.outcome.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone().unwrap_or(Outcome::Lost),
            Err(_) => Outcome::Lost,
        }
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
