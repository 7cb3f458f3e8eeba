//! The steps on SQLite: the whole database is locked while one runs.

use crate::backend::sql::TransactionError;
use crate::core::{Clock, SystemClock, Timestamp};

pub(super) use sqlx::SqliteConnection as Connection;
/// The whole database is locked.
pub(super) const LOCK: &str = "";

pub(super) async fn now_of(
    _: &mut Connection,
    injected: Option<Timestamp>,
) -> Result<i64, TransactionError> {
    let now = injected.map_or_else(|| SystemClock.now_micros() / 1_000, Timestamp::as_millis);
    Ok(i64::try_from(now).unwrap_or(i64::MAX))
}

pub(super) async fn serialise(_: &mut Connection, _: &str) -> Result<(), TransactionError> {
    Ok(())
}

#[path = "steps.rs"]
pub(super) mod steps;
