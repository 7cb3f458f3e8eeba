//! The statements, built once per handle from its prefix. Parameter 1 is the id, 2 the time where there is one.

use std::sync::Arc;

use sqlx::AssertSqlSafe;

use crate::backend::sql::{Dialect, Schema};

const COLUMNS: &str = "version, state, at_end, rule, nonce, fence, fingerprint, created, lease_until, expires_at, answer";

/// A row that the next claim may take: gone, or left behind by a run that may happen again. What cannot be
/// read is never free: that would be a second run. 3 nonce, 4 fingerprint, 5 rule.
const FREE: &str = "(r.version = 1 AND r.state BETWEEN 1 AND 3 AND r.at_end BETWEEN 1 AND 2 \
     AND (r.expires_at <= {ms} OR (r.state = 1 AND r.at_end = 1 AND r.lease_until <= {ms} \
     AND r.nonce <> $3 AND (r.rule <> $5 OR r.fingerprint = $4))))";

/// 3 nonce, 4 fingerprint, 5 rule, 6 lease, 7 keep, 8 what the lease's end means. Writes only what is free,
/// also where it became free or was taken while this waited for a lock.
const TAKE: &str = "INSERT INTO {p}idempotency AS r \
     (id, version, state, at_end, rule, nonce, fence, fingerprint, created, lease_until, expires_at) \
     SELECT $1, 1, 1, $8, $5, $3, t.us, $4, t.us / 1000, t.us / 1000 + $6, t.us / 1000 + $7 FROM {from} \
     ON CONFLICT (id) DO UPDATE SET state = 1, at_end = excluded.at_end, rule = excluded.rule, nonce = excluded.nonce, \
     fence = CASE WHEN r.fence >= excluded.fence THEN r.fence + 1 ELSE excluded.fence END, \
     fingerprint = excluded.fingerprint, lease_until = excluded.lease_until, expires_at = excluded.expires_at, \
     created = CASE WHEN r.expires_at <= excluded.created THEN excluded.created ELSE r.created END, answer = NULL \
     WHERE {free} RETURNING ";

/// 3 nonce, 4 fingerprint, 5 rule, 6 state, 7 ttl, 8 answer. A record that is gone is written anew.
const COMPLETE: &str = "INSERT INTO {p}idempotency AS r \
     (id, version, state, at_end, rule, nonce, fence, fingerprint, created, lease_until, expires_at, answer) \
     SELECT $1, 1, $6, 1, $5, $3, t.us, $4, t.us / 1000, t.us / 1000, t.us / 1000 + $7, $8 FROM {now} WHERE true \
     ON CONFLICT (id) DO UPDATE SET state = excluded.state, answer = excluded.answer, nonce = excluded.nonce, \
     at_end = CASE WHEN {over} THEN excluded.at_end ELSE r.at_end END, \
     rule = CASE WHEN {over} THEN excluded.rule ELSE r.rule END, \
     fingerprint = CASE WHEN {over} THEN excluded.fingerprint ELSE r.fingerprint END, \
     fence = CASE WHEN NOT {over} THEN r.fence WHEN r.fence >= excluded.fence THEN r.fence + 1 ELSE excluded.fence END, \
     created = CASE WHEN {over} THEN excluded.created ELSE r.created END, \
     lease_until = CASE WHEN {over} THEN excluded.lease_until ELSE r.lease_until END, \
     expires_at = excluded.expires_at \
     WHERE r.version = 1 AND ({over} OR r.nonce = excluded.nonce)";

/// The owner's claim: 3 is the nonce.
const OWN: &str =
    "id = $1 AND version = 1 AND state = 1 AND nonce = $3 AND expires_at > t.us / 1000";

/// What an operator looked at: 3 is the fence.
const LOOKED_AT: &str = "id = $1 AND version = 1 AND fence = $3 AND expires_at > t.us / 1000";

/// The statements of a handle.
pub(super) struct Statements {
    /// The row and the time.
    pub(super) find: Text,
    /// Claims what is free. SQLite: the fence of what was taken. Postgres: that, or what was there.
    pub(super) claim: Text,
    pub(super) complete: Text,
    /// 3 nonce, 4 lease, 5 what its end means, 6 the least time to keep the record.
    pub(super) renew: Text,
    /// 3 nonce. The row stays until it is swept: the next fence rises over its own.
    pub(super) release: Text,
    /// 3 fence.
    pub(super) forget: Text,
    /// 3 fence, 4 state, 5 ttl, 6 answer. Without its nonce the old owner cannot overwrite it.
    pub(super) answer: Text,
    /// 1 the time; at most 500.
    pub(super) sweep: Text,
    /// 1 and 3 the first and the last id, at most 500 rows: they are claims of nobody now, and over.
    pub(super) purge: Text,
    /// 1 id: waits for whoever is writing the row, and says whose it is.
    pub(super) probe: Text,
}

/// A statement whose only foreign part is the checked prefix.
pub(super) struct Text(Arc<str>);

impl Text {
    pub(super) fn text(&self) -> AssertSqlSafe<Arc<str>> {
        AssertSqlSafe(Arc::clone(&self.0))
    }
}

