//! The steps on Postgres: only the row is locked, and only while it is written.

pub(super) use sqlx::PgConnection as Connection;

use super::statements::Statements;
use super::{Claimed, Row, Seen, millis};
use crate::backend::sql::TransactionError;
use crate::idempotency::record::RecordId;
use crate::idempotency::store::{Claim, took_over};

#[allow(clippy::duplicate_mod)]
#[path = "steps.rs"]
pub(super) mod steps;

/// How often a statement may come upon a row that was neither visible to it nor free.
const TRIES: u32 = 8;

/// Claims, or says what is there, in one statement; waits for whoever is writing the row.
pub(super) async fn claim(
    connection: &mut Connection,
    sql: &Statements,
    now: Option<i64>,
    id: &RecordId,
    claim: &Claim,
) -> Result<Claimed, TransactionError> {
    for _ in 0..TRIES {
        let found: Option<Told> = sqlx::query_as(sql.claim.text())
            .bind(&id.as_bytes()[..])
            .bind(now)
            .bind(&claim.nonce.0[..])
            .bind(&claim.fingerprint.hash[..])
            .bind(i16::from(claim.fingerprint.rule))
            .bind(millis(claim.lease))
            .bind(millis(claim.keep))
            .bind(i16::from(claim.at_lease_end.byte()))
            .fetch_optional(&mut *connection)
            .await?;
        match found {
            Some(Told(row, Some(xid))) => {
                let head = Seen::of(row).record.head;
                // What was free because its time was over is born anew.
                if head.created < head.read_at {
                    took_over();
                }
                return Ok(Claimed::Taken(head.fence, Some(xid)));
            }
            Some(Told(row, None)) => return Ok(Claimed::Seen(Seen::of(row))),
            // Written by another while we looked: the next statement sees it.
            None => {}
        }
    }
    Err(TransactionError::crowded())
}

/// A row, and the transaction that wrote it if that is ours.
struct Told(Row, Option<String>);

impl<'r> sqlx::FromRow<'r, sqlx::postgres::PgRow> for Told {
    fn from_row(row: &'r sqlx::postgres::PgRow) -> Result<Self, sqlx::Error> {
        use sqlx::Row as _;
        Ok(Self(Row::from_row(row)?, row.try_get(12)?))
    }
}
