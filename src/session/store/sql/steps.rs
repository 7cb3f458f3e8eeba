//! The statements that both engines understand; mounted once for each, with its connection.

use super::Connection;
use crate::backend::sql::TransactionError;
use crate::session::store::sql::rows::{Columns, Raw};
use crate::session::store::sql::statements::{Statements, Text};

type Done<T> = Result<T, TransactionError>;

/// Reads rows by one key, locking nothing.
pub(in crate::session::store::sql) async fn find(
    connection: &mut Connection,
    sql: &Text,
    key: &[u8],
    now: Option<i64>,
) -> Done<Vec<Raw>> {
    Ok(sqlx::query_as(sql.text())
        .bind(key)
        .bind(now)
        .fetch_all(connection)
        .await?)
}

/// Whose session it is, locking nothing.
pub(in crate::session::store::sql) async fn owner(
    connection: &mut Connection,
    sql: &Statements,
    id: &[u8],
) -> Done<Option<Vec<u8>>> {
    let found: Option<(Option<Vec<u8>>,)> = sqlx::query_as(sql.owner.text())
        .bind(id)
        .fetch_optional(connection)
        .await?;
    Ok(found.and_then(|(user,)| user))
}

/// Reads and locks two sessions and all of a user's.
pub(in crate::session::store::sql) async fn lock_rows(
    connection: &mut Connection,
    sql: &Statements,
    [first, second]: [&[u8]; 2],
    user: &[u8],
    now: Option<i64>,
) -> Done<Vec<Raw>> {
    Ok(sqlx::query_as(sql.lock.text())
        .bind(first)
        .bind(now)
        .bind(second)
        .bind(user)
        .fetch_all(connection)
        .await?)
}

/// The cut-off, the user's mark, the time.
pub(in crate::session::store::sql) async fn facts(
    connection: &mut Connection,
    sql: &Statements,
    user: &[u8],
    now: Option<i64>,
) -> Done<(Option<i64>, Option<i64>, i64)> {
    Ok(sqlx::query_as(sql.facts.text())
        .bind(user)
        .bind(now)
        .fetch_one(connection)
        .await?)
}

/// Writes a row that was read and locked.
pub(in crate::session::store::sql) async fn update(
    connection: &mut Connection,
    sql: &Statements,
    row: Columns,
    with_data: bool,
) -> Done<()> {
    let text = if with_data { &sql.replace } else { &sql.update };
    let query = sqlx::query(text.text())
        .bind(row.id.as_bytes().to_vec())
        .bind(row.user)
        .bind(row.core)
        .bind(row.roles)
        .bind(row.created)
        .bind(row.expires_at);
    let query = if with_data {
        query.bind(row.data)
    } else {
        query
    };
    query.execute(connection).await?;
    Ok(())
}

/// Writes a row that was not there.
pub(in crate::session::store::sql) async fn insert(
    connection: &mut Connection,
    sql: &Statements,
    row: Columns,
) -> Done<()> {
    let done = sqlx::query(sql.insert.text())
        .bind(row.id.as_bytes().to_vec())
        .bind(row.user)
        .bind(row.core)
        .bind(row.roles)
        .bind(row.created)
        .bind(row.expires_at)
        .bind(row.data)
        .execute(connection)
        .await?;
    if done.rows_affected() == 0 {
        // Another drew the same id meanwhile: the step begins anew and sees it.
        return Err(TransactionError::crowded());
    }
    Ok(())
}

pub(in crate::session::store::sql) async fn remove(
    connection: &mut Connection,
    sql: &Statements,
    id: &[u8],
) -> Done<()> {
    sqlx::query(sql.remove.text())
        .bind(id)
        .execute(connection)
        .await?;
    Ok(())
}

/// Writes a user's mark, or the cut-off, which is nobody's.
pub(in crate::session::store::sql) async fn mark(
    connection: &mut Connection,
    sql: &Statements,
    user: &[u8],
    mark: i64,
    expires_at: i64,
) -> Done<()> {
    sqlx::query(sql.mark.text())
        .bind(user)
        .bind(mark)
        .bind(expires_at)
        .execute(connection)
        .await?;
    Ok(())
}

/// Removes some of what has been over for `age`.
pub(in crate::session::store::sql) async fn sweep(
    connection: &mut Connection,
    sql: &Statements,
    age: i64,
    now: Option<i64>,
) -> Done<()> {
    for text in &sql.sweep {
        sqlx::query(text.text())
            .bind(age)
            .bind(now)
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}