impl Statements {
    pub(super) fn new(prefix: &str, dialect: Dialect) -> Self {
        let words = Words::of(dialect);
        let text = |sql: &str| Text(Arc::from(words.fill(sql, prefix)));
        Self {
            find: text(&format!(
                "SELECT {COLUMNS}, t.us FROM {{p}}idempotency r CROSS JOIN {{now}} WHERE r.id = $1"
            )),
            claim: text(&words.claim()),
            complete: text(&COMPLETE.replace("{over}", "(r.expires_at <= excluded.created)")),
            renew: text(&format!(
                "UPDATE {{p}}idempotency SET lease_until = t.us / 1000 + $4, at_end = $5, \
                 expires_at = CASE WHEN expires_at < t.us / 1000 + $6 THEN t.us / 1000 + $6 ELSE expires_at END \
                 FROM {{now}} WHERE {OWN}"
            )),
            release: text(&format!(
                "UPDATE {{p}}idempotency SET expires_at = t.us / 1000 FROM {{now}} WHERE {OWN}"
            )),
            forget: text(&format!(
                "UPDATE {{p}}idempotency SET expires_at = t.us / 1000, nonce = {{zeros}} FROM {{now}} \
                 WHERE {LOOKED_AT} AND (state <> 1 OR lease_until <= t.us / 1000)"
            )),
            answer: text(&format!(
                "UPDATE {{p}}idempotency SET state = $4, expires_at = t.us / 1000 + $5, answer = $6, \
                 nonce = {{zeros}} FROM {{now}} \
                 WHERE {LOOKED_AT} AND (state <> 1 OR lease_until <= t.us / 1000)"
            )),
            sweep: text(
                "DELETE FROM {p}idempotency WHERE id IN (SELECT id FROM {p}idempotency \
                 WHERE expires_at <= $1 AND version = 1 ORDER BY expires_at LIMIT 500 {skip})",
            ),
            purge: text(
                "UPDATE {p}idempotency SET state = 1, lease_until = t.us / 1000, expires_at = t.us / 1000, \
                 nonce = {zeros}, answer = NULL FROM {now} \
                 WHERE state <> 1 AND id IN (SELECT o.id FROM {p}idempotency o \
                 WHERE o.id >= $1 AND o.id <= $3 AND o.version = 1 AND o.state <> 1 AND o.expires_at > {ms} \
                 ORDER BY o.id LIMIT 500 {lock}) RETURNING id",
            ),
            probe: text(
                "INSERT INTO {p}idempotency AS r \
                 (id, version, state, at_end, rule, nonce, fence, fingerprint, created, lease_until, expires_at) \
                 VALUES ($1, 1, 1, 1, 0, {zeros}, 0, {zeros}, 0, 0, 0) \
                 ON CONFLICT (id) DO UPDATE SET version = r.version RETURNING nonce, fence",
            ),
        }
    }
}

pub(super) fn schema(prefix: &str, dialect: Dialect) -> Schema {
    let ddl = Words::of(dialect).fill(include_str!("idempotency.sql"), prefix);
    Schema::new("idempotency", vec![ddl])
}

/// What the engines call differently.
struct Words {
    /// The row `t (us)` with the time in microseconds.
    now: &'static str,
    bytes: &'static str,
    zeros: &'static str,
    skip: &'static str,
    lock: &'static str,
    /// The time in milliseconds, where `t` cannot be reached.
    ms: &'static str,
    dialect: Dialect,
}

impl Words {
    const fn of(dialect: Dialect) -> Self {
        match dialect {
            #[cfg(feature = "sqlite")]
            Dialect::Sqlite => Self {
                now: "(SELECT $2 AS us) t",
                bytes: "BLOB",
                zeros: "zeroblob(16)",
                skip: "",
                lock: "",
                ms: "$2 / 1000",
                dialect,
            },
            // Read in the statement: `now()` would stand still since BEGIN.
            #[cfg(feature = "postgres")]
            Dialect::Postgres => Self {
                now: "(SELECT coalesce($2::bigint, \
                      floor(extract(epoch from clock_timestamp()) * 1000000)::bigint) AS us) t",
                bytes: "bytea",
                zeros: "decode(repeat('00', 16), 'hex')",
                skip: "FOR UPDATE SKIP LOCKED",
                lock: "FOR UPDATE",
                ms: "(coalesce($2::bigint, floor(extract(epoch from clock_timestamp()) * 1000000)::bigint) / 1000)",
                dialect,
            },
        }
    }

    fn fill(&self, sql: &str, prefix: &str) -> String {
        sql.replace("{now}", self.now)
            .replace("{bytes}", self.bytes)
            .replace("{zeros}", self.zeros)
            .replace("{skip}", self.skip)
            .replace("{lock}", self.lock)
            .replace("{ms}", self.ms)
            .replace("{p}", prefix)
    }

    fn claim(&self) -> String {
        let take = TAKE.replace("{free}", &FREE.replace("{ms}", "excluded.created"));
        match self.dialect {
            #[cfg(feature = "sqlite")]
            Dialect::Sqlite => take.replace("{from}", "{now} WHERE true") + "fence",
            #[cfg(feature = "postgres")]
            Dialect::Postgres => {
                let free = FREE.replace("{ms}", "(t.us / 1000)");
                let take = take.replace("{from}", "t WHERE NOT EXISTS (SELECT 1 FROM seen)");
                // A row that is not seen yet is waited for, and may then be nobody's: neither part has a row.
                format!(
                    "WITH t AS MATERIALIZED (SELECT us FROM {{now}}), \
                     seen AS MATERIALIZED (SELECT {COLUMNS}, t.us FROM {{p}}idempotency r CROSS JOIN t \
                     WHERE r.id = $1 AND NOT {free}), \
                     mine AS ({take}{COLUMNS}) \
                     SELECT {COLUMNS}, us, NULL::text FROM seen \
                     UNION ALL SELECT {COLUMNS}, t.us, {} FROM mine CROSS JOIN t",
                    crate::backend::sql::TRANSACTION
                )
            }
        }
    }
}
