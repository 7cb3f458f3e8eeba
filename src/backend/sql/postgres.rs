//! What is particular to Postgres: opening, the one-message BEGIN, the sentinel, and asking after a lost COMMIT.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Connection, Executor, PgConnection, PgPool, Row};

use super::builder::Settings;
use super::connection::Sentinel;
use super::xid::Xid;

pub(super) async fn open(url: &str, settings: &Settings) -> Result<PgPool, sqlx::Error> {
    let options: PgConnectOptions = url.parse()?;
    PgPoolOptions::new()
        .test_before_acquire(false)
        .acquire_timeout(settings.acquire_timeout)
        .max_connections(settings.max_connections.unwrap_or(10))
        .after_release(|connection, _| match connection.is_in_transaction() {
            true => Box::pin(async { Ok(false) }),
            false => Box::pin(Kept),
        })
        .connect_with(options)
        .await
}

/// Whether the driver keeps no statements, as it is told behind a pooler that gives each transaction another session.
pub(super) fn keeps_no_statements(url: &str) -> bool {
    let settings = url.split_once('?').map_or("", |(_, settings)| settings);
    settings
        .split('&')
        .any(|setting| setting == "statement-cache-capacity=0")
}

/// Says that a connection stays in the pool. Without a size, it takes no allocation.
struct Kept;

impl Future for Kept {
    type Output = Result<bool, sqlx::Error>;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(Ok(true))
    }
}

/// How the transactions of a handle begin: made once.
pub(super) struct Beginning {
    /// What `keep.transaction` says in each of them: 128 random bits. It is theirs alone and ends with them, and on a
    /// connection that is lent nobody else begins by it: where it is read, the transaction is the one that was begun.
    pub(super) mark: Box<str>,
    /// BEGIN with the usual wait for locks.
    usual: Arc<str>,
}

impl Beginning {
    pub(super) fn new(settings: &Settings) -> Result<Self, sqlx::Error> {
        let mut bits = [0_u8; 16];
        getrandom::fill(&mut bits)
            .map_err(|_| sqlx::Error::Protocol("no random bits are to be had".into()))?;
        let mark = format!("{:032x}", u128::from_be_bytes(bits)).into_boxed_str();
        let usual = begin(settings, settings.lock_timeout, &mark).into();
        Ok(Self { mark, usual })
    }

    /// The text that begins one in which locks are waited for so long.
    pub(super) fn text(&self, settings: &Settings, lock_timeout: Duration) -> Arc<str> {
        if lock_timeout == settings.lock_timeout {
            return Arc::clone(&self.usual);
        }
        begin(settings, lock_timeout, &self.mark).into()
    }
}

/// Begins in one simple-protocol message, hence one round trip. READ COMMITTED is forced: under
/// REPEATABLE READ the snapshot is older than the wait for a lock, and a re-check sees the past.
///
/// A driver that keeps no statements gives each a name all the same, and never takes it back: who had the session before
/// has left its own there, under the names that ours will have.
fn begin(settings: &Settings, lock_timeout: Duration, mark: &str) -> String {
    let forget = match settings.uncached {
        true => "DEALLOCATE ALL; ",
        false => "",
    };
    // The statements' own time is set last: each one after it would have a timer armed and taken back.
    format!(
        "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; {forget}\
         SET LOCAL keep.transaction = '{mark}'; SET LOCAL lock_timeout = {}; \
         SET LOCAL idle_in_transaction_session_timeout = {}; SET LOCAL statement_timeout = {}",
        millis(lock_timeout),
        millis(settings.transaction_timeout),
        millis(settings.statement_timeout),
    )
}

/// Whole milliseconds, at least 1: zero would switch a timeout off.
pub(super) fn millis(of: Duration) -> i32 {
    i32::try_from(of.as_millis()).unwrap_or(i32::MAX).max(1)
}

