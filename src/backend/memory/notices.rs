//! Notices inside one process: listeners are called inside the publishing call.

use std::sync::Arc;

use bytes::Bytes;

use super::part::{Part, PartSetup};
use super::store::MemoryStore;
use crate::backend::channels::Channels;
use crate::core::{NoticeCallback, StoreFuture, Subscription};

struct Notices(Arc<Channels>);

impl Part for Notices {
    fn build(_: &PartSetup) -> Self {
        Self(Arc::default())
    }
}

impl MemoryStore {
    /// Calls `callback` for every payload published on `channel`, first with
    /// [`Notice::Restored`](crate::core::Notice::Restored), until the subscription is dropped. Never fails.
    pub fn subscribe(&self, channel: &str, callback: NoticeCallback) -> StoreFuture<Subscription> {
        let channels = Arc::clone(&self.part::<Notices>().0);
        let (id, _) = channels.join(channel, callback);
        channels.take_changed();
        channels.restored(channel);
        let channel: Box<str> = channel.into();
        StoreFuture::ready(Ok(Subscription::new(move || {
            channels.leave(&channel, id);
            channels.take_changed();
        })))
    }

    /// Tells the listeners of `channel` before it returns. Not to be called under a table's lock.
    pub fn publish(&self, channel: &str, payload: &Bytes) {
        self.part::<Notices>().0.deliver(channel, payload);
    }
}
