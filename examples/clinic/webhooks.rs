//! Signed events: the signature first, then one claim per event id, then the booking in one transaction.
//!
//! Try it: `curl -X POST localhost:8080/fakepay/PAYMENT_ID -H 'content-type: application/json' -d '{"outcome":"succeeded"}'`

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::body::{Body, to_bytes};
use axum::extract::{FromRequest, Path, Request, State as Extract};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::post;
use axum::{Form, Json, Router};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};
use subtle::ConstantTimeEq;
use tower::{ServiceBuilder, ServiceExt};
use tower_keep::DAY;
use tower_keep::idempotency::{IdempotencyLayer, Preset, Scope, StoredAnswer};
use tower_keep::reservation::{Hold, HoldRef, HoldState, ReservationGuard, Settled};

use crate::notifications;
use crate::payments::commit_and_tell;
use crate::problem::{Fault, Input};
use crate::provider::{self, Event, EventData};
use crate::records::{PaymentRecord, Records};
use crate::state::{App, State};

/// The route that the provider calls, with everything that guards it.
pub fn router<D: Records>(app: &App) -> Router<App> {
    Router::new()
        .route("/api/webhooks/payments", post(receive::<D>))
        .layer(
            ServiceBuilder::new()
                .layer(from_fn_with_state(app.clone(), check_signature))
                .layer(once(app))
                .layer(app.bookings.clone()),
        )
}

const DUPLICATE: &[u8] = br#"{"received":true,"duplicate":true}"#;

/// A finished event is remembered for seven days, and its repetition says so.
fn once(state: &State) -> IdempotencyLayer {
    IdempotencyLayer::new(state.store.clone(), Scope::global())
        .preset(Preset::Webhook)
        .ttl(7 * DAY)
        .secret(state.key_secret())
        .sanitize(|answer: &mut StoredAnswer| answer.body = Bytes::from_static(DUPLICATE))
}

async fn check_signature(Extract(app): Extract<App>, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, 64 * 1_024).await else {
        return Fault::Plain(
            StatusCode::PAYLOAD_TOO_LARGE,
            "BODY_TOO_LARGE",
            "a body has 64 KiB at most",
        )
        .into_response();
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

/// `POST /api/webhooks/payments`: booking and state commit together; unknown payments and types are ignored.
async fn receive<D: Records>(
    Extract(app): Extract<App>,
    mut guard: ReservationGuard<D>,
    Input(event): Input<Event>,
) -> Result<Json<Value>, Fault> {
    app.counters.handlers_webhook.add();
    let received = Json(json!({ "received": true, "duplicate": false }));
    let Some(record) = D::payment(&mut guard, &event.data.payment_id).await? else {
        return Ok(received);
    };
    let payment = HoldRef::payment(&record.payment_id);
    match event.kind.as_str() {
        "succeeded" => settle::<D>(&app, &mut guard, record).await?,
        kind => {
            let hold = guard.find(payment).await?.ok_or(Fault::NOT_FOUND)?;
            // An event that comes too late for the state changes nothing, and need not come again.
            match (kind, hold.state()) {
                ("processing", HoldState::Held | HoldState::Processing) => {
                    drop(guard.processing(hold.id()).await?);
                    commit_and_tell(&app, &mut guard, &record, ("held", "processing")).await?;
                }
                ("failed", HoldState::Processing)
                | ("expired", HoldState::Held | HoldState::Processing) => {
                    drop(guard.release(hold.id(), record.subject.as_str()).await?);
                    commit_and_tell(&app, &mut guard, &record, ("free", "released")).await?;
                }
                _ => {}
            }
        }
    }
    Ok(received)
}

/// Confirms the hold. A payment that came too late for a slot that is gone is given back.
async fn settle<D: Records>(
    app: &App,
    guard: &mut ReservationGuard<D>,
    mut record: PaymentRecord,
) -> Result<(), Fault> {
    match guard.confirm(HoldRef::payment(&record.payment_id)).await? {
        Settled::Confirmed(_) => {
            record.booking_id = Some(format!("bok_{}", uuid::Uuid::now_v7().simple()));
            D::book(guard, &record).await?;
            commit_and_tell(app, guard, &record, ("booked", "confirmed")).await?;
        }
        Settled::LateConflict(_) | Settled::DuplicatePayment(_) => {
            // Read again under the hold's lock: another event may have given it back meanwhile.
            let known = D::payment(guard, &record.payment_id).await?;
            let Some(mut record) = known.filter(|known| !known.refunded) else {
                return Ok(());
            };
            record.refunded = true;
            D::give_back(guard, &record).await?;
            let provider = app.provider.clone();
            guard.after_commit(async move { provider.refund(&record.payment_id).await });
        }
        _ => {}
    }
    Ok(())
}

#[derive(Deserialize)]
pub struct Paying {
    outcome: String,
}

/// `POST /fakepay/{payment_id}`: the guest's side of the provider; it answers once its event was delivered. A form
/// leads on to the reservation.
pub async fn fakepay<D: Records>(
    Extract(app): Extract<App>,
    mut guard: ReservationGuard<D>,
    Path(payment_id): Path<String>,
    request: Request,
) -> Result<Response, Fault> {
    if !is_form(request.headers()) {
        let Input(paying) = Input::<Paying>::from_request(request, &()).await?;
        return told::<D>(&app, &mut guard, payment_id, &paying).await;
    }
    let Form(paying) = Form::<Paying>::from_request(request, &())
        .await
        .map_err(|_| Fault::validation("the form is incomplete"))?;
    let paid = settle_payment::<D>(&app, &mut guard, &payment_id, &paying.outcome).await?;
    let next = format!("/reservation/{}", paid.reservation_id);
    Ok(Redirect::to(&next).into_response())
}

/// Says whether a browser sent this from a page.
pub fn is_form(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE);
    kind.is_some_and(|kind| {
        kind.as_bytes()
            .starts_with(b"application/x-www-form-urlencoded")
    })
}

