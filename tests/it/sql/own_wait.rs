//! Who waits for itself, and what is left of a transaction that was lost under a lease.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::routing::get;
use http::{Extensions, Request, StatusCode};
use sqlx::Connection;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};
use tower::ServiceExt;
use tower_keep::backend::sql::{
    Postgres, RequestTransaction, SqlStore, SqlTransaction, Sqlite, TransactionErrorKind,
};
use tower_keep::core::{RollbackCause, StoreErrorKind, Timestamp};
use tower_keep::reservation::{ReservationGuard, ReservationLayer, Slot};
use tower_keep::session::{Session, SessionCookie, SessionLayer};

use super::{insert, is_dropped_half_way, join, postgres, sqlite, stored};

const TIMED_OUT: TransactionErrorKind = TransactionErrorKind::Doomed(RollbackCause::Timeout);
const PATIENCE: Duration = Duration::from_secs(20);

async fn short() -> SqlStore {
    let db = SqlStore::builder("sqlite::memory:").transaction_timeout(Duration::from_millis(200));
    let db = db.lock_timeout(PATIENCE).open().await.unwrap();
    let made = sqlx::raw_sql("create table t (n integer unique)");
    made.execute(db.pool::<Sqlite>().unwrap()).await.unwrap();
    db
}

#[tokio::test]
async fn who_waits_for_its_own_connection_is_told_when_its_time_is_over() {
    let db = short().await;
    let (transaction, finisher) = join(&mut Extensions::new(), &db);
    assert!(insert(&transaction, &db, 1).await);
    let first = transaction.lease::<Sqlite>().await.unwrap();
    let second = tokio::time::timeout(PATIENCE, transaction.lease::<Sqlite>()).await;
    let refused = second.expect("it ends").map(|_| ()).unwrap_err();
    assert_eq!(refused.kind(), TIMED_OUT);
    drop(first);
    // Its turn is over, too.
    let (other, others) = RequestTransaction::alone(&db);
    assert!(insert(&other, &db, 2).await);
    others.commit().await.unwrap();
    assert!(finisher.commit().await.is_err());
    assert_eq!(stored(&db).await, [2]);
}

#[tokio::test]
async fn a_commit_so_far_does_not_wait_longer_than_the_transaction_may_last() {
    let db = short().await;
    let (transaction, mut finisher) = join(&mut Extensions::new(), &db);
    let lease = transaction.lease::<Sqlite>().await.unwrap();
    let ended = tokio::time::timeout(PATIENCE, finisher.commit_so_far()).await;
    assert_eq!(ended.expect("it ends").unwrap_err().kind(), TIMED_OUT);
    drop(lease);
    assert!(finisher.commit().await.is_err());
}

#[tokio::test]
async fn after_a_savepoint_that_was_dropped_the_connection_is_lent_to_nobody() {
    for db in [sqlite().await, postgres().await] {
        let mut dropped_half_way = false;
        for _ in 0..3_000 {
            let (transaction, finisher) = join(&mut Extensions::new(), &db);
            assert!(insert(&transaction, &db, 1).await);
            let is_sqlite = db.pool::<Sqlite>().is_some();
            dropped_half_way = if is_sqlite {
                let mut lease = transaction.lease::<Sqlite>().await.unwrap();
                is_dropped_half_way(lease.begin()).await
            } else {
                let mut lease = transaction.lease::<Postgres>().await.unwrap();
                is_dropped_half_way(lease.begin()).await
            };
            if dropped_half_way {
                let poisoned = TransactionErrorKind::Doomed(RollbackCause::Poisoned);
                let told = if is_sqlite {
                    transaction.lease::<Sqlite>().await.map(|_| ())
                } else {
                    transaction.lease::<Postgres>().await.map(|_| ())
                };
                assert_eq!(told.map_err(|error| error.kind()), Err(poisoned));
                assert!(finisher.commit().await.is_err());
                break;
            }
            finisher.rollback(RollbackCause::Inner).await;
        }
        assert!(dropped_half_way);
        assert!(stored(&db).await.is_empty());
    }
}

#[tokio::test]
async fn after_a_statement_that_rolled_all_back_the_connection_is_lent_to_nobody() {
    let db = sqlite().await;
    for ending in ["insert or rollback into t values (1)", "rollback"] {
        let (transaction, finisher) = join(&mut Extensions::new(), &db);
        assert!(insert(&transaction, &db, 1).await);
        {
            let mut lease = transaction.lease::<Sqlite>().await.unwrap();
            // What a handler does that goes on after an error.
            let _ = sqlx::raw_sql(ending).execute(&mut *lease).await;
        }
        let told = transaction.lease::<Sqlite>().await.map(|_| ()).unwrap_err();
        let poisoned = TransactionErrorKind::Doomed(RollbackCause::Poisoned);
        assert_eq!(told.kind(), poisoned);
        assert!(finisher.commit().await.is_err());
        assert!(stored(&db).await.is_empty());
    }
}

