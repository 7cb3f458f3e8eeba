//! Counters: the suite on every engine, the buffer, two handles, lost replies.

use std::sync::Arc;
use std::time::Duration;

use tower_keep::backend::fallback::Fallback;
use tower_keep::backend::memory::MemoryStore;
use tower_keep::backend::redis::RedisStore;
use tower_keep::conformance::counter::{counter, sum_over};
use tower_keep::core::{Key, ManualClock, StoreError, StoreErrorKind, StoreFuture, Timestamp};
use tower_keep::data::DataErrorKind;
use tower_keep::data::counter::store::{Change, Observation, Point};
use tower_keep::data::counter::{Bucket, Count, Counter, CounterStore, Increment};
use tower_keep::{HOUR, ttl};

use crate::support::Proxy;
use crate::support::redis::{RedisServer, fresh_prefix, shared};
use crate::support::redis_cluster::RedisCluster;

fn clock() -> ManualClock {
    ManualClock::at("2030-01-01T00:00:00.007Z".parse().unwrap())
}

#[tokio::test]
async fn memory_keeps_its_promises() {
    let clock = clock();
    let store = MemoryStore::builder().clock(clock.clone()).build();
    counter(Arc::new(store), &clock).await;
}

#[tokio::test]
async fn redis_keeps_its_promises_also_behind_a_fallback() {
    let clock = clock();
    let second = MemoryStore::builder().clock(clock.clone()).build();
    let store = Fallback::new(shared().await.store(&clock).await, second);
    counter(Arc::new(store), &clock).await;
}

