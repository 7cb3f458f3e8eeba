//! Rules of the contract one by one: in which order a wish is checked, who sees a change, what the hooks count, and what
//! a reset leaves.

use std::collections::BTreeMap;

use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::people::{refused, signed_in, told};
use super::{DAY, Guest, alone, soon, text, wish};
use crate::support::{Browser, Program};

async fn counters(browser: &Browser) -> Value {
    browser.get("/_test/counters").await.json()
}

/// Somebody who is signed in, and pays like a guest.
async fn payer(clinic: &Program, user: &str, number: u8) -> Guest {
    Guest {
        browser: signed_in(clinic, user).await,
        address: format!("203.0.113.{number}"),
    }
}

#[tokio::test]
async fn a_payment_shows_the_guest_to_the_expert_at_the_next_request() {
    let clinic = alone();
    let (ana, guest) = (
        signed_in(&clinic, "ana").await,
        Guest::new(&clinic, 1).await,
    );
    let seen = async || ana.get("/api/customers").await.json()["customers"].clone();
    assert_eq!(seen().await, json!([]));
    // A hold is no customer yet.
    let held = guest.pay("k", &wish("e1", "s60", "10:00")).await.json();
    assert_eq!(seen().await, json!([]));
    guest.settle(&text(&held, "payment_id"), "succeeded").await;
    let customer = json!({ "name": "G", "email": "guest@example.org", "bookings": 1 });
    assert_eq!(seen().await, json!([customer]));
}

#[tokio::test]
async fn a_changed_profile_or_status_shows_on_the_pages_at_once() {
    let clinic = alone();
    let (ana, nobody) = (
        signed_in(&clinic, "ana").await,
        Browser::new(clinic.address()),
    );
    let pages = ["/", "/expert/e1"];
    let shows = async |what: &str| {
        for path in pages {
            let page = nobody.get(path).await;
            assert!(page.text().contains(what), "{path}: no {what}");
            // The next one has it from the cache: a change must reach that.
            let kept = nobody.get(path).await;
            assert!(kept.header("cache-status").contains("hit"), "{path}");
        }
    };
    shows("data-status=\"offline\"").await;
    let body = json!({ "name": "Dr Ana Newly" }).to_string();
    let put = ana.send(Method::PUT, "/api/user/profile", &[], Some(body));
    assert_eq!(put.await.status, StatusCode::OK);
    shows("Dr Ana Newly").await;
    let status = json!({ "status": "busy" });
    let said = ana.post("/api/experts/me/status", &[], &status).await;
    assert_eq!(said.status, StatusCode::NO_CONTENT);
    shows("data-status=\"busy\"").await;
}

#[tokio::test]
async fn of_two_faults_of_a_wish_the_one_that_is_checked_first_is_told() {
    let clinic = alone();
    let (first, guest) = (Guest::new(&clinic, 1).await, Guest::new(&clinic, 2).await);
    let taken = wish("e1", "s60", "10:00");
    let held = first.pay("k", &taken).await;
    assert_eq!(held.status, StatusCode::CREATED);
    let but = |base: &Value, changes: Value| {
        let mut wished = base.clone();
        for (name, value) in changes.as_object().unwrap() {
            wished[name] = value.clone();
        }
        wished
    };
    let (cheap, off) = (json!({ "price_cents": 1 }), wish("e1", "s60", "10:10"));
    let mut bodiless = wish("e9", "s60", "10:00");
    bodiless.as_object_mut().unwrap().remove("guest");
    for (wished, status, code) in [
        // What cannot be read, before who it is about.
        (bodiless, 400, "VALIDATION"),
        (wish("e9", "s60", "10:10"), 404, "NOT_FOUND"),
        (but(&off, json!({ "service_id": "s90" })), 404, "NOT_FOUND"),
        (but(&off, cheap.clone()), 422, "SLOT_NOT_OFFERED"),
        (but(&taken, cheap), 409, "PRICE_MISMATCH"),
    ] {
        // Each time another guest: none comes to the end of its quota.
        let guest = Guest::new(&clinic, 3).await;
        let reply = guest.pay("k", &wished).await;
        assert_eq!(told(&reply), refused(status, code), "{wished}");
    }
    let late = guest.pay("k", &taken).await;
    assert_eq!(told(&late), refused(409, "SLOT_TEMPORARILY_RESERVED"));
    assert_eq!(
        counters(&guest.browser).await["provider"]["session_create"],
        1
    );
}