/// Which run of the server this is, as SQL: another one after every crash and every failover, the same one
/// after nothing else that loses what was written. A server that crashed forgets the numbers whose records
/// had not reached the disk, and gives them out **again**; so a number alone proves no commit. The start
/// time tells of a new postmaster, the reset of the statistics of a crash that the postmaster lived through
/// (from 15 on; before, asking for it is dear, and the rows have to tell).
macro_rules! run {
    () => {
        "coalesce(CASE WHEN current_setting('server_version_num')::int >= 150000 THEN \
         extract(epoch FROM pg_postmaster_start_time())::text || '/' || \
         extract(epoch FROM pg_stat_get_bgwriter_stat_reset_time())::text END, '')"
    };
}

/// The run that the session remembers: no connection outlives the run of its server. Empty until [`own_run`]
/// has asked. (What would ask right here, but is never reached, is still made ready for at each execution:
/// that made the sentinel a fifth dearer.)
macro_rules! known_run {
    () => {
        "coalesce(current_setting('keep.run', true), '')"
    };
}

/// What names the transaction that asks, as SQL: `number@run`. Gives it a number if it has none.
pub(crate) const TRANSACTION: &str =
    concat!("(pg_current_xact_id()::text || '@' || ", known_run!(), ")");

const SENTINEL: &str = concat!(
    "SELECT pg_current_xact_id_if_assigned()::text || '@' || ",
    known_run!(),
    ", current_setting('keep.transaction', true)"
);

const OWN_RUN: &str = concat!("SELECT set_config('keep.run', ", run!(), ", false)");

/// Completes the name of a transaction on a connection that does not know its run yet: once for each
/// connection whose transaction is then committed.
pub(super) async fn complete(
    connection: &mut PgConnection,
    name: &mut Xid,
) -> Result<(), sqlx::Error> {
    // Before 15 a run has no name.
    let has_none = |of| of < 150_000;
    if name.as_str().ends_with('@') && !connection.server_version_num().is_some_and(has_none) {
        let run: String = sqlx::query_scalar(OWN_RUN).fetch_one(connection).await?;
        name.push_str(&run);
    }
    Ok(())
}

/// The status of number `$1`, and whether `$2` is the run that is going on.
const FATE: &str = concat!("SELECT pg_xact_status($1::text::xid8), $2 = ", run!());

pub(super) async fn sentinel(
    connection: &mut PgConnection,
    mark: &str,
) -> Result<Sentinel, sqlx::Error> {
    // A dropped SAVEPOINT made the driver queue a ROLLBACK of everything.
    if !connection.is_in_transaction() {
        return Ok(Sentinel::Lost);
    }
    // Prepared once for each connection: planning it anew would cost more than asking it.
    match connection.fetch_optional(sqlx::query(SENTINEL)).await {
        Ok(Some(row)) => match row.try_get::<Option<&str>, _>(1)? {
            Some(ours) if ours == mark => Ok(Sentinel::Sound(row.try_get(0)?)),
            _ => Ok(Sentinel::Lost),
        },
        Ok(None) => Err(sqlx::Error::RowNotFound),
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("25P02") => {
            Ok(Sentinel::Poisoned)
        }
        Err(error) => Err(error),
    }
}

/// What became of a transaction whose COMMIT was not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Committed,
    Aborted,
    Open,
    /// This server does not know it: too long ago, made by another, or lost in a crash and given out again.
    Forgotten,
}

/// Asks after a transaction by its `number` or `number@run`.
pub(super) async fn fate(
    connection: &mut PgConnection,
    transaction: &str,
) -> Result<Fate, sqlx::Error> {
    let (xid, run) = transaction.split_once('@').unwrap_or((transaction, ""));
    let asked: Result<(Option<String>, bool), sqlx::Error> = sqlx::query_as(FATE)
        .bind(xid)
        .bind(run)
        .fetch_one(connection)
        .await;
    let (status, same) = match asked {
        Ok(told) => told,
        // "transaction ID … is in the future"
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("22023") => {
            return Ok(Fate::Forgotten);
        }
        Err(error) => return Err(error),
    };
    let same = same && !run.is_empty();
    Ok(match status.as_deref() {
        Some("committed") if same => Fate::Committed,
        Some("in progress") => Fate::Open,
        // Whoever has the number now: had ours been committed, the number would have been kept.
        Some("aborted") => Fate::Aborted,
        _ => Fate::Forgotten,
    })
}
