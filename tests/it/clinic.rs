//! The clinic as its visitors meet it: the built program over HTTP, on memory + SQLite and on Redis + Postgres.

mod contract;
mod details;
mod exact;
mod faults;
mod forms;
mod halves;
mod knowing;
mod leases;
mod live;
mod load;
mod once;
mod pages;
mod people;
mod process;
mod quotas;
mod real_time;
mod rules;
mod screen;
mod slowness;
mod stories;
mod texts;
mod tour;

use futures_util::future::join_all;
use http::StatusCode;
use serde_json::{Value, json};
use tower_keep::core::ManualClock;
use tower_keep::data::lock::Lock;

use crate::support::program::{command, run, run_unread};
use crate::support::{Browser, PostgresServer, Program, RedisServer, Reply};

/// The first Wednesday of tested time.
const DAY: &str = "2030-01-02";

fn wish(expert: &str, service: &str, time: &str) -> Value {
    let price = match (expert, service) {
        ("e1", "s30") => 4000,
        ("e1", _) => 7000,
        (_, "s30") => 5000,
        _ => 9000,
    };
    json!({
        "expert_id": expert, "service_id": service, "start": format!("{DAY}T{time}:00Z"), "price_cents": price,
        "guest": { "name": "G", "email": "guest@example.org" },
    })
}

fn alone() -> Program {
    Program::start("clinic", &hooked(&[]))
}

/// The options of a clinic with hooks that believes its guests' addresses, and `more`.
fn hooked<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let usual = [
        "--listen",
        "127.0.0.1:0",
        "--test-hooks",
        "--trusted-hops",
        "1",
    ];
    [&usual, more].concat()
}

/// The locks of payments in a clinic's own store, by the time that its hooks begin with.
async fn payment_locks(store: &str) -> Lock {
    let same_time = ManualClock::at("2030-01-01T00:00:00Z".parse().unwrap());
    let line = tower_keep::store::builder(store).clock(same_time);
    Lock::new(line.open().await.unwrap(), "payment")
}

/// A guest with a cookie and an address of its own.
struct Guest {
    browser: Browser,
    address: String,
}

impl Guest {
    async fn new(clinic: &Program, number: u8) -> Self {
        let browser = Browser::new(clinic.address());
        assert_eq!(
            browser.get("/api/guest").await.status,
            StatusCode::NO_CONTENT
        );
        Self {
            browser,
            address: format!("203.0.113.{number}"),
        }
    }

    async fn pay(&self, key: &str, wish: &Value) -> Reply {
        let headers = [
            ("idempotency-key", key),
            ("x-forwarded-for", self.address.as_str()),
        ];
        self.browser
            .post("/api/create-payment-intent", &headers, wish)
            .await
    }

    async fn settle(&self, payment: &str, outcome: &str) -> Reply {
        self.browser
            .post(
                &format!("/fakepay/{payment}"),
                &[],
                &json!({ "outcome": outcome }),
            )
            .await
    }
}

async fn slot(browser: &Browser, expert: &str, service: &str, time: &str) -> String {
    let slots = browser
        .get(&format!(
            "/api/experts/{expert}/slots?service={service}&day={DAY}"
        ))
        .await
        .json();
    let start = format!("{DAY}T{time}:00Z");
    let slots = slots["slots"].as_array().unwrap();
    let found = slots
        .iter()
        .find(|slot| slot["start"] == start.as_str())
        .unwrap_or_else(|| panic!("no slot at {start}"));
    found["state"].as_str().unwrap().to_owned()
}

async fn advance(browser: &Browser, seconds: u64) {
    let moved = browser
        .post(
            "/_test/clock",
            &[],
            &json!({ "advance_ms": seconds * 1_000 }),
        )
        .await;
    assert_eq!(moved.status, StatusCode::OK);
}

/// Waits for what must come, and not for ever.
async fn soon<T>(what: impl Future<Output = T>) -> T {
    let patience = std::time::Duration::from_secs(60);
    let came = tokio::time::timeout(patience, what).await;
    came.expect("within a minute")
}

fn text(value: &Value, name: &str) -> String {
    value[name]
        .as_str()
        .unwrap_or_else(|| panic!("no {name} in {value}"))
        .to_owned()
}

