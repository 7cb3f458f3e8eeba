//! Ages, waits and bounds of caches: nothing answers past its end, nobody waits longer than need be, nothing grows.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tower_keep::backend::health::StoreHealth;
use tower_keep::backend::memory::MemoryStore;
use tower_keep::core::{Email, IntoKey, ManualClock};
use tower_keep::data::cache::store::{
    Ask, Fill, Item, LeaseToken, LeaseWish, Leased, Lookup, Right,
};
use tower_keep::data::cache::{Cache, CacheGroup, CacheOutcome, CacheStore, Local, Tag};
use tower_keep::ttl::{self, Lifetime, Ttl};
use tower_keep::{MILLIS, MINUTE, SECOND};

use crate::support::redis::{fresh_prefix, shared};

fn clock() -> ManualClock {
    ManualClock::at("2030-01-01T00:00:00.007Z".parse().unwrap())
}

fn memory(clock: &ManualClock) -> MemoryStore {
    MemoryStore::builder().clock(clock.clone()).build()
}

/// A loader that counts its runs, waits at a gate, and says which run it was.
#[derive(Clone)]
struct Gated {
    runs: Arc<AtomicUsize>,
    gate: Arc<Semaphore>,
}

impl Gated {
    fn new() -> Self {
        Self {
            runs: Arc::default(),
            gate: Arc::new(Semaphore::new(0)),
        }
    }

    async fn load(self, fails: bool) -> Result<usize, io::Error> {
        let run = self.runs.fetch_add(1, Ordering::SeqCst) + 1;
        self.gate.acquire().await.unwrap().forget();
        if fails {
            return Err(io::Error::other("the database is away"));
        }
        Ok(run)
    }

    async fn until_runs(&self, runs: usize) {
        while self.runs.load(Ordering::SeqCst) < runs {
            tokio::task::yield_now().await;
        }
    }
}

async fn read(
    cache: &Cache<u8, usize>,
    source: &Gated,
    fails: bool,
) -> Option<(usize, CacheOutcome)> {
    let source = source.clone();
    let read = cache.get_or_load(&1, move |_| source.load(fails)).await;
    read.ok().map(|read| (*read, read.outcome()))
}