#[tokio::test]
async fn a_cluster_keeps_its_promises() {
    let (cluster, clock) = (RedisCluster::start(3, false).await, clock());
    counter(Arc::new(cluster.store(&clock).await), &clock).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handles_of_two_processes_add_up() {
    let (server, prefix) = (shared().await, fresh_prefix());
    let mut handles: Vec<Arc<dyn CounterStore>> = Vec::new();
    for _ in 0..4 {
        handles.push(Arc::new(server.store_with(&prefix).await));
    }
    assert_eq!(sum_over(&handles, 250, "signups").await, 1_000);
}

#[tokio::test]
async fn a_counter_whose_end_cannot_be_read_begins_anew() {
    let (server, prefix) = (shared().await, fresh_prefix());
    let metrics = Counter::new(server.store_with(&prefix).await, "metrics");
    metrics.incr("a", 5, ttl::METRIC).await.unwrap();
    let mut raw = server.raw().await;
    let all = ::redis::cmd("KEYS").arg(format!("{prefix}:*")).to_owned();
    let keys: Vec<String> = all.query_async(&mut raw).await.unwrap();
    let [key] = &keys[..] else {
        panic!("one counter is one key: {keys:?}");
    };
    let damage = ::redis::cmd("HSET")
        .arg(key)
        .arg("e")
        .arg("soon")
        .to_owned();
    let () = damage.query_async(&mut raw).await.unwrap();
    let count = metrics.incr("a", 1, ttl::METRIC).await.unwrap();
    assert_eq!(count.value, 1);
    assert!(count.expires_in > Duration::ZERO);
}

#[tokio::test]
async fn an_increment_is_one_command_however_many_buckets_and_changes() {
    let store = shared().await.store_with(&fresh_prefix()).await;
    let metrics = Counter::new(store.clone(), "metrics");
    let actions = metrics.series("user-action", [Bucket::HOUR, Bucket::DAY]);
    let all = || (0..512_u32).map(|key| Increment::new(key, 1, ttl::METRIC));
    for _ in 0..2 {
        let before = store.commands();
        metrics.incr("a", 1, ttl::METRIC).await.unwrap();
        actions.incr(("book", "u1"), 1).await.unwrap();
        assert_eq!(metrics.apply(all()).await.unwrap().len(), 512);
        if before > 0 {
            assert_eq!(store.commands() - before, 3);
        }
    }
}

#[tokio::test]
async fn a_full_store_changes_nothing_of_a_batch() {
    let store = MemoryStore::builder().max_entries(4).build();
    let metrics = Counter::new(store, "metrics");
    metrics.incr("a", 1, ttl::METRIC).await.unwrap();
    let keys = ["a", "b", "c", "d", "e"];
    let batch = || keys.map(|key| Increment::new(key, 1, ttl::METRIC).once("event"));
    let full = metrics.apply(batch()).await.unwrap_err();
    assert!(matches!(full.kind(), DataErrorKind::Full { .. }));
    assert_eq!(metrics.values(keys).await.unwrap(), [1, 0, 0, 0, 0]);
    // Nor is the event marked.
    let one = Increment::new("a", 1, ttl::METRIC).once("event");
    assert!(metrics.apply([one]).await.unwrap()[0].applied);
}

async fn order(server: &RedisServer, words: &[&str]) {
    let order = ::redis::cmd(words[0]).arg(&words[1..]).to_owned();
    let mut raw = server.raw().await;
    order.query_async::<::redis::Value>(&mut raw).await.unwrap();
}

#[tokio::test]
async fn what_the_server_refuses_to_write_is_an_error_and_not_a_count() {
    let server = RedisServer::start().await;
    let metrics = Counter::new(server.store_with("t").await, "metrics");
    metrics.incr("live", 5, ttl::METRIC).await.unwrap();
    let one = |key| Increment::new(key, 1, ttl::METRIC);
    let refused = async || {
        let mut kinds = Vec::new();
        for key in ["live", "new"] {
            kinds.push(metrics.incr(key, 1, ttl::METRIC).await.unwrap_err().kind());
            for change in [one(key).within(0..=9), one(key).once("event")] {
                let added = metrics.apply([change, one("other")]).await;
                kinds.push(added.unwrap_err().kind());
            }
        }
        kinds
    };
    order(&server, &["CONFIG", "SET", "maxmemory", "1"]).await;
    for kind in refused().await {
        assert!(matches!(kind, DataErrorKind::Full { .. }), "{kind:?}");
    }
    order(&server, &["CONFIG", "SET", "maxmemory", "0"]).await;
    order(&server, &["CONFIG", "SET", "min-replicas-to-write", "1"]).await;
    for kind in refused().await {
        assert!(
            matches!(kind, DataErrorKind::Unavailable { .. }),
            "{kind:?}"
        );
    }
    order(&server, &["CONFIG", "SET", "min-replicas-to-write", "0"]).await;
    order(&server, &["REPLICAOF", "127.0.0.1", "1"]).await;
    for kind in refused().await {
        assert!(
            matches!(kind, DataErrorKind::Unavailable { .. }),
            "{kind:?}"
        );
    }
    order(&server, &["REPLICAOF", "NO", "ONE"]).await;
    // Nothing of it was added, and no event is marked. It is asked again after a pause.
    let values = loop {
        match metrics.values(["live", "new", "other"]).await {
            Ok(values) => break values,
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    };
    assert_eq!(values, [5, 0, 0]);
    let added = metrics.apply([one("new").once("event")]).await.unwrap();
    assert!(added[0].applied);
}

#[tokio::test]
async fn an_event_is_remembered_longer_by_the_server_than_by_the_clock() {
    let (server, prefix) = (shared().await, fresh_prefix());
    let metrics = Counter::new(server.store_with(&prefix).await, "metrics");
    let one = Increment::new("a", 1, ttl::METRIC).once("event");
    metrics.apply([one]).await.unwrap();
    let mut raw = server.raw().await;
    let all = ::redis::cmd("KEYS").arg(format!("{prefix}:*")).to_owned();
    let keys: Vec<String> = all.query_async(&mut raw).await.unwrap();
    let mut marks = 0;
    for key in keys {
        let kind = ::redis::cmd("TYPE").arg(&key).to_owned();
        let kind: String = kind.query_async(&mut raw).await.unwrap();
        if kind == "string" {
            let left = ::redis::cmd("PTTL").arg(&key).to_owned();
            let left: u64 = left.query_async(&mut raw).await.unwrap();
            assert!(left > 24 * 3_600_000, "{left}");
            marks += 1;
        }
    }
    assert_eq!(marks, 1);
}

#[tokio::test]
async fn what_was_added_is_flushed_by_itself_and_at_shutdown() {
    let store = MemoryStore::new();
    let metrics = Counter::new(store.clone(), "metrics").flush_every(Duration::from_millis(5));
    for _ in 0..100 {
        metrics.add("hits", 1, ttl::METRIC).unwrap();
    }
    while metrics.value("hits").await.unwrap() < 100 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let slow = Counter::new(store.clone(), "metrics").flush_every(HOUR);
    slow.add("hits", 1, ttl::METRIC).unwrap();
    slow.flush().await.unwrap();
    assert_eq!(metrics.value("hits").await.unwrap(), 101);
    slow.add("hits", 1, ttl::METRIC).unwrap();
    drop(slow);
    while metrics.value("hits").await.unwrap() < 102 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[test]
fn counts_go_out_although_the_runtime_that_was_to_flush_them_has_gone() {
    let store = MemoryStore::new();
    let metrics = Counter::new(store, "metrics").flush_every(Duration::from_millis(5));
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().build().unwrap()
    };
    runtime().block_on(async { metrics.add("hits", 1, ttl::METRIC).unwrap() });
    runtime().block_on(async {
        metrics.add("hits", 1, ttl::METRIC).unwrap();
        let arrived = async {
            while metrics.value("hits").await.unwrap() != 2 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(60), arrived).await;
        waited.expect("they arrive");
    });
}

#[tokio::test]
async fn the_buffer_is_bounded_by_keys() {
    let metrics = Counter::new(MemoryStore::new(), "metrics").flush_every(HOUR);
    for key in 0..10_000_u32 {
        metrics.add(key, 1, ttl::METRIC).unwrap();
    }
    let full = metrics.add(10_000_u32, 1, ttl::METRIC).unwrap_err();
    assert!(matches!(full.kind(), DataErrorKind::Full { .. }));
    metrics.add(7_u32, 1, ttl::METRIC).unwrap();
    metrics.flush().await.unwrap();
    assert_eq!(metrics.value(7_u32).await.unwrap(), 2);
}

#[tokio::test]
async fn a_flush_whose_reply_was_lost_counts_once() {
    let server = RedisServer::start().await;
    let proxy = Proxy::before(server.address()).await;
    let store = RedisStore::connect(&format!("redis://{}/", proxy.address())).await;
    let metrics = Counter::new(store.unwrap(), "metrics").flush_every(HOUR);
    // The server knows the script from now on.
    metrics.incr("other", 1, ttl::METRIC).await.unwrap();
    metrics.add("hits", 5, ttl::METRIC).unwrap();
    proxy.cut_at_next_reply();
    assert!(metrics.flush().await.is_err());
    metrics.add("hits", 2, ttl::METRIC).unwrap();
    metrics.flush().await.unwrap();
    assert_eq!(metrics.value("hits").await.unwrap(), 7);
}

#[tokio::test]
async fn an_outage_is_an_error_and_what_was_added_is_kept() {
    let mut server = RedisServer::start().await;
    let store = RedisStore::connect(&server.url()).await.unwrap();
    let metrics = Counter::new(store, "metrics").flush_every(HOUR);
    server.kill();
    assert!(metrics.incr("a", 1, ttl::METRIC).await.is_err());
    metrics.add("b", 1, ttl::METRIC).unwrap();
    assert!(metrics.flush().await.is_err());
    server.restart();
    while metrics.flush().await.is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(metrics.value("b").await.unwrap(), 1);
}

/// A store that refuses what names one key, as a server does that keeps something else there.
#[derive(Clone, Debug)]
struct Picky(MemoryStore);

impl CounterStore for Picky {
    fn incr(
        &self,
        name: &Arc<str>,
        changes: Vec<Change>,
        batch: Option<Key>,
    ) -> StoreFuture<Vec<Count>> {
        if changes.iter().any(|change| change.key.as_str() == "bad") {
            return StoreFuture::ready(Err(StoreError::new(StoreErrorKind::Failed)));
        }
        self.0.incr(name, changes, batch)
    }

    fn observe(
        &self,
        name: &Arc<str>,
        observation: Observation,
        buckets: Vec<Bucket>,
    ) -> StoreFuture<()> {
        self.0.observe(name, observation, buckets)
    }

    fn values(&self, name: &Arc<str>, keys: Vec<Key>) -> StoreFuture<Vec<Count>> {
        self.0.values(name, keys)
    }

    fn range(
        &self,
        name: &Arc<str>,
        key: Key,
        bucket: Bucket,
        span: (Timestamp, Timestamp),
    ) -> StoreFuture<Vec<Point>> {
        self.0.range(name, key, bucket, span)
    }

    fn reset(&self, name: &Arc<str>, key: Key) -> StoreFuture<()> {
        self.0.reset(name, key)
    }
}

#[tokio::test]
async fn counts_that_the_store_refuses_hold_up_no_others() {
    let metrics = Counter::new(Picky(MemoryStore::new()), "metrics").flush_every(HOUR);
    metrics.add("bad", 1, ttl::METRIC).unwrap();
    assert!(metrics.flush().await.is_err());
    metrics.add("good", 2, ttl::METRIC).unwrap();
    assert!(metrics.flush().await.is_err());
    assert_eq!(metrics.value("good").await.unwrap(), 2);
    // What was refused is kept, and counted once when it can be.
    assert!(metrics.flush().await.is_err());
    assert_eq!(metrics.value("good").await.unwrap(), 2);
}

#[test]
fn a_runtime_that_ends_while_counts_wait_ends_and_no_more() {
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
    };
    let runtime = runtime().unwrap();
    runtime.block_on(async {
        let metrics = Counter::new(MemoryStore::new(), "metrics").flush_every(HOUR);
        metrics.add("a", 1, ttl::METRIC).unwrap();
        // Dropped here, with its last flush still to be run when the runtime ends.
    });
    drop(runtime);
}

#[tokio::test]
async fn a_success_rate_is_of_the_last_hour_and_not_of_a_lifetime() {
    let clock = ManualClock::at("2030-01-01T10:30:00.000Z".parse().unwrap());
    let store = MemoryStore::builder().clock(clock.clone()).build();
    let counter = Counter::new(store, "metrics");
    let sent = counter.series("sent", [Bucket::HOUR]);
    let failed = counter.series("failed", [Bucket::HOUR]);
    sent.incr("sms", 1_000).await.unwrap();
    failed.incr("sms", 1_000).await.unwrap();
    clock.advance(HOUR);
    sent.incr("sms", 10).await.unwrap();
    failed.incr("sms", 1).await.unwrap();
    let now = Timestamp::of(&clock);
    let of = async |series: &tower_keep::data::counter::Series| {
        let points = series.range("sms", Bucket::HOUR, now..now + tower_keep::SECOND);
        points
            .await
            .unwrap()
            .iter()
            .map(|point| point.count)
            .sum::<i64>()
    };
    assert_eq!((of(&sent).await, of(&failed).await), (10, 1));
}

#[tokio::test]
async fn a_series_on_redis_has_no_more_buckets_than_it_keeps_and_a_quarter() {
    let (server, clock) = (RedisServer::start().await, clock());
    let counter = Counter::new(server.store(&clock).await, "metrics");
    for observed in [false, true] {
        let series = counter.series("sent", [Bucket::HOUR.keep(8)]);
        let key = if observed { "observed" } else { "counted" };
        for _ in 0..40 {
            if observed {
                series.observe(key, 7).await.unwrap();
            }
            series.incr(key, 1).await.unwrap();
            clock.advance(HOUR);
        }
        let mut raw = server.raw().await;
        let listed = redis::cmd("KEYS").arg(format!("*{key}*")).to_owned();
        let keys: Vec<String> = listed.query_async(&mut raw).await.unwrap();
        assert_eq!(keys.len(), 1);
        let length = redis::cmd("HLEN").arg(&keys[0]).to_owned();
        let fields: usize = length.query_async(&mut raw).await.unwrap();
        let most = if observed { 3 * 11 } else { 11 };
        assert!((8..=most).contains(&fields), "{fields}");
        // The last eight are there.
        let now = Timestamp::of(&clock);
        let then = Timestamp::from_millis(now.as_millis() - 8 * 3_600_000);
        let points = series.range(key, Bucket::HOUR, then..now).await.unwrap();
        assert_eq!(points.iter().filter(|point| point.count > 0).count(), 8);
    }
}
