//! Holds in SQL: the request's transaction lent to the shared steps, in either dialect.

mod alone;
mod error;
#[cfg(feature = "postgres")]
mod postgres;
mod proof;
mod request;
mod rows;
#[cfg(feature = "sqlite")]
mod sqlite;

use std::sync::Arc;
use std::time::Duration;

use http::Extensions;
use tokio::sync::Notify;

use self::proof::Written;
pub(super) use self::request::SqlReservations;
pub(crate) use self::request::{is_on, request_of, schema};
use super::calendar::{Calendar, Outbox};
use super::steps;
use super::{
    AvailabilityQuery, Busy, Change, ChangeDecision, Delivery, HoldDecision, HoldRecord, HoldWish,
    Kept, Opened, ReservationStore, ReservationTransaction, SweepLimits, SweptBatch,
};
use crate::backend::sql::{Dialect, RequestTransaction, Schema, SqlStore, Step, TransactionError};
use crate::core::{RollbackCause, StoreError, StoreFuture, Timestamp};
use crate::reservation::event::{EventId, EventSet, ReservationEvent};
use crate::reservation::hold::HoldRef;

/// The statements of a handle, built once from its prefix.
pub(crate) struct Statements {
    proof: Arc<str>,
    /// Wakes a sweeper that waits for events.
    told: Arc<Notify>,
    #[cfg(feature = "sqlite")]
    sqlite: sqlite::Statements,
    #[cfg(feature = "postgres")]
    postgres: postgres::Statements,
}

fn tables(prefix: &str, dialect: Dialect) -> Schema {
    match dialect {
        #[cfg(feature = "sqlite")]
        Dialect::Sqlite => sqlite::schema(prefix),
        #[cfg(feature = "postgres")]
        Dialect::Postgres => postgres::schema(prefix),
    }
}

fn statements(db: &SqlStore) -> Arc<Statements> {
    db.part(
        |db| Some(tables(db.table_prefix(), db.dialect())),
        |db| Statements {
            proof: proof::statement(db.table_prefix()),
            told: Arc::default(),
            #[cfg(feature = "sqlite")]
            sqlite: sqlite::Statements::new(db.table_prefix()),
            #[cfg(feature = "postgres")]
            postgres: postgres::Statements::new(db.table_prefix()),
        },
    )
}

/// Runs `$body` with `$calendar` on whichever engine the step has.
macro_rules! on_engine {
    ($step:expr, $db:expr, $sql:expr, |$calendar:ident| $body:expr) => {{
        let step: Step<'_> = $step;
        #[cfg(feature = "sqlite")]
        if let Some(connection) = step.connection.sqlite() {
            let mut own = sqlite::SqliteCalendar {
                connection,
                sql: &$sql.sqlite,
                now: $db.now(),
                told: false,
            };
            let $calendar = &mut own;
            let done = $body;
            return done.map(|answer| (answer, own.told));
        }
        #[cfg(feature = "postgres")]
        if let Some(connection) = step.connection.postgres() {
            let mut own = postgres::PostgresCalendar {
                connection,
                sql: &$sql.postgres,
                now: $db.injected_now(),
                xid: step.xid,
                told: false,
            };
            let $calendar = &mut own;
            let done = $body;
            return done.map(|answer| (answer, own.told));
        }
        Err(crowded())
    }};
}

/// Runs `$body` as one step of `$request`.
macro_rules! operate {
    ($request:expr, $db:expr, |$calendar:ident| $body:expr) => {{
        let (db, sql) = ($db.clone(), statements(&$db));
        let told = Arc::clone(&sql.told);
        let step = $request.operate_named(move |step| {
            Box::pin(async move { on_engine!(step, db, sql, |$calendar| $body) })
        });
        step.await.map(|(answer, events)| {
            if events {
                $request.after_commit(async move { told.notify_one() });
            }
            answer
        })
    }};
}

/// The same outside any transaction, on a connection for reading.
macro_rules! on_reader {
    ($db:expr, $sql:expr, |$calendar:ident| $body:expr) => {{
        match $db.dialect() {
            #[cfg(feature = "sqlite")]
            Dialect::Sqlite => {
                let mut reading = $db.read::<sqlx::Sqlite>().await?;
                let mut own = sqlite::SqliteCalendar {
                    connection: &mut reading,
                    sql: &$sql.sqlite,
                    now: $db.now(),
                    told: false,
                };
                let $calendar = &mut own;
                $body
            }
            #[cfg(feature = "postgres")]
            Dialect::Postgres => {
                let mut reading = $db.read::<sqlx::Postgres>().await?;
                let mut own = postgres::PostgresCalendar {
                    connection: &mut reading,
                    sql: &$sql.postgres,
                    now: $db.injected_now(),
                    xid: &mut None,
                    told: false,
                };
                let $calendar = &mut own;
                // Outside a transaction no timeout of the server bounds it.
                let read = tokio::time::timeout($db.statement_timeout(), async { $body }).await;
                read.unwrap_or_else(|_| {
                    reading.give_up();
                    Err(TransactionError::unanswered())
                })
            }
        }
    }};
}

impl ReservationStore for SqlStore {
    fn now(&self) -> Timestamp {
        Self::now(self)
    }

    fn open(&self, request: Option<&mut Extensions>) -> Arc<dyn ReservationTransaction> {
        Arc::new(SqlReservations::open(self, request))
    }

