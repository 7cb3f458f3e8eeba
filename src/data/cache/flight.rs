//! One load per key and process: a task of its own, and those who wait for it.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use smallvec::SmallVec;
use tokio::sync::watch;

use super::cached::{CacheOutcome, Cached};
use super::error::LoadError;
use super::group::ANY_TAG;
use super::handle::State;
use super::loaded::Loaded;
use super::sight::IsOld;
use super::stats::Served;
use super::target::CacheKey;
use crate::core::Key;
use crate::core::telemetry::count;

/// What a loader fails with.
pub(super) type LoaderError = Arc<dyn std::error::Error + Send + Sync>;

/// A load that has not begun: nothing of it runs before it is polled.
pub(super) type Loading<T> = Pin<Box<dyn Future<Output = Result<T, LoaderError>> + Send>>;
pub(super) type Loader<V> = Loading<Option<Loaded<V>>>;

/// Tells all who wait for a load.
pub(super) type Told<V> = watch::Sender<Said<V>>;

/// What a load ends with.
pub(super) type Answer<V> = Result<Option<Cached<V>>, LoadError>;

/// What a load has said so far.
pub(super) struct Said<V> {
    /// A value that answers while the load goes on, and until when, in UTC microseconds of the local clock.
    early: Option<(Word<V>, u64)>,
    last: Option<Word<V>>,
}

/// An answer, and what each read counts as that it is the answer to.
pub(super) type Word<V> = (Answer<V>, Served);

impl<V> Said<V> {
    pub(super) fn is_silent(&self) -> bool {
        self.early.is_none() && self.last.is_none()
    }

    /// What it says to one who asks at `now`.
    fn at(&self, now: u64) -> Option<&Word<V>> {
        let early = self.early.as_ref().filter(|(_, until)| now < *until);
        early.map(|(word, _)| word).or(self.last.as_ref())
    }
}

/// Says the end of a load, the first one counts.
pub(super) fn tell<V>(told: &Told<V>, word: Word<V>) {
    told.send_if_modified(|said| {
        let is_first = said.last.is_none();
        if is_first {
            said.last = Some(word);
        }
        is_first
    });
}

/// Answers until then, while the load goes on.
pub(super) fn tell_early<V>(told: &Told<V>, word: Word<V>, until: u64) {
    told.send_if_modified(|said| {
        let is_first = said.is_silent();
        if is_first {
            said.early = Some((word, until));
        }
        is_first
    });
}

/// Which loads may be shared.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct FlightKey {
    pub(super) key: Key,
    pub(super) want: Want,
}

/// What the caller takes for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Want {
    /// A value: a remembered absence is loaded again.
    Value,
    /// A value, or that there is none.
    Either,
    /// What the loader says now.
    Refresh,
}

/// The loads that run.
pub(super) type Flights<V> = HashMap<FlightKey, Arc<Flight<V>>>;

pub(super) struct Flight<V> {
    /// The process's sight when it began.
    pub(super) noted: u64,
    said: watch::Receiver<Said<V>>,
}

impl<V> Flight<V> {
    /// Waits for what it says to one who asks at `now`: nothing that had ended by then.
    pub(super) async fn wait(&self, joined: bool, now: u64) -> Word<V> {
        // Who led it was there before whatever it says.
        let now = if joined { now } else { 0 };
        let mut said = self.said.clone();
        let _ended = said.wait_for(|said| said.at(now).is_some()).await.is_err();
        // Without a last word others load, or the task panicked outside the loader, or the runtime stops.
        let said = said.borrow();
        let word = said.at(now).or_else(|| said.at(0)).cloned();
        let mut word = word.unwrap_or((Err(LoadError::Panicked), Served::Miss));
        if joined
            && let Ok(Some(cached)) = &mut word.0
            && cached.outcome == CacheOutcome::Loaded
        {
            cached.outcome = CacheOutcome::Joined;
        }
        word
    }
}

impl<V> State<V> {
    /// Joins the load that runs, unless something it reads was invalidated since it began; else takes its place.
    pub(super) fn enter(
        self: &Arc<Self>,
        ats: SmallVec<[FlightKey; 1]>,
        names: impl Fn(IsOld<'_>) -> bool,
    ) -> Entered<V> {
        let mut flights = self.flights.lock();
        self.enter_among(&mut flights, ats, names)
    }

    /// The same for who enters for several keys, and is not to be mixed up with others who enter for the same ones.
    pub(super) fn enter_among(
        self: &Arc<Self>,
        flights: &mut Flights<V>,
        ats: SmallVec<[FlightKey; 1]>,
        names: impl Fn(IsOld<'_>) -> bool,
    ) -> Entered<V> {
        let sight = &self.group.shared.sight;
        for at in &ats {
            let flight = flights.get(at).or_else(|| {
                // Who takes either takes a value.
                let value = FlightKey {
                    want: Want::Value,
                    ..at.clone()
                };
                flights.get(&value).filter(|_| at.want == Want::Either)
            });
            if let Some(flight) = flight
                && sight.is_good(flight.noted, &names)
            {
                count!("keep_cache_loads_total", 1, "cache" => self.label.clone(), "result" => "joined");
                return Entered::Joined(Arc::clone(flight));
            }
        }
        let (told, said) = watch::channel(Said {
            early: None,
            last: None,
        });
        let noted = sight.now();
        let own = Arc::new(Flight { noted, said });
        for at in &ats {
            flights.insert(at.clone(), Arc::clone(&own));
        }
        let state = Arc::clone(self);
        Entered::Led(told, Landing { state, ats, own })
    }
}

/// What may leave a load of `key` to those who asked before.
pub(super) fn names_of_load(key: &CacheKey) -> impl Fn(IsOld<'_>) -> bool {
    |is_old| is_old(ANY_TAG) && key.all_names(is_old)
}

/// Whether a load runs already.
pub(super) enum Entered<V> {
    Joined(Arc<Flight<V>>),
    Led(Told<V>, Landing<V>),
}

/// Takes a flight off the list when its task ends, however that is.
pub(super) struct Landing<V> {
    state: Arc<State<V>>,
    ats: SmallVec<[FlightKey; 1]>,
    pub(super) own: Arc<Flight<V>>,
}

impl<V> Landing<V> {
    pub(super) fn land(&self) {
        let mut flights = self.state.flights.lock();
        for at in &self.ats {
            if flights
                .get(at)
                .is_some_and(|flight| Arc::ptr_eq(flight, &self.own))
            {
                flights.remove(at);
            }
        }
    }
}

impl<V> Drop for Landing<V> {
    fn drop(&mut self) {
        self.land();
    }
}
