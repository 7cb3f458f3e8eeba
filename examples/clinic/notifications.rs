//! The queue: notices by priority, at their time, again after a failure, to the dead letters after five tries; and the
//! outbox of reservations, whose events become notices once each.
//!
//! Try it: `curl -b jar localhost:8080/api/notifications`

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Json;
use axum::extract::State as Extract;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tower_keep::core::{Principal, Timestamp};
use tower_keep::data::queue::{
    Backoff, Batch, EnqueueOutcome, Job, JobError, Priority, Queue, Worker,
};
use tower_keep::reservation::{DeliveryError, EventKind, ReservationEvent, Sweeper};
use tower_keep::store::Store;
use tower_keep::{MINUTE, SECOND};

use crate::payments;
use crate::problem::{Fault, Input};
use crate::records::PaymentRecord;
use crate::state::{App, State};

/// Something to tell somebody.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Notice {
    id: String,
    recipient: String,
    #[serde(rename = "type")]
    kind: String,
    title: String,
    message: String,
    priority: String,
    scheduled_for: Option<Timestamp>,
    reservation_id: Option<String>,
}

/// Five tries, waits of at most 10, 20, 40 and 80 s.
pub fn queue(store: &Arc<dyn Store>) -> Queue<Notice> {
    Queue::new(store.clone(), "notifications")
        .lease_for(30 * SECOND)
        .attempts(5)
        .backoff(Backoff::exponential(10 * SECOND, 10 * MINUTE))
}

#[derive(Deserialize)]
pub struct Wish {
    user_id: String,
    #[serde(rename = "type")]
    kind: String,
    title: String,
    message: String,
    priority: String,
    scheduled_for: Option<String>,
}

/// `POST /api/admin/notifications`
pub async fn send(
    Extract(app): Extract<App>,
    Input(wish): Input<Wish>,
) -> Result<(StatusCode, Json<Value>), Fault> {
    let known = app.db.user(&wish.user_id).await?;
    known.ok_or(Fault::INVALID_VALUE)?;
    let priority = match wish.priority.as_str() {
        "high" => Priority::High,
        "normal" => Priority::Normal,
        "low" => Priority::Low,
        _ => return Err(Fault::INVALID_VALUE),
    };
    let scheduled_for = wish.scheduled_for.map(|time| time.parse::<Timestamp>());
    let scheduled_for = scheduled_for
        .transpose()
        .map_err(|_| Fault::INVALID_VALUE)?;
    let notice = Notice {
        id: uuid::Uuid::now_v7().simple().to_string(),
        recipient: format!("u:{}", wish.user_id),
        kind: wish.kind,
        title: wish.title,
        message: wish.message,
        priority: wish.priority,
        scheduled_for,
        reservation_id: None,
    };
    let answer = json!({ "id": notice.id });
    let mut job = Job::to(notice.recipient.clone(), notice).priority(priority);
    if let Some(time) = scheduled_for {
        job = job.at(time);
    }
    app.notices.enqueue(job).await?;
    Ok((StatusCode::ACCEPTED, Json(answer)))
}

/// `GET /api/notifications`: delivered ones in their order, and how many wait.
pub async fn list(Extract(app): Extract<App>, user: Principal) -> Result<Json<Value>, Fault> {
    let delivered = delivered_to(&app, &user).await?;
    let depth = app.notices.count(format!("u:{}", user.id())).await?;
    let pending = depth.ready + depth.delayed + depth.leased;
    Ok(Json(
        json!({ "notifications": delivered, "pending": pending }),
    ))
}

/// What this user was told, in order of delivery.
pub async fn delivered_to(state: &State, user: &Principal) -> Result<Vec<Value>, Fault> {
    let sql = "select body from clinic_mail where recipient = $1 order by position";
    let rows = state.db.texts(sql, &format!("u:{}", user.id())).await?;
    let parsed = rows.iter().map(|row| serde_json::from_str(row).ok());
    Ok(parsed.flatten().collect())
}

/// Delivers what is due. The mailer is a stand-in: mail is a row, and the notice's id keeps a second try from being
/// a second mail.
pub fn worker(app: &App) -> Worker<Notice> {
    let mailing = app.clone();
    // One batch at a time: mail goes out in the order of the queue.
    let worker = app.notices.worker(move |batch: Batch<Notice>| {
        let app = mailing.clone();
        async move {
            let attempts = batch.jobs.first().map_or(1, |job| job.attempt);
            for notice in batch.into_items() {
                deliver(&app, &notice, attempts).await?;
            }
            Ok::<(), JobError>(())
        }
    });
    worker.concurrency(1)
}

async fn deliver(app: &App, notice: &Notice, attempts: u32) -> Result<(), JobError> {
    if app.provider.mailer_fails() {
        return Err(JobError::retry("the mailer does not answer"));
    }
    let mut body = json!(notice);
    body["attempts"] = attempts.into();
    body["delivered_at"] = json!(app.now());
    let position = uuid::Uuid::now_v7().simple().to_string();
    let sql = "insert into clinic_mail (id, position, recipient, body) values ($1, $2, $3, $4) \
               on conflict do nothing";
    let values = [&notice.id, &position, &notice.recipient, &body.to_string()];
    let stored = app.db.execute(sql, &values.map(String::as_str)).await;
    if stored.map_err(|_| JobError::retry("the database does not answer"))? > 0 {
        app.provider.notification_send.add();
    }
    Ok(())
}

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
    let sql = "select body from clinic_payment where reservation_id = $1";
    let found = app.db.text(sql, &event.hold.to_string()).await;
    let found = found.map_err(|_| "the database does not answer")?;
    let Some(record) = found.and_then(|body| serde_json::from_str::<PaymentRecord>(&body).ok())
    else {
        return Ok(());
    };
    let (kind, title) = match event.kind {
        EventKind::Confirmed => ("booking_confirmed", "Your booking is confirmed"),
        EventKind::Expired => ("reservation_expired", "Your reservation has run out"),
        EventKind::LateConflict => ("payment_refunded", "Your payment comes back"),
        _ => return Ok(()),
    };
    let notice = Notice {
        id: event.id.to_string(),
        recipient: record.subject.clone(),
        kind: kind.to_owned(),
        title: title.to_owned(),
        message: format!("{} at {}", record.service_id, record.start),
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
        payments::tell_expired(app, &record).await;
    }
    Ok(())
}

/// Works until the process ends; with test hooks nothing works by itself.
pub async fn work(app: App) {
    let sweeping = sweeper(&app, &Arc::default()).every(5 * SECOND);
    let stopped = std::future::pending;
    tokio::join!(sweeping.run(stopped()), worker(&app).run(stopped()));
}
