//! Where logs of events live: one atomic step per method.

mod fallback;
#[cfg(feature = "conformance")]
mod fault;
mod memory;
#[cfg(feature = "redis")]
mod redis;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};

use super::event::EventId;
use crate::core::{Key, NoticeCallback, StoreFuture, Subscription, Timestamp};

/// How long the head of a log outlives its events, so that who missed nothing gets no gap.
const HEAD_KEPT: Duration = Duration::from_secs(86_400);

/// Names one log.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TopicKey {
    /// The service's name.
    pub name: Arc<str>,
    /// Which log of it.
    pub key: Key,
}

/// What a log keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retain {
    /// The most events.
    pub events: u32,
    /// For how long.
    pub time: Duration,
}

/// An event as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Its place in the log.
    pub id: EventId,
    /// When it was published.
    pub at: Timestamp,
    /// The encoded value.
    pub payload: Bytes,
}

impl Kept {
    /// Its place, with its time.
    pub(super) const fn place(&self) -> EventId {
        self.id.at(self.at)
    }

    /// Reads a notice: id and time before the payload.
    pub(crate) fn from_notice(mut notice: Bytes) -> Option<Self> {
        if notice.len() < 24 {
            return None;
        }
        let id = EventId::new(notice.get_u64(), notice.get_u64());
        Some(Self {
            id,
            at: Timestamp::from_millis(notice.get_u64()),
            payload: notice,
        })
    }
}

/// Which events to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// Those after this one; after none, all.
    After(Option<EventId>),
    /// The newest only.
    Latest,
}

/// A part of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The last event that was published, kept or not; `None` if there was none, or long ago.
    pub head: Option<EventId>,
    /// Kept events, the oldest first.
    pub events: Vec<Kept>,
}

/// Keeps the last events of each key.
///
/// # Behaviour
/// - Every method is one atomic step. Ids are `epoch-seq-at`: seq 1, 2, 3 … per key, epoch the engine's time in ms when
///   the log began; they only grow.
/// - A log keeps what [`Retain`] says, by the passed clock if any; at exactly its time an event is gone. The head outlives
///   its events by 24 h.
/// - Logs may be evicted; then they begin anew, under a later epoch.
pub trait TopicStore: fmt::Debug + Send + Sync + 'static {
    /// Appends an event, and tells those who listen: big-endian epoch, seq and time (ms), then the payload.
    ///
    /// # Errors
    /// `Unavailable`, `TimedOut`: unknown whether it was published; if it was, it is seen once.
    fn publish(&self, key: &TopicKey, payload: Bytes, retain: Retain) -> StoreFuture<Kept>;

    /// Reads up to `most` kept events.
    ///
    /// # Errors
    /// As the engine has them.
    fn read(&self, key: &TopicKey, from: From, retain: Retain, most: usize) -> StoreFuture<Page>;

    /// Calls back for each event. Any call may be lost.
    ///
    /// # Errors
    /// As the engine has them.
    fn subscribe(&self, key: &TopicKey, callback: NoticeCallback) -> StoreFuture<Subscription>;

    /// Lets the handle remember that the service `name` keeps `what`; returns `true` the first time that it was told
    /// something else, since one of the two then reads what it cannot understand.
    fn contradicts(&self, name: &str, what: &str) -> bool;
}

impl<T: TopicStore + ?Sized> TopicStore for Arc<T> {
    fn publish(&self, key: &TopicKey, payload: Bytes, retain: Retain) -> StoreFuture<Kept> {
        (**self).publish(key, payload, retain)
    }

    fn read(&self, key: &TopicKey, from: From, retain: Retain, most: usize) -> StoreFuture<Page> {
        (**self).read(key, from, retain, most)
    }

    fn subscribe(&self, key: &TopicKey, callback: NoticeCallback) -> StoreFuture<Subscription> {
        (**self).subscribe(key, callback)
    }

    fn contradicts(&self, name: &str, what: &str) -> bool {
        (**self).contradicts(name, what)
    }
}
