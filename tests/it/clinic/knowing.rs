//! Who knows of a change, and when: whoever asks after the answer, and every other process within a second.

use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use serde_json::json;

use super::people::signed_in;
use super::{Guest, alone, hooked, slot, soon, tell, text, wish};
use crate::support::{Browser, PostgresServer, Program, RedisServer};

#[tokio::test]
async fn whoever_asks_after_an_event_was_answered_sees_what_it_changed_though_telling_takes_long() {
    let clinic = alone();
    let (guest, ana) = (
        Guest::new(&clinic, 1).await,
        signed_in(&clinic, "ana").await,
    );
    let held = guest.pay("k", &wish("e1", "s60", "10:00")).await.json();
    // Kept from now on.
    assert_eq!(slot(&guest.browser, "e1", "s60", "10:00").await, "held");
    assert_eq!(ana.get("/api/dashboard").await.json()["bookings"], 0);
    let slow = async |millis: u64| {
        let order = json!({ "delay_ms": millis });
        let taken = ana.post("/_test/fault", &[], &order).await;
        assert_eq!(taken.status, StatusCode::NO_CONTENT);
    };
    slow(300).await;
    let event = tell(
        &guest.browser,
        "evt",
        "succeeded",
        &text(&held, "payment_id"),
        0,
    )
    .await;
    assert_eq!(event.status, StatusCode::OK, "{:?}", event.body);
    slow(0).await;
    assert_eq!(slot(&guest.browser, "e1", "s60", "10:00").await, "booked");
    assert_eq!(ana.get("/api/dashboard").await.json()["bookings"], 1);
}

#[tokio::test]
async fn what_was_changed_at_one_process_is_known_there_at_once_and_elsewhere_after_a_second() {
    let (redis, postgres) = tokio::join!(RedisServer::start(), PostgresServer::start());
    let db = postgres.database().await;
    // One that no notice reaches: Redis lets it listen to nothing.
    let deaf = "ACL SETUSER deaf on >deaf ~* &* +@all -subscribe -psubscribe -ssubscribe";
    let mut order = ::redis::Cmd::new();
    for part in deaf.split(' ') {
        order.arg(part);
    }
    let () = order.query_async(&mut redis.raw().await).await.unwrap();
    let deaf = redis.tcp_url().replace("//", "//deaf:deaf@");
    let process = |store: &str| {
        let own = ["--secret", "s", "--store", store, "--db", &db];
        Program::start("clinic", &hooked(&own))
    };
    let own = process(&redis.tcp_url());
    let others = [process(&redis.tcp_url()), process(&deaf)];
    let ana = signed_in(&own, "ana").await;
    let others = others.each_ref().map(|other| Browser::new(other.address()));
    for round in 0..5 {
        for looking in others.iter().chain([&ana]) {
            for path in ["/api/experts", "/api/experts/e1"] {
                // Kept where it was asked for.
                soon(async {
                    let hit = "clinic;hit";
                    while !looking.get(path).await.header("cache-status").contains(hit) {}
                })
                .await;
            }
        }
        let name = format!("Dr Ana the {round}th");
        let profile = Some(json!({ "name": name }).to_string());
        let path = "/api/user/profile";
        let changed = ana.send(Method::PUT, path, &[], profile).await;
        let answered = Instant::now();
        assert_eq!(changed.status, StatusCode::OK, "{changed:?}");
        assert_eq!(names(&ana).await, [&*name, &*name]);
        // Whoever asks when the second is over must know; however late he asks.
        tokio::time::sleep_until((answered + Duration::from_secs(1)).into()).await;
        for looking in &others {
            assert_eq!(names(looking).await, [&*name, &*name], "{looking:?}");
        }
    }
}

/// The name of the first expert, in the list and by itself.
async fn names(browser: &Browser) -> [String; 2] {
    let list = browser.get("/api/experts").await.json();
    let own = browser.get("/api/experts/e1").await.json();
    [text(&list[0], "name"), text(&own, "name")]
}
