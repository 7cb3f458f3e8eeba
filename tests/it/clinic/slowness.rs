//! A Redis that is slow rather than away: limits wait for it as long as the program as shipped says, and no longer.

use std::time::{Duration, Instant};

use http::StatusCode;
use serde_json::json;

use super::people::{refused, told};
use super::{Guest, hooked, wish};
use crate::support::{Browser, Program, RedisServer};

#[tokio::test]
async fn limits_wait_fifty_milliseconds_for_the_store_unless_told_otherwise() {
    let redis = RedisServer::start().await;
    let store = redis.tcp_url();
    let clinic = Program::start_as_shipped("clinic", &hooked(&["--store", &store]));
    let guest = Guest::new(&clinic, 1).await;
    let slow = async |millis: u64| {
        let order = json!({ "delay_ms": millis });
        let taken = guest.browser.post("/_test/fault", &[], &order).await;
        assert_eq!(taken.status, StatusCode::NO_CONTENT);
    };
    // Whoever waits for half a second would get its answer.
    slow(250).await;
    let refuse = refused(503, "STORE_UNAVAILABLE");
    let asked = guest.pay("k", &wish("e1", "s60", "10:00")).await;
    assert_eq!(told(&asked), refuse);
    let wait: u32 = asked.header("retry-after").parse().unwrap();
    assert!((1..=30).contains(&wait), "{wait}");
    // Where an address is counted here for want of the store, it is counted right.
    let anybody = Browser::new(clinic.address());
    let wrong = json!({ "email": "pat@clinic.test", "password": "no" });
    for number in 1..=11 {
        let reply = anybody.post("/api/login", &[], &wrong).await;
        let promised = match number {
            11 => refused(429, "ip"),
            _ => refused(401, "INVALID_CREDENTIALS"),
        };
        assert_eq!(told(&reply), promised, "{number}");
    }
    // A store that says nothing at all costs no more than that.
    slow(120_000).await;
    let started = Instant::now();
    let asked = guest.pay("k", &wish("e1", "s60", "10:00")).await;
    assert_eq!(told(&asked), refuse);
    assert!(started.elapsed() < Duration::from_secs(20));
    // Known to be silent, it costs nobody anything; the quickest of twenty, since others compute beside us.
    for _ in 0..5 {
        guest.pay("k", &wish("e1", "s60", "10:00")).await;
    }
    let mut quickest = Duration::MAX;
    for _ in 0..20 {
        let started = Instant::now();
        let asked = guest.pay("k", &wish("e1", "s60", "10:00")).await;
        quickest = quickest.min(started.elapsed());
        assert_eq!(told(&asked), refuse);
    }
    assert!(quickest < Duration::from_millis(50), "{quickest:?}");
    let counters = guest.browser.get("/_test/counters").await.json();
    assert_eq!(counters["handlers"]["create_payment_intent"], 0);
}
