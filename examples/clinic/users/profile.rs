//! The profile, which is also the expert's page, and the expert's status: whatever shows them forgets them at once, also
//! where the client hangs up in between.
//!
//! Try it: `curl -b jar localhost:8080/api/user/profile`
//!
//! Proof: `a_changed_profile_or_status_shows_in_the_catalogue_at_once`

use axum::Json;
use axum::extract::State as Extract;
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use tower_keep::core::Principal;
use tower_keep::response_cache::Target;

use super::UserRecord;
use crate::bookings;
use crate::fault::{Fault, Input, line, lines};
use crate::fixtures;
use crate::state::App;

/// `GET /api/user/profile`
pub async fn profile(Extract(app): Extract<App>, user: Principal) -> Result<Json<Value>, Fault> {
    let found = app.db.user(user.id()).await?.ok_or(Fault::NOT_FOUND)?;
    Ok(Json(profile_of(&found)))
}

#[derive(Deserialize)]
pub struct Profile {
    name: String,
    phone: Option<String>,
    bio: Option<String>,
}

/// `PUT /api/user/profile`: whoever shows the name shows the new one at the next request.
pub async fn set_profile(
    Extract(app): Extract<App>,
    user: Principal,
    Input(wish): Input<Profile>,
) -> Result<Json<Value>, Fault> {
    line("name", &wish.name, 1..=100)?;
    line("phone", wish.phone.as_deref().unwrap_or_default(), 0..=30)?;
    lines("bio", wish.bio.as_deref().unwrap_or_default(), 0..=2_000)?;
    let own = app.clone();
    let change = app.under_way.to_its_end(async move {
        let changed = own.db.change_user(user.id(), |record| {
            record.name.clone_from(&wish.name);
            record.phone.clone_from(&wish.phone);
            record.bio.clone_from(&wish.bio);
            Ok(())
        });
        let changed = changed.await?;
        own.cache.invalidate(shown_by(&user)).await;
        Ok(Json(profile_of(&changed)))
    });
    change.await
}

/// Whatever shows a profile.
fn shown_by(user: &Principal) -> Vec<Target> {
    let own = fixtures::EXPERTS
        .iter()
        .find(|expert| expert.owner == user.id());
    let mut targets = vec![
        Target::tag(format!("user:{}", user.id())),
        Target::tag(format!("dashboard:{}", user.id())),
    ];
    if let Some(expert) = own {
        targets.push(Target::tag(format!("expert:{}", expert.id)));
        targets.extend(["experts", "page"].map(Target::tag));
    }
    targets
}

fn profile_of(user: &UserRecord) -> Value {
    json!({ "name": user.name, "phone": user.phone, "bio": user.bio })
}

#[derive(Deserialize)]
pub struct Status {
    status: String,
}

/// `POST /api/experts/me/status`
pub async fn set_status(
    Extract(app): Extract<App>,
    user: Principal,
    Input(wish): Input<Status>,
) -> Result<StatusCode, Fault> {
    let expert = bookings::expert_of(&user).ok_or(Fault::FORBIDDEN)?;
    if !["online", "busy", "offline"].contains(&wish.status.as_str()) {
        return Err(Fault::invalid("status", "is online, busy or offline"));
    }
    let own = app.clone();
    let change = app.under_way.to_its_end(async move {
        let changed = own.db.change_user(user.id(), |record| {
            record.status.clone_from(&wish.status);
            Ok(())
        });
        changed.await?;
        let tags = [
            "experts".to_owned(),
            format!("expert:{}", expert.id),
            "page".to_owned(),
        ];
        own.cache.invalidate(tags.map(Target::tag)).await;
        own.live.status(expert.id, &wish.status, own.now()).await;
        Ok(StatusCode::NO_CONTENT)
    });
    change.await
}
