//! Counts on Redis: a hash per counter and per series, one script per method, the name as hash tag.

use std::sync::Arc;
use std::time::Duration;

use super::super::policy;
use super::{Bucket, Change, Count, CounterStore, EVENT_KEPT, Observation, Point};
use crate::backend::redis::{RedisStore, Reply, Script};
use crate::core::{Key, StoreError, StoreErrorKind, StoreFuture, Timestamp};

static INCR: Script = Script::named("counter.incr", include_str!("incr.lua"));
static OBSERVE: Script = Script::named("counter.observe", include_str!("observe.lua"));
static VALUES: Script = Script::named("counter.values", include_str!("values.lua"));
static RANGE: Script = Script::named("counter.range", include_str!("range.lua"));
static RESET: Script = Script::named("counter.reset", include_str!("reset.lua"));

impl CounterStore for RedisStore {
    fn incr(
        &self,
        name: &Arc<str>,
        changes: Vec<Change>,
        batch: Option<Key>,
    ) -> StoreFuture<Vec<Count>> {
        if let ([change], None) = (&changes[..], &batch)
            && is_plain(change)
        {
            let key = key_of(self, name, "value", &change.key);
            let call = self.script(&INCR, &[key]);
            return call.num(change.by).num(change.ttl.as_millis()).run(counts);
        }
        let mut keys: Vec<String> = changes
            .iter()
            .map(|change| key_of(self, name, "value", &change.key))
            .collect();
        let mut place = |kind: &str, key: Option<&Key>| match key {
            Some(key) => {
                keys.push(key_of(self, name, kind, key));
                keys.len() as u64
            }
            None => 0,
        };
        let batch = place("batch", batch.as_ref());
        let events: Vec<u64> = changes
            .iter()
            .map(|change| place("event", change.event.as_ref()))
            .collect();
        let mut call = self
            .script(&INCR, &keys)
            .num(changes.len() as u64)
            .num(batch)
            .num(EVENT_KEPT.as_millis());
        for (change, event) in changes.iter().zip(events) {
            let bound = |bound: i64, end: i64| {
                if bound == end {
                    String::new()
                } else {
                    bound.to_string()
                }
            };
            call = call
                .num(change.by)
                .num(change.ttl.as_millis())
                .num(u8::from(change.sliding))
                .arg(bound(*change.within.start(), i64::MIN))
                .arg(bound(*change.within.end(), i64::MAX))
                .num(event);
        }
        call.run(counts)
    }

    fn observe(
        &self,
        name: &Arc<str>,
        observation: Observation,
        buckets: Vec<Bucket>,
    ) -> StoreFuture<()> {
        let keys: Vec<String> = buckets
            .iter()
            .map(|bucket| series_of(self, name, &observation.key, *bucket))
            .collect();
        let value = observation.value.map(|value| value.to_string());
        let mut call = self
            .script(&OBSERVE, &keys)
            .num(observation.count)
            .arg(value.unwrap_or_default());
        for bucket in buckets {
            call = call.num(bucket.width_millis()).num(bucket.kept());
        }
        call.run(|_| Ok(()))
    }

    fn values(&self, name: &Arc<str>, keys: Vec<Key>) -> StoreFuture<Vec<Count>> {
        let keys: Vec<String> = keys
            .iter()
            .map(|key| key_of(self, name, "value", key))
            .collect();
        self.script(&VALUES, &keys).run(counts)
    }

    fn range(
        &self,
        name: &Arc<str>,
        key: Key,
        bucket: Bucket,
        (from, to): (Timestamp, Timestamp),
    ) -> StoreFuture<Vec<Point>> {
        let numbers = policy::numbers(bucket, from.as_millis(), to.as_millis());
        self.script(&RANGE, &[series_of(self, name, &key, bucket)])
            .num(numbers.start)
            .num(numbers.end)
            .num(bucket.width_millis())
            .num(bucket.kept())
            .run(move |reply| {
                let mut sums = reply.array()?.into_iter();
                let mut next = || match sums.next() {
                    None => Err(unexpected()),
                    Some(Reply::Nil) => Ok(None),
                    Some(found) => found.int().map(Some),
                };
                numbers
                    .map(|number| {
                        Ok(Point {
                            start: Timestamp::from_millis(number * bucket.width_millis()),
                            count: next()?.unwrap_or(0),
                            sum: next()?.unwrap_or(0),
                            max: next()?,
                        })
                    })
                    .collect()
            })
    }

    fn reset(&self, name: &Arc<str>, key: Key) -> StoreFuture<()> {
        self.script(&RESET, &[key_of(self, name, "value", &key)])
            .run(|_| Ok(()))
    }
}

/// Whether a change has no conditions.
fn is_plain(change: &Change) -> bool {
    !change.sliding && change.event.is_none() && change.within == (i64::MIN..=i64::MAX)
}

fn key_of(store: &RedisStore, name: &str, kind: &str, key: &Key) -> String {
    let start = store.key("counter").tag([name]);
    start.plain(kind).plain(key.as_str()).finish()
}

fn series_of(store: &RedisStore, name: &str, key: &Key, bucket: Bucket) -> String {
    let start = store.key("counter").tag([name]).plain("series");
    start.plain(bucket.letter()).plain(key.as_str()).finish()
}

fn counts(reply: Reply) -> Result<Vec<Count>, StoreError> {
    let numbers = reply
        .array()?
        .into_iter()
        .map(Reply::int)
        .collect::<Result<Vec<i64>, _>>()?;
    Ok(numbers
        .chunks_exact(3)
        .map(|count| Count {
            value: count[0],
            expires_in: Duration::from_millis(count[1].unsigned_abs()),
            applied: count[2] == 1,
        })
        .collect())
}

fn unexpected() -> StoreError {
    let why = "a script answered in an unknown form";
    StoreError::with_source(StoreErrorKind::Failed, why)
}
