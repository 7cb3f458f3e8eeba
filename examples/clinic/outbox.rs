//! The outbox of reservations: what was committed with a hold is told afterwards, once each, and never lost with a process.
//!
//! Try it: start it with `--cron-secret c`, then `curl -X POST localhost:8080/internal/cron/cleanup-reservations -H 'authorization: Bearer c'`
//!
//! Proof: `the_hold_runs_out`

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Json;
use axum::extract::State as Extract;
use axum::http::{HeaderMap, HeaderValue, header};
use serde_json::{Value, json};
use subtle::ConstantTimeEq;
use tower_keep::SECOND;
use tower_keep::data::queue::{EnqueueOutcome, Job};
use tower_keep::reservation::{DeliveryError, EventKind, ReservationEvent, Sweeper};

use crate::announce;
use crate::deliveries;
use crate::fault::Fault;
use crate::fixtures;
use crate::notifications::{self, Notice};
use crate::pages::moment;
use crate::records::Records;
use crate::state::App;

/// Ends holds that ran out, and turns the events of reservations into notices; `made` counts those.
pub fn sweeper(app: &App, made: &Arc<AtomicU64>) -> Sweeper {
    let (telling, made) = (app.clone(), made.clone());
    Sweeper::new(&app.reservations).on_event(move |event| {
        let (app, made) = (telling.clone(), made.clone());
        async move { tell(&app, &event, &made).await }
    })
}

/// One event, delivered at least once; its id makes the notice one.
async fn tell(app: &App, event: &ReservationEvent, made: &AtomicU64) -> Result<(), DeliveryError> {
    let found = app.db.reservation(&event.hold.to_string()).await;
    let Some(record) = found.map_err(|_| "the database does not answer")? else {
        return Ok(());
    };
    if matches!(
        event.kind,
        EventKind::LateConflict | EventKind::DuplicatePayment
    ) {
        let payment = event.payment.as_deref().unwrap_or(&record.payment_id);
        app.provider.refund(payment).await?;
    }
    let (kind, title) = match event.kind {
        EventKind::Confirmed => ("booking_confirmed", "Your booking is confirmed"),
        EventKind::Expired => ("reservation_expired", "Your reservation has run out"),
        EventKind::LateConflict | EventKind::DuplicatePayment => {
            ("payment_refunded", "Your payment comes back")
        }
        _ => return Ok(()),
    };
    let expert = fixtures::expert(&record.expert_id);
    let service = expert.and_then(|expert| expert.service(&record.service_id));
    let service = service.map_or("A visit", |service| service.name);
    let notice = Notice {
        id: event.id.to_string(),
        recipient: record.subject.clone(),
        kind: kind.to_owned(),
        title: title.to_owned(),
        message: format!("{service}, {}", moment(record.start)),
        priority: "normal".to_owned(),
        scheduled_for: None,
        reservation_id: Some(record.reservation_id.clone()),
    };
    let job = Job::to(notice.recipient.clone(), notice).once(event.id.as_str());
    if let EnqueueOutcome::New(_) = app.notices.enqueue(job).await? {
        made.fetch_add(1, Ordering::Relaxed);
        app.counters.notice(kind);
    }
    if event.kind == EventKind::Expired {
        announce::tell_expired(app, &record).await;
    }
    Ok(())
}

/// Works until the process is told to stop, then finishes what is under way. With test hooks nothing works by itself.
pub async fn work<D: Records>(app: App) {
    let sweeping = sweeper(&app, &Arc::default()).every(5 * SECOND);
    tokio::join!(
        sweeping.run(app.live.stopped()),
        notifications::worker(&app).run(app.live.stopped()),
        deliveries::worker::<D>(&app).run(app.live.stopped()),
        deliveries::recover_on(&app),
    );
}

/// `POST /internal/cron/cleanup-reservations`: counts the holds that this run ended.
pub async fn cron(Extract(app): Extract<App>, headers: HeaderMap) -> Result<Json<Value>, Fault> {
    let sent = headers
        .get(header::AUTHORIZATION)
        .map(HeaderValue::as_bytes)
        .unwrap_or_default();
    // The name of a scheme may be written in either case.
    let (scheme, secret) = sent.split_at(sent.len().min("Bearer ".len()));
    let is_right = secret.ct_eq(app.options.cron_secret.as_bytes());
    if !scheme.eq_ignore_ascii_case(b"Bearer ") || !bool::from(is_right) {
        return Err(Fault::UNAUTHENTICATED);
    }
    let (swept, made) = (app.reservations.sweep().await?, Arc::default());
    sweeper(&app, &made).once().await?;
    let notified = made.load(Ordering::Relaxed);
    Ok(Json(
        json!({ "released": swept.expired, "notified": notified }),
    ))
}
