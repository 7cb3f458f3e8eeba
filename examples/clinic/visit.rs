//! The pages of a visit: experts, free times, the booking form, the payment, the confirmation.
//!
//! Try it: open `http://localhost:8080/expert/e1`

use axum::extract::{Extension, Form, Path, Query, State as Extract};
use axum::response::{Redirect, Response};
use minijinja::context;
use serde::Deserialize;
use tower_keep::core::Timestamp;
use tower_keep::reservation::{HoldState, ReservationGuard};
use tower_keep::response_cache::CachePolicy;
use tower_keep::{MINUTE, SECOND};

use crate::experts;
use crate::fakepay;
use crate::fault::Fault;
use crate::fixtures::{self, EXPERTS, Expert};
use crate::guests::Owner;
use crate::pages::{moment, money, page, time};
use crate::payments::{self, Wish};
use crate::records::{Guest, Records};
use crate::reservations;
use crate::state::{App, State};

/// `GET /`
pub async fn home(Extract(app): Extract<App>) -> Result<(CachePolicy, Response), Fault> {
    let mut rows = Vec::new();
    for expert in &EXPERTS {
        rows.push(card(&app, expert).await?);
    }
    let policy = CachePolicy::new()
        .ttl(MINUTE)
        .stale_while_revalidate(30 * SECOND)
        .tag("page");
    Ok((policy, page("home.html", context! { experts => rows })?))
}

async fn card(state: &State, expert: &Expert) -> Result<minijinja::Value, Fault> {
    let owner = state.db.user(expert.owner).await?.ok_or(Fault::NOT_FOUND)?;
    let services = expert.services.iter().map(|service| {
        context! { id => service.id, name => service.name, price => money(service.price_cents) }
    });
    Ok(context! {
        id => expert.id,
        name => owner.name,
        status => owner.status,
        bio => owner.bio,
        last_event_id => state.live.newest(&format!("expert:{}:status", expert.id)).await,
        services => services.collect::<Vec<_>>(),
    })
}

#[derive(Deserialize)]
pub struct Wanted {
    service: Option<String>,
    day: Option<String>,
}

/// `GET /expert/{id}?service=&day=`: kept for a minute, but never past the end of a hold that it shows.
pub async fn expert(
    Extract(app): Extract<App>,
    Path(id): Path<String>,
    Query(wanted): Query<Wanted>,
) -> Result<(CachePolicy, Response), Fault> {
    let expert = fixtures::expert(&id).ok_or(Fault::NOT_FOUND)?;
    let service = match wanted.service.as_deref().filter(|id| !id.is_empty()) {
        Some(id) => expert.service(id).ok_or(Fault::NOT_FOUND)?,
        None => &expert.services[0],
    };
    let day = match wanted.day.as_deref().filter(|day| !day.is_empty()) {
        Some(day) => experts::day(day)?,
        None => fixtures::next_weekday(app.now()),
    };
    // Read first: what happens from here on is told by the stream.
    let before = app.live.newest(&format!("slots:{id}")).await;
    let (slots, changes_in) = experts::slots_of(&app, expert, service, day).await?;
    let rows = slots.iter().map(|slot| {
        let (start, end) = (slot.start.to_string(), slot.end.to_string());
        context! { start, end, time => time(slot.start), state => slot.state }
    });
    let made = page(
        "expert.html",
        context! {
            expert => card(&app, expert).await?,
            chosen => service.id,
            day => &day.to_string()[..10],
            slots => rows.collect::<Vec<_>>(),
            slots_event_id => before,
        },
    )?;
    let policy = CachePolicy::new()
        .tag("page")
        .tag(format!("slots:{id}"))
        .tag(format!("expert:{id}"));
    let policy = match changes_in {
        Some(soon) if soon < SECOND => policy.no_store(),
        Some(soon) if soon <= MINUTE => policy.ttl(soon),
        Some(later) => policy
            .ttl(MINUTE)
            .stale_while_revalidate((later - MINUTE).min(30 * SECOND)),
        None => policy.ttl(MINUTE).stale_while_revalidate(30 * SECOND),
    };
    Ok((policy, made))
}

#[derive(Deserialize)]
pub struct Chosen {
    expert_id: String,
    service_id: String,
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
    form: Result<Form<BookForm>, axum::extract::rejection::FormRejection>,
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

/// What the page calls an expert.
async fn name_of(state: &State, expert: &str) -> Result<String, Fault> {
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
    let state = reservations::state_name(hold.state());
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
            expert => name_of(&app, &record.expert_id).await?,
            service => service.name,
            start => record.start.to_string(),
            price => money(record.price_cents),
        },
    )
}
