//! Holds in SQL: the request's transaction lent to the shared steps, in either dialect.

mod error;
#[cfg(feature = "postgres")]
mod postgres;
mod proof;
mod rows;
#[cfg(feature = "sqlite")]
mod sqlite;

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::Extensions;
use parking_lot::Mutex;

use self::proof::Written;
use super::steps::{self, Calendar};
use super::{
    AvailabilityQuery, Busy, Change, ChangeDecision, Delivery, Ended, HoldDecision, HoldRecord,
    HoldWish, ReservationStore, ReservationTransaction, SweepLimits, SweptBatch,
};
use crate::backend::sql::{
    Dialect, Engine, Finisher, RequestTransaction, SqlStore, Step, TransactionError,
    TransactionErrorKind,
};
use crate::core::{AfterWork, Ending, RollbackCause, StoreFuture, Timestamp, Vote};
use crate::reservation::event::{EventId, EventSet, ReservationEvent};
use crate::reservation::hold::HoldRef;

/// The statements of a handle, built once from its prefix.
pub(crate) struct Statements {
    proof: Arc<str>,
    #[cfg(feature = "sqlite")]
    sqlite: sqlite::Statements,
    #[cfg(feature = "postgres")]
    postgres: postgres::Statements,
}

fn statements(db: &SqlStore) -> Arc<Statements> {
    db.part(
        |db| {
            Some(match db.dialect() {
                #[cfg(feature = "sqlite")]
                Dialect::Sqlite => sqlite::schema(db.table_prefix()),
                #[cfg(feature = "postgres")]
                Dialect::Postgres => postgres::schema(db.table_prefix()),
            })
        },
        |db| Statements {
            proof: proof::statement(db.table_prefix()),
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
            };
            let $calendar = &mut own;
            return $body;
        }
        #[cfg(feature = "postgres")]
        if let Some(connection) = step.connection.postgres() {
            let mut own = postgres::PostgresCalendar {
                connection,
                sql: &$sql.postgres,
                now: $db.injected_now(),
                xid: step.xid,
            };
            let $calendar = &mut own;
            return $body;
        }
        Err(crowded())
    }};
}

/// Runs `$body` as one step of `$request`.
macro_rules! operate {
    ($request:expr, $db:expr, |$calendar:ident| $body:expr) => {{
        let (db, sql) = ($db.clone(), statements(&$db));
        let step = $request.operate(move |step| {
            Box::pin(async move { on_engine!(step, db, sql, |$calendar| $body) })
        });
        step.await
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
                    connection: &mut reading.connection,
                    sql: &$sql.sqlite,
                    now: $db.now(),
                };
                let $calendar = &mut own;
                $body
            }
            #[cfg(feature = "postgres")]
            Dialect::Postgres => {
                let mut reading = $db.read::<sqlx::Postgres>().await?;
                let mut own = postgres::PostgresCalendar {
                    connection: &mut reading.connection,
                    sql: &$sql.postgres,
                    now: $db.injected_now(),
                    xid: &mut None,
                };
                let $calendar = &mut own;
                $body
            }
        }
    }};
}

impl ReservationStore for SqlStore {
    fn now(&self) -> Timestamp {
        Self::now(self)
    }

    fn open(&self, request: Option<&mut Extensions>) -> Arc<dyn ReservationTransaction> {
        // Registers the tables, so that they are there before the transaction begins.
        let _ = statements(self);
        let (request, finisher) = match request {
            Some(extensions) => RequestTransaction::join(extensions, self),
            None => {
                let (request, finisher) = RequestTransaction::alone(self);
                (request, Some(finisher))
            }
        };
        Arc::new(SqlReservations {
            db: self.clone(),
            member: finisher.is_none(),
            finisher: Mutex::new(finisher),
            request,
            written: Arc::default(),
        })
    }

    fn hold(&self, wish: HoldWish) -> StoreFuture<HoldDecision> {
        let db = self.clone();
        alone(self, move |request| async move {
            let decision = operate!(request, db, |calendar| steps::hold(calendar, &wish).await)?;
            let written = Written::by_hold(&decision);
            Ok((Keep::of(written), decision))
        })
    }

    fn find(&self, by: HoldRef) -> StoreFuture<Option<HoldRecord>> {
        let (db, sql) = (self.clone(), statements(self));
        reading(async move { on_reader!(db, sql, |calendar| steps::find(calendar, &by).await) })
    }

    fn availability(&self, query: AvailabilityQuery) -> StoreFuture<Vec<Busy>> {
        let (db, sql) = (self.clone(), statements(self));
        let spans =
            reading(async move { on_reader!(db, sql, |calendar| calendar.busy(&query).await) });
        spans.then(super::bounded)
    }

