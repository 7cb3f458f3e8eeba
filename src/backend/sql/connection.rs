//! A connection with a transaction open on it, whichever engine it is.
//!
//! It is begun by sqlx's own manager, so that `begin()` on a lease is a SAVEPOINT and the driver's idea of
//! the depth stays right. It is never dropped while open except by a lost runtime or when the server does not
//! answer: ROLLBACK is awaited.

use sqlx::{Connection, Executor};

use super::error::TransactionError;
use super::pooled::Begun;
use super::proof::AnyLease;
use super::xid::Xid;
use crate::core::RollbackCause;

/// An open transaction of either engine; a library step gets its driver's connection from it.
pub struct Connected {
    inner: Inner,
}

enum Inner {
    #[cfg(feature = "sqlite")]
    Sqlite(Begun<sqlx::Sqlite>),
    #[cfg(feature = "postgres")]
    Postgres(Begun<sqlx::Postgres>),
}

/// What the sentinel found.
pub(super) enum Sentinel {
    /// The transaction is open and healthy; Postgres tells its id once it has one.
    Sound(Option<Xid>),
    /// A statement had failed.
    #[cfg(feature = "postgres")]
    Poisoned,
    /// The transaction that was begun here is gone.
    Lost,
}

impl Connected {
    #[cfg(feature = "sqlite")]
    pub(super) fn of_sqlite(transaction: Begun<sqlx::Sqlite>) -> Self {
        Self {
            inner: Inner::Sqlite(transaction),
        }
    }

    #[cfg(feature = "postgres")]
    pub(super) fn of_postgres(transaction: Begun<sqlx::Postgres>) -> Self {
        Self {
            inner: Inner::Postgres(transaction),
        }
    }

    /// Returns SQLite's connection, if it is one.
    #[cfg(feature = "sqlite")]
    pub fn sqlite(&mut self) -> Option<&mut sqlx::SqliteConnection> {
        match &mut self.inner {
            Inner::Sqlite(transaction) => Some(transaction),
            #[cfg(feature = "postgres")]
            Inner::Postgres(_) => None,
        }
    }

    /// Returns Postgres' connection, if it is one.
    #[cfg(feature = "postgres")]
    pub fn postgres(&mut self) -> Option<&mut sqlx::PgConnection> {
        match &mut self.inner {
            Inner::Postgres(transaction) => Some(transaction),
            #[cfg(feature = "sqlite")]
            Inner::Sqlite(_) => None,
        }
    }

    /// Reads the engine's clock in microseconds: on Postgres the server's, inside the step (`now()` would stand still
    /// since BEGIN); SQLite has this machine's.
    pub(crate) async fn engine_micros(&mut self) -> Result<i64, TransactionError> {
        match &mut self.inner {
            #[cfg(feature = "sqlite")]
            Inner::Sqlite(_) => {
                let now = crate::core::Clock::now_micros(&crate::core::SystemClock);
                Ok(i64::try_from(now).unwrap_or(i64::MAX))
            }
            #[cfg(feature = "postgres")]
            Inner::Postgres(transaction) => {
                let sql = "SELECT floor(extract(epoch from clock_timestamp()) * 1000000)::bigint";
                Ok(sqlx::query_scalar(sql)
                    .fetch_one(&mut **transaction)
                    .await?)
            }
        }
    }

    /// Lends it to whoever can tell the engines apart.
    pub(super) fn lend(&mut self) -> AnyLease<'_> {
        match &mut self.inner {
            #[cfg(feature = "sqlite")]
            Inner::Sqlite(transaction) => AnyLease::Sqlite(transaction),
            #[cfg(feature = "postgres")]
            Inner::Postgres(transaction) => AnyLease::Postgres(transaction),
        }
    }

    /// Runs text without parameters in one round trip.
    pub(super) async fn run(&mut self, sql: String) -> Result<(), sqlx::Error> {
        match &mut self.inner {
            #[cfg(feature = "sqlite")]
            Inner::Sqlite(transaction) => {
                transaction.execute(sqlx::AssertSqlSafe(sql)).await?;
            }
            #[cfg(feature = "postgres")]
            Inner::Postgres(transaction) => {
                transaction.execute(sqlx::AssertSqlSafe(sql)).await?;
            }
        }
        Ok(())
    }

    /// Asks the database whether the transaction is still open and sound; on Postgres by the `mark` it was begun with.
    pub(super) async fn sentinel(&mut self, mark: &str) -> Result<Sentinel, sqlx::Error> {
        match &mut self.inner {
            #[cfg(feature = "sqlite")]
            Inner::Sqlite(transaction) => {
                let _ = mark;
                super::sqlite::sentinel(transaction).await
            }
            #[cfg(feature = "postgres")]
            Inner::Postgres(transaction) => super::postgres::sentinel(transaction, mark).await,
        }
    }

    /// Completes the transaction's name, if its statements could not.
    pub(super) async fn complete(&mut self, name: &mut Xid) -> Result<(), sqlx::Error> {
        match &mut self.inner {
            // It has no names for its transactions.
            #[cfg(feature = "sqlite")]
            Inner::Sqlite(_) => {
                let _ = name;
                Ok(())
            }
            #[cfg(feature = "postgres")]
            Inner::Postgres(transaction) => super::postgres::complete(transaction, name).await,
        }
    }

    /// Says whether the driver still believes in the transaction: a dropped SAVEPOINT makes it forget.
    pub(super) fn is_open(&self) -> bool {
        match &self.inner {
            #[cfg(feature = "sqlite")]
            Inner::Sqlite(transaction) => transaction.is_in_transaction(),
            #[cfg(feature = "postgres")]
            Inner::Postgres(transaction) => transaction.is_in_transaction(),
        }
    }

    pub(super) async fn commit(self) -> Result<(), sqlx::Error> {
        match self.inner {
            #[cfg(feature = "sqlite")]
            Inner::Sqlite(transaction) => transaction.commit().await,
            #[cfg(feature = "postgres")]
            Inner::Postgres(transaction) => transaction.commit().await,
        }
    }

    /// Rolls back and leaves driver and database of one mind.
    pub(super) async fn rollback(self) -> Result<(), sqlx::Error> {
        match self.inner {
            #[cfg(feature = "sqlite")]
            Inner::Sqlite(mut transaction) => {
                // Nothing is rolled back that is not there: sqlx would keep a depth of 1 for ever.
                if let Sentinel::Lost = super::sqlite::sentinel(&mut transaction).await? {
                    crate::core::telemetry::warn!("a transaction had been ended by user SQL");
                }
                transaction.rollback().await
            }
            #[cfg(feature = "postgres")]
            Inner::Postgres(mut transaction) => {
                // A dropped SAVEPOINT made the driver queue its ROLLBACK: it is waited for here.
                if !transaction.is_in_transaction() {
                    return transaction.ping().await;
                }
                transaction.rollback().await
            }
        }
    }
}

impl Sentinel {
    pub(super) fn check(self) -> Result<Option<Xid>, TransactionError> {
        match self {
            Self::Sound(xid) => Ok(xid),
            #[cfg(feature = "postgres")]
            Self::Poisoned => Err(TransactionError::doomed(RollbackCause::Poisoned)),
            Self::Lost => Err(TransactionError::doomed(RollbackCause::Poisoned)),
        }
    }
}

impl std::fmt::Debug for Connected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connected").finish_non_exhaustive()
    }
}
