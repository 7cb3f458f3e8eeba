//! Redis killed, restarted, slowed, cut and full, in each failure mode: every request gets an answer, at most one charge.

use std::sync::atomic::AtomicBool;

use tower_keep::backend::redis::RedisStore;
use tower_keep::core::StoreFailure;
use tower_keep::rate_limit::store::Refunded;
use tower_keep::rate_limit::{Attempt, Decision, RateLimiter};

use super::deny::refused_for_free;
use super::*;
use crate::support::RedisServer;
use crate::support::proxy::Proxy;

const MODES: [StoreFailure; 3] = [
    StoreFailure::Open,
    StoreFailure::Closed,
    StoreFailure::Local,
];

async fn handle(proxy: &Proxy, prefix: &str) -> RedisStore {
    let url = format!("redis://{}/", proxy.address());
    let builder = RedisStore::builder(&url).prefix(prefix);
    builder.open().await.unwrap()
}

fn nine_a_minute(store: &RedisStore, mode: StoreFailure) -> RateLimitLayer {
    RateLimitLayer::new(store.clone())
        .limit(Quota::per_minute(9), Partition::global())
        .on_store_failure(mode)
        .timeout(PATIENCE)
}

/// What a mode answers while the store is away: status, and whether there are fields.
#[track_caller]
fn stands_in(mode: StoreFailure, answer: &Answer) {
    let (status, fields) = match mode {
        StoreFailure::Open => (StatusCode::OK, false),
        StoreFailure::Closed => (StatusCode::SERVICE_UNAVAILABLE, false),
        StoreFailure::Local => (StatusCode::OK, true),
    };
    let told = answer.field("ratelimit").is_some();
    assert_eq!((answer.status, told), (status, fields), "{mode:?}");
}

/// Waits until notices arrive, which come by the same way: the next reply is then that to the next call.
async fn hears(store: &RedisStore) {
    let full = RateLimitLayer::new(store.clone()).group("full");
    let full = full.limit(Quota::per_minute(1), Partition::global());
    let full = App::new(full.timeout(PATIENCE));
    full.get("", "192.0.2.1").await;
    refused_for_free(store, async || full.get("", "192.0.2.1").await).await;
}

#[tokio::test]
async fn a_refund_whose_reply_is_lost_gives_back_its_own_units_and_no_others() {
    let server = RedisServer::start().await;
    let quotas = [
        (Quota::per_hour(9), Ok(Refunded::TooLate)),
        (Quota::per_hour(2_000), Err(())),
        (Quota::per_hour(9).gcra(9), Err(())),
        (Quota::per_hour(9).fixed(), Err(())),
    ];
    for (index, (quota, answered)) in quotas.into_iter().enumerate() {
        let proxy = Proxy::before(server.address()).await;
        let store = handle(&proxy, &format!("refund{index}")).await;
        let limiter = RateLimiter::new(store.clone()).timeout(PATIENCE);
        let limiter = limiter.limit(quota, Partition::global());
        let charge = async || {
            let attempt = Attempt::new().on("global", ());
            match limiter.check_and_record(attempt).await.unwrap() {
                Decision::Allowed(grant) => grant,
                Decision::Denied(denial) => panic!("{denial:?}"),
            }
        };
        let (grant, _other) = (charge().await, charge().await);
        // The server knows the script by now: a refund is one reply.
        limiter.refund(charge().await).await.unwrap();
        hears(&store).await;
        proxy.cut_at_next_reply();
        let refunded = limiter.refund(grant).await.map_err(drop);
        assert_eq!(refunded, answered, "{quota:?}");
        let status = limiter.peek("global", ()).await.unwrap();
        assert_eq!(status.attempts, 1, "{quota:?}");
    }
}

#[tokio::test]
async fn a_reply_that_is_cut_off_leaves_one_charge_and_the_mode_answers() {
    let server = RedisServer::start().await;
    for (index, mode) in MODES.into_iter().enumerate() {
        let proxy = Proxy::before(server.address()).await;
        let store = handle(&proxy, &format!("cut{index}")).await;
        let layer = nine_a_minute(&store, mode);
        let app = App::new(layer.clone());
        assert_eq!(app.get("", "192.0.2.1").await.status, StatusCode::OK);
        hears(&store).await;
        proxy.cut_at_next_reply();
        stands_in(mode, &app.get("", "192.0.2.1").await);
        let status = layer.limiter().peek("global", ()).await.unwrap();
        assert_eq!(status.attempts, 2, "{mode:?}: sent once, executed once");
    }
}

