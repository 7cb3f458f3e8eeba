//! A connection out of the pool, with a transaction open on it or without, that never costs the pool its place.
//!
//! sqlx asks a connection that goes back for a sign of life, and waits for it as long as it takes: one whose server
//! has fallen silent would keep its place for ever. So they go back from here, and that wait has an end.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

#[cfg(feature = "postgres")]
use sqlx::Executor;
use sqlx::pool::{Pool, PoolConnection};
use sqlx::{AssertSqlSafe, SqlSafeStr};
use sqlx_core::transaction::TransactionManager;
use tokio::runtime::Handle;

use super::engine::Engine;

/// How long a connection that goes back may take to say that it is alive.
const RETURN_LONGEST: Duration = Duration::from_secs(5);

/// A connection out of the pool.
pub(super) struct Pooled<D: Engine> {
    connection: PoolConnection<D>,
    given_up: bool,
}

impl<D: Engine> Pooled<D> {
    pub(super) async fn take(pool: &Pool<D>) -> Result<Self, sqlx::Error> {
        pool.acquire().await.map(Self::of)
    }

    pub(super) const fn of(connection: PoolConnection<D>) -> Self {
        Self {
            connection,
            given_up: false,
        }
    }

    /// Lets nobody else have it: nobody knows what it is doing.
    pub(super) fn give_up(&mut self) {
        self.given_up = true;
        self.connection.close_on_drop();
    }
}

impl<D: Engine> Drop for Pooled<D> {
    fn drop(&mut self) {
        // Given up, it is closed, and that has an end. SQLite is in this process and answers once it is done, and the
        // only connection to a memory database is that database.
        if self.given_up || !D::IS_FAR {
            return;
        }
        let back = self.connection.return_to_pool();
        // Where no runtime is left, its drop closes the connection.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move { tokio::time::timeout(RETURN_LONGEST, back).await });
        }
    }
}

impl<D: Engine> Deref for Pooled<D> {
    type Target = D::Connection;

    fn deref(&self) -> &D::Connection {
        &self.connection
    }
}

impl<D: Engine> DerefMut for Pooled<D> {
    fn deref_mut(&mut self) -> &mut D::Connection {
        &mut self.connection
    }
}

/// The same with a transaction: sqlx's own, driven as sqlx drives it. Dropped while open, it is rolled back on the way
/// into the pool.
pub(super) struct Begun<D: Engine> {
    connection: Pooled<D>,
    open: bool,
    /// BEGIN came to an end, whatever it was.
    answered: bool,
}

impl<D: Engine> Begun<D> {
    /// With this connection; [`start`](Self::start) begins on it.
    pub(super) const fn on(connection: Pooled<D>) -> Self {
        Self {
            connection,
            open: false,
            answered: false,
        }
    }

    /// Begins by `sql`.
    pub(super) async fn start(&mut self, sql: impl Into<Arc<str>>) -> Result<(), sqlx::Error> {
        // Before the answer: whatever comes of it, it is to be rolled back.
        self.open = true;
        let sql = AssertSqlSafe(sql.into()).into_sql_str();
        let begun = D::TransactionManager::begin(&mut self.connection, Some(sql)).await;
        self.answered = true;
        begun
    }

    /// Begins by `sql`, if the server answers within `longest`; [`sqlx::Error::PoolTimedOut`] if not.
    #[cfg(feature = "postgres")]
    pub(super) async fn start_within(
        &mut self,
        sql: Arc<str>,
        longest: Duration,
    ) -> Result<(), sqlx::Error> {
        let started = tokio::time::timeout(longest, self.start(sql)).await;
        let started = started.unwrap_or(Err(sqlx::Error::PoolTimedOut));
        if started.is_err() {
            self.connection.give_up();
        }
        started
    }

    /// The same on `connection`.
    #[cfg(feature = "postgres")]
    pub(super) async fn within(
        connection: Pooled<D>,
        sql: Arc<str>,
        longest: Duration,
    ) -> Result<Self, sqlx::Error> {
        let mut begun = Self::on(connection);
        begun.start_within(sql, longest).await?;
        Ok(begun)
    }

    /// Says whether BEGIN may have been sent and was not answered.
    #[cfg(feature = "postgres")]
    pub(super) const fn is_unanswered(&self) -> bool {
        self.open && !self.answered && !self.connection.given_up
    }

    /// Undoes a BEGIN that was not answered, and that the driver therefore does not count.
    #[cfg(feature = "postgres")]
    pub(super) async fn take_back(mut self, longest: Duration) -> Result<(), sqlx::Error>
    where
        for<'c> &'c mut D::Connection: Executor<'c, Database = D>,
    {
        let undone = tokio::time::timeout(longest, self.connection.execute("ROLLBACK")).await;
        // Else it is closed, as wherever this is dropped before.
        undone.unwrap_or(Err(sqlx::Error::PoolTimedOut))?;
        self.open = false;
        Ok(())
    }

    /// Lets nobody else have the connection.
    #[cfg(feature = "postgres")]
    pub(super) fn give_up(&mut self) {
        self.connection.give_up();
    }

    pub(super) async fn commit(mut self) -> Result<(), sqlx::Error> {
        D::TransactionManager::commit(&mut self.connection).await?;
        self.open = false;
        Ok(())
    }

    pub(super) async fn rollback(mut self) -> Result<(), sqlx::Error> {
        D::TransactionManager::rollback(&mut self.connection).await?;
        self.open = false;
        Ok(())
    }
}

impl<D: Engine> Drop for Begun<D> {
    fn drop(&mut self) {
        if !self.open {
            return;
        }
        if self.answered || !D::IS_FAR {
            D::TransactionManager::start_rollback(&mut self.connection);
        } else {
            // The driver does not count what was not answered, and would leave it open in the pool.
            self.connection.give_up();
        }
    }
}

impl<D: Engine> Deref for Begun<D> {
    type Target = D::Connection;

    fn deref(&self) -> &D::Connection {
        &self.connection
    }
}

impl<D: Engine> DerefMut for Begun<D> {
    fn deref_mut(&mut self) -> &mut D::Connection {
        &mut self.connection
    }
}
