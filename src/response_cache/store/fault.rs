//! Kept answers behind a line that can be cut by order, for tests of an outage.

use std::sync::Arc;
use std::time::Duration;

use super::{
    Change, Changes, Entry, EntryKey, Found, Lookup, Place, ResponseStore, Stamp,
    StoreNoticeCallback, Stored, Ticket,
};
use crate::backend::fault::FaultStore;
use crate::core::{Clock, StoreFuture, Subscription};

impl<S: ResponseStore> ResponseStore for FaultStore<S> {
    fn lookup(&self, lookup: Lookup) -> StoreFuture<Found> {
        self.call(|| self.inner().lookup(lookup))
    }

    fn store(&self, key: EntryKey, ticket: Ticket, entry: Arc<Entry>) -> StoreFuture<Stored> {
        self.call(|| self.inner().store(key, ticket, entry))
    }

    fn freshen(&self, key: EntryKey, ticket: Ticket, entry: Arc<Entry>) -> StoreFuture<Stored> {
        self.call(|| self.inner().freshen(key, ticket, entry))
    }

    fn release(&self, key: EntryKey, ticket: Ticket, mark: Option<Duration>) -> StoreFuture<()> {
        self.call(|| self.inner().release(key, ticket, mark))
    }

    fn invalidate(&self, changes: &[Change]) -> StoreFuture<Stamp> {
        self.call(|| self.inner().invalidate(changes))
    }

    fn changes(&self, since: Stamp) -> StoreFuture<Changes> {
        self.call(|| self.inner().changes(since))
    }

    fn subscribe(&self, on: StoreNoticeCallback) -> StoreFuture<Subscription> {
        self.call(|| self.inner().subscribe(on))
    }

    fn place(&self) -> Place {
        self.inner().place()
    }

    fn clock(&self) -> Arc<dyn Clock> {
        self.inner().clock()
    }
}
