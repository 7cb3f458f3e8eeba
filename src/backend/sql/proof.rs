//! What an owner knows by which it can be told what became of a commit whose reply was lost.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
#[cfg(feature = "postgres")]
use std::time::Duration;

use super::error::TransactionError;
use super::open::Open;
use super::store::SqlStore;
use super::xid::Xid;
use crate::core::{End, RollbackCause};

/// What became of a transaction, as far as its owner can see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// What it wrote is there.
    Committed,
    /// What it wrote is not there, and will not come.
    RolledBack,
    /// Cannot be told.
    Open,
}

/// A connection of either engine, lent to a probe inside a short transaction of its own that is rolled
/// back afterwards. On SQLite that one is the writer, so the transaction asked after is over.
pub enum AnyLease<'c> {
    /// SQLite's.
    #[cfg(feature = "sqlite")]
    Sqlite(&'c mut sqlx::SqliteConnection),
    /// Postgres'.
    #[cfg(feature = "postgres")]
    Postgres(&'c mut sqlx::PgConnection),
}

/// A probe under way. An error means that it is asked again.
pub type ProofFuture<'c> = Pin<Box<dyn Future<Output = Result<Proof, sqlx::Error>> + Send + 'c>>;

/// How an owner looks for what it wrote.
pub(super) type Probe = Arc<dyn for<'c> Fn(AnyLease<'c>) -> ProofFuture<'c> + Send + Sync>;

impl fmt::Debug for AnyLease<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AnyLease").finish_non_exhaustive()
    }
}

/// How long one look may take: the server has the answer at hand.
#[cfg(feature = "postgres")]
const LOOK_LONGEST: Duration = Duration::from_secs(2);

/// What is known of a transaction when its COMMIT is sent.
pub(super) struct Clue {
    /// The database's own name of it, on Postgres; none where nothing was written.
    pub(super) xid: Option<Xid>,
    /// Something may have been written although there is no name.
    #[cfg_attr(not(feature = "postgres"), allow(dead_code))]
    pub(super) nameless: bool,
    pub(super) probe: Option<Probe>,
}

impl Clue {
    /// Looks once; `None` when it cannot be told yet.
    pub(super) async fn look(&self, db: &SqlStore) -> Option<End> {
        #[cfg(feature = "postgres")]
        if let Some(pool) = db.pool::<sqlx::Postgres>() {
            use super::postgres::{Fate, fate};
            let Some(xid) = &self.xid else {
                // Nothing was written, so nothing can be lost.
                return if self.nameless {
                    self.ask_owner(db).await
                } else {
                    Some(End::Committed)
                };
            };
            // A question of its own: what was begun for it is rolled back.
            let asking = async {
                let mut reading = db.ask(pool).await?;
                fate(&mut reading, xid.as_str()).await
            };
            let Ok(asked) = tokio::time::timeout(LOOK_LONGEST, asking).await else {
                // Where one has fallen silent, others have: the next look is to meet none of them.
                db.test_idle();
                return None;
            };
            match asked {
                Ok(Fate::Committed) => return Some(End::Committed),
                Ok(Fate::Aborted) => return Some(End::RolledBack(RollbackCause::Aborted)),
                Ok(Fate::Open) | Err(_) => return None,
                // Too old, or another server by now: the rows must tell.
                Ok(Fate::Forgotten) => {}
            }
        }
        self.ask_owner(db).await
    }

    async fn ask_owner(&self, db: &SqlStore) -> Option<End> {
        match self.probe(db).await {
            Ok(Some(Proof::Committed)) => Some(End::Committed),
            Ok(Some(Proof::RolledBack)) => Some(End::RolledBack(RollbackCause::Aborted)),
            Ok(Some(Proof::Open) | None) | Err(_) => None,
        }
    }

    /// Says whether looking again may tell more.
    pub(super) fn may_tell(&self) -> bool {
        self.xid.is_some() || self.probe.is_some()
    }

    async fn probe(&self, db: &SqlStore) -> Result<Option<Proof>, TransactionError> {
        let Some(probe) = &self.probe else {
            return Ok(None);
        };
        let mut open = Open::begin(db, db.inner.settings.lock_timeout).await?;
        let seen = tokio::time::timeout(db.longest_step(), probe(open.connection()?.lend())).await;
        let Ok(seen) = seen else {
            // Rolled back behind.
            return Err(TransactionError::unanswered());
        };
        open.rollback().await;
        Ok(Some(seen?))
    }
}
