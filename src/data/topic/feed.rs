//! A reader of a log: told of each event at once, healed from the log wherever the telling has a hole.

use std::collections::VecDeque;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use super::error::TopicError;
use super::event::{Event, EventId};
use super::handle::Config;
use super::policy::{self, Arrival, Followed, Raw};
use super::store::{From, Kept, TopicKey};
use crate::core::telemetry::{count, gauge, warn};
use crate::core::{Notice, NoticeCallback, StoreError, Subscription};
use crate::data::record;

/// How far a reader may lag behind what it was told; then it reads the log.
const BEHIND: usize = 256;
/// Events of one read.
const PAGE: usize = 256;
/// Even where nobody tells, a reader looks after this time, and up to as much again.
const LOOK_EVERY: Duration = Duration::from_secs(15);
/// Pauses while the store cannot be read, doubling.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The events of one key, each once and in order; what the log no longer has is an [`Event::Gap`].
///
/// Dropping it ends the subscription.
pub struct Feed<T> {
    raw: RawFeed,
    value: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> Feed<T> {
    pub(super) fn new(raw: RawFeed) -> Self {
        Self {
            raw,
            value: PhantomData,
        }
    }

    /// Waits for the next event. Never `None`: a feed ends when it is dropped. While the store is away it waits, and
    /// heals when it is back.
    ///
    /// Dropping the future loses nothing; a read of the log that was under way begins anew, so one that is always dropped
    /// sooner than the store answers gets no further.
    pub async fn next(&mut self) -> Option<Event<T>> {
        Some(match self.raw.next().await {
            Raw::Gap { missed, .. } => Event::Gap { missed },
            Raw::Event(kept) => match record::decode(&kept.payload) {
                Some(value) => Event::Message {
                    id: kept.place(),
                    at: kept.at,
                    value,
                },
                None => {
                    count!("keep_topic_undecodable_total", 1, "topic" => self.raw.config.name.to_string());
                    Event::Gap { missed: Some(1) }
                }
            },
        })
    }

    /// Returns the place of the last event that was given, to go on from elsewhere.
    #[must_use]
    pub fn position(&self) -> Option<EventId> {
        self.raw.position
    }
}

impl<T> fmt::Debug for Feed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Feed")
            .field("topic", &self.raw.config.name)
            .field("position", &self.raw.position)
            .finish_non_exhaustive()
    }
}

/// Where a reader begins.
#[derive(Clone, Copy, Debug)]
pub(super) enum Start {
    /// With what is published from now on.
    Now,
    /// After this event.
    After(EventId),
    /// After one that cannot be understood: with a gap.
    Unknown,
}

/// A feed before decoding.
pub(super) struct RawFeed {
    config: Arc<Config>,
    key: TopicKey,
    inbox: Arc<Inbox>,
    /// The last event that was read or told, given or waiting in `ready`.
    reached: Option<EventId>,
    /// The last one that was given.
    position: Option<EventId>,
    ready: VecDeque<Raw>,
    /// The log has to be read: something may be missing.
    heal: bool,
    unknown: bool,
    pause: Duration,
    _listening: Subscription,
    _seat: Seat,
}

impl RawFeed {
    /// Begins to listen, and reads once, so that a store that is away is an error here.
    pub(super) async fn open(
        config: Arc<Config>,
        key: TopicKey,
        start: Start,
        seat: Seat,
    ) -> Result<Self, TopicError> {
        let inbox = Arc::new(Inbox::default());
        let listening = config.store.subscribe(&key, inbox.callback()).await?;
        // What is read from here on is newer than whatever the inbox was told to look for.
        inbox.state.lock().heal = false;
        let mut feed = Self {
            config,
            key,
            inbox,
            reached: None,
            position: None,
            ready: VecDeque::new(),
            heal: false,
            unknown: matches!(start, Start::Unknown),
            pause: FIRST_PAUSE,
            _listening: listening,
            _seat: seat,
        };
        match start {
            Start::Now => {
                let store = &feed.config.store;
                let newest = store.read(&feed.key, From::Latest, feed.config.retain, 1);
                let newest = newest.await?;
                let own = newest.events.last().map(Kept::place);
                feed.reached = own.filter(|own| newest.head == Some(*own)).or(newest.head);
            }
            Start::After(id) => {
                feed.reached = Some(id).filter(|id| *id != policy::NOTHING_YET);
                feed.read_on().await?;
            }
            Start::Unknown => feed.read_on().await?,
        }
        feed.position = feed.reached.filter(|_| feed.ready.is_empty());
        Ok(feed)
    }

    /// The place that a feed begins at which has nothing to give yet.
    pub(super) fn begins(&self) -> Option<EventId> {
        let place = self.position.unwrap_or(policy::NOTHING_YET);
        self.ready.is_empty().then_some(place)
    }

