//! The Redis backend against a real server: what is sent, what a failure means, how it comes back.

use std::time::Duration;

use tower_keep::backend::redis::{RedisStore, Reply, Script};
use tower_keep::core::{ManualClock, StoreErrorKind, Timestamp};
use tower_keep::data::counter::Counter;
use tower_keep::ttl::METRIC;

use crate::support::redis::{fresh_prefix, shared};
use crate::support::{Proxy, RedisServer};

static INCREMENT: Script = Script::new("return redis.call('INCR', KEYS[1])");
static TWO_KINDS: Script = Script::new(
    "redis.call('HSET', KEYS[1], 'f', 'v') redis.call('ZADD', KEYS[2], '1700000000000001', 'm') return 1",
);
static NOW: Script = Script::new("return string.format('%.0f', now)");
static ECHO: Script = Script::new("return ARGV[2]");
static WRONG: Script =
    Script::new("redis.call('SET', KEYS[1], 'x') return redis.call('LPUSH', KEYS[1], 'y')");
static FILL: Script = Script::new("return redis.call('SET', KEYS[1], ARGV[2])");

/// What a replica says to a script before Redis 7, as the error of the script.
static READ_ONLY: Script = Script::new(
    "return redis.error_reply('ERR Error running script (call to f_abc): @user_script:1: \
     @user_script: 1: -READONLY You can\\'t write against a read only replica.')",
);

async fn increment(store: &RedisStore) -> Result<i64, StoreErrorKind> {
    let key = store.key("count").finish();
    store
        .script(&INCREMENT, &[key])
        .run(Reply::int)
        .await
        .map_err(|error| error.kind())
}

/// A handle that reaches its server through `proxy`.
async fn behind(proxy: &Proxy, timeout_ms: u64) -> RedisStore {
    RedisStore::builder(&format!("redis://{}/", proxy.address()))
        .timeout(Duration::from_millis(timeout_ms))
        .open()
        .await
        .unwrap()
}

#[tokio::test]
async fn a_script_is_sent_once_and_loaded_when_the_server_forgot_it() {
    let server = RedisServer::start().await;
    let store = server.store_with("a").await;
    assert_eq!(increment(&store).await, Ok(1));
    assert_eq!(store.commands(), 2);
    assert_eq!(increment(&store).await, Ok(2));
    assert_eq!(store.commands(), 3);
    let mut raw = server.raw().await;
    let _: () = redis::cmd("SCRIPT")
        .arg("FLUSH")
        .query_async(&mut raw)
        .await
        .unwrap();
    assert_eq!(increment(&store).await, Ok(3));
    assert_eq!(store.commands(), 5);
}

#[tokio::test]
async fn a_passed_clock_reaches_the_script_and_without_one_the_server_rules() {
    let clock = ManualClock::at(Timestamp::from_millis(7_000));
    let ask = async |store: RedisStore| store.script(&NOW, &["k"]).run(Reply::int).await.unwrap();
    assert_eq!(ask(shared().await.store(&clock).await).await, 7_000_000);
    let by_server = ask(shared().await.store_with("b").await).await;
    assert!(by_server > 1_700_000_000_000_000);
}

#[tokio::test]
async fn a_command_of_no_words_is_refused_and_nobody_has_anothers_answer() {
    let store = shared().await.store_with(&fresh_prefix()).await;
    let key = store.key("t").tag(["a"]).finish();
    let look = || store.look("test.look", &key);
    let asked = look().command([]).timeout(Duration::from_millis(100)).ask();
    assert_eq!(asked.await.unwrap_err().kind(), StoreErrorKind::Failed);
    for word in ["one", "two", "three"] {
        let (_, answers) = look().command(["ECHO", word]).ask().await.unwrap().unwrap();
        assert_eq!(answers.collect::<Vec<_>>(), [Reply::Bytes(word.into())]);
    }
}

