//! The Redis backend on a cluster and behind sentinels: where commands go, and what a move or a failover costs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::unbounded_channel;
use tower_keep::backend::fallback::Fallback;
use tower_keep::backend::health::{StoreHealth, StoreMode};
use tower_keep::backend::memory::MemoryStore;
use tower_keep::backend::redis::{RedisStore, Reply, Script};
use tower_keep::core::{ManualClock, Notice, StoreErrorKind, Timestamp};

use crate::support::{Proxy, RedisCluster, RedisSentinels, RedisServer, is_redis_6};

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

/// A node that has all slots but one, which `other` has, and sends everybody there to ask.
async fn node_that_gives_away_to(other: u16) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let own = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(give_away(stream, own, other));
        }
    });
    own
}

async fn give_away(stream: TcpStream, own: u16, other: u16) -> std::io::Result<()> {
    let map = [(0, 16_382, own), (16_383, 16_383, other)];
    play(stream, &map, &format!("-ASK 1 127.0.0.1:{other}\r\n")).await
}

/// A node that has lost sight of the others: it serves nothing, and tells the map that was.
async fn node_that_is_cut_off() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let own = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let down = "-CLUSTERDOWN The cluster is down\r\n";
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move { play(stream, &[(0, 16_383, own)], down).await });
        }
    });
    own
}

