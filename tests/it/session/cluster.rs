//! Sessions on a Redis Cluster: homes spread over the nodes, and a login that moves from one to another.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tower_keep::conformance::session::{random_sequence, session};
use tower_keep::core::{ManualClock, Timestamp};
use tower_keep::session::{SessionLayer, SessionLimit};

use super::app::{App, Browser, clock};
use crate::rate_limit::metered::Metered;
use crate::support::{RedisCluster, RedisServer};

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_keeps_the_promises_of_a_session_store() {
    let (cluster, clock) = (RedisCluster::start(3, false).await, clock());
    let store = cluster.store(&clock).await;
    session(Arc::new(store.clone()), &clock).await;
    for seed in 1..=5 {
        random_sequence(&store, &clock, seed, 150).await;
    }
}

#[tokio::test]
async fn a_session_that_was_cut_off_does_not_come_back_while_its_slot_moves() {
    let (cluster, clock) = (RedisCluster::start(3, false).await, clock());
    let store = cluster.store(&clock).await;
    let app = App::new(SessionLayer::new(store.clone()));
    let browser = app.browser();
    browser.get("/set/cart/1").await;
    assert_eq!(browser.body("/get/cart").await, "1");
    let old = browser.copy();
    SessionLayer::new(store.clone())
        .directory()
        .revoke_everyone()
        .await
        .unwrap();
    let key = cluster
        .key_like("*:session:{*}:??????????????????????")
        .await;
    let (slot, from) = cluster.home(&key).await;
    // The session has arrived at the other node, the cut-off that ends it has not.
    cluster
        .half_move_slot(slot, from, (from + 1) % 3, &key)
        .await;
    for _ in 0..3 {
        let reply = old.get("/get/cart").await;
        assert!(reply.status == 503 || &*reply.body == "null", "{reply:?}");
    }
}

#[tokio::test]
async fn a_login_moves_the_cart_to_the_home_of_its_user_in_three_calls() {
    let (cluster, clock) = (RedisCluster::start(3, false).await, clock());
    let store = cluster.store(&clock).await;
    let app = App::new(SessionLayer::new(store.clone()).limit(SessionLimit::reject(1)));
    // Each node learns the scripts first.
    for n in 0..60 {
        let browser = app.browser();
        browser.get("/set/cart/1").await;
        assert_eq!(browser.status(&format!("/login/first{n}")).await, 200);
    }
    let mut moved = 0;
    for n in 0..20 {
        let browser = app.browser();
        browser.get(&format!("/set/cart/{n}")).await;
        let before = browser.copy();
        let sent = store.commands();
        let user = format!("u{n}");
        assert_eq!(browser.status(&format!("/login/{user}")).await, 200);
        moved += u32::from(store.commands() - sent == 3);
        assert_eq!(browser.body("/get/cart").await, n.to_string());
        assert_eq!(browser.body("/me").await, user);
        let old = before.get("/get/cart").await;
        assert_eq!((&*old.body, old.removes_cookie()), ("null", false));
        // Refused by the limit: the anonymous session goes on as it was.
        let late = app.browser();
        late.get("/set/cart/7").await;
        assert_eq!(late.status(&format!("/login/{user}")).await, 409);
        assert_eq!(late.body("/get/cart").await, "7");
        assert_eq!(browser.body("/list").await.matches("\"id\"").count(), 1);
    }
    assert!(
        moved >= 18,
        "one home of 1,024 is rarely the other: {moved}"
    );
    let sizes = cluster.sizes().await;
    assert!(sizes.iter().all(|size| *size > 20), "{sizes:?}");
    let layer = SessionLayer::new(store.clone());
    layer.directory().revoke_everyone().await.unwrap();
    assert_eq!(App::new(layer).browser().status("/set/a/1").await, 204);
}

