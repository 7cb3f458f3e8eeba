//! Signed events: the signature first, then one claim per event id, then one event of a payment at a time. Claim, booking
//! and answer are one transaction.
//!
//! Try it: `curl -X POST localhost:8080/fakepay/PAYMENT_ID -H 'content-type: application/json' -d '{"outcome":"succeeded"}'`

use std::sync::Arc;

use axum::body::{Body, to_bytes};
use axum::extract::{Extension, Request, State as Extract};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use bytes::Bytes;
use serde_json::{Value, json};
use tower::ServiceBuilder;
use tower_keep::backend::sql::SqlStore;
use tower_keep::data::lock::Lock;
use tower_keep::idempotency::{IdempotencyLayer, Preset, Scope, StoredAnswer};
use tower_keep::reservation::{HoldRef, HoldState, ReservationGuard, Settled};
use tower_keep::store::Store;
use tower_keep::{DAY, SECOND, ttl};

use crate::announce::{Now, Telling, tell_after_commit, told_first};
use crate::fault::{Fault, Input};
use crate::options::Options;
use crate::provider::{self, Event};
use crate::records::{PaymentRecord, Records};
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
    IdempotencyLayer::transactional(sql, Scope::global())
        .preset(Preset::Webhook)
        .ttl(7 * DAY)
        .secret(options.key_secret())
        .sanitize(|answer: &mut StoredAnswer| answer.body = Bytes::from_static(DUPLICATE))
}

async fn check_signature(Extract(app): Extract<App>, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, 64 * 1_024).await else {
        return Fault::TOO_LARGE.into_response();
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
    let turn = app.payments.acquire(payment, 2 * SECOND).await?;
    // First of all that follows the commit. A rollback drops it, which gives it back just as well.
    guard.after_commit(async move {
        let _ = turn.release().await;
    });
    if let Some(mut record) = D::payment(&mut guard, payment).await? {
        let now = match event.kind.as_str() {
            "succeeded" => confirm::<D>(&app, &mut guard, &mut record).await?,
            kind => change::<D>(&mut guard, &mut record, kind).await?,
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

/// Confirms the hold. A payment that came too late for a time that is gone is given back.
async fn confirm<D: Records>(
    app: &App,
    guard: &mut ReservationGuard<D>,
    record: &mut PaymentRecord,
) -> Result<Option<Now>, Fault> {
    match guard.confirm(HoldRef::payment(&record.payment_id)).await? {
        Settled::Confirmed(_) => {
            record.booking_id = Some(format!("bok_{}", uuid::Uuid::now_v7().simple()));
            D::book(guard, record).await?;
            Ok(Some(("booked", "confirmed")))
        }
        Settled::LateConflict(_) | Settled::DuplicatePayment(_) => {
            // Read again under the hold's own lock: a lease may be lost, this one cannot be.
            let known = D::payment(guard, &record.payment_id).await?;
            if known.is_none_or(|known| known.refunded) {
                return Ok(None);
            }
            record.refunded = true;
            D::give_back(guard, record).await?;
            let (live, told) = (app.live.clone(), record.clone());
            guard.after_commit(async move { live.appointment(&told, "refunded").await });
            // At once where we can; where we cannot, the outbox has it.
            let (provider, payment) = (app.provider.clone(), record.payment_id.clone());
            guard.after_commit(async move {
                let _ = provider.refund(&payment).await;
            });
            Ok(None)
        }
        _ => Ok(None),
    }
}

/// All other events.
async fn change<D: Records>(
    guard: &mut ReservationGuard<D>,
    record: &mut PaymentRecord,
    kind: &str,
) -> Result<Option<Now>, Fault> {
    let payment = HoldRef::payment(&record.payment_id);
    let hold = guard.find(payment).await?.ok_or(Fault::NOT_FOUND)?;
    let holder = record.subject.as_str();
    Ok(match (kind, hold.state()) {
        ("processing", HoldState::Held | HoldState::Processing) => {
            drop(guard.processing(hold.id()).await?);
            Some(("held", "processing"))
        }
        ("failed", HoldState::Processing)
        | ("expired", HoldState::Held | HoldState::Processing) => {
            drop(guard.release(hold.id(), holder).await?);
            Some(("free", "released"))
        }
        ("refunded", HoldState::Confirmed) => {
            drop(guard.cancel(hold.id(), holder).await?);
            record.refunded = true;
            D::give_back(guard, record).await?;
            Some(("free", "refunded"))
        }
        _ => None,
    })
}
