//! What sessions count, and that no label names anybody.

use std::time::Duration;

use tower_keep::core::StoreFailure;
use tower_keep::session::{SessionLayer, SessionLimit};

use super::app::{App, Probe, clock, memory};
use crate::rate_limit::metered::Metered;

#[tokio::test]
async fn what_happens_to_sessions_is_counted_once() {
    let metered = Metered::start();
    let clock = clock();
    let store = Probe::new(memory(&clock));
    let layer = SessionLayer::new(store.clone()).limit(SessionLimit::evict_oldest(1));
    let app = App::new(layer.clone());
    let (browser, other) = (app.browser(), app.browser());
    for path in [
        "/none",
        "/set/cart/1",
        "/login/somebody",
        "/me",
        "/get/cart",
        "/set/cart/2",
    ] {
        assert!(browser.get(path).await.status.is_success());
    }
    clock.advance(Duration::from_secs(61));
    for path in ["/me", "/me", "/rotate", "/update/n", "/login/somebody"] {
        assert!(browser.get(path).await.status.is_success());
    }
    // The limit of one: the other login ends this one, and what it wrote blindly is dropped.
    clock.advance(Duration::from_secs(1));
    other.get("/login/somebody").await;
    assert_eq!(browser.status("/set/cart/3").await, 204);
    other.get("/login/another").await;
    other.get("/logout").await;
    other.plant(&format!("__Host-id={}", "A".repeat(54)));
    other.get("/me").await;
    other.plant("__Host-id=malformed");
    other.get("/me").await;
    browser.get("/login/somebody").await;
    store.fail(true);
    browser.get("/me").await;
    let open = App::new(layer.on_store_failure(StoreFailure::Open));
    browser.at(&open).get("/set/cart/4").await;
    for (name, value) in [
        ("loads_total{answer=live,part=core}", 3),
        // `get`, and what `update` reads first.
        ("loads_total{answer=live,part=whole}", 2),
        ("loads_total{answer=missing,part=core}", 1),
        ("renewals_total", 1),
        ("writes_total{answer=applied}", 2),
        ("writes_total{answer=dropped}", 2),
        ("established_total{cause=created}", 1),
        ("established_total{cause=first}", 3),
        ("established_total{cause=again}", 1),
        ("established_total{cause=switched}", 1),
        ("established_total{cause=rotated}", 1),
        ("ended_total{cause=evicted}", 1),
        ("ended_total{cause=logout}", 1),
        ("signals_total{kind=unknown_session}", 1),
        ("signals_total{kind=malformed_token}", 1),
        ("unavailable_total{answer=closed}", 1),
        ("unavailable_total{answer=open}", 1),
    ] {
        let name = format!("keep_session_{name}");
        assert_eq!(
            metered.counter(&name),
            value,
            "{name}: {}",
            metered.scrape()
        );
    }
    for method in ["load", "patch", "establish", "revoke"] {
        let name = format!("keep_session_store_seconds{{method={method}}}");
        assert!(metered.counter(&name) > 0, "{name}");
    }
    let scrape = metered.scrape();
    for name in ["somebody", "another", "cart", &browser.token()[..21]] {
        assert!(!scrape.contains(name), "a label names {name}");
    }
}

#[tokio::test]
async fn a_value_that_is_not_what_the_handler_reads_is_counted() {
    let metered = Metered::start();
    let app = App::new(SessionLayer::new(memory(&clock())));
    let browser = app.browser();
    let unread = || metered.counter("keep_session_undecodable_total{part=data}");
    for (path, count) in [("/set/n/%22text%22", 0), ("/get/n", 0), ("/update/n", 1)] {
        assert!(browser.get(path).await.status.is_success(), "{path}");
        assert_eq!(unread(), count, "{path}");
    }
}
