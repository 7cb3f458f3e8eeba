//! People: their profile, which is also the expert's page, and what depends on it.
//!
//! Try it: `curl -b jar localhost:8080/api/user/profile`

use axum::Json;
use axum::extract::State as Extract;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tower_keep::core::Principal;
use tower_keep::response_cache::Target;

use crate::bookings;
use crate::db::Db;
use crate::fault::{Fault, Input};
use crate::fixtures::{self, User};
use crate::state::App;

/// What the database has about a user.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct UserRecord {
    pub name: String,
    pub phone: Option<String>,
    pub bio: Option<String>,
    pub roles: Vec<String>,
    pub verified: bool,
    /// Only experts have one: `online`, `busy` or `offline`.
    pub status: String,
}

impl UserRecord {
    /// The user as the practice begins.
    pub fn of(user: &User) -> Self {
        let expert = fixtures::EXPERTS
            .iter()
            .find(|expert| expert.owner == user.id);
        Self {
            name: user.name.to_owned(),
            phone: None,
            bio: expert.map(|expert| expert.bio.to_owned()),
            roles: user.roles.iter().map(|role| (*role).to_owned()).collect(),
            verified: false,
            status: "offline".to_owned(),
        }
    }
}

impl Db {
    /// Finds a user.
    pub async fn user(&self, id: &str) -> Result<Option<UserRecord>, Fault> {
        let body = self
            .text("select body from clinic_user where id = $1", id)
            .await?;
        Ok(body.and_then(|body| serde_json::from_str(&body).ok()))
    }

    /// Changes a user, again where somebody else did meanwhile: neither change is lost.
    pub async fn change_user(
        &self,
        id: &str,
        change: impl Fn(&mut UserRecord) -> Result<(), Fault>,
    ) -> Result<UserRecord, Fault> {
        loop {
            let found = self.text("select body from clinic_user where id = $1", id);
            let before = found.await?.ok_or(Fault::NOT_FOUND)?;
            let mut user = serde_json::from_str(&before).map_err(|_| Fault::NOT_FOUND)?;
            change(&mut user)?;
            let after = serde_json::to_string(&user).unwrap_or_default();
            let sql = "update clinic_user set body = $2 where id = $1 and body = $3";
            if self.execute(sql, &[id, &after, &before]).await? > 0 {
                return Ok(user);
            }
        }
    }
}

/// `GET /api/user/me`
pub async fn me(Extract(app): Extract<App>, user: Principal) -> Result<Json<Value>, Fault> {
    let known = fixtures::user(user.id()).ok_or(Fault::UNAUTHENTICATED)?;
    let record = app
        .db
        .user(user.id())
        .await?
        .ok_or(Fault::UNAUTHENTICATED)?;
    Ok(Json(
        json!({ "id": known.id, "name": record.name, "email": known.email(), "roles": record.roles }),
    ))
}

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
    let is_short = |text: &Option<String>, most: usize| {
        text.as_ref()
            .is_none_or(|text| text.chars().count() <= most)
    };
    if !(1..=100).contains(&wish.name.chars().count())
        || !is_short(&wish.phone, 30)
        || !is_short(&wish.bio, 2_000)
        || [Some(&wish.name), wish.phone.as_ref(), wish.bio.as_ref()]
            .into_iter()
            .flatten()
            .any(|text| text.contains('\0'))
    {
        return Err(Fault::INVALID_VALUE);
    }
    let changed = app.db.change_user(user.id(), |record| {
        record.name.clone_from(&wish.name);
        record.phone.clone_from(&wish.phone);
        record.bio.clone_from(&wish.bio);
        Ok(())
    });
    let changed = changed.await?;
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
    app.cache.invalidate(targets).await;
    Ok(Json(profile_of(&changed)))
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
        return Err(Fault::INVALID_VALUE);
    }
    let changed = app.db.change_user(user.id(), |record| {
        record.status.clone_from(&wish.status);
        Ok(())
    });
    changed.await?;
    let tags = [
        "experts".to_owned(),
        format!("expert:{}", expert.id),
        "page".to_owned(),
    ];
    app.cache.invalidate(tags.map(Target::tag)).await;
    app.live.status(expert.id, &wish.status, app.now()).await;
    Ok(StatusCode::NO_CONTENT)
}
