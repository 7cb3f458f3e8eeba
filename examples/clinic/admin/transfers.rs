//! Money that goes to experts: approved once, whoever asks at the same time, and by repetition of the same request.
//!
//! Try it: `curl -b jar localhost:8080/api/admin/payment-transfers/approve -H 'content-type: application/json' -d '{"transfer_id":"tr1"}'` as `root@clinic.test`
//!
//! Proof: `a_transfer_is_approved_by_one_of_all_admins_who_ask_at_once`

use std::sync::Arc;

use axum::Json;
use axum::extract::State as Extract;
use serde::Deserialize;
use serde_json::{Value, json};
use tower_keep::core::Principal;
use tower_keep::idempotency::{Directive, IdempotencyLayer, Preset, Scope, StatusPolicy};
use tower_keep::store::Store;
use tower_keep::{MINUTE, SECOND};

use crate::fault::{Fault, Input};
use crate::options::Options;
use crate::state::{App, State};

/// A key is welcome here, and not required.
pub fn once_if_asked(store: &Arc<dyn Store>, options: &Options) -> IdempotencyLayer {
    IdempotencyLayer::new(store.clone(), Scope::principal())
        .preset(Preset::Api)
        .ttl(10 * MINUTE)
        .max_request_body(64 * 1_024)
        .statuses(StatusPolicy::default().on(409, Directive::StoreFor(10 * SECOND)))
        .secret(options.key_secret())
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

/// What a new practice has to approve.
pub const FIRST: &str =
    "insert into clinic_transfer (id, state) values ($1, 'PENDING') on conflict do nothing";

/// How far a transfer is.
pub async fn state_of(state: &State, id: &str) -> Result<Option<String>, Fault> {
    let sql = "select state from clinic_transfer where id = $1";
    state.db.text(sql, id).await
}

/// The database lets one of all who ask at once do it.
pub async fn approve_transfer(app: &App, admin: &Principal, id: &str) -> Result<Value, Fault> {
    app.counters.handlers_approve.add();
    let at = app.now();
    let sql = "update clinic_transfer set state = 'APPROVED', approved_by = $2, approved_at = $3 \
               where id = $1 and state = 'PENDING'";
    state_of(app, id).await?.ok_or(Fault::NOT_FOUND)?;
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