#[tokio::test]
async fn a_look_is_answered_alike_in_both_versions_of_the_protocol() {
    let url = shared().await.tcp_url();
    for version in ["", "?protocol=resp3"] {
        let builder = RedisStore::builder(&format!("{url}{version}"));
        let store = builder.prefix("looked").open().await.unwrap();
        let key = |name| store.key("t").tag(["a"]).plain(name).finish();
        let (hash, scores, text) = (key("hash"), key("scores"), key("text"));
        let fill = store.script(&TWO_KINDS, &[&hash, &scores]);
        fill.run(|_| Ok(())).await.unwrap();
        let look = store.look("test.look", &hash).command(["HGETALL", &hash]);
        let look = look.command(["ZMSCORE", &scores, "m", "none"]);
        let look = look.command(["GETEX", &text]);
        let (now, answers) = look.ask().await.unwrap().unwrap();
        assert!(now > 1_700_000_000_000_000);
        let text = |text: &'static str| Reply::Bytes(text.into());
        let expected = [
            Reply::Array(vec![text("f"), text("v")]),
            Reply::Array(vec![text("1700000000000001"), Reply::Nil]),
            Reply::Nil,
        ];
        assert_eq!(answers.collect::<Vec<_>>(), expected, "{version}");
    }
}

#[tokio::test]
async fn a_call_whose_time_was_used_up_by_the_question_before_it_sends_nothing() {
    let server = RedisServer::start().await;
    let store = server.store_with("late").await;
    assert_eq!(increment(&store).await, Ok(1));
    let (sent, now) = (store.commands(), tokio::time::Instant::now());
    let called = async |ago| {
        let call = store.script(&INCREMENT, &[store.key("count").finish()]);
        let call = call.since(now.checked_sub(ago).unwrap());
        call.run(Reply::int).await.map_err(|error| error.kind())
    };
    let late = called(store.timeout()).await;
    assert_eq!(late, Err(StoreErrorKind::TimedOut));
    assert_eq!(store.commands(), sent);
    // One that has little left is no call of somebody impatient: nothing is known of the server.
    assert!(!store.is_open_circuit());
    let call = store.script(&INCREMENT, &[store.key("count").finish()]);
    let call = call.timeout(Duration::from_secs(60)).since(now);
    assert_eq!(call.run(Reply::int).await.unwrap(), 2);
}

#[tokio::test]
async fn bytes_of_any_kind_come_back_as_they_were() {
    let store = shared().await.store_with("bytes").await;
    let all: Vec<u8> = (0..=255).collect();
    let back = store
        .script(&ECHO, &["k"])
        .arg(&all)
        .run(Reply::bytes)
        .await
        .unwrap();
    assert_eq!(back, all);
}

#[tokio::test]
async fn a_dead_server_is_unavailable_then_refused_without_a_command_and_comes_back_by_itself() {
    let mut server = RedisServer::start().await;
    let store = server.store_with("c").await;
    increment(&store).await.unwrap();
    server.kill();
    for _ in 0..5 {
        assert_eq!(increment(&store).await, Err(StoreErrorKind::Unavailable));
    }
    assert!(store.is_open_circuit());
    let sent = store.commands();
    let key = store.key("count").finish();
    let refused = store
        .script(&INCREMENT, &[key])
        .run(Reply::int)
        .await
        .unwrap_err();
    assert_eq!(
        (refused.kind(), refused.retry_after_secs()),
        (StoreErrorKind::Unavailable, 1)
    );
    assert_eq!(store.commands(), sent);
    server.restart();
    until_back(&store).await;
    assert!(!store.is_open_circuit());
}

/// The breaker's pauses run in real time: asks until the next probe went through.
async fn until_back(store: &RedisStore) {
    let asking = async {
        while increment(store).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), asking)
        .await
        .expect("the handle comes back");
}

#[tokio::test]
async fn a_handle_opens_while_the_server_is_away_and_joins_it() {
    let mut server = RedisServer::start().await;
    server.kill();
    let store = server.store_with("d").await;
    assert_eq!(increment(&store).await, Err(StoreErrorKind::Unavailable));
    server.restart();
    until_back(&store).await;
}

#[tokio::test]
async fn a_frozen_server_times_out_and_is_used_again_when_it_thaws() {
    let server = RedisServer::start().await;
    let store = RedisStore::builder(&server.url())
        .timeout(Duration::from_millis(300))
        .open()
        .await
        .unwrap();
    increment(&store).await.unwrap();
    server.pause();
    assert_eq!(increment(&store).await, Err(StoreErrorKind::TimedOut));
    server.resume();
    until_back(&store).await;
}

