//! Notices: who hears what was published, and that a listener always knows whether it may have missed something.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tower_keep::backend::memory::MemoryStore;
use tower_keep::backend::redis::{RedisStore, Script};
use tower_keep::core::{Notice, NoticeCallback, Subscription};
use tracing_subscriber::util::SubscriberInitExt;

use crate::support::redis::{fresh_prefix, shared};
use crate::support::{Proxy, RedisCluster, RedisServer};

static TELL: Script = Script::new("return redis.call('PUBLISH', ARGV[2], ARGV[3])");

fn listener() -> (UnboundedReceiver<Notice>, NoticeCallback) {
    let (sender, heard) = unbounded_channel();
    (heard, Arc::new(move |notice| drop(sender.send(notice))))
}

async fn next(heard: &mut UnboundedReceiver<Notice>) -> Notice {
    let patience = Duration::from_secs(20);
    let notice = tokio::time::timeout(patience, heard.recv()).await;
    notice.expect("a notice comes").expect("somebody tells")
}

async fn join(store: &RedisStore, channel: &str) -> (UnboundedReceiver<Notice>, Subscription) {
    let (mut heard, callback) = listener();
    let subscription = store.subscribe(channel, callback).await.unwrap();
    assert_eq!(next(&mut heard).await, Notice::Restored);
    (heard, subscription)
}

fn payload(text: &str) -> Notice {
    Notice::Payload(Bytes::copy_from_slice(text.as_bytes()))
}

async fn behind(proxy: &Proxy) -> RedisStore {
    let url = format!("redis://{}/", proxy.address());
    RedisStore::connect(&url).await.unwrap()
}

async fn tell(store: &RedisStore, channel: &str, text: &str) {
    let text = Bytes::copy_from_slice(text.as_bytes());
    store.publish(channel, &text).await.unwrap();
}

#[tokio::test]
async fn memory_calls_the_listeners_inside_the_publishing_call_until_they_leave() {
    let store = MemoryStore::new();
    let (mut heard, callback) = listener();
    let subscription = store.subscribe("a", callback).await.unwrap();
    assert_eq!(heard.try_recv(), Ok(Notice::Restored));
    store.publish("a", &Bytes::from_static(b"1"));
    store.publish("b", &Bytes::from_static(b"2"));
    assert_eq!(heard.try_recv(), Ok(payload("1")));
    drop(subscription);
    store.publish("a", &Bytes::from_static(b"3"));
    assert!(heard.try_recv().is_err());
}

#[tokio::test]
async fn redis_tells_every_process_in_order_over_one_connection_each() {
    let server = RedisServer::start().await;
    let prefix = fresh_prefix();
    let (here, there) = (
        server.store_with(&prefix).await,
        server.store_with(&prefix).await,
    );
    let channel = here.channel("a").finish();
    let (mut first, _first) = join(&here, &channel).await;
    let (mut second, _second) = join(&here, &channel).await;
    let (mut third, third_place) = join(&there, &channel).await;
    let (mut other, _other) = join(&there, &here.channel("b").finish()).await;
    for n in 0..100 {
        tell(&here, &channel, &n.to_string()).await;
    }
    for heard in [&mut first, &mut second, &mut third] {
        for n in 0..100 {
            assert_eq!(next(heard).await, payload(&n.to_string()));
        }
    }
    assert!(other.try_recv().is_err());
    let mut raw = server.raw().await;
    let clients: String = redis::cmd("CLIENT")
        .arg(&["LIST", "TYPE", "pubsub"])
        .query_async(&mut raw)
        .await
        .unwrap();
    assert_eq!(clients.lines().count(), 2, "{clients}");
    drop(third_place);
    tell(&here, &channel, "more").await;
    assert_eq!(next(&mut first).await, payload("more"));
    assert!(third.try_recv().is_err());
}

#[tokio::test]
async fn a_script_publishes_in_its_own_step_and_another_database_does_not_hear_it() {
    let server = RedisServer::start().await;
    let here = server.store_with("p").await;
    let url = format!("{}?db=3", server.url());
    let elsewhere = RedisStore::builder(&url).prefix("p").open().await.unwrap();
    let channel = here.channel("a").finish();
    assert_ne!(channel, elsewhere.channel("a").finish());
    let (mut heard, _place) = join(&here, &channel).await;
    let (mut unheard, _elsewhere) = join(&elsewhere, &elsewhere.channel("a").finish()).await;
    let told = here
        .script(&TELL, &["k"])
        .arg(&channel)
        .arg("x")
        .run(|reply| reply.int())
        .await;
    assert_eq!(told.unwrap(), 1);
    assert_eq!(next(&mut heard).await, payload("x"));
    assert!(unheard.try_recv().is_err());
}

