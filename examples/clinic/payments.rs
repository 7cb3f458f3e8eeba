//! The heart: idempotency, then the reservation guard. A slot is held, paid for, and never sold twice.
//!
//! Try it: `curl -i localhost:8080/api/create-payment-intent -H 'content-type: application/json' -H 'idempotency-key: k1' -d "$wish"`, with the `wish` of the tour
//!
//! Proof: `a_race_for_one_slot`

mod keys;

use axum::Json;
use axum::extract::{Extension, State as Extract};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Deserialize;
use serde_json::{Value, json};
use tower_keep::core::Timestamp;
use tower_keep::reservation::{
    Conflict, Hold, HoldOutcome, Payment, ReservationError, ReservationGuard, Slot,
};

pub use self::keys::{once, once_per_form};
use crate::announce::commit_and_tell;
use crate::customers;
use crate::fault::{Fault, Input, line};
use crate::fixtures;
use crate::guests::Owner;
use crate::provider::PaymentSession;
use crate::records::{Guest, PaymentRecord, Records};
use crate::state::App;

#[derive(Deserialize)]
pub struct Wish {
    pub expert_id: String,
    pub service_id: String,
    #[serde(deserialize_with = "fixtures::start")]
    pub start: Timestamp,
    pub price_cents: i64,
    pub guest: Guest,
}

/// A hold with a payment session; of any number of equal wishes of one subject there is one.
pub struct Opened {
    pub record: PaymentRecord,
    pub hold: Hold,
    pub is_new: bool,
}

/// `POST /api/create-payment-intent`: hold the slot, open a payment session, tie the two together.
pub async fn create<D: Records>(
    Extract(app): Extract<App>,
    Extension(owner): Extension<Owner>,
    mut guard: ReservationGuard<D>,
    Input(wish): Input<Wish>,
) -> Result<(StatusCode, HeaderMap, Json<Value>), Fault> {
    let opened = open::<D>(&app, &owner, &mut guard, wish).await?;
    let status = if opened.is_new {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    Ok(answer(status, &opened.record, &opened.hold))
}

/// Holds the slot and opens a payment session for it.
pub async fn open<D: Records>(
    app: &App,
    owner: &Owner,
    guard: &mut ReservationGuard<D>,
    wish: Wish,
) -> Result<Opened, Fault> {
    app.counters.handlers_create.add();
    let expert = fixtures::expert(&wish.expert_id).ok_or(Fault::NOT_FOUND)?;
    let service = expert.service(&wish.service_id).ok_or(Fault::NOT_FOUND)?;
    if !fixtures::is_offered(wish.start, service.length(), app.now()) {
        return Err(Fault::SLOT_NOT_OFFERED);
    }
    if wish.price_cents != service.price_cents {
        return Err(Fault::conflict(
            "PRICE_MISMATCH",
            "the price has changed, load it again",
        ));
    }
    line("guest.name", &wish.guest.name, 1..=100)?;
    line("guest.email", &wish.guest.email, 1..=254)?;
    let end = wish.start + service.length();
    let slot = Slot::new(expert.id, wish.start..end);
    let hold = guard.hold(slot, owner.subject()).key(service.id).await?;
    if hold.outcome() == HoldOutcome::Reused {
        let known = D::payment_of(guard, &hold.id().to_string()).await?;
        // Without a payment yet: the first wish is still at the provider.
        let known = known.ok_or_else(|| still_opening(&hold, app.now()))?;
        return Ok(Opened {
            record: known,
            hold,
            is_new: false,
        });
    }
    let mut record = PaymentRecord {
        payment_id: String::new(),
        reservation_id: hold.id().to_string(),
        booking_id: None,
        subject: owner.subject().to_owned(),
        expert_id: expert.id.to_owned(),
        service_id: service.id.to_owned(),
        start: wish.start,
        end,
        price_cents: service.price_cents,
        guest: wish.guest,
        hold_expires_at: hold.expires_at(),
        refunded: false,
    };
    // Durable before the network call: no lock is held while the provider thinks. A failure below releases the hold.
    commit_and_tell(app, guard, &record, ("held", "held")).await?;
    let session = match session_of(app, owner).await {
        Ok(session) => session,
        Err(away) => {
            drop(guard.release(hold.id(), owner.subject()).await?);
            commit_and_tell(app, guard, &record, ("free", "released")).await?;
            return Err(away);
        }
    };
    let (provider, payment_id) = (app.provider.clone(), session.id.clone());
    guard.after_rollback(move |_cause| async move { provider.expire(&payment_id).await });
    record.payment_id = session.id;
    let mut payment = Payment::new(&record.payment_id);
    if let Some(end) = hold.expires_at() {
        payment = payment.valid_until(end);
    }
    guard.attach_payment(hold.id(), payment).await?;
    D::insert(guard, &record).await?;
    Ok(Opened {
        record,
        hold,
        is_new: true,
    })
}

/// A payment session; a signed-in user is one customer at the provider, ever.
async fn session_of(app: &App, owner: &Owner) -> Result<PaymentSession, Fault> {
    if let Some(user) = owner.user() {
        customers::of(app, user).await?;
    }
    app.provider.open().await
}

fn still_opening(hold: &Hold, now: Timestamp) -> Fault {
    let end = hold.expires_at().unwrap_or(now);
    let taken = Conflict::SlotTaken {
        held_until: Some(end),
        by_you: true,
        retry_after: end.since(now).as_secs().max(1),
    };
    ReservationError::from(taken).into()
}

fn answer(
    status: StatusCode,
    record: &PaymentRecord,
    hold: &Hold,
) -> (StatusCode, HeaderMap, Json<Value>) {
    let location = HeaderValue::try_from(format!("/api/reservations/{}", record.reservation_id));
    let headers = HeaderMap::from_iter(location.map(|at| (header::LOCATION, at)));
    let body = json!({
        "reservation_id": record.reservation_id,
        "payment_id": record.payment_id,
        "url": format!("/pay/{}", record.payment_id),
        "hold_expires_at": hold.expires_at(),
    });
    (status, headers, Json(body))
}
