//! A begun transaction: its connection, its turn to write, its name. Dropped, it rolls back in a task.

use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::OwnedSemaphorePermit;

use super::connection::Connected;
use super::error::{TransactionError, TransactionErrorKind};
#[cfg(feature = "postgres")]
use super::pooled::Begun;
#[cfg(feature = "postgres")]
use super::starting::Starting;
use super::store::{AnyPool, SqlStore};
use super::watch::Entry;
use super::xid::Xid;
use crate::core::Admission;
use crate::core::telemetry::{error, seconds, warn};

/// How long a rollback is awaited before its connection is thrown away.
const ROLLBACK_LONGEST: Duration = Duration::from_secs(10);
/// A transaction open for longer is worth a line in the log.
const SLOW: Duration = Duration::from_secs(1);

pub(super) struct Open {
    connection: Option<Connected>,
    permit: Option<OwnedSemaphorePermit>,
    db: SqlStore,
    runtime: Handle,
    begun: Instant,
    /// The database's own name of the transaction, once it has one and we were told.
    xid: Option<Xid>,
    /// User SQL had the connection since the last sentinel.
    pub(super) used: bool,
    /// A step had the connection that does not say whether it wrote: no name means nothing then.
    pub(super) nameless: bool,
    /// Ends it in time, if nobody else does.
    pub(super) deadline: Option<Entry>,
    /// As long as the transaction, under the request's own.
    #[cfg(feature = "tracing")]
    span: tracing::Span,
}

/// What a library step works on.
#[derive(Debug)]
pub(crate) struct Step<'c> {
    /// The open transaction's connection.
    pub(crate) connection: &'c mut Connected,
    /// Where to put the transaction's own id when a statement returns it: a lost COMMIT is asked after by it.
    #[cfg_attr(not(feature = "postgres"), allow(dead_code))]
    pub(crate) xid: &'c mut Option<Xid>,
}

impl Open {
    /// Begins, whatever happens to whoever waits: what was begun for nobody is rolled back.
    /// (A `begin()` of sqlx dropped before its reply leaves a session idle in a transaction.)
    pub(super) async fn begin(
        db: &SqlStore,
        lock_timeout: Duration,
    ) -> Result<Self, TransactionError> {
        let asked = Asked::now();
        #[cfg(feature = "postgres")]
        if let Some(pool) = db.pool::<sqlx::Postgres>() {
            let admission = db.admit()?;
            let mut tried = Tried {
                admission,
                error: None,
            };
            // Where one lies idle, it is begun where it is awaited.
            if let Some(connection) = db.idle_connection(pool) {
                let settings = &db.inner.settings;
                let sql = db.beginning()?.text(settings, lock_timeout);
                let starting = Starting::on(connection, db, admission);
                match starting.begin(sql, settings.begin_longest()).await {
                    Ok(begun) => {
                        db.report(admission, None);
                        return Ok(asked.begun(db.clone(), Connected::of_postgres(begun), None));
                    }
                    Err(error) => tried.error = Some(error),
                }
            }
            let begin = begin(db.clone(), asked, lock_timeout, Some(tried));
            return db.inner.tasks.carry(begin).await;
        }
        // An `Open` that nobody takes is dropped, and rolls back.
        let begin = begin(db.clone(), asked, lock_timeout, None);
        db.inner.tasks.carry(begin).await
    }

    pub(super) fn connection(&mut self) -> Result<&mut Connected, TransactionError> {
        self.connection
            .as_mut()
            .ok_or(TransactionError::new(TransactionErrorKind::Ended))
    }

    pub(super) fn step(&mut self) -> Result<Step<'_>, TransactionError> {
        let connection = self.connection.as_mut();
        Ok(Step {
            connection: connection.ok_or(TransactionError::new(TransactionErrorKind::Ended))?,
            xid: &mut self.xid,
        })
    }

    /// Gives away the name of the transaction, to those who end it.
    pub(super) async fn take_xid(&mut self) -> Result<Option<Xid>, TransactionError> {
        self.complete().await?;
        Ok(self.xid.take())
    }

    /// Asks for the rest of the name, where the connection has not been asked yet.
    async fn complete(&mut self) -> Result<(), TransactionError> {
        if let (Some(connection), Some(name)) = (&mut self.connection, &mut self.xid) {
            connection.complete(name).await?;
        }
        Ok(())
    }

    /// Asks the database after the transaction if user SQL had it; healthy means it may go on.
    pub(super) async fn check(&mut self) -> Result<(), TransactionError> {
        if !self.used {
            return Ok(());
        }
        let Some(connection) = self.connection.as_mut() else {
            return Err(TransactionError::new(TransactionErrorKind::Ended));
        };
        let xid = connection.sentinel(self.db.mark()).await?.check()?;
        if !connection.is_open() {
            let cause = crate::core::RollbackCause::Poisoned;
            return Err(TransactionError::doomed(cause));
        }
        self.xid = xid.or(self.xid.take());
        // Asked after everything so far.
        (self.used, self.nameless) = (false, false);
        self.complete().await
    }

    /// Says whether what is written next is part of the transaction. Where the driver knows that it is gone, it costs
    /// nothing to find out; SQLite ends one by itself (`OR ROLLBACK`, a full disk) and has to be asked.
    pub(super) async fn is_there(&mut self) -> Result<(), TransactionError> {
        if !self.connection()?.is_open() {
            let cause = crate::core::RollbackCause::Poisoned;
            return Err(TransactionError::doomed(cause));
        }
        #[cfg(feature = "sqlite")]
        if self.connection()?.sqlite().is_some() {
            return self.check().await;
        }
        Ok(())
    }

    /// Undoes everything since the mark; the sentinel then says whether the transaction is still there.
    pub(super) async fn rewind(&mut self) -> Result<(), TransactionError> {
        self.connection()?
            .run("ROLLBACK TO SAVEPOINT keep_mark".to_owned())
            .await?;
        self.used = true;
        self.check().await
    }

    /// Commits. After an error the connection has been rolled back or thrown away.
    pub(super) async fn commit(mut self) -> Result<(), sqlx::Error> {
        let Some(connection) = self.connection.take() else {
            return Ok(());
        };
        self.note_end("commit");
        connection.commit().await
    }

    /// Rolls back; what cannot be rolled back is thrown away by the pool.
    pub(super) async fn rollback(mut self) {
        if let Some(connection) = self.connection.take() {
            self.note_end("rollback");
            roll(connection).await;
        }
    }

    fn note_end(&self, end: &'static str) {
        #[cfg(feature = "tracing")]
        self.span.record("end", end);
        #[cfg(not(feature = "tracing"))]
        let _ = end;
        let open = self.begun.elapsed();
        seconds!("keep_sql_transaction_seconds", open);
        if open > SLOW {
            warn!(
                millis = u64::try_from(open.as_millis()).unwrap_or(u64::MAX),
                "a transaction was open for long"
            );
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let Some(connection) = self.connection.take() else {
            return;
        };
        let permit = self.permit.take();
        self.db.inner.tasks.spawn(&self.runtime, async move {
            roll(connection).await;
            // The next writer's turn comes when the locks are gone.
            drop(permit);
        });
    }
}

