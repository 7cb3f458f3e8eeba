//! A private cached answer: half an hour, refreshed in the background after twenty minutes, dropped by a new booking.
//!
//! Try it: `curl -i -b jar localhost:8080/api/dashboard` twice as `ana@clinic.test`, and look at `Age`.
//!
//! Proof: `dashboard`

use axum::Json;
use axum::extract::State as Extract;
use axum::http::HeaderValue;
use serde_json::{Value, json};
use tower_keep::MINUTE;
use tower_keep::core::Principal;
use tower_keep::response_cache::{CachePolicy, ResponseCacheLayer};

use crate::bookings;
use crate::fault::Fault;
use crate::state::{App, State};

/// The same cache as the catalogue's; what it keeps here belongs to one user, and browsers ask again each time.
pub fn kept(state: &State) -> ResponseCacheLayer {
    let kept = state.catalogue.clone().private();
    kept.downstream(HeaderValue::from_static("private, no-cache"))
}

/// `GET /api/dashboard`
pub async fn dashboard(
    Extract(app): Extract<App>,
    user: Principal,
) -> Result<(CachePolicy, Json<Value>), Fault> {
    app.counters.loaders_dashboard.add();
    let expert = bookings::expert_of(&user).ok_or(Fault::FORBIDDEN)?;
    let bookings = app.db.bookings_of_expert(expert.id).await?;
    let confirmed = bookings.iter().filter(|booking| !booking.refunded);
    let (count, revenue) = confirmed.fold((0, 0), |(count, revenue), booking| {
        (count + 1, revenue + booking.price_cents)
    });
    let policy = CachePolicy::new()
        .ttl(30 * MINUTE)
        .refresh_after(20 * MINUTE)
        .tag(format!("dashboard:{}", user.id()));
    let body = json!({ "bookings": count, "revenue_cents": revenue, "generated_at": app.now() });
    Ok((policy, Json(body)))
}
