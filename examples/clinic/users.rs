//! People as the database has them, and who is asking.
//!
//! Try it: `curl -b jar localhost:8080/api/user/me`
//!
//! Proof: `a_changed_profile_or_status_shows_in_the_catalogue_at_once`

mod profile;

use axum::Json;
use axum::extract::State as Extract;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tower_keep::core::Principal;

pub use self::profile::{profile, set_profile, set_status};
use crate::db::Db;
use crate::fault::Fault;
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

/// Puts a user into a new practice.
pub const FIRST: &str = "insert into clinic_user (id, body) values ($1, $2) on conflict do nothing";

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
