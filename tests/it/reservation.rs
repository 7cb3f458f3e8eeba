//! The reservation layer, driven in process on its engines.

mod again;
mod bounds;
mod causes;
mod costs;
mod crossing;
mod ended_by;
mod endings;
mod history;
mod hot;
mod metered;
mod orders;
mod overtaken;
mod programs;
mod races;
mod refusals;
mod scenarios;
mod surprises;
mod sweeps;
mod told;
mod trips;
mod waited;
mod waking;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::response::Response;
use axum::routing::post;
use http::StatusCode;
use tower::ServiceExt;
use tower_keep::backend::memory::MemoryStore;
use tower_keep::backend::sql::{Postgres, SqlStore, Sqlite};
use tower_keep::core::{ManualClock, Timestamp};
use tower_keep::reservation::{HoldState, ReservationLayer, ReservationStore, Reservations, Slot};

use crate::support::http::Answer;

pub const SECOND: Duration = Duration::from_secs(1);
pub const MINUTE: Duration = Duration::from_secs(60);

pub fn clock() -> ManualClock {
    ManualClock::at("2030-01-01T09:00:00Z".parse::<Timestamp>().unwrap())
}

/// An hour tomorrow.
pub fn slot(resource: &str) -> Slot {
    let start = Timestamp::of(&clock()).plus(24 * 60 * MINUTE);
    Slot::new(resource, start..start.plus(60 * MINUTE))
}

pub async fn sqlite() -> SqlStore {
    let db = SqlStore::builder("sqlite::memory:").clock(clock());
    let db = db.open().await.unwrap();
    let made = sqlx::query("create table visits (guest text unique)");
    made.execute(db.pool::<Sqlite>().unwrap()).await.unwrap();
    db
}

pub async fn postgres() -> SqlStore {
    let url = crate::support::postgres::shared().await.database().await;
    // A loaded machine may take its time to start a session.
    let db = SqlStore::builder(&url).acquire_timeout(20 * SECOND);
    let db = db.clock(clock()).open().await.unwrap();
    let made = sqlx::query("create table visits (guest text unique)");
    made.execute(db.pool::<Postgres>().unwrap()).await.unwrap();
    db
}

pub fn memory() -> MemoryStore {
    MemoryStore::builder().clock(clock()).build()
}

/// How many rows the application's table has, as others see it.
pub async fn visits(db: &SqlStore) -> i64 {
    let sql = "select count(*) from visits";
    if let Some(pool) = db.pool::<Sqlite>() {
        return sqlx::query_scalar(sql).fetch_one(pool).await.unwrap();
    }
    let pool = db.pool::<Postgres>().unwrap();
    sqlx::query_scalar(sql).fetch_one(pool).await.unwrap()
}

/// A route with the layer round it.
#[derive(Clone)]
pub struct App {
    pub router: Router,
    pub own: Reservations,
}

impl App {
    pub fn new<H, T>(store: impl ReservationStore, action: H) -> Self
    where
        H: axum::handler::Handler<T, ()>,
        T: 'static,
    {
        Self::with(ReservationLayer::new(store), action)
    }

    pub fn with<H, T>(layer: ReservationLayer, action: H) -> Self
    where
        H: axum::handler::Handler<T, ()>,
        T: 'static,
    {
        let own = layer.reservations();
        let router = Router::new().route("/", post(action)).layer(layer);
        Self { router, own }
    }

    pub fn call(&self) -> impl Future<Output = Response> + use<> {
        let request = Request::post("/").body(axum::body::Body::empty()).unwrap();
        let answered = self.router.clone().oneshot(request);
        async move { answered.await.unwrap() }
    }

    pub async fn post(&self) -> Answer {
        crate::support::http::post(&self.router, "/", &[], "").await
    }

    /// Whether somebody blocks the slot, as others see it.
    pub async fn is_taken(&self, slot: &Slot) -> bool {
        let calendar = self.own.availability(slot.resource(), slot.blocks()).await;
        !calendar.unwrap().spans().is_empty()
    }
}

pub fn check(answer: &Answer, status: StatusCode, code: &str) {
    assert_eq!((answer.status, answer.code().as_str()), (status, code));
    let problem = answer.json();
    let instance = problem["instance"].as_str().unwrap();
    assert!(instance.starts_with("urn:uuid:"), "{instance}");
    assert!(problem["retryable"].is_boolean());
}

/// All three engines, for what must be the same on each.
pub async fn stores() -> Vec<Arc<dyn ReservationStore>> {
    vec![
        Arc::new(memory()),
        Arc::new(sqlite().await),
        Arc::new(postgres().await),
    ]
}

pub const HELD: HoldState = HoldState::Held;
