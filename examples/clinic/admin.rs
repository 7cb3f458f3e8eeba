//! What admins do: roles that every session sees at once, transfers that are approved once, the cache by hand.
//!
//! Try it: `curl -b jar localhost:8080/api/admin/cache/stats` as `root@clinic.test`

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Request, State as Extract};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use tower_keep::backend::health::StoreMode;
use tower_keep::core::{Principal, principal_of};
use tower_keep::response_cache::Target;

use crate::app;
use crate::fault::{Fault, Input};
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
    let changed = app.db.change_user(&id, |user| {
        if is_super(&user.roles) != is_super(&roles) && !admin.has_role("superadmin") {
            return Err(Fault::FORBIDDEN);
        }
        user.roles.clone_from(&roles);
        Ok(())
    });
    changed.await?;
    let directory = sessions::layer(&app).directory();
    directory.assign_roles(&id, &roles).await?;
    Ok(Json(json!({ "id": id, "roles": roles })))
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
    if !(1..=500).contains(&wish.reason.chars().count()) {
        return Err(Fault::INVALID_VALUE);
    }
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

#[derive(Deserialize)]
pub struct Approval {
    transfer_id: String,
}

/// `POST /api/admin/payment-transfers/approve`
pub async fn approve(
    Extract(app): Extract<App>,
    admin: Principal,
    Input(wish): Input<Approval>,
) -> Result<Json<Value>, Fault> {
    approve_transfer(&app, &admin, &wish.transfer_id)
        .await
        .map(Json)
}

/// The database lets one of all who ask at once do it.
pub async fn approve_transfer(app: &App, admin: &Principal, id: &str) -> Result<Value, Fault> {
    app.counters.handlers_approve.add();
    let at = app.now();
    let sql = "update clinic_transfer set state = 'APPROVED', approved_by = $2, approved_at = $3 \
               where id = $1 and state = 'PENDING'";
    let known = app
        .db
        .text("select state from clinic_transfer where id = $1", id);
    known.await?.ok_or(Fault::NOT_FOUND)?;
    if app
        .db
        .execute(sql, &[id, admin.id(), &at.to_string()])
        .await?
        == 0
    {
        let why = "somebody was faster: this transfer is approved";
        return Err(Fault::conflict("NOT_PENDING", why));
    }
    Ok(json!({ "transfer_id": id, "approved_by": admin.id(), "approved_at": at }))
}

#[derive(Deserialize)]
pub struct Invalidation {
    #[serde(default)]
    tags: Vec<String>,
    prefix: Option<String>,
}

/// `POST /api/admin/cache/invalidate`
pub async fn invalidate(
    Extract(app): Extract<App>,
    Input(wish): Input<Invalidation>,
) -> Json<Value> {
    let mut targets: Vec<Target> = wish.tags.iter().map(Target::tag).collect();
    targets.extend(wish.prefix.as_ref().map(Target::prefix));
    let invalidated = targets.len();
    app.cache.invalidate(targets).await;
    Json(json!({ "invalidated": invalidated }))
}

/// `POST /api/admin/cache/warm`: the catalogue, everybody, and today's times, by the way that any request takes and under
/// the name by which we were called: answers are kept for each host by itself.
pub async fn warm(Extract(app): Extract<App>, headers: HeaderMap) -> Json<Value> {
    let host = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok());
    let site = host.map_or_else(String::new, |host| format!("http://{host}"));
    let today = fixtures::day_of(app.now()).to_string();
    let mut urls = vec![format!("{site}/api/experts")];
    for expert in &fixtures::EXPERTS {
        let own = format!("{site}/api/experts/{}", expert.id);
        urls.extend(
            expert
                .services
                .iter()
                .map(|service| format!("{own}/slots?service={}&day={}", service.id, &today[..10])),
        );
        urls.push(own);
    }
    let routes = app::catalogue(&app).with_state::<()>(app.clone());
    let report = app.cache.warm::<_, Body, _>(routes, urls).await;
    Json(json!({ "warmed": report.stored + report.present }))
}

/// `GET /api/admin/cache/stats`: told per operation, never remembered from the start.
pub async fn stats(Extract(app): Extract<App>) -> Json<Value> {
    let (mode, stats, store) = (app.store.mode(), app.cache.stats(), app.store.stats());
    Json(json!({
        "cache_type": mode.to_string(),
        "is_redis_available": mode == StoreMode::Redis && store.reachable,
        "in_memory_size": stats.local_entries,
        "hit": stats.hits,
        "miss": stats.misses,
        "stale": stats.stale_hits,
        "error": stats.store_errors,
        "fallback": stats.passed,
    }))
}
