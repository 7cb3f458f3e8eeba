//! A hold outside any transaction: one statement where one is enough, else a transaction.

use super::proof::Written;
use super::{Keep, in_transaction, statements, steps};
use crate::backend::sql::{Dialect, SqlStore, TransactionError, TransactionErrorKind};
use crate::core::{StoreError, StoreErrorKind};
use crate::reservation::event::EventKind;
use crate::reservation::slot::Slot;
use crate::reservation::store::calendar::{Calendar, Insertion};
use crate::reservation::store::{HoldDecision, HoldWish};

pub(super) async fn hold(db: SqlStore, wish: HoldWish) -> Result<HoldDecision, StoreError> {
    if !is_one_statement(&wish) {
        return begin(&db, wish).await;
    }
    let asked = match db.dialect() {
        #[cfg(feature = "sqlite")]
        Dialect::Sqlite => on_sqlite(&db, &wish).await,
        #[cfg(feature = "postgres")]
        Dialect::Postgres if db.keeps_no_statements() => return begin(&db, wish).await,
        #[cfg(feature = "postgres")]
        Dialect::Postgres => on_postgres(&db, &wish).await,
    };
    match asked? {
        AtOnce::Decided(decision) => Ok(decision),
        AtOnce::Open => begin(&db, wish).await,
        AtOnce::Unknown => again(&db, wish).await,
    }
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
enum AtOnce {
    Decided(HoldDecision),
    /// Nothing was written, and holds that are over may be in the way.
    Open,
    /// It was sent, and nobody told what became of it.
    Unknown,
}

/// One exclusive slot whose making is not recorded is one row.
fn is_one_statement(wish: &HoldWish) -> bool {
    wish.slots.len() == 1
        && !wish.slots.iter().any(Slot::is_counted)
        && !wish.record.contains(EventKind::Created)
}

#[cfg(feature = "postgres")]
async fn on_postgres(db: &SqlStore, wish: &HoldWish) -> Result<AtOnce, TransactionError> {
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
        let inserted = own.insert_alone(wish, db.lock_timeout()).await?;
        decide(&mut own, wish, inserted).await
    };
    match within(db, asking).await {
        // The server's own defaults may be stricter than READ COMMITTED READ WRITE; BEGIN says what it wants.
        Some(Err(error))
            if matches!(
                error.kind(),
                TransactionErrorKind::Conflict | TransactionErrorKind::Failed
            ) =>
        {
            Ok(AtOnce::Open)
        }
        Some(answer) => answer,
        None => {
            reading.give_up();
            Ok(AtOnce::Unknown)
        }
    }
}

/// The writer's turn is waited for as for a transaction.
#[cfg(feature = "sqlite")]
async fn on_sqlite(db: &SqlStore, wish: &HoldWish) -> Result<AtOnce, TransactionError> {
    let sql = statements(db);
    let mut writing = db.write_alone::<sqlx::Sqlite>().await?;
    let mut own = super::sqlite::SqliteCalendar {
        connection: &mut writing,
        sql: &sql.sqlite,
        now: db.now(),
        told: false,
    };
    let asking = async {
        let inserted = own.insert_alone(wish).await?;
        decide(&mut own, wish, inserted).await
    };
    match within(db, asking).await {
        // A pool of the application's own may wait for another process for less time than we would.
        Some(Err(error))
            if error.kind() == TransactionErrorKind::Conflict
                && writing.age() < db.lock_timeout() =>
        {
            Ok(AtOnce::Open)
        }
        Some(answer) => answer,
        None => {
            writing.give_up();
            Ok(AtOnce::Unknown)
        }
    }
}

async fn decide<C: Calendar<Error = TransactionError>>(
    calendar: &mut C,
    wish: &HoldWish,
    inserted: Insertion,
) -> Result<AtOnce, TransactionError> {
    match inserted {
        Insertion::Made(record) => Ok(AtOnce::Decided(HoldDecision::Created(record))),
        Insertion::Refused(seen) => {
            let refused = steps::refusal(calendar, wish, seen).await?;
            Ok(refused.map_or(AtOnce::Open, AtOnce::Decided))
        }
    }
}

/// `None` if it takes longer than its waits and its work may; a connection that was lost leaves the outcome unknown.
async fn within(
    db: &SqlStore,
    asking: impl Future<Output = Result<AtOnce, TransactionError>>,
) -> Option<Result<AtOnce, TransactionError>> {
    let longest = match db.is_single() {
        // Given up, the only connection would take its database along.
        true => std::time::Duration::MAX,
        false => db.lock_timeout() + db.statement_timeout(),
    };
    match tokio::time::timeout(longest, asking).await {
        Ok(Err(error)) if error.kind() == TransactionErrorKind::Unavailable => {
            Some(Ok(AtOnce::Unknown))
        }
        answer => answer.ok(),
    }
}

/// The same wish again: if the lost statement did its work, or still does, the constraint makes this one
/// wait for it and meet its own hold.
async fn again(db: &SqlStore, wish: HoldWish) -> Result<HoldDecision, StoreError> {
    let id = wish.id;
    match begin(db, wish).await {
        Ok(HoldDecision::Reused(record)) if record.id == id => Ok(HoldDecision::Created(record)),
        // Whatever refused this one, the lost one may still do its work.
        Err(error) => Err(StoreError::with_source(StoreErrorKind::TimedOut, error)),
        other => other,
    }
}
