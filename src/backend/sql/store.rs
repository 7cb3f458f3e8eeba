//! The handle: a pool, its settings, the write permit of SQLite, the breaker.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::builder::{Settings, SqlStoreBuilder};
use super::engine::{Dialect, Engine};
use super::error::{TransactionError, TransactionErrorKind};
use super::migrations::{Schema, Schemas};
use super::pooled::Pooled;
use super::tasks::Tasks;
use super::watch::Deadlines;
use crate::core::{Admission, Breaker, Clock, StoreError, Timestamp};

/// What idle connections need to say goodbye, whatever is left of a deadline.
const CLOSING: Duration = Duration::from_millis(100);

/// A SQL database: pool, settings and schema behind one cheap-to-clone handle.
#[derive(Clone)]
pub struct SqlStore {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) pool: AnyPool,
    pub(super) settings: Settings,
    pub(super) schemas: Schemas,
    pub(super) tasks: Tasks,
    pub(super) deadlines: Deadlines,
    /// SQLite has one writer: in this process they queue here, first come, first served.
    writer: Arc<Semaphore>,
    /// The pool has one connection, so that readers queue with the writers.
    single: bool,
    breaker: Mutex<Breaker>,
    started: Instant,
    /// How long SQLite's connections wait for another process where no transaction says otherwise, in milliseconds.
    #[cfg(feature = "sqlite")]
    pub(super) usual_wait: std::sync::OnceLock<i64>,
    /// How Postgres' transactions begin.
    #[cfg(feature = "postgres")]
    beginning: std::sync::OnceLock<super::postgres::Beginning>,
    parts: Mutex<HashMap<TypeId, Arc<dyn Any + Send + Sync>>>,
}

/// A pool of either engine.
#[derive(Clone, Debug)]
pub enum AnyPool {
    /// Connections to one SQLite database.
    #[cfg(feature = "sqlite")]
    Sqlite(sqlx::SqlitePool),
    /// Connections to one Postgres database.
    #[cfg(feature = "postgres")]
    Postgres(sqlx::PgPool),
}

#[cfg(feature = "sqlite")]
impl From<sqlx::SqlitePool> for AnyPool {
    fn from(pool: sqlx::SqlitePool) -> Self {
        Self::Sqlite(pool)
    }
}

#[cfg(feature = "postgres")]
impl From<sqlx::PgPool> for AnyPool {
    fn from(pool: sqlx::PgPool) -> Self {
        Self::Postgres(pool)
    }
}

impl SqlStore {
    /// Opens `sqlite::memory:`, `sqlite:file.db` (made if absent) or `postgres://…`, with the defaults.
    ///
    /// # Errors
    /// As [`SqlStoreBuilder::open`].
    pub async fn connect(url: &str) -> Result<Self, StoreError> {
        Self::builder(url).open().await
    }

    /// Starts a handle with other settings.
    pub fn builder(url: &str) -> SqlStoreBuilder {
        SqlStoreBuilder::of_url(url)
    }

    /// Uses a pool that the application has opened, with the default settings.
    ///
    /// SQLite pools should have `foreign_keys`, WAL and a busy timeout set.
    #[must_use]
    pub fn from_pool(pool: impl Into<AnyPool>) -> Self {
        let pool = pool.into();
        let single = match &pool {
            #[cfg(feature = "sqlite")]
            AnyPool::Sqlite(pool) => pool.options().get_max_connections() == 1,
            #[cfg(feature = "postgres")]
            AnyPool::Postgres(_) => false,
        };
        Self::with(pool, single, Settings::default())
    }

    pub(super) fn with(pool: AnyPool, single: bool, settings: Settings) -> Self {
        Self {
            inner: Arc::new(Inner {
                pool,
                settings,
                schemas: Schemas::default(),
                tasks: Tasks::default(),
                deadlines: Deadlines::default(),
                writer: Arc::new(Semaphore::new(1)),
                single,
                breaker: Mutex::new(Breaker::default()),
                started: Instant::now(),
                #[cfg(feature = "sqlite")]
                usual_wait: std::sync::OnceLock::new(),
                #[cfg(feature = "postgres")]
                beginning: std::sync::OnceLock::new(),
                parts: Mutex::new(HashMap::new()),
            }),
        }
    }

    /// Returns the language of the database.
    #[must_use]
    pub fn dialect(&self) -> Dialect {
        match &self.inner.pool {
            #[cfg(feature = "sqlite")]
            AnyPool::Sqlite(_) => Dialect::Sqlite,
            #[cfg(feature = "postgres")]
            AnyPool::Postgres(_) => Dialect::Postgres,
        }
    }

