//! One load per key and process: a task of its own, and those who wait for it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::watch;

use super::cached::{CacheOutcome, Cached};
use super::error::LoadError;
use super::group::ANY_TAG;
use super::handle::State;
use super::loaded::Loaded;
use super::local::names_of;
use super::target::CacheKey;
use crate::core::Key;

pub(super) type Loading<V> = Pin<
    Box<
        dyn Future<Output = Result<Option<Loaded<V>>, Arc<dyn std::error::Error + Send + Sync>>>
            + Send,
    >,
>;
pub(super) type Loader<V> = Box<dyn FnOnce() -> Loading<V> + Send>;

/// Tells all who wait for a load, once.
pub(super) type Told<V> = watch::Sender<Option<Answer<V>>>;

/// What a load ends with.
pub(super) type Answer<V> = Result<Option<Cached<V>>, LoadError>;

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

pub(super) struct Flight<V> {
    /// The process's sight when it began.
    pub(super) noted: u64,
    pub(super) answer: watch::Receiver<Option<Answer<V>>>,
}

impl<V> Flight<V> {
    pub(super) async fn wait(&self, joined: bool) -> Answer<V> {
        let mut answer = self.answer.clone();
        let answer = match answer.wait_for(Option::is_some).await {
            Ok(answer) => answer.clone(),
            // The task ended without a word: it panicked outside the loader, or the runtime stops.
            Err(_) => None,
        };
        let mut answer = answer.unwrap_or(Err(LoadError::Panicked));
        if joined
            && let Ok(Some(cached)) = &mut answer
            && cached.outcome == CacheOutcome::Loaded
        {
            cached.outcome = CacheOutcome::Joined;
        }
        answer
    }
}

impl<V> State<V> {
    /// Joins the load that runs, unless something it reads was invalidated since it began; else takes its place.
    pub(super) fn enter(self: &Arc<Self>, ats: Vec<FlightKey>, names: &[String]) -> Entered<V> {
        let sight = &self.group.shared.sight;
        let mut flights = self.flights.lock();
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
                && sight.is_good(flight.noted, names)
            {
                return Entered::Joined(Arc::clone(flight));
            }
        }
        let (told, answer) = watch::channel(None);
        let noted = sight.now();
        let own = Arc::new(Flight { noted, answer });
        for at in &ats {
            flights.insert(at.clone(), Arc::clone(&own));
        }
        let state = Arc::clone(self);
        Entered::Led(told, Landing { state, ats, own })
    }
}

/// What may leave a load of `key` to those who asked before.
pub(super) fn names_of_load(key: &CacheKey) -> Vec<String> {
    let mut names: Vec<String> = names_of(key).collect();
    names.push(ANY_TAG.to_owned());
    names
}

/// Whether a load runs already.
pub(super) enum Entered<V> {
    Joined(Arc<Flight<V>>),
    Led(Told<V>, Landing<V>),
}

/// Takes a flight off the list when its task ends, however that is.
pub(super) struct Landing<V> {
    state: Arc<State<V>>,
    ats: Vec<FlightKey>,
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
