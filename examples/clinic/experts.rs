//! ResponseCacheLayer: the catalogue for ten minutes, free slots for seconds, dropped by tag when something changes.
//!
//! Try it: `curl -i 'localhost:8080/api/experts/e1/slots?service=s60&day='$(date -ud 'next monday' +%F)` twice, and look at `Cache-Status`.
//!
//! Proof: `the_catalogue_is_computed_once_and_says_so`

use std::time::Duration;

use axum::Json;
use axum::extract::{Path, Query, State as Extract};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tower_keep::core::Timestamp;
use tower_keep::reservation::BusyState;
use tower_keep::response_cache::CachePolicy;
use tower_keep::{DAY, MINUTE, SECOND};

use crate::fault::Fault;
use crate::fixtures::{self, EXPERTS, Expert, Service};
use crate::state::{App, State};

/// `GET /api/experts`
pub async fn list(Extract(app): Extract<App>) -> Result<(CachePolicy, Json<Value>), Fault> {
    app.counters.loaders_experts.add();
    let mut experts = Vec::new();
    for expert in &EXPERTS {
        experts.push(card(&app, expert).await?);
    }
    let policy = CachePolicy::new().ttl(10 * MINUTE).tag("experts");
    Ok((policy, Json(experts.into())))
}

/// What everybody sees of an expert. Name and status are the owner's profile.
async fn card(state: &State, expert: &Expert) -> Result<Value, Fault> {
    let owner = state.db.user(expert.owner).await?.ok_or(Fault::NOT_FOUND)?;
    Ok(
        json!({ "id": expert.id, "name": owner.name, "status": owner.status, "services": expert.services }),
    )
}

/// `GET /api/experts/{id}`
pub async fn one(
    Extract(app): Extract<App>,
    Path(id): Path<String>,
) -> Result<(CachePolicy, Json<Value>), Fault> {
    app.counters.loaders_expert.add();
    let expert = fixtures::expert(&id).ok_or(Fault::NOT_FOUND)?;
    let owner = app.db.user(expert.owner).await?;
    let mut body = card(&app, expert).await?;
    body["bio"] = owner.and_then(|owner| owner.bio).into();
    Ok((
        CachePolicy::new()
            .ttl(10 * MINUTE)
            .tag(format!("expert:{id}")),
        Json(body),
    ))
}

#[derive(Deserialize)]
pub struct Wanted {
    service: Option<String>,
    day: Option<String>,
}

/// One start of a service, and whether somebody has it.
#[derive(Serialize)]
pub struct SlotRow {
    pub start: Timestamp,
    pub end: Timestamp,
    pub state: &'static str,
}

/// `GET /api/experts/{id}/slots?service=s60&day=2030-01-02`: kept for 15 s, or until the next hold in the list ends.
pub async fn slots(
    Extract(app): Extract<App>,
    Path(id): Path<String>,
    Query(wanted): Query<Wanted>,
) -> Result<(CachePolicy, Json<Value>), Fault> {
    app.counters.loaders_slots.add();
    let chosen = wanted.day.ok_or(Fault::validation("say which day"))?;
    let chosen = day(&chosen)?;
    let expert = fixtures::expert(&id).ok_or(Fault::NOT_FOUND)?;
    let service = expert
        .service(wanted.service.as_deref().unwrap_or("s30"))
        .ok_or(Fault::NOT_FOUND)?;
    let (rows, changes_in) = slots_of(&app, expert, service, chosen).await?;
    let fresh_for = changes_in.unwrap_or(Duration::MAX).min(15 * SECOND);
    let policy = CachePolicy::new().tag(format!("slots:{id}"));
    let policy = if fresh_for < SECOND {
        policy.no_store()
    } else {
        policy.ttl(fresh_for)
    };
    Ok((policy, Json(json!({ "slots": rows }))))
}

/// The UTC midnight that a day's name means.
pub fn day(name: &str) -> Result<Timestamp, Fault> {
    let midnight = fixtures::moment(&format!("{name}T00:00:00Z"));
    midnight.ok_or_else(|| Fault::validation("a day is written like 2030-01-02"))
}

/// All starts of a service on one day, and when the first hold among them ends.
pub async fn slots_of(
    state: &State,
    expert: &Expert,
    service: &Service,
    day: Timestamp,
) -> Result<(Vec<SlotRow>, Option<Duration>), Fault> {
    let busy = state
        .reservations
        .availability(expert.id, day..day + DAY)
        .await?;
    let now = state.now();
    let (mut rows, mut changes_in) = (Vec::new(), None::<Duration>);
    for start in fixtures::starts(day, service.length(), now) {
        let end = start + service.length();
        let mut state = "free";
        for span in busy
            .spans()
            .iter()
            .filter(|span| span.start < end && start < span.end)
        {
            match span.state {
                BusyState::Booked => state = "booked",
                BusyState::Held(until) => {
                    let rest = until.since(now);
                    changes_in = Some(changes_in.map_or(rest, |least| least.min(rest)));
                    if state == "free" {
                        state = "held";
                    }
                }
            }
        }
        rows.push(SlotRow { start, end, state });
    }
    Ok((rows, changes_in))
}
