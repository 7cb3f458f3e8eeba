//! Stories 1 to 5: holds, keys, payments and their limits.

use futures_util::future::join_all;
use http::StatusCode;
use serde_json::json;

use super::super::{slot, tell, text, wish};
use super::{SetUp, is, statuses, told};
use crate::support::Browser;

pub(super) async fn a_race_for_one_slot(set: &SetUp) {
    let guests = join_all((0..20).map(|number| set.guest(number))).await;
    let (hour, half) = (wish("e1", "s60", "10:00"), wish("e1", "s30", "10:30"));
    let wishes = guests.iter().enumerate().map(|(number, guest)| {
        // Tickets for an hour and for half an hour of it, mixed.
        guest.pay("k", if number % 3 == 2 { &half } else { &hour })
    });
    let replies = join_all(wishes).await;
    assert_eq!((statuses(&replies, 201), statuses(&replies, 409)), (1, 19));
    for reply in replies.iter().filter(|reply| reply.status != 201) {
        assert_eq!(reply.code(), "SLOT_TEMPORARILY_RESERVED");
        assert!(!reply.text().contains('@'), "{:?}", reply.body);
    }
    assert_eq!(set.counted("provider", "session_create").await, 1);
    let browser = Browser::new(set.at(0).address());
    assert_eq!(slot(&browser, "e1", "s60", "10:00").await, "held");
    assert_eq!(slot(&browser, "e1", "s30", "11:00").await, "free");
    assert_eq!(slot(&browser, "e2", "s60", "10:00").await, "free");
}

pub(super) async fn double_click_and_retry(set: &SetUp) {
    let (guest, other) = (set.guest(1).await, set.guest(2).await);
    let wished = wish("e1", "s60", "10:00");
    let clicks = join_all((0..10).map(|_| guest.pay("k", &wished))).await;
    let first = clicks
        .iter()
        .find(|reply| reply.status == StatusCode::CREATED)
        .unwrap();
    for click in &clicks {
        match click.status.as_u16() {
            201 => assert_eq!(click.body, first.body),
            _ => {
                assert_eq!(told(click), is(409, "IDEMPOTENCY_IN_PROGRESS"));
                assert_eq!(click.header("retry-after"), "1");
            }
        }
    }
    let again = guest.pay("\"k\"", &wished).await;
    assert_eq!(
        (&again.body, again.header("idempotency-replayed")),
        (&first.body, "true")
    );
    assert_eq!(set.counted("provider", "session_create").await, 1);
    assert_eq!(set.counted("handlers", "create_payment_intent").await, 1);
    let changed = guest.pay("k", &wish("e1", "s60", "12:00")).await;
    assert_eq!(told(&changed), is(422, "IDEMPOTENCY_KEY_REUSED"));
    for invalid in ["", &"x".repeat(256)] {
        let refused = guest.pay(invalid, &wished).await;
        assert_eq!(told(&refused), is(400, "IDEMPOTENCY_KEY_INVALID"));
    }
    let own = other.pay("k", &wish("e1", "s60", "12:00")).await;
    assert_eq!(own.status, StatusCode::CREATED);
    set.order("/_test/fault", &json!({ "fail": { "payment": 1 } }))
        .await;
    let late = wish("e2", "s60", "14:00");
    let failed = guest.pay("p", &late).await;
    assert_eq!(told(&failed), is(502, "PAYMENT_PROVIDER"));
    assert_eq!(slot(&guest.browser, "e2", "s60", "14:00").await, "free");
    set.order("/_test/fault", &json!({ "fail": { "payment": 0 } }))
        .await;
    assert_eq!(guest.pay("p", &late).await.status, StatusCode::CREATED);
    set.advance(600).await;
    let anew = guest.pay("k", &wished).await;
    assert_eq!(anew.status, StatusCode::CREATED);
    assert_ne!(anew.body, first.body);
}

pub(super) async fn the_hold_runs_out(set: &SetUp) {
    let (first, second) = (set.guest(1).await, set.guest(2).await);
    let wished = wish("e1", "s60", "10:00");
    let held = first.pay("k", &wished).await.json();
    assert_eq!(slot(&second.browser, "e1", "s60", "10:00").await, "held");
    set.advance(600).await;
    assert_eq!(slot(&second.browser, "e1", "s60", "10:00").await, "free");
    let taken = second.pay("k", &wished).await;
    assert_eq!(taken.status, StatusCode::CREATED, "{:?}", taken.body);
    let payment = text(&held, "payment_id");
    let late = first.settle(&payment, "succeeded").await;
    assert_eq!(told(&late), is(410, "PAYMENT_SESSION_EXPIRED"));
    for id in ["evt_1", "evt_2"] {
        let event = tell(&first.browser, id, "succeeded", &payment, 600).await;
        assert_eq!(event.status, StatusCode::OK);
    }
    let path = format!("/api/reservations/{}", text(&held, "reservation_id"));
    let mine = first.browser.get(&path).await.json();
    assert_eq!(
        (&mine["state"], &mine["booking_id"]),
        (&json!("refunded"), &json!(null))
    );
    // What is over may be given up as often as one likes: it is somebody else's time now, and stays so.
    assert_eq!(
        first.browser.delete(&path).await.status,
        StatusCode::NO_CONTENT
    );
    assert_eq!(slot(&second.browser, "e1", "s60", "10:00").await, "held");
    let cron = [("authorization", "Bearer cron_test")];
    let path = "/internal/cron/cleanup-reservations";
    second.browser.post(path, &cron, &json!({})).await;
    let again = second.browser.post(path, &cron, &json!({})).await;
    assert_eq!(again.json(), json!({ "released": 0, "notified": 0 }));
    set.work().await;
    assert_eq!(set.counted("provider", "refund").await, 1);
    assert_eq!(set.counted("notices", "reservation_expired").await, 1);
    assert_eq!(set.counted("notices", "payment_refunded").await, 1);
    let nobody = second.browser.post(path, &[], &json!({})).await;
    assert_eq!(told(&nobody), is(401, "UNAUTHENTICATED"));
}