#[test]
fn options_that_cannot_be_are_refused_with_exit_2_and_help_is_told() {
    let (code, out, _) = run("clinic", &["--help"]);
    assert_eq!(code, Some(0));
    assert!(out.contains("--trusted-hops"));
    let unread = run_unread("clinic", &["--help"]);
    assert_eq!(unread, (Some(0), String::new()));
    for wrong in [
        &["--nonsense"][..],
        &["--listen", "here"],
        &["--test-hooks", "--listen", "0.0.0.0:0"],
        &["--store"],
        &["--store", "mysql://user:hunter2@host"],
        &["--db", "mysql://user:hunter2@host"],
        &["--limit-timeout-ms", "0"],
        &["--provider-seconds", "0"],
        // Whatever is signed with nothing, anybody can sign.
        &["--secret", ""],
        &["--webhook-secret="],
        &["--cron-secret="],
        &["--test-hooks=false"],
        &["--help=1"],
        &["--store", "redis://127.0.0.1:99999/0"],
        &["--db", "postgres://nobody@127.0.0.1:99999/none"],
    ] {
        let (code, out, err) = run("clinic", wrong);
        assert_eq!((code, out.as_str()), (Some(2), ""), "{wrong:?}");
        assert!(err.contains("Usage:") && !err.contains("hunter2"), "{err}");
    }
}

#[test]
fn a_secret_that_its_variable_leaves_empty_is_refused() {
    for name in [
        "CLINIC_SECRET",
        "CLINIC_WEBHOOK_SECRET",
        "CLINIC_CRON_SECRET",
    ] {
        // A database that is not there ends it, should the secret not.
        let db = ["--db", "postgres://nobody@127.0.0.1:1/none"];
        let mut command = command("clinic", &[&["--listen", "127.0.0.1:0"], &db[..]].concat());
        assert_eq!(
            command.env(name, "").output().unwrap().status.code(),
            Some(2),
            "{name}"
        );
    }
}

#[test]
fn a_database_that_is_not_there_is_exit_1_and_one_plain_sentence() {
    let (code, out, err) = run(
        "clinic",
        &[
            "--listen",
            "127.0.0.1:0",
            "--db",
            "postgres://nobody@127.0.0.1:1/none",
        ],
    );
    assert_eq!((code, out.as_str()), (Some(1), ""));
    assert_eq!(err.trim().lines().count(), 1, "{err}");
}

#[test]
fn sigterm_ends_it_with_exit_0() {
    let mut clinic = alone();
    clinic.signal("TERM");
    assert_eq!(clinic.wait().code(), Some(0));
}

#[tokio::test]
async fn a_guest_books_a_slot_retries_it_and_another_comes_too_late() {
    let clinic = alone();
    let (first, second) = (Guest::new(&clinic, 1).await, Guest::new(&clinic, 2).await);
    let wished = wish("e1", "s60", "10:00");
    let held = first.pay("k1", &wished).await;
    assert_eq!(held.status, StatusCode::CREATED, "{:?}", held.body);
    assert_eq!(
        held.header("location"),
        format!("/api/reservations/{}", text(&held.json(), "reservation_id"))
    );
    assert_eq!(
        text(&held.json(), "hold_expires_at"),
        "2030-01-01T00:10:00Z"
    );
    let again = first.pay("\"k1\"", &wished).await;
    assert_eq!((again.status, &again.body), (held.status, &held.body));
    assert_eq!(again.header("idempotency-replayed"), "true");
    assert_eq!(again.header("location"), held.header("location"));
    let late = second.pay("k1", &wished).await;
    assert_eq!(
        (late.status, late.code().as_str()),
        (StatusCode::CONFLICT, "SLOT_TEMPORARILY_RESERVED")
    );
    assert_eq!(
        (late.header("retry-after"), &late.json()["retry_after"]),
        ("600", &json!(600))
    );
    assert!(!String::from_utf8_lossy(&late.body).contains("example.org"));
    assert_eq!(slot(&first.browser, "e1", "s60", "10:00").await, "held");
    let counted = first.browser.get("/_test/counters").await.json();
    assert_eq!(counted["provider"]["session_create"], 1);
}

