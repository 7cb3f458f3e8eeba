//! The steps on SQLite: the whole database is locked while one writes.

pub(super) use sqlx::SqliteConnection as Connection;

use super::statements::Statements;
use super::{Claimed, millis};
use crate::backend::sql::TransactionError;
use crate::idempotency::record::{Fence, RecordId};
use crate::idempotency::store::{Claim, took_over};

#[path = "steps.rs"]
pub(super) mod steps;

/// Claims, or says what is there. Must run as the writer.
pub(super) async fn claim(
    connection: &mut Connection,
    sql: &Statements,
    now: Option<i64>,
    id: &RecordId,
    claim: &Claim,
) -> Result<Claimed, TransactionError> {
    if let Some(seen) = steps::find(connection, sql, now, id).await? {
        if !seen.is_free_for(claim) {
            return Ok(Claimed::Seen(seen));
        }
        if !seen.is_gone() {
            took_over();
        }
    }
    let fence: i64 = sqlx::query_scalar(sql.claim.text())
        .bind(&id.as_bytes()[..])
        .bind(now)
        .bind(&claim.nonce.0[..])
        .bind(&claim.fingerprint.hash[..])
        .bind(i16::from(claim.fingerprint.rule))
        .bind(millis(claim.lease))
        .bind(millis(claim.keep))
        .bind(i16::from(claim.at_lease_end.byte()))
        .fetch_one(connection)
        .await?;
    Ok(Claimed::Taken(Fence(fence.unsigned_abs()), None))
}
