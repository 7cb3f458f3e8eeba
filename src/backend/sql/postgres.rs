//! What is particular to Postgres: opening, the one-message BEGIN, the sentinel, and asking after a lost COMMIT.

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, PgPool, Row};

use super::builder::Settings;
use super::connection::Sentinel;

pub(super) async fn open(url: &str, settings: &Settings) -> Result<PgPool, sqlx::Error> {
    let options: PgConnectOptions = url.parse()?;
    PgPoolOptions::new()
        .test_before_acquire(false)
        .acquire_timeout(settings.acquire_timeout)
        .max_connections(settings.max_connections.unwrap_or(10))
        .after_release(|connection, _| {
            let open = connection.is_in_transaction();
            Box::pin(async move { Ok(!open) })
        })
        .connect_with(options)
        .await
}

/// Begins in one simple-protocol message, hence one round trip. READ COMMITTED is forced: under
/// REPEATABLE READ the snapshot is older than the wait for a lock, and a re-check sees the past.
pub(super) async fn begin(
    pool: &PgPool,
    settings: &Settings,
    lock_timeout: std::time::Duration,
    id: &str,
) -> Result<sqlx::Transaction<'static, sqlx::Postgres>, sqlx::Error> {
    let sql = format!(
        "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; \
         SET LOCAL lock_timeout = {}; SET LOCAL statement_timeout = {}; \
         SET LOCAL idle_in_transaction_session_timeout = {}; SET LOCAL keep.transaction = '{id}'",
        millis(lock_timeout),
        millis(settings.statement_timeout),
        millis(settings.transaction_timeout),
    );
    pool.begin_with(AssertSqlSafe(sql)).await
}

/// Whole milliseconds, at least 1: zero would switch a timeout off.
pub(super) fn millis(of: std::time::Duration) -> i32 {
    i32::try_from(of.as_millis()).unwrap_or(i32::MAX).max(1)
}

const SENTINEL: &str = "SELECT pg_current_xact_id_if_assigned()::text, \
                        current_setting('keep.transaction', true)";

pub(super) async fn sentinel(
    connection: &mut PgConnection,
    id: &str,
) -> Result<Sentinel, sqlx::Error> {
    // A dropped SAVEPOINT made the driver queue a ROLLBACK of everything.
    if !connection.is_in_transaction() {
        return Ok(Sentinel::Lost);
    }
    match connection.fetch_one(SENTINEL).await {
        Ok(row) => {
            let ours: Option<String> = row.try_get(1)?;
            if ours.as_deref() == Some(id) {
                Ok(Sentinel::Sound(row.try_get(0)?))
            } else {
                Ok(Sentinel::Lost)
            }
        }
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("25P02") => {
            Ok(Sentinel::Poisoned)
        }
        Err(error) => Err(error),
    }
}

/// What became of a transaction whose COMMIT was not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Committed,
    Aborted,
    Open,
    /// This server does not know it: too long ago, or made by another.
    Forgotten,
}

pub(super) async fn fate(pool: &PgPool, xid: &str) -> Result<Fate, sqlx::Error> {
    let asked: Result<Option<String>, sqlx::Error> =
        sqlx::query_scalar("SELECT pg_xact_status($1::text::xid8)")
            .bind(xid)
            .fetch_one(pool)
            .await;
    let status = match asked {
        Ok(status) => status,
        // "transaction ID … is in the future"
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("22023") => None,
        Err(error) => return Err(error),
    };
    Ok(match status.as_deref() {
        Some("committed") => Fate::Committed,
        Some("aborted") => Fate::Aborted,
        Some(_) => Fate::Open,
        None => Fate::Forgotten,
    })
}