/// Tells `map`, the first and last slot and the port of each range, and says one thing to everything else.
async fn play(stream: TcpStream, map: &[(u16, u16, u16)], says: &str) -> std::io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    while let Some(line) = lines.next_line().await? {
        // An array of texts: for each its length, and itself.
        let count: usize = line.trim_start_matches('*').parse().unwrap();
        let mut words = Vec::new();
        for _ in 0..count {
            let _length = lines.next_line().await?;
            words.extend(lines.next_line().await?);
        }
        let answer = match words[0].as_str() {
            "CLUSTER" => {
                let range = |(first, last, port): &(u16, u16, u16)| {
                    format!("*3\r\n:{first}\r\n:{last}\r\n*2\r\n$9\r\n127.0.0.1\r\n:{port}\r\n")
                };
                let ranges: String = map.iter().map(range).collect();
                format!("*{}\r\n{ranges}", map.len())
            }
            "CLIENT" => "+OK\r\n".to_owned(),
            "PING" => "+PONG\r\n".to_owned(),
            _ => says.to_owned(),
        };
        write.write_all(answer.as_bytes()).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_node_that_is_cut_off_from_its_cluster_is_not_believed_for_ever() {
    let cluster = RedisCluster::start(1, false).await;
    let (old, new) = (node_that_is_cut_off().await, cluster.nodes[0].address());
    let url = format!("redis+cluster://127.0.0.1:{old},{new}");
    let store = RedisStore::connect(&url).await.unwrap();
    let (_, failures) = until_done(&store, "x").await;
    assert!(failures.contains(&StoreErrorKind::Unavailable));
    assert!(failures.len() < 60, "{}", failures.len());
}

#[tokio::test]
async fn a_slot_that_there_is_not_is_refused() {
    let cluster = RedisCluster::start(1, false).await;
    let store = cluster.store(&clock()).await;
    for slot in [16_384, u16::MAX] {
        let call = store.script(&INCREMENT, &[key(&store, "x", "n")]);
        let refused = call.to_slot(slot).run(Reply::int).await.unwrap_err();
        assert_eq!(refused.kind(), StoreErrorKind::Failed, "{slot}");
    }
    let call = store.script(&INCREMENT, &[key(&store, "x", "n")]);
    let (slot, _) = cluster.home(&key(&store, "x", "n")).await;
    assert_eq!(call.to_slot(slot).run(Reply::int).await.unwrap(), 1);
}

#[tokio::test]
async fn looks_that_ask_nobody_say_nothing_of_a_node_that_is_silent() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let other = silent.local_addr().unwrap().port();
    let node = node_that_gives_away_to(other).await;
    let store = RedisStore::builder(&format!("redis+cluster://127.0.0.1:{node}"))
        .timeout(Duration::from_millis(200));
    let store = store.clock(clock()).open().await.unwrap();
    let key = key(&store, "t", "n");
    for _ in 0..40 {
        let look = store.look("test.look", &key).command(["GETEX", &key]);
        assert!(look.ask().await.unwrap().is_none(), "a script is asked");
        let asked = increment(&store, "t").await;
        assert!(asked.is_err());
        if store.stats().breaker_open {
            return;
        }
    }
    panic!("the silent node is asked for ever");
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

#[tokio::test]
async fn a_sentinel_that_is_silent_hides_no_failover() {
    let mut set = RedisSentinels::start().await;
    let builder = RedisStore::builder(&set.url()).timeout(Duration::from_secs(2));
    let store = builder.open().await.unwrap();
    let (sender, mut heard) = unbounded_channel();
    let callback = Arc::new(move |notice| drop(sender.send(notice)));
    let _place = store.subscribe("news", callback).await.unwrap();
    assert_eq!(heard.recv().await, Some(Notice::Restored));
    assert_eq!(until_done(&store, "x").await.0, 1);
    set.pause_first_sentinel();
    set.servers[0].kill();
    until_done(&store, "x").await;
    assert_eq!(heard.recv().await, Some(Notice::Lost));
    let back = tokio::time::timeout(Duration::from_secs(20), heard.recv()).await;
    assert_eq!(back.unwrap(), Some(Notice::Restored));
}

#[tokio::test]
async fn a_replica_that_sentinels_take_for_the_primary_is_away() {
    let set = RedisSentinels::start().await;
    let _: () = redis::cmd("REPLICAOF")
        .arg(&["127.0.0.1", "1"])
        .query_async(&mut set.servers[0].raw().await)
        .await
        .unwrap();
    let builder = RedisStore::builder(&set.url()).timeout(Duration::from_secs(5));
    let store = builder.open().await.unwrap();
    let (sender, mut heard) = unbounded_channel();
    let callback = Arc::new(move |notice| drop(sender.send(notice)));
    let asking = async {
        for _ in 0..5 {
            let failed = increment(&store, "x").await;
            assert_eq!(failed, Err(StoreErrorKind::Unavailable));
        }
    };
    let (_place, ()) = tokio::join!(store.subscribe("news", callback), asking);
    assert!(store.is_open_circuit());
    assert_eq!(store.commands(), 0);
    // What the successor tells is not heard here.
    assert!(heard.try_recv().is_err());
}

/// A server that accepts and says nothing.
async fn silent() -> RedisServer {
    let server = RedisServer::start().await;
    server.pause();
    server
}

#[tokio::test]
async fn a_cluster_is_joined_though_the_first_node_of_its_url_is_silent() {
    let (cluster, silent) = (RedisCluster::start(2, false).await, silent().await);
    let others = cluster.url();
    let others = others.strip_prefix("redis+cluster://").unwrap();
    let url = format!("redis+cluster://{},{others}", silent.address());
    let store = RedisStore::connect(&url).await.unwrap();
    assert_eq!(until_done(&store, "x").await.0, 1);
}

#[tokio::test]
async fn a_cluster_that_is_silent_from_the_start_costs_a_few_timeouts_and_then_none() {
    let cluster = RedisCluster::start(1, false).await;
    let builder = RedisStore::builder(&cluster.url()).timeout(Duration::from_millis(200));
    let redis = builder.open().await.unwrap();
    let store = Fallback::new(redis.clone(), MemoryStore::new());
    cluster.nodes[0].pause();
    let started = Instant::now();
    while !redis.is_open_circuit() {
        let failed = increment(&redis, "x").await;
        assert_eq!(failed, Err(StoreErrorKind::Unavailable));
        assert!(started.elapsed() < Duration::from_secs(20));
    }
    let before = store.stats();
    assert_eq!(
        (before.mode, before.reachable),
        (StoreMode::Fallback, false)
    );
    assert!(before.errors >= 1);
    let call = redis.script(&INCREMENT, &[key(&redis, "x", "n")]);
    let refused = call.run(Reply::int).await.unwrap_err();
    assert_eq!(refused.kind(), StoreErrorKind::Unavailable);
    assert!(refused.retry_after_secs() >= 1);
    assert_eq!(store.stats().fallbacks - before.fallbacks, 1);
    assert_eq!(redis.commands(), 0);
    cluster.nodes[0].resume();
    until_done(&redis, "x").await;
    assert_eq!(store.mode(), StoreMode::Redis);
}

#[tokio::test]
async fn a_cluster_that_is_too_far_for_every_caller_is_joined_all_the_same() {
    let cluster = RedisCluster::start(1, false).await;
    let proxy = Proxy::before(cluster.nodes[0].address()).await;
    proxy.delay(Duration::from_millis(60));
    let url = format!("redis+cluster://{}", proxy.address());
    let store = RedisStore::connect(&url).await.unwrap();
    let key = key(&store, "x", "n");
    let started = Instant::now();
    loop {
        // Less than a greeting through the proxy and the map take.
        let call = store.script(&INCREMENT, &[&key]);
        let call = call.timeout(Duration::from_millis(50));
        if call.run(Reply::int).await.is_ok() {
            break;
        }
        assert!(started.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(proxy.connections(), 1, "one connection for all of them");
}

#[tokio::test]
async fn a_cluster_answers_what_any_node_may_answer_while_one_is_away() {
    let mut cluster = RedisCluster::start(2, false).await;
    cluster.set("cluster-require-full-coverage", "no").await;
    let redis = cluster.store(&clock()).await;
    let store = Fallback::new(redis.clone(), MemoryStore::new());
    redis.ping().await.unwrap();
    cluster.nodes[0].kill();
    let started = Instant::now();
    while redis.ping().await.is_err() {
        assert!(started.elapsed() < Duration::from_secs(20));
    }
    redis.publish("news", &"x".into()).await.unwrap();
    assert!(redis.is_open_circuit());
    assert_eq!(store.mode(), StoreMode::Redis, "the other one serves");
}

#[tokio::test]
async fn nodes_whose_hosts_nobody_tells_are_on_the_host_of_the_teller() {
    if is_redis_6() {
        // It always tells hosts, and has no such setting.
        return;
    }
    let cluster = RedisCluster::start(2, false).await;
    for unknown in ["unknown-endpoint", "hostname"] {
        cluster.set("cluster-preferred-endpoint-type", "ip").await;
        let store = cluster.store(&clock()).await;
        let key = key(&store, "moving", "n");
        assert_eq!(until_done(&store, "moving").await.0, 1);
        cluster
            .set("cluster-preferred-endpoint-type", unknown)
            .await;
        let (slot, from) = cluster.home(&key).await;
        cluster.move_slot(slot, from, 1 - from).await;
        assert_eq!(increment(&store, "moving").await, Ok(2), "{unknown}");
        let other = cluster.store(&clock()).await;
        for tag in 0..20 {
            assert_eq!(
                increment(&other, &tag.to_string()).await,
                Ok(1),
                "{unknown}"
            );
        }
        cluster.move_slot(slot, 1 - from, from).await;
    }
}

#[tokio::test]
async fn a_call_whose_keys_stay_apart_is_not_sent_after_its_time() {
    let cluster = RedisCluster::start(2, false).await;
    let store = cluster.store(&clock()).await;
    let keys = ["a", "b"].map(|name| key(&store, "moving", name));
    let call = store.script(&BOTH, &keys);
    assert_eq!(call.run(Reply::int).await.unwrap(), 1);
    let (slot, from) = cluster.home(&keys[0]).await;
    cluster.half_move_slot(slot, from, 1 - from, &keys[0]).await;
    let started = Instant::now();
    let mut in_a_row = 0;
    // Each may run out while it is asked for the last time, on a busy machine; not all of them.
    while in_a_row < 5 {
        let call = store
            .script(&BOTH, &keys)
            .timeout(Duration::from_millis(95));
        let refused = call.run(Reply::int).await.unwrap_err();
        in_a_row = match refused.kind() {
            StoreErrorKind::Unavailable => in_a_row + 1,
            _ => 0,
        };
        assert!(started.elapsed() < Duration::from_secs(20));
    }
}
