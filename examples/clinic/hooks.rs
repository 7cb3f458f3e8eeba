//! Test hooks, only with `--test-hooks` and only on loopback: time that moves by hand, and counters.
//! The only file that knows that the practice is tested.
//!
//! Try it: `curl -X POST localhost:8080/_test/clock -H 'content-type: application/json' -d '{"advance_ms":1000}'`

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::extract::State as Extract;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use tower_keep::core::{ManualClock, SystemClock};

use crate::notifications;
use crate::problem::{Fault, Input};
use crate::state::{App, Time};

/// The first moment of tested time, a Tuesday.
const START: &str = "2030-01-01T00:00:00Z";

/// The clock of this process: with hooks it stands still until moved.
pub fn clock(test_hooks: bool) -> Time {
    match START.parse() {
        Ok(start) if test_hooks => Time::Manual(ManualClock::at(start)),
        _ => Time::System(SystemClock),
    }
}

/// The hooks; no route at all without them.
pub fn router(app: &App) -> Router<App> {
    if !app.options.test_hooks {
        return Router::new();
    }
    Router::new()
        .route("/_test/clock", get(now).post(advance))
        .route("/_test/counters", get(counters))
        .route("/_test/mail", get(mail))
        .route("/_test/work", post(work))
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
async fn work(Extract(app): Extract<App>) -> Result<Json<Value>, Fault> {
    notifications::sweeper(&app, &Arc::default()).once().await?;
    let done = notifications::worker(&app).run_until_idle().await?;
    Ok(Json(
        json!({ "delivered": done.delivered, "retried": done.retried, "dead": done.dead }),
    ))
}

#[derive(Deserialize)]
struct Faults {
    fail: Failing,
}

#[derive(Deserialize)]
struct Failing {
    notification: u64,
}

/// How many of the next deliveries fail.
async fn fault(Extract(app): Extract<App>, Input(wish): Input<Faults>) -> StatusCode {
    let failing = &app.provider.failing_deliveries;
    failing.store(wish.fail.notification, Ordering::Relaxed);
    StatusCode::NO_CONTENT
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
            "refund": provider.refund.value(),
            "notification_send": provider.notification_send.value(),
        },
        "notices": {
            "booking_confirmed": counters.booking_confirmed.value(),
            "reservation_expired": counters.reservation_expired.value(),
            "payment_refunded": counters.payment_refunded.value(),
        },
    }))
}
