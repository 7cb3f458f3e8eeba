//! Read-through cache: the payment provider's name for a user, asked for once and kept beside us for a day.
//!
//! Try it: `curl -b jar localhost:8080/api/user/check-kv-sync`, and `curl -b jar -X POST localhost:8080/api/user/rebuild-kv`
//!
//! Proof: `a_user_is_one_customer_of_the_provider_however_often_he_pays`

use std::sync::Arc;

use axum::Json;
use axum::extract::State as Extract;
use serde_json::{Value, json};
use tower_keep::core::Principal;
use tower_keep::data::cache::Cache;
use tower_keep::store::Store;
use tower_keep::ttl;

use crate::fault::Fault;
use crate::state::{App, State};

/// User → payment customer.
pub type Customers = Cache<String, String>;

pub fn customers(store: &Arc<dyn Store>) -> Customers {
    Cache::new(store.clone(), "payment-customer", ttl::CUSTOMER)
}

/// The payment customer of a user: made at the first payment, and never again.
pub async fn of(state: &State, user: &str) -> Result<String, Fault> {
    let provider = state.provider.clone();
    let load = |user: String| async move { provider.customer(&user).await };
    let known = state.customers.get_or_load(&user.to_owned(), load).await?;
    Ok(String::clone(&known))
}

/// `GET /api/user/check-kv-sync`: our copy against the provider's.
pub async fn check(Extract(app): Extract<App>, user: Principal) -> Result<Json<Value>, Fault> {
    let ours = app.customers.get(&user.id().to_owned()).await?;
    let theirs = app.provider.known_customer(user.id()).await?;
    let in_sync = ours.as_deref() == theirs.as_ref();
    Ok(Json(json!({ "in_sync": in_sync })))
}

/// `POST /api/user/rebuild-kv`: takes over what the provider has.
pub async fn rebuild(app: Extract<App>, user: Principal) -> Result<Json<Value>, Fault> {
    let key = user.id().to_owned();
    match app.provider.known_customer(user.id()).await? {
        Some(customer) => app.customers.put(&key, customer).await?,
        None => drop(app.customers.remove(&key).await),
    }
    check(app, user).await
}
