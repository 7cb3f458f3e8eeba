//! The statements, built once from the handle's prefix.

use std::sync::Arc;

use sqlx::AssertSqlSafe;

use crate::backend::sql::{Dialect, Schema};

/// A row as [`Raw`](super::rows::Raw) reads it.
const COLUMNS: &str = "s.id, s.user_id, s.core, s.roles, {data} AS data, s.expires_at, {cut_off} AS cut_off, {now} AS now";
/// A user's sessions that may be live; the others are nobody's any more.
const LIVE: &str = "s.expires_at > {now} AND s.created > coalesce({cut_off}, -1)";

pub(super) struct Statements {
    /// By id: the session, without and with its data. `$1` id, `$2` time.
    pub(super) core: Text,
    pub(super) whole: Text,
    /// The session `$1` and all of its user's; `$2` time.
    pub(super) family: Text,
    /// All sessions of the user `$1`; `$2` time.
    pub(super) user: Text,
    /// Locks, in the order of ids: `$1` with its data, `$3`, and all of the user `$4`; `$2` time.
    pub(super) lock: Text,
    /// Whose session `$1` is.
    pub(super) owner: Text,
    /// The cut-off, the mark of the user `$1`, the time, of a clock passed as `$2`.
    pub(super) facts: Text,
    pub(super) insert: Text,
    pub(super) update: Text,
    /// The same, data included.
    pub(super) replace: Text,
    pub(super) remove: Text,
    pub(super) mark: Text,
    /// Some of the rows that have been over for `$1`; `$2` time.
    pub(super) sweep: [Text; 2],
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
        let select = |data: &str, which: &str| {
            let columns = COLUMNS.replace("{data}", data);
            text(&format!(
                "SELECT {columns} FROM {{p}}session s WHERE {which}"
            ))
        };
        Self {
            core: select("{null}", "s.id = $1"),
            whole: select("s.data", "s.id = $1"),
            family: select(
                "{null}",
                &format!(
                    "s.id = $1 OR (s.user_id = (SELECT user_id FROM {{p}}session WHERE id = $1) AND {LIVE})"
                ),
            ),
            user: select("{null}", &format!("s.user_id = $1 AND {LIVE}")),
            lock: select(
                "CASE WHEN s.id = $1 THEN s.data END",
                &format!(
                    "s.id = $1 OR s.id = $3 OR (s.user_id = $4 AND {LIVE}) ORDER BY s.id {{lock}}"
                ),
            ),
            owner: text("SELECT user_id FROM {p}session WHERE id = $1"),
            facts: text(
                "SELECT max(CASE WHEN user_id = {empty} THEN mark END), \
                 max(CASE WHEN user_id = $1 THEN mark END), {now} \
                 FROM {p}session_mark WHERE user_id IN ({empty}, $1)",
            ),
            insert: text(
                "INSERT INTO {p}session (id, user_id, core, roles, created, expires_at, data) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (id) DO NOTHING",
            ),
            update: text(
                "UPDATE {p}session SET user_id = $2, core = $3, roles = $4, created = $5, expires_at = $6 \
                 WHERE id = $1",
            ),
            replace: text(
                "UPDATE {p}session SET user_id = $2, core = $3, roles = $4, created = $5, expires_at = $6, \
                 data = $7 WHERE id = $1",
            ),
            remove: text("DELETE FROM {p}session WHERE id = $1"),
            mark: text(
                "INSERT INTO {p}session_mark (user_id, mark, expires_at) VALUES ($1, $2, $3) \
                 ON CONFLICT (user_id) DO UPDATE SET mark = excluded.mark, expires_at = excluded.expires_at",
            ),
            sweep: [("session", "id"), ("session_mark", "user_id")].map(|(table, key)| {
                text(&format!(
                    "DELETE FROM {{p}}{table} WHERE {key} IN (SELECT {key} FROM {{p}}{table} \
                     WHERE expires_at <= {{now}} - $1 ORDER BY expires_at LIMIT 500 {{skip}})"
                ))
            }),
        }
    }
}

pub(super) fn schema(prefix: &str, dialect: Dialect) -> Schema {
    let ddl = Words::of(dialect).fill(include_str!("session.sql"), prefix);
    Schema::new("session", vec![ddl])
}

/// What the engines call differently.
struct Words {
    now: &'static str,
    bytes: &'static str,
    empty: &'static str,
    null: &'static str,
    lock: &'static str,
    skip: &'static str,
}

impl Words {
    const fn of(dialect: Dialect) -> Self {
        match dialect {
            #[cfg(feature = "sqlite")]
            Dialect::Sqlite => Self {
                now: "$2",
                bytes: "BLOB",
                empty: "x''",
                null: "NULL",
                lock: "",
                skip: "",
            },
            // Read in the statement: `now()` would stand still since BEGIN.
            #[cfg(feature = "postgres")]
            Dialect::Postgres => Self {
                now: "coalesce($2::bigint, floor(extract(epoch from clock_timestamp()) * 1000)::bigint)",
                bytes: "bytea",
                empty: "''::bytea",
                null: "NULL::bytea",
                lock: "FOR UPDATE OF s",
                skip: "FOR UPDATE SKIP LOCKED",
            },
        }
    }

    fn fill(&self, sql: &str, prefix: &str) -> String {
        const CUT_OFF: &str = "(SELECT mark FROM {p}session_mark WHERE user_id = {empty})";
        sql.replace("{cut_off}", CUT_OFF)
            .replace("{now}", self.now)
            .replace("{bytes}", self.bytes)
            .replace("{empty}", self.empty)
            .replace("{null}", self.null)
            .replace("{lock}", self.lock)
            .replace("{skip}", self.skip)
            .replace("{p}", prefix)
    }
}
