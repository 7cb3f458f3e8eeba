//! What keeps a handle's link for notices open between two listeners.

use std::sync::Arc;

use tokio::sync::OnceCell;

use crate::backend::redis::RedisStore;
use crate::core::{NoticeCallback, StoreFuture, Subscription};

/// Listens to nothing from the first listener on, for as long as the handle lives: whoever comes after the last one has
/// left does not wait for a connection.
#[derive(Debug, Default)]
struct Link(OnceCell<Subscription>);

/// Subscribes to `channel`, and lets the link stay.
pub(crate) fn subscribe_and_stay(
    store: &RedisStore,
    channel: &str,
    callback: NoticeCallback,
) -> StoreFuture<Subscription> {
    let (link, own) = (
        store.beside(Link::default),
        store.subscribe(channel, callback),
    );
    if link.0.initialized() {
        return own;
    }
    let silent = store.channel("link").finish();
    let silent = store.subscribe(&silent, Arc::new(|_| {}));
    StoreFuture::boxed(async move {
        // Both at once: one command.
        let (own, _stays) = tokio::join!(own, link.0.get_or_try_init(|| silent));
        own
    })
}
