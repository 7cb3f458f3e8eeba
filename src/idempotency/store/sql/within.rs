//! The same steps inside a request's transaction, and how a lost COMMIT is told by the record.

use std::time::Duration;

#[cfg(feature = "postgres")]
use super::on_postgres;
#[cfg(feature = "sqlite")]
use super::on_sqlite;
use super::{Claimed, Part, part, time_of};
use crate::backend::sql::{
    AnyLease, Proof, ProofFuture, RequestTransaction, SqlStore, TransactionError, Xid,
};
use crate::idempotency::policy::LeaseEnd;
use crate::idempotency::record::{Answer, Fence, Nonce, RecordId};
use crate::idempotency::store::{Begin, Claim, Owned};

/// Names the table to the handle, so that it is there before the first transaction.
pub(in crate::idempotency) fn register(db: &SqlStore) {
    drop(part(db));
}

/// A record inside a request's transaction.
pub(in crate::idempotency) struct Entry {
    db: SqlStore,
    request: RequestTransaction,
    id: RecordId,
    nonce: Nonce,
}

/// Runs `$body` as a step of the request's transaction.
macro_rules! step {
    ($own:expr, |$step:ident, $connection:ident, $part:ident, $now:ident| $body:expr) => {{
        let ($part, $now) = (part(&$own.db), time_of(&$own.db));
        let step = $own.request.operate_named(move |$step| {
            Box::pin(async move {
                #[cfg(feature = "sqlite")]
                if let Some($connection) = $step.connection.sqlite() {
                    #[allow(unused_imports)]
                    use on_sqlite::{claim, steps};
                    return $body;
                }
                #[cfg(feature = "postgres")]
                if let Some($connection) = $step.connection.postgres() {
                    #[allow(unused_imports)]
                    use on_postgres::{claim, steps};
                    return $body;
                }
                Err(TransactionError::crowded())
            })
        });
        step.await
    }};
}

impl Entry {
    pub(in crate::idempotency) const fn new(
        db: SqlStore,
        request: RequestTransaction,
        id: RecordId,
        nonce: Nonce,
    ) -> Self {
        Self {
            db,
            request,
            id,
            nonce,
        }
    }

    /// Claims the key, or says what is there; waits for a foreign twin's end.
    pub(in crate::idempotency) async fn claim(
        &self,
        wish: Claim,
    ) -> Result<Begin, TransactionError> {
        let id = self.id;
        step!(self, |step, connection, part, now| {
            let claimed = claim(connection, &part.sql, now, &id, &wish).await?;
            if let Claimed::Taken(_, Some(xid)) = &claimed {
                *step.xid = Some(Xid::from(xid.as_str()));
            }
            Ok(claimed.begun(&wish))
        })
    }

    /// Writes the answer into the claim's row.
    pub(in crate::idempotency) async fn complete(
        &self,
        answer: Answer,
        ttl: Duration,
    ) -> Result<Owned, TransactionError> {
        let (id, nonce) = (self.id, self.nonce);
        step!(self, |step, connection, part, now| {
            steps::complete(connection, &part.sql, now, &id, nonce, (&answer, ttl)).await
        })
    }

    /// Frees the key, while what the handler wrote stays.
    pub(in crate::idempotency) async fn release(&self) -> Result<Owned, TransactionError> {
        let (id, nonce) = (self.id, self.nonce);
        step!(self, |step, connection, part, now| {
            steps::release(connection, &part.sql, now, &id, nonce).await
        })
    }

    /// Leaves the outcome to an operator, while what the handler wrote stays.
    pub(in crate::idempotency) async fn leave_undecided(&self) -> Result<Owned, TransactionError> {
        let (id, nonce) = (self.id, self.nonce);
        step!(self, |step, connection, part, now| {
            let end = (Duration::ZERO, LeaseEnd::Indeterminate);
            steps::renew(connection, &part.sql, now, &id, nonce, end).await
        })
    }

    /// Tells what became of a lost COMMIT by the row, which keeps the owner's nonce in every end but one:
    /// another who came after, and then nothing can be said.
    pub(in crate::idempotency) fn proof(
        &self,
        fence: Fence,
    ) -> impl for<'c> Fn(AnyLease<'c>) -> ProofFuture<'c> + Send + Sync + 'static {
        let (part, id, nonce) = (part(&self.db), self.id, self.nonce);
        move |lease| {
            let part = std::sync::Arc::clone(&part);
            Box::pin(async move {
                let (found, last) = probe(lease, &part, &id).await?;
                Ok(if found == nonce.0 {
                    Proof::Committed
                } else if last.unsigned_abs() < fence.0 {
                    Proof::RolledBack
                } else {
                    Proof::Open
                })
            })
        }
    }
}

async fn probe(
    lease: AnyLease<'_>,
    part: &Part,
    id: &RecordId,
) -> Result<(Vec<u8>, i64), sqlx::Error> {
    match lease {
        #[cfg(feature = "sqlite")]
        AnyLease::Sqlite(connection) => on_sqlite::steps::probe(connection, &part.sql, id).await,
        #[cfg(feature = "postgres")]
        AnyLease::Postgres(connection) => {
            on_postgres::steps::probe(connection, &part.sql, id).await
        }
    }
}
