//! Notices over one pub/sub connection per handle, kept alive by pings, made again when it is cut.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;
use parking_lot::Mutex;
use redis::aio::{PubSub, PubSubSink, PubSubStream};
use redis::{Cmd, Msg, Value};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::store::{Inner, RedisStore};
use crate::backend::channels::{Change, Channels};
use crate::core::telemetry::{count, debug, warn};
use crate::core::{KeyBuilder, NoticeCallback, StoreFuture, Subscription};

/// A link that is cut silently is noticed after a ping's interval and its answer's time.
const PING_EVERY: Duration = Duration::from_secs(5);
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// The most channels of one command.
const CHANNELS_AT_ONCE: usize = 512;

/// What the clones of one handle share; the task ends with it.
#[derive(Default)]
struct Notices {
    shared: Arc<Shared>,
    task: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct Shared {
    channels: Channels,
    /// Somebody joined or left, or all is over.
    changed: Notify,
    closed: AtomicBool,
}

impl RedisStore {
    /// Starts the name of a channel, behind the handle's prefix and the number of its database: publishing
    /// itself knows no databases.
    pub fn channel(&self, part: &str) -> KeyBuilder {
        match self.inner.link.database() {
            0 => self.key(part),
            database => self.key(&format!("{part}@{database}")),
        }
    }

    /// Calls `callback` for every payload published on `channel` (its whole name) until the subscription is
    /// dropped.
    ///
    /// All channels of the handle share one connection, pinged every 5 s. The future resolves when the server has
    /// confirmed, or after the handle's timeout; the callback is told [`Notice::Restored`](crate::core::Notice)
    /// when it is confirmed, however late, and `Lost` when the link is cut or a ping stays unanswered for 5 s.
    /// Never fails.
    pub fn subscribe(&self, channel: &str, callback: NoticeCallback) -> StoreFuture<Subscription> {
        let inner = Arc::clone(&self.inner);
        let notices = self.beside(Notices::default);
        let channel: Box<str> = channel.into();
        StoreFuture::boxed(async move {
            let timeout = inner.timeout;
            let (id, confirmed) = notices.shared.channels.join(&channel, callback);
            let shared = Arc::clone(&notices.shared);
            let subscription = Subscription::new(move || {
                shared.channels.leave(&channel, id);
                shared.changed.notify_one();
            });
            notices.shared.changed.notify_one();
            notices.run(&inner);
            drop((notices, inner));
            let _unconfirmed_is_told_later = tokio::time::timeout(timeout, confirmed).await;
            Ok(subscription)
        })
    }

    /// Tells whoever listens on `channel` (its whole name), in any process. Sent once; costs one command.
    ///
    /// # Errors
    /// [`StoreErrorKind::Unavailable`](crate::core::StoreErrorKind) or `TimedOut`: unknown whether anybody heard.
    pub fn publish(&self, channel: &str, payload: &Bytes) -> StoreFuture<()> {
        let inner = Arc::clone(&self.inner);
        let mut command = Cmd::new();
        command.arg(b"PUBLISH").arg(channel).arg(&payload[..]);
        StoreFuture::boxed(async move {
            inner
                .call(&command, None, inner.timeout, &Cmd::new)
                .await
                .map(drop)
        })
    }
}

impl Notices {
    /// Starts the task at the first subscription, and again where its runtime is gone.
    fn run(&self, store: &Arc<Inner>) {
        let mut task = self.task.lock();
        if task.as_ref().is_none_or(JoinHandle::is_finished) {
            self.shared.channels.lost();
            let (store, shared) = (Arc::downgrade(store), Arc::clone(&self.shared));
            *task = Some(tokio::spawn(listen(store, shared)));
        }
    }
}

impl Drop for Notices {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Release);
        self.shared.changed.notify_one();
    }
}

/// Connects, listens until the link is cut, and again.
async fn listen(store: Weak<Inner>, shared: Arc<Shared>) {
    let mut pause = FIRST_PAUSE;
    loop {
        while shared.channels.is_empty() && !shared.is_closed() {
            shared.changed.notified().await;
        }
        let Some(store) = store.upgrade().filter(|_| !shared.is_closed()) else {
            return;
        };
        let connected = store.link.listen().await;
        drop(store);
        match connected {
            Ok(connection) => {
                pause = FIRST_PAUSE;
                serve(&shared, connection).await;
                shared.channels.lost();
                if !shared.channels.is_empty() && !shared.is_closed() {
                    warn!("the link to redis for notices is cut");
                    count!("keep_redis_notices_lost_total", 1);
                }
            }
            Err(_error) => debug!(error = %_error, "no link to redis for notices"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Passes on what arrives; returns when the link is cut, or when nobody listens any more.
async fn serve(shared: &Shared, connection: PubSub) {
    let (mut sink, mut arriving) = connection.split();
    let mut ping = tokio::time::interval(PING_EVERY);
    ping.reset();
    while !shared.is_closed() && follow(shared, &mut sink).await.is_some() {
        if shared.channels.is_empty() {
            return;
        }
        tokio::select! {
            message = next(&mut arriving) => match message {
                Some(message) => {
                    let payload = Bytes::copy_from_slice(message.get_payload_bytes());
                    shared.channels.deliver(message.get_channel_name(), &payload);
                }
                None => return,
            },
            () = shared.changed.notified() => {}
            _ = ping.tick() => {
                if within(sink.ping::<Value>()).await.is_none() {
                    return;
                }
            }
        }
    }
}

/// Subscribes and unsubscribes as the listeners came and went.
async fn follow(shared: &Shared, sink: &mut PubSubSink) -> Option<()> {
    let (mut joined, mut left) = (Vec::new(), Vec::new());
    for change in shared.channels.take_changed() {
        match change {
            Change::Subscribe(channel) => joined.push(channel),
            Change::Unsubscribe(channel) => left.push(channel),
        }
    }
    for some in left.chunks(CHANNELS_AT_ONCE) {
        within(sink.unsubscribe(names(some))).await?;
    }
    for some in joined.chunks(CHANNELS_AT_ONCE) {
        within(sink.subscribe(names(some))).await?;
        some.iter()
            .for_each(|channel| shared.channels.restored(channel));
    }
    Some(())
}

fn names(channels: &[Box<str>]) -> Vec<&str> {
    channels.iter().map(AsRef::as_ref).collect()
}

async fn within<T>(answer: impl Future<Output = redis::RedisResult<T>>) -> Option<T> {
    tokio::time::timeout(ANSWER_WITHIN, answer).await.ok()?.ok()
}

async fn next(arriving: &mut PubSubStream) -> Option<Msg> {
    poll_fn(|cx| Pin::new(&mut *arriving).poll_next(cx)).await
}

impl Shared {
    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}