#[tokio::test]
async fn a_cut_link_is_told_and_what_comes_after_its_return_is_heard() {
    let server = RedisServer::start().await;
    let proxy = Proxy::before(server.address()).await;
    let store = behind(&proxy).await;
    let channel = store.channel(&fresh_prefix()).finish();
    let (mut heard, _place) = join(&store, &channel).await;
    for round in 0..3 {
        proxy.cut();
        assert_eq!(next(&mut heard).await, Notice::Lost);
        assert_eq!(next(&mut heard).await, Notice::Restored);
        let direct = server.store_with("d").await;
        tell(&direct, &channel, &round.to_string()).await;
        assert_eq!(next(&mut heard).await, payload(&round.to_string()));
    }
}

#[tokio::test]
async fn a_link_that_is_cut_silently_is_noticed_by_an_unanswered_ping() {
    let server = RedisServer::start().await;
    let proxy = Proxy::before(server.address()).await;
    let store = behind(&proxy).await;
    let (mut heard, _place) = join(&store, "a").await;
    proxy.freeze();
    // The clock of the runtime jumps to the next timer whenever nothing else is to do: ping, then its limit.
    tokio::time::pause();
    assert_eq!(heard.recv().await, Some(Notice::Lost));
    tokio::time::resume();
    assert_eq!(next(&mut heard).await, Notice::Restored);
}

#[tokio::test]
async fn a_listener_may_come_while_the_server_is_away_and_is_told_when_it_is_there() {
    let mut server = RedisServer::start().await;
    let store = RedisStore::builder(&server.url())
        .timeout(Duration::from_millis(20))
        .open()
        .await
        .unwrap();
    server.kill();
    let (mut heard, callback) = listener();
    let place = store.subscribe("a", callback).await.unwrap();
    assert!(heard.try_recv().is_err());
    server.restart();
    assert_eq!(next(&mut heard).await, Notice::Restored);
    tell(&server.store_with("d").await, "a", "x").await;
    assert_eq!(next(&mut heard).await, payload("x"));
    drop((place, store));
    assert!(heard.recv().await.is_none(), "the callback is dropped");
}

