//! The steps on a record in SQL that both engines understand; mounted once for each, with its connection.

use std::time::Duration;

use super::Connection;
use crate::backend::sql::TransactionError;
use crate::idempotency::policy::LeaseEnd;
use crate::idempotency::record::{Answer, Fence, Nonce, RecordId, UNKNOWN_KEPT};
use crate::idempotency::store::sql::statements::Statements;
use crate::idempotency::store::sql::{Row, Seen, millis, number, state_of};
use crate::idempotency::store::{Cursor, Owned, Purged, Resolution, Resolved};

type Done<T> = Result<T, TransactionError>;

/// Reads the row, whether its time is over or not.
pub(in crate::idempotency::store::sql) async fn find(
    connection: &mut Connection,
    sql: &Statements,
    now: Option<i64>,
    id: &RecordId,
) -> Done<Option<Seen>> {
    let row: Option<Row> = sqlx::query_as(sql.find.text())
        .bind(&id.as_bytes()[..])
        .bind(now)
        .fetch_optional(connection)
        .await?;
    Ok(row.map(Seen::of))
}

pub(in crate::idempotency::store::sql) async fn renew(
    connection: &mut Connection,
    sql: &Statements,
    now: Option<i64>,
    id: &RecordId,
    nonce: Nonce,
    (lease, end): (Duration, LeaseEnd),
) -> Done<Owned> {
    let keep = match end {
        LeaseEnd::Reexecute => Duration::ZERO,
        LeaseEnd::Indeterminate => UNKNOWN_KEPT,
    };
    let done = sqlx::query(sql.renew.text())
        .bind(&id.as_bytes()[..])
        .bind(now)
        .bind(&nonce.0[..])
        .bind(millis(lease))
        .bind(i16::from(end.byte()))
        .bind(millis(keep))
        .execute(connection)
        .await?;
    Ok(owned(done.rows_affected() > 0))
}

pub(in crate::idempotency::store::sql) async fn complete(
    connection: &mut Connection,
    sql: &Statements,
    now: Option<i64>,
    id: &RecordId,
    nonce: Nonce,
    (answer, ttl): (&Answer, Duration),
) -> Done<Owned> {
    let done = sqlx::query(sql.complete.text())
        .bind(&id.as_bytes()[..])
        .bind(now)
        .bind(&nonce.0[..])
        .bind(&answer.fingerprint.hash[..])
        .bind(i16::from(answer.fingerprint.rule))
        .bind(state_of(&answer.content))
        .bind(millis(ttl))
        .bind(answer.content.encode())
        .execute(connection)
        .await?;
    Ok(owned(done.rows_affected() > 0))
}

pub(in crate::idempotency::store::sql) async fn release(
    connection: &mut Connection,
    sql: &Statements,
    now: Option<i64>,
    id: &RecordId,
    nonce: Nonce,
) -> Done<Owned> {
    let done = sqlx::query(sql.release.text())
        .bind(&id.as_bytes()[..])
        .bind(now)
        .bind(&nonce.0[..])
        .execute(&mut *connection)
        .await?;
    if done.rows_affected() > 0 {
        return Ok(Owned::Yes);
    }
    // Where there is nothing, that is what was wanted.
    let seen = find(connection, sql, now, id).await?;
    Ok(owned(seen.is_none_or(|seen| seen.is_gone())))
}

pub(in crate::idempotency::store::sql) async fn resolve(
    connection: &mut Connection,
    sql: &Statements,
    now: Option<i64>,
    id: &RecordId,
    fence: Fence,
    to: &Resolution,
) -> Done<Resolved> {
    let done = match to {
        Resolution::Release => sqlx::query(sql.forget.text())
            .bind(&id.as_bytes()[..])
            .bind(now)
            .bind(number(fence.0)),
        Resolution::Answer(answer, ttl) => sqlx::query(sql.answer.text())
            .bind(&id.as_bytes()[..])
            .bind(now)
            .bind(number(fence.0))
            .bind(state_of(&answer.content))
            .bind(millis(*ttl))
            .bind(answer.content.encode()),
    };
    if done.execute(&mut *connection).await?.rows_affected() > 0 {
        return Ok(Resolved::Done);
    }
    let seen = find(connection, sql, now, id).await?;
    Ok(match seen.filter(|seen| !seen.is_gone()) {
        Some(seen) if seen.record.head.fence == fence => Resolved::Live,
        _ => Resolved::Changed,
    })
}

/// Ends a page of a caller's answers and tombstones. The rows stay until they are swept: fences rise over them.
pub(in crate::idempotency::store::sql) async fn purge(
    connection: &mut Connection,
    sql: &Statements,
    now: Option<i64>,
    (first, last): ([u8; 32], [u8; 32]),
) -> Done<Purged> {
    let gone: Vec<Vec<u8>> = sqlx::query_scalar(sql.purge.text())
        .bind(&first[..])
        .bind(now)
        .bind(&last[..])
        .fetch_all(connection)
        .await?;
    let next = gone.iter().max().and_then(|id| id[..].try_into().ok());
    Ok(Purged {
        removed: gone.len() as u64,
        next: next.map(Cursor),
    })
}

/// Removes some of what was gone by `before`.
pub(in crate::idempotency::store::sql) async fn sweep(
    connection: &mut Connection,
    sql: &Statements,
    before: i64,
) -> Done<()> {
    sqlx::query(sql.sweep.text())
        .bind(before)
        .execute(connection)
        .await?;
    Ok(())
}

/// Returns nonce and fence of the row, once nobody else is writing it; of nobody where there was none.
pub(in crate::idempotency::store::sql) async fn probe(
    connection: &mut Connection,
    sql: &Statements,
    id: &RecordId,
) -> Result<(Vec<u8>, i64), sqlx::Error> {
    sqlx::query_as(sql.probe.text())
        .bind(&id.as_bytes()[..])
        .fetch_one(connection)
        .await
}

const fn owned(own: bool) -> Owned {
    if own { Owned::Yes } else { Owned::Lost }
}
