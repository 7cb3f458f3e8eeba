//! One-time values in SQL: a row per value, a transaction per method.

use std::sync::Arc;

use bytes::Bytes;
use sqlx::AssertSqlSafe;

use super::super::policy;
use super::{Expect, Keep, Kept, OnceKey, OnceStore, PutOutcome, SaveOutcome};
use crate::backend::sql::{Dialect, Schema, SqlStore};
use crate::core::ttl::Ttl;
use crate::core::{StoreFuture, Timestamp};
use crate::data::Names;
use crate::data::sql_step::{alone, skip_locked};

struct Text {
    prefix: String,
    skip: &'static str,
}

impl Text {
    fn of(&self, text: &str) -> AssertSqlSafe<String> {
        let text = text.replace("{p}", &self.prefix);
        let lock = if self.skip.is_empty() {
            ""
        } else {
            "FOR UPDATE"
        };
        AssertSqlSafe(text.replace("{skip}", self.skip).replace("{lock}", lock))
    }
}

const SCHEMA: &str = "CREATE TABLE {p}once (name text NOT NULL, item text NOT NULL, value {bytes} NOT NULL, \
     version {int} NOT NULL, created {int} NOT NULL, updated {int} NOT NULL, ends {int} NOT NULL, \
     PRIMARY KEY (name, item)); CREATE INDEX {p}once_ends ON {p}once (ends);";

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
        Some(Schema::new("once", vec![ddl]))
    };
    db.part(schema, |db| Text {
        prefix: db.table_prefix().to_owned(),
        skip: skip_locked(db),
    })
}

/// Value, version, created, updated, ends.
type Row = (Vec<u8>, i64, i64, i64, i64);

fn kept(row: Option<Row>, now_ms: i64) -> Option<Kept> {
    let (value, version, created, updated, ends) = row?;
    let at = |ms: i64| Timestamp::from_millis(u64::try_from(ms).unwrap_or(0));
    (ends > now_ms).then(|| Kept {
        value: Bytes::from(value),
        version: version.unsigned_abs(),
        created_at: at(created),
        updated_at: at(updated),
        expires_at: at(ends),
    })
}

fn ms(ttl: Ttl) -> i64 {
    i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX / 4)
}

/// What has ended goes with later writes, a few rows each. After the write and never waiting: of two that met in
/// another order each would wait for the other.
const FORGET: &str = "DELETE FROM {p}once WHERE (name, item) IN \
     (SELECT name, item FROM {p}once WHERE ends <= $1 ORDER BY ends LIMIT 4 {skip})";

/// Over nothing or over what has ended; on Postgres the row is locked also where it stays as it is.
const PUT: &str = "INSERT INTO {p}once AS o (name, item, value, version, created, updated, ends) \
     VALUES ($1, $2, $3, 1, $4, $4, $5) ON CONFLICT (name, item) DO UPDATE SET value = excluded.value, version = 1, \
     created = excluded.created, updated = excluded.updated, ends = excluded.ends WHERE o.ends <= $4 RETURNING version";

/// Over anything: what lives goes on with its version and its age.
const SAVE: &str = "INSERT INTO {p}once AS o (name, item, value, version, created, updated, ends) \
     VALUES ($1, $2, $3, 1, $4, $4, $5) ON CONFLICT (name, item) DO UPDATE SET value = excluded.value, \
     version = CASE WHEN o.ends > $4 THEN o.version + 1 ELSE 1 END, \
     created = CASE WHEN o.ends > $4 THEN o.created ELSE $4 END, updated = $4, \
     ends = CASE WHEN o.ends > $4 AND o.created + $6 < $4 + $7 THEN o.created + $6 ELSE excluded.ends END \
     RETURNING version";

impl OnceStore for SqlStore {
    fn put(&self, key: &OnceKey, value: Bytes, ttl: Ttl) -> StoreFuture<PutOutcome> {
        let key = key.clone();
        alone!(self, text(self), |connection, now, text| {
            let stored: Option<i64> = sqlx::query_scalar(text.of(PUT))
                .bind(&*key.name)
                .bind(key.key.as_str())
                .bind(&value[..])
                .bind(now.ms)
                .bind(now.ms.saturating_add(ms(ttl)))
                .fetch_optional(&mut *connection)
                .await?;
            sqlx::query(text.of(FORGET))
                .bind(now.ms)
                .execute(&mut *connection)
                .await?;
            Ok(stored.map_or(PutOutcome::Exists, |_| PutOutcome::Stored))
        })
    }

