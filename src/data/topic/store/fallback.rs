//! The pair asks its primary only: events inside one process would reach nobody else.

use std::fmt;

use bytes::Bytes;

use super::{From, Kept, Page, Retain, TopicKey, TopicStore};
use crate::backend::fallback::Fallback;
use crate::core::{NoticeCallback, StoreFuture, Subscription};

impl<P, S> TopicStore for Fallback<P, S>
where
    P: TopicStore,
    S: fmt::Debug + Send + Sync + 'static,
{
    fn publish(&self, key: &TopicKey, payload: Bytes, retain: Retain) -> StoreFuture<Kept> {
        self.primary().publish(key, payload, retain)
    }

    fn read(&self, key: &TopicKey, from: From, retain: Retain, most: usize) -> StoreFuture<Page> {
        self.primary().read(key, from, retain, most)
    }

    fn subscribe(&self, key: &TopicKey, callback: NoticeCallback) -> StoreFuture<Subscription> {
        self.primary().subscribe(key, callback)
    }

    fn contradicts(&self, name: &str, what: &str) -> bool {
        self.primary().contradicts(name, what)
    }
}
