//! The settings of a handle, and opening it.

use std::sync::Arc;
use std::time::Duration;

use super::store::{AnyPool, SqlStore};
use crate::core::ttl::SECOND;
use crate::core::{Clock, StoreError, StoreErrorKind};

/// What the handle does about its tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Migrations {
    /// Creates and upgrades them before the first statement that needs them.
    #[default]
    Apply,
    /// Runs no DDL; fails loudly if something is missing.
    Check,
}

/// Everything that can be set, with the defaults in one place.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) max_connections: Option<u32>,
    pub(super) acquire_timeout: Duration,
    pub(super) lock_timeout: Duration,
    pub(super) statement_timeout: Duration,
    pub(super) transaction_timeout: Duration,
    pub(super) commit_timeout: Duration,
    pub(super) prefix: Arc<str>,
    pub(super) migrations: Migrations,
    pub(super) clock: Option<Arc<dyn Clock>>,
    /// The pool was opened here, with our options.
    pub(super) own_pool: bool,
    /// The driver was told to keep no statements: behind a pooler each transaction may meet another session.
    #[cfg_attr(not(feature = "postgres"), allow(dead_code))]
    pub(super) uncached: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_connections: None,
            acquire_timeout: 2 * SECOND,
            lock_timeout: 3 * SECOND,
            statement_timeout: 10 * SECOND,
            transaction_timeout: 30 * SECOND,
            commit_timeout: 10 * SECOND,
            prefix: Arc::from("keep_"),
            migrations: Migrations::Apply,
            clock: None,
            own_pool: false,
            uncached: false,
        }
    }
}

impl Settings {
    /// How long the reply to BEGIN may take, which waits for no lock: whoever waits for the first statement has waited
    /// for a connection already, and for a lock it would wait no longer.
    #[cfg(feature = "postgres")]
    pub(super) fn begin_longest(&self) -> Duration {
        self.acquire_timeout.max(self.lock_timeout)
    }
}

/// The engines count their timeouts in milliseconds of 32 bits.
const LONGEST: Duration = Duration::from_secs(20 * 86_400);

/// Sets up a [`SqlStore`]. A timeout of more than 20 days is one of 20 days.
#[derive(Clone)]
#[must_use]
pub struct SqlStoreBuilder {
    url: Arc<str>,
    settings: Settings,
}

impl SqlStoreBuilder {
    pub(super) fn of_url(url: &str) -> Self {
        Self {
            url: Arc::from(url),
            settings: Settings::default(),
        }
    }

    /// Bounds the pool (Postgres 10, SQLite file 8; memory has exactly 1).
    pub fn max_connections(mut self, connections: u32) -> Self {
        self.settings.max_connections = Some(connections.max(1));
        self
    }

    /// Bounds the wait for a connection (2 s).
    pub fn acquire_timeout(mut self, timeout: Duration) -> Self {
        self.settings.acquire_timeout = timeout.min(LONGEST);
        self
    }

    /// Bounds the wait for a lock or for the write permit (3 s).
    pub fn lock_timeout(mut self, timeout: Duration) -> Self {
        self.settings.lock_timeout = timeout.min(LONGEST);
        self
    }

    /// Bounds one statement inside a transaction (10 s); Postgres only.
    pub fn statement_timeout(mut self, timeout: Duration) -> Self {
        self.settings.statement_timeout = timeout.min(LONGEST);
        self
    }

    /// Bounds a whole transaction (30 s); afterwards it can only roll back.
    pub fn transaction_timeout(mut self, timeout: Duration) -> Self {
        self.settings.transaction_timeout = timeout.min(LONGEST);
        self
    }

    /// Bounds the wait for the reply to COMMIT (10 s), and then as long again for finding out.
    pub fn commit_timeout(mut self, timeout: Duration) -> Self {
        self.settings.commit_timeout = timeout.min(LONGEST);
        self
    }

    /// Begins the names of all tables (`keep_`).
    ///
    /// # Panics
    /// If it is not `[a-z_][a-z0-9_]{0,23}`.
    #[allow(clippy::panic)]
    pub fn table_prefix(mut self, prefix: &str) -> Self {
        let mut letters = prefix.bytes();
        let first = letters
            .next()
            .is_some_and(|b| b.is_ascii_lowercase() || b == b'_');
        let rest = letters.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        if !(first && rest && prefix.len() <= 24) {
            panic!("a table prefix must be [a-z_][a-z0-9_]{{0,23}}");
        }
        self.settings.prefix = Arc::from(prefix);
        self
    }

    /// Says what is done about the tables ([`Migrations::Apply`]).
    pub fn migrations(mut self, migrations: Migrations) -> Self {
        self.settings.migrations = migrations;
        self
    }

    /// Lets `clock` decide every expiry and age, in SQL too; never timeouts. For tests.
    pub fn clock(mut self, clock: impl Clock) -> Self {
        self.settings.clock = Some(Arc::new(clock));
        self
    }

    /// Opens the pool with its first connection.
    ///
    /// # Errors
    /// [`StoreErrorKind::Failed`] for a URL that is none of ours, [`StoreErrorKind::Unavailable`] when the
    /// database does not answer.
    pub async fn open(self) -> Result<SqlStore, StoreError> {
        open_url(&self.url, self.settings).await
    }
}

impl std::fmt::Debug for SqlStoreBuilder {
    /// The URL is left out: it may carry a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqlStoreBuilder")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

async fn open_url(url: &str, mut settings: Settings) -> Result<SqlStore, StoreError> {
    settings.own_pool = true;
    let scheme = url.split(':').next().unwrap_or_default();
    match scheme {
        #[cfg(feature = "sqlite")]
        "sqlite" => {
            let (pool, memory) = super::sqlite::open(url, &settings)
                .await
                .map_err(unopened)?;
            // Where there is one connection, readers queue with the writers instead of giving up on the pool.
            let single = memory || settings.max_connections == Some(1);
            Ok(SqlStore::with(AnyPool::Sqlite(pool), single, settings))
        }
        #[cfg(feature = "postgres")]
        "postgres" | "postgresql" => {
            settings.uncached = super::postgres::keeps_no_statements(url);
            let pool = super::postgres::open(url, &settings)
                .await
                .map_err(unopened)?;
            Ok(SqlStore::with(AnyPool::Postgres(pool), false, settings))
        }
        // The URL may carry a password: it is not repeated.
        _ => Err(StoreError::with_source(
            StoreErrorKind::Failed,
            "the database URL must begin with sqlite: or postgres://, and its feature must be on",
        )),
    }
}

fn unopened(error: sqlx::Error) -> StoreError {
    super::error::TransactionError::from(error).into()
}