#[tokio::test(start_paused = true)]
async fn a_refresh_under_way_lends_the_old_value_to_nobody_past_its_end() {
    for bounds in [Local::off(), Local::default()] {
        let clock = clock();
        let life = Lifetime::new(Ttl::secs(100))
            .refresh_after(60 * SECOND)
            .jitter(0);
        let cache = Cache::new(memory(&clock), "row", life).local(bounds);
        let cache = cache.load_timeout(SECOND, MINUTE);
        let source = Gated::new();
        source.gate.add_permits(1);
        assert_eq!(read(&cache, &source, false).await.unwrap().0, 1);
        clock.advance(Duration::from_secs(99));
        // The old one at once, while the next is loaded.
        assert_eq!(read(&cache, &source, false).await.unwrap().0, 1);
        source.until_runs(2).await;
        assert_eq!(read(&cache, &source, false).await.unwrap().0, 1);
        clock.advance(SECOND);
        let (late, source, other) = (cache.clone(), source.clone(), source.clone());
        let late = tokio::spawn(async move { read(&late, &other, false).await });
        tokio::task::yield_now().await;
        source.gate.add_permits(1);
        assert_eq!(late.await.unwrap(), Some((2, CacheOutcome::Joined)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_stale_value_stands_in_for_a_load_that_goes_on_until_exactly_its_end() {
    let clock = clock();
    let life = Lifetime::new(Ttl::secs(10))
        .stale_for(Ttl::secs(90))
        .jitter(0);
    let cache = Cache::new(memory(&clock), "row", life).local(Local::off());
    let cache = cache.load_timeout(MILLIS, MINUTE);
    let source = Gated::new();
    source.gate.add_permits(1);
    read(&cache, &source, false).await.unwrap();
    clock.advance(Duration::from_millis(99_999));
    let stale = Some((1, CacheOutcome::Stale));
    assert_eq!(read(&cache, &source, true).await, stale);
    assert_eq!(read(&cache, &source, true).await, stale);
    clock.advance(MILLIS);
    let (late, other) = (cache.clone(), source.clone());
    let late = tokio::spawn(async move { read(&late, &other, true).await });
    tokio::task::yield_now().await;
    assert!(!late.is_finished());
    source.gate.add_permits(1);
    // The load that it waited for has failed, and nothing stands in for it any more.
    assert_eq!(late.await.unwrap(), None);
    assert_eq!(source.runs.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_others_is_rung_each_time_and_not_late() {
    let store = MemoryStore::new();
    let cache: Cache<u8, usize> = Cache::new(store.clone(), "row", ttl::USER);
    let (group, key): (Arc<str>, _) = (Arc::from("row"), cache.cache_key(&1));
    let lease = async |token| {
        let ask = Ask::Lease(LeaseWish {
            token: LeaseToken([token; 16]),
            lasts: MINUTE,
            take_over: false,
            force: false,
        });
        let lookup = Lookup {
            key: key.clone(),
            ask,
        };
        store.fetch(&group, vec![lookup]).await.unwrap()[0].leased
    };
    let end = async |token, life| {
        let fill = Fill {
            payload: Bytes::new(),
            tags: Vec::new(),
            aliases: Vec::new(),
            refresh: life,
            fresh: life,
            life,
            right: Right::Lease(LeaseToken([token; 16])),
        };
        let items = vec![Item::new(key.clone(), fill)];
        store.write(&group, items, "another").await.unwrap();
    };
    assert_eq!(lease(1).await, Leased::Given);
    let (started, runs) = (Instant::now(), Arc::new(AtomicUsize::new(0)));
    let (waiting, counted) = (cache.clone(), Arc::clone(&runs));
    let waiting = tokio::spawn(async move {
        let load = |_| async move { Ok::<_, io::Error>(counted.fetch_add(1, Ordering::SeqCst)) };
        *waiting.get_or_load(&1, load).await.unwrap()
    });
    tokio::time::sleep(MILLIS).await;
    // The first gives up, and the next is quicker than who waits; it gives up, too.
    end(1, 0).await;
    assert_eq!(lease(2).await, Leased::Given);
    tokio::time::sleep(MILLIS).await;
    end(2, 0).await;
    assert_eq!(
        (waiting.await.unwrap(), runs.load(Ordering::SeqCst)),
        (0, 1)
    );
    assert!(started.elapsed() < SECOND / 2, "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn who_failed_once_takes_no_lease_from_others() {
    let store = MemoryStore::new();
    let [here, there] = [0, 1].map(|_| Cache::<u8, usize>::new(store.clone(), "row", ttl::USER));
    let source = Gated::new();
    source.gate.add_permits(1);
    assert_eq!(read(&here, &source, true).await, None);
    let (other, slow) = (there.clone(), source.clone());
    let loading = tokio::spawn(async move { read(&other, &slow, false).await });
    source.until_runs(2).await;
    let (again, same) = (here.clone(), source.clone());
    let waiting = tokio::spawn(async move { read(&again, &same, false).await });
    tokio::time::sleep(100 * MILLIS).await;
    source.gate.add_permits(1);
    assert_eq!(loading.await.unwrap(), Some((2, CacheOutcome::Loaded)));
    assert_eq!(waiting.await.unwrap(), Some((2, CacheOutcome::SharedHit)));
    assert_eq!(source.runs.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn records_that_are_written_together_end_apart_and_never_late() {
    let clock = clock();
    let cache: Cache<u32, u8> = Cache::new(memory(&clock), "row", ttl::USER);
    cache.put_many((0..500).map(|key| (key, 1))).await.unwrap();
    let keys: Vec<u32> = (0..500).collect();
    let rows = cache.get_many(&keys).await.unwrap();
    let ends: BTreeSet<Duration> = rows.iter().flatten().map(|row| row.expires_in()).collect();
    let minutes = |range: std::ops::RangeInclusive<u64>| {
        Duration::from_secs(60 * range.start())..=Duration::from_secs(60 * range.end())
    };
    assert!(ends.iter().all(|end| minutes(27..=30).contains(end)));
    // Of 180,000 milliseconds 500 are drawn.
    assert!(ends.len() > 400, "{}", ends.len());
    // Under a minute nothing is drawn.
    let short: Cache<u32, u8> = Cache::new(memory(&clock), "short", Ttl::secs(59));
    short.put_many((0..50).map(|key| (key, 1))).await.unwrap();
    let rows = short.get_many(&keys[..50]).await.unwrap();
    assert!(
        rows.iter()
            .flatten()
            .all(|row| row.expires_in() == Duration::from_secs(59))
    );
}

#[tokio::test]
async fn of_reads_as_they_come_nine_in_ten_are_hits_and_the_database_rests() {
    let cache: Cache<usize, usize> = Cache::new(MemoryStore::new(), "row", ttl::USER);
    let mut next = as_they_come(10_000);
    for _ in 0..100_000 {
        let key = next();
        let load = |key| async move { Ok::<_, io::Error>(key) };
        assert_eq!(*cache.get_or_load(&key, load).await.unwrap(), key);
    }
    let stats = cache.stats();
    assert!(stats.hit_rate().unwrap() > 0.9, "{stats:?}");
    assert!(stats.loads < 10_000, "{stats:?}");
}

/// Numbers below `keys` by Zipf's law: the second half as often as the first, the third a third as often.
fn as_they_come(keys: u32) -> impl FnMut() -> usize {
    let mut sum = 0.0;
    let sums: Vec<f64> = (1..=keys)
        .map(|rank| {
            sum += 1.0 / f64::from(rank);
            sum
        })
        .collect();
    let mut state = 7_u64;
    move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let at = (state >> 11) as f64 / (1_u64 << 53) as f64 * sum;
        sums.partition_point(|sum| *sum < at)
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Customer {
    user: usize,
    email: String,
}

#[tokio::test]
async fn of_customers_asked_for_by_one_name_or_another_four_in_five_cost_the_provider_no_call() {
    let customers: Cache<String, Customer> =
        Cache::new(MemoryStore::new(), "customer", ttl::CUSTOMER)
            .alias("user", |customer: &Customer| Some(customer.user))
            .alias("email", |customer: &Customer| {
                Some(Email(customer.email.clone()))
            });
    let (calls, mut next) = (Arc::new(AtomicUsize::new(0)), as_they_come(10_000));
    let reads = 40_000;
    for read in 0..reads {
        let (user, calls) = (next(), Arc::clone(&calls));
        let email = format!("{user}@mail.test");
        let own = Customer {
            user,
            email: email.clone(),
        };
        let load = move || async move {
            calls.fetch_add(1, Ordering::SeqCst);
            Ok::<_, io::Error>((format!("cus_{user}"), own))
        };
        let name = match read % 4 {
            0 => ("email", Email(&email).into_key()),
            _ => ("user", user.into_key()),
        };
        let found = customers.get_or_load_by([name], load).await.unwrap();
        assert_eq!(found.user, user);
    }
    let calls = calls.load(Ordering::SeqCst);
    assert!(calls * 5 < reads, "{calls} calls for {reads} reads");
    let hits = customers.stats().hit_rate().unwrap();
    assert!(hits > 0.8, "{hits}");
}

#[tokio::test]
async fn a_refreshed_value_too_large_for_this_process_leaves_no_old_one_here() {
    let cache: Cache<u32, String> =
        Cache::new(MemoryStore::new(), "row", ttl::USER).local(Local::entries(10).bytes(8_000));
    let load = |text: String| move |_| async move { Ok::<_, io::Error>(text) };
    cache.get_or_load(&1, load("old".into())).await.unwrap();
    let large = "new".repeat(5_000);
    cache.refresh(&1, load(large.clone())).await.unwrap();
    let read = cache.get_or_load(&1, load("never".into())).await.unwrap();
    assert_eq!((&*read, read.outcome()), (&large, CacheOutcome::SharedHit));
}

#[tokio::test]
async fn a_flood_of_keys_leaves_no_more_behind_than_its_bounds() {
    let store = MemoryStore::builder().max_entries(1_000).build();
    let group = CacheGroup::new(store.clone(), "db");
    let cache: Cache<u32, u32> = group
        .cache("row", ttl::USER)
        .local(Local::entries(500))
        .tag_with(|key, _| [Tag::new("row", *key)]);
    for key in 0..6_000 {
        if key % 3 == 0 {
            let load = |_| async { Err::<u32, _>(io::Error::other("no such row")) };
            assert!(cache.get_or_load(&key, load).await.is_err());
        } else {
            let load = |key| async move { Ok::<_, io::Error>(key) };
            cache.get_or_load(&key, load).await.unwrap();
        }
    }
    let stats = cache.stats();
    assert!(stats.local_entries <= 500, "{stats:?}");
    assert!(store.stats().entries.unwrap_or(0) <= 1_000);
}

#[tokio::test]
async fn addresses_are_three_keys_where_they_are_three_and_none_is_read_from_the_server() {
    let (server, prefix) = (shared().await, fresh_prefix());
    let store = server.store_with(&prefix).await;
    let plain: Cache<String, String> = Cache::new(store.clone(), "plain", ttl::USER);
    for key in ["a.b@x", "a_b@x", "a+b@x", "a:b", "a*", "{a}"] {
        plain.put(&key.to_owned(), key.to_owned()).await.unwrap();
    }
    for key in ["a.b@x", "a_b@x", "a+b@x", "a:b", "a*", "{a}"] {
        assert_eq!(*plain.get(&key.to_owned()).await.unwrap().unwrap(), key);
    }
    let customers: Cache<u64, String> = Cache::new(store, "customer", ttl::CUSTOMER)
        .alias("email", |address: &String| Some(Email(address.clone())));
    customers.put(&7, "ann@shop.test".to_owned()).await.unwrap();
    let by = [("email", Email("bob@shop.test").into_key())];
    let load = || async { Ok::<_, io::Error>((8, "bob@shop.test".to_owned())) };
    customers.get_or_load_by(by, load).await.unwrap();
    let mut raw = server.raw().await;
    let keys: Vec<String> = redis::cmd("KEYS")
        .arg(format!("{prefix}:cache:{{customer}}*"))
        .query_async(&mut raw)
        .await
        .unwrap();
    assert!(keys.len() >= 5, "{keys:?}");
    let has_address =
        |key: &String| key.contains("shop") || key.contains("ann") || key.contains("bob");
    assert!(!keys.iter().any(has_address), "{keys:?}");
}

#[tokio::test]
async fn without_its_stamps_no_old_record_returns() {
    let (server, prefix) = (shared().await, fresh_prefix());
    let cache = || async {
        let store = server.store_with(&prefix).await;
        Cache::<u8, u8>::new(store, "row", ttl::USER).local(Local::off())
    };
    let cache = cache().await;
    cache.put(&1, 1).await.unwrap();
    let mut raw = server.raw().await;
    let gone: u8 = redis::cmd("DEL")
        .arg(format!("{prefix}:cache:{{row}}:stamps"))
        .query_async(&mut raw)
        .await
        .unwrap();
    assert_eq!(gone, 1);
    assert!(cache.get(&1).await.unwrap().is_none());
    // Nor when there are stamps again.
    cache.put(&2, 2).await.unwrap();
    assert!(cache.get(&1).await.unwrap().is_none());
    assert_eq!(*cache.get(&2).await.unwrap().unwrap(), 2);
}
