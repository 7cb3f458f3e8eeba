//! What is particular to SQLite: opening, the write permit's BEGIN, and the sentinel.

use std::sync::OnceLock;
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{AssertSqlSafe, Connection, Executor, SqliteConnection, SqlitePool};

use super::builder::Settings;
use super::connection::Sentinel;
use super::pooled::{Begun, Pooled};

/// How often a file that another process is just switching to WAL is tried again.
const OPEN_TRIES: u32 = 40;
const OPEN_PAUSE: Duration = Duration::from_millis(50);

/// Opens the pool: one connection for memory, `max_connections` for a file.
pub(super) async fn open(
    url: &str,
    settings: &Settings,
) -> Result<(SqlitePool, bool), sqlx::Error> {
    if has_no_name(url) {
        let told = "a SQLite URL must name a file, or say `:memory:`";
        return Err(sqlx::Error::Configuration(told.into()));
    }
    let memory = is_memory(url);
    let mut options: SqliteConnectOptions = url.parse()?;
    options = options
        .foreign_keys(true)
        .busy_timeout(settings.lock_timeout);
    let mut pool = SqlitePoolOptions::new()
        .test_before_acquire(false)
        .acquire_timeout(settings.acquire_timeout);
    if memory {
        options = options.shared_cache(false);
        pool = pool
            .max_connections(1)
            .idle_timeout(None)
            .max_lifetime(None);
    } else {
        options = options
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full);
        // A connection that comes back with a transaction open is thrown away.
        pool = pool
            .max_connections(settings.max_connections.unwrap_or(8))
            .after_release(|connection, _| {
                let open = connection.is_in_transaction();
                Box::pin(async move { Ok(!open) })
            });
    }
    connect(pool, options).await.map(|pool| (pool, memory))
}

/// SQLite takes no name for a private file that each connection has for itself, and loses.
fn has_no_name(url: &str) -> bool {
    let rest = url.trim_start_matches("sqlite:").trim_start_matches("//");
    let (name, settings) = rest.split_once('?').unwrap_or((rest, ""));
    name.is_empty() && !is_memory(settings)
}

fn is_memory(url: &str) -> bool {
    url.contains(":memory:") || url.contains("mode=memory")
}

/// Two processes that open one new file at once: the switch to WAL waits for nobody, so we do.
async fn connect(
    pool: SqlitePoolOptions,
    options: SqliteConnectOptions,
) -> Result<SqlitePool, sqlx::Error> {
    let mut tries = 0;
    loop {
        match pool.clone().connect_with(options.clone()).await {
            Err(error) if tries < OPEN_TRIES && is_busy(&error) => {
                tries += 1;
                tokio::time::sleep(OPEN_PAUSE).await;
            }
            other => return other,
        }
    }
}

fn is_busy(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    code.and_then(|code| code.parse::<u32>().ok())
        .is_some_and(|code| code & 0xff == 5)
}

/// Begins as the writer; `wait` is what is left of the lock timeout, `usual` what the pool's connections wait else.
pub(super) async fn begin(
    connection: Pooled<sqlx::Sqlite>,
    wait: Duration,
    usual: &OnceLock<i64>,
) -> Result<Begun<sqlx::Sqlite>, sqlx::Error> {
    let mut begun = Begun::on(connection);
    let usual = match usual.get() {
        Some(usual) => *usual,
        None => {
            let asked = sqlx::query_scalar("PRAGMA busy_timeout");
            let answer = asked.fetch_one(&mut *begun).await?;
            *usual.get_or_init(|| answer)
        }
    };
    let wait = wait.as_millis().max(1);
    // Put back at once: whoever has the connection next waits as the pool was told to.
    let put_back = format!("PRAGMA busy_timeout = {usual}");
    let sql = format!("PRAGMA busy_timeout = {wait}; BEGIN IMMEDIATE; {put_back}");
    let started = begun.start(sql).await;
    if started.is_err() {
        // The text ended before that.
        begun.execute(AssertSqlSafe(put_back)).await?;
    }
    started.map(|()| begun)
}

/// `BEGIN` must fail inside a transaction; where it succeeds, the transaction had been lost.
pub(super) async fn sentinel(connection: &mut SqliteConnection) -> Result<Sentinel, sqlx::Error> {
    match connection.execute("BEGIN").await {
        Err(sqlx::Error::Database(error)) if error.message().contains("within a transaction") => {
            Ok(Sentinel::Sound(None))
        }
        Err(error) => Err(error),
        Ok(_) => {
            // Driver and database must stay of one mind. Where the driver still counts a transaction, the
            // probe's BEGIN is that one, and will be rolled back as such; where it knows that there is
            // none (a dropped SAVEPOINT), the probe's own is undone here.
            if !connection.is_in_transaction() {
                connection.execute("ROLLBACK").await?;
            }
            Ok(Sentinel::Lost)
        }
    }
}
