//! The statements on Postgres: rows are locked by id, a user's set of sessions and the cut-off by a name.
//!
//! Such a name is an advisory lock: it queues fairly, so that whoever moves the cut-off comes to its turn under any
//! number of logins, and it leaves no row behind.

pub(super) use sqlx::PgConnection as Connection;

use super::CutOffLock;
use super::step::Locks;
use crate::backend::sql::TransactionError;

#[allow(clippy::duplicate_mod)]
#[path = "steps.rs"]
pub(super) mod steps;

/// The cut-off first, then the user, always.
pub(super) async fn lock(
    connection: &mut Connection,
    locks: &Locks,
) -> Result<(), TransactionError> {
    let cut_off = match locks.cut_off {
        Some((CutOffLock::Shared, name)) => Some(("SELECT pg_advisory_xact_lock_shared($1)", name)),
        Some((CutOffLock::Exclusive, name)) => Some(("SELECT pg_advisory_xact_lock($1)", name)),
        None => None,
    };
    let user = locks
        .user
        .map(|name| ("SELECT pg_advisory_xact_lock($1)", name));
    for (sql, name) in cut_off.into_iter().chain(user) {
        sqlx::query(sql)
            .bind(name)
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}