    fn lend(&self, request: Option<&mut Extensions>) -> Opened {
        Opened(Kept::Sql(SqlReservations::open(self, request)))
    }

    fn hold(&self, wish: HoldWish) -> StoreFuture<HoldDecision> {
        StoreFuture::boxed(alone::hold(self.clone(), wish))
    }

    fn find(&self, by: HoldRef) -> StoreFuture<Option<HoldRecord>> {
        let (db, sql) = (self.clone(), statements(self));
        reading(async move {
            let find =
                || async { on_reader!(db, sql, |calendar| steps::find(calendar, &by).await) };
            db.read_again(find).await
        })
    }

    fn availability(&self, query: AvailabilityQuery) -> StoreFuture<Vec<Busy>> {
        let (db, sql) = (self.clone(), statements(self));
        let spans = reading(async move {
            let busy = || async { on_reader!(db, sql, |calendar| calendar.busy(&query).await) };
            db.read_again(busy).await
        });
        spans.then(super::bounded)
    }

    fn sweep(&self, limits: SweepLimits) -> StoreFuture<SweptBatch> {
        let db = self.clone();
        alone(self, move |request| async move {
            let swept = operate!(request, db, |calendar| steps::sweep(calendar, limits).await)?;
            Ok((Keep::Yes(None), swept))
        })
    }

    fn migrate(&self) -> StoreFuture<()> {
        let _ = statements(self);
        let db = self.clone();
        StoreFuture::boxed(async move { Self::migrate(&db).await })
    }

    fn told(&self) -> StoreFuture<()> {
        let told = Arc::clone(&statements(self).told);
        StoreFuture::boxed(async move {
            told.notified().await;
            Ok(())
        })
    }

    fn take_events(&self, limit: u32, lease: Duration) -> StoreFuture<Vec<ReservationEvent>> {
        let db = self.clone();
        alone(self, move |request| async move {
            let events = operate!(request, db, |calendar| {
                calendar.take_events(limit, lease).await
            })?;
            let keep = if events.is_empty() {
                Keep::No
            } else {
                Keep::Yes(None)
            };
            Ok((keep, events))
        })
    }

    fn settle_events(&self, outcomes: Vec<(EventId, Delivery)>) -> StoreFuture<()> {
        let db = self.clone();
        alone(self, move |request| async move {
            operate!(request, db, |calendar| steps::settle(calendar, &outcomes)
                .await)?;
            Ok((Keep::Yes(None), ()))
        })
    }
}

/// Holds inside `request`'s transaction.
async fn hold(
    request: &RequestTransaction,
    db: &SqlStore,
    wish: HoldWish,
) -> Result<HoldDecision, TransactionError> {
    operate!(request, db, |calendar| steps::hold(calendar, &wish).await)
}

/// Changes a hold inside `request`'s transaction.
async fn change(
    request: &RequestTransaction,
    db: &SqlStore,
    (target, change): (HoldRef, Change),
    record: EventSet,
) -> Result<ChangeDecision, TransactionError> {
    operate!(request, db, |calendar| {
        steps::change(calendar, &target, &change, record).await
    })
}

/// Finds a hold, the writes of `request`'s transaction included.
async fn find(
    request: &RequestTransaction,
    db: &SqlStore,
    by: HoldRef,
) -> Result<Option<HoldRecord>, TransactionError> {
    operate!(request, db, |calendar| steps::find(calendar, &by).await)
}

/// Lists what blocks, the writes of `request`'s transaction included.
async fn busy(
    request: &RequestTransaction,
    db: &SqlStore,
    query: AvailabilityQuery,
) -> Result<Vec<Busy>, TransactionError> {
    operate!(request, db, |calendar| calendar.busy(&query).await)
}

/// What becomes of a step that was a transaction of its own.
enum Keep {
    No,
    Yes(Option<Written>),
}

impl Keep {
    fn of(written: Option<Written>) -> Self {
        written.map_or(Self::No, |written| Self::Yes(Some(written)))
    }
}

/// Runs one step as a transaction of its own; dropped, it rolls back.
fn alone<T, W, F>(db: &SqlStore, work: W) -> StoreFuture<T>
where
    T: Send + 'static,
    W: FnOnce(RequestTransaction) -> F + Send + 'static,
    F: Future<Output = Result<(Keep, T), TransactionError>> + Send + 'static,
{
    let db = db.clone();
    StoreFuture::boxed(async move { in_transaction(&db, work).await })
}

async fn in_transaction<T, W, F>(db: &SqlStore, work: W) -> Result<T, StoreError>
where
    W: FnOnce(RequestTransaction) -> F,
    F: Future<Output = Result<(Keep, T), TransactionError>>,
{
    // Registers the tables.
    let sql = statements(db);
    let (request, mut finisher) = RequestTransaction::alone(db);
    let (keep, answer) = work(request).await?;
    match keep {
        Keep::Yes(written) => {
            if let Some(written) = written {
                finisher.proof(written.probe(Arc::clone(&sql.proof)));
            }
            finisher.commit().await?;
        }
        Keep::No => finisher.rollback(RollbackCause::Conflict).await,
    }
    Ok(answer)
}

fn reading<T: Send + 'static>(
    work: impl Future<Output = Result<T, TransactionError>> + Send + 'static,
) -> StoreFuture<T> {
    StoreFuture::boxed(async move { Ok(work.await?) })
}

fn crowded() -> TransactionError {
    TransactionError::crowded()
}
