//! Logs in this process: one entry per key, each method a closure under the lock of its shard.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{BufMut, Bytes, BytesMut};

use super::{From, HEAD_KEPT, Kept, Page, Retain, TopicKey, TopicStore};
use crate::backend::memory::{Entry, EntryKey, MemoryStore, Part, PartSetup};
use crate::core::{Clock, NoticeCallback, StoreFuture, Subscription, SystemClock, Timestamp};
use crate::data::Names;
use crate::data::topic::event::EventId;

/// A log. It may be evicted, the stalest first: readers are told by a gap.
struct Log {
    head: EventId,
    last: u64,
    events: VecDeque<Kept>,
    bytes: usize,
}

const EVENT: usize = size_of::<Kept>();

impl Entry for Log {
    fn weight(&self) -> usize {
        size_of::<Self>() + self.bytes
    }

    fn eviction_rank(&self, now: u64) -> Option<u64> {
        Some(now.saturating_sub(self.last))
    }
}

impl Log {
    fn trim(&mut self, retain: Retain, now: Timestamp) {
        while self.events.len() > retain.events as usize
            || self
                .events
                .front()
                .is_some_and(|first| is_over(first, retain, now))
        {
            if let Some(gone) = self.events.pop_front() {
                self.bytes -= EVENT + gone.payload.len();
            }
        }
    }
}

fn is_over(event: &Kept, retain: Retain, now: Timestamp) -> bool {
    event.at + retain.time <= now
}

/// The last epoch of the store: a log that begins anew never repeats one.
struct LastEpoch(AtomicU64);

impl Part for LastEpoch {
    fn build(_: &PartSetup) -> Self {
        Self(AtomicU64::new(0))
    }
}

impl LastEpoch {
    fn next(&self) -> u64 {
        let engine = SystemClock.now_micros() / 1_000;
        let next = |last: u64| engine.max(last.saturating_add(1));
        let update = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| {
                Some(next(last))
            });
        next(update.unwrap_or_else(|last| last))
    }
}

fn entry(store: &MemoryStore, key: &TopicKey) -> EntryKey {
    store.hash(|hasher| {
        hasher.part(key.name.as_bytes());
        hasher.part(key.key.as_str().as_bytes());
    })
}

fn channel(key: &TopicKey) -> String {
    format!("topic:{}:{}", key.name, key.key.as_str())
}

impl TopicStore for MemoryStore {
    fn publish(&self, key: &TopicKey, payload: Bytes, retain: Retain) -> StoreFuture<Kept> {
        let published = self.table::<Log>().update_timed(
            &[entry(self, key)],
            || self.now_micros(),
            |slots, micros| {
                let now = Timestamp::from_millis(micros / 1_000);
                let kept_until = (now + retain.time + HEAD_KEPT).as_micros();
                let head = slots.get(0).map(|log| log.head);
                let id = head.map_or_else(
                    || EventId::new(self.part::<LastEpoch>().next(), 1),
                    EventId::next,
                );
                let kept = Kept {
                    id,
                    at: now,
                    payload,
                };
                let size = EVENT + kept.payload.len();
                if head.is_none() {
                    let log = Log {
                        head: id,
                        last: micros,
                        events: VecDeque::from([kept.clone()]),
                        bytes: size,
                    };
                    slots.set(0, log, kept_until)?;
                    return Ok(kept);
                }
                slots.reserve(0, size)?;
                if let Some(log) = slots.get_mut(0) {
                    (log.head, log.last) = (id, micros);
                    log.events.push_back(kept.clone());
                    log.bytes += size;
                    log.trim(retain, now);
                }
                slots.set_expiry(0, kept_until);
                Ok(kept)
            },
        );
        if let Ok(kept) = &published {
            let mut notice = BytesMut::with_capacity(24 + kept.payload.len());
            notice.put_u64(kept.id.epoch());
            notice.put_u64(kept.id.seq());
            notice.put_u64(kept.at.as_millis());
            notice.put_slice(&kept.payload);
            self.publish(&channel(key), &notice.freeze());
        }
        StoreFuture::ready(published)
    }

    fn read(&self, key: &TopicKey, from: From, retain: Retain, most: usize) -> StoreFuture<Page> {
        let micros = self.now_micros();
        let now = Timestamp::from_millis(micros / 1_000);
        let page = self
            .table::<Log>()
            .update_one(entry(self, key), micros, |slot| {
                let Some(log) = slot.get() else {
                    return Page {
                        head: None,
                        events: Vec::new(),
                    };
                };
                let live = log
                    .events
                    .iter()
                    .filter(|event| !is_over(event, retain, now));
                let events = match from {
                    From::After(after) => live
                        .filter(|event| after.is_none_or(|after| event.id > after))
                        .take(most)
                        .cloned()
                        .collect(),
                    From::Latest => live.last().cloned().into_iter().collect(),
                };
                Page {
                    head: Some(log.head),
                    events,
                }
            });
        StoreFuture::ok(page)
    }

    fn subscribe(&self, key: &TopicKey, callback: NoticeCallback) -> StoreFuture<Subscription> {
        Self::subscribe(self, &channel(key), callback)
    }

    fn contradicts(&self, name: &str, what: &str) -> bool {
        self.part::<Names>().contradicts(name, what)
    }
}