#[tokio::test]
async fn a_call_whose_reply_was_lost_is_not_sent_again() {
    let server = RedisServer::start().await;
    let proxy = Proxy::before(server.address()).await;
    let store = behind(&proxy, 400).await;
    increment(&store).await.unwrap();
    proxy.swallow_replies(true);
    assert_eq!(increment(&store).await, Err(StoreErrorKind::TimedOut));
    proxy.swallow_replies(false);
    proxy.cut();
    let direct = RedisStore::connect(&server.url()).await.unwrap();
    assert_eq!(increment(&direct).await, Ok(3));
    until_back(&store).await;
}

#[tokio::test]
async fn a_silently_cut_link_is_given_up_by_the_probe() {
    let server = RedisServer::start().await;
    let proxy = Proxy::before(server.address()).await;
    let store = behind(&proxy, 250).await;
    increment(&store).await.unwrap();
    proxy.swallow_replies(true);
    for _ in 0..6 {
        increment(&store).await.unwrap_err();
    }
    proxy.swallow_replies(false);
    until_back(&store).await;
}

#[tokio::test]
async fn dropped_calls_leave_the_handle_usable() {
    let store = shared().await.store_with("e").await;
    for turn in 0..200_u64 {
        let call = tokio::time::timeout(Duration::from_micros(turn), increment(&store));
        let _ = call.await;
    }
    let before = increment(&store).await.unwrap();
    assert_eq!(increment(&store).await, Ok(before + 1));
}

#[tokio::test]
async fn what_the_server_refuses_is_a_failure_that_leaves_the_breaker_alone() {
    let store = shared().await.store_with("f").await;
    for _ in 0..10 {
        let key = store.key("x").finish();
        let refused = store
            .script(&WRONG, &[key])
            .run(Reply::int)
            .await
            .unwrap_err();
        assert_eq!(refused.kind(), StoreErrorKind::Failed);
    }
    assert!(!store.is_open_circuit());
    let wrong_reply = store
        .script(&ECHO, &["k"])
        .arg("x")
        .run(Reply::int)
        .await
        .unwrap_err();
    assert_eq!(wrong_reply.kind(), StoreErrorKind::Failed);
}

#[tokio::test]
async fn a_server_without_memory_is_full() {
    let server = RedisServer::start_with(&[
        "--save",
        "",
        "--maxmemory",
        "2mb",
        "--maxmemory-policy",
        "noeviction",
    ])
    .await;
    let store = server.store_with("g").await;
    let (mut outcome, block) = (Ok(()), vec![b'x'; 200_000]);
    for n in 0..40 {
        let key = store.key("fill").plain(n).finish();
        outcome = store
            .script(&FILL, &[key])
            .arg(&block)
            .run(|_| Ok(()))
            .await
            .map_err(|error| error.kind());
        if outcome.is_err() {
            break;
        }
    }
    assert_eq!(outcome, Err(StoreErrorKind::Full));
    assert!(!store.is_open_circuit());
}

#[tokio::test]
async fn databases_and_prefixes_keep_handles_apart() {
    let server = shared().await;
    let first = RedisStore::builder(&format!("{}?db=1", server.url()))
        .open()
        .await
        .unwrap();
    let second = RedisStore::builder(&format!("{}?db=2", server.url()))
        .open()
        .await
        .unwrap();
    assert_eq!(
        (increment(&first).await, increment(&second).await),
        (Ok(1), Ok(1))
    );
    assert_eq!(increment(&server.store_with("other").await).await, Ok(1));
    let refused = RedisStore::builder(&server.url())
        .prefix("a:b")
        .open()
        .await
        .unwrap_err();
    assert_eq!(refused.kind(), StoreErrorKind::Failed);
    assert!(RedisStore::connect("redis://nowhere:port").await.is_err());
}

#[tokio::test]
async fn a_call_cut_between_its_execution_and_its_reply_is_unavailable_and_was_done_once() {
    let server = RedisServer::start().await;
    let proxy = Proxy::before(server.address()).await;
    let store = behind(&proxy, 5_000).await;
    increment(&store).await.unwrap();
    let sent = store.commands();
    proxy.cut_at_next_reply();
    assert_eq!(increment(&store).await, Err(StoreErrorKind::Unavailable));
    assert_eq!(store.commands(), sent + 1);
    assert_eq!(increment(&store).await, Ok(3));
}

