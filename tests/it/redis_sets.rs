//! The Redis backend on a cluster and behind sentinels: where commands go, and what a move or a failover costs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::unbounded_channel;
use tower_keep::backend::health::{StoreHealth, StoreMode};
use tower_keep::backend::redis::{RedisStore, Reply, Script};
use tower_keep::core::{ManualClock, Notice, StoreErrorKind, Timestamp};

use crate::support::{RedisCluster, RedisSentinels};

static INCREMENT: Script = Script::new("return redis.call('INCR', KEYS[1])");
/// Two keys of one step: while their slot is on its way they may lie apart.
static BOTH: Script = Script::new("redis.call('INCR', KEYS[2]) return redis.call('INCR', KEYS[1])");
static TELL: Script = Script::new("return redis.call('PUBLISH', ARGV[2], ARGV[3])");

fn clock() -> ManualClock {
    ManualClock::at(Timestamp::from_millis(1_900_000_000_000))
}

fn key(store: &RedisStore, tag: &str, name: &str) -> String {
    store.key("t").tag([tag]).segment(name).finish()
}

async fn increment(store: &RedisStore, tag: &str) -> Result<i64, StoreErrorKind> {
    let key = key(store, tag, "n");
    let call = store.script(&INCREMENT, &[key]);
    call.run(Reply::int).await.map_err(|error| error.kind())
}

