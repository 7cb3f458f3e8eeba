//! What every store of counters promises, and random histories against a naive map.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::core::ttl::Ttl;
use crate::core::{Clock, IntoKey, Key, ManualClock, Timestamp};
use crate::data::counter::store::{Bucket, Change, Count, CounterStore, Observation};

const TTL: Ttl = Ttl::secs(3_600);
const INSTANT: Duration = Duration::from_millis(1);
const DAY: u64 = 86_400_000;

/// Runs the whole suite. `store` must be empty and tell the time of `clock`.
///
/// # Panics
/// When the store breaks a promise of [`CounterStore`].
pub async fn counter(store: Arc<dyn CounterStore>, clock: &ManualClock) {
    let suite = Suite {
        store,
        clock: clock.clone(),
        name: Arc::from("suite"),
    };
    suite.a_counter_ends_with_its_first_ttl_or_slides().await;
    suite.overflow_and_bounds_change_nothing().await;
    suite.numbers_are_exact_to_the_last_digit().await;
    suite.an_event_and_a_batch_count_once().await;
    suite.the_same_key_twice_in_a_batch_adds_up().await;
    suite.a_day_survives_hourly_writes().await;
    suite.observations_keep_count_sum_and_max().await;
    suite.no_increment_is_lost().await;
    for seed in 0..6 {
        suite.histories_follow_from_the_facts(seed).await;
    }
}

struct Suite {
    store: Arc<dyn CounterStore>,
    clock: ManualClock,
    name: Arc<str>,
}

fn change(key: &str, by: i64) -> Change {
    Change {
        key: key.into_key(),
        by,
        ttl: TTL,
        sliding: false,
        within: i64::MIN..=i64::MAX,
        event: None,
    }
}

#[allow(clippy::panic, clippy::unwrap_used)]
impl Suite {
    async fn incr(&self, change: Change) -> Count {
        let counts = self.store.incr(&self.name, vec![change], None);
        counts.await.unwrap()[0]
    }

    async fn value(&self, key: &str) -> Count {
        let counts = self.store.values(&self.name, vec![key.into_key()]);
        counts.await.unwrap()[0]
    }

    async fn a_counter_ends_with_its_first_ttl_or_slides(&self) {
        assert_eq!(self.value("ttl").await.value, 0);
        assert_eq!(self.incr(change("ttl", 2)).await.value, 2);
        let sliding = || Change {
            sliding: true,
            ..change("slides", 1)
        };
        self.incr(sliding()).await;
        self.clock.advance(TTL.as_duration() - INSTANT);
        let count = self.incr(change("ttl", 3)).await;
        assert_eq!((count.value, count.expires_in), (5, INSTANT));
        assert_eq!(self.incr(sliding()).await.expires_in, TTL.as_duration());
        self.clock.advance(INSTANT);
        let gone = self.value("ttl").await;
        assert_eq!((gone.value, gone.expires_in), (0, Duration::ZERO));
        let count = self.incr(change("ttl", 7)).await;
        assert_eq!((count.value, count.expires_in), (7, TTL.as_duration()));
        assert_eq!(self.value("slides").await.value, 2);
        let reset = self.store.reset(&self.name, "ttl".into_key());
        reset.await.unwrap();
        assert_eq!(self.value("ttl").await.value, 0);
    }

    async fn overflow_and_bounds_change_nothing(&self) {
        assert_eq!(self.incr(change("high", i64::MAX)).await.value, i64::MAX);
        let over = self.incr(change("high", 1)).await;
        assert_eq!((over.value, over.applied), (i64::MAX, false));
        assert_eq!(self.incr(change("low", i64::MIN)).await.value, i64::MIN);
        let under = self.incr(change("low", -1)).await;
        assert_eq!((under.value, under.applied), (i64::MIN, false));
        let bounded = |by| Change {
            within: 0..=100,
            ..change("bounded", by)
        };
        let refused = self.incr(bounded(101)).await;
        assert_eq!(
            (refused.value, refused.applied, refused.expires_in),
            (0, false, Duration::ZERO)
        );
        assert!(self.incr(bounded(100)).await.applied);
        assert!(!self.incr(bounded(1)).await.applied);
        assert!(!self.incr(bounded(-101)).await.applied);
        assert!(self.incr(bounded(-100)).await.applied);
        assert_eq!(self.value("bounded").await.value, 0);
    }

