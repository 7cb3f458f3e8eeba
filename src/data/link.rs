//! What keeps a handle's link for notices open between two listeners.

use std::sync::{Arc, OnceLock};

use crate::backend::redis::RedisStore;
use crate::core::{NoticeCallback, StoreFuture, Subscription};

/// Listens to nothing from the first listener on, for as long as the handle lives: whoever comes after the last one has
/// left does not wait for a connection.
#[derive(Debug, Default)]
struct Link(OnceLock<Subscription>);

/// Subscribes to `channel` of `part`, and lets the link stay: by a channel of the same part, since the user may be
/// allowed no other.
pub(crate) fn subscribe_and_stay(
    store: &RedisStore,
    part: &str,
    channel: &str,
    callback: NoticeCallback,
) -> StoreFuture<Subscription> {
    let (link, own) = (
        store.beside(Link::default),
        store.subscribe(channel, callback),
    );
    if link.0.get().is_some() {
        return own;
    }
    let silent = store.channel(part).plain("link").finish();
    let silent = store.subscribe(&silent, Arc::new(|_| {}));
    StoreFuture::boxed(async move {
        // Both at once: one command. Of two that are first at once, the second leaves.
        let (own, stays) = tokio::join!(own, silent);
        if let Ok(stays) = stays {
            drop(link.0.set(stays));
        }
        own
    })
}
