//! Readers: nothing missed, nothing twice, gaps where the log lacks something.

use std::time::Duration;

use tower_keep::backend::memory::MemoryStore;
use tower_keep::backend::redis::RedisStore;
use tower_keep::core::ManualClock;
use tower_keep::data::topic::{Event, EventId, Feed, Topic, TopicErrorKind};
use tower_keep::{MILLIS, MINUTE};

use crate::support::proxy::Proxy;
use crate::support::redis::{RedisServer, fresh_prefix, shared};

async fn next(feed: &mut Feed<u64>) -> Event<u64> {
    let next = tokio::time::timeout(Duration::from_secs(20), feed.next()).await;
    next.expect("an event within 20 s")
        .expect("feeds do not end")
}

async fn value(feed: &mut Feed<u64>) -> u64 {
    match next(feed).await {
        Event::Message { value, .. } => value,
        gap => panic!("not a message: {gap:?}"),
    }
}

async fn silent(feed: &mut Feed<u64>) {
    let more = tokio::time::timeout(Duration::from_millis(20), feed.next()).await;
    assert!(more.is_err(), "{more:?}");
}

async fn publish_all(topic: &Topic<u64>, values: std::ops::Range<u64>) -> EventId {
    let mut last = None;
    for value in values {
        last = Some(topic.publish("k", &value).await.unwrap());
    }
    last.unwrap()
}

#[tokio::test]
async fn a_reader_gets_what_comes_after_its_start_once_and_in_order() {
    let redis = shared().await.store_with(&fresh_prefix()).await;
    let memory = Topic::new(MemoryStore::new(), "t");
    for topic in [memory, Topic::new(redis, "t")] {
        publish_all(&topic, 0..3).await;
        let mut feed = topic.subscribe("k").await.unwrap();
        publish_all(&topic, 3..6).await;
        for expected in 3..6 {
            assert_eq!(value(&mut feed).await, expected);
        }
        silent(&mut feed).await;
        assert_eq!(topic.latest("k").await.unwrap().unwrap().value, 5);
        assert_eq!(topic.latest("other").await.unwrap(), None);
    }
}

#[tokio::test]
async fn a_reader_that_comes_back_elsewhere_goes_on_where_it_was() {
    let (server, prefix) = (shared().await, fresh_prefix());
    let here: Topic<u64> = Topic::new(server.store_with(&prefix).await, "t");
    let there: Topic<u64> = Topic::new(server.store_with(&prefix).await, "t");
    let mut feed = here.subscribe("k").await.unwrap();
    publish_all(&there, 0..2).await;
    assert_eq!((value(&mut feed).await, value(&mut feed).await), (0, 1));
    let position = feed.position().unwrap();
    drop(feed);
    publish_all(&here, 2..5).await;
    let mut feed = there.subscribe_after("k", position).await.unwrap();
    publish_all(&here, 5..6).await;
    for expected in 2..6 {
        assert_eq!(value(&mut feed).await, expected);
    }
    let caught_up = feed.position().unwrap();
    let mut again = here.subscribe_after("k", caught_up).await.unwrap();
    silent(&mut again).await;
}

#[tokio::test]
async fn what_the_log_lacks_is_one_gap_of_known_size_then_what_it_has() {
    let topic: Topic<u64> = Topic::new(MemoryStore::new(), "t").retain(256, 5 * MINUTE);
    let start = publish_all(&topic, 0..1).await;
    publish_all(&topic, 1..1_001).await;
    let mut feed = topic.subscribe_after("k", start).await.unwrap();
    assert_eq!(next(&mut feed).await, Event::Gap { missed: Some(744) });
    for expected in 745..1_001 {
        assert_eq!(value(&mut feed).await, expected);
    }
    silent(&mut feed).await;
}