#[tokio::test]
async fn calls_that_never_reached_a_connection_are_not_counted_as_sent() {
    let mut server = RedisServer::start().await;
    server.kill();
    let store = server.store_with("a").await;
    for _ in 0..3 {
        assert_eq!(increment(&store).await, Err(StoreErrorKind::Unavailable));
    }
    assert_eq!(store.commands(), 0);
}

#[tokio::test]
async fn calls_that_wait_less_than_connecting_takes_are_connected_in_the_end() {
    let server = RedisServer::start().await;
    let proxy = Proxy::before(server.address()).await;
    proxy.delay(Duration::from_millis(100));
    let store = behind(&proxy, 60).await;
    assert_eq!(increment(&store).await, Err(StoreErrorKind::TimedOut));
    proxy.delay(Duration::ZERO);
    until_back(&store).await;
    assert_eq!(proxy.connections(), 1);
}

#[tokio::test]
async fn callers_that_hang_up_while_connecting_share_one_connection() {
    let server = RedisServer::start().await;
    let proxy = Proxy::before(server.address()).await;
    let store = behind(&proxy, 5_000).await;
    for turn in 0..200_u64 {
        let call = tokio::time::timeout(Duration::from_micros(turn), increment(&store));
        let _ = call.await;
    }
    let (a, b) = tokio::join!(increment(&store), increment(&store));
    assert!(a.is_ok() && b.is_ok());
    assert_eq!(proxy.connections(), 1);
}

#[tokio::test]
async fn the_first_probe_after_a_silent_cut_takes_a_new_connection() {
    let server = RedisServer::start().await;
    let proxy = Proxy::before(server.address()).await;
    let store = behind(&proxy, 250).await;
    increment(&store).await.unwrap();
    proxy.freeze();
    let calls = (0..5).map(|_| increment(&store));
    let answers = futures_util::future::join_all(calls).await;
    assert_eq!(answers, [Err(StoreErrorKind::TimedOut); 5]);
    assert!(store.is_open_circuit());
    let sent = store.commands();
    until_back(&store).await;
    assert_eq!((store.commands(), proxy.connections()), (sent + 1, 2));
}

#[tokio::test]
async fn a_silently_cut_link_costs_one_call_where_calls_are_rare() {
    let server = RedisServer::start().await;
    let proxy = Proxy::before(server.address()).await;
    let store = behind(&proxy, 250).await;
    for expected in [1, 2, 3] {
        assert_eq!(increment(&store).await, Ok(expected));
        proxy.freeze();
        assert_eq!(increment(&store).await, Err(StoreErrorKind::TimedOut));
    }
    assert_eq!(proxy.connections(), 3);
}

#[tokio::test]
async fn calls_that_fail_late_on_a_link_that_was_given_up_say_nothing_of_its_successor() {
    let server = RedisServer::start().await;
    let proxy = Proxy::before(server.address()).await;
    let store = behind(&proxy, 250).await;
    increment(&store).await.unwrap();
    proxy.freeze();
    let late: Vec<_> = (0..5)
        .map(|_| {
            let key = store.key("count").finish();
            let call = store.script(&INCREMENT, &[key]);
            let call = call.timeout(Duration::from_secs(4)).run(Reply::int);
            tokio::spawn(async move { call.await.map_err(|error| error.kind()) })
        })
        .collect();
    while store.commands() < 2 + late.len() as u64 {
        tokio::task::yield_now().await;
    }
    let calls = (0..5).map(|_| increment(&store));
    let answers = futures_util::future::join_all(calls).await;
    assert_eq!(answers, [Err(StoreErrorKind::TimedOut); 5]);
    until_back(&store).await;
    for call in late {
        assert_eq!(call.await.unwrap(), Err(StoreErrorKind::TimedOut));
    }
    assert!(!store.is_open_circuit());
    increment(&store).await.unwrap();
    assert_eq!(proxy.connections(), 2);
}