#[tokio::test]
async fn a_transaction_leaves_the_pools_own_wait_for_locks_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("own.db");
    let options = SqliteConnectOptions::new().filename(&file);
    let options = options
        .create_if_missing(true)
        .busy_timeout(Duration::from_secs(30));
    let pool = SqlitePoolOptions::new().max_connections(1);
    let pool = pool.connect_with(options.clone()).await.unwrap();
    let waits = async || -> i64 {
        let asked = sqlx::query_scalar("pragma busy_timeout");
        asked.fetch_one(&pool).await.unwrap()
    };
    let db = SqlStore::from_pool(pool.clone());
    let (transaction, finisher) = join(&mut Extensions::new(), &db);
    drop(transaction.lease::<Sqlite>().await.unwrap());
    finisher.commit().await.unwrap();
    assert_eq!(waits().await, 30_000);
    // And where another process has the lock for longer than we wait.
    let mut other = sqlx::SqliteConnection::connect_with(&options)
        .await
        .unwrap();
    let taken = sqlx::raw_sql("begin immediate").execute(&mut other).await;
    taken.unwrap();
    let (transaction, finisher) = join(&mut Extensions::new(), &db);
    finisher.begin(Duration::from_millis(20)).await.unwrap_err();
    drop((transaction, finisher));
    assert_eq!(waits().await, 30_000);
}

/// The tables of the session are made before the request has its turn as the writer.
#[tokio::test]
async fn a_session_that_is_first_touched_inside_a_transaction_has_its_tables() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", folder.path().join("first.db").display());
    let db = SqlStore::connect(&url).await.unwrap();
    let read = async |mut guard: ReservationGuard, session: Session| {
        let start = Timestamp::MAX.minus(Duration::from_secs(7_200));
        let hour = start..start.plus(Duration::from_secs(60));
        guard.hold(Slot::new("a", hour), "ann").await.unwrap();
        drop(guard);
        match session.get::<String>("name").await {
            Ok(_) => StatusCode::OK,
            Err(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    };
    let app = Router::new()
        .route("/", get(read))
        .layer(ReservationLayer::new(db.clone()))
        .layer(SessionLayer::new(db).cookie(SessionCookie::insecure("id")));
    let cookie = format!("id={}", "A".repeat(54));
    let request = Request::get("/").header("cookie", cookie);
    let answer = app.oneshot(request.body(Body::empty()).unwrap()).await;
    assert_eq!(answer.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn an_extracted_transaction_is_on_the_engine_that_was_asked_for() {
    let (lite, far) = (sqlite().await, postgres().await);
    let write = async |mut transaction: SqlTransaction<Postgres>| {
        let mut lease = transaction.lease().await.unwrap();
        let made = sqlx::raw_sql("insert into t values (7)");
        made.execute(&mut *lease).await.unwrap();
        StatusCode::OK
    };
    // The outer one joins first; the handler wants the other.
    let app = Router::new()
        .route("/", get(write))
        .layer(ReservationLayer::new(far.clone()))
        .layer(ReservationLayer::new(lite.clone()));
    let request = Request::get("/").body(Body::empty()).unwrap();
    let answer = app.clone().oneshot(request).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(stored(&far).await, [7]);
    let none = Router::new()
        .route("/", get(async |_: SqlTransaction<Postgres>| StatusCode::OK))
        .layer(ReservationLayer::new(lite));
    let request = Request::get("/").body(Body::empty()).unwrap();
    let answer = none.oneshot(request).await.unwrap();
    assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
    let other = postgres().await;
    let two = app.layer(ReservationLayer::new(other));
    let request = Request::get("/").body(Body::empty()).unwrap();
    let answer = two.oneshot(request).await.unwrap();
    assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
}

#[tokio::test]
async fn a_busy_memory_database_is_alive() {
    let db = SqlStore::builder("sqlite::memory:")
        .lock_timeout(Duration::from_millis(50))
        .acquire_timeout(PATIENCE);
    let db = db.open().await.unwrap();
    let (transaction, finisher) = join(&mut Extensions::new(), &db);
    let lease = transaction.lease::<Sqlite>().await.unwrap();
    let pinged = tokio::time::timeout(Duration::from_secs(10), db.ping()).await;
    pinged.expect("it ends").unwrap();
    drop(lease);
    finisher.commit().await.unwrap();
    db.ping().await.unwrap();
}

#[tokio::test]
async fn a_database_without_a_name_is_refused() {
    for url in [
        "sqlite:",
        "sqlite://",
        "sqlite:?mode=rwc",
        "sqlite://?mode=rwc",
    ] {
        let refused = SqlStore::connect(url).await.unwrap_err();
        assert_eq!(refused.kind(), StoreErrorKind::Failed, "{url}");
    }
}
