//! Signed events: the signature first, then one claim per event id, then one event of a payment at a time. Claim, booking
//! and answer are one transaction.
//!
//! Try it: `curl -X POST localhost:8080/fakepay/PAYMENT_ID -H 'content-type: application/json' -d '{"outcome":"succeeded"}'`
//!
//! Proof: `an_event_whose_process_is_killed_half_way_leaves_neither_a_claim_nor_a_booking`

mod settle;

use std::error::Error;
use std::sync::Arc;

use axum::body::{Body, to_bytes};
use axum::extract::{Extension, Request, State as Extract};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use bytes::Bytes;
use http_body_util::LengthLimitError;
use serde_json::{Value, json};
use tower::ServiceBuilder;
use tower_keep::backend::sql::SqlStore;
use tower_keep::data::lock::Lock;
use tower_keep::idempotency::{IdempotencyLayer, Preset, Scope, ScopeId, StoredAnswer};
use tower_keep::reservation::ReservationGuard;
use tower_keep::store::Store;
use tower_keep::{DAY, ttl};

use self::settle::{change, confirm};
use crate::announce::{Telling, tell_after_commit, told_first};
use crate::fault::{Fault, Input};
use crate::options::Options;
use crate::provider::{self, Event};
use crate::records::Records;
use crate::state::App;

/// One event of a payment at a time, in all processes.
pub fn lock(store: &Arc<dyn Store>) -> Lock {
    Lock::new(store.clone(), "payment").lease(ttl::PAYMENT_LOCK.as_duration())
}

/// The route that the provider calls, with everything that guards it.
pub fn router<D: Records>(app: &App) -> Router<App> {
    Router::new()
        .route("/api/webhooks/payments", post(receive::<D>))
        .layer(
            ServiceBuilder::new()
                .layer(from_fn_with_state(app.clone(), check_signature))
                .layer(from_fn(told_first))
                .layer(app.events_once.clone())
                .layer(app.bookings.clone()),
        )
}

const DUPLICATE: &[u8] = br#"{"received":true,"duplicate":true}"#;

/// A finished event is remembered for seven days, and its repetition says so. The claim, what the event changed and the
/// answer are one commit: there is no moment at which one is there without the others.
pub fn once(sql: SqlStore, options: &Options) -> IdempotencyLayer {
    // Whoever may send events is one: the provider.
    let provider = Scope::by(|_| Some(ScopeId::new("provider")));
    IdempotencyLayer::transactional(sql, provider)
        .preset(Preset::Webhook)
        .ttl(7 * DAY)
        .secret(options.key_secret())
        .sanitize(|answer: &mut StoredAnswer| answer.body = Bytes::from_static(DUPLICATE))
}

async fn check_signature(Extract(app): Extract<App>, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let body = match to_bytes(body, 64 * 1_024).await {
        Ok(body) => body,
        Err(why)
            if why
                .source()
                .is_some_and(<dyn Error>::is::<LengthLimitError>) =>
        {
            return Fault::TOO_LARGE.into_response();
        }
        Err(_) => return Fault::validation("the body ended too early").into_response(),
    };
    if !provider::is_signed(
        &app.options.webhook_secret,
        &parts.headers,
        &body,
        app.now(),
    ) {
        let why = "the signature is missing, wrong or too old";
        return Fault::Plain(StatusCode::BAD_REQUEST, "SIGNATURE_INVALID", why).into_response();
    }
    next.run(Request::from_parts(parts, Body::from(body))).await
}

/// `POST /api/webhooks/payments`: the layer outside commits; unknown payments and types are ignored. Events of one payment
/// wait for each other, and for each other's commit.
async fn receive<D: Records>(
    Extract(app): Extract<App>,
    Extension(telling): Extension<Telling>,
    mut guard: ReservationGuard<D>,
    Input(event): Input<Event>,
) -> Result<Json<Value>, Fault> {
    app.counters.handlers_webhook.add();
    let payment = event.data.payment_id.as_str();
    // Not for long: the transaction waits too. The provider comes again.
    let turn = app.payments.acquire(payment, D::PATIENCE).await?;
    // First of all that follows the commit. A rollback drops it, which gives it back just as well.
    guard.after_commit(async move {
        let _ = turn.release().await;
    });
    if let Some(mut record) = D::payment(&mut guard, payment).await? {
        let now = match event.kind.as_str() {
            "succeeded" => confirm::<D>(&app, &mut guard, &mut record).await?,
            kind => change::<D>(&app, &mut guard, &mut record, kind).await?,
        };
        // An event that comes too late for the state changes nothing, and need not come again.
        if let Some(now) = now {
            tell_after_commit((&app, telling), &mut guard, &record, now);
        }
    }
    if app.faults.webhook.strikes() {
        return Err(Fault::INTERNAL);
    }
    Ok(Json(json!({ "received": true, "duplicate": false })))
}
