//! A connection for one statement that needs no transaction, in one all the same where a pooler stands between.

use std::ops::{Deref, DerefMut};
use std::time::{Duration, Instant};

use tokio::sync::OwnedSemaphorePermit;

use super::engine::Engine;
use super::error::{TransactionError, TransactionErrorKind};
#[cfg(feature = "postgres")]
use super::pooled::Begun;
use super::pooled::Pooled;
use super::store::SqlStore;

/// A connection taken for a statement alone; goes back on drop.
pub(crate) struct Reading<D: Engine> {
    lent: Lent<D>,
    /// Held for as long.
    #[cfg_attr(
        not(feature = "sqlite"),
        expect(dead_code, reason = "dropping it is its use")
    )]
    permit: Option<OwnedSemaphorePermit>,
    #[cfg_attr(
        not(feature = "sqlite"),
        expect(dead_code, reason = "only SQLite asks")
    )]
    asked: Instant,
}

enum Lent<D: Engine> {
    Bare(Pooled<D>),
    /// A statement is prepared by one message and run by the next: outside a transaction a pooler may give the second
    /// to another session, where the name is nobody's or somebody else's. Dropped, it is rolled back.
    #[cfg(feature = "postgres")]
    Begun(Begun<D>),
}

impl SqlStore {
    /// Takes a connection for reading, or for a statement that commits itself by [`Reading::done`].
    pub(crate) async fn read<D: Engine>(&self) -> Result<Reading<D>, TransactionError> {
        self.prepare().await?;
        self.take().await
    }

    /// The same, whatever the tables are.
    async fn take<D: Engine>(&self) -> Result<Reading<D>, TransactionError> {
        let permit = if self.is_single() {
            Some(self.write_permit(self.inner.settings.lock_timeout).await?)
        } else {
            None
        };
        let Some(pool) = self.pool::<D>() else {
            return Err(TransactionError::new(TransactionErrorKind::WrongEngine));
        };
        let admission = self.admit()?;
        let mut reading = self.ask(pool).await;
        // Behind a pooler BEGIN meets the connections that have died: others, until none of the old ones is left.
        let mut old = self.idle_connections();
        while old > 0 && reading.as_ref().is_err_and(super::error::is_lost) {
            reading = self.ask(pool).await;
            old -= 1;
        }
        self.report(admission, reading.as_ref().err());
        Ok(Reading { permit, ..reading? })
    }

    /// Takes a connection for one writing statement in the writer's turn.
    #[cfg(feature = "sqlite")]
    pub(crate) async fn write_alone<D: Engine>(&self) -> Result<Reading<D>, TransactionError> {
        // Making tables takes a turn of its own; those of other parts are theirs to make.
        self.prepare().await?;
        let asked = Instant::now();
        // The only connection comes with the turn.
        let turn = match self.is_single() {
            true => None,
            false => Some(self.write_permit(self.inner.settings.lock_timeout).await?),
        };
        let mut writing = self.take().await?;
        writing.permit = writing.permit.or(turn);
        writing.asked = asked;
        Ok(writing)
    }

    /// Whether each statement stands in a transaction, because the driver keeps none.
    #[cfg(feature = "postgres")]
    pub(crate) fn keeps_no_statements(&self) -> bool {
        self.inner.settings.uncached
    }

    /// The same, whatever the breaker says and the tables are.
    pub(super) async fn ask<D: Engine>(
        &self,
        pool: &sqlx::Pool<D>,
    ) -> Result<Reading<D>, sqlx::Error> {
        Ok(Reading {
            lent: self.lend(pool).await?,
            permit: None,
            asked: Instant::now(),
        })
    }

    async fn lend<D: Engine>(&self, pool: &sqlx::Pool<D>) -> Result<Lent<D>, sqlx::Error> {
        #[cfg(feature = "postgres")]
        if self.keeps_no_statements() {
            let settings = &self.inner.settings;
            let beginning = self.beginning()?;
            let sql = beginning.text(settings, settings.lock_timeout);
            let (db, pool) = (self.clone(), pool.clone());
            // To its end, as every BEGIN.
            let longest = settings.begin_longest();
            let begin =
                async move { Begun::within(db.connection(&pool).await?, sql, longest).await };
            return self.inner.tasks.carry(begin).await.map(Lent::Begun);
        }
        self.connection(pool).await.map(Lent::Bare)
    }
}

impl<D: Engine> Reading<D> {
    /// Keeps what was written, where that is not done yet, and is told so within `longest`.
    #[cfg(feature = "postgres")]
    pub(crate) async fn done(self, longest: Duration) -> Result<(), TransactionError> {
        match self.lent {
            Lent::Bare(_) => Ok(()),
            Lent::Begun(begun) => match tokio::time::timeout(longest, begun.commit()).await {
                Ok(done) => Ok(done?),
                Err(_) => Err(TransactionError::new(TransactionErrorKind::Unknown)),
            },
        }
    }

    /// Lets nobody else have it: nobody knows what it is doing.
    pub(crate) fn give_up(mut self) {
        match &mut self.lent {
            Lent::Bare(connection) => connection.give_up(),
            #[cfg(feature = "postgres")]
            Lent::Begun(begun) => begun.give_up(),
        }
    }

    /// How long ago it was asked for.
    #[cfg(feature = "sqlite")]
    pub(crate) fn age(&self) -> Duration {
        self.asked.elapsed()
    }
}

impl<D: Engine> Deref for Reading<D> {
    type Target = D::Connection;

    fn deref(&self) -> &D::Connection {
        match &self.lent {
            Lent::Bare(connection) => connection,
            #[cfg(feature = "postgres")]
            Lent::Begun(begun) => begun,
        }
    }
}

impl<D: Engine> DerefMut for Reading<D> {
    fn deref_mut(&mut self) -> &mut D::Connection {
        match &mut self.lent {
            Lent::Bare(connection) => connection,
            #[cfg(feature = "postgres")]
            Lent::Begun(begun) => begun,
        }
    }
}