    async fn numbers_are_exact_to_the_last_digit(&self) {
        let large = 9_007_199_254_740_993;
        self.incr(change("exact", large)).await;
        assert_eq!(self.incr(change("exact", 2)).await.value, large + 2);
        let bounded = |by| Change {
            within: 0..=large + 3,
            ..change("exact", by)
        };
        assert!(!self.incr(bounded(2)).await.applied);
        assert_eq!(self.incr(bounded(1)).await.value, large + 3);
        assert_eq!(self.value("exact").await.value, large + 3);
    }

    async fn an_event_and_a_batch_count_once(&self) {
        let event = || Change {
            event: Some("event 1".into_key()),
            ..change("events", 5)
        };
        assert!(self.incr(event()).await.applied);
        self.clock.advance(Duration::from_millis(DAY - 1));
        assert!(!self.incr(event()).await.applied);
        self.clock.advance(Duration::from_millis(1));
        let again = self.incr(event()).await;
        assert_eq!((again.value, again.applied), (5, true));
        let batch = || {
            let changes = vec![change("batched a", 1), change("batched b", 2)];
            self.store
                .incr(&self.name, changes, Some("batch".into_key()))
        };
        let applied = |counts: Vec<Count>| -> Vec<(i64, bool)> {
            counts.iter().map(|one| (one.value, one.applied)).collect()
        };
        assert_eq!(applied(batch().await.unwrap()), [(1, true), (2, true)]);
        assert_eq!(applied(batch().await.unwrap()), [(1, false), (2, false)]);
    }

    async fn the_same_key_twice_in_a_batch_adds_up(&self) {
        let changes = vec![change("twice", 1), change("other", 9), change("twice", 2)];
        let counts = self.store.incr(&self.name, changes, None).await.unwrap();
        let values: Vec<i64> = counts.iter().map(|count| count.value).collect();
        assert_eq!(values, [1, 9, 3]);
    }

    async fn observe(&self, key: &str, count: i64, value: Option<i64>, buckets: &[Bucket]) {
        let observation = Observation {
            key: key.into_key(),
            count,
            value,
        };
        let observed = self
            .store
            .observe(&self.name, observation, buckets.to_vec());
        observed.await.unwrap();
    }

    async fn counts(&self, key: &str, bucket: Bucket, from: u64, to: u64) -> Vec<i64> {
        let span = (Timestamp::from_millis(from), Timestamp::from_millis(to));
        let points = self
            .store
            .range(&self.name, key.into_key(), bucket, span)
            .await;
        points.unwrap().iter().map(|point| point.count).collect()
    }

    async fn a_day_survives_hourly_writes(&self) {
        let buckets = [Bucket::HOUR.keep(2), Bucket::DAY.keep(2)];
        let start = (self.clock.now_micros() / 1_000).div_ceil(DAY) * DAY;
        for hour in 0..72 {
            self.clock
                .set(Timestamp::from_millis(start + hour * 3_600_000));
            self.observe("hourly", 1, None, &buckets).await;
        }
        let days = self.counts("hourly", buckets[1], start, start + 4 * DAY);
        assert_eq!(days.await, [24, 24, 24, 0]);
        // Two hours are kept after their end, whatever the range asks for.
        let hours = self.counts("hourly", buckets[0], start, start + 3 * DAY);
        let hours = hours.await;
        assert_eq!(hours.len(), 72);
        assert_eq!(hours[68..], [0, 1, 1, 1]);
        assert_eq!(hours.iter().sum::<i64>(), 3);
        // The first day lives until two days after its end, to the millisecond.
        self.clock.set(Timestamp::from_millis(start + 3 * DAY - 1));
        assert_eq!(
            self.counts("hourly", buckets[1], start, start + 1).await,
            [24]
        );
        self.clock.advance(INSTANT);
        assert_eq!(
            self.counts("hourly", buckets[1], start, start + 1).await,
            [0]
        );
    }