/// The members of the counters, by group.
fn members(counters: &Value) -> BTreeMap<&str, Vec<&str>> {
    let groups = counters.as_object().unwrap().iter();
    groups
        .map(|(group, own)| {
            let mut names: Vec<&str> = own
                .as_object()
                .unwrap()
                .keys()
                .map(String::as_str)
                .collect();
            names.sort_unstable();
            (group.as_str(), names)
        })
        .collect()
}

#[tokio::test]
async fn the_hooks_count_everything_from_nought_and_leave_nothing_out() {
    let clinic = alone();
    let (guest, root) = (
        Guest::new(&clinic, 1).await,
        signed_in(&clinic, "root").await,
    );
    let all = counters(&root).await;
    let expected = [
        (
            "handlers",
            &["approve", "create_payment_intent", "webhook"][..],
        ),
        (
            "loaders",
            &["customers", "dashboard", "expert", "experts", "slots"],
        ),
        (
            "notices",
            &[
                "booking_confirmed",
                "dead",
                "payment_refunded",
                "reservation_expired",
            ],
        ),
        (
            "provider",
            &[
                "customer_create",
                "notification_send",
                "refund",
                "session_create",
                "session_expire",
                "sessions_open",
            ],
        ),
        ("store", &["calls", "errors"]),
    ];
    let expected = expected.map(|(group, names)| (group, names.to_vec()));
    assert_eq!(members(&all), BTreeMap::from(expected));
    for (group, own) in all.as_object().unwrap() {
        for (name, number) in own.as_object().unwrap() {
            let is_used = (group.as_str(), name.as_str()) == ("store", "calls");
            assert!(
                number.is_u64() && (is_used || number == 0),
                "{group}.{name}: {number}"
            );
        }
    }
    let path = "/api/admin/payment-transfers/approve";
    let approved = root.post(path, &[], &json!({ "transfer_id": "tr1" })).await;
    assert_eq!(approved.status, StatusCode::OK);
    let held = guest.pay("k", &wish("e1", "s60", "10:00")).await.json();
    assert_eq!(counters(&root).await["provider"]["sessions_open"], 1);
    let own = format!("/api/reservations/{}", text(&held, "reservation_id"));
    for _ in 0..2 {
        let ended = guest.browser.delete(&own).await;
        assert_eq!(ended.status, StatusCode::NO_CONTENT);
    }
    let counted = counters(&root).await;
    assert_eq!(counted["handlers"]["approve"], 1);
    assert_eq!(counted["provider"]["session_expire"], 1);
    assert_eq!(counted["provider"]["sessions_open"], 0);
    assert_eq!(counted["store"]["errors"], 0);
    let calls = counted["store"]["calls"].as_u64().unwrap();
    root.post("/_test/fault", &[], &json!({ "store": "down" }))
        .await;
    let away = root.get("/api/user/me").await;
    assert_eq!(told(&away), refused(503, "STORE_UNAVAILABLE"));
    let counted = counters(&root).await["store"].clone();
    assert!(counted["errors"].as_u64().unwrap() > 0, "{counted}");
    assert!(counted["calls"].as_u64().unwrap() > calls, "{counted}");
}

