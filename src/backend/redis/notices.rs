//! Notices over one pub/sub connection per handle, kept alive by pings, made again when it is cut.

use std::future::pending;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use redis::aio::{PubSub, PubSubSink};
use redis::{RedisError, Value};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::backlog::Backlog;
use super::cluster::Place;
use super::command::Command;
use super::error::away;
use super::node::Words;
use super::store::{Inner, RedisStore};
use crate::backend::channels::{Change, Channels};
use crate::core::telemetry::{count, debug, warn};
use crate::core::{KeyBuilder, NoticeCallback, StoreFuture, Subscription};

/// A link that is cut silently is noticed after a ping's interval and its answer's time.
const PING_EVERY: Duration = Duration::from_secs(5);
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// A link that held less long is no reason to come back sooner.
const HELD: Duration = Duration::from_secs(1);
/// The most channels of one command.
const CHANNELS_AT_ONCE: usize = 512;

/// What the clones of one handle share; the task ends with it.
#[derive(Default)]
struct Notices {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    channels: Channels,
    /// Somebody joined or left, or all is over.
    changed: Notify,
    /// The task is there.
    is_listening: AtomicBool,
    closed: AtomicBool,
}

/// What the task listens with.
struct Ears {
    store: Weak<Inner>,
    shared: Arc<Shared>,
}