#[tokio::test]
async fn a_frozen_session_answers_superseded_for_five_seconds_and_can_be_ended() {
    let (server, clock) = (RedisServer::start().await, clock());
    let layer = SessionLayer::new(server.store(&clock).await);
    let (directory, app) = (layer.directory(), App::new(layer));
    let browser = app.browser();
    browser.get("/set/cart/1").await;
    browser.get("/login/u1").await;
    let mut raw = server.raw().await;
    freeze(&browser, &clock, &mut raw).await;
    let asked = browser.get("/set/cart/2").await;
    assert_eq!(
        (asked.status.as_u16(), asked.field("set-cookie")),
        (204, String::new())
    );
    assert_eq!(browser.body("/maybe").await, "nobody");
    assert_eq!(directory.list("u1").await.unwrap(), []);
    assert_eq!(directory.assign_roles("u1", ["guest"]).await.unwrap(), 0);
    clock.advance(Duration::from_millis(4_999));
    assert_eq!(browser.body("/maybe").await, "nobody");
    clock.advance(Duration::from_millis(1));
    assert_eq!(browser.body("/get/cart").await, "1");
    assert_eq!(browser.status("/role/guest").await, 204);
    freeze(&browser, &clock, &mut raw).await;
    assert_eq!(directory.revoke_all("u1").await.unwrap(), 1);
    clock.advance(Duration::from_secs(5));
    assert_eq!(browser.body("/maybe").await, "nobody");
    // A logout is done, not put off until the freeze is over.
    browser.get("/login/u1").await;
    freeze(&browser, &clock, &mut raw).await;
    let left = browser.copy();
    assert_eq!(browser.status("/logout").await, 204);
    clock.advance(Duration::from_secs(5));
    assert_eq!(left.body("/maybe").await, "nobody");
    assert_eq!(directory.list("u1").await.unwrap(), []);
}

/// Leaves a browser's session as the first step of a move does.
pub async fn freeze(
    browser: &Browser,
    clock: &ManualClock,
    raw: &mut redis::aio::MultiplexedConnection,
) {
    let key = super::redis::key_of(browser, raw).await;
    let mut mark = vec![254_u8];
    mark.extend(Timestamp::of(clock).as_millis().to_be_bytes());
    let mut set = redis::cmd("HSET");
    set.arg(&key).arg("t").arg(mark);
    set.exec_async(raw).await.unwrap();
}

#[tokio::test]
async fn a_dead_node_holds_up_only_its_own_sessions_when_everyone_is_to_end() {
    const GAUGE: &str = "keep_session_pending_revocations";
    let metered = Metered::start();
    let (cluster, clock) = (RedisCluster::start(3, false).await, clock());
    cluster.set("cluster-require-full-coverage", "no").await;
    let store = cluster.store(&clock).await;
    let layer = SessionLayer::new(store);
    let (directory, app) = (layer.directory(), App::new(layer));
    let (mut there, mut elsewhere) = (Vec::new(), Vec::new());
    for n in 0..30 {
        let browser = app.browser();
        assert_eq!(browser.status(&format!("/login/u{n}")).await, 200);
        let key = cluster
            .key_like(&format!("*:session:{{*}}:{}?", &browser.token()[..21]))
            .await;
        match cluster.home(&key).await.1 {
            0 => there.push(browser),
            _ => elsewhere.push(browser),
        }
    }
    assert!(there.len() > 1 && elsewhere.len() > 1, "{}", there.len());
    cluster.nodes[0].pause();
    assert!(directory.revoke_everyone().await.is_err());
    // Nobody asks for most homes; what is owed to those that answer is made up for all the same.
    let begun = Instant::now();
    let owed = || metered.value(GAUGE).unwrap_or(0.0);
    while !(1.0..400.0).contains(&owed()) {
        assert!(begun.elapsed() < Duration::from_secs(60), "{}", owed());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for browser in &elsewhere {
        assert_eq!(browser.body("/maybe").await, "nobody");
    }
    assert_eq!(there[0].status("/maybe").await, 503);
    cluster.nodes[0].resume();
    let begun = Instant::now();
    while owed() > 0.0 {
        assert!(begun.elapsed() < Duration::from_secs(60), "{}", owed());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for browser in &there {
        assert_eq!(browser.body("/maybe").await, "nobody");
    }
}
