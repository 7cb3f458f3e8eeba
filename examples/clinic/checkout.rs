//! The pages from a free time to a confirmation: the form, the payment, the reservation. Each works by links and forms alone.
//!
//! Try it: `curl -i 'localhost:8080/book?expert_id=e1&service_id=s60&start=2030-01-02T10:00:00Z'`, with a day from now on
//!
//! Proof: `a_guest_books_and_pays_by_links_and_forms_alone_and_a_double_click_is_one_booking`

use axum::extract::rejection::FormRejection;
use axum::extract::{Extension, Form, Path, Query, State as Extract};
use axum::response::{Redirect, Response};
use minijinja::context;
use serde::Deserialize;
use tower_keep::core::Timestamp;
use tower_keep::reservation::{HoldState, ReservationGuard};

use crate::fakepay;
use crate::fault::Fault;
use crate::fixtures;
use crate::guests::Owner;
use crate::pages::{moment, money, page};
use crate::payments::{self, Wish};
use crate::records::{Guest, Records};
use crate::reservations;
use crate::state::{App, State};

#[derive(Deserialize)]
pub struct Chosen {
    expert_id: String,
    service_id: String,
    #[serde(deserialize_with = "fixtures::start")]
    start: Timestamp,
}

/// `GET /book?expert_id=&service_id=&start=`
pub async fn book(
    Extract(app): Extract<App>,
    Query(chosen): Query<Chosen>,
) -> Result<Response, Fault> {
    let expert = fixtures::expert(&chosen.expert_id).ok_or(Fault::NOT_FOUND)?;
    let service = expert.service(&chosen.service_id).ok_or(Fault::NOT_FOUND)?;
    if !fixtures::is_offered(chosen.start, service.length(), app.now()) {
        return Err(Fault::SLOT_NOT_OFFERED);
    }
    let owner = app.db.user(expert.owner).await?.ok_or(Fault::NOT_FOUND)?;
    page(
        "book.html",
        context! {
            expert => owner.name,
            service => service.name,
            when => moment(chosen.start),
            price => money(service.price_cents),
            expert_id => expert.id,
            service_id => service.id,
            start => chosen.start.to_string(),
            price_cents => service.price_cents,
            nonce => uuid::Uuid::new_v4().simple().to_string(),
        },
    )
}

#[derive(Deserialize)]
pub struct BookForm {
    expert_id: String,
    service_id: String,
    #[serde(deserialize_with = "fixtures::start")]
    start: Timestamp,
    price_cents: i64,
    guest_name: String,
    guest_email: String,
}

/// `POST /book`: what the API does, and on to the payment.
pub async fn submit<D: Records>(
    Extract(app): Extract<App>,
    Extension(owner): Extension<Owner>,
    mut guard: ReservationGuard<D>,
    form: Result<Form<BookForm>, FormRejection>,
) -> Result<Redirect, Fault> {
    let Form(form) = form.map_err(Fault::of_form)?;
    let wish = Wish {
        expert_id: form.expert_id,
        service_id: form.service_id,
        start: form.start,
        price_cents: form.price_cents,
        guest: Guest {
            name: form.guest_name,
            email: form.guest_email,
        },
    };
    let opened = payments::open::<D>(&app, &owner, &mut guard, wish).await?;
    Ok(Redirect::to(&format!("/pay/{}", opened.record.payment_id)))
}

/// What a page calls an expert.
pub async fn name_of(state: &State, expert: &str) -> Result<String, Fault> {
    let expert = fixtures::expert(expert).ok_or(Fault::NOT_FOUND)?;
    let owner = state.db.user(expert.owner).await?.ok_or(Fault::NOT_FOUND)?;
    Ok(owner.name)
}

/// `GET /pay/{payment_id}`: the guest's side of the provider.
pub async fn pay<D: Records>(
    Extract(app): Extract<App>,
    mut guard: ReservationGuard<D>,
    Path(id): Path<String>,
) -> Result<Response, Fault> {
    let record = D::payment(&mut guard, &id).await?.ok_or(Fault::NOT_FOUND)?;
    let hold = fakepay::payable(&mut guard, &id).await?;
    // All was read: what follows needs the connection that this transaction has.
    guard.commit().await?;
    let service = fixtures::expert(&record.expert_id)
        .and_then(|expert| expert.service(&record.service_id))
        .ok_or(Fault::NOT_FOUND)?;
    let until = hold.expires_at().unwrap_or(record.start);
    page(
        "pay.html",
        context! {
            payment_id => record.payment_id,
            expert => name_of(&app, &record.expert_id).await?,
            service => service.name,
            when => moment(record.start),
            price => money(record.price_cents),
            hold_expires_at => until.to_string(),
            hold_until => moment(until),
        },
    )
}

/// `GET /reservation/{id}`
pub async fn reservation<D: Records>(
    Extract(app): Extract<App>,
    Extension(owner): Extension<Owner>,
    mut guard: ReservationGuard<D>,
    Path(id): Path<String>,
) -> Result<Response, Fault> {
    let before = app.live.newest(&format!("appointment:{id}")).await;
    let (record, hold) = reservations::own::<D>(&mut guard, &owner, &id).await?;
    guard.commit().await?;
    let service = fixtures::expert(&record.expert_id)
        .and_then(|expert| expert.service(&record.service_id))
        .ok_or(Fault::NOT_FOUND)?;
    let state = reservations::state_name(&record, hold.state());
    let sentence = match hold.state() {
        HoldState::Held => "Held for you: please pay.",
        HoldState::Processing => "Your voucher is being checked; the time stays yours meanwhile.",
        HoldState::Confirmed => "Confirmed. We look forward to seeing you.",
        HoldState::Released => "Given back.",
        HoldState::Expired => "The time to pay is over; nothing was booked.",
        HoldState::Cancelled | HoldState::LateConflict => "Refunded: your money comes back.",
    };
    page(
        "reservation.html",
        context! {
            reservation_id => record.reservation_id,
            payment_id => record.payment_id,
            state,
            sentence,
            last_event_id => before,
            expert_id => record.expert_id,
            expert => name_of(&app, &record.expert_id).await?,
            service => service.name,
            start => record.start.to_string(),
            price => money(record.price_cents),
        },
    )
}
