//! What admins do: roles that every session sees at once, and verifications by hand.
//!
//! Try it: `curl -b jar localhost:8080/api/users/pat/roles -H 'content-type: application/json' -d '{"roles":["patient"]}'` as `root@clinic.test`
//!
//! Proof: `admins`

pub mod caches;
pub mod transfers;

use axum::Json;
use axum::extract::{Path, Request, State as Extract};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use tower_keep::core::{Principal, principal_of};

use crate::fault::{Fault, Input, lines};
use crate::fixtures;
use crate::sessions;
use crate::state::App;

const ROLES: [&str; 4] = ["patient", "expert", "admin", "superadmin"];

/// Lets admins in, and superadmins, who may do all that an admin may.
pub async fn only(request: Request, next: Next) -> Response {
    let asked = principal_of(request.extensions());
    let checked: Result<(), Fault> = async {
        let user = asked.await?.ok_or(Fault::UNAUTHENTICATED)?;
        is_admin(&user).then_some(()).ok_or(Fault::FORBIDDEN)
    }
    .await;
    match checked {
        Ok(()) => next.run(request).await,
        Err(fault) => fault.into_response(),
    }
}

/// A superadmin may do all that an admin may.
pub fn is_admin(user: &Principal) -> bool {
    user.has_role("admin") || user.has_role("superadmin")
}

#[derive(Deserialize)]
pub struct NewRoles {
    roles: Vec<String>,
}

/// `POST /api/users/{id}/roles`: the next request of every session of that user has them.
pub async fn set_roles(
    Extract(app): Extract<App>,
    admin: Principal,
    Path(id): Path<String>,
    Input(wish): Input<NewRoles>,
) -> Result<Json<Value>, Fault> {
    app.db.user(&id).await?.ok_or(Fault::NOT_FOUND)?;
    if !wish.roles.iter().all(|role| ROLES.contains(&role.as_str())) {
        return Err(Fault::UNKNOWN_ROLE);
    }
    let mut roles = wish.roles;
    roles.sort_unstable();
    roles.dedup();
    let is_super = |roles: &[String]| roles.iter().any(|role| role == "superadmin");
    let own = app.clone();
    // Never the one without the other: sessions would keep what the database has taken away.
    let change = app.under_way.to_its_end(async move {
        let changed = own.db.change_user(&id, |user| {
            if is_super(&user.roles) != is_super(&roles) && !admin.has_role("superadmin") {
                return Err(Fault::FORBIDDEN);
            }
            user.roles.clone_from(&roles);
            Ok(())
        });
        changed.await?;
        let directory = sessions::layer(&own).directory();
        directory.assign_roles(&id, &roles).await?;
        Ok(Json(json!({ "id": id, "roles": roles })))
    });
    change.await
}

#[derive(Deserialize)]
pub struct Force {
    user_id: String,
    reason: String,
}

/// `POST /api/internal/force-verification`
pub async fn force_verification(
    Extract(app): Extract<App>,
    Input(wish): Input<Force>,
) -> Result<Json<Value>, Fault> {
    lines("reason", &wish.reason, 1..=500)?;
    verify(&app, &wish.user_id).await?;
    Ok(Json(json!({ "user_id": wish.user_id, "verified": true })))
}

#[derive(Deserialize)]
pub struct Specific {
    email: String,
}

/// `POST /api/experts/verify-specific`
pub async fn verify_specific(
    Extract(app): Extract<App>,
    Input(wish): Input<Specific>,
) -> Result<Json<Value>, Fault> {
    let owner = fixtures::by_email(&wish.email).ok_or(Fault::NOT_FOUND)?;
    let expert = fixtures::EXPERTS
        .iter()
        .find(|expert| expert.owner == owner.id);
    let expert = expert.ok_or(Fault::NOT_FOUND)?;
    verify(&app, owner.id).await?;
    Ok(Json(json!({ "expert_id": expert.id, "verified": true })))
}

/// Notes that somebody is who he says.
pub async fn verify(app: &App, user: &str) -> Result<(), Fault> {
    let changed = app.db.change_user(user, |user| {
        user.verified = true;
        Ok(())
    });
    changed.await.map(drop)
}
