//! Topics behind a line that can be cut by order, for tests of an outage.

use bytes::Bytes;

use super::{From, Kept, Page, Retain, TopicKey, TopicStore};
use crate::backend::fault::FaultStore;
use crate::core::{NoticeCallback, StoreFuture, Subscription};

impl<S: TopicStore> TopicStore for FaultStore<S> {
    fn publish(&self, key: &TopicKey, payload: Bytes, retain: Retain) -> StoreFuture<Kept> {
        self.call(|| self.inner().publish(key, payload, retain))
    }

    fn read(&self, key: &TopicKey, from: From, retain: Retain, most: usize) -> StoreFuture<Page> {
        self.call(|| self.inner().read(key, from, retain, most))
    }

    fn subscribe(&self, key: &TopicKey, callback: NoticeCallback) -> StoreFuture<Subscription> {
        self.call(|| self.inner().subscribe(key, callback))
    }

    fn contradicts(&self, name: &str, what: &str) -> bool {
        self.inner().contradicts(name, what)
    }
}