async fn roll(connection: Connected) {
    match tokio::time::timeout(ROLLBACK_LONGEST, connection.rollback()).await {
        Ok(Ok(())) => {}
        Ok(Err(problem)) => {
            let _ = &problem;
            error!(error = %problem, "a rollback failed, its connection is thrown away");
        }
        Err(_) => error!("a rollback was not answered, its connection is thrown away"),
    }
}

/// When a transaction was asked for.
struct Asked {
    at: Instant,
    #[cfg(feature = "tracing")]
    span: tracing::Span,
}

impl Asked {
    fn now() -> Self {
        Self {
            at: Instant::now(),
            #[cfg(feature = "tracing")]
            span: tracing::debug_span!("sql_transaction", end = tracing::field::Empty),
        }
    }

    fn begun(
        self,
        db: SqlStore,
        connection: Connected,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Open {
        seconds!("keep_sql_acquire_seconds", self.at.elapsed());
        Open {
            connection: Some(connection),
            permit,
            runtime: Handle::current(),
            begun: Instant::now(),
            xid: None,
            used: false,
            nameless: false,
            deadline: None,
            #[cfg(feature = "tracing")]
            span: self.span,
            db,
        }
    }
}

/// What the breaker let go, and what became of it.
struct Tried {
    admission: Admission,
    error: Option<sqlx::Error>,
}

async fn begin(
    db: SqlStore,
    asked: Asked,
    lock_timeout: Duration,
    tried: Option<Tried>,
) -> Result<Open, TransactionError> {
    let permit = match &db.inner.pool {
        #[cfg(feature = "sqlite")]
        AnyPool::Sqlite(_) => Some(db.write_permit(lock_timeout).await?),
        #[cfg(feature = "postgres")]
        AnyPool::Postgres(_) => None,
    };
    let Tried { admission, error } = match tried {
        Some(tried) => tried,
        None => Tried {
            admission: db.admit()?,
            error: None,
        },
    };
    let mut connection = match error {
        Some(error) => Err(error),
        None => open(&db, asked.at, lock_timeout).await,
    };
    // Connections that had died in the pool: others, until none of the old ones is left.
    let mut old = db.idle_connections();
    while connection.as_ref().err().is_some_and(super::error::is_lost) {
        connection = open(&db, asked.at, lock_timeout).await;
        if old == 0 {
            break;
        }
        old -= 1;
    }
    if matches!(connection, Err(sqlx::Error::PoolTimedOut)) {
        db.test_idle();
    }
    db.report(admission, connection.as_ref().err());
    match connection {
        Ok(connection) => Ok(asked.begun(db, connection, permit)),
        Err(error) => {
            seconds!("keep_sql_acquire_seconds", asked.at.elapsed());
            Err(error.into())
        }
    }
}

async fn open(
    db: &SqlStore,
    started: Instant,
    lock_timeout: Duration,
) -> Result<Connected, sqlx::Error> {
    let _ = started;
    match &db.inner.pool {
        #[cfg(feature = "sqlite")]
        AnyPool::Sqlite(pool) => {
            let connection = db.connection(pool).await?;
            let rest = lock_timeout.saturating_sub(started.elapsed());
            let begun = super::sqlite::begin(connection, rest, &db.inner.usual_wait).await?;
            Ok(Connected::of_sqlite(begun))
        }
        #[cfg(feature = "postgres")]
        AnyPool::Postgres(pool) => {
            let settings = &db.inner.settings;
            let sql = db.beginning()?.text(settings, lock_timeout);
            let connection = db.connection(pool).await?;
            let begun = Begun::within(connection, sql, settings.begin_longest()).await?;
            Ok(Connected::of_postgres(begun))
        }
    }
}
