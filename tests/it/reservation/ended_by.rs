//! What hooks are told when the database ended a transaction, and not the handler.

use std::time::Duration;

use http::StatusCode;
use tokio::sync::mpsc;
use tower_keep::backend::sql::{Postgres, SqlStore, Sqlite};
use tower_keep::reservation::{GuardEngine, ReservationGuard};

use super::{App, clock, postgres, slot, sqlite};

type Told = mpsc::UnboundedSender<String>;

/// Tells how it ended, and holds.
async fn hold<D: GuardEngine>(guard: &mut ReservationGuard<D>, told: Told) {
    let committed = told.clone();
    guard.after_commit(async move { committed.send("commit".to_owned()).unwrap() });
    guard.after_rollback(async move |why| told.send(format!("{why:?}")).unwrap());
    guard.hold(slot("a"), "ann").await.unwrap();
}

#[tokio::test]
async fn a_statement_that_spoilt_the_transaction_is_told_as_poisoned() {
    let (told, mut heard) = mpsc::unbounded_channel();
    let teller = told.clone();
    let on_sqlite = async move |mut guard: ReservationGuard<Sqlite>| {
        hold(&mut guard, teller.clone()).await;
        let mut lease = guard.transaction().await.unwrap();
        // Nobody may end it but the layer.
        let ended = sqlx::raw_sql("rollback").execute(&mut *lease).await;
        ended.unwrap();
        StatusCode::OK
    };
    let on_postgres = async move |mut guard: ReservationGuard<Postgres>| {
        hold(&mut guard, told.clone()).await;
        let mut lease = guard.transaction().await.unwrap();
        let failed = sqlx::raw_sql("select 1 / 0").execute(&mut *lease).await;
        failed.unwrap_err();
        StatusCode::OK
    };
    for app in [
        App::new(sqlite().await, on_sqlite),
        App::new(postgres().await, on_postgres),
    ] {
        assert_eq!(app.post().await.code(), "TRANSACTION_FAILED");
        assert_eq!(heard.recv().await.unwrap(), "Poisoned");
    }
}

#[tokio::test]
async fn a_transaction_whose_time_was_over_is_told_so() {
    let (told, mut heard) = mpsc::unbounded_channel();
    let db = SqlStore::builder("sqlite::memory:").clock(clock());
    let db = db.transaction_timeout(Duration::from_millis(100));
    let db = db.open().await.unwrap();
    let app = App::new(db, async move |mut guard: ReservationGuard<Sqlite>| {
        hold(&mut guard, told.clone()).await;
        // It is doomed as soon as its time is over.
        while guard.transaction().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        StatusCode::OK
    });
    assert_eq!(app.post().await.code(), "TRANSACTION_FAILED");
    assert_eq!(heard.recv().await.unwrap(), "Timeout");
}

#[tokio::test]
async fn a_session_that_the_server_ended_before_the_commit_is_told_as_aborted() {
    let (told, mut heard) = mpsc::unbounded_channel();
    let db = postgres().await;
    let other = db.clone();
    let app = App::new(db, async move |mut guard: ReservationGuard<Postgres>| {
        hold(&mut guard, told.clone()).await;
        let mut lease = guard.transaction().await.unwrap();
        let named = sqlx::query_scalar("select pg_backend_pid()");
        let session: i32 = named.fetch_one(&mut *lease).await.unwrap();
        let ending = sqlx::query("select pg_terminate_backend($1, 20000)").bind(session);
        let pool = other.pool::<Postgres>().unwrap();
        ending.execute(pool).await.unwrap();
        StatusCode::OK
    });
    assert_eq!(app.post().await.code(), "CONTENTION");
    assert_eq!(heard.recv().await.unwrap(), "Aborted");
    assert!(!app.is_taken(&slot("a")).await);
}