#[tokio::test]
async fn nobody_listening_costs_no_connection() {
    let store = shared().await.store_with(&fresh_prefix()).await;
    let (heard, place) = join(&store, "z").await;
    drop((heard, place));
    let mut raw = shared().await.raw().await;
    for attempt in 0.. {
        let clients: String = redis::cmd("CLIENT")
            .arg(&["LIST", "TYPE", "pubsub"])
            .query_async(&mut raw)
            .await
            .unwrap();
        if clients.is_empty() {
            break;
        }
        assert!(attempt < 1_000, "{clients}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// How many links the server has that listen.
async fn listening(server: &RedisServer) -> usize {
    let question = redis::cmd("CLIENT")
        .arg(&["LIST", "TYPE", "pubsub"])
        .to_owned();
    let clients: String = question.query_async(&mut server.raw().await).await.unwrap();
    clients.lines().count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn notices_that_nobody_takes_do_not_pile_up() {
    let server = RedisServer::start().await;
    let store = RedisStore::connect(&server.tcp_url()).await.unwrap();
    let (sender, mut heard) = unbounded_channel();
    let ((open, held), is_open) = (mpsc::channel::<()>(), AtomicBool::new(false));
    let held = Mutex::new(held);
    let callback = Arc::new(move |notice| {
        let is_payload = matches!(notice, Notice::Payload(_));
        let _gone = sender.send(notice);
        if is_payload && !is_open.swap(true, Ordering::SeqCst) {
            let _opened = held.lock().unwrap().recv();
        }
    });
    let _place = store.subscribe("a", callback).await.unwrap();
    assert_eq!(next(&mut heard).await, Notice::Restored);
    let direct = RedisStore::builder(&server.tcp_url()).timeout(Duration::from_secs(10));
    let direct = direct.open().await.unwrap();
    let large = "x".repeat(1 << 20);
    const TOLD: usize = 40;
    for _ in 0..TOLD {
        tell(&direct, "a", &large).await;
    }
    let began = Instant::now();
    while listening(&server).await > 0 {
        assert!(began.elapsed() < Duration::from_secs(20), "all are kept");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(open);
    let mut came = 0;
    while next(&mut heard).await != Notice::Lost {
        came += 1;
    }
    assert!(came < TOLD, "{came}");
    assert_eq!(next(&mut heard).await, Notice::Restored);
    tell(&direct, "a", "more").await;
    assert_eq!(next(&mut heard).await, payload("more"));
}

#[tokio::test]
async fn a_channel_that_is_refused_takes_nothing_from_the_others() {
    let server = RedisServer::start().await;
    let mut raw = server.raw().await;
    let mut rule = async |rules: &[&str]| {
        let command = redis::cmd("ACL").arg(&["SETUSER", "default"]).to_owned();
        let _: () = command
            .clone()
            .arg(rules)
            .query_async(&mut raw)
            .await
            .unwrap();
    };
    rule(&["resetchannels", "&b", "&d"]).await;
    let store = RedisStore::builder(&server.url()).timeout(Duration::from_millis(50));
    let store = store.open().await.unwrap();
    let mut all = Vec::new();
    for channel in ["a", "b", "c", "d"] {
        let (heard, callback) = listener();
        all.push((heard, store.subscribe(channel, callback).await.unwrap()));
    }
    let direct = server.store_with("d").await;
    for (index, channel) in [(1, "b"), (3, "d")] {
        assert_eq!(next(&mut all[index].0).await, Notice::Restored);
        tell(&direct, channel, "x").await;
        // The server tells it before it answers.
        assert_eq!(next(&mut all[index].0).await, payload("x"));
    }
    for index in [0, 2] {
        assert!(all[index].0.try_recv().is_err());
    }
    rule(&["allchannels"]).await;
    for index in [0, 2] {
        assert_eq!(next(&mut all[index].0).await, Notice::Restored);
    }
    for (heard, _) in &mut all {
        assert!(heard.try_recv().is_err(), "the link has held");
    }
}

#[tokio::test]
async fn a_node_that_leaves_the_cluster_is_left_by_those_who_listen_there() {
    let cluster = RedisCluster::start(3, false).await;
    let places = [2, 0, 1].map(|node: usize| cluster.nodes[node].address().to_string());
    let url = format!("redis+cluster://{}", places.join(","));
    let store = RedisStore::connect(&url).await.unwrap();
    let (mut heard, _place) = join(&store, "a").await;
    let mut here = None;
    for (index, node) in cluster.nodes.iter().enumerate() {
        if listening(node).await > 0 {
            here = Some(index);
        }
    }
    let left = here.expect("somebody listens");
    cluster.remove(left, (left + 1) % 3).await;
    assert_eq!(next(&mut heard).await, Notice::Lost);
    assert_eq!(next(&mut heard).await, Notice::Restored);
    let url = cluster.nodes[(left + 2) % 3].tcp_url();
    let other = RedisStore::connect(&url).await.unwrap();
    tell(&other, "a", "x").await;
    assert_eq!(next(&mut heard).await, payload("x"));
    assert_eq!(store.commands(), 0);
}

/// What was logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_server_that_refuses_to_tell_is_asked_less_and_less_often_and_the_log_says_why_once() {
    let (log, server) = (Log::default(), RedisServer::start().await);
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::WARN)
        .with_writer(move || writer.clone())
        .finish();
    let _logging = subscriber.set_default();
    let mut raw = server.raw().await;
    let mut rule = async |rule: &str| {
        let command = redis::cmd("ACL")
            .arg(&["SETUSER", "default", rule])
            .to_owned();
        let _: () = command.query_async(&mut raw).await.unwrap();
    };
    rule("resetchannels").await;
    let proxy = Proxy::before(server.address()).await;
    let store = behind(&proxy).await;
    let (mut heard, callback) = listener();
    let began = Instant::now();
    let _place = store.subscribe("a", callback).await.unwrap();
    while proxy.connections() < 6 {
        assert!(began.elapsed() < Duration::from_secs(30));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let least = Duration::from_millis(50 + 100 + 200 + 400 + 800);
    assert!(began.elapsed() >= least, "{:?}", began.elapsed());
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.to_lowercase().contains("no permissions"), "{text}");
    rule("allchannels").await;
    assert_eq!(next(&mut heard).await, Notice::Restored);
}

#[tokio::test]
async fn a_callback_that_panics_costs_no_other_listener_a_notice() {
    let server = RedisServer::start().await;
    let store = server.store_with("p").await;
    let fragile: NoticeCallback = Arc::new(|notice| {
        assert!(!matches!(notice, Notice::Payload(_)), "a listener's fault");
    });
    let _fragile = store.subscribe("a", fragile).await.unwrap();
    let (mut first, _first) = join(&store, "a").await;
    let (mut second, _second) = join(&store, "b").await;
    for text in ["1", "2"] {
        tell(&store, "a", text).await;
        tell(&store, "b", text).await;
        assert_eq!(next(&mut first).await, payload(text));
        assert_eq!(next(&mut second).await, payload(text));
    }
}

#[test]
fn listeners_learn_that_the_runtime_ended_and_the_next_call_on_another_one_brings_notices_back() {
    let runtime = || tokio::runtime::Runtime::new().unwrap();
    let first = runtime();
    let (_server, store, mut heard, _place) = first.block_on(async {
        let server = RedisServer::start().await;
        let store = server.store_with("r").await;
        let (heard, place) = join(&store, "a").await;
        (server, store, heard, place)
    });
    drop(first);
    runtime().block_on(async {
        assert_eq!(next(&mut heard).await, Notice::Lost);
        store.ping().await.unwrap();
        assert_eq!(next(&mut heard).await, Notice::Restored);
        tell(&store, "a", "x").await;
        assert_eq!(next(&mut heard).await, payload("x"));
    });
}
