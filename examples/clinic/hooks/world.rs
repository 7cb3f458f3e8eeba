//! The practice as it runs now, and how a test begins it anew: time, tables, store, counters and faults.
//!
//! Try it: `curl -i -X POST localhost:8080/_test/reset`, with `--test-hooks`
//!
//! Proof: `tell_all`

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State as Extract};
use axum::http::StatusCode;
use axum::middleware::from_fn;
use axum::response::Response;
use axum::routing::post;
use tokio::sync::watch;
use tower::ServiceExt;

use super::line::{START, store};
use crate::app;
use crate::fault::Fault;
use crate::problem;
use crate::records::Records;
use crate::state::{App, Time};

/// What a reset empties: our tables, and those that the layers keep in the same database.
const EMPTY: [&str; 11] = [
    "delete from clinic_payment",
    "delete from clinic_user",
    "delete from clinic_mail",
    "delete from clinic_transfer",
    "delete from provider_session",
    "delete from provider_customer",
    "delete from provider_refund",
    "delete from keep_idempotency",
    "delete from keep_event",
    "delete from keep_payment",
    "delete from keep_hold",
];

/// The practice as it runs now. With hooks it can be replaced by one that has just begun.
pub struct World {
    now: RwLock<(App, Router)>,
    stopping: watch::Sender<bool>,
}

impl World {
    pub fn new<D: Records>(app: App) -> Arc<Self> {
        let router = app::app::<D>(app.clone());
        Arc::new(Self {
            now: RwLock::new((app, router)),
            stopping: watch::Sender::new(false),
        })
    }

    /// What is served: the practice itself, or with hooks whichever one there is.
    pub fn service<D: Records>(self: &Arc<Self>) -> Router {
        let (app, router) = self.now();
        if !app.options.test_hooks {
            return router;
        }
        Router::new()
            .route("/_test/reset", post(reset::<D>))
            .layer(from_fn(problem::finish))
            .fallback(current)
            .with_state(self.clone())
    }

    fn now(&self) -> (App, Router) {
        let now = self.now.read();
        now.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Tells everything to end.
    pub fn stop(&self) {
        self.stopping.send_replace(true);
        self.now().0.live.stop();
    }

    /// Lets end what runs though nobody waits for it any more: a booking whose client has left has no connection.
    pub async fn drain(&self, limit: Duration) {
        let (app, _) = self.now();
        let told = tokio::time::timeout(limit, app.under_way.over());
        let _ = tokio::join!(
            app.once.drain(limit),
            app.once_per_form.drain(limit),
            app.once_if_asked.drain(limit),
            app.events_once.drain(limit),
            told,
        );
    }

    /// Lets end what follows a commit or a rollback, then closes the database.
    pub async fn close(&self, limit: Duration) {
        let (app, _) = self.now();
        app.sql.close(limit).await;
    }

    /// Resolves once the process is told to stop.
    pub fn stopped(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut stopping = self.stopping.subscribe();
        async move { drop(stopping.wait_for(|stop| *stop).await) }
    }
}

async fn current(Extract(world): Extract<Arc<World>>, request: Request) -> Response {
    let (_, router) = world.now();
    let Ok(response) = router.oneshot(request).await;
    response
}

/// As freshly started: time, tables, store, counters, faults; event streams end. What one process keeps beside the
/// store goes with the old practice.
async fn reset<D: Records>(Extract(world): Extract<Arc<World>>) -> Result<StatusCode, Fault> {
    let (old, _) = world.now();
    old.live.stop();
    if let Time::Manual(clock) = &old.time {
        clock.set(START.parse().map_err(|_| Fault::INTERNAL)?);
    }
    // Tables that nobody has used yet may not be there.
    old.sql.migrate().await?;
    old.db.begin_again(&EMPTY).await?;
    empty(&old.options.store)
        .await
        .map_err(|_| Fault::INTERNAL)?;
    let (store, faults) = store(&old.options, &old.time)
        .await
        .map_err(|_| Fault::INTERNAL)?;
    let stores = (store, old.sql.clone(), old.db.clone());
    let app = App::new(old.options.clone(), stores, old.time.clone(), faults);
    let router = app::app::<D>(app.clone());
    let mut now = world.now.write().unwrap_or_else(PoisonError::into_inner);
    *now = (app, router);
    Ok(StatusCode::NO_CONTENT)
}

/// Memory goes with whoever has it; a server is emptied.
async fn empty(url: &str) -> Result<(), redis::RedisError> {
    if url.starts_with("memory") {
        return Ok(());
    }
    let client = redis::Client::open(url.strip_prefix("redis+").unwrap_or(url))?;
    let mut connection = client.get_multiplexed_async_connection().await?;
    redis::cmd("FLUSHDB").query_async(&mut connection).await
}
