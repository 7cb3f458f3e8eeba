//! The pair asks its primary only: while it is away, a cache's local copies stand in.

use std::fmt;
use std::sync::Arc;

use super::{CacheStore, Fetched, Item, Lookup, Target, Written};
use crate::backend::fallback::Fallback;
use crate::core::{Clock, Key, NoticeCallback, StoreFuture, Subscription};

impl<P, S> CacheStore for Fallback<P, S>
where
    P: CacheStore,
    S: fmt::Debug + Send + Sync + 'static,
{
    fn fetch(&self, group: &Arc<str>, lookups: Vec<Lookup>) -> StoreFuture<Vec<Fetched>> {
        self.primary().fetch(group, lookups)
    }

    fn write(&self, group: &Arc<str>, items: Vec<Item>, sender: &str) -> StoreFuture<Vec<Written>> {
        self.primary().write(group, items, sender)
    }

    fn resolve(&self, group: &Arc<str>, aliases: Vec<String>) -> StoreFuture<Vec<Option<Key>>> {
        self.primary().resolve(group, aliases)
    }

    fn invalidate(&self, group: &Arc<str>, targets: Vec<Target>, sender: &str) -> StoreFuture<()> {
        self.primary().invalidate(group, targets, sender)
    }

    fn subscribe(&self, group: &Arc<str>, callback: NoticeCallback) -> StoreFuture<Subscription> {
        self.primary().subscribe(group, callback)
    }

    fn clock(&self) -> Arc<dyn Clock> {
        self.primary().clock()
    }

    fn contradicts(&self, name: &str, what: &str) -> bool {
        self.primary().contradicts(name, what)
    }
}