#[tokio::test]
async fn a_place_that_the_log_does_not_know_begins_with_a_gap() {
    let topic: Topic<u64> = Topic::new(MemoryStore::new(), "t");
    for unknown in ["1-1", "9999999999999-1"] {
        let mut feed = topic
            .subscribe_after("k", unknown.parse().unwrap())
            .await
            .unwrap();
        assert_eq!(next(&mut feed).await, Event::Gap { missed: None });
        silent(&mut feed).await;
    }
    publish_all(&topic, 0..2).await;
    for unknown in ["1-1", "9999999999999-1"] {
        let mut feed = topic
            .subscribe_after("k", unknown.parse().unwrap())
            .await
            .unwrap();
        assert_eq!(next(&mut feed).await, Event::Gap { missed: None });
        assert_eq!((value(&mut feed).await, value(&mut feed).await), (0, 1));
    }
}

#[tokio::test]
async fn a_reader_that_sleeps_reads_the_log_when_it_wakes() {
    let topic: Topic<u64> = Topic::new(MemoryStore::new(), "t").retain(400, 5 * MINUTE);
    let mut feed = topic.subscribe("k").await.unwrap();
    publish_all(&topic, 0..390).await;
    for expected in 0..390 {
        assert_eq!(value(&mut feed).await, expected);
    }
    publish_all(&topic, 390..1_000).await;
    assert_eq!(next(&mut feed).await, Event::Gap { missed: Some(210) });
    for expected in 600..1_000 {
        assert_eq!(value(&mut feed).await, expected);
    }
}

async fn behind(proxy: &Proxy, prefix: &str) -> Topic<u64> {
    let url = format!("redis://{}/", proxy.address());
    let store = RedisStore::builder(&url)
        .prefix(prefix)
        .open()
        .await
        .unwrap();
    Topic::new(store, "t")
}

#[tokio::test]
async fn while_the_link_is_cut_nothing_is_missed_that_the_log_keeps() {
    let server = shared().await;
    for (published, missed) in [(100, None), (1_000, Some(744))] {
        let (proxy, prefix) = (Proxy::before(server.address()).await, fresh_prefix());
        let reader = behind(&proxy, &prefix).await;
        let writer: Topic<u64> = Topic::new(server.store_with(&prefix).await, "t");
        let mut feed = reader.subscribe("k").await.unwrap();
        publish_all(&writer, 0..1).await;
        assert_eq!(value(&mut feed).await, 0);
        proxy.refuse(true);
        publish_all(&writer, 1..published + 1).await;
        silent(&mut feed).await;
        proxy.refuse(false);
        if missed.is_some() {
            assert_eq!(next(&mut feed).await, Event::Gap { missed });
        }
        let first = missed.unwrap_or_default() + 1;
        for expected in first..published + 1 {
            assert_eq!(value(&mut feed).await, expected);
        }
        publish_all(&writer, 7..8).await;
        assert_eq!(value(&mut feed).await, 7);
    }
}

#[tokio::test]
async fn a_server_that_forgot_everything_is_a_gap_and_the_feed_goes_on() {
    let mut server = RedisServer::start().await;
    let topic: Topic<u64> = Topic::new(server.store_with("t").await, "t");
    let mut feed = topic.subscribe("k").await.unwrap();
    publish_all(&topic, 0..3).await;
    for expected in 0..3 {
        assert_eq!(value(&mut feed).await, expected);
    }
    server.kill();
    silent(&mut feed).await;
    server.restart();
    assert_eq!(next(&mut feed).await, Event::Gap { missed: None });
    while topic.publish("k", &9).await.is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(value(&mut feed).await, 9);
}