    pub(super) async fn next(&mut self) -> Raw {
        loop {
            if let Some(raw) = self.ready.pop_front() {
                return self.give(raw);
            }
            if self.heal {
                self.heal().await;
                continue;
            }
            match self.inbox.take() {
                Taken::Event(event) => self.arrive(event),
                Taken::Heal => self.heal = true,
                Taken::Nothing => {
                    let random = getrandom::u32().unwrap_or_default();
                    let longest =
                        LOOK_EVERY + LOOK_EVERY.mul_f64(f64::from(random) / f64::from(u32::MAX));
                    if timeout(longest, self.inbox.bell.notified()).await.is_err() {
                        self.heal = true;
                    }
                }
            }
        }
    }

    fn give(&mut self, raw: Raw) -> Raw {
        let topic = &self.config.name;
        match &raw {
            Raw::Event(event) => {
                self.position = Some(event.place());
                count!("keep_topic_delivered_total", 1, "topic" => topic.to_string());
            }
            Raw::Gap { missed, before } => {
                self.position = Some(*before);
                count!("keep_topic_gaps_total", 1, "topic" => topic.to_string());
                let _ = missed;
                warn!(topic = %topic, missed, "events are missing");
            }
        }
        raw
    }

    fn arrive(&mut self, event: Kept) {
        match policy::arrival(self.reached, event.place()) {
            Arrival::Next => {
                self.reached = Some(event.place());
                self.ready.push_back(Raw::Event(event));
            }
            Arrival::Old => {}
            // It lies in the log itself.
            Arrival::Hole => self.heal = true,
        }
    }

    /// Reads the log; where it cannot, waits a little and leaves it to the next call.
    async fn heal(&mut self) {
        match self.read_on().await {
            Ok(()) => self.pause = FIRST_PAUSE,
            Err(_) => {
                // The pause grows first: this future may be dropped in it.
                let pause = self.pause;
                self.pause = (pause * 2).min(LONGEST_PAUSE);
                sleep(pause).await;
            }
        }
    }

    async fn read_on(&mut self) -> Result<(), StoreError> {
        let (store, retain) = (Arc::clone(&self.config.store), self.config.retain);
        // With the event that the reader had last: it may be another by now.
        let after = |position: Option<EventId>| {
            let from = From::After(position.map(EventId::before));
            store.read(&self.key, from, retain, PAGE + 1)
        };
        let (mut position, mut unknown) = (self.reached, self.unknown);
        let mut page = after(position).await?;
        if !policy::knows(page.head, position) || policy::is_another(position, &page) {
            unknown = true;
            position = page.head.map(policy::beginning);
            page = after(position).await?;
        }
        page.events
            .retain(|event| position.is_none_or(|position| event.id > position));
        let Followed {
            raws,
            position,
            more,
        } = policy::follow(position, page, PAGE, unknown);
        // Nothing is awaited from here on: a dropped call has changed nothing.
        self.reached = position;
        self.unknown = false;
        self.heal = more;
        self.ready.extend(raws);
        Ok(())
    }
}

/// What a reader was told and has not yet looked at.
#[derive(Default)]
struct Inbox {
    state: Mutex<Told>,
    bell: Notify,
}

#[derive(Default)]
struct Told {
    events: VecDeque<Kept>,
    heal: bool,
}

enum Taken {
    Event(Kept),
    Heal,
    Nothing,
}

impl Inbox {
    fn callback(self: &Arc<Self>) -> NoticeCallback {
        let inbox = Arc::clone(self);
        Arc::new(move |notice| {
            let mut told = inbox.state.lock();
            match notice {
                Notice::Payload(payload) => match Kept::from_notice(payload) {
                    Some(event) if told.events.len() < BEHIND && !told.heal => {
                        told.events.push_back(event);
                    }
                    _ => {
                        // Too far behind: all of it lies in the log.
                        told.events.clear();
                        told.heal = true;
                    }
                },
                Notice::Restored => told.heal = true,
                Notice::Lost => return,
            }
            drop(told);
            inbox.bell.notify_one();
        })
    }

    fn take(&self) -> Taken {
        let mut told = self.state.lock();
        if std::mem::take(&mut told.heal) {
            return Taken::Heal;
        }
        told.events.pop_front().map_or(Taken::Nothing, Taken::Event)
    }
}

/// How many feeds a handle has open.
#[derive(Debug, Default)]
pub(super) struct Seats(AtomicUsize);

/// One of them.
pub(super) struct Seat {
    seats: Arc<Seats>,
    topic: Arc<str>,
}

impl Seats {
    pub(super) fn take(self: &Arc<Self>, most: usize, topic: Arc<str>) -> Option<Seat> {
        let taken = self
            .0
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |open| {
                (open < most).then_some(open + 1)
            });
        taken.ok().map(|open| {
            gauge!("keep_topic_subscribers", (open + 1) as f64, "topic" => topic.to_string());
            let _ = open;
            Seat {
                seats: Arc::clone(self),
                topic,
            }
        })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let open = self.seats.0.fetch_sub(1, Ordering::SeqCst) - 1;
        let _ = (open, &self.topic);
        gauge!("keep_topic_subscribers", open as f64, "topic" => self.topic.to_string());
    }
}
