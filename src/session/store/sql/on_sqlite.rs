//! The statements on SQLite: the whole database is locked while one writes.

pub(super) use sqlx::SqliteConnection as Connection;

use super::step::Locks;
use crate::backend::sql::TransactionError;

#[path = "steps.rs"]
pub(super) mod steps;

/// BEGIN IMMEDIATE has locked everything already.
pub(super) async fn lock(_: &mut Connection, _: &Locks) -> Result<(), TransactionError> {
    Ok(())
}