    fn sweep(&self, limits: SweepLimits) -> StoreFuture<SweptBatch> {
        let db = self.clone();
        alone(self, move |request| async move {
            let swept = operate!(request, db, |calendar| steps::sweep(calendar, limits).await)?;
            Ok((Keep::Yes(None), swept))
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
    // Registers the tables.
    let sql = statements(db);
    let db = db.clone();
    StoreFuture::boxed(async move {
        let (request, mut finisher) = RequestTransaction::alone(&db);
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
    })
}

fn reading<T: Send + 'static>(
    work: impl Future<Output = Result<T, TransactionError>> + Send + 'static,
) -> StoreFuture<T> {
    StoreFuture::boxed(async move { Ok(work.await?) })
}

fn crowded() -> TransactionError {
    TransactionError::crowded()
}

/// One request's transaction, as the guard sees it.
struct SqlReservations {
    db: SqlStore,
    request: RequestTransaction,
    /// Ours if we joined first; gone once it has ended.
    finisher: Mutex<Option<Finisher>>,
    member: bool,
    /// By what a lost commit will be told.
    written: Arc<Mutex<Option<Written>>>,
}

impl ReservationTransaction for SqlReservations {
    fn hold(&self, wish: HoldWish) -> StoreFuture<HoldDecision> {
        let (request, db) = (self.request.clone(), self.db.clone());
        let noted = Arc::clone(&self.written);
        reading(async move {
            let decision = operate!(request, db, |calendar| steps::hold(calendar, &wish).await)?;
            note(&noted, Written::by_hold(&decision));
            Ok(decision)
        })
    }

    fn change(
        &self,
        target: HoldRef,
        change: Change,
        record: EventSet,
    ) -> StoreFuture<ChangeDecision> {
        let (request, db) = (self.request.clone(), self.db.clone());
        let noted = Arc::clone(&self.written);
        reading(async move {
            let decision = operate!(request, db, |calendar| {
                steps::change(calendar, &target, &change, record).await
            })?;
            note(&noted, Written::by_change(&decision));
            Ok(decision)
        })
    }

    fn find(&self, by: HoldRef) -> StoreFuture<Option<HoldRecord>> {
        let (request, db) = (self.request.clone(), self.db.clone());
        reading(async move { operate!(request, db, |calendar| steps::find(calendar, &by).await) })
    }

    fn availability(&self, query: AvailabilityQuery) -> StoreFuture<Vec<Busy>> {
        let (request, db) = (self.request.clone(), self.db.clone());
        let spans =
            reading(async move { operate!(request, db, |calendar| calendar.busy(&query).await) });
        spans.then(super::bounded)
    }

    fn vote(&self, vote: Vote) {
        self.request.vote(vote);
    }

    fn after(&self, work: AfterWork) {
        self.request.after(work);
    }

    fn commit(&self) -> StoreFuture<Ended> {
        let mut finisher = self.finisher.lock();
        let Some(finisher) = finisher.as_mut() else {
            return StoreFuture::ok(self.ended_already());
        };
        self.prove(finisher);
        let done = finisher.commit_so_far();
        StoreFuture::boxed(async move { Ok(ended(done.await)) })
    }

    fn end(&self, ending: Ending) -> StoreFuture<Ended> {
        let Some(mut finisher) = self.finisher.lock().take() else {
            if self.member {
                self.request.vote(match ending {
                    Ending::Commit => Vote::Commit,
                    Ending::Rollback => Vote::Rollback(RollbackCause::Cancelled),
                });
            }
            return StoreFuture::ok(self.ended_already());
        };
        if finisher.is_untouched() {
            return StoreFuture::ok(closed(finisher, ending));
        }
        match ending {
            Ending::Commit => {
                self.prove(&mut finisher);
                let done = finisher.commit();
                StoreFuture::boxed(async move { Ok(ended(done.await)) })
            }
            Ending::Rollback => {
                let cause = match finisher.verdict() {
                    Some(Vote::Rollback(cause)) => cause,
                    _ => RollbackCause::Cancelled,
                };
                let done = finisher.rollback(cause);
                StoreFuture::boxed(async move {
                    done.await;
                    Ok(Ended::RolledBack(cause))
                })
            }
        }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Notes what was written; the first hold made in a transaction is the best proof of it.
fn note(noted: &Mutex<Option<Written>>, written: Option<Written>) {
    if let Some(written) = written {
        let mut noted = noted.lock();
        *noted = Some(written.or(*noted));
    }
}

impl SqlReservations {
    /// Says by what this commit is told should its reply be lost.
    fn prove(&self, finisher: &mut Finisher) {
        if let Some(written) = self.written.lock().take() {
            let statement = Arc::clone(&statements(&self.db).proof);
            finisher.proof(written.probe(statement));
        }
    }

    const fn ended_already(&self) -> Ended {
        if self.member {
            Ended::Member
        } else {
            Ended::RolledBack(RollbackCause::Cancelled)
        }
    }
}

/// Lends the connection of a guard's transaction; `None` if the store is no SQL store.
pub(crate) fn request_of(transaction: &dyn ReservationTransaction) -> Option<&RequestTransaction> {
    let own = transaction.as_any().downcast_ref::<SqlReservations>()?;
    Some(&own.request)
}

/// Nothing was begun and nobody waits for the end: no task, no I/O.
fn closed(finisher: Finisher, ending: Ending) -> Ended {
    let verdict = finisher.verdict();
    finisher.close();
    match (ending, verdict) {
        (_, Some(Vote::Rollback(cause))) => Ended::RolledBack(cause),
        (Ending::Commit, _) => Ended::Committed,
        (Ending::Rollback, _) => Ended::RolledBack(RollbackCause::Cancelled),
    }
}

/// Says whether the connection is of engine `D`; without SQL there is none.
pub(crate) fn is_on<D: Engine>(transaction: &dyn ReservationTransaction) -> bool {
    let own = transaction.as_any().downcast_ref::<SqlReservations>();
    own.is_some_and(|own| own.db.dialect() == D::DIALECT)
}

fn ended(done: Result<(), TransactionError>) -> Ended {
    match done.map_err(|error| error.kind()) {
        Ok(()) => Ended::Committed,
        Err(TransactionErrorKind::Unknown) => Ended::Unknown,
        Err(TransactionErrorKind::Doomed(cause)) => Ended::RolledBack(cause),
        Err(TransactionErrorKind::LockTimeout | TransactionErrorKind::Conflict) => {
            Ended::RolledBack(RollbackCause::Contention)
        }
        Err(_) => Ended::RolledBack(RollbackCause::Poisoned),
    }
}

impl fmt::Debug for SqlReservations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqlReservations")
            .field("db", &self.db)
            .field("member", &self.member)
            .finish_non_exhaustive()
    }
}
