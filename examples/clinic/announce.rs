//! What a commit changes is told before anybody is answered: cached lists are forgotten, and open pages hear of it.
//! (Only that money goes back is told behind the answer: it waits for the provider.)
//!
//! Try it: `curl -N 'localhost:8080/api/events?topic=slots:e1'`, and book a slot beside it.
//!
//! Proof: `whoever_asks_after_an_event_was_answered_sees_what_it_changed_though_telling_takes_long`

use std::convert::Infallible;

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use tokio::sync::{mpsc, oneshot};
use tower_keep::reservation::ReservationGuard;
use tower_keep::response_cache::Target;

use crate::fault::Fault;
use crate::fixtures;
use crate::records::{PaymentRecord, Records};
use crate::state::App;

/// How the time reads now, and how the reservation does.
pub type Now = (&'static str, &'static str);

/// Commits, then tells. Where the client hangs up in between, the work after the commit does it.
pub async fn commit_and_tell<D: Records>(
    app: &App,
    guard: &mut ReservationGuard<D>,
    record: &PaymentRecord,
    now: Now,
) -> Result<(), Fault> {
    let (done, told) = oneshot::channel();
    let (telling, record) = (app.clone(), record.clone());
    guard.after_commit(async move {
        tell(&telling, &record, now).await;
        let _ = done.send(());
    });
    guard.commit().await?;
    let _ = told.await;
    Ok(())
}

/// Whoever has one holds the answer back: for transactions that are committed by a layer outside.
#[derive(Clone, Debug)]
pub struct Telling {
    _open: mpsc::Sender<Infallible>,
}

/// Answers once nobody has anything to tell any more.
pub async fn told_first(mut request: Request, next: Next) -> Response {
    let (open, mut told) = mpsc::channel(1);
    request.extensions_mut().insert(Telling { _open: open });
    let response = next.run(request).await;
    let _ = told.recv().await;
    response
}

/// Tells once the layer outside has committed, and nothing if it rolls back.
pub fn tell_after_commit<D: Records>(
    (app, telling): (&App, Telling),
    guard: &mut ReservationGuard<D>,
    record: &PaymentRecord,
    now: Now,
) {
    let (app, record) = (app.clone(), record.clone());
    guard.after_commit(async move {
        tell(&app, &record, now).await;
        drop(telling);
    });
}

/// The time of a hold is free again.
pub async fn tell_expired(app: &App, record: &PaymentRecord) {
    tell(app, record, ("free", "expired")).await;
}

async fn tell(app: &App, record: &PaymentRecord, (slot, state): Now) {
    let owner = fixtures::expert(&record.expert_id).map(|expert| expert.owner);
    let figures = owner.map(|owner| Target::tag(format!("dashboard:{owner}")));
    let slots = Target::tag(format!("slots:{}", record.expert_id));
    let targets = [slots].into_iter().chain(figures);
    app.cache.invalidate(targets).await;
    app.live.reservation(record, slot, state).await;
}
