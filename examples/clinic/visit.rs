//! What everybody may look at: the experts, and one expert's free times. Kept for all, dropped by tag.
//!
//! Try it: `curl -i localhost:8080/expert/e1` twice, and look at `Cache-Status`; or open it in a browser.
//!
//! Proof: `every_page_is_sound_on_a_phone_and_on_a_desktop_by_day_and_by_night`

use axum::extract::{Path, Query, State as Extract};
use axum::response::Response;
use minijinja::context;
use serde::Deserialize;
use tower_keep::response_cache::CachePolicy;
use tower_keep::{MINUTE, SECOND};

use crate::experts;
use crate::fault::Fault;
use crate::fixtures::{self, EXPERTS, Expert};
use crate::pages::{money, page, time};
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
