//! One version per part in `<prefix>schema`: forward only, idempotent, safe when two processes start at once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::builder::Migrations;
use super::engine::Dialect;
use super::error::{TransactionError, TransactionErrorKind};
use super::open::Open;
use super::store::SqlStore;
use crate::core::RollbackCause;
use crate::core::telemetry::error;

/// How long the tables of one part may take, with the wait for another process that makes them.
const LONGEST: Duration = Duration::from_secs(120);

/// The tables of one part: each step is DDL in the handle's dialect, and is never changed once published.
#[derive(Clone, Debug)]
pub struct Schema {
    part: &'static str,
    steps: Vec<String>,
}

impl Schema {
    /// Names the part and its steps, oldest first.
    #[must_use]
    pub fn new(part: &'static str, steps: Vec<String>) -> Self {
        Self { part, steps }
    }

    /// Returns the DDL and the note that it was run, for those who run it by hand: in one transaction, so that
    /// nothing is noted where something failed.
    #[must_use]
    pub fn sql(&self, prefix: &str) -> String {
        self.sql_after(0, prefix)
    }

    /// The same for tables that are as the first `version` steps left them.
    fn sql_after(&self, version: usize, prefix: &str) -> String {
        let mut text = String::new();
        for step in self.steps.iter().skip(version) {
            text.push_str(step.trim_end());
            text.push('\n');
        }
        let notes = [
            format!("{};\n", self.notes(prefix)),
            format!("{};\n", self.noted(prefix)),
        ];
        text.extend(notes);
        text
    }

    /// Makes the table that says how far each part is.
    fn notes(&self, prefix: &str) -> String {
        format!(
            "CREATE TABLE IF NOT EXISTS {prefix}schema (part text PRIMARY KEY, version integer NOT NULL)"
        )
    }

    /// Says there that all steps were run; statements of an older release turn nothing back.
    fn noted(&self, prefix: &str) -> String {
        // Both are ours: a static name and a count.
        let (part, version) = (self.part, self.steps.len());
        format!(
            "INSERT INTO {prefix}schema AS s (part, version) VALUES ('{part}', {version}) \
             ON CONFLICT (part) DO UPDATE SET version = excluded.version WHERE s.version < excluded.version"
        )
    }
}

/// What was registered, and whether all of it has been applied.
#[derive(Debug, Default)]
pub(super) struct Schemas {
    registered: Mutex<Vec<Schema>>,
    applied: tokio::sync::Mutex<usize>,
    current: AtomicBool,
}

impl Schemas {
    pub(super) fn register(&self, schema: Schema) {
        self.registered.lock().push(schema);
        self.current.store(false, Ordering::SeqCst);
    }
}

impl SqlStore {
    /// Applies what has been registered since the last time; one atomic read when nothing has.
    pub(super) async fn prepare(&self) -> Result<(), TransactionError> {
        let schemas = &self.inner.schemas;
        if schemas.current.load(Ordering::SeqCst) || schemas.registered.lock().is_empty() {
            return Ok(());
        }
        let mut applied = schemas.applied.lock().await;
        loop {
            let next = schemas.registered.lock().get(*applied).cloned();
            let Some(schema) = next else { break };
            apply(self, &schema).await.inspect_err(|problem| {
                let _ = problem;
                error!(part = schema.part, error = ?problem.database(), "the tables are not there");
            })?;
            *applied += 1;
        }
        // Registered meanwhile? Then the next caller finds it, because the flag is set under the list's lock.
        let registered = schemas.registered.lock();
        schemas
            .current
            .store(registered.len() == *applied, Ordering::SeqCst);
        Ok(())
    }
}

async fn apply(db: &SqlStore, schema: &Schema) -> Result<(), TransactionError> {
    let mut open = Open::begin(db, db.inner.settings.lock_timeout).await?;
    // Everybody waits for it: a server that falls silent must not keep them.
    let Ok(done) = tokio::time::timeout(LONGEST, steps(db, &mut open, schema)).await else {
        return Err(TransactionError::unanswered());
    };
    if let Err(error) = done {
        open.rollback().await;
        return Err(error);
    }
    let committed = tokio::time::timeout(db.inner.settings.commit_timeout, open.commit()).await;
    committed.map_or_else(|_| Err(TransactionError::unanswered()), |done| Ok(done?))
}