pub(super) async fn pay(set: &SetUp) {
    let (first, second) = (set.guest(1).await, set.guest(2).await);
    let wished = wish("e1", "s60", "10:00");
    let held = first.pay("k", &wished).await.json();
    let payment = text(&held, "payment_id");
    set.order("/_test/fault", &json!({ "fail": { "webhook": 1 } }))
        .await;
    let failed = tell(&first.browser, "evt", "succeeded", &payment, 0).await;
    assert_eq!(told(&failed), is(500, "INTERNAL"));
    assert_eq!(slot(&second.browser, "e1", "s60", "10:00").await, "held");
    set.order("/_test/fault", &json!({ "fail": { "webhook": 0 } }))
        .await;
    set.advance(299).await;
    let copies = (0..10).map(|_| tell(&first.browser, "evt", "succeeded", &payment, 0));
    let copies = join_all(copies).await;
    assert_eq!(statuses(&copies, 200) + statuses(&copies, 409), 10);
    assert!(statuses(&copies, 200) >= 1);
    let repeated = tell(&second.browser, "evt", "succeeded", &payment, 0).await;
    assert_eq!(
        repeated.json(),
        json!({ "received": true, "duplicate": true })
    );
    set.advance(2).await;
    let old = tell(&second.browser, "evt", "succeeded", &payment, 0).await;
    assert_eq!(told(&old), is(400, "SIGNATURE_INVALID"));
    set.work().await;
    assert_eq!(set.counted("notices", "booking_confirmed").await, 1);
    assert_eq!(slot(&second.browser, "e1", "s60", "10:00").await, "booked");
    assert_eq!(
        told(&first.pay("k2", &wished).await),
        is(409, "ALREADY_BOOKED_BY_YOU")
    );
    assert_eq!(
        told(&second.pay("k", &wished).await),
        is(409, "SLOT_ALREADY_BOOKED")
    );
    // The slot of a voucher is kept for eleven days, to the second.
    let voucher = second.pay("v", &wish("e2", "s30", "09:00")).await.json();
    let taken = second
        .settle(&text(&voucher, "payment_id"), "voucher")
        .await;
    assert_eq!(taken.json()["status"], "processing");
    let path = format!("/api/reservations/{}", text(&voucher, "reservation_id"));
    assert_eq!(
        second.browser.get(&path).await.json()["state"],
        "processing"
    );
    set.advance(950_399).await;
    assert_eq!(
        second.browser.get(&path).await.json()["state"],
        "processing"
    );
    set.advance(1).await;
    assert_eq!(second.browser.get(&path).await.json()["state"], "expired");
}

pub(super) async fn payment_limits(set: &SetUp) {
    let guest = set.guest(1).await;
    let unknown = wish("e9", "s60", "10:00");
    let many = (0..50).map(|number| {
        let (guest, unknown) = (&guest, &unknown);
        async move { guest.pay(&format!("k{number}"), unknown).await }
    });
    let replies = join_all(many).await;
    // The address has twenty, the guest five of them.
    assert_eq!((statuses(&replies, 404), statuses(&replies, 429)), (5, 45));
    let refused = replies.iter().find(|reply| reply.code() == "user").unwrap();
    let wait: u64 = refused.header("retry-after").parse().unwrap();
    assert!((1..=900).contains(&wait), "{wait}");
    assert!(
        refused.header("ratelimit").contains("\"user\";r=0"),
        "{refused:?}"
    );
    let ip = guest.pay("more", &unknown).await;
    assert_eq!(told(&ip), is(429, "ip"));
    set.advance(wait).await;
    let replayed = guest.pay("after", &unknown).await;
    assert_eq!(told(&replayed), is(404, "NOT_FOUND"));
    // Twenty a day, five in each quarter of an hour.
    for round in 0..3 {
        set.advance(901).await;
        for number in 0..5 {
            guest.pay(&format!("d{round}{number}"), &unknown).await;
        }
    }
    set.advance(901).await;
    let day = guest.pay("last", &unknown).await;
    assert_eq!(told(&day), is(429, "user-daily"));
}
