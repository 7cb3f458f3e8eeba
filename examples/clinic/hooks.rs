//! Test hooks, only with `--test-hooks` and only on loopback: time that moves by hand, faults by order, and counters.
//! With its folder the only part that knows that the practice is tested.
//!
//! Try it: `curl -X POST localhost:8080/_test/clock -H 'content-type: application/json' -d '{"advance_ms":1000}'`, with `--test-hooks`
//!
//! Proof: `store_outage`

mod line;
mod world;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::extract::State as Extract;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

pub use self::line::{Faults, clock, store};
pub use self::world::World;
use crate::deliveries;
use crate::fault::{Fault, Input};
use crate::notifications;
use crate::outbox;
use crate::records::Records;
use crate::state::{App, Time};

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
    notifications::all_mail(&app).await.map(Json)
}

/// Works until nothing is due.
async fn work<D: Records>(Extract(app): Extract<App>) -> Result<Json<Value>, Fault> {
    deliveries::recover(&app).await?;
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
        Some(_) => return Err(Fault::invalid("store", "is up or down")),
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
