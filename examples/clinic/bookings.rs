//! Bookings as their people see them: the guest's appointments, the expert's calendar and customers.
//!
//! Try it: `curl -b jar localhost:8080/api/appointments`
//!
//! Proof: `pay`

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State as Extract;
use serde_json::{Value, json};
use tower_keep::MINUTE;
use tower_keep::core::Principal;
use tower_keep::response_cache::CachePolicy;

use crate::fault::Fault;
use crate::fixtures::{self, Expert};
use crate::records::PaymentRecord;
use crate::state::{App, State};

/// The expert whose account this is, as long as the account has the role.
pub fn expert_of(user: &Principal) -> Option<&'static Expert> {
    fixtures::EXPERTS
        .iter()
        .find(|expert| expert.owner == user.id() && user.has_role("expert"))
}

/// A booking as its owner and its expert see it.
pub fn booking_of(record: &PaymentRecord) -> Value {
    json!({
        "booking_id": record.booking_id,
        "reservation_id": record.reservation_id,
        "expert_id": record.expert_id,
        "service_id": record.service_id,
        "start": record.start,
        "end": record.end,
        "price_cents": record.price_cents,
        "status": if record.refunded { "refunded" } else { "confirmed" },
        "guest": record.guest,
    })
}

/// `GET /api/appointments`: an expert's own calendar, else the user's bookings.
pub async fn appointments(
    Extract(app): Extract<App>,
    user: Principal,
) -> Result<Json<Value>, Fault> {
    let rows = appointments_of(&app, &user).await?;
    Ok(Json(json!({ "appointments": rows })))
}

/// An expert's own calendar, else the user's bookings, by start.
pub async fn appointments_of(state: &State, user: &Principal) -> Result<Vec<Value>, Fault> {
    let bookings = match expert_of(user) {
        Some(expert) => state.db.bookings_of_expert(expert.id).await?,
        None => {
            let subject = format!("u:{}", user.id());
            state.db.bookings_of_subject(&subject).await?
        }
    };
    Ok(bookings.iter().map(booking_of).collect())
}

/// `GET /api/customers`: whom an expert has seen, kept for a quarter of an hour, for the expert alone.
pub async fn customers(
    Extract(app): Extract<App>,
    user: Principal,
) -> Result<(CachePolicy, Json<Value>), Fault> {
    app.counters.loaders_customers.add();
    let expert = expert_of(&user).ok_or(Fault::FORBIDDEN)?;
    let mut customers = BTreeMap::<String, (String, u32)>::new();
    for booking in app.db.bookings_of_expert(expert.id).await? {
        let (email, name) = (booking.guest.email, booking.guest.name);
        let customer = customers.entry(email).or_insert((name, 0));
        customer.1 += 1;
    }
    let rows: Vec<Value> = customers
        .into_iter()
        .map(|(email, (name, bookings))| json!({ "name": name, "email": email, "bookings": bookings }))
        .collect();
    let policy = CachePolicy::new()
        .ttl(15 * MINUTE)
        .tag(format!("dashboard:{}", user.id()));
    Ok((policy, Json(json!({ "customers": rows }))))
}