#[tokio::test]
async fn overlapping_services_collide_and_neighbours_do_not() {
    let clinic = alone();
    let (first, second) = (Guest::new(&clinic, 1).await, Guest::new(&clinic, 2).await);
    assert_eq!(
        first.pay("a", &wish("e1", "s60", "10:00")).await.status,
        StatusCode::CREATED
    );
    assert_eq!(
        second.pay("b", &wish("e1", "s30", "10:30")).await.status,
        StatusCode::CONFLICT
    );
    assert_eq!(
        second.pay("c", &wish("e1", "s30", "11:00")).await.status,
        StatusCode::CREATED
    );
    assert_eq!(
        second.pay("d", &wish("e2", "s60", "10:00")).await.status,
        StatusCode::CREATED
    );
}

#[tokio::test]
async fn wrong_wishes_get_their_code_and_hold_nothing() {
    let clinic = alone();
    let guest = Guest::new(&clinic, 1).await;
    let mut cases: Vec<(Value, u16, &str)> = vec![(json!({ "expert_id": 7 }), 400, "VALIDATION")];
    cases.push((wish("e9", "s60", "10:00"), 404, "NOT_FOUND"));
    cases.push((wish("e1", "s60", "16:30"), 422, "SLOT_NOT_OFFERED"));
    let mut cheap = wish("e1", "s60", "10:00");
    cheap["price_cents"] = json!(1);
    cases.push((cheap, 409, "PRICE_MISMATCH"));
    for (number, (wished, status, code)) in cases.into_iter().enumerate() {
        let refused = guest.pay(&format!("w{number}"), &wished).await;
        assert_eq!(
            (refused.status.as_u16(), refused.code().as_str()),
            (status, code)
        );
        assert_eq!(refused.header("content-type"), "application/problem+json");
        assert_eq!(refused.json()["request_id"], refused.header("x-request-id"));
    }
    assert_eq!(slot(&guest.browser, "e1", "s60", "10:00").await, "free");
}

#[tokio::test]
async fn keys_are_checked_and_belong_to_one_guest_and_one_payload() {
    let clinic = alone();
    let (first, second) = (Guest::new(&clinic, 1).await, Guest::new(&clinic, 2).await);
    let nameless = first
        .browser
        .post(
            "/api/create-payment-intent",
            &[],
            &wish("e1", "s60", "10:00"),
        )
        .await;
    assert_eq!(
        (nameless.status.as_u16(), nameless.code().as_str()),
        (400, "IDEMPOTENCY_KEY_MISSING")
    );
    let long = "x".repeat(256);
    let invalid = first.pay(&long, &wish("e1", "s60", "10:00")).await;
    assert_eq!(
        (invalid.status.as_u16(), invalid.code().as_str()),
        (400, "IDEMPOTENCY_KEY_INVALID")
    );
    assert_eq!(
        first.pay("k", &wish("e1", "s60", "10:00")).await.status,
        StatusCode::CREATED
    );
    let reused = first.pay("k", &wish("e1", "s60", "12:00")).await;
    assert_eq!(
        (reused.status.as_u16(), reused.code().as_str()),
        (422, "IDEMPOTENCY_KEY_REUSED")
    );
    assert_eq!(
        second.pay("k", &wish("e1", "s60", "12:00")).await.status,
        StatusCode::CREATED
    );
}

#[tokio::test]
async fn a_hold_that_ran_out_frees_the_slot_with_no_worker_running() {
    let clinic = alone();
    let (first, second) = (Guest::new(&clinic, 1).await, Guest::new(&clinic, 2).await);
    let held = first.pay("k", &wish("e1", "s60", "10:00")).await.json();
    assert_eq!(slot(&second.browser, "e1", "s60", "10:00").await, "held");
    advance(&first.browser, 600).await;
    assert_eq!(slot(&second.browser, "e1", "s60", "10:00").await, "free");
    let mine = first
        .browser
        .get(&format!(
            "/api/reservations/{}",
            text(&held, "reservation_id")
        ))
        .await
        .json();
    assert_eq!(
        (mine["state"].as_str(), &mine["booking_id"]),
        (Some("expired"), &Value::Null)
    );
    assert_eq!(
        second.pay("k", &wish("e1", "s60", "10:00")).await.status,
        StatusCode::CREATED
    );
    let paid = first.settle(&text(&held, "payment_id"), "succeeded").await;
    assert_eq!(
        (paid.status.as_u16(), paid.code().as_str()),
        (410, "PAYMENT_SESSION_EXPIRED")
    );
}

