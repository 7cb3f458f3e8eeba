//! What the settings do to the connections, and what they are where nobody says.

use std::time::Duration;

use axum::http::StatusCode;
use sqlx::{Connection, PgConnection, SqliteConnection};
use tower_keep::backend::sql::{Postgres, RequestTransaction, SqlStore, Sqlite};
use tower_keep::reservation::ReservationGuard;

use crate::reservation::{App, check, clock, slot};
use crate::support::postgres::shared;

const PATIENCE: Duration = Duration::from_secs(20);

async fn pragma(connection: &mut SqliteConnection, name: &str) -> String {
    let sql = format!("select cast({name} as text) from pragma_{name}");
    let asked = sqlx::query_scalar(sqlx::AssertSqlSafe(sql));
    asked.fetch_one(connection).await.unwrap()
}

#[tokio::test]
async fn a_file_is_written_ahead_synced_and_checks_its_references() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", folder.path().join("a.db").display());
    let db = SqlStore::connect(&url).await.unwrap();
    let pool = db.pool::<Sqlite>().unwrap();
    assert_eq!(pool.options().get_max_connections(), 8);
    let mut both = [pool.acquire().await.unwrap(), pool.acquire().await.unwrap()];
    for connection in &mut both {
        assert_eq!(pragma(connection, "journal_mode").await, "wal");
        assert_eq!(pragma(connection, "synchronous").await, "2");
        assert_eq!(pragma(connection, "foreign_keys").await, "1");
    }
}

#[tokio::test]
async fn nobody_says_and_the_defaults_are_those_that_are_documented() {
    let memory = SqlStore::connect("sqlite::memory:").await.unwrap();
    let options = memory.pool::<Sqlite>().unwrap().options().clone();
    assert_eq!(options.get_max_connections(), 1);
    assert_eq!(options.get_idle_timeout(), None);
    assert_eq!(options.get_max_lifetime(), None);
    let db = SqlStore::connect(&shared().await.database().await)
        .await
        .unwrap();
    let options = db.pool::<Postgres>().unwrap().options();
    assert_eq!(options.get_max_connections(), 10);
    assert_eq!(options.get_acquire_timeout(), Duration::from_secs(2));
    let (transaction, finisher) = RequestTransaction::alone(&db);
    {
        let mut lease = transaction.lease::<Postgres>().await.unwrap();
        for (name, value) in [
            ("lock_timeout", "3s"),
            ("statement_timeout", "10s"),
            ("idle_in_transaction_session_timeout", "30s"),
            ("transaction_isolation", "read committed"),
        ] {
            let asked = sqlx::query_scalar("select current_setting($1)").bind(name);
            let is: String = asked.fetch_one(&mut *lease).await.unwrap();
            assert_eq!(is, value, "{name}");
        }
    }
    finisher.commit().await.unwrap();
}

#[test]
fn a_prefix_is_a_plain_name_of_up_to_24_letters() {
    let fits = |prefix: String| {
        let built = || drop(SqlStore::builder("sqlite::memory:").table_prefix(&prefix));
        std::panic::catch_unwind(built).is_ok()
    };
    for good in ["_", "a", "keep_2_"] {
        assert!(fits(good.into()), "{good}");
    }
    assert!(fits("x".repeat(24)) && !fits("x".repeat(25)));
    for bad in ["", "A", "aB", "1x", "a-b", "a;", "a\"", "é"] {
        assert!(!fits(bad.into()), "{bad}");
    }
}

#[tokio::test]
async fn a_statement_that_lasts_too_long_takes_its_transaction_with_it_and_nothing_else() {
    let url = shared().await.database().await;
    let db = SqlStore::builder(&url)
        .clock(clock())
        .acquire_timeout(PATIENCE)
        .max_connections(1)
        .statement_timeout(Duration::from_millis(500));
    let db = db.open().await.unwrap();
    let app = App::new(db.clone(), async |mut guard: ReservationGuard<Postgres>| {
        guard.hold(slot("a"), "ann").await.unwrap();
        let mut lease = guard.transaction().await.unwrap();
        let slept = sqlx::query("select pg_sleep(60)").execute(&mut *lease);
        let slept = slept.await.unwrap_err();
        let code = slept.as_database_error().and_then(|error| error.code());
        assert_eq!(code.as_deref(), Some("57014"));
        StatusCode::OK
    });
    let answer = tokio::time::timeout(PATIENCE, app.post()).await;
    let answer = answer.expect("the statement is ended");
    check(
        &answer,
        StatusCode::INTERNAL_SERVER_ERROR,
        "TRANSACTION_FAILED",
    );
    assert!(!app.is_taken(&slot("a")).await);
    app.own.hold(slot("a"), "bob").await.unwrap();
}

#[tokio::test]
async fn who_sees_a_refusal_finds_its_locks_free() {
    let url = shared().await.database().await;
    let db = SqlStore::builder(&url).acquire_timeout(PATIENCE);
    let db = db.clock(clock()).open().await.unwrap();
    let pool = db.pool::<Postgres>().unwrap();
    let made = "create table visits (guest text); insert into visits values ('ann')";
    sqlx::raw_sql(made).execute(pool).await.unwrap();
    let app = App::new(db.clone(), async |mut guard: ReservationGuard<Postgres>| {
        guard.hold(slot("a"), "ann").await.unwrap();
        let locked = sqlx::query("select from visits for update");
        let mut lease = guard.transaction().await.unwrap();
        locked.execute(&mut *lease).await.unwrap();
        StatusCode::NOT_FOUND
    });
    let mut other = PgConnection::connect(&url).await.unwrap();
    for round in 0..100 {
        assert_eq!(app.call().await.status(), StatusCode::NOT_FOUND);
        let free = sqlx::query("select from visits for update nowait");
        let free = free.execute(&mut other).await;
        assert!(free.is_ok(), "round {round}: {free:?}");
    }
}
