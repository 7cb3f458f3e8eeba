//! Cached values behind a line that can be cut by order, for tests of an outage.

use std::sync::Arc;

use super::{CacheStore, Fetched, Item, Lookup, Target, Written};
use crate::backend::fault::FaultStore;
use crate::core::{Clock, Key, NoticeCallback, StoreFuture, Subscription};

impl<S: CacheStore> CacheStore for FaultStore<S> {
    fn fetch(&self, group: &Arc<str>, lookups: Vec<Lookup>) -> StoreFuture<Vec<Fetched>> {
        self.call(|| self.inner().fetch(group, lookups))
    }

    fn write(&self, group: &Arc<str>, items: Vec<Item>, sender: &str) -> StoreFuture<Vec<Written>> {
        self.call(|| self.inner().write(group, items, sender))
    }

    fn resolve(&self, group: &Arc<str>, aliases: Vec<String>) -> StoreFuture<Vec<Option<Key>>> {
        self.call(|| self.inner().resolve(group, aliases))
    }

    fn invalidate(&self, group: &Arc<str>, targets: Vec<Target>, sender: &str) -> StoreFuture<()> {
        self.call(|| self.inner().invalidate(group, targets, sender))
    }

    fn subscribe(&self, group: &Arc<str>, callback: NoticeCallback) -> StoreFuture<Subscription> {
        self.call(|| self.inner().subscribe(group, callback))
    }

    fn clock(&self) -> Arc<dyn Clock> {
        self.inner().clock()
    }

    fn contradicts(&self, name: &str, what: &str) -> bool {
        self.inner().contradicts(name, what)
    }
}
