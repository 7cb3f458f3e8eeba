//! A hold outside any transaction: one statement on Postgres where one is enough, else a transaction.

use super::proof::Written;
use super::{Keep, in_transaction};
#[cfg(feature = "postgres")]
use super::{statements, steps};
use crate::backend::sql::SqlStore;
#[cfg(feature = "postgres")]
use crate::backend::sql::{TransactionError, TransactionErrorKind};
use crate::core::StoreError;
#[cfg(feature = "postgres")]
use crate::core::StoreErrorKind;
#[cfg(feature = "postgres")]
use crate::reservation::store::calendar::Insertion;
use crate::reservation::store::{HoldDecision, HoldWish};

pub(super) async fn hold(db: SqlStore, wish: HoldWish) -> Result<HoldDecision, StoreError> {
    #[cfg(feature = "postgres")]
    if db.dialect() == crate::backend::sql::Dialect::Postgres
        && is_one_statement(&wish)
        && !db.keeps_no_statements()
    {
        return match at_once(&db, &wish).await? {
            AtOnce::Decided(decision) => Ok(decision),
            AtOnce::Open => begin(&db, wish).await,
            AtOnce::Unknown => again(&db, wish).await,
        };
    }
    begin(&db, wish).await
}

async fn begin(db: &SqlStore, wish: HoldWish) -> Result<HoldDecision, StoreError> {
    let handle = db.clone();
    in_transaction(db, move |request| async move {
        let decision = super::hold(&request, &handle, wish).await?;
        let written = Written::by_hold(&decision);
        Ok((Keep::of(written), decision))
    })
    .await
}

/// What one statement came to.
#[cfg(feature = "postgres")]
enum AtOnce {
    Decided(HoldDecision),
    /// Nothing was written, and holds that are over may be in the way.
    Open,
    /// It was sent, and nobody told what became of it.
    Unknown,
}

/// One exclusive slot whose making is not recorded is one row.
#[cfg(feature = "postgres")]
fn is_one_statement(wish: &HoldWish) -> bool {
    use crate::reservation::event::EventKind;
    use crate::reservation::slot::Slot;
    wish.slots.len() == 1
        && !wish.slots.iter().any(Slot::is_counted)
        && !wish.record.contains(EventKind::Created)
}

#[cfg(feature = "postgres")]
async fn at_once(db: &SqlStore, wish: &HoldWish) -> Result<AtOnce, TransactionError> {
    let sql = statements(db);
    let mut reading = db.read::<sqlx::Postgres>().await?;
    let mut own = super::postgres::PostgresCalendar {
        connection: &mut reading,
        sql: &sql.postgres,
        now: db.injected_now(),
        xid: &mut None,
        told: false,
    };
    let asking = async {
        match own.insert_alone(wish, db.lock_timeout()).await? {
            Insertion::Made(record) => {
                Ok::<_, TransactionError>(AtOnce::Decided(HoldDecision::Created(record)))
            }
            Insertion::Refused(seen) => {
                let refused = steps::refusal(&mut own, wish, seen).await?;
                Ok(refused.map_or(AtOnce::Open, AtOnce::Decided))
            }
        }
    };
    let longest = db.lock_timeout() + db.statement_timeout();
    match tokio::time::timeout(longest, asking).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => match error.kind() {
            TransactionErrorKind::Unavailable => Ok(AtOnce::Unknown),
            // The server's own defaults may be stricter than READ COMMITTED READ WRITE; BEGIN says what it wants.
            TransactionErrorKind::Conflict | TransactionErrorKind::Failed => Ok(AtOnce::Open),
            _ => Err(error),
        },
        Err(_) => {
            reading.give_up();
            Ok(AtOnce::Unknown)
        }
    }
}

/// The same wish again: if the lost statement did its work, or still does, the constraint makes this one
/// wait for it and meet its own hold.
#[cfg(feature = "postgres")]
async fn again(db: &SqlStore, wish: HoldWish) -> Result<HoldDecision, StoreError> {
    let id = wish.id;
    match begin(db, wish).await {
        Ok(HoldDecision::Reused(record)) if record.id == id => Ok(HoldDecision::Created(record)),
        Err(error) if error.kind() == StoreErrorKind::Unavailable => {
            Err(StoreError::with_source(StoreErrorKind::TimedOut, error))
        }
        other => other,
    }
}
