//! Counts in this process: each method is a closure under the locks of its keys' shards.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::super::policy;
use super::{Bucket, Change, Count, CounterStore, EVENT_KEPT, Observation, Point};
use crate::backend::memory::{Entry, EntryKey, Full, MemoryStore, Slots};
use crate::core::{Key, StoreFuture, Timestamp};

/// A counter, or the mark of an event that was counted. Neither is ever evicted.
enum Tally {
    Value(i64),
    Seen,
}

impl Entry for Tally {
    fn weight(&self) -> usize {
        size_of::<Self>()
    }
}

/// Buckets of one width, by number.
#[derive(Default)]
struct Series(BTreeMap<u64, Sums>);

#[derive(Clone, Copy, Default)]
struct Sums {
    count: i64,
    sum: i64,
    max: Option<i64>,
}

impl Entry for Series {
    fn weight(&self) -> usize {
        size_of::<Self>() + self.0.len() * (size_of::<(u64, Sums)>() + 16)
    }
}

fn entry_of(store: &MemoryStore, name: &str, kind: &[u8], key: &Key) -> EntryKey {
    store.hash(|hasher| {
        hasher.part(name.as_bytes());
        hasher.part(kind);
        hasher.part(key.as_str().as_bytes());
    })
}

fn series_of(store: &MemoryStore, name: &str, key: &Key, bucket: Bucket) -> EntryKey {
    let letter = [bucket.letter() as u8];
    entry_of(store, name, &letter, key)
}

fn now_micros(store: &MemoryStore) -> u64 {
    store.now_micros() / 1_000 * 1_000
}

fn count(slots: &Slots<'_, Tally>, index: usize, now: u64, applied: bool) -> Count {
    let left = slots.expires_at(index).unwrap_or(now).saturating_sub(now);
    let value = match slots.get(index) {
        Some(Tally::Value(value)) => *value,
        _ => 0,
    };
    Count {
        value,
        expires_in: Duration::from_micros(left),
        applied,
    }
}

/// Where the keys of a call's changes stand among the entries of its step.
struct Places {
    keys: Vec<EntryKey>,
    events: Vec<Option<usize>>,
    batch: Option<usize>,
}

impl Places {
    fn of(store: &MemoryStore, name: &str, changes: &[Change], batch: Option<&Key>) -> Self {
        let value = |change: &Change| entry_of(store, name, b"value", &change.key);
        let mut keys: Vec<EntryKey> = changes.iter().map(value).collect();
        let mut place = |kind: &[u8], key: &Key| {
            keys.push(entry_of(store, name, kind, key));
            keys.len() - 1
        };
        let events = changes
            .iter()
            .map(|change| change.event.as_ref().map(|event| place(b"event", event)))
            .collect();
        let batch = batch.map(|batch| place(b"batch", batch));
        Self {
            keys,
            events,
            batch,
        }
    }
}

/// Makes one change; what it replaced comes back for the case that a later one finds no room.
fn apply(
    slots: &mut Slots<'_, Tally>,
    (index, event): (usize, Option<usize>),
    change: &Change,
    now: u64,
) -> Result<bool, Full> {
    if event.is_some_and(|event| slots.get(event).is_some()) {
        return Ok(false);
    }
    let (value, end) = match slots.get(index) {
        Some(Tally::Value(value)) => (*value, slots.expires_at(index)),
        _ => (0, None),
    };
    let Some(next) = policy::changed(value, change.by, &change.within) else {
        return Ok(false);
    };
    let fresh = now.saturating_add(change.ttl.as_millis() * 1_000);
    let end = end.filter(|_| !change.sliding).unwrap_or(fresh);
    slots.set(index, Tally::Value(next), end)?;
    if let Some(event) = event {
        slots.set(event, Tally::Seen, now + EVENT_KEPT.as_millis() * 1_000)?;
    }
    Ok(true)
}

fn restore(slots: &mut Slots<'_, Tally>, before: &[Option<(i64, u64)>], places: &Places) {
    for (index, before) in before.iter().enumerate() {
        match before {
            // It had this room a moment ago.
            Some((value, end)) => drop(slots.set(index, Tally::Value(*value), *end)),
            None => {
                slots.remove(index);
            }
        }
    }
    if let Some(batch) = places.batch {
        slots.remove(batch);
    }
}