#[tokio::test]
async fn numbers_that_a_successor_gives_once_more_are_a_gap_live_and_for_who_comes_back() {
    let server = RedisServer::start().await;
    let clock = ManualClock::at("2030-01-01T00:00:00Z".parse().unwrap());
    let topic: Topic<u64> = Topic::new(server.store(&clock).await, "t");
    let mut live = topic.subscribe("k").await.unwrap();
    let mut raw = server.raw().await;
    let mut order = async |words: &[&str]| -> Vec<String> {
        let order = redis::cmd(words[0]).arg(&words[1..]).to_owned();
        let said: redis::Value = order.query_async(&mut raw).await.unwrap();
        redis::from_redis_value(said).unwrap_or_default()
    };
    for round in 0..2 {
        let before = publish_all(&topic, 0..5).await;
        let keys = order(&["KEYS", "*:log"]).await;
        order(&["COPY", &keys[0], "elsewhere", "REPLACE"]).await;
        let seen = publish_all(&topic, 5..8).await;
        for expected in 0..8 {
            assert_eq!(value(&mut live).await, expected);
        }
        // A failover: what took over lacks the last three, and counts on from there at a later time.
        order(&["RENAME", "elsewhere", &keys[0]]).await;
        clock.advance(MILLIS);
        let said: EventId = before.to_string().parse().unwrap();
        assert_eq!(said, before);
        // As many as are lost, or more.
        let again = publish_all(&topic, 10..13 + round).await;
        assert_eq!(again.seq(), seen.seq() + round);
        let mut back = topic
            .subscribe_after("k", seen.to_string().parse().unwrap())
            .await
            .unwrap();
        assert_eq!(next(&mut back).await, Event::Gap { missed: None });
        // The live one has one, too, and then all that was published since.
        let mut gaps = 0;
        loop {
            match next(&mut live).await {
                Event::Gap { missed } => gaps += usize::from(missed.is_none()),
                Event::Message { id, .. } if id == again => break,
                Event::Message { .. } => {}
            }
        }
        assert_eq!(gaps, 1);
        let mut known = topic.subscribe_after("k", before).await.unwrap();
        assert_eq!(value(&mut known).await, 10);
    }
}

#[tokio::test]
async fn a_thousand_readers_of_one_handle_are_all_told() {
    let store = shared().await.store_with(&fresh_prefix()).await;
    let topic: Topic<u64> = Topic::new(store.clone(), "t");
    let mut feeds = Vec::new();
    for _ in 0..1_000 {
        feeds.push(topic.subscribe("k").await.unwrap());
    }
    let before = store.commands();
    publish_all(&topic, 0..1).await;
    for feed in &mut feeds {
        assert_eq!(value(feed).await, 0);
    }
    // One for the event, and one more where its script was new to the server.
    assert!(store.commands() - before <= 2);
}

#[tokio::test]
async fn feeds_are_counted_and_refused_beyond_ten_thousand() {
    let topic: Topic<u64> = Topic::new(MemoryStore::new(), "t");
    let mut feeds = Vec::new();
    for number in 0..10_000 {
        feeds.push(topic.subscribe(number).await.unwrap());
    }
    let refused = topic.subscribe("k").await.unwrap_err().kind();
    assert_eq!(refused, TopicErrorKind::Full { retry_after: 1 });
    feeds.pop();
    assert!(topic.clone().subscribe("k").await.is_ok());
}

#[tokio::test]
async fn what_is_too_large_or_of_another_shape_is_said() {
    let store = MemoryStore::new();
    let texts: Topic<String> = Topic::new(store.clone(), "t");
    let numbers: Topic<u64> = Topic::new(store, "t");
    // With its quotes.
    let of = |bytes: usize| "x".repeat(bytes - 2);
    texts.publish("other", &of(65_536)).await.unwrap();
    let refused = texts.publish("k", &of(65_537)).await.unwrap_err();
    assert_eq!(refused.kind(), TopicErrorKind::TooLarge { limit: 65_536 });
    let mut feed = numbers.subscribe("k").await.unwrap();
    let _ = texts.publish("k", &"no number".to_owned()).await.unwrap();
    assert_eq!(next(&mut feed).await, Event::Gap { missed: Some(1) });
    assert_eq!(numbers.latest("k").await.unwrap(), None);
}

#[tokio::test]
async fn an_outage_is_an_error_for_writers_and_new_readers() {
    let mut server = RedisServer::start().await;
    let topic: Topic<u64> = Topic::new(server.store_with("t").await, "t");
    publish_all(&topic, 0..1).await;
    server.kill();
    for _ in 0..3 {
        let refused = topic.publish("k", &1).await.unwrap_err().kind();
        assert!(matches!(
            refused,
            TopicErrorKind::Unavailable { .. } | TopicErrorKind::TimedOut
        ));
    }
    assert!(topic.subscribe("k").await.is_err());
}