#[tokio::test]
async fn a_payment_confirms_the_booking_once() {
    let clinic = alone();
    let (first, second) = (Guest::new(&clinic, 1).await, Guest::new(&clinic, 2).await);
    let held = first.pay("k", &wish("e1", "s60", "10:00")).await.json();
    let (payment, reservation) = (text(&held, "payment_id"), text(&held, "reservation_id"));
    let paid = first.settle(&payment, "succeeded").await;
    assert_eq!(
        (paid.status, &paid.json()["webhook_status"]),
        (StatusCode::OK, &json!(200)),
        "{:?}",
        paid.body
    );
    let mine = first
        .browser
        .get(&format!("/api/reservations/{reservation}"))
        .await
        .json();
    assert_eq!(mine["state"], "confirmed");
    let booking = first
        .browser
        .get(&format!("/api/bookings/{}", text(&mine, "booking_id")))
        .await;
    assert_eq!(booking.json()["guest"]["email"], "guest@example.org");
    assert_eq!(slot(&second.browser, "e1", "s60", "10:00").await, "booked");
    let stranger = second
        .browser
        .get(&format!("/api/reservations/{reservation}"))
        .await;
    assert_eq!(
        (stranger.status.as_u16(), stranger.code().as_str()),
        (404, "NOT_FOUND")
    );
    let late = second.pay("k", &wish("e1", "s60", "10:00")).await;
    assert_eq!(
        (late.status.as_u16(), late.code().as_str()),
        (409, "SLOT_ALREADY_BOOKED")
    );
    let twice = first.pay("k2", &wish("e1", "s60", "10:00")).await;
    assert_eq!(
        (twice.status.as_u16(), twice.code().as_str()),
        (409, "ALREADY_BOOKED_BY_YOU")
    );
    assert_eq!(
        first.settle(&payment, "succeeded").await.code(),
        "ALREADY_PAID"
    );
}

/// Tells the clinic, as the provider does.
async fn tell(browser: &Browser, id: &str, kind: &str, payment: &str, seconds: u64) -> Reply {
    use hmac::{KeyInit, Mac};
    let event = json!({ "id": id, "type": kind, "created": "2030-01-01T00:00:00Z", "data": { "payment_id": payment } });
    let t = 1_893_456_000 + seconds;
    let mut mac = hmac::Hmac::<sha2::Sha256>::new_from_slice(b"whsec_test").unwrap();
    mac.update(format!("{t}.{event}").as_bytes());
    let v1: String = mac
        .finalize()
        .into_bytes()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let signature = format!("t={t},v1={v1}");
    let headers = [("fake-signature", signature.as_str())];
    browser
        .post("/api/webhooks/payments", &headers, &event)
        .await
}

#[tokio::test]
async fn a_late_payment_is_refunded_once_however_many_events_tell_it() {
    let clinic = alone();
    let (first, second) = (Guest::new(&clinic, 1).await, Guest::new(&clinic, 2).await);
    let held = first.pay("k", &wish("e1", "s60", "10:00")).await.json();
    let payment = text(&held, "payment_id");
    advance(&first.browser, 600).await;
    let taken = second.pay("k", &wish("e1", "s60", "10:00")).await;
    assert_eq!(taken.status, StatusCode::CREATED);
    for id in ["evt_1", "evt_2", "evt_3"] {
        let told = tell(&first.browser, id, "succeeded", &payment, 600).await;
        assert_eq!(told.status, StatusCode::OK, "{:?}", told.body);
    }
    // Nothing else has to happen: the hold of the second is still there.
    assert_eq!(slot(&second.browser, "e1", "s60", "10:00").await, "held");
    let counted = first.browser.get("/_test/counters").await.json();
    assert_eq!(counted["provider"]["refund"], 1);
}

#[tokio::test]
async fn a_voucher_that_fails_frees_the_slot_and_late_events_are_taken_and_ignored() {
    let clinic = alone();
    let guest = Guest::new(&clinic, 1).await;
    let held = guest.pay("k", &wish("e1", "s60", "10:00")).await.json();
    let payment = text(&held, "payment_id");
    for (id, kind) in [
        ("1", "failed"),
        ("2", "processing"),
        ("3", "failed"),
        ("4", "processing"),
        ("5", "expired"),
    ] {
        let told = tell(&guest.browser, id, kind, &payment, 0).await;
        assert_eq!(told.status, StatusCode::OK, "{kind}: {:?}", told.body);
    }
    let path = format!("/api/reservations/{}", text(&held, "reservation_id"));
    let mine = guest.browser.get(&path).await.json();
    assert_eq!(mine["state"], "released");
}

