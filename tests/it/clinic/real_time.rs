//! What runs in real time though the clock stands still: the comments of event streams, and how long runs take.

use std::time::Instant;

use futures_util::future::join_all;
use http::StatusCode;
use serde_json::{Value, json};

use super::people::{refused, signed_in, told};
use super::{Guest, advance, alone, hooked, soon, wish};
use crate::support::{Browser, Program};

#[tokio::test]
async fn an_event_stream_on_which_nothing_happens_has_a_comment_every_fifteen_seconds() {
    let clinic = alone();
    let looking = Browser::new(clinic.address());
    let ana = signed_in(&clinic, "ana").await;
    let started = Instant::now();
    let mut stream = looking.open("/api/events?topic=expert:e1:status").await;
    // At once, so that whatever stands in between lets go of the head.
    stream.until(":\n\n").await;
    // A heartbeat is no matter of the practice's own time.
    advance(&looking, 60).await;
    stream.until(":\n\n:\n\n").await;
    let passed = started.elapsed();
    assert!((14..30).contains(&passed.as_secs()), "{passed:?}");
    // One, not one after the other from now on.
    let busy = json!({ "status": "busy" });
    let said = ana.post("/api/experts/me/status", &[], &busy).await;
    assert_eq!(said.status, StatusCode::NO_CONTENT);
    let seen = stream.until("\"busy\"").await;
    let comments = seen.lines().filter(|line| *line == ":").count() - 1;
    let due = started.elapsed().as_secs() / 15;
    assert!((1..=due).contains(&(comments as u64)), "{seen}");
}

/// An average run after so many of this length, where a second was guessed before the first.
fn mean(length: f64, runs: i32) -> f64 {
    length + (1.0 - length) * 0.875_f64.powi(runs)
}

/// Sends a request that takes its time, and returns once it is the `number`th that runs or has run.
async fn begin(guest: &Guest, wished: &Value, number: u64) {
    let (browser, address) = (guest.browser.clone(), guest.address.clone());
    let (own, wished) = (Guest { browser, address }, wished.clone());
    tokio::spawn(async move { own.pay("k", &wished).await });
    let runs = async || {
        let counters = guest.browser.get("/_test/counters").await.json();
        counters["handlers"]["create_payment_intent"] == number
    };
    soon(async {
        while !runs().await {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// Asks for what runs, and returns how many seconds it is said to take.
async fn wait_for(guest: &Guest, wished: &Value) -> u64 {
    let reply = guest.pay("k", wished).await;
    assert_eq!(told(&reply), refused(409, "IDEMPOTENCY_IN_PROGRESS"));
    let wait: u64 = reply.header("retry-after").parse().unwrap();
    assert_eq!(reply.json()["retry_after"], wait);
    wait
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_while_its_request_runs_is_told_what_is_left_of_a_run_as_long_as_others_were() {
    // With 40 one sees the longest wait that is ever told.
    let length = std::env::var("CLINIC_RUN_SECONDS").map_or(3, |text| text.parse().unwrap());
    // It is slow here for as long as it is told to be.
    let clinic = Program::start("clinic", &hooked(&["--provider-seconds", "86400"]));
    let hooks = Browser::new(clinic.address());
    let provider_takes = async |seconds: u64| {
        let order = json!({ "provider_delay_ms": seconds * 1_000 });
        let taken = hooks.post("/_test/fault", &[], &order).await;
        assert_eq!(taken.status, StatusCode::NO_CONTENT);
    };
    let slow = Guest::new(&clinic, 100).await;
    let wished = wish("e1", "s30", "16:00");
    provider_takes(3_600).await;
    begin(&slow, &wished, 1).await;
    // Nobody knows yet how long such a thing takes.
    assert_eq!(wait_for(&slow, &wished).await, 1);

    provider_takes(length).await;
    let pay = async |number: u8| {
        let guest = Guest::new(&clinic, number).await;
        let expert = ["e1", "e2"][usize::from(number % 2)];
        let (hour, half) = (9 + number / 4, number / 2 % 2);
        let wished = wish(expert, "s30", &format!("{hour:02}:{}0", half * 3));
        let started = Instant::now();
        let reply = guest.pay("k", &wished).await;
        assert_eq!(reply.status, StatusCode::CREATED, "{reply:?}");
        started.elapsed().as_secs_f64()
    };
    let lengths = join_all((0..12).map(pay)).await;
    let longest = lengths.into_iter().fold(0.0, f64::max);
    // The first may have come to the provider late enough to have been one of them.
    let (least, most) = (mean(length as f64, 12), mean(longest, 13));

    provider_takes(3_600).await;
    let slow = Guest::new(&clinic, 101).await;
    let wished = wish("e2", "s30", "16:00");
    begin(&slow, &wished, 14).await;
    let mut passed = 0;
    for step in [0, 1, 1, 20] {
        advance(&hooks, step).await;
        passed += step;
        let left = |mean: f64| (mean - passed as f64).ceil().clamp(1.0, 30.0) as u64;
        let wait = wait_for(&slow, &wished).await;
        assert!(
            (left(least)..=left(most)).contains(&wait),
            "{wait} s, after {passed} s of {least} to {most} s"
        );
    }
}
