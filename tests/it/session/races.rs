//! Many requests at once: nothing lost, nothing revived.

use std::sync::atomic::Ordering;

use tower_keep::session::{SessionLayer, SessionStore};

use super::app::{App, Browser, clock, memory};
use crate::support::redis::shared;

async fn all(browser: &Browser, paths: impl IntoIterator<Item = String>) -> Vec<u16> {
    let requests: Vec<_> = paths
        .into_iter()
        .map(|path| {
            let browser = browser.copy();
            tokio::spawn(async move { browser.status(&path).await })
        })
        .collect();
    let mut statuses = Vec::new();
    for request in requests {
        statuses.push(request.await.unwrap());
    }
    statuses
}

/// `many` updates and additions of one value each, at once, beside each other.
pub async fn loses_no_write(store: impl SessionStore, many: usize) {
    let app = App::new(SessionLayer::new(store));
    for many in [2, many.min(60)] {
        let browser = app.browser();
        browser.get("/set/start/1").await;
        let statuses = all(&browser, (0..many).map(|n| format!("/set/k{n}/{n}"))).await;
        assert!(statuses.iter().all(|status| *status == 204), "{statuses:?}");
        for n in 0..many {
            assert_eq!(browser.body(&format!("/get/k{n}")).await, n.to_string());
        }
    }
    let browser = app.browser();
    browser.get("/set/blind/1").await;
    let updates = (0..many).map(|_| "/update/sum".to_owned());
    let adds = (0..many).map(|_| "/add/count/3".to_owned());
    let blind = (0..8).map(|n| format!("/set/blind/{n}"));
    let statuses = all(&browser, updates.chain(adds).chain(blind)).await;
    assert!(statuses.iter().all(|status| *status < 300), "{statuses:?}");
    assert_eq!(
        (
            browser.body("/get/sum").await,
            browser.body("/get/count").await
        ),
        (many.to_string(), (3 * many).to_string())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_loses_no_write_of_parallel_requests() {
    loses_no_write(memory(&clock()), 64).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_loses_no_write_of_parallel_requests() {
    loses_no_write(shared().await.store(&clock()).await, 64).await;
}

/// Ends a session by `end` while `in_flight` requests of it read, renew and write on two nodes.
pub async fn revives_nothing(
    layers: [SessionLayer; 2],
    clock: &tower_keep::core::ManualClock,
    rounds: usize,
) {
    for round in 0..rounds {
        // A node of its own per round: the door opens once.
        let nodes = layers.clone().map(App::new);
        let browser = nodes[0].browser();
        browser.get("/login/u1").await;
        let other = nodes[1].browser();
        other.get("/login/u1").await;
        clock.advance(std::time::Duration::from_millis(61_000));
        let paths = [
            "/slow_write/w",
            "/get/a",
            "/set/b/1",
            "/update/c",
            "/me",
            "/add/d/1",
        ];
        let in_flight: Vec<_> = (0..50)
            .map(|n| {
                let browser = browser.copy().at(&nodes[n % 2]);
                tokio::spawn(async move { browser.status(paths[n % paths.len()]).await })
            })
            .collect();
        while nodes
            .iter()
            .map(|node| node.door.waiting.load(Ordering::SeqCst))
            .sum::<u64>()
            < 9
        {
            tokio::task::yield_now().await;
        }
        let end = if round % 2 == 0 {
            browser.get("/logout").await
        } else {
            other.get("/revoke_others").await
        };
        assert!(end.status.is_success(), "{end:?}");
        // Whatever starts now finds it dead, whatever was in flight.
        let after = browser.copy();
        nodes.iter().for_each(|node| node.door.open());
        for request in in_flight {
            assert!(request.await.unwrap() < 500);
        }
        for node in &nodes {
            assert_eq!(after.at(node).body("/maybe").await, "nobody");
            assert_eq!(after.at(node).body("/get/w").await, "null");
        }
        // A write under the dead token begins a session of nobody, with nothing of the old one in it.
        assert_eq!(after.get("/set/x/1").await.status, 204);
        assert_eq!(after.body("/maybe").await, "nobody");
        assert_eq!(after.body("/get/b").await, "null");
        other.get("/logout").await;
        clock.advance(std::time::Duration::from_secs(120));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_revives_nothing() {
    let clock = clock();
    let store = memory(&clock);
    let layers = [SessionLayer::new(store.clone()), SessionLayer::new(store)];
    revives_nothing(layers, &clock, 200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_revives_nothing_over_two_handles() {
    let clock = clock();
    let server = shared().await;
    let prefix = crate::support::redis::fresh_prefix();
    let mut layers = Vec::new();
    for _ in 0..2 {
        let builder = server.builder(&prefix).clock(clock.clone());
        layers.push(SessionLayer::new(builder.open().await.unwrap()));
    }
    revives_nothing(layers.try_into().unwrap(), &clock, 40).await;
}

pub async fn rotates_once_and_for_all(
    store: impl SessionStore,
    clock: &tower_keep::core::ManualClock,
) {
    let app = App::new(SessionLayer::new(store));
    let browser = app.browser();
    browser.get("/login/u1").await;
    let old = browser.copy();
    let failed = browser.get("/fail/rotate").await;
    assert_eq!(failed.status, 500);
    assert!(
        failed.field("set-cookie").starts_with("__Host-id="),
        "the new secret reaches the client"
    );
    assert_eq!(browser.body("/me").await, "u1");
    for _ in 0..20 {
        let reply = old.get("/set/evil/1").await;
        assert!(!reply.removes_cookie() && reply.field("set-cookie").is_empty());
        assert_eq!(old.body("/maybe").await, "nobody");
    }
    assert_eq!(browser.body("/get/evil").await, "null");
    assert_eq!(browser.status("/fail/write").await, 500);
    assert_eq!(
        browser.body("/get/lost").await,
        "null",
        "a 5xx drops what is buffered"
    );
    clock.advance(std::time::Duration::from_millis(60_001));
    assert!(old.get("/me").await.removes_cookie(), "a replay after 60 s");

    // Twenty rotations of one secret at once: exactly one cookie is good afterwards.
    let start = browser.copy();
    let rotations: Vec<_> = (0..20)
        .map(|_| {
            let browser = start.copy();
            tokio::spawn(async move { (browser.status("/rotate").await, browser) })
        })
        .collect();
    let mut good = 0;
    for rotation in rotations {
        let (status, browser) = rotation.await.unwrap();
        let is_good = browser.body("/maybe").await == "u1";
        assert_eq!(status == 204, is_good, "{status}");
        good += u32::from(is_good);
    }
    assert_eq!(good, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_keeps_one_good_cookie_whatever_becomes_of_a_rotation() {
    let clock = clock();
    rotates_once_and_for_all(memory(&clock), &clock).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_keeps_one_good_cookie_whatever_becomes_of_a_rotation() {
    let clock = clock();
    let store = shared().await.store(&clock).await;
    rotates_once_and_for_all(store, &clock).await;
}

#[tokio::test]
async fn of_two_logins_at_once_on_one_anonymous_session_the_later_answer_holds() {
    let app = App::new(SessionLayer::new(memory(&clock())));
    let browser = app.browser();
    browser.get("/set/cart/1").await;
    let (one, two) = (browser.copy(), browser.copy());
    let (a, b) = tokio::join!(one.get("/login/u1"), two.get("/login/u1"));
    assert!(a.status.is_success() && b.status.is_success());
    assert_ne!(one.token(), two.token());
    assert_eq!(
        browser.body("/maybe").await,
        "nobody",
        "the anonymous token opens nothing"
    );
    let carts = [one.body("/get/cart").await, two.body("/get/cart").await];
    assert_eq!(
        carts.iter().filter(|cart| *cart == "1").count(),
        1,
        "the cart goes one way"
    );
}