#[tokio::test]
async fn a_reset_ends_streams_and_leaves_no_fault_no_count_and_no_mail() {
    let clinic = alone();
    let (guest, pat) = (
        Guest::new(&clinic, 1).await,
        signed_in(&clinic, "pat").await,
    );
    let sent = pat.post("/api/verify-email/send", &[], &Value::Null).await;
    assert_eq!(sent.status, StatusCode::ACCEPTED);
    let held = guest.pay("k", &wish("e1", "s60", "10:00")).await;
    assert_eq!(held.status, StatusCode::CREATED);
    assert_ne!(pat.get("/_test/mail").await.json(), json!([]));
    let mut stream = guest.browser.open("/api/events?topic=slots:e1").await;
    stream.until(":").await;
    let faults = json!({
        "store": "down", "delay_ms": 5, "provider_delay_ms": 3_600_000,
        "fail": { "payment": 9, "webhook": 9, "notification": 9 },
    });
    guest.browser.post("/_test/fault", &[], &faults).await;
    // Until its breaker is open.
    soon(async {
        while guest.browser.get("/api/health").await.json()["mode"] != "fallback" {
            pat.get("/api/user/me").await;
        }
    })
    .await;
    let reset = guest.browser.post("/_test/reset", &[], &Value::Null).await;
    assert_eq!(reset.status, StatusCode::NO_CONTENT);
    soon(stream.rest()).await;
    assert_eq!(guest.browser.get("/_test/mail").await.json(), json!([]));
    let counted = counters(&guest.browser).await;
    for group in ["handlers", "loaders", "provider", "notices"] {
        let numbers = counted[group].as_object().unwrap();
        assert!(numbers.values().all(|number| number == 0), "{counted}");
    }
    assert_eq!(counted["store"]["errors"], 0);
    let health = guest.browser.get("/api/health").await.json();
    assert_eq!(
        (&health["status"], &health["mode"]),
        (&json!("healthy"), &json!("memory"))
    );
    let held = guest.pay("k", &wish("e1", "s60", "10:00")).await;
    assert_eq!(held.status, StatusCode::CREATED, "{:?}", held.body);
    let paid = guest
        .settle(&text(&held.json(), "payment_id"), "succeeded")
        .await;
    assert_eq!(paid.json()["webhook_status"], 200, "{:?}", paid.body);
    let done = guest
        .browser
        .post("/_test/work", &[], &Value::Null)
        .await
        .json();
    assert_eq!(
        (&done["delivered"], &done["retried"]),
        (&json!(1), &json!(0)),
        "{done}"
    );
}

#[tokio::test]
async fn appointments_stand_by_their_start_for_the_expert_and_for_the_user() {
    let clinic = alone();
    let (ana, pat) = (
        signed_in(&clinic, "ana").await,
        payer(&clinic, "pat", 1).await,
    );
    for time in ["14:00", "10:00", "12:00"] {
        let held = pat.pay(time, &wish("e1", "s60", time)).await.json();
        pat.settle(&text(&held, "payment_id"), "succeeded").await;
    }
    for browser in [&ana, &pat.browser] {
        let listed = browser.get("/api/appointments").await.json();
        let listed = listed["appointments"].as_array().unwrap().iter();
        let starts: Vec<String> = listed.map(|booking| text(booking, "start")).collect();
        let expected = ["10", "12", "14"].map(|hour| format!("{DAY}T{hour}:00:00Z"));
        assert_eq!(starts, expected);
    }
}

#[tokio::test]
async fn who_is_signed_in_gets_no_guests_name() {
    let clinic = alone();
    let pat = payer(&clinic, "pat", 1).await;
    let book = format!("/book?expert_id=e1&service_id=s60&start={DAY}T10:00:00Z");
    for path in ["/api/guest", &book, "/oauth/start"] {
        pat.browser.get(path).await;
        assert_eq!(pat.browser.cookie("guest"), None, "{path}");
    }
    let held = pat.pay("k", &wish("e1", "s60", "10:00")).await;
    assert_eq!(held.status, StatusCode::CREATED);
    assert_eq!(pat.browser.cookie("guest"), None);
    // Whoever is not gets one with each of them.
    for path in ["/api/guest", &book, "/oauth/start"] {
        let nobody = Browser::new(clinic.address());
        nobody.get(path).await;
        assert!(nobody.cookie("guest").is_some(), "{path}");
    }
}
