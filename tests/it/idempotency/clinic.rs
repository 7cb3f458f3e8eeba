//! The rules that a clinic's bookings live by: key, replay, reuse, cool-down, and clients that hang up.

use std::time::Duration;

use http::{Request, Response};
use http_body_util::Full;
use tower_keep::core::Principal;
use tower_keep::idempotency::{Directive, IdempotencyLayer, Preset, Scope, StatusPolicy};
use tower_keep::{MINUTE, SECOND};

use super::{App, clock, memory, post};

fn booking(layer: IdempotencyLayer) -> IdempotencyLayer {
    let statuses = StatusPolicy::default().on(409, Directive::StoreFor(10 * SECOND));
    layer
        .preset(Preset::Api)
        .require_key()
        .ttl(10 * MINUTE)
        .statuses(statuses)
}

fn from(subject: &str, key: &str, body: &'static str) -> Request<Full<bytes::Bytes>> {
    let mut request = post("/api/create-payment-intent", key, body);
    request.extensions_mut().insert(Principal::new(subject));
    request
}

#[tokio::test]
async fn a_booking_is_made_once_per_guest_and_key_for_ten_minutes() {
    let clock = clock();
    let app = App::new(booking(IdempotencyLayer::new(
        memory(&clock),
        Scope::principal(),
    )));
    let first = app.send(from("g1", "k", "{}")).await;
    let again = app.send(from("g1", "\"k\"", "{}")).await;
    assert_eq!((again.status, &again.body), (first.status, &first.body));
    assert_eq!(again.headers["location"], first.headers["location"]);
    assert_eq!(again.headers["idempotency-replayed"], "true");
    app.send(from("g1", "k", "{\"x\":1}"))
        .await
        .check_refused(422, "IDEMPOTENCY_KEY_REUSED");
    assert_eq!(app.send(from("g2", "k", "{}")).await.body, "run 2");
    clock.advance(10 * MINUTE);
    assert_eq!(app.send(from("g1", "k", "{}")).await.body, "run 3");
}

#[tokio::test]
async fn refusals_are_not_remembered_but_a_lost_slot_is_for_ten_seconds() {
    for status in [401_u16, 403, 429, 500, 502, 503] {
        let app = App::with(
            booking(super::layer(memory(&clock()))),
            move |_, _| async move {
                Response::builder()
                    .status(status)
                    .body(Full::default())
                    .unwrap()
            },
        );
        app.post("k", "{}").await;
        assert!(!app.post("k", "{}").await.is_replay(), "{status}");
    }
    let clock = clock();
    let app = App::with(booking(super::layer(memory(&clock))), |_, run| async move {
        let status = if run == 1 { 409 } else { 201 };
        Response::builder()
            .status(status)
            .body(Full::default())
            .unwrap()
    });
    assert_eq!(app.post("k", "{}").await.status, 409);
    clock.advance(10 * SECOND - Duration::from_millis(1));
    assert!(app.post("k", "{}").await.is_replay());
    clock.advance(Duration::from_millis(1));
    assert_eq!(app.post("k", "{}").await.status, 201);
}

#[tokio::test]
async fn a_client_that_hangs_up_gets_its_one_answer_on_the_retry() {
    let layer = booking(super::layer(memory(&clock())));
    let (entered, go) = (tokio::sync::Notify::new(), tokio::sync::Notify::new());
    let gates = std::sync::Arc::new((entered, go));
    let inside = std::sync::Arc::clone(&gates);
    let app = App::with(layer.clone(), move |_, run| {
        let gates = std::sync::Arc::clone(&inside);
        async move {
            gates.0.notify_one();
            gates.1.notified().await;
            Response::new(Full::from(format!("run {run}")))
        }
    });
    let request = tokio::spawn(app.future(post("/pay", "k", "{}")));
    gates.0.notified().await;
    request.abort();
    assert!(request.await.unwrap_err().is_cancelled());
    app.post("k", "{}")
        .await
        .check_refused(409, "IDEMPOTENCY_IN_PROGRESS");
    gates.1.notify_one();
    layer.drain(10 * SECOND).await;
    let retry = app.post("k", "{}").await;
    assert_eq!(
        (retry.is_replay(), &retry.body[..], app.runs()),
        (true, &b"run 1"[..], 1)
    );
}
