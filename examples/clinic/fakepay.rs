//! The guest's side of the fake payment provider: the payment ends as chosen, and the provider tells us so.
//!
//! Try it: `curl -X POST localhost:8080/fakepay/PAYMENT_ID -H 'content-type: application/json' -d '{"outcome":"succeeded"}'`
//!
//! Proof: `a_guest_who_hangs_up_while_paying_has_paid`

use axum::extract::{FromRequest, Path, Request, State as Extract};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use axum::{Form, Json};
use serde::Deserialize;
use serde_json::json;
use tower_keep::reservation::{Hold, HoldRef, HoldState, ReservationGuard};

use crate::deliveries;
use crate::fault::{Fault, Input};
use crate::provider::{Event, EventData};
use crate::records::Records;
use crate::state::App;

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
        let Input(paying) = Input::<Paying>::from_request(request, &app).await?;
        return told::<D>(&app, &mut guard, payment_id, &paying).await;
    }
    let Form(paying) = Form::<Paying>::from_request(request, &())
        .await
        .map_err(Fault::of_form)?;
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
    let id = event.id.clone();
    // A guest who closes the window after paying has paid all the same: this goes on without him.
    let telling = app.under_way.to_its_end(tell::<D>(app.clone(), event));
    let delivered = telling.await?;
    Ok(Paid {
        reservation_id: record.reservation_id,
        status,
        event_id: id,
        delivered,
    })
}

/// Takes the money and delivers the event: at once, from the queue, or where that is away too, from the provider's own memory.
async fn tell<D: Records>(app: App, event: Event) -> Result<StatusCode, Fault> {
    let is_paid = event.kind == "succeeded";
    // Ended while the guest was looking: no money is taken, and nothing is told.
    if is_paid && !app.provider.pay(&event).await? {
        return Err(GONE);
    }
    let delivered = deliveries::send::<D>(&app, &event).await;
    if delivered.is_success() {
        app.provider.told(&event).await;
        return Ok(delivered);
    }
    match deliveries::again(&app, &event).await {
        Err(fault) if !is_paid => Err(fault),
        _ => Ok(delivered),
    }
}

const GONE: Fault = Fault::Plain(
    StatusCode::GONE,
    "PAYMENT_SESSION_EXPIRED",
    "the hold has run out",
);

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
        _ => Err(GONE),
    }
}
