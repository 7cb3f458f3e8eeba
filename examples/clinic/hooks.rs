//! Test hooks, only with `--test-hooks` and only on loopback: time that moves by hand, and counters.
//! The only file that knows that the practice is tested.
//!
//! Try it: `curl -X POST localhost:8080/_test/clock -H 'content-type: application/json' -d '{"advance_ms":1000}'`

use std::time::Duration;

use axum::extract::State as Extract;
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use tower_keep::core::{ManualClock, SystemClock};

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
        },
    }))
}
