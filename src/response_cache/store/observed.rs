//! A shared store as its cache asks it: how long each call takes.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::core::{Clock, StoreFuture, Subscription};
use crate::response_cache::entry::Entry;
use crate::response_cache::stamps::{Change, Changes, Stamp};

use super::{EntryKey, Found, Lookup, Place, ResponseStore, StoreNoticeCallback, Stored, Ticket};

/// Measures the calls of a shared store.
pub(in crate::response_cache) struct Observed(Arc<dyn ResponseStore>);

impl Observed {
    /// Wraps a store whose calls leave the process; any other is given back as it is.
    pub(in crate::response_cache) fn over(store: Arc<dyn ResponseStore>) -> Arc<dyn ResponseStore> {
        match store.place() {
            Place::Shared if cfg!(feature = "metrics") => Arc::new(Self(store)),
            Place::Shared | Place::Process => store,
        }
    }
}

impl fmt::Debug for Observed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(feature = "metrics")]
fn timed<T: Send + 'static>(method: &'static str, call: StoreFuture<T>) -> StoreFuture<T> {
    use crate::core::{SystemClock, telemetry};

    let started = SystemClock.now_micros();
    StoreFuture::boxed(async move {
        let answer = call.await;
        let took = Duration::from_micros(SystemClock.now_micros().saturating_sub(started));
        telemetry::seconds!("keep_response_cache_store_seconds", took, "method" => method);
        answer
    })
}

#[cfg(not(feature = "metrics"))]
fn timed<T: Send + 'static>(_: &'static str, call: StoreFuture<T>) -> StoreFuture<T> {
    call
}

impl ResponseStore for Observed {
    fn lookup(&self, lookup: Lookup) -> StoreFuture<Found> {
        timed("lookup", self.0.lookup(lookup))
    }

    fn store(&self, key: EntryKey, ticket: Ticket, entry: Arc<Entry>) -> StoreFuture<Stored> {
        timed("store", self.0.store(key, ticket, entry))
    }

    fn freshen(&self, key: EntryKey, ticket: Ticket, entry: Arc<Entry>) -> StoreFuture<Stored> {
        timed("freshen", self.0.freshen(key, ticket, entry))
    }

    fn release(&self, key: EntryKey, ticket: Ticket, mark: Option<Duration>) -> StoreFuture<()> {
        timed("release", self.0.release(key, ticket, mark))
    }

    fn invalidate(&self, changes: &[Change]) -> StoreFuture<Stamp> {
        timed("invalidate", self.0.invalidate(changes))
    }

    fn changes(&self, since: Stamp) -> StoreFuture<Changes> {
        timed("changes", self.0.changes(since))
    }

    fn subscribe(&self, on: StoreNoticeCallback) -> StoreFuture<Subscription> {
        self.0.subscribe(on)
    }

    fn place(&self) -> Place {
        self.0.place()
    }

    fn clock(&self) -> Arc<dyn Clock> {
        self.0.clock()
    }
}
