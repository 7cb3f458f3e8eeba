//! Statements of a test's own, on whichever engine a handle has.

use sqlx::AssertSqlSafe;
use tower_keep::backend::sql::{Postgres, SqlStore, Sqlite};

/// Runs `text` outside any transaction.
pub async fn execute(db: &SqlStore, text: &str) {
    let sql = sqlx::raw_sql(AssertSqlSafe(text.to_owned()));
    if let Some(pool) = db.pool::<Sqlite>() {
        sql.execute(pool).await.unwrap();
    } else {
        sql.execute(db.pool::<Postgres>().unwrap()).await.unwrap();
    }
}

/// The one number that `text` selects, as others see it.
pub async fn number(db: &SqlStore, text: &str) -> i64 {
    let sql = AssertSqlSafe(text.to_owned());
    if let Some(pool) = db.pool::<Sqlite>() {
        return sqlx::query_scalar(sql).fetch_one(pool).await.unwrap();
    }
    let pool = db.pool::<Postgres>().unwrap();
    sqlx::query_scalar(sql).fetch_one(pool).await.unwrap()
}
