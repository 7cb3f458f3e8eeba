//! The queue: notices by priority, at their time, again after a failure, to the dead letters after five tries.
//!
//! Try it: `curl -b jar localhost:8080/api/notifications`
//!
//! Proof: `notices_come_by_priority_at_their_time_and_a_failed_one_again_but_once`

use std::sync::Arc;

use axum::Json;
use axum::extract::State as Extract;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tower_keep::core::{Principal, Timestamp};
use tower_keep::data::queue::{Backoff, Batch, Job, JobError, Priority, Queue, Worker};
use tower_keep::store::Store;
use tower_keep::{MINUTE, SECOND};

use crate::fault::{Fault, Input, line, lines};
use crate::state::{App, State};

/// Something to tell somebody.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Notice {
    pub id: String,
    pub recipient: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub title: String,
    pub message: String,
    pub priority: String,
    pub scheduled_for: Option<Timestamp>,
    pub reservation_id: Option<String>,
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
    known.ok_or_else(|| Fault::invalid("user_id", "is nobody here"))?;
    line("type", &wish.kind, 1..=64)?;
    line("title", &wish.title, 1..=200)?;
    lines("message", &wish.message, 1..=2_000)?;
    let priority = match wish.priority.as_str() {
        "high" => Priority::High,
        "normal" => Priority::Normal,
        "low" => Priority::Low,
        _ => return Err(Fault::invalid("priority", "is low, normal or high")),
    };
    let scheduled_for = wish.scheduled_for.map(|time| time.parse::<Timestamp>());
    let scheduled_for = scheduled_for
        .transpose()
        .map_err(|_| Fault::invalid("scheduled_for", "is a time like 2030-01-02T10:00:00Z"))?;
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

/// Delivers what is due; the notice's id keeps a second try from being a second mail.
pub fn worker(app: &App) -> Worker<Notice> {
    let mailing = app.clone();
    // One batch at a time: mail goes out in the order of the queue.
    let worker = app.notices.worker(move |batch: Batch<Notice>| {
        let (app, failures) = (mailing.clone(), batch.failures());
        let attempts: Vec<u32> = batch.jobs.iter().map(|job| job.attempt).collect();
        async move {
            for (index, (notice, attempt)) in batch.into_items().zip(attempts).enumerate() {
                // One that fails holds up no other.
                if let Err(why) = deliver(&app, &notice, attempt).await {
                    failures.fail(index, why);
                }
            }
            Ok::<(), JobError>(())
        }
    });
    worker.concurrency(1)
}

async fn deliver(app: &App, notice: &Notice, attempts: u32) -> Result<(), JobError> {
    if app.faults.notification.strikes() {
        return Err(JobError::retry("the mailer does not answer"));
    }
    let mut body = json!(notice);
    body["to"] = notice.recipient.as_str().into();
    body["attempts"] = attempts.into();
    body["delivered_at"] = json!(app.now());
    let stored = mail(app, &notice.id, &notice.recipient, &body).await;
    if stored.map_err(|_| JobError::retry("the database does not answer"))? > 0 {
        app.counters.notification_send.add();
    }
    Ok(())
}

/// Mails a token to its user at once: it shall lie in no queue.
pub async fn mail_token(state: &State, address: &str, token: &str) -> Result<(), Fault> {
    let id = uuid::Uuid::new_v4().simple().to_string();
    let body = json!({ "to": address, "type": "email_verification", "token": token });
    mail(state, &id, address, &body).await.map(drop)
}

/// All mail, in order of making; only the test hooks ask.
pub async fn all_mail(state: &State) -> Result<Vec<Value>, Fault> {
    let sql = "select body from clinic_mail where $1 = '' order by position";
    let rows = state.db.texts(sql, "").await?;
    let parsed = rows.iter().map(|row| serde_json::from_str(row).ok());
    Ok(parsed.flatten().collect())
}

/// The mailer, a stand-in: mail is a row, and the same id is the same mail.
async fn mail(state: &State, id: &str, to: &str, body: &Value) -> Result<u64, Fault> {
    let position = uuid::Uuid::now_v7().simple().to_string();
    let sql = "insert into clinic_mail (id, position, recipient, body) values ($1, $2, $3, $4) \
               on conflict do nothing";
    let values = [id, &position, to, &body.to_string()];
    state.db.execute(sql, &values).await
}