impl Drop for Ears {
    /// However the task ends, also with its runtime: everybody is told, and the next call starts another.
    fn drop(&mut self) {
        self.shared.channels.lost();
        self.shared.is_listening.store(false, Ordering::Release);
        if !self.shared.is_closed()
            && let Some(store) = self.store.upgrade()
        {
            store.is_deaf.store(true, Ordering::Release);
        }
    }
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
    /// when it is confirmed, however late, and `Lost` when the link is cut, a ping stays unanswered for 5 s, the node leaves its
    /// cluster, or 16 MiB wait for callbacks that are slow. A channel that the server refuses is asked for again every 5 s. Where the
    /// link ended with the runtime it was made on, the next call of the handle makes another. A callback that panics
    /// misses what it was told; others do not notice. Never fails.
    pub fn subscribe(&self, channel: &str, callback: NoticeCallback) -> StoreFuture<Subscription> {
        let inner = Arc::clone(&self.inner);
        let notices = self.beside(Notices::default);
        let channel: Box<str> = channel.into();
        StoreFuture::boxed(async move {
            let timeout = inner.timeout;
            let (id, confirmed) = notices.shared.channels.join(&channel, guarded(callback));
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
        let command = Command::with_capacity("PUBLISH", channel.len() + payload.len() + 48);
        let command = command.arg(channel).arg(payload);
        StoreFuture::boxed(async move {
            inner
                .call(Words::Command(&command), None, inner.timeout)
                .await
                .map(drop)
        })
    }
}

/// Starts the task again whose runtime is gone.
#[cold]
pub(super) fn listen_again(store: &Arc<Inner>) {
    if store.is_deaf.swap(false, Ordering::AcqRel) {
        let inner = Arc::clone(store);
        RedisStore { inner }.beside(Notices::default).run(store);
    }
}

/// Keeps a panic from the task that serves all listeners.
fn guarded(callback: NoticeCallback) -> NoticeCallback {
    Arc::new(move |notice| {
        if catch_unwind(AssertUnwindSafe(|| callback(notice))).is_err() {
            warn!("a callback for notices has panicked");
        }
    })
}

impl Notices {
    /// Starts the task at the first subscription, and again where its runtime is gone.
    fn run(&self, store: &Arc<Inner>) {
        if !self.shared.is_listening.swap(true, Ordering::AcqRel) {
            let (store, shared) = (Arc::downgrade(store), Arc::clone(&self.shared));
            tokio::spawn(listen(Ears { store, shared }));
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
async fn listen(ears: Ears) {
    let shared = &*ears.shared;
    let (mut pause, mut is_told) = (FIRST_PAUSE, false);
    loop {
        while shared.channels.is_empty() && !shared.is_closed() {
            shared.changed.notified().await;
        }
        let Some(store) = ears.store.upgrade().filter(|_| !shared.is_closed()) else {
            return;
        };
        let connected = store.link.listen().await;
        drop(store);
        match connected {
            Ok(connection) => {
                let mut confirmed = None;
                let ended = serve(shared, connection, &mut confirmed).await;
                shared.channels.lost();
                if confirmed.is_some_and(|at: Instant| at.elapsed() >= HELD) {
                    pause = FIRST_PAUSE;
                }
                is_told &= confirmed.is_none();
                if let Err(error) = ended {
                    tell(&error, confirmed.is_some(), is_told);
                    is_told = true;
                }
            }
            Err(_error) => debug!(error = %_error, "no link to redis for notices"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Says why the link is gone; what goes on failing is told once.
fn tell(_error: &RedisError, was_live: bool, is_told: bool) {
    if was_live {
        count!("keep_redis_notices_lost_total", 1);
    }
    if is_told {
        debug!(error = %_error, "redis still tells no notices");
        return;
    }
    warn!(error = %_error, "the link to redis for notices is cut");
}

/// Passes on what arrives, until the link is cut, or nobody listens any more. Says when all was `confirmed` first.
async fn serve(
    shared: &Shared,
    (connection, mut place): (PubSub, Option<Place>),
    confirmed: &mut Option<Instant>,
) -> Result<(), RedisError> {
    let (mut sink, arriving) = connection.split();
    let mut backlog = Backlog::of(arriving);
    let mut refused = Refused::default();
    let mut ping = tokio::time::interval(PING_EVERY);
    ping.reset();
    while !shared.is_closed() {
        follow(shared, &mut sink, &mut refused).await?;
        confirmed.get_or_insert_with(Instant::now);
        if shared.channels.is_empty() {
            break;
        }
        tokio::select! {
            message = backlog.next() => {
                let message = message?;
                let payload = Bytes::copy_from_slice(message.get_payload_bytes());
                shared.channels.deliver(message.get_channel_name(), &payload);
            }
            () = shared.changed.notified() => {}
            () = left(place.as_mut()) => return Err(away("the node has left the cluster")),
            _ = ping.tick() => {
                within(sink.ping::<Value>()).await.map(drop)?;
                if let Some(place) = &place {
                    place.ask();
                }
                for channel in refused.channels.drain(..) {
                    shared.channels.try_again(channel);
                }
            }
        }
    }
    Ok(())
}

/// Waits until the node is none of the cluster's any more; a server alone stays one.
async fn left(place: Option<&mut Place>) {
    match place {
        Some(place) => place.left().await,
        None => pending().await,
    }
}

/// Channels that the server does not let us hear: asked for again with each ping.
#[derive(Default)]
struct Refused {
    channels: Vec<Box<str>>,
    is_told: bool,
}

/// Subscribes and unsubscribes as the listeners came and went. Fails where nothing at all may be heard.
async fn follow(
    shared: &Shared,
    sink: &mut PubSubSink,
    refused: &mut Refused,
) -> Result<(), RedisError> {
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
    let mut parts: Vec<_> = joined.chunks(CHANNELS_AT_ONCE).collect();
    let mut why = None;
    while let Some(some) = parts.pop() {
        match (within(sink.subscribe(names(some))).await, some) {
            (Ok(()), _) => some
                .iter()
                .for_each(|channel| shared.channels.restored(channel)),
            (Err(error), [one]) if is_refused(&error) => {
                refused.channels.push(one.clone());
                why = Some(error);
            }
            // One that may not be heard is enough for the server to refuse them all.
            (Err(error), several) if is_refused(&error) => {
                let (some, others) = several.split_at(several.len() / 2);
                parts.extend([some, others]);
            }
            (Err(error), _) => return Err(error),
        }
    }
    match why {
        Some(error) if !shared.channels.is_live() => return Err(error),
        Some(_error) if !std::mem::replace(&mut refused.is_told, true) => {
            warn!(error = %_error, channels = ?refused.channels, "redis refuses to tell notices of some channels");
        }
        _ => {}
    }
    Ok(())
}

fn is_refused(error: &RedisError) -> bool {
    error.code() == Some("NOPERM")
}

fn names(channels: &[Box<str>]) -> Vec<&str> {
    channels.iter().map(AsRef::as_ref).collect()
}

async fn within<T>(answer: impl Future<Output = redis::RedisResult<T>>) -> redis::RedisResult<T> {
    tokio::time::timeout(ANSWER_WITHIN, answer)
        .await
        .map_err(|_elapsed| io::Error::from(io::ErrorKind::TimedOut))?
}

impl Shared {
    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}
