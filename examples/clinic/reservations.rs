//! What became of a hold: its owner looks at it, gives it back, and sees the booking. What is not yours does not exist.
//!
//! Try it: `curl -b jar-1 localhost:8080/api/reservations/RESERVATION_ID`
//!
//! Proof: `the_hold_runs_out`

use axum::Json;
use axum::extract::{Extension, Path, State as Extract};
use axum::http::StatusCode;
use serde_json::{Value, json};
use tower_keep::reservation::{Hold, HoldRef, HoldState, ReservationGuard};

use crate::announce::commit_and_tell;
use crate::bookings;
use crate::fault::Fault;
use crate::guests::Owner;
use crate::records::{PaymentRecord, Records};
use crate::state::App;

/// `GET /api/reservations/{id}`: what is not yours does not exist.
pub async fn show<D: Records>(
    Extension(owner): Extension<Owner>,
    mut guard: ReservationGuard<D>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Fault> {
    let (record, hold) = own::<D>(&mut guard, &owner, &id).await?;
    Ok(Json(json!({
        "reservation_id": record.reservation_id,
        "payment_id": record.payment_id,
        "expert_id": record.expert_id,
        "service_id": record.service_id,
        "start": record.start,
        "end": record.end,
        "price_cents": record.price_cents,
        "state": state_name(&record, hold.state()),
        "hold_expires_at": hold.expires_at(),
        "booking_id": record.booking_id,
    })))
}

/// `DELETE /api/reservations/{id}`: gives the slot back; again is harmless.
pub async fn release<D: Records>(
    Extract(app): Extract<App>,
    Extension(owner): Extension<Owner>,
    mut guard: ReservationGuard<D>,
    Path(id): Path<String>,
) -> Result<StatusCode, Fault> {
    let (record, hold) = own::<D>(&mut guard, &owner, &id).await?;
    match hold.state() {
        HoldState::Held | HoldState::Processing => {}
        HoldState::Confirmed => {
            let why = "this reservation is paid for";
            return Err(Fault::conflict("ALREADY_PAID", why));
        }
        // Given up before, or over: its time may be somebody else's by now, so nothing is told.
        _ => return Ok(StatusCode::NO_CONTENT),
    }
    guard.release(hold.id(), record.subject.as_str()).await?;
    let (provider, payment_id) = (app.provider.clone(), record.payment_id.clone());
    guard.after_commit(async move { provider.expire(&payment_id).await });
    commit_and_tell(&app, &mut guard, &record, ("free", "released")).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `GET /api/bookings/{id}`: for its owner and its expert.
pub async fn booking<D: Records>(
    Extension(owner): Extension<Owner>,
    mut guard: ReservationGuard<D>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Fault> {
    if !owner.is_known() {
        return Err(Fault::UNAUTHENTICATED);
    }
    let record = D::booking(&mut guard, &id).await?.ok_or(Fault::NOT_FOUND)?;
    if !owner.may_see(&record) {
        return Err(Fault::NOT_FOUND);
    }
    Ok(Json(bookings::booking_of(&record)))
}

/// The record and the hold behind it, if this request owns them.
pub async fn own<D: Records>(
    guard: &mut ReservationGuard<D>,
    owner: &Owner,
    id: &str,
) -> Result<(PaymentRecord, Hold), Fault> {
    let record = D::payment_of(guard, id)
        .await?
        .filter(|record| owner.owns(&record.subject))
        .ok_or(Fault::NOT_FOUND)?;
    let hold = guard
        .find(HoldRef::payment(&record.payment_id))
        .await?
        .ok_or(Fault::NOT_FOUND)?;
    Ok((record, hold))
}

/// What a state is called outside.
pub fn state_name(record: &PaymentRecord, state: HoldState) -> &'static str {
    match state {
        _ if record.refunded => "refunded",
        HoldState::Held => "held",
        HoldState::Processing => "processing",
        HoldState::Confirmed => "confirmed",
        HoldState::Released => "released",
        HoldState::Expired => "expired",
        HoldState::Cancelled | HoldState::LateConflict => "refunded",
    }
}