    fn take(&self, key: &OnceKey) -> StoreFuture<Option<Kept>> {
        let key = key.clone();
        alone!(self, text(self), |connection, now, text| {
            let sql = "DELETE FROM {p}once WHERE name = $1 AND item = $2 \
                       RETURNING value, version, created, updated, ends";
            let row: Option<Row> = sqlx::query_as(text.of(sql))
                .bind(&*key.name)
                .bind(key.key.as_str())
                .fetch_optional(&mut *connection)
                .await?;
            Ok(kept(row, now.ms))
        })
    }

    fn peek(&self, key: &OnceKey) -> StoreFuture<Option<Kept>> {
        let key = key.clone();
        alone!(self, text(self), |connection, now, text| {
            let sql = "SELECT value, version, created, updated, ends FROM {p}once WHERE name = $1 AND item = $2";
            let row: Option<Row> = sqlx::query_as(text.of(sql))
                .bind(&*key.name)
                .bind(key.key.as_str())
                .fetch_optional(&mut *connection)
                .await?;
            Ok(kept(row, now.ms))
        })
    }

    fn save(
        &self,
        key: &OnceKey,
        value: Bytes,
        expect: Expect,
        keep: Keep,
    ) -> StoreFuture<SaveOutcome> {
        let key = key.clone();
        alone!(self, text(self), |connection, now, text| {
            if expect == Expect::Absent {
                let created: Option<i64> = sqlx::query_scalar(text.of(PUT))
                    .bind(&*key.name)
                    .bind(key.key.as_str())
                    .bind(&value[..])
                    .bind(now.ms)
                    .bind(first_end(keep, now.ms))
                    .fetch_optional(&mut *connection)
                    .await?;
                if created.is_some() {
                    sqlx::query(text.of(FORGET))
                        .bind(now.ms)
                        .execute(&mut *connection)
                        .await?;
                    return Ok(SaveOutcome::Saved { version: 1 });
                }
            }
            let sql = "SELECT CASE WHEN ends > $3 THEN version ELSE 0 END FROM {p}once \
                       WHERE name = $1 AND item = $2 {lock}";
            let version: Option<i64> = sqlx::query_scalar(text.of(sql))
                .bind(&*key.name)
                .bind(key.key.as_str())
                .bind(now.ms)
                .fetch_optional(&mut *connection)
                .await?;
            let version = version.unwrap_or(0).unsigned_abs();
            // An absence was looked for above, and something was there.
            if expect == Expect::Absent || !policy::is_expected(expect, version) {
                return Ok(SaveOutcome::Conflict { version });
            }
            let version: i64 = sqlx::query_scalar(text.of(SAVE))
                .bind(&*key.name)
                .bind(key.key.as_str())
                .bind(&value[..])
                .bind(now.ms)
                .bind(first_end(keep, now.ms))
                .bind(ms(keep.max_age))
                .bind(ms(keep.ttl))
                .fetch_one(&mut *connection)
                .await?;
            sqlx::query(text.of(FORGET))
                .bind(now.ms)
                .execute(&mut *connection)
                .await?;
            Ok(SaveOutcome::Saved {
                version: version.unsigned_abs(),
            })
        })
    }

    fn remove(&self, key: &OnceKey) -> StoreFuture<bool> {
        let key = key.clone();
        alone!(self, text(self), |connection, now, text| {
            let sql = "DELETE FROM {p}once WHERE name = $1 AND item = $2 RETURNING ends";
            let ends: Option<i64> = sqlx::query_scalar(text.of(sql))
                .bind(&*key.name)
                .bind(key.key.as_str())
                .fetch_optional(&mut *connection)
                .await?;
            Ok(ends.is_some_and(|ends| ends > now.ms))
        })
    }

    fn contradicts(&self, name: &str, what: &str) -> bool {
        self.part(|_| None, |_| Names::default())
            .contradicts(name, what)
    }
}

/// When a value that is saved for the first time ends.
fn first_end(keep: Keep, now_ms: i64) -> i64 {
    let end = policy::end(keep, now_ms.unsigned_abs(), now_ms.unsigned_abs());
    i64::try_from(end).unwrap_or(i64::MAX)
}
