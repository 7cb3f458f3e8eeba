//! Stored responses behind a fallback: the primary alone is asked, a stale second store would only be wrong.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::backend::fallback::Fallback;
use crate::core::{Clock, StoreFuture, Subscription};
use crate::response_cache::entry::Entry;
use crate::response_cache::stamps::{Change, Changes, Stamp};

use super::{EntryKey, Found, Lookup, Place, ResponseStore, StoreNoticeCallback, Stored, Ticket};

impl<P, S> ResponseStore for Fallback<P, S>
where
    P: ResponseStore,
    S: fmt::Debug + Send + Sync + 'static,
{
    fn lookup(&self, lookup: Lookup) -> StoreFuture<Found> {
        self.primary().lookup(lookup)
    }

    fn store(&self, key: EntryKey, ticket: Ticket, entry: Arc<Entry>) -> StoreFuture<Stored> {
        self.primary().store(key, ticket, entry)
    }

    fn freshen(&self, key: EntryKey, ticket: Ticket, entry: Arc<Entry>) -> StoreFuture<Stored> {
        self.primary().freshen(key, ticket, entry)
    }

    fn release(&self, key: EntryKey, ticket: Ticket, mark: Option<Duration>) -> StoreFuture<()> {
        self.primary().release(key, ticket, mark)
    }

    fn invalidate(&self, changes: &[Change]) -> StoreFuture<Stamp> {
        self.primary().invalidate(changes)
    }

    fn changes(&self, since: Stamp) -> StoreFuture<Changes> {
        self.primary().changes(since)
    }

    fn subscribe(&self, on: StoreNoticeCallback) -> StoreFuture<Subscription> {
        self.primary().subscribe(on)
    }

    fn place(&self) -> Place {
        self.primary().place()
    }

    fn clock(&self) -> Arc<dyn Clock> {
        self.primary().clock()
    }
}