async fn steps(db: &SqlStore, open: &mut Open, schema: &Schema) -> Result<(), TransactionError> {
    let prefix = db.table_prefix();
    let table = format!("{prefix}schema");
    let checking = db.inner.settings.migrations == Migrations::Check;
    let forbidden = |version: usize| {
        move |problem: &sqlx::Error| {
            tell_if_forbidden(schema, &schema.sql_after(version, prefix), problem)
        }
    };
    if !checking {
        lock(db, open).await?;
        // Asked first: who may make no tables may work with those that somebody else made.
        if !is_there(open, &table).await? {
            let made = open.connection()?.run(schema.notes(prefix)).await;
            made.inspect_err(forbidden(0))?;
        }
    }
    let version = version(open, &table, schema.part).await?;
    let version = usize::try_from(version).unwrap_or(0);
    if version >= schema.steps.len() {
        return Ok(());
    }
    if checking {
        error!(
            part = schema.part,
            version, "tables are missing, run the migrations"
        );
        return Err(TransactionError::new(TransactionErrorKind::Failed));
    }
    for step in schema.steps.iter().skip(version) {
        let made = open.connection()?.run(step.clone()).await;
        made.inspect_err(forbidden(version))?;
    }
    open.connection()?.run(schema.noted(prefix)).await?;
    Ok(())
}

/// Whoever may do it needs the statements: nothing of them is secret.
fn tell_if_forbidden(schema: &Schema, statements: &str, problem: &sqlx::Error) {
    let code = problem.as_database_error().and_then(|error| error.code());
    if code.as_deref() == Some("42501") {
        error!(
            part = schema.part,
            statements,
            "no right to make the tables: let the owner of the database run these statements in one transaction, or grant the right"
        );
        let _ = (schema.part, statements);
    }
}

/// On SQLite whoever may write may make tables: there `IF NOT EXISTS` is enough.
async fn is_there(open: &mut Open, table: &str) -> Result<bool, TransactionError> {
    #[cfg(feature = "postgres")]
    if let Some(connection) = open.connection()?.postgres() {
        let found = sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL");
        return Ok(found.bind(table).fetch_one(connection).await?);
    }
    let _ = (open, table);
    Ok(false)
}

/// Two processes that start at once: SQLite's are apart by BEGIN IMMEDIATE already.
async fn lock(db: &SqlStore, open: &mut Open) -> Result<(), TransactionError> {
    match db.dialect() {
        #[cfg(feature = "postgres")]
        Dialect::Postgres => {
            // DDL may wait longer than a request may.
            let sql = "SET LOCAL lock_timeout = 30000; SET LOCAL statement_timeout = 60000; \
                       SELECT pg_advisory_xact_lock(7742105861993)";
            open.connection()?.run(sql.to_owned()).await?;
        }
        #[cfg(feature = "sqlite")]
        Dialect::Sqlite => {
            let _ = open;
        }
    }
    Ok(())
}

async fn version(
    open: &mut Open,
    table: &str,
    part: &'static str,
) -> Result<i64, TransactionError> {
    let connection = open.connection()?;
    #[cfg(feature = "sqlite")]
    if let Some(connection) = connection.sqlite() {
        let sql = sqlx::AssertSqlSafe(format!("SELECT version FROM {table} WHERE part = ?1"));
        let found: Option<i64> = sqlx::query_scalar(sql)
            .bind(part)
            .fetch_optional(connection)
            .await?;
        return Ok(found.unwrap_or(0));
    }
    #[cfg(feature = "postgres")]
    if let Some(connection) = connection.postgres() {
        let sql = sqlx::AssertSqlSafe(format!(
            "SELECT version::bigint FROM {table} WHERE part = $1"
        ));
        let found: Option<i64> = sqlx::query_scalar(sql)
            .bind(part)
            .fetch_optional(connection)
            .await?;
        return Ok(found.unwrap_or(0));
    }
    Err(TransactionError::doomed(RollbackCause::Poisoned))
}