#[tokio::test]
async fn the_same_wish_under_five_keys_at_once_is_one_hold_and_no_404() {
    let clinic = alone();
    let guest = Guest::new(&clinic, 1).await;
    let wished = wish("e1", "s60", "10:00");
    let keys = ["a", "b", "c", "d", "e"];
    let replies = join_all(keys.iter().map(|key| guest.pay(key, &wished))).await;
    for reply in replies {
        assert!(
            matches!(reply.status.as_u16(), 200 | 201 | 409),
            "{:?}",
            reply.body
        );
    }
    let counted = guest.browser.get("/_test/counters").await.json();
    assert_eq!(counted["provider"]["session_create"], 1);
}

#[tokio::test]
async fn the_health_of_a_part_that_is_down_keeps_its_own_form() {
    let options = ["--listen", "127.0.0.1:0", "--store", "redis://127.0.0.1:1"];
    let clinic = Program::start("clinic", &options);
    let browser = Browser::new(clinic.address());
    let down = browser.get("/api/health/store").await;
    assert_eq!(down.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(down.header("x-service-status"), "down");
    assert_eq!(down.json()["status"], "down");
}

#[tokio::test]
async fn a_zero_byte_in_a_path_is_a_404_on_postgres_too() {
    let two = Two::start().await;
    let browser = Browser::new(two.clinics[0].address());
    let nothing = browser.get("/api/reservations/%00").await;
    assert_eq!(
        (nothing.status.as_u16(), nothing.code().as_str()),
        (404, "NOT_FOUND")
    );
}

#[tokio::test]
async fn unsigned_events_do_nothing() {
    let clinic = alone();
    let guest = Guest::new(&clinic, 1).await;
    let payment = text(
        &guest.pay("k", &wish("e1", "s60", "10:00")).await.json(),
        "payment_id",
    );
    let event = json!({ "id": "e", "type": "succeeded", "created": "2030-01-01T00:00:00Z", "data": { "payment_id": payment } });
    let signature = format!("t=1893456000,v1={}", "00".repeat(32));
    for headers in [
        &[][..],
        &[("fake-signature", signature.as_str())],
        &[("fake-signature", "nonsense")],
    ] {
        let refused = guest
            .browser
            .post("/api/webhooks/payments", headers, &event)
            .await;
        assert_eq!(
            (refused.status.as_u16(), refused.code().as_str()),
            (400, "SIGNATURE_INVALID")
        );
    }
    assert_eq!(slot(&guest.browser, "e1", "s60", "10:00").await, "held");
}

#[tokio::test]
async fn five_payments_in_fifteen_minutes_and_the_sixth_waits_as_long_as_told() {
    let clinic = alone();
    let guest = Guest::new(&clinic, 1).await;
    for n in 0..5 {
        let time = format!("{:02}:00", 9 + n);
        let held = guest.pay(&format!("k{n}"), &wish("e1", "s30", &time)).await;
        assert_eq!(held.status, StatusCode::CREATED, "{:?}", held.body);
    }
    let refused = guest.pay("k5", &wish("e1", "s30", "14:00")).await;
    assert_eq!(
        (refused.status.as_u16(), refused.code().as_str()),
        (429, "user")
    );
    assert_eq!(refused.header("retry-after"), "900");
    assert_eq!(refused.json()["violated-policies"], json!(["user"]));
    assert_eq!(
        guest
            .pay("k0", &wish("e1", "s30", "09:00"))
            .await
            .header("idempotency-replayed"),
        "true"
    );
    advance(&guest.browser, 900).await;
    assert_eq!(
        guest.pay("k6", &wish("e1", "s30", "14:00")).await.status,
        StatusCode::CREATED
    );
}

#[tokio::test]
async fn sessions_are_listed_ended_and_final() {
    let clinic = alone();
    let (desk, phone) = (
        Browser::new(clinic.address()),
        Browser::new(clinic.address()),
    );
    let credentials = json!({ "email": "pat@clinic.test", "password": "test" });
    let wrong = desk
        .post(
            "/api/login",
            &[],
            &json!({ "email": "pat@clinic.test", "password": "no" }),
        )
        .await;
    assert_eq!(
        (wrong.status.as_u16(), wrong.code().as_str()),
        (401, "INVALID_CREDENTIALS")
    );
    assert_eq!(desk.get("/api/user/me").await.code(), "UNAUTHENTICATED");
    for browser in [&desk, &phone] {
        assert_eq!(
            browser.post("/api/login", &[], &credentials).await.json()["user"]["id"],
            "pat"
        );
    }
    assert_ne!(desk.cookie("id"), phone.cookie("id"));
    let sessions = desk.get("/api/user/sessions").await.json();
    let sessions = sessions.as_array().unwrap();
    assert_eq!(sessions.len(), 2);
    let other = sessions
        .iter()
        .find(|session| session["current"] == false)
        .unwrap();
    let ended = desk
        .delete(&format!("/api/user/sessions/{}", text(other, "id")))
        .await;
    assert_eq!(ended.status, StatusCode::NO_CONTENT);
    assert_eq!(
        phone.get("/api/user/me").await.status,
        StatusCode::UNAUTHORIZED
    );
    assert_eq!(desk.get("/api/user/me").await.json()["name"], "Pat");
    assert_eq!(
        desk.post("/api/logout", &[], &Value::Null).await.status,
        StatusCode::NO_CONTENT
    );
    assert_eq!(
        (desk.cookie("id"), desk.get("/api/user/me").await.status),
        (None, StatusCode::UNAUTHORIZED)
    );
}

#[tokio::test]
async fn the_catalogue_is_computed_once_and_says_so() {
    let clinic = alone();
    let browser = Browser::new(clinic.address());
    let replies = join_all((0..20).map(|_| browser.get("/api/experts"))).await;
    assert!(
        replies
            .iter()
            .all(|reply| reply.status == StatusCode::OK && reply.body == replies[0].body)
    );
    assert_eq!(
        browser.get("/_test/counters").await.json()["loaders"]["experts"],
        1
    );
    let hit = browser.get("/api/experts").await;
    assert!(
        hit.header("cache-status").starts_with("clinic;hit"),
        "{}",
        hit.header("cache-status")
    );
}

#[tokio::test]
async fn what_is_nowhere_is_a_problem_too() {
    let clinic = alone();
    let browser = Browser::new(clinic.address());
    let (nowhere, wrong) = (
        browser.get("/api/nowhere").await,
        browser.delete("/api/login").await,
    );
    assert_eq!(
        (nowhere.status.as_u16(), nowhere.code().as_str()),
        (404, "NOT_FOUND")
    );
    assert_eq!(
        (wrong.status.as_u16(), wrong.code().as_str()),
        (405, "METHOD_NOT_ALLOWED")
    );
    assert_eq!(wrong.header("allow"), "POST");
    // Whoever refuses, router, extractor, layer or handler: one form.
    for refused in [
        nowhere,
        wrong,
        browser.get("/api/experts/e1/slots?day=x").await,
        browser.get("/api/user/me").await,
        browser.get("/api/experts/e9").await,
    ] {
        let document = refused.json();
        for member in ["type", "title", "code", "detail", "error", "request_id"] {
            assert!(!text(&document, member).is_empty(), "{member}: {document}");
        }
        assert_eq!(document["status"], refused.status.as_u16());
        assert_eq!(document["request_id"], refused.header("x-request-id"));
        assert_eq!(
            (
                refused.header("content-type"),
                refused.header("cache-control")
            ),
            ("application/problem+json", "no-store")
        );
    }
    let health = browser.get("/api/health").await.json();
    assert_eq!(
        (&health["status"], &health["mode"]),
        (&json!("healthy"), &json!("memory"))
    );
}

/// Two processes that are one clinic, on one Redis and one Postgres.
struct Two {
    redis: RedisServer,
    _postgres: PostgresServer,
    clinics: [Program; 2],
}

impl Two {
    async fn start() -> Self {
        let (redis, postgres) = (RedisServer::start().await, PostgresServer::start().await);
        let (store, db) = (redis.tcp_url(), postgres.database().await);
        let options = hooked(&["--secret", "s", "--store", &store, "--db", &db]);
        let clinics = [
            Program::start("clinic", &options),
            Program::start("clinic", &options),
        ];
        Self {
            redis,
            _postgres: postgres,
            clinics,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_guests_at_two_processes_make_one_booking_and_no_5xx() {
    let two = Two::start().await;
    let guests = join_all(
        (0..200_u8).map(|number| Guest::new(&two.clinics[usize::from(number % 2)], number)),
    )
    .await;
    let wished = wish("e1", "s60", "10:00");
    let replies = join_all(guests.iter().map(|guest| guest.pay("k", &wished))).await;
    let of = |status: StatusCode| {
        replies
            .iter()
            .filter(|reply| reply.status == status)
            .count()
    };
    let refused = |reply: &&Reply| reply.status.is_server_error();
    let faults: Vec<_> = replies
        .iter()
        .filter(refused)
        .map(|reply| &reply.body)
        .collect();
    assert!(
        faults.is_empty(),
        "{} faults, such as {:?}",
        faults.len(),
        faults[0]
    );
    assert_eq!(
        (of(StatusCode::CREATED), of(StatusCode::CONFLICT)),
        (1, 199)
    );
    assert!(
        replies
            .iter()
            .filter(|reply| reply.status == StatusCode::CONFLICT)
            .all(|reply| reply.code() == "SLOT_TEMPORARILY_RESERVED")
    );
    let winner = replies
        .iter()
        .position(|reply| reply.status == StatusCode::CREATED)
        .unwrap();
    let paid = guests[winner]
        .settle(&text(&replies[winner].json(), "payment_id"), "succeeded")
        .await;
    assert_eq!(paid.json()["webhook_status"], 200);
    let opened: i64 = {
        let counted = join_all(two.clinics.iter().map(|clinic| async {
            Browser::new(clinic.address())
                .get("/_test/counters")
                .await
                .json()
        }))
        .await;
        counted
            .iter()
            .map(|counters| counters["provider"]["session_create"].as_i64().unwrap())
            .sum()
    };
    assert_eq!(opened, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_at_the_other_process_is_the_first_answer_again() {
    let two = Two::start().await;
    let guest = Guest::new(&two.clinics[0], 1).await;
    let first = guest.pay("k", &wish("e1", "s60", "10:00")).await;
    assert_eq!(first.status, StatusCode::CREATED, "{:?}", first.body);
    let elsewhere = Guest {
        browser: guest.browser.at(two.clinics[1].address()),
        address: guest.address.clone(),
    };
    let again = elsewhere.pay("k", &wish("e1", "s60", "10:00")).await;
    assert_eq!((again.status, &again.body), (first.status, &first.body));
    assert_eq!(again.header("idempotency-replayed"), "true");
    let mine = elsewhere.browser.get(first.header("location")).await;
    assert_eq!(mine.json()["state"], "held");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_redis_the_catalogue_answers_and_money_waits() {
    let mut two = Two::start().await;
    let guest = Guest::new(&two.clinics[0], 1).await;
    let patient = Browser::new(two.clinics[0].address());
    patient
        .post(
            "/api/login",
            &[],
            &json!({ "email": "pat@clinic.test", "password": "test" }),
        )
        .await;
    two.redis.kill();
    for _ in 0..6 {
        let refused = guest.pay("k", &wish("e1", "s60", "10:00")).await;
        assert_eq!(
            (refused.status.as_u16(), refused.code().as_str()),
            (503, "STORE_UNAVAILABLE"),
            "{:?}",
            refused.body
        );
        assert!((1..=30).contains(&refused.header("retry-after").parse::<u32>().unwrap()));
    }
    assert_eq!(
        guest.browser.get("/api/experts/e1").await.status,
        StatusCode::OK
    );
    let health = guest.browser.get("/api/health").await;
    assert_eq!(
        (
            health.status,
            &health.json()["status"],
            &health.json()["mode"]
        ),
        (StatusCode::OK, &json!("degraded"), &json!("fallback"))
    );
    assert_eq!(
        patient.get("/api/user/me").await.code(),
        "STORE_UNAVAILABLE"
    );
    let wrong = Browser::new(two.clinics[0].address());
    let wrong = wrong
        .post(
            "/api/login",
            &[],
            &json!({ "email": "pat@clinic.test", "password": "no" }),
        )
        .await;
    assert_eq!(wrong.status, StatusCode::UNAUTHORIZED);
    two.redis.restart();
    soon(async {
        while guest.browser.get("/api/health").await.json()["mode"] != "redis" {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    })
    .await;
    assert_eq!(
        guest.pay("k2", &wish("e1", "s60", "10:00")).await.status,
        StatusCode::CREATED
    );
}