async fn told<D: Records>(
    app: &App,
    guard: &mut ReservationGuard<D>,
    payment_id: String,
    paying: &Paying,
) -> Result<Response, Fault> {
    let paid = settle_payment::<D>(app, guard, &payment_id, &paying.outcome).await?;
    Ok(Json(json!({
        "payment_id": payment_id,
        "status": paid.status,
        "event_id": paid.event_id,
        "webhook_status": paid.delivered.as_u16(),
    }))
    .into_response())
}

/// What became of a visit to the provider.
pub struct Paid {
    pub reservation_id: String,
    pub status: &'static str,
    pub event_id: String,
    pub delivered: StatusCode,
}

/// Ends the payment as the guest chose, and delivers the provider's event.
pub async fn settle_payment<D: Records>(
    app: &App,
    guard: &mut ReservationGuard<D>,
    payment_id: &str,
    outcome: &str,
) -> Result<Paid, Fault> {
    let (kind, status) = match outcome {
        "succeeded" => ("succeeded", "succeeded"),
        "failed" => ("failed", "failed"),
        "voucher" => ("processing", "processing"),
        _ => return Err(Fault::validation("outcome is succeeded, failed or voucher")),
    };
    let record = D::payment(guard, payment_id)
        .await?
        .ok_or(Fault::NOT_FOUND)?;
    payable(guard, payment_id).await?;
    // The event is handled in a transaction of its own: this one ends here.
    guard.commit().await?;
    let event = Event {
        id: format!("evt_{}", uuid::Uuid::now_v7().simple()),
        kind: kind.to_owned(),
        created: app.now(),
        data: EventData {
            payment_id: record.payment_id,
        },
    };
    let delivered = deliver::<D>(app, &event).await;
    Ok(Paid {
        reservation_id: record.reservation_id,
        status,
        event_id: event.id,
        delivered,
    })
}

/// The hold of a payment that can still be made.
pub async fn payable<D: Records>(
    guard: &mut ReservationGuard<D>,
    payment_id: &str,
) -> Result<Hold, Fault> {
    let hold = guard
        .find(HoldRef::payment(payment_id))
        .await?
        .ok_or(Fault::NOT_FOUND)?;
    match hold.state() {
        HoldState::Held | HoldState::Processing => Ok(hold),
        HoldState::Confirmed => Err(Fault::conflict("ALREADY_PAID", "this is paid for")),
        _ => Err(Fault::Plain(
            StatusCode::GONE,
            "PAYMENT_SESSION_EXPIRED",
            "the hold has run out",
        )),
    }
}

/// Signs an event and sends it to our own route, through everything that guards it.
async fn deliver<D: Records>(app: &App, event: &Event) -> StatusCode {
    let body = serde_json::to_vec(event).unwrap_or_default();
    let signature = provider::sign(&app.options.webhook_secret, &body, app.now());
    let request = Request::post("/api/webhooks/payments")
        .header(header::CONTENT_TYPE, "application/json")
        .header(provider::SIGNATURE, signature)
        .body(Body::from(body));
    let Ok(request) = request else {
        return StatusCode::INTERNAL_SERVER_ERROR;
    };
    let routes = router::<D>(app).with_state(app.clone());
    routes
        .oneshot(request)
        .await
        .map_or(StatusCode::INTERNAL_SERVER_ERROR, |response| {
            response.status()
        })
}

/// `POST /internal/cron/cleanup-reservations`: counts the holds that this run ended.
pub async fn cron<D: Records>(
    Extract(app): Extract<App>,
    headers: HeaderMap,
) -> Result<Json<Value>, Fault> {
    let sent = headers
        .get(header::AUTHORIZATION)
        .map(HeaderValue::as_bytes)
        .unwrap_or_default();
    let wanted = format!("Bearer {}", app.options.cron_secret);
    if !bool::from(sent.ct_eq(wanted.as_bytes())) {
        return Err(Fault::UNAUTHENTICATED);
    }
    let (swept, made) = (app.reservations.sweep().await?, Arc::default());
    notifications::sweeper(&app, &made).once().await?;
    let notified = made.load(Ordering::Relaxed);
    Ok(Json(
        json!({ "released": swept.expired, "notified": notified }),
    ))
}