/// Asks until the server does it, and says how many attempts failed; the test fails after 20 s.
async fn until_done(store: &RedisStore, tag: &str) -> (i64, Vec<StoreErrorKind>) {
    let (started, mut failures) = (Instant::now(), Vec::new());
    loop {
        let began = Instant::now();
        match increment(store, tag).await {
            Ok(value) => return (value, failures),
            Err(kind) => failures.push(kind),
        }
        assert!(began.elapsed() < Duration::from_secs(5), "a call hangs");
        assert!(started.elapsed() < Duration::from_secs(20), "{failures:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_cluster_is_found_by_any_node_spreads_keys_and_costs_one_command_a_call() {
    let cluster = RedisCluster::start(3, false).await;
    let one_node = format!("redis+cluster://{}", cluster.nodes[2].address());
    let store = RedisStore::connect(&one_node).await.unwrap();
    assert!(store.is_cluster());
    for tag in 0..60 {
        assert_eq!(increment(&store, &tag.to_string()).await, Ok(1));
    }
    // Each node is taught the script once.
    assert_eq!(store.commands(), 60 + 3);
    for tag in 0..60 {
        assert_eq!(increment(&store, &tag.to_string()).await, Ok(2));
    }
    assert_eq!(store.commands(), 120 + 3);
    let sizes = cluster.sizes().await;
    assert!(sizes.iter().all(|size| *size >= 8), "{sizes:?}");
    store.ping().await.unwrap();
}

#[tokio::test]
async fn keys_of_one_step_that_lie_apart_are_refused_and_nothing_is_done() {
    let cluster = RedisCluster::start(3, false).await;
    let store = cluster.store(&clock()).await;
    let keys = ["a", "b"].map(|tag| key(&store, tag, "n"));
    let refused = store.script(&BOTH, &keys).run(Reply::int).await;
    assert_eq!(refused.unwrap_err().kind(), StoreErrorKind::Failed);
    assert_eq!(cluster.sizes().await.iter().sum::<u64>(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_moves_under_load_and_every_call_is_done_once() {
    let cluster = Arc::new(RedisCluster::start(2, false).await);
    let store = cluster.store(&clock()).await;
    // Many keys of one slot, each a pair of one step.
    let pair = |store: &RedisStore, n: u32| {
        [format!("a{n}"), format!("b{n}")].map(|name| key(store, "moving", &name))
    };
    for n in 0..200 {
        let call = store.script(&BOTH, &pair(&store, n));
        assert_eq!(call.run(Reply::int).await.unwrap(), 1);
    }
    let slot: u16 = redis::cmd("CLUSTER")
        .arg(&["KEYSLOT", "{moving}"])
        .query_async(&mut cluster.nodes[0].raw().await)
        .await
        .unwrap();
    let (from, to) = if slot < 8_192 { (0, 1) } else { (1, 0) };
    let moving = tokio::spawn({
        let cluster = Arc::clone(&cluster);
        async move { cluster.move_slot(slot, from, to).await }
    });
    let mut expected = 1;
    while !moving.is_finished() || expected < 5 {
        expected += 1;
        for n in 0..200 {
            let call = store.script(&BOTH, &pair(&store, n));
            assert_eq!(call.run(Reply::int).await.unwrap(), expected);
        }
    }
    moving.await.unwrap();
    let before = store.commands();
    let call = store.script(&BOTH, &pair(&store, 0));
    assert_eq!(call.run(Reply::int).await.unwrap(), expected + 1);
    assert_eq!(store.commands() - before, 1, "the new place is known");
    assert_eq!(cluster.sizes().await[to], 400);
}

#[tokio::test]
async fn a_cluster_node_that_dies_fails_its_own_keys_until_its_replica_takes_over() {
    let mut cluster = RedisCluster::start(3, true).await;
    let store = cluster.store(&clock()).await;
    for tag in 0..30 {
        increment(&store, &tag.to_string()).await.unwrap();
    }
    let mut slots = Vec::new();
    for tag in 0..30 {
        let slot: u16 = redis::cmd("CLUSTER")
            .arg("KEYSLOT")
            .arg(key(&store, &tag.to_string(), "n"))
            .query_async(&mut cluster.nodes[0].raw().await)
            .await
            .unwrap();
        slots.push(slot);
    }
    let on = |slot: u16| usize::from(slot / (16_384 / 3)).min(2);
    let lost = (0..30).find(|tag| on(slots[*tag]) == 0).unwrap();
    cluster.nodes[0].kill();
    let (_, failures) = until_done(&store, &lost.to_string()).await;
    assert!(!failures.is_empty());
    assert!(
        failures
            .iter()
            .all(|kind| matches!(kind, StoreErrorKind::Unavailable | StoreErrorKind::TimedOut)),
        "{failures:?}"
    );
    for tag in 0..30 {
        until_done(&store, &tag.to_string()).await;
    }
    assert_eq!(store.mode(), StoreMode::Redis);
    assert!(!store.is_open_circuit());
}

#[tokio::test]
async fn a_notice_from_a_script_on_one_node_is_heard_on_every_other() {
    let cluster = RedisCluster::start(3, false).await;
    let clock = clock();
    let (store, other) = (cluster.store(&clock).await, cluster.store(&clock).await);
    let (sender, mut heard) = unbounded_channel();
    let callback = Arc::new(move |notice| drop(sender.send(notice)));
    let _place = other.subscribe("news", callback).await.unwrap();
    assert_eq!(heard.recv().await, Some(Notice::Restored));
    for tag in 0..30 {
        let tag = tag.to_string();
        let call = store.script(&TELL, &[key(&store, &tag, "n")]);
        call.arg("news").arg(&tag).run(Reply::int).await.unwrap();
        let told = tokio::time::timeout(Duration::from_secs(20), heard.recv()).await;
        assert_eq!(
            told.unwrap(),
            Some(Notice::Payload(tag.into_bytes().into()))
        );
    }
}

#[tokio::test]
async fn a_cluster_that_is_away_is_refused_quickly_and_joined_when_it_is_there() {
    let mut cluster = RedisCluster::start(1, false).await;
    let store = cluster.store(&clock()).await;
    cluster.nodes[0].kill();
    for _ in 0..7 {
        let began = Instant::now();
        assert_eq!(
            increment(&store, "x").await,
            Err(StoreErrorKind::Unavailable)
        );
        assert!(began.elapsed() < Duration::from_secs(5));
    }
    cluster.nodes[0].restart();
    until_done(&store, "x").await;
}

#[tokio::test]
async fn sentinels_lead_to_the_primary_and_after_a_failover_to_its_successor() {
    let mut set = RedisSentinels::start().await;
    set.kill_first_sentinel();
    let builder = RedisStore::builder(&set.url()).timeout(Duration::from_secs(2));
    let store = builder.open().await.unwrap();
    let (sender, mut heard) = unbounded_channel();
    let callback = Arc::new(move |notice| drop(sender.send(notice)));
    let _place = store.subscribe("news", callback).await.unwrap();
    assert_eq!(heard.recv().await, Some(Notice::Restored));
    assert_eq!(increment(&store, "x").await, Ok(1));
    assert_eq!(store.commands(), 2);
    set.servers[0].kill();
    let (_, failures) = until_done(&store, "x").await;
    assert!(
        failures
            .iter()
            .all(|kind| matches!(kind, StoreErrorKind::Unavailable | StoreErrorKind::TimedOut)),
        "{failures:?}"
    );
    let raw = &mut set.servers[1].raw().await;
    let role: Vec<redis::Value> = redis::cmd("ROLE").query_async(raw).await.unwrap();
    assert_eq!(role[0], redis::Value::BulkString(b"master".to_vec()));
    assert_eq!(heard.recv().await, Some(Notice::Lost));
    let back = tokio::time::timeout(Duration::from_secs(20), heard.recv()).await;
    assert_eq!(back.unwrap(), Some(Notice::Restored));
    // The old primary comes back as one that believes itself to be it still; nobody is led there.
    set.servers[0].restart();
    let before = until_done(&store, "x").await.0;
    assert_eq!(until_done(&store, "x").await.0, before + 1);
}
