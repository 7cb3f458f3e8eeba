//! The provider's events on their way to us: once at the time, and what we did not take comes again from a queue.
//!
//! Try it: look at `webhook_status` of `curl -X POST localhost:8080/fakepay/PAYMENT_ID -H 'content-type: application/json' -d '{"outcome":"succeeded"}'`
//!
//! Proof: `an_event_that_was_not_taken_comes_again_and_books_once`

use std::pin::pin;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use tower::ServiceExt;
use tower_keep::data::queue::{Backoff, Batch, Job, JobError, JobId, Queue, Worker};
use tower_keep::store::Store;
use tower_keep::{MINUTE, SECOND};

use crate::fault::Fault;
use crate::provider::{self, Event};
use crate::records::Records;
use crate::state::App;
use crate::webhooks;

/// Events that were not taken at the first try.
pub fn queue(store: &Arc<dyn Store>) -> Queue<Event> {
    Queue::new(store.clone(), "events")
        .lease_for(30 * SECOND)
        .attempts(5)
        .backoff(Backoff::exponential(10 * SECOND, 10 * MINUTE))
        // No longer than the event waits here: told of again, it is sent again.
        .remember_for(SECOND)
}

/// Sends the same event again later, a few times.
pub async fn again(app: &App, event: &Event) -> Result<JobId, Fault> {
    let job = Job::to(event.data.payment_id.clone(), event.clone()).once(&event.id);
    Ok(app.events.enqueue(job).await?.id())
}

/// Queues what was paid and not yet taken: the store was away at that moment, or the process died. What was tried too
/// often has fresh attempts: money is told of until somebody takes the event.
pub async fn recover(app: &App) -> Result<(), Fault> {
    let mut from = String::new();
    loop {
        let (events, next) = app.provider.untold(&from).await?;
        for event in events {
            let job = again(app, &event).await?;
            app.events.revive([job]).await?;
        }
        match next {
            Some(next) => from = next,
            None => return Ok(()),
        }
    }
}

/// The provider looks after its events by itself, every few seconds.
pub async fn recover_on(app: &App) {
    let mut stopped = pin!(app.live.stopped());
    let mut pause = tokio::time::interval(5 * SECOND);
    loop {
        tokio::select! {
            () = &mut stopped => return,
            _ = pause.tick() => {}
        }
        if recover(app).await.is_err() {
            tracing::warn!("events wait for the store");
        }
    }
}

/// Sends what is due, each event by itself: one that is refused holds up no other.
pub fn worker<D: Records>(app: &App) -> Worker<Event> {
    let sending = app.clone();
    app.events.worker(move |batch: Batch<Event>| {
        let (app, failures) = (sending.clone(), batch.failures());
        async move {
            for (index, event) in batch.into_items().enumerate() {
                if send::<D>(&app, &event).await.is_success() {
                    app.provider.told(&event).await;
                } else {
                    failures.fail(index, JobError::retry("the event was not taken"));
                }
            }
            Ok::<(), JobError>(())
        }
    })
}

/// Signs an event and sends it to our own route, through everything that guards it.
pub async fn send<D: Records>(app: &App, event: &Event) -> StatusCode {
    let body = serde_json::to_vec(event).unwrap_or_default();
    let signature = provider::sign(&app.options.webhook_secret, &body, app.now());
    let request = Request::post("/api/webhooks/payments")
        .header(header::CONTENT_TYPE, "application/json")
        .header(provider::SIGNATURE, signature)
        .body(Body::from(body));
    let Ok(request) = request else {
        return StatusCode::INTERNAL_SERVER_ERROR;
    };
    let routes = webhooks::router::<D>(app).with_state(app.clone());
    routes
        .oneshot(request)
        .await
        .map_or(StatusCode::INTERNAL_SERVER_ERROR, |response| {
            response.status()
        })
}
