//! Locks in SQL: a row per key, a transaction per method. Waiters look every 50 to 250 ms.

use std::sync::Arc;
use std::time::Duration;

use sqlx::AssertSqlSafe;

use super::{Acquired, Asking, Fence, LockKey, LockState, LockStore, Owned, Owner};
use crate::backend::sql::{Dialect, Schema, SqlStore};
use crate::core::{NoticeCallback, StoreFuture, Subscription};
use crate::data::sql_step::{alone, skip_locked};
use crate::data::ticker;

const LOOK_EVERY: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(50)..=Duration::from_millis(250);
/// Freed locks are forgotten, a few at a time, this long after their end; fences are made of the time besides.
const KEPT_MS: i64 = 86_400_000;

struct Text {
    prefix: String,
    skip: &'static str,
}

impl Text {
    fn of(&self, text: &str) -> AssertSqlSafe<String> {
        let text = text.replace("{p}", &self.prefix);
        AssertSqlSafe(text.replace("{skip}", self.skip))
    }
}

const SCHEMA: &str = "CREATE TABLE {p}lock (name text NOT NULL, item text NOT NULL, owner {bytes}, \
     fence {int} NOT NULL, ends {int} NOT NULL, last {bytes}, PRIMARY KEY (name, item)); \
     CREATE INDEX {p}lock_ends ON {p}lock (ends);";

fn text(db: &SqlStore) -> Arc<Text> {
    let schema = |db: &SqlStore| {
        let (int, bytes) = match db.dialect() {
            #[cfg(feature = "sqlite")]
            Dialect::Sqlite => ("INTEGER", "BLOB"),
            #[cfg(feature = "postgres")]
            Dialect::Postgres => ("bigint", "bytea"),
        };
        let ddl = SCHEMA.replace("{p}", db.table_prefix());
        let ddl = ddl.replace("{int}", int).replace("{bytes}", bytes);
        Some(Schema::new("lock", vec![ddl]))
    };
    db.part(schema, |db| Text {
        prefix: db.table_prefix().to_owned(),
        skip: skip_locked(db),
    })
}

fn ms(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX / 4)
}

const fn owned(rows: u64) -> Owned {
    if rows > 0 { Owned::Yes } else { Owned::Lost }
}

const FORGET: &str = "DELETE FROM {p}lock WHERE (name, item) IN \
     (SELECT name, item FROM {p}lock WHERE ends < $1 ORDER BY ends LIMIT 2 {skip})";

const ACQUIRE: &str = "INSERT INTO {p}lock (name, item, owner, fence, ends) VALUES ($1, $2, $3, $4, $5) \
     ON CONFLICT (name, item) DO UPDATE SET owner = excluded.owner, ends = excluded.ends, last = NULL, \
     fence = CASE WHEN {p}lock.owner = excluded.owner AND {p}lock.ends > $6 THEN {p}lock.fence \
     WHEN {p}lock.fence >= excluded.fence THEN {p}lock.fence + 1 ELSE excluded.fence END \
     WHERE {p}lock.owner IS NULL OR {p}lock.ends <= $6 OR {p}lock.owner = excluded.owner \
     RETURNING fence";

impl LockStore for SqlStore {
    fn acquire(
        &self,
        key: &LockKey,
        owner: Owner,
        lease: Duration,
        _: Asking,
    ) -> StoreFuture<Acquired> {
        let key = key.clone();
        alone!(self, text(self), |connection, now, text| {
            let fence: Option<i64> = sqlx::query_scalar(text.of(ACQUIRE))
                .bind(&*key.name)
                .bind(key.key.as_str())
                .bind(&owner.0[..])
                .bind(now.engine_us)
                .bind(now.ms + ms(lease))
                .bind(now.ms)
                .fetch_optional(&mut *connection)
                .await?;
            if let Some(fence) = fence {
                // After its own row and never waiting: of two that met in another order each would wait for the other.
                sqlx::query(text.of(FORGET))
                    .bind(now.ms - KEPT_MS)
                    .execute(&mut *connection)
                    .await?;
                return Ok(Acquired::Granted(Fence(fence.unsigned_abs())));
            }
            let sql = text.of("SELECT ends FROM {p}lock WHERE name = $1 AND item = $2");
            let ends: Option<i64> = sqlx::query_scalar(sql)
                .bind(&*key.name)
                .bind(key.key.as_str())
                .fetch_optional(&mut *connection)
                .await?;
            let left = ends.map_or(0, |ends| (ends - now.ms).max(0));
            Ok(Acquired::Busy {
                left: Duration::from_millis(left.unsigned_abs()),
            })
        })
    }

    fn extend(&self, key: &LockKey, owner: Owner, lease: Duration) -> StoreFuture<Owned> {
        let key = key.clone();
        alone!(self, text(self), |connection, now, text| {
            let sql = "UPDATE {p}lock SET ends = $4 WHERE name = $1 AND item = $2 AND owner = $3 AND ends > $5";
            let done = sqlx::query(text.of(sql))
                .bind(&*key.name)
                .bind(key.key.as_str())
                .bind(&owner.0[..])
                .bind(now.ms + ms(lease))
                .bind(now.ms)
                .execute(&mut *connection)
                .await?;
            Ok(owned(done.rows_affected()))
        })
    }

    fn release(&self, key: &LockKey, owner: Owner) -> StoreFuture<Owned> {
        let key = key.clone();
        alone!(self, text(self), |connection, now, text| {
            let sql = "UPDATE {p}lock SET owner = NULL, ends = $4, last = CASE WHEN ends > $4 THEN owner END \
                       WHERE name = $1 AND item = $2 AND owner = $3";
            sqlx::query(text.of(sql))
                .bind(&*key.name)
                .bind(key.key.as_str())
                .bind(&owner.0[..])
                .bind(now.ms)
                .execute(&mut *connection)
                .await?;
            // Also true for a repeat, whose first answer was lost.
            let sql = "SELECT count(*) FROM {p}lock WHERE name = $1 AND item = $2 AND last = $3";
            let done: i64 = sqlx::query_scalar(text.of(sql))
                .bind(&*key.name)
                .bind(key.key.as_str())
                .bind(&owner.0[..])
                .fetch_one(&mut *connection)
                .await?;
            Ok(owned(done.unsigned_abs()))
        })
    }

    fn inspect(&self, key: &LockKey) -> StoreFuture<Option<LockState>> {
        let key = key.clone();
        alone!(self, text(self), |connection, now, text| {
            let sql = "SELECT fence, ends FROM {p}lock WHERE name = $1 AND item = $2 \
                       AND owner IS NOT NULL AND ends > $3";
            let found: Option<(i64, i64)> = sqlx::query_as(text.of(sql))
                .bind(&*key.name)
                .bind(key.key.as_str())
                .bind(now.ms)
                .fetch_optional(&mut *connection)
                .await?;
            Ok(found.map(|(fence, ends)| LockState {
                fence: Fence(fence.unsigned_abs()),
                left: Duration::from_millis((ends - now.ms).unsigned_abs()),
            }))
        })
    }

    /// Nobody tells: whoever listens is rung every 50 to 250 ms.
    fn subscribe(&self, _: &LockKey, callback: NoticeCallback) -> StoreFuture<Subscription> {
        StoreFuture::ok(ticker::every(LOOK_EVERY, callback))
    }
}