impl CounterStore for MemoryStore {
    fn incr(
        &self,
        name: &Arc<str>,
        changes: Vec<Change>,
        batch: Option<Key>,
    ) -> StoreFuture<Vec<Count>> {
        let places = Places::of(self, name, &changes, batch.as_ref());
        let now = now_micros(self);
        StoreFuture::ready(self.table::<Tally>().update(&places.keys, now, |slots| {
            if places.batch.is_some_and(|batch| slots.get(batch).is_some()) {
                return Ok((0..changes.len())
                    .map(|index| count(slots, index, now, false))
                    .collect());
            }
            let before: Vec<_> = (0..changes.len())
                .map(|index| match slots.get(index) {
                    Some(Tally::Value(value)) => Some((*value, slots.expires_at(index)?)),
                    _ => None,
                })
                .collect();
            let (mut counts, mut marked) = (Vec::with_capacity(changes.len()), Vec::new());
            let mut step = || -> Result<(), Full> {
                if let Some(batch) = places.batch {
                    slots.set(batch, Tally::Seen, now + EVENT_KEPT.as_millis() * 1_000)?;
                }
                for (index, change) in changes.iter().enumerate() {
                    let event = places.events[index];
                    let applied = apply(slots, (index, event), change, now);
                    if applied != Ok(false) {
                        marked.extend(event);
                    }
                    counts.push(count(slots, index, now, applied?));
                }
                Ok(())
            };
            if let Err(full) = step() {
                for event in marked {
                    slots.remove(event);
                }
                restore(slots, &before, &places);
                return Err(full.into());
            }
            Ok(counts)
        }))
    }

    fn observe(
        &self,
        name: &Arc<str>,
        observation: Observation,
        buckets: Vec<Bucket>,
    ) -> StoreFuture<()> {
        let keys: Vec<EntryKey> = buckets
            .iter()
            .map(|bucket| series_of(self, name, &observation.key, *bucket))
            .collect();
        let now = now_micros(self);
        StoreFuture::ready(self.table::<Series>().update(&keys, now, |slots| {
            // Room first for all: then nothing can fail half way.
            for index in 0..keys.len() {
                if slots.get(index).is_none() {
                    let end = now + 1;
                    if let Err(full) = slots.set(index, Series::default(), end) {
                        return Err(full.into());
                    }
                }
                slots.reserve(index, size_of::<(u64, Sums)>() + 16)?;
            }
            for (index, bucket) in buckets.iter().enumerate() {
                let (width, now_ms) = (bucket.width_millis(), now / 1_000);
                let number = now_ms / width;
                if let Some(Series(series)) = slots.get_mut(index) {
                    let oldest = policy::oldest(*bucket, now_ms);
                    if series.len() as u64 > bucket.kept() + bucket.kept() / 4 + 1 {
                        *series = series.split_off(&oldest);
                    }
                    let sums = series.entry(number).or_default();
                    sums.count = sums.count.saturating_add(observation.count);
                    if let Some(value) = observation.value {
                        sums.sum = sums.sum.saturating_add(value);
                        sums.max = Some(sums.max.map_or(value, |max| max.max(value)));
                    }
                }
                let end = (number + 1 + bucket.kept()).saturating_mul(width);
                let end = end.saturating_mul(1_000);
                slots.set_expiry(index, end.max(slots.expires_at(index).unwrap_or(0)));
            }
            Ok(())
        }))
    }

    fn values(&self, name: &Arc<str>, keys: Vec<Key>) -> StoreFuture<Vec<Count>> {
        let keys: Vec<EntryKey> = keys
            .iter()
            .map(|key| entry_of(self, name, b"value", key))
            .collect();
        let now = now_micros(self);
        StoreFuture::ok(self.table::<Tally>().update(&keys, now, |slots| {
            (0..keys.len())
                .map(|index| count(slots, index, now, false))
                .collect()
        }))
    }

    fn range(
        &self,
        name: &Arc<str>,
        key: Key,
        bucket: Bucket,
        (from, to): (Timestamp, Timestamp),
    ) -> StoreFuture<Vec<Point>> {
        let now = now_micros(self);
        let entry = series_of(self, name, &key, bucket);
        StoreFuture::ok(self.table::<Series>().read_one(entry, now, |series| {
            let oldest = policy::oldest(bucket, now / 1_000);
            policy::numbers(bucket, from.as_millis(), to.as_millis())
                .map(|number| {
                    let sums = series
                        .filter(|_| number >= oldest)
                        .and_then(|series| series.0.get(&number))
                        .copied()
                        .unwrap_or_default();
                    Point {
                        start: Timestamp::from_millis(number * bucket.width_millis()),
                        count: sums.count,
                        sum: sums.sum,
                        max: sums.max,
                    }
                })
                .collect()
        }))
    }

    fn reset(&self, name: &Arc<str>, key: Key) -> StoreFuture<()> {
        let entry = entry_of(self, name, b"value", &key);
        let table = self.table::<Tally>();
        table.update_one(entry, now_micros(self), |slot| slot.remove());
        StoreFuture::ok(())
    }
}
