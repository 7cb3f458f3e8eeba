//! Test hooks, only with `--test-hooks` and only on loopback: time that moves by hand, and counters.
//! The only file that knows that the practice is tested.
//!
//! Try it: `curl -X POST localhost:8080/_test/clock -H 'content-type: application/json' -d '{"advance_ms":1000}'`

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::extract::{Request, State as Extract};
use axum::http::StatusCode;
use axum::middleware::from_fn;
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;
use tower::ServiceExt;
use tower_keep::backend::fault;
use tower_keep::core::{ManualClock, SystemClock};
use tower_keep::store::{OpenError, Store};

use crate::app;
use crate::deliveries;
use crate::fault::{Fault, Input};
use crate::notifications;
use crate::options::Options;
use crate::outbox;
use crate::problem;
use crate::records::Records;
use crate::state::{App, Time};

/// The first moment of tested time, a Tuesday.
const START: &str = "2030-01-01T00:00:00Z";

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

/// The store of this process; with hooks it is at the far end of a line that can be cut.
pub async fn store(
    options: &Options,
    time: &Time,
) -> Result<(Arc<dyn Store>, Arc<Faults>), OpenError> {
    let faults = Arc::<Faults>::default();
    let mut builder = tower_keep::store::builder(&options.store).clock(time.clone());
    if options.test_hooks {
        builder = builder.faults(&faults.store);
    }
    Ok((builder.open().await?, faults))
}

/// The clock of this process: with hooks it stands still until moved.
pub fn clock(test_hooks: bool) -> Time {
    match START.parse() {
        Ok(start) if test_hooks => Time::Manual(ManualClock::at(start)),
        _ => Time::System(SystemClock),
    }
}

/// The hooks; no route at all without them.
pub fn router<D: Records>(app: &App) -> Router<App> {
    if !app.options.test_hooks {
        return Router::new();
    }
    Router::new()
        .route("/_test/clock", get(now).post(advance))
        .route("/_test/counters", get(counters))
        .route("/_test/mail", get(mail))
        .route("/_test/work", post(work::<D>))
        .route("/_test/fault", post(fault))
}

async fn now(Extract(app): Extract<App>) -> Json<Value> {
    let now = app.now();
    Json(json!({ "now": now, "now_ms": now.as_millis() }))
}

#[derive(Deserialize)]
struct Step {
    advance_ms: u64,
}

async fn advance(
    Extract(app): Extract<App>,
    Input(step): Input<Step>,
) -> Result<Json<Value>, Fault> {
    if let Time::Manual(clock) = &app.time {
        clock.advance(Duration::from_millis(step.advance_ms));
    }
    Ok(now(Extract(app)).await)
}

/// All mail, in order of making.
async fn mail(Extract(app): Extract<App>) -> Result<Json<Vec<Value>>, Fault> {
    let sql = "select body from clinic_mail where $1 = '' order by position";
    let rows = app.db.texts(sql, "").await?;
    let parsed = rows.iter().map(|row| serde_json::from_str(row).ok());
    Ok(Json(parsed.flatten().collect()))
}

/// Works until nothing is due.
async fn work<D: Records>(Extract(app): Extract<App>) -> Result<Json<Value>, Fault> {
    deliveries::worker::<D>(&app).run_until_idle().await?;
    outbox::sweeper(&app, &Arc::default()).once().await?;
    let done = notifications::worker(&app).run_until_idle().await?;
    app.counters.dead.add_many(done.dead);
    Ok(Json(
        json!({ "delivered": done.delivered, "retried": done.retried, "dead": done.dead }),
    ))
}

#[derive(Deserialize)]
struct Order {
    store: Option<String>,
    delay_ms: Option<u64>,
    provider_delay_ms: Option<u64>,
    #[serde(default)]
    fail: Failing,
}

#[derive(Default, Deserialize)]
struct Failing {
    payment: Option<u64>,
    webhook: Option<u64>,
    notification: Option<u64>,
}

/// What shall go wrong from now on; what is not named stays.
async fn fault(
    Extract(app): Extract<App>,
    Input(order): Input<Order>,
) -> Result<StatusCode, Fault> {
    let (faults, fail) = (&app.faults, order.fail);
    match order.store.as_deref() {
        Some("up") => faults.store.mend(),
        Some("down") => faults.store.cut(),
        Some(_) => return Err(Fault::INVALID_VALUE),
        None => {}
    }
    if let Some(millis) = order.delay_ms {
        faults.store.delay(Duration::from_millis(millis));
    }
    for (own, wanted) in [
        (&faults.payment.0, fail.payment),
        (&faults.webhook.0, fail.webhook),
        (&faults.notification.0, fail.notification),
        (&faults.provider_delay_ms, order.provider_delay_ms),
    ] {
        if let Some(wanted) = wanted {
            own.store(wanted, Ordering::Relaxed);
        }
    }
    Ok(StatusCode::NO_CONTENT)
}

/// What goes wrong by order of a test; nothing without hooks.
#[derive(Debug, Default)]
pub struct Faults {
    pub payment: Failures,
    pub webhook: Failures,
    pub notification: Failures,
    provider_delay_ms: AtomicU64,
    /// The line to the store.
    pub store: fault::Faults,
}

impl Faults {
    /// The payment provider takes its time.
    pub async fn provider(&self) {
        match self.provider_delay_ms.load(Ordering::Relaxed) {
            0 => {}
            millis => tokio::time::sleep(Duration::from_millis(millis)).await,
        }
    }
}

/// How many of the next runs fail.
#[derive(Debug, Default)]
pub struct Failures(AtomicU64);

impl Failures {
    /// Says whether this run fails, and counts it.
    pub fn strikes(&self) -> bool {
        let less = |left: u64| left.checked_sub(1);
        self.0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less)
            .is_ok()
    }
}

async fn counters(Extract(app): Extract<App>) -> Json<Value> {
    let (counters, provider) = (&app.counters, &app.provider);
    Json(json!({
        "handlers": { "create_payment_intent": counters.handlers_create.value(), "webhook": counters.handlers_webhook.value(), "approve": counters.handlers_approve.value() },
        "loaders": {
            "experts": counters.loaders_experts.value(),
            "expert": counters.loaders_expert.value(),
            "slots": counters.loaders_slots.value(),
            "dashboard": counters.loaders_dashboard.value(),
            "customers": counters.loaders_customers.value(),
        },
        "provider": {
            "session_create": provider.session_create.value(),
            "session_expire": provider.session_expire.value(),
            "sessions_open": provider.sessions_open(),
            "customer_create": provider.customer_create.value(),
            "refund": provider.refund.value(),
            "notification_send": counters.notification_send.value(),
        },
        "notices": {
            "booking_confirmed": counters.booking_confirmed.value(),
            "reservation_expired": counters.reservation_expired.value(),
            "payment_refunded": counters.payment_refunded.value(),
            "dead": counters.dead.value(),
        },
        "store": { "calls": app.faults.store.calls(), "errors": app.faults.store.errors() },
    }))
}
