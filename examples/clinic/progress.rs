//! Temporary data: forms and setups half filled in, each user's own, and every save begins their time anew.
//!
//! Try it: `curl -b jar -X PUT localhost:8080/api/forms/intake/progress -H 'content-type: application/json' -d '{"page":2}'`
//!
//! Proof: `one_time_data`

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State as Extract};
use axum::http::StatusCode;
use serde_json::{Map, Value, json};
use tower_keep::core::Principal;
use tower_keep::data::once::{Expect, Progress};
use tower_keep::store::Store;
use tower_keep::ttl::{self, Ttl};

use crate::fault::{Fault, Input};
use crate::state::App;

/// Any JSON object.
type Object = Map<String, Value>;

/// What is half done.
#[derive(Clone, Debug)]
pub struct HalfDone {
    forms: Progress<Object>,
    setups: Progress<Object>,
}

impl HalfDone {
    pub fn new(store: &Arc<dyn Store>) -> Self {
        let kept = |name, ttl| Progress::new(store.clone(), name, ttl).max_age(Ttl::days(366));
        Self {
            forms: kept("forms", ttl::FORM_PROGRESS),
            setups: kept("setup", ttl::SETUP),
        }
    }
}

/// `PUT /api/forms/{form}/progress`
pub async fn save_form(
    Extract(app): Extract<App>,
    user: Principal,
    name: Path<String>,
    body: Input<Object>,
) -> Result<StatusCode, Fault> {
    save(&app.half_done.forms, &user, name, body).await
}

/// `GET /api/forms/{form}/progress`
pub async fn form(
    Extract(app): Extract<App>,
    user: Principal,
    name: Path<String>,
) -> Result<Json<Value>, Fault> {
    load(&app.half_done.forms, &user, name).await
}

/// `DELETE /api/forms/{form}/progress`
pub async fn drop_form(
    Extract(app): Extract<App>,
    user: Principal,
    name: Path<String>,
) -> Result<StatusCode, Fault> {
    remove(&app.half_done.forms, &user, name).await
}

/// `PUT /api/setup/{step}`
pub async fn save_setup(
    Extract(app): Extract<App>,
    user: Principal,
    name: Path<String>,
    body: Input<Object>,
) -> Result<StatusCode, Fault> {
    save(&app.half_done.setups, &user, name, body).await
}

/// `GET /api/setup/{step}`
pub async fn setup(
    Extract(app): Extract<App>,
    user: Principal,
    name: Path<String>,
) -> Result<Json<Value>, Fault> {
    load(&app.half_done.setups, &user, name).await
}

/// `DELETE /api/setup/{step}`
pub async fn drop_setup(
    Extract(app): Extract<App>,
    user: Principal,
    name: Path<String>,
) -> Result<StatusCode, Fault> {
    remove(&app.half_done.setups, &user, name).await
}

async fn save(
    kept: &Progress<Object>,
    user: &Principal,
    Path(name): Path<String>,
    Input(object): Input<Object>,
) -> Result<StatusCode, Fault> {
    kept.save((user.id(), named(&name)?), &object, Expect::Any)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn load(
    kept: &Progress<Object>,
    user: &Principal,
    Path(name): Path<String>,
) -> Result<Json<Value>, Fault> {
    let saved = kept.load((user.id(), named(&name)?)).await?;
    let saved = saved.ok_or(Fault::NOT_FOUND)?;
    Ok(Json(json!({
        "data": saved.value,
        "updated_at": saved.updated_at,
        "expires_at": saved.expires_at,
    })))
}

async fn remove(
    kept: &Progress<Object>,
    user: &Principal,
    Path(name): Path<String>,
) -> Result<StatusCode, Fault> {
    kept.remove((user.id(), named(&name)?)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What a form or a step may be called: `[a-z0-9-]{1,64}`; nothing else is there.
fn named(name: &str) -> Result<&str, Fault> {
    let is_plain = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
    let fits = (1..=64).contains(&name.len()) && name.bytes().all(is_plain);
    fits.then_some(name).ok_or(Fault::NOT_FOUND)
}
