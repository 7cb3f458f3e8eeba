//! What clients see of refusals.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::routing::post;
use http::StatusCode;
use tower_keep::backend::sql::{Postgres, SqlStore};
use tower_keep::core::Timestamp;
use tower_keep::reservation::{ReservationGuard, ReservationLayer, ReservationRejection, Slot};

use super::{App, MINUTE, check, clock, memory, slot, sqlite, stores};
use crate::support::PostgresServer;

async fn book(mut guard: ReservationGuard) -> Result<StatusCode, ReservationRejection> {
    guard.hold(slot("a"), "bob").await?;
    Ok(StatusCode::CREATED)
}

#[tokio::test]
async fn a_lost_race_is_a_409_that_says_when_to_come_back_and_not_who_won() {
    for store in stores().await {
        let app = App::new(store, book);
        let hold = app.own.hold(slot("a"), "ann-the-holder").await.unwrap();
        let lost = app.post().await;
        check(&lost, StatusCode::CONFLICT, "SLOT_TEMPORARILY_RESERVED");
        assert_eq!(lost.header("retry-after"), "600");
        assert_eq!(lost.header("content-type"), "application/problem+json");
        assert_eq!(
            lost.json()["held_until"],
            hold.expires_at().unwrap().to_string()
        );
        assert_eq!(lost.json()["by_you"], false);
        assert!(!lost.text().contains("ann-the-holder"));
        let id = hold.id();
        let confirmed = app
            .own
            .run(|mut guard: ReservationGuard| async move { guard.confirm(id).await });
        confirmed.await.unwrap();
        let lost = app.post().await;
        check(&lost, StatusCode::CONFLICT, "SLOT_ALREADY_BOOKED");
        assert_eq!(lost.header("retry-after"), "");
    }
}

