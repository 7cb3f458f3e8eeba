//! The pair asks its primary only: while it is away, a cache's local copies stand in.

use std::fmt;
use std::sync::Arc;

use super::{Ask, CacheKey, CacheStore, Fetched, Fill, Target, Written};
use crate::backend::fallback::Fallback;
use crate::core::{Clock, NoticeCallback, StoreFuture, Subscription};

impl<P, S> CacheStore for Fallback<P, S>
where
    P: CacheStore,
    S: fmt::Debug + Send + Sync + 'static,
{
    fn fetch(&self, group: &Arc<str>, key: &CacheKey, ask: Ask) -> StoreFuture<Fetched> {
        self.primary().fetch(group, key, ask)
    }

    fn write(
        &self,
        group: &Arc<str>,
        key: &CacheKey,
        fill: Fill,
        sender: &str,
    ) -> StoreFuture<Written> {
        self.primary().write(group, key, fill, sender)
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
}
