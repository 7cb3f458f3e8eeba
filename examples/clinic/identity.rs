//! Progress that only one may begin: a verification of identity stays open for an hour, and asking again gives the same.
//!
//! Try it: `curl -b jar localhost:8080/api/identity/verification -H 'content-type: application/json' -d '{}'`
//!
//! Proof: `identity`

use std::sync::Arc;

use axum::Json;
use axum::extract::State as Extract;
use axum::http::StatusCode;
use serde_json::{Map, Value, json};
use tower_keep::core::Principal;
use tower_keep::data::once::{Expect, Progress, SaveOutcome};
use tower_keep::store::Store;
use tower_keep::ttl;

use crate::fault::{Fault, Input};
use crate::state::App;

/// User → the id of the verification that is open.
pub type Verifications = Progress<String>;

pub fn verifications(store: &Arc<dyn Store>) -> Verifications {
    Progress::new(store.clone(), "identity", ttl::VERIFICATION)
}

/// `POST /api/identity/verification`: of any number at once one opens it, the others are told the same.
pub async fn verify(
    Extract(app): Extract<App>,
    user: Principal,
    Input(_): Input<Map<String, Value>>,
) -> Result<(StatusCode, Json<Value>), Fault> {
    let own = format!("ver_{}", uuid::Uuid::new_v4().simple());
    let saved = app.verifications.save(user.id(), &own, Expect::Absent);
    if let SaveOutcome::Saved { .. } = saved.await? {
        return Ok((StatusCode::CREATED, opened(&own)));
    }
    let open = app.verifications.load(user.id()).await?;
    // Over in this very instant: the next request opens a new one.
    let open = open.map_or(own, |open| open.value);
    Ok((StatusCode::OK, opened(&open)))
}

fn opened(id: &str) -> Json<Value> {
    Json(json!({ "verification_id": id, "status": "open", "url": format!("/fakeid/{id}") }))
}