    async fn observations_keep_count_sum_and_max(&self) {
        let bucket = Bucket::MINUTE;
        for value in [37, -4, 12] {
            self.observe("ms", 1, Some(value), &[bucket]).await;
        }
        for value in [i64::MAX, 5] {
            self.observe("huge", 1, Some(value), &[bucket]).await;
        }
        let now = Timestamp::of(&self.clock);
        let span = (now, now + INSTANT);
        let read = |key: &str| self.store.range(&self.name, key.into_key(), bucket, span);
        let point = read("ms").await.unwrap()[0];
        assert_eq!((point.count, point.sum, point.max), (3, 45, Some(37)));
        assert_eq!(point.mean(), Some(15.0));
        let point = read("huge").await.unwrap()[0];
        assert_eq!((point.sum, point.max), (i64::MAX, Some(i64::MAX)));
        let empty = read("nothing").await.unwrap()[0];
        assert_eq!((empty.count, empty.max, empty.mean()), (0, None, None));
    }

    async fn no_increment_is_lost(&self) {
        let mut calls = tokio::task::JoinSet::new();
        for _ in 0..20 {
            let (store, name) = (Arc::clone(&self.store), Arc::clone(&self.name));
            calls.spawn(async move {
                for _ in 0..500 {
                    store
                        .incr(&name, vec![change("parallel", 1)], None)
                        .await
                        .unwrap();
                }
            });
        }
        while let Some(call) = calls.join_next().await {
            call.unwrap();
        }
        assert_eq!(self.value("parallel").await.value, 10_000);
    }

    async fn histories_follow_from_the_facts(&self, seed: u64) {
        let mut dice = super::Dice::new(seed);
        let mut model: HashMap<u64, (i64, u64)> = HashMap::new();
        for step in 0..300 {
            let place = dice.below(3);
            let name = format!("history {seed} {place}");
            let now = self.clock.now_micros() / 1_000;
            let (value, end) = model
                .get(&place)
                .copied()
                .filter(|line| now < line.1)
                .unwrap_or((0, 0));
            match dice.below(4) {
                0 | 1 => {
                    let by = dice.below(41) as i64 - 20;
                    let (ttl, sliding) = (1 + dice.below(3_000), dice.below(2) == 0);
                    let change = Change {
                        ttl: Ttl::millis(ttl),
                        sliding,
                        within: -30..=30,
                        ..change(&name, by)
                    };
                    let count = self.incr(change).await;
                    let fits = (-30..=30).contains(&(value + by));
                    let (mut value, mut end) = (value, end);
                    if fits {
                        value += by;
                        if sliding || end == 0 {
                            end = now + ttl;
                        }
                        model.insert(place, (value, end));
                    }
                    let left = Duration::from_millis(end.saturating_sub(now));
                    let expected = Count {
                        value,
                        expires_in: left,
                        applied: fits,
                    };
                    assert_eq!(count, expected, "seed {seed} step {step}");
                }
                2 => assert_eq!(self.value(&name).await.value, value, "step {step}"),
                _ => self.clock.advance(Duration::from_millis(dice.below(1_500))),
            }
        }
    }
}

/// Adds 1 to one fresh counter over all `stores`, `times` by each, at once; returns what the first one then reads.
///
/// # Panics
/// When a store fails.
#[allow(clippy::unwrap_used)]
pub async fn sum_over(stores: &[Arc<dyn CounterStore>], times: usize, key: &str) -> i64 {
    let (name, mut calls) = (Arc::<str>::from("sum"), tokio::task::JoinSet::new());
    for store in stores {
        let (store, name, key) = (Arc::clone(store), Arc::clone(&name), key.to_owned());
        calls.spawn(async move {
            for _ in 0..times {
                store
                    .incr(&name, vec![change(&key, 1)], None)
                    .await
                    .unwrap();
            }
        });
    }
    while let Some(call) = calls.join_next().await {
        call.unwrap();
    }
    let keys: Vec<Key> = vec![key.into_key()];
    stores[0].values(&name, keys).await.unwrap()[0].value
}
