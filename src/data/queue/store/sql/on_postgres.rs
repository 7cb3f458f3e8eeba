//! The steps on Postgres: rows are locked, others skip them.

use crate::backend::sql::TransactionError;
use crate::core::Timestamp;

pub(super) use sqlx::PgConnection as Connection;
pub(super) const LOCK: &str = "FOR UPDATE";

/// The server's clock, read in the step: `now()` would stand still since BEGIN.
pub(super) async fn now_of(
    connection: &mut Connection,
    injected: Option<Timestamp>,
) -> Result<i64, TransactionError> {
    if let Some(now) = injected {
        return Ok(i64::try_from(now.as_millis()).unwrap_or(i64::MAX));
    }
    let sql = "SELECT floor(extract(epoch from clock_timestamp()) * 1000)::bigint";
    Ok(sqlx::query_scalar(sql).fetch_one(connection).await?)
}

/// Lets who enqueues the same name wait for the end of this transaction.
pub(super) async fn serialise(
    connection: &mut Connection,
    name: &str,
) -> Result<(), TransactionError> {
    sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended($1, 7742105861993))")
        .bind(name)
        .execute(connection)
        .await?;
    Ok(())
}

#[allow(clippy::duplicate_mod)]
#[path = "steps.rs"]
pub(super) mod steps;
