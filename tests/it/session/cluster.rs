//! Sessions on a Redis Cluster: homes spread over the nodes, and a login that moves from one to another.

use std::sync::Arc;
use std::time::Duration;

use tower_keep::conformance::session::{random_sequence, session};
use tower_keep::session::{SessionLayer, SessionLimit};

use super::app::{App, clock};
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
    let key = super::redis::key_of(&browser, &mut raw).await;
    let freeze = async |raw: &mut redis::aio::MultiplexedConnection| {
        let mut mark = vec![254_u8];
        let now = tower_keep::core::Timestamp::of(&clock).as_millis();
        mark.extend(now.to_be_bytes());
        let mut set = redis::cmd("HSET");
        let _: i64 = set
            .arg(&key)
            .arg("t")
            .arg(mark)
            .query_async(raw)
            .await
            .unwrap();
    };
    freeze(&mut raw).await;
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
    freeze(&mut raw).await;
    assert_eq!(directory.revoke_all("u1").await.unwrap(), 1);
    clock.advance(Duration::from_secs(5));
    assert_eq!(browser.body("/maybe").await, "nobody");
}
