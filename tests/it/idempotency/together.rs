//! The transactional mode together with what else there is in a request: guards, hooks, lost commits, leaks.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use http::StatusCode;
use http_body_util::Full;
use tower_keep::backend::sql::{SqlStore, SqlTransaction, Sqlite};
use tower_keep::idempotency::{IdempotencyLayer, Scope, Twins};
use tower_keep::reservation::{ReservationGuard, ReservationLayer, ReservationRejection};

use super::App;
use super::transactional::{Place, run};
use crate::rate_limit::telemetry::Logged;
use crate::reservation::slot;
use crate::sql::lost::Held;
use crate::support::http::Answer;
use crate::support::sql::number;

async fn send(app: &Router, key: &str) -> Answer {
    crate::support::http::post(app, "/", &[("idempotency-key", key)], "").await
}

fn is_replay(answer: &Answer) -> bool {
    answer.headers.contains_key("idempotency-replayed")
}

/// Holds one slot and counts what is told after the commit.
fn booking(told: &Arc<AtomicUsize>) -> axum::routing::MethodRouter {
    let told = Arc::clone(told);
    post(
        async move |mut guard: ReservationGuard, fields: http::HeaderMap| {
            let guest = fields["idempotency-key"].to_str().unwrap();
            guard.hold(slot("a"), guest).await?;
            guard.after_commit(async move {
                told.fetch_add(1, Ordering::SeqCst);
            });
            Ok::<_, ReservationRejection>(StatusCode::CREATED)
        },
    )
}

#[tokio::test]
async fn a_reservation_and_its_answer_commit_together_whichever_layer_stands_outside() {
    let logged = Logged::start();
    for inverted in [false, true] {
        for place in Place::both().await {
            let told = Arc::new(AtomicUsize::new(0));
            let rooms = ReservationLayer::new(place.db.clone());
            let once = place.layer();
            let app = Router::new().route("/", booking(&told));
            let app = if inverted {
                app.layer(once).layer(rooms.clone())
            } else {
                app.layer(rooms.clone()).layer(once)
            };
            let at = format!("{} inverted {inverted}", place.url);
            let first = send(&app, "k").await;
            assert_eq!(first.status, StatusCode::CREATED, "{at}");
            let again = send(&app, "k").await;
            assert_eq!(
                (again.status, is_replay(&again)),
                (StatusCode::CREATED, true)
            );
            for _ in 0..2 {
                let other = send(&app, "other").await;
                assert_eq!(other.status, StatusCode::CONFLICT, "{at}");
                assert_eq!(other.code(), "SLOT_TEMPORARILY_RESERVED");
            }
            let own = rooms.reservations();
            let slot = slot("a");
            let calendar = own.availability(slot.resource(), slot.blocks()).await;
            assert_eq!(calendar.unwrap().spans().len(), 1, "{at}");
            place.db.close(Duration::from_secs(60)).await;
            assert_eq!(told.load(Ordering::SeqCst), 1, "{at}: the hook ran once");
        }
        let said = ["WARN", "it should stand outside"];
        assert_eq!(logged.lines_with(&said), usize::from(inverted));
    }
}

#[tokio::test]
async fn a_transaction_that_is_held_on_to_is_never_a_silent_success() {
    async fn in_a_task(mut own: SqlTransaction<Sqlite>) -> &'static str {
        let (reached, wait) = tokio::sync::oneshot::channel();
        tokio::spawn(async move {
            let mut lease = own.lease().await.unwrap();
            let effect = sqlx::query("insert into effects values ('x')");
            effect.execute(&mut *lease).await.unwrap();
            reached.send(()).unwrap();
            tokio::time::sleep(Duration::from_millis(200)).await;
        });
        wait.await.unwrap();
        "done"
    }
    async fn in_the_body(mut own: SqlTransaction<Sqlite>) -> Response {
        let mut lease = own.lease().await.unwrap();
        let effect = sqlx::query("insert into effects values ('x')");
        effect.execute(&mut *lease).await.unwrap();
        drop(lease);
        let frames = futures_util::stream::once(async move {
            let _own = own;
            Ok::<_, std::io::Error>("data: 1\n\n")
        });
        let kind = [("content-type", "text/event-stream")];
        (kind, Body::from_stream(frames)).into_response()
    }
    for route in [post(in_a_task), post(in_the_body)] {
        let place = Place::sqlite().await;
        let app = Router::new().route("/", route).layer(place.layer());
        for _ in 0..2 {
            let answer = send(&app, "k").await;
            assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
            assert_eq!(answer.code(), "TRANSACTION_LEAKED");
            assert_eq!(place.effects().await, 0);
        }
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_undoes_everything() {
    async fn broken(mut own: SqlTransaction<Sqlite>) -> Body {
        let mut lease = own.lease().await.unwrap();
        let effect = sqlx::query("insert into effects values ('x')");
        effect.execute(&mut *lease).await.unwrap();
        let frames = [Ok("half"), Err(std::io::Error::other("broken"))];
        Body::from_stream(futures_util::stream::iter(frames))
    }
    let place = Place::sqlite().await;
    let app = Router::new().route("/", post(broken)).layer(place.layer());
    let answer = send(&app, "k").await;
    assert_eq!(
        (answer.status, &answer.code()[..]),
        (StatusCode::INTERNAL_SERVER_ERROR, "TRANSACTION_FAILED")
    );
    assert_eq!(place.effects().await, 0);
}

/// One effect in `t`, in a file where a reader holds up the COMMIT.
fn counting(db: &SqlStore) -> App {
    let own = db.clone();
    let layer = IdempotencyLayer::transactional(db.clone(), Scope::global()).twins(Twins::Reject);
    App::with(layer, move |request, n| {
        let own = own.clone();
        async move {
            assert!(run(&request, &own, "insert into t values (1)").await);
            let answer = http::Response::builder().status(201);
            answer.body(Full::from(format!("run {n}"))).unwrap()
        }
    })
}

#[tokio::test]
async fn an_unknown_commit_is_told_as_such_and_a_retry_finds_out_that_it_was_made() {
    let mut held = Held::new(Duration::from_secs(20)).await;
    let app = counting(&held.db);
    app.post("warm", "{}").await;
    held.read().await;
    let unknown = app.post("k", "{}").await;
    unknown.check_refused(503, "COMMIT_UNKNOWN");
    assert_eq!(unknown.headers["retry-after"], "5");
    held.let_go().await;
    let retry = settled(&app).await;
    assert_eq!((retry.is_replay(), &retry.body[..]), (true, &b"run 2"[..]));
    assert_eq!(number(&held.db, "select count(*) from t").await, 2);
}

#[tokio::test]
async fn an_unknown_commit_that_was_not_made_runs_again() {
    let mut held = Held::new(Duration::from_millis(600)).await;
    let app = counting(&held.db);
    app.post("warm", "{}").await;
    held.read().await;
    app.post("k", "{}")
        .await
        .check_refused(503, "COMMIT_UNKNOWN");
    held.writer_gave_up().await;
    held.let_go().await;
    let retry = settled(&app).await;
    assert_eq!((retry.is_replay(), &retry.body[..]), (false, &b"run 3"[..]));
    assert_eq!(number(&held.db, "select count(*) from t").await, 2);
}

/// Asks until the only connection is free again.
async fn settled(app: &App) -> super::Answer {
    let started = std::time::Instant::now();
    loop {
        let answer = app.post("k", "{}").await;
        if answer.status.as_u16() != 503 {
            return answer;
        }
        assert!(started.elapsed() < Duration::from_secs(60), "still 503");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
