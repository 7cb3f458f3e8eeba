//! Connections that died in the pool, and pools of one.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::routing::{get, post};
use http::Request;
use sqlx::{Connection, PgConnection, PgPool};
use tower::ServiceExt;
use tower_keep::backend::sql::{Postgres, RequestTransaction, SqlStore, Sqlite};
use tower_keep::core::{Principal, SystemClock, Timestamp};
use tower_keep::idempotency::{IdempotencyLayer, Scope};
use tower_keep::reservation::{
    HoldRef, ReservationError, ReservationGuard, ReservationLayer, Reservations, Slot,
};
use tower_keep::session::{Session, SessionCookie, SessionLayer};

use crate::data::telemetry::Log;
use crate::reservation::{clock, slot};
use crate::support::PostgresServer;
use crate::support::postgres::shared;

const SESSIONS: usize = 4;

/// Fills the pool with connections that know the statements, and lets all of them die as idle ones do.
async fn let_all_die(pool: &PgPool, url: &str) {
    let mut taken = Vec::new();
    for _ in 0..SESSIONS {
        taken.push(pool.acquire().await.unwrap());
    }
    drop(taken);
    while pool.num_idle() < SESSIONS {
        tokio::task::yield_now().await;
    }
    let mut other = PgConnection::connect(url).await.unwrap();
    let kill = "select count(pg_terminate_backend(pid)) from pg_stat_activity \
                where datname = current_database() and pid <> pg_backend_pid()";
    let killed: i64 = sqlx::query_scalar(kill)
        .fetch_one(&mut other)
        .await
        .unwrap();
    assert_eq!(usize::try_from(killed).unwrap(), SESSIONS);
    let left = "select count(*) from pg_stat_activity \
                where datname = current_database() and pid <> pg_backend_pid()";
    while sqlx::query_scalar::<_, i64>(left)
        .fetch_one(&mut other)
        .await
        .unwrap()
        > 0
    {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn opened(url: &str) -> (SqlStore, Reservations) {
    let db = SqlStore::builder(url).clock(clock());
    let db = db.max_connections(SESSIONS as u32).open().await.unwrap();
    let own = ReservationLayer::new(db.clone()).reservations();
    own.migrate().await.unwrap();
    (db, own)
}

/// By the local socket a write fails at once, by TCP the server's last words are read as an answer.
async fn urls() -> [String; 2] {
    let server = shared().await;
    let database = server.database().await;
    let name = database.rsplit('/').next().unwrap();
    let name = name.split('?').next().unwrap().to_owned();
    [server.url_of(&name), server.tcp_url_of(&name)]
}

#[tokio::test]
async fn connections_that_died_in_the_pool_are_nobodys_failure() {
    for url in urls().await {
        let (db, own) = opened(&url).await;
        let pool = db.pool::<Postgres>().unwrap();
        let name = url.len().to_string();
        let slot = slot(&name);
        let_all_die(pool, &url).await;
        let held = own.run(|mut guard: ReservationGuard| {
            let slot = slot.clone();
            async move { guard.hold(slot, "ann").await }
        });
        let hold = held.await.unwrap();
        let_all_die(pool, &url).await;
        assert!(own.find(hold.id()).await.unwrap().is_some());
        let_all_die(pool, &url).await;
        let calendar = own.availability(&name, slot.blocks()).await.unwrap();
        assert_eq!(calendar.spans().len(), 1);
        let_all_die(pool, &url).await;
        let refused = own.hold(slot, "bob").await;
        assert!(
            matches!(refused, Err(ReservationError::Conflict(_))),
            "{refused:?}"
        );
        let_all_die(pool, &url).await;
        own.sweep().await.unwrap();
        db.close(Duration::from_secs(5)).await;
    }
}

#[tokio::test]
async fn sessions_and_kept_answers_do_not_notice_them_either() {
    for url in urls().await {
        let db = SqlStore::builder(&url).max_connections(SESSIONS as u32);
        let db = db.open().await.unwrap();
        let login = async |session: Session| {
            session.login(Principal::new("ann")).await.unwrap();
        };
        let once = IdempotencyLayer::new(db.clone(), Scope::global());
        let app = Router::new()
            .route("/login", post(login))
            .route("/me", get(async |user: Principal| user.id().to_owned()))
            .route("/pay", post(async || "paid").layer(once))
            .layer(SessionLayer::new(db.clone()).cookie(SessionCookie::insecure("id")));
        let send = async |method: &str, path: &str, (name, value): (&str, &str)| {
            let request = Request::builder().method(method).uri(path);
            let request = request.header(name, value).body(Body::empty()).unwrap();
            let answer = app.clone().oneshot(request).await.unwrap();
            assert_eq!(answer.status(), 200, "{path}");
            answer.headers().clone()
        };
        let key = ("idempotency-key", "k");
        let cookie = send("POST", "/login", key).await["set-cookie"].clone();
        let cookie = cookie.to_str().unwrap().split(';').next().unwrap();
        let pool = db.pool::<Postgres>().unwrap();
        let_all_die(pool, &url).await;
        send("GET", "/me", ("cookie", cookie)).await;
        let_all_die(pool, &url).await;
        send("POST", "/pay", key).await;
        let_all_die(pool, &url).await;
        assert_eq!(
            send("POST", "/pay", key).await["idempotency-replayed"],
            "true"
        );
        db.close(Duration::from_secs(5)).await;
    }
}

#[tokio::test]
async fn readers_of_a_file_with_one_connection_queue_with_the_writers() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", folder.path().join("one.db").display());
    let db = SqlStore::builder(&url).max_connections(1);
    let db = db.acquire_timeout(Duration::from_secs(60));
    let db = db.lock_timeout(Duration::from_millis(100));
    let db = db.open().await.unwrap();
    let own = ReservationLayer::new(db.clone()).reservations();
    own.migrate().await.unwrap();
    let (writer, finisher) = RequestTransaction::alone(&db);
    drop(writer.lease::<Sqlite>().await.unwrap());
    // In the queue it waits for the lock timeout; in the pool it would wait longer, and say that the database is away.
    let refused = own.find(HoldRef::payment("none")).await;
    assert!(
        matches!(refused, Err(ReservationError::Contention { .. })),
        "{refused:?}"
    );
    finisher.commit().await.unwrap();
    assert!(own.find(HoldRef::payment("none")).await.unwrap().is_none());
}

#[tokio::test]
async fn a_read_that_a_server_does_not_answer_ends_and_the_pool_is_whole_afterwards() {
    let server = PostgresServer::start().await;
    let url = server.database().await;
    let db = SqlStore::builder(&url).statement_timeout(Duration::from_millis(200));
    let db = db.max_connections(1).clock(clock()).open().await.unwrap();
    let own = ReservationLayer::new(db.clone()).reservations();
    assert!(own.find(HoldRef::payment("none")).await.unwrap().is_none());
    let pool = db.pool::<Postgres>().unwrap();
    while pool.num_idle() == 0 {
        tokio::task::yield_now().await;
    }
    server.pause();
    let asked = tokio::join!(
        own.find(HoldRef::payment("none")),
        own.availability("a", slot("a").blocks()),
    );
    server.resume();
    assert!(matches!(
        asked.0,
        Err(ReservationError::StoreUnavailable { .. })
    ));
    assert!(matches!(
        asked.1,
        Err(ReservationError::StoreUnavailable { .. })
    ));
    // Whatever was asked too late is out of the way within the time for a connection.
    let mut again = own.find(HoldRef::payment("none")).await;
    for _ in 0..10 {
        if again.is_ok() {
            break;
        }
        again = own.find(HoldRef::payment("none")).await;
    }
    assert!(again.unwrap().is_none());
}

/// Who may not make the tables is told what to run by those who may.
#[tokio::test]
async fn a_right_that_is_missing_is_told_with_the_statements_that_need_it() {
    let server = PostgresServer::start().await;
    let url = server.database().await;
    let mut owner = PgConnection::connect(&url).await.unwrap();
    let weak = "create role weak login; grant create on schema public to weak";
    sqlx::raw_sql(weak).execute(&mut owner).await.unwrap();
    let weak = url.replace("postgres://postgres@", "postgres://weak@");
    let db = SqlStore::connect(&weak).await.unwrap();
    let own = ReservationLayer::new(db).reservations();
    let (log, logging) = Log::start();
    assert!(own.migrate().await.is_err());
    drop(logging);
    let told = log.text();
    // The driver logs statements too: it is our own line that counts.
    let ours = told.split("no right to make the tables").nth(1).unwrap();
    assert!(ours.contains("CREATE EXTENSION IF NOT EXISTS btree_gist"));
    let extension = "CREATE EXTENSION IF NOT EXISTS btree_gist";
    sqlx::raw_sql(extension).execute(&mut owner).await.unwrap();
    own.migrate().await.unwrap();
}

#[tokio::test]
async fn who_would_wait_for_ever_may_say_so() {
    let folder = tempfile::tempdir().unwrap();
    let file = format!("sqlite:{}", folder.path().join("patient.db").display());
    let forever = Duration::MAX;
    for url in [
        shared().await.database().await,
        file,
        "sqlite::memory:".to_owned(),
    ] {
        let db = SqlStore::builder(&url)
            .acquire_timeout(forever)
            .lock_timeout(forever);
        let db = db.statement_timeout(forever).transaction_timeout(forever);
        let db = db.commit_timeout(forever).open().await.unwrap();
        let layer = ReservationLayer::new(db.clone()).hold_at_most(forever);
        let own = layer
            .hold_for(forever)
            .processing_for(forever)
            .reservations();
        let hold = own.hold(tomorrow("a"), "ann").await.unwrap();
        assert!(hold.expires_at() > Some("9998-01-01T00:00:00Z".parse().unwrap()));
        let places = tomorrow("b").units(1).of(2);
        own.hold(places, "ann").await.unwrap();
        let (id, body) = (hold.id(), tomorrow("c"));
        let run = own.run(|mut guard: ReservationGuard| {
            let slot = body.clone();
            async move {
                guard.hold(slot, "ann").await?;
                guard.extend(id, "ann", forever).await?;
                guard.processing(id).await
            }
        });
        run.await.unwrap();
        assert!(own.find(id).await.unwrap().is_some());
        db.close(Duration::from_secs(5)).await;
    }
}

/// By this machine's clock.
fn tomorrow(resource: &str) -> Slot {
    let start = Timestamp::of(&SystemClock).plus(Duration::from_secs(86_400));
    Slot::new(resource, start..start.plus(Duration::from_secs(3_600)))
}
