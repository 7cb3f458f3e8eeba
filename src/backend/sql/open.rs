//! A begun transaction: its connection, its turn to write, its name. Dropped, it rolls back in a task.

use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::OwnedSemaphorePermit;

use super::connection::Connected;
use super::error::{TransactionError, TransactionErrorKind};
#[cfg(feature = "postgres")]
use super::pooled::Begun;
use super::store::{AnyPool, SqlStore};
use super::watch::Entry;
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
    /// What `keep.transaction` says, on Postgres.
    id: u128,
    /// The database's own name of the transaction, once it has one and we were told.
    xid: Option<String>,
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
    pub(crate) xid: &'c mut Option<String>,
}

impl Open {
    /// Begins, whatever happens to whoever waits: what was begun for nobody is rolled back.
    /// (A `begin()` of sqlx dropped before its reply leaves a session idle in a transaction.)
    pub(super) async fn begin(
        db: &SqlStore,
        lock_timeout: Duration,
    ) -> Result<Self, TransactionError> {
        // An `Open` that nobody takes is dropped, and rolls back.
        db.inner.tasks.carry(begin(db.clone(), lock_timeout)).await
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
    pub(super) async fn take_xid(&mut self) -> Result<Option<String>, TransactionError> {
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
        let xid = connection.sentinel(self.id).await?.check()?;
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

async fn begin(db: SqlStore, lock_timeout: Duration) -> Result<Open, TransactionError> {
    let started = Instant::now();
    #[cfg(feature = "tracing")]
    let span = tracing::debug_span!("sql_transaction", end = tracing::field::Empty);
    let permit = match &db.inner.pool {
        #[cfg(feature = "sqlite")]
        AnyPool::Sqlite(_) => Some(db.write_permit(lock_timeout).await?),
        #[cfg(feature = "postgres")]
        AnyPool::Postgres(_) => None,
    };
    let admission = db.admit()?;
    let id = new_id()?;
    let mut connection = open(&db, started, lock_timeout, id).await;
    // Connections that had died in the pool: others, until none of the old ones is left.
    let mut old = db.idle_connections();
    while connection.as_ref().err().is_some_and(super::error::is_lost) {
        connection = open(&db, started, lock_timeout, id).await;
        if old == 0 {
            break;
        }
        old -= 1;
    }
    if matches!(connection, Err(sqlx::Error::PoolTimedOut)) {
        db.test_idle();
    }
    db.report(admission, connection.as_ref().err());
    seconds!("keep_sql_acquire_seconds", started.elapsed());
    let connection = connection?;
    Ok(Open {
        connection: Some(connection),
        permit,
        runtime: Handle::current(),
        begun: Instant::now(),
        id,
        xid: None,
        used: false,
        nameless: false,
        deadline: None,
        #[cfg(feature = "tracing")]
        span,
        db,
    })
}

async fn open(
    db: &SqlStore,
    started: Instant,
    lock_timeout: Duration,
    id: u128,
) -> Result<Connected, sqlx::Error> {
    let _ = (started, id);
    match &db.inner.pool {
        #[cfg(feature = "sqlite")]
        AnyPool::Sqlite(pool) => {
            let rest = lock_timeout.saturating_sub(started.elapsed());
            let begun = super::sqlite::begin(pool, rest, &db.inner.usual_wait).await?;
            Ok(Connected::of_sqlite(begun))
        }
        #[cfg(feature = "postgres")]
        AnyPool::Postgres(pool) => {
            let settings = &db.inner.settings;
            let sql = super::postgres::begin(settings, lock_timeout, id);
            let begun = Begun::within(pool, sql, settings.begin_longest()).await?;
            Ok(Connected::of_postgres(begun))
        }
    }
}

/// 128 random bits.
fn new_id() -> Result<u128, TransactionError> {
    let mut bits = [0_u8; 16];
    getrandom::fill(&mut bits)
        .map_err(|_| TransactionError::new(TransactionErrorKind::Unavailable))?;
    Ok(u128::from_be_bytes(bits))
}