#[tokio::test]
async fn one_cut_that_many_calls_meet_is_one_failure() {
    let server = RedisServer::start().await;
    let proxy = Proxy::before(server.address()).await;
    let store = behind(&proxy, 10_000).await;
    increment(&store).await.unwrap();
    for round in 1..=2 {
        proxy.swallow_replies(true);
        let (sent, passed) = (store.commands(), proxy.requests());
        let calls: Vec<_> = (0..20)
            .map(|_| {
                let store = store.clone();
                tokio::spawn(async move { increment(&store).await })
            })
            .collect();
        while store.commands() < sent + 20 || proxy.requests() == passed {
            tokio::task::yield_now().await;
        }
        proxy.cut();
        for call in calls {
            assert_eq!(call.await.unwrap(), Err(StoreErrorKind::Unavailable));
        }
        proxy.swallow_replies(false);
        increment(&store).await.unwrap();
        assert_eq!(proxy.connections(), 1 + round);
    }
}

#[tokio::test]
async fn restarts_leave_no_task_behind() {
    let mut server = RedisServer::start().await;
    let store = server.store_with("a").await;
    let tasks = || {
        tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks()
    };
    increment(&store).await.unwrap();
    let before = tasks();
    for _ in 0..5 {
        server.kill();
        assert_eq!(increment(&store).await, Err(StoreErrorKind::Unavailable));
        server.restart();
        assert_eq!(increment(&store).await, Ok(1));
    }
    let ended = async {
        while tasks() > before {
            tokio::task::yield_now().await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(10), ended).await;
    waited.expect("the tasks of lost connections end");
}

#[tokio::test]
async fn a_server_that_may_not_write_is_unavailable_and_asked_again_on_a_new_connection() {
    let server = RedisServer::start_with(&["--replicaof", "127.0.0.1", "1"]).await;
    let proxy = Proxy::before(server.address()).await;
    let store = behind(&proxy, 5_000).await;
    assert_eq!(increment(&store).await, Err(StoreErrorKind::Unavailable));
    let _: () = redis::cmd("REPLICAOF")
        .arg(&["NO", "ONE"])
        .query_async(&mut server.raw().await)
        .await
        .unwrap();
    assert_eq!(increment(&store).await, Ok(1));
    assert_eq!(proxy.connections(), 2);
}

#[tokio::test]
async fn concurrent_calls_on_one_connection_do_not_wait_for_each_others_replies() {
    let server = RedisServer::start().await;
    let proxy = Proxy::before(server.address()).await;
    let store = behind(&proxy, 5_000).await;
    increment(&store).await.unwrap();
    let before = proxy.round_trips();
    let calls = (0..100).map(|_| increment(&store));
    let answers = futures_util::future::join_all(calls).await;
    assert!(answers.iter().all(Result::is_ok));
    assert!(proxy.round_trips() - before < 100);
}

#[tokio::test]
async fn clones_share_a_breaker_and_handles_have_their_own() {
    let server = RedisServer::start().await;
    let proxy = Proxy::before(server.address()).await;
    let (cut_off, other) = (behind(&proxy, 5_000).await, server.store_with("a").await);
    proxy.refuse(true);
    for _ in 0..5 {
        assert_eq!(increment(&cut_off).await, Err(StoreErrorKind::Unavailable));
    }
    assert!(cut_off.clone().is_open_circuit());
    assert!(!other.is_open_circuit());
    assert_eq!(increment(&other).await, Ok(1));
    proxy.refuse(false);
    cut_off.ping().await.unwrap_err();
    until_back(&cut_off.clone()).await;
    cut_off.ping().await.unwrap();
}

#[tokio::test]
async fn a_call_may_wait_less_than_its_handle() {
    let server = RedisServer::start().await;
    let store = RedisStore::builder(&server.url())
        .timeout(Duration::from_secs(600))
        .open()
        .await
        .unwrap();
    increment(&store).await.unwrap();
    server.pause();
    let call = store
        .script(&ECHO, &["k"])
        .arg("x")
        .timeout(Duration::from_millis(30));
    let late = call.run(Reply::bytes).await.unwrap_err();
    assert_eq!(late.kind(), StoreErrorKind::TimedOut);
    server.resume();
    assert_eq!(increment(&store).await, Ok(2));
}

#[tokio::test]
async fn a_probe_whose_caller_hung_up_does_not_keep_the_breaker_open() {
    let server = RedisServer::start().await;
    let store = RedisStore::builder(&server.url())
        .timeout(Duration::from_millis(200))
        .open()
        .await
        .unwrap();
    server.pause();
    for _ in 0..5 {
        assert_eq!(increment(&store).await, Err(StoreErrorKind::TimedOut));
    }
    // A refusal comes at once; the call that does not end at once is the probe, and is dropped here.
    let patience = Duration::from_millis(20);
    while tokio::time::timeout(patience, increment(&store))
        .await
        .is_ok()
    {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    server.resume();
    until_back(&store).await;
}

#[tokio::test]
async fn an_address_that_leads_nowhere_times_out_and_is_not_waited_for_longer() {
    let server = RedisServer::start().await;
    server.pause();
    // The kernel accepts for a frozen server: connected, and never greeted.
    let store = RedisStore::builder(&server.tcp_url())
        .timeout(Duration::from_millis(50))
        .open()
        .await
        .unwrap();
    let calls = (0..20).map(|_| increment(&store));
    let answers = futures_util::future::join_all(calls).await;
    assert!(
        answers
            .iter()
            .all(|answer| *answer == Err(StoreErrorKind::TimedOut))
    );
    assert_eq!(store.commands(), 0);
    server.resume();
    until_back(&store).await;
}

#[tokio::test]
async fn a_connection_that_broke_while_nobody_used_it_costs_no_call() {
    let mut server = RedisServer::start().await;
    let store = server.store_with("a").await;
    let tasks = || {
        tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks()
    };
    increment(&store).await.unwrap();
    let connected = tasks();
    server.restart();
    let noticed = async {
        while tasks() == connected {
            tokio::task::yield_now().await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(10), noticed).await;
    waited.expect("the end of the connection is noticed");
    assert_eq!(increment(&store).await, Ok(1));
}

#[tokio::test]
async fn a_server_that_is_slow_to_greet_is_joined_again_over_two_probes() {
    let server = RedisServer::start().await;
    let proxy = Proxy::before(server.address()).await;
    let store = behind(&proxy, 300).await;
    increment(&store).await.unwrap();
    proxy.refuse(true);
    while !store.is_open_circuit() {
        increment(&store).await.unwrap_err();
    }
    // Far enough for a call, too far for a greeting and a call.
    proxy.refuse(false);
    proxy.delay(Duration::from_millis(180));
    until_back(&store).await;
    assert_eq!(proxy.connections(), 2);
}

/// A call that waits for 20 ms only.
async fn hasty(store: &RedisStore) -> Result<bytes::Bytes, StoreErrorKind> {
    let call = store.script(&ECHO, &["k"]).arg("x");
    let call = call.timeout(Duration::from_millis(20)).run(Reply::bytes);
    call.await.map_err(|error| error.kind())
}

#[tokio::test]
async fn those_who_wait_less_are_refused_alone_where_the_server_is_too_slow_for_them() {
    let server = RedisServer::start().await;
    let proxy = Proxy::before(server.address()).await;
    let store = behind(&proxy, 10_000).await;
    increment(&store).await.unwrap();
    proxy.delay(Duration::from_millis(60));
    for _ in 0..5 {
        assert_eq!(hasty(&store).await, Err(StoreErrorKind::TimedOut));
    }
    let (sent, refused) = (store.commands(), store.stats().fallbacks);
    for _ in 0..5 {
        assert_eq!(hasty(&store).await, Err(StoreErrorKind::Unavailable));
    }
    assert_eq!(store.stats().fallbacks - refused, 5);
    assert_eq!(store.commands(), sent);
    for expected in 2..6 {
        assert_eq!(increment(&store).await, Ok(expected));
    }
    assert_eq!(proxy.connections(), 1, "a slow link is kept");
    // An answer that would have been soon enough for them opens the door.
    proxy.delay(Duration::ZERO);
    let welcome = async {
        while hasty(&store).await.is_err() {
            increment(&store).await.unwrap();
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(20), welcome).await;
    waited.expect("the hasty are let in again");
}

#[tokio::test]
async fn a_probe_of_one_who_waits_less_is_carried_on_to_the_handles_timeout() {
    let server = RedisServer::start().await;
    let proxy = Proxy::before(server.address()).await;
    let store = behind(&proxy, 10_000).await;
    increment(&store).await.unwrap();
    proxy.refuse(true);
    for _ in 0..5 {
        assert_eq!(increment(&store).await, Err(StoreErrorKind::Unavailable));
    }
    proxy.refuse(false);
    proxy.delay(Duration::from_millis(60));
    // Only the hasty ask, and never hear an answer: the others find the door open all the same.
    let asking = async {
        loop {
            let _ = hasty(&store).await;
            tokio::time::sleep(Duration::from_millis(5)).await;
            if proxy.connections() > 1 && increment(&store).await.is_ok() {
                break;
            }
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(20), asking).await;
    waited.expect("what the probe learned counts for all");
}

#[tokio::test]
async fn callers_who_hang_up_before_the_timeout_hide_no_outage() {
    let server = RedisServer::start().await;
    let proxy = Proxy::before(server.address()).await;
    let store = behind(&proxy, 400).await;
    increment(&store).await.unwrap();
    proxy.freeze();
    let patience = Duration::from_millis(200);
    let asking = async {
        while !matches!(
            tokio::time::timeout(patience, increment(&store)).await,
            Ok(Ok(_))
        ) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(20), asking).await;
    waited.expect("a new connection is made");
    assert_eq!(proxy.connections(), 2);
}

#[tokio::test]
async fn callers_who_hang_up_on_a_healthy_server_shut_no_door() {
    let server = RedisServer::start().await;
    let proxy = Proxy::before(server.address()).await;
    let store = behind(&proxy, 10_000).await;
    increment(&store).await.unwrap();
    proxy.delay(Duration::from_millis(1_200));
    let calls =
        (0..20).map(|_| tokio::time::timeout(Duration::from_millis(1_050), increment(&store)));
    let answers = futures_util::future::join_all(calls).await;
    assert!(answers.iter().all(Result::is_err), "all have hung up");
    proxy.delay(Duration::ZERO);
    assert!(increment(&store).await.is_ok());
    assert!(!store.is_open_circuit());
}

#[tokio::test]
async fn a_script_that_may_not_write_says_so_before_redis_7_too() {
    let server = RedisServer::start().await;
    let proxy = Proxy::before(server.address()).await;
    let store = behind(&proxy, 5_000).await;
    let refused = store.script(&READ_ONLY, &["k"]).run(Reply::int).await;
    assert_eq!(refused.unwrap_err().kind(), StoreErrorKind::Unavailable);
    assert_eq!(increment(&store).await, Ok(1));
    assert_eq!(proxy.connections(), 2, "the name may lead elsewhere by now");
}

#[tokio::test]
async fn a_door_that_is_not_passed_is_no_answer() {
    let server = RedisServer::start().await;
    // The server has 16 databases.
    let url = format!("{}?db=99", server.url());
    let store = RedisStore::connect(&url).await.unwrap();
    for _ in 0..5 {
        assert_eq!(increment(&store).await, Err(StoreErrorKind::Unavailable));
    }
    assert!(store.is_open_circuit());
}

#[test]
fn a_handle_that_was_warmed_in_another_runtime_costs_no_call() {
    let runtime = || tokio::runtime::Runtime::new().unwrap();
    let first = runtime();
    let (_server, store) = first.block_on(async {
        let server = RedisServer::start().await;
        let store = server.store_with("a").await;
        assert_eq!(increment(&store).await, Ok(1));
        (server, store)
    });
    drop(first);
    runtime().block_on(async {
        assert_eq!(increment(&store).await, Ok(2));
    });
}

#[tokio::test]
async fn a_store_opened_by_its_url_waits_as_long_as_it_is_told_for_a_server_that_stands_still() {
    let server = RedisServer::start().await;
    let open = tower_keep::store::builder(&server.url()).timeout(Duration::from_secs(60));
    let store = open.open().await.unwrap();
    let counter = Counter::new(store, "visits");
    assert_eq!(counter.incr("a", 1, METRIC).await.unwrap().value, 1);
    server.pause();
    let counted = tokio::spawn(async move { counter.incr("a", 1, METRIC).await.unwrap().value });
    // Longer than what a store waits that is told nothing.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert!(!counted.is_finished());
    server.resume();
    assert_eq!(counted.await.unwrap(), 2);
}