    /// Returns sqlx's pool, for the application's own reads and tables; `None` on another engine.
    ///
    /// What is written through it is not part of any request's transaction. `sqlite::memory:` has one
    /// connection: whoever holds a transaction must not ask the pool for another.
    #[must_use]
    pub fn pool<D: Engine>(&self) -> Option<&sqlx::Pool<D>> {
        D::pool(&self.inner.pool)
    }

    /// Returns what the names of our tables begin with.
    #[must_use]
    pub fn table_prefix(&self) -> &str {
        &self.inner.settings.prefix
    }

    /// Returns the injected clock's time in milliseconds, if a clock was injected.
    #[must_use]
    pub fn injected_now(&self) -> Option<Timestamp> {
        let clock = self.inner.settings.clock.as_ref()?;
        Some(Timestamp::of(clock))
    }

    /// Returns the time of this handle: the injected clock's, else this machine's.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.injected_now()
            .unwrap_or_else(|| Timestamp::of(&crate::core::SystemClock))
    }

    /// Returns the clock that was injected, else the machine's.
    #[must_use]
    pub fn clock(&self) -> Arc<dyn Clock> {
        let injected = self.inner.settings.clock.as_ref();
        injected.map_or_else(|| Arc::new(crate::core::SystemClock) as _, Arc::clone)
    }

    /// Returns how long a statement waits for a lock.
    pub(crate) fn lock_timeout(&self) -> Duration {
        self.inner.settings.lock_timeout
    }

    /// Returns how long a transaction may be open.
    pub(crate) fn transaction_timeout(&self) -> Duration {
        self.inner.settings.transaction_timeout
    }

    /// Returns how long one statement is waited for, with its lock.
    pub(crate) fn longest_step(&self) -> Duration {
        self.lock_timeout() + self.statement_timeout()
    }

    /// Returns how long a statement may run.
    pub(crate) fn statement_timeout(&self) -> Duration {
        self.inner.settings.statement_timeout
    }

    /// Creates or upgrades the tables of every part that uses this handle.
    ///
    /// Done by itself before the first statement; call it to find out at start.
    ///
    /// # Errors
    /// The database's, or with [`Migrations::Check`](super::Migrations::Check) what is missing.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        Ok(self.prepare().await?)
    }

    /// Asks the database for a sign of life.
    ///
    /// # Errors
    /// It cannot be reached.
    pub async fn ping(&self) -> Result<(), StoreError> {
        Ok(self.ask_for_life().await.map_err(TransactionError::from)?)
    }

    async fn ask_for_life(&self) -> Result<(), sqlx::Error> {
        match &self.inner.pool {
            #[cfg(feature = "sqlite")]
            AnyPool::Sqlite(pool) => {
                let turn = self.inner.single.then(|| self.inner.writer.try_acquire());
                if matches!(turn, Some(Err(_))) {
                    // Who has the only connection is at work on it: there is no other to ask.
                    return Ok(());
                }
                sqlx::query("SELECT 1").execute(pool).await?;
            }
            // In one message: between two of them a pooler may change the session.
            #[cfg(feature = "postgres")]
            AnyPool::Postgres(pool) => {
                let mut connection = self.connection(pool).await?;
                let asked = sqlx::raw_sql("SELECT 1");
                asked.execute(&mut *connection).await?;
            }
        }
        Ok(())
    }

    /// A connection has fallen silent, or none is to be had: those that lie in the pool are asked for a sign of life,
    /// all at once, and the silent ones thrown away, before each costs a request its time.
    pub(super) fn test_idle(&self) {
        match &self.inner.pool {
            #[cfg(feature = "sqlite")]
            AnyPool::Sqlite(_) => {}
            #[cfg(feature = "postgres")]
            AnyPool::Postgres(pool) => {
                let idle: Vec<_> = (0..pool.num_idle())
                    .map_while(|_| pool.try_acquire())
                    .map(Pooled::of)
                    .collect();
                drop(idle);
            }
        }
    }

    /// Ends the handle: waits up to `deadline` for endings and the work after them, then closes the pool. What is still
    /// under way at the deadline is not waited for; its connection closes when it comes back.
    pub async fn close(&self, deadline: Duration) {
        let started = Instant::now();
        let _ = tokio::time::timeout(deadline, self.inner.tasks.idle()).await;
        let closing = async {
            match &self.inner.pool {
                #[cfg(feature = "sqlite")]
                AnyPool::Sqlite(pool) => pool.close().await,
                #[cfg(feature = "postgres")]
                AnyPool::Postgres(pool) => pool.close().await,
            }
        };
        let rest = deadline.saturating_sub(started.elapsed());
        let _ = tokio::time::timeout(rest.max(CLOSING), closing).await;
    }

    /// Returns the one `P` of this handle: what a part builds once, such as its statements.
    pub(crate) fn part<P: Send + Sync + 'static>(
        &self,
        schema: impl FnOnce(&Self) -> Option<Schema>,
        build: impl FnOnce(&Self) -> P,
    ) -> Arc<P> {
        let mut parts = self.inner.parts.lock();
        let known = parts.get(&TypeId::of::<P>()).cloned();
        if let Some(part) = known.and_then(|part| part.downcast().ok()) {
            return part;
        }
        if let Some(schema) = schema(self) {
            self.inner.schemas.register(schema);
        }
        let part = Arc::new(build(self));
        parts.insert(TypeId::of::<P>(), Arc::clone(&part) as _);
        part
    }

    /// Lets `work` go on in the background; [`close`](Self::close) waits for it.
    pub(crate) fn detach(&self, work: impl Future<Output = ()> + Send + 'static) {
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            self.inner.tasks.spawn(&runtime, work);
        }
    }

    /// Returns how many connections lie in the pool.
    pub(crate) fn idle_connections(&self) -> usize {
        match &self.inner.pool {
            #[cfg(feature = "sqlite")]
            AnyPool::Sqlite(pool) => pool.num_idle(),
            #[cfg(feature = "postgres")]
            AnyPool::Postgres(pool) => pool.num_idle(),
        }
    }

    /// Reads outside any transaction; again where a connection had died in the pool, until none of the old ones is left.
    pub(crate) async fn read_again<T, F>(&self, read: impl Fn() -> F) -> Result<T, TransactionError>
    where
        F: Future<Output = Result<T, TransactionError>>,
    {
        let mut old = self.idle_connections();
        loop {
            match read().await {
                Err(error) if error.is_lost() && old > 0 => old -= 1,
                answer => return answer,
            }
        }
    }

    /// Whether readers queue with the writers.
    pub(crate) fn is_single(&self) -> bool {
        self.inner.single
    }

    /// Returns how Postgres' transactions begin.
    #[cfg(feature = "postgres")]
    pub(super) fn beginning(&self) -> Result<&super::postgres::Beginning, sqlx::Error> {
        let cell = &self.inner.beginning;
        if let Some(made) = cell.get() {
            return Ok(made);
        }
        let made = super::postgres::Beginning::new(&self.inner.settings)?;
        Ok(cell.get_or_init(|| made))
    }

    /// Returns by what a transaction that was begun here is known, on Postgres.
    pub(super) fn mark(&self) -> &str {
        #[cfg(feature = "postgres")]
        if let Some(made) = self.inner.beginning.get() {
            return &made.mark;
        }
        ""
    }

    /// Takes a connection. From a pool that was opened here one that lies idle is taken as it is: no hook and no sign of
    /// life is asked for there.
    pub(super) async fn connection<D: Engine>(
        &self,
        pool: &sqlx::Pool<D>,
    ) -> Result<Pooled<D>, sqlx::Error> {
        match self.idle_connection(pool) {
            Some(connection) => Ok(connection),
            None => Pooled::take(pool).await,
        }
    }

    /// Takes a connection that lies idle in a pool that was opened here, if nobody waits for one.
    pub(super) fn idle_connection<D: Engine>(&self, pool: &sqlx::Pool<D>) -> Option<Pooled<D>> {
        let idle = self.inner.settings.own_pool.then(|| pool.try_acquire());
        idle.flatten().map(Pooled::of)
    }

    /// Waits for the turn to write, first come, first served.
    pub(super) async fn write_permit(
        &self,
        longest: Duration,
    ) -> Result<OwnedSemaphorePermit, TransactionError> {
        let turn = Arc::clone(&self.inner.writer).acquire_owned();
        match tokio::time::timeout(longest, turn).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(TransactionError::new(TransactionErrorKind::LockTimeout)),
        }
    }

    /// Asks the breaker whether a connection may be tried.
    pub(super) fn admit(&self) -> Result<Admission, TransactionError> {
        let now = self.inner.started.elapsed();
        match self.inner.breaker.lock().admit(now) {
            Admission::Refused(pause) => Err(TransactionError::refused_for(pause)),
            admission => Ok(admission),
        }
    }

    /// Tells the breaker how taking a connection went that it let be taken.
    pub(super) fn report(&self, admission: Admission, error: Option<&sqlx::Error>) {
        let mut breaker = self.inner.breaker.lock();
        match error.map(super::error::classify) {
            Some(TransactionErrorKind::Unavailable) => {
                breaker.failed(admission, self.inner.started.elapsed());
            }
            _ => breaker.succeeded(),
        }
    }
}

impl fmt::Debug for SqlStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqlStore")
            .field("dialect", &self.dialect())
            .field("prefix", &self.table_prefix())
            .finish_non_exhaustive()
    }
}