#[tokio::test]
async fn impossible_wishes_are_refused_before_any_store_call() {
    let past = Timestamp::of(&clock());
    for (wish, code) in [
        (
            Slot::new("a", past.minus(MINUTE)..past.plus(MINUTE)),
            "SLOT_IN_PAST",
        ),
        (Slot::new("a", past.minus(2 * MINUTE)..past), "SLOT_IN_PAST"),
        (slot("off-schedule"), "SLOT_NOT_OFFERED"),
        (slot("a").units(3).of(2), "SLOT_INVALID"),
    ] {
        let layer = ReservationLayer::new(sqlite().await)
            .offered(|slot, _| slot.resource() != "off-schedule");
        let app = App::with(layer, async move |mut guard: ReservationGuard| {
            guard.hold(wish.clone(), "ann").await?;
            Ok::<_, ReservationRejection>(StatusCode::CREATED)
        });
        check(&app.post().await, StatusCode::UNPROCESSABLE_ENTITY, code);
    }
    let running = Slot::new("a", past.minus(MINUTE)..past.plus(MINUTE)).in_progress();
    assert!(
        App::new(memory(), book)
            .own
            .hold(running, "ann")
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn the_hook_changes_a_refusal_also_one_that_the_handler_returned() {
    let layer = ReservationLayer::new(memory()).on_rejection(|why, response| {
        let code = http::HeaderValue::from_static(why.code());
        response.headers_mut().insert("x-why", code);
    });
    let app = App::with(layer, async |guard: ReservationGuard| {
        let booked = book(guard).await;
        let others = [("set-cookie", "id=1"), ("content-encoding", "gzip")];
        booked.map_err(|lost| (StatusCode::GONE, others, lost))
    });
    app.own.hold(slot("a"), "ann").await.unwrap();
    let lost = app.post().await;
    // What was put beside it stays, what was said of another body does not.
    check(&lost, StatusCode::GONE, "SLOT_TEMPORARILY_RESERVED");
    assert_eq!(lost.header("x-why"), "SLOT_TEMPORARILY_RESERVED");
    assert_eq!(lost.header("set-cookie"), "id=1");
    assert_eq!(lost.header("content-encoding"), "");
    assert_eq!(lost.header("content-type"), "application/problem+json");
}

#[tokio::test]
async fn without_a_layer_or_over_another_engine_it_is_a_500() {
    let bare = Router::new().route("/", post(book));
    let answer = crate::support::http::post(&bare, "/", &[], "").await;
    check(&answer, StatusCode::INTERNAL_SERVER_ERROR, "MISCONFIGURED");
    let app = App::new(sqlite().await, async |_: ReservationGuard<Postgres>| {
        StatusCode::OK
    });
    check(
        &app.post().await,
        StatusCode::INTERNAL_SERVER_ERROR,
        "MISCONFIGURED",
    );
}

#[tokio::test]
async fn a_database_that_is_down_is_a_503_and_soon_at_once() {
    let mut server = PostgresServer::start().await;
    let url = server.database().await;
    let db = SqlStore::builder(&url)
        .acquire_timeout(std::time::Duration::from_millis(100))
        .open()
        .await
        .unwrap();
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let app = App::new(db.clone(), async move |guard: ReservationGuard| {
        counted.fetch_add(1, Ordering::SeqCst);
        book(guard).await
    });
    server.kill();
    for _ in 0..6 {
        let down = app.post().await;
        check(&down, StatusCode::SERVICE_UNAVAILABLE, "STORE_UNAVAILABLE");
        let seconds: u64 = down.header("retry-after").parse().unwrap();
        assert!((1..=30).contains(&seconds));
    }
    let started = std::time::Instant::now();
    check(
        &app.post().await,
        StatusCode::SERVICE_UNAVAILABLE,
        "STORE_UNAVAILABLE",
    );
    assert!(
        started.elapsed() < std::time::Duration::from_millis(80),
        "the breaker is open"
    );
    assert_eq!(calls.load(Ordering::SeqCst), 7);
}

#[tokio::test]
async fn a_refusal_is_logged_by_its_slot_and_never_by_who_has_it() {
    let log = crate::idempotency::secrets::Log::default();
    let _logging = log.listen();
    let app = App::new(sqlite().await, book);
    app.own.hold(slot("a"), "ann-the-holder").await.unwrap();
    assert_eq!(app.post().await.status, StatusCode::CONFLICT);
    assert!(app.own.hold(slot("a"), "carol").await.is_err());
    let log = log.text();
    let refusals: Vec<_> = log
        .lines()
        .filter(|line| line.contains("a hold was refused"))
        .collect();
    assert_eq!(refusals.len(), 2, "{log}");
    for refusal in refusals {
        for part in [
            "resource=a",
            "from=2030-01-02T09:00:00",
            "state=\"taken\"",
            "by_you=false",
        ] {
            assert!(refusal.contains(part), "{part}: {refusal}");
        }
    }
    let ends = |end: &str| {
        log.matches(&format!("sql_transaction{{end=\"{end}\"}}"))
            .count()
    };
    assert!(ends("commit") > 0 && ends("rollback") > 0, "{log}");
    assert!(!log.contains("ann-the-holder") && !log.contains("carol"));
}

#[test]
fn a_layer_whose_holds_can_never_be_is_refused_where_it_is_built() {
    let built = |hold_for, at_most| {
        std::panic::catch_unwind(|| {
            let layer = ReservationLayer::new(memory()).hold_for(hold_for);
            drop(layer.hold_at_most(at_most).reservations());
        })
        .is_ok()
    };
    let ms = Duration::from_millis;
    assert!(built(ms(1), ms(1)));
    assert!(!built(ms(2), ms(1)));
    assert!(!built(Duration::from_micros(999), MINUTE));
}

#[tokio::test]
async fn each_code_has_its_status_its_pause_and_its_members() {
    use serde_json::{Value, json};
    use tower_keep::reservation::{Conflict, HoldState, ReservationError};
    let none = || ("state", Value::Null);
    for (error, status, code, pause, (member, value)) in [
        (
            ReservationError::Contention { again: true },
            503,
            "CONTENTION",
            "1",
            none(),
        ),
        (
            ReservationError::Contention { again: false },
            503,
            "CONTENTION",
            "1",
            none(),
        ),
        (
            ReservationError::Conflict(Conflict::CapacityExceeded { left: 2 }),
            409,
            "CAPACITY_EXCEEDED",
            "",
            ("left", json!(2)),
        ),
        (
            ReservationError::Conflict(Conflict::AlreadyBookedByYou),
            409,
            "ALREADY_BOOKED_BY_YOU",
            "",
            none(),
        ),
        (
            ReservationError::HoldState(HoldState::Confirmed),
            409,
            "HOLD_STATE",
            "",
            ("state", json!("confirmed")),
        ),
        (
            ReservationError::HoldExpired,
            410,
            "HOLD_EXPIRED",
            "",
            none(),
        ),
        (
            ReservationError::PaymentInUse,
            409,
            "PAYMENT_IN_USE",
            "",
            none(),
        ),
        (
            ReservationError::HoldNotFound,
            404,
            "HOLD_NOT_FOUND",
            "",
            none(),
        ),
        (
            ReservationError::PaymentNotFound,
            404,
            "PAYMENT_NOT_FOUND",
            "",
            none(),
        ),
        (
            ReservationError::PaymentOutlivesHold,
            500,
            "PAYMENT_OUTLIVES_HOLD",
            "",
            none(),
        ),
    ] {
        let why = ReservationRejection::from(error);
        let app = App::new(memory(), async move |_: ReservationGuard| why.clone());
        let answer = app.post().await;
        check(&answer, StatusCode::from_u16(status).unwrap(), code);
        assert_eq!(answer.header("retry-after"), pause, "{code}");
        assert_eq!(answer.json()[member], value, "{code}");
    }
}