#[tokio::test]
async fn a_slow_redis_costs_five_timeouts_and_then_nobody_waits() {
    let server = RedisServer::start().await;
    for (index, mode) in MODES.into_iter().enumerate() {
        let proxy = Proxy::before(server.address()).await;
        let store = handle(&proxy, &format!("slow{index}")).await;
        let app = App::new(nine_a_minute(&store, mode));
        app.get("", "192.0.2.1").await;
        let hasty = nine_a_minute(&store, mode).timeout(Duration::from_millis(20));
        let app = App::new(hasty);
        proxy.delay(Duration::from_millis(200));
        for _ in 0..5 {
            stands_in(mode, &app.get("", "192.0.2.1").await);
        }
        assert!(store.is_open_circuit(), "{mode:?}");
        let sent = store.commands();
        for _ in 0..3 {
            stands_in(mode, &app.get("", "192.0.2.1").await);
        }
        assert_eq!(store.commands(), sent, "{mode:?}");
    }
}

#[tokio::test]
async fn a_redis_without_memory_charges_nothing_and_the_mode_answers_until_there_is_room() {
    let server = RedisServer::start().await;
    let mut raw = server.raw().await;
    for (index, mode) in MODES.into_iter().enumerate() {
        let store = server.store_with(&format!("full{index}")).await;
        let layer = nine_a_minute(&store, mode);
        let app = App::new(layer.clone());
        app.get("", "192.0.2.1").await;
        let mut limit = async |bytes: u32| {
            let mut set = redis::cmd("CONFIG");
            set.arg("SET").arg("maxmemory").arg(bytes);
            let _: () = set.query_async(&mut raw).await.unwrap();
        };
        limit(1).await;
        for _ in 0..3 {
            stands_in(mode, &app.get("", "192.0.2.1").await);
        }
        assert!(!store.is_open_circuit(), "it does answer");
        limit(0).await;
        let answer = app.get("", "192.0.2.1").await;
        assert_eq!(
            answer.field("ratelimit").map(|line| line.split(';').nth(1)),
            Some(Some("r=7")),
            "{mode:?}"
        );
    }
}

#[tokio::test]
async fn a_server_that_forgot_its_scripts_is_taught_them_within_the_same_request() {
    let server = RedisServer::start().await;
    let store = server.store_with("scripts").await;
    let app = App::new(nine_a_minute(&store, StoreFailure::Closed));
    app.get("", "192.0.2.1").await;
    let mut raw = server.raw().await;
    let mut flush = redis::cmd("SCRIPT");
    let _: () = flush.arg("FLUSH").query_async(&mut raw).await.unwrap();
    let before = store.commands();
    let answer = app.get("", "192.0.2.1").await;
    assert!(answer.field("ratelimit").unwrap().contains(";r=7;"));
    assert_eq!(store.commands() - before, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_load_a_killed_and_restarted_redis_costs_nobody_a_wrong_answer() {
    let mut server = RedisServer::start().await;
    let store = server.store_with("load").await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut clients = tokio::task::JoinSet::new();
    for mode in MODES {
        for _ in 0..3 {
            let app =
                App::new(nine_a_minute(&store, mode).group(format!("{mode:?}").to_lowercase()));
            let stop = Arc::clone(&stop);
            clients.spawn(async move {
                let mut statuses = std::collections::BTreeMap::<u16, u32>::new();
                while !stop.load(Ordering::SeqCst) {
                    let status = app.get("", "192.0.2.1").await.status.as_u16();
                    *statuses.entry(status).or_default() += 1;
                    tokio::task::yield_now().await;
                }
                (mode, statuses)
            });
        }
    }
    let reached = async |wanted: bool| {
        while store.is_open_circuit() != wanted {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    for _ in 0..2 {
        server.kill();
        reached(true).await;
        server.restart();
        reached(false).await;
    }
    stop.store(true, Ordering::SeqCst);
    for (mode, statuses) in clients.join_all().await {
        let allowed: &[u16] = match mode {
            StoreFailure::Closed => &[200, 429, 503],
            _ => &[200, 429],
        };
        assert!(
            statuses.keys().all(|status| allowed.contains(status)),
            "{mode:?}: {statuses:?}"
        );
    }
    // The data is gone with the server: the count begins anew, and is right.
    for mode in MODES {
        let group = format!("{mode:?}").to_lowercase();
        let limiter = nine_a_minute(&store, mode).group(group).limiter();
        let status = limiter.peek("global", ()).await.unwrap();
        assert!(status.attempts <= 9, "{mode:?}: {status:?}");
        assert_eq!(status.attempts + status.remaining, 9);
    }
}
