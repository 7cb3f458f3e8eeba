//! The conformance suite on every engine.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tower_keep::backend::fallback::Fallback;
use tower_keep::backend::memory::MemoryStore;
use tower_keep::conformance::topic::topic;
use tower_keep::core::ManualClock;

use tower_keep::core::IntoKey;
use tower_keep::data::topic::EventId;
use tower_keep::data::topic::store::{From, Retain, TopicKey, TopicStore};

use crate::support::redis::{RedisServer, fresh_prefix, shared};
use crate::support::redis_cluster::RedisCluster;

fn clock() -> ManualClock {
    ManualClock::at("2030-01-01T00:00:00.007Z".parse().unwrap())
}

#[tokio::test]
async fn memory_keeps_its_promises() {
    let clock = clock();
    let store = MemoryStore::builder().clock(clock.clone()).build();
    topic(Arc::new(store), &clock).await;
}

#[tokio::test]
async fn redis_keeps_its_promises() {
    let clock = clock();
    topic(Arc::new(shared().await.store(&clock).await), &clock).await;
}

#[tokio::test]
async fn a_fallback_keeps_the_promises_of_its_primary() {
    let clock = clock();
    let memory = MemoryStore::builder().clock(clock.clone()).build();
    let store = Fallback::new(shared().await.store(&clock).await, memory);
    topic(Arc::new(store), &clock).await;
}

#[tokio::test]
async fn a_cluster_keeps_its_promises() {
    let (cluster, clock) = (RedisCluster::start(3, false).await, clock());
    topic(Arc::new(cluster.store(&clock).await), &clock).await;
}

const RETAIN: Retain = Retain {
    events: 3,
    time: Duration::from_secs(60),
};

fn orders() -> TopicKey {
    TopicKey {
        name: Arc::from("suite"),
        key: "orders".into_key(),
    }
}

#[tokio::test]
async fn a_log_on_redis_is_one_key_that_counts_by_ones_and_ends_a_day_after_its_events() {
    let (server, prefix) = (shared().await, fresh_prefix());
    let store = server.store_with(&prefix).await;
    let mut last = None;
    for seq in 1..=20 {
        let kept = TopicStore::publish(&store, &orders(), "x".into(), RETAIN)
            .await
            .unwrap();
        assert_eq!(kept.id.seq(), seq);
        assert_eq!(kept.id.epoch(), last.unwrap_or(kept.id.epoch()));
        last = Some(kept.id.epoch());
    }
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_millis();
    assert!(u128::from(last.unwrap()).abs_diff(now) < 600_000);
    let mut raw = server.raw().await;
    let keys: Vec<String> = redis::cmd("KEYS")
        .arg(format!("{prefix}:*"))
        .query_async(&mut raw)
        .await
        .unwrap();
    let [key] = &keys[..] else { panic!("{keys:?}") };
    let most = 86_400_000 + 60_000;
    let left: i64 = redis::cmd("PTTL")
        .arg(key)
        .query_async(&mut raw)
        .await
        .unwrap();
    assert!((most - 600_000..=most).contains(&left), "{left}");
}

#[tokio::test]
async fn a_place_that_no_log_can_have_is_behind_every_event_on_redis() {
    let store = shared().await.store_with(&fresh_prefix()).await;
    let kept = TopicStore::publish(&store, &orders(), "x".into(), RETAIN)
        .await
        .unwrap();
    let most = 9_999_999_999_999_999_u64;
    for (epoch, seq) in [(most, most), (most, 0), (1 << 50, 7)] {
        let place: EventId = format!("{epoch}-{seq}").parse().unwrap();
        let from = From::After(Some(place));
        let page = store.read(&orders(), from, RETAIN, 10).await.unwrap();
        assert_eq!((page.head, page.events.len()), (Some(kept.id), 0));
    }
}

/// A client may say any place that it has read to: what that costs the server is bounded by what it is given.
#[tokio::test]
async fn a_page_costs_redis_what_is_on_it_however_long_the_log_is() {
    let server = RedisServer::start().await;
    let clock = clock();
    let store = server.store(&clock).await;
    let retain = Retain {
        events: 2_000,
        time: Duration::from_secs(60),
    };
    for number in 0..2_000 {
        if number == 1_700 {
            clock.advance(retain.time);
        }
        let payload = number.to_string().into();
        let kept = TopicStore::publish(&store, &orders(), payload, retain);
        kept.await.unwrap();
    }
    let mut monitor = TcpStream::connect(server.address()).await.unwrap();
    monitor.write_all(b"MONITOR\r\n").await.unwrap();
    let mut seen = BufReader::new(monitor).lines();
    assert_eq!(seen.next_line().await.unwrap().unwrap(), "+OK");
    let (mut after, mut payloads) = (None, Vec::new());
    loop {
        let page = store.read(&orders(), From::After(after), retain, 256).await;
        let events = page.unwrap().events;
        let Some(last) = events.last() else { break };
        after = Some(last.id);
        payloads.extend(events.into_iter().map(|event| event.payload));
    }
    let expected: Vec<_> = (1_700..2_000).map(|number| number.to_string()).collect();
    assert_eq!(payloads, expected);
    let mut raw = server.raw().await;
    let echo: String = redis::cmd("ECHO")
        .arg("over")
        .query_async(&mut raw)
        .await
        .unwrap();
    assert_eq!(echo, "over");
    let mut ranges = 0;
    while let Some(line) = seen.next_line().await.unwrap() {
        if line.contains("\"ECHO\"") {
            break;
        }
        if line.contains("\"XRANGE\"") {
            ranges += 1;
            assert!(line.contains("\"COUNT\" \"256\""), "{line}");
        }
    }
    // Over those that are too old, two pages, and one that is empty.
    assert!((3..=6).contains(&ranges), "{ranges}");
}
