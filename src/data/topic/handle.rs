//! The service: publishes, reads the newest, opens feeds.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::{TopicError, TopicErrorKind};
use super::event::{EventId, Latest};
use super::feed::{Feed, RawFeed, Seats, Start};
use super::sse::{LastEventId, TopicSse};
use super::store::{From, Retain, TopicKey, TopicStore};
use crate::core::size::KIB;
use crate::core::telemetry::count;
use crate::core::ttl::{DAY, MINUTE};
use crate::core::{IntoKey, NotAServiceName, ServiceName};
use crate::data::{record, tell_contradiction};

/// The largest encoded value.
const LARGEST: usize = 64 * KIB;
/// Feeds that a handle and its clones may have open.
const MOST_FEEDS: usize = 10_000;

/// Feeds of events of type `T`, one log per key.
///
/// Clones share the count of open feeds; a setter starts a service of its own.
#[must_use]
pub struct Topic<T> {
    config: Arc<Config>,
    seats: Arc<Seats>,
    value: PhantomData<fn(T) -> T>,
}

#[derive(Clone, Debug)]
pub(super) struct Config {
    pub(super) store: Arc<dyn TopicStore>,
    pub(super) name: ServiceName,
    pub(super) retain: Retain,
    pub(super) event: Arc<str>,
}

impl<T> Topic<T> {
    /// Makes a topic that keeps the last 256 events of each key, none older than 5 minutes; its name is the name of its
    /// SSE events.
    ///
    /// # Panics
    /// If `name` is not 1 to 64 of `a-z 0-9 . _ -`.
    #[track_caller]
    pub fn new(store: impl TopicStore, name: &str) -> Self {
        Self::of(store, ServiceName::new(name))
    }

    /// Like [`Topic::new`], for a name that is known only at run time.
    ///
    /// # Errors
    /// The name is not 1 to 64 of `a-z 0-9 . _ -`.
    pub fn try_new(store: impl TopicStore, name: &str) -> Result<Self, NotAServiceName> {
        Ok(Self::of(store, ServiceName::try_new(name)?))
    }

    fn of(store: impl TopicStore, name: ServiceName) -> Self {
        if store.contradicts(&format!("topic {name}"), std::any::type_name::<T>()) {
            tell_contradiction("topic", name.as_str());
        }
        Self {
            config: Arc::new(Config {
                store: Arc::new(store),
                event: name.shared(),
                name,
                retain: Retain {
                    events: 256,
                    time: 5 * MINUTE,
                },
            }),
            seats: Arc::default(),
            value: PhantomData,
        }
    }

    /// Sets what is kept for readers that come back: the last events, and for how long (256, 5 minutes). At least one,
    /// up to 10,000; up to 366 days.
    pub fn retain(self, events: u32, time: impl Into<Duration>) -> Self {
        let retain = Retain {
            events: events.clamp(1, 10_000),
            time: time.into().clamp(Duration::from_millis(1), 366 * DAY),
        };
        self.with(|config| config.retain = retain)
    }

    /// Sets the name of its SSE events (the topic's). Not `gap`: that one says that something is missing.
    ///
    /// # Panics
    /// If it is `gap`, or not 1 to 64 of `a-z 0-9 . _ -`.
    #[track_caller]
    #[allow(clippy::panic)]
    pub fn event(self, name: &str) -> Self {
        if name == "gap" {
            panic!("an event named gap says that something is missing");
        }
        let name = ServiceName::new(name).shared();
        self.with(|config| config.event = name)
    }

    fn with(mut self, change: impl FnOnce(&mut Config)) -> Self {
        change(Arc::make_mut(&mut self.config));
        self.seats = Arc::default();
        self
    }

    fn key(&self, key: impl IntoKey) -> TopicKey {
        TopicKey {
            name: self.config.name.shared(),
            key: key.into_key(),
        }
    }

    async fn open(&self, key: impl IntoKey, start: Start) -> Result<RawFeed, TopicError> {
        let full = TopicError::of(TopicErrorKind::Full { retry_after: 1 });
        let seat = self.seats.take(MOST_FEEDS, self.config.name.shared());
        let key = self.key(key);
        RawFeed::open(Arc::clone(&self.config), key, start, seat.ok_or(full)?).await
    }

    /// Opens a feed as server-sent events: after `last`, or from now on. Ask first whether the caller may listen.
    ///
    /// # Errors
    /// As [`Topic::subscribe`].
    pub async fn sse(&self, key: impl IntoKey, last: LastEventId) -> Result<TopicSse, TopicError> {
        let feed = self.open(key, last.start()).await?;
        Ok(TopicSse::new(feed, Arc::clone(&self.config.event)))
    }
}

impl<T: Serialize> Topic<T> {
    /// Publishes an event.
    ///
    /// # Errors
    /// Too large, or the store's: unknown then whether it was published; if it was, it is seen once.
    pub async fn publish(&self, key: impl IntoKey, value: &T) -> Result<EventId, TopicError> {
        let payload = record::encode(value).map_err(TopicError::unencodable)?;
        if record::size(&payload) > LARGEST {
            return Err(TopicError::of(TopicErrorKind::TooLarge { limit: LARGEST }));
        }
        let (key, retain) = (self.key(key), self.config.retain);
        let kept = self.config.store.publish(&key, payload, retain).await?;
        count!("keep_topic_published_total", 1, "topic" => self.config.name.to_string());
        Ok(kept.place())
    }
}

impl<T: DeserializeOwned> Topic<T> {
    /// Opens a feed of what is published from now on.
    ///
    /// # Errors
    /// Full, or the store's.
    pub async fn subscribe(&self, key: impl IntoKey) -> Result<Feed<T>, TopicError> {
        Ok(Feed::new(self.open(key, Start::Now).await?))
    }

    /// Opens a feed of what was and is published after `last`.
    ///
    /// # Errors
    /// Full, or the store's.
    pub async fn subscribe_after(
        &self,
        key: impl IntoKey,
        last: EventId,
    ) -> Result<Feed<T>, TopicError> {
        Ok(Feed::new(self.open(key, Start::After(last)).await?))
    }

    /// Reads the newest event that is kept; one that cannot be decoded as `T` is none.
    ///
    /// # Errors
    /// The store's.
    pub async fn latest(&self, key: impl IntoKey) -> Result<Option<Latest<T>>, TopicError> {
        let (key, retain) = (self.key(key), self.config.retain);
        let page = self
            .config
            .store
            .read(&key, From::Latest, retain, 1)
            .await?;
        Ok(page.events.into_iter().next_back().and_then(|kept| {
            Some(Latest {
                id: kept.place(),
                at: kept.at,
                value: record::decode(&kept.payload)?,
            })
        }))
    }
}

impl<T> Clone for Topic<T> {
    fn clone(&self) -> Self {
        Self {
            config: Arc::clone(&self.config),
            seats: Arc::clone(&self.seats),
            value: PhantomData,
        }
    }
}

impl<T> fmt::Debug for Topic<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Topic")
            .field("name", &self.config.name)
            .field("retain", &self.config.retain)
            .finish_non_exhaustive()
    }
}
