//! One request's transaction, as the guard sees it: joined or owned, proven by what it wrote, ended once.

use std::any::Any;
use std::fmt;
use std::sync::{Arc, OnceLock};

use http::Extensions;
use parking_lot::Mutex;

use super::proof::Written;
use super::{reading, statements, tables};
use crate::backend::sql::{
    Dialect, Engine, Finisher, RequestTransaction, SqlStore, TransactionError, TransactionErrorKind,
};
use crate::core::{AfterWork, Ending, RollbackCause, StoreFuture, Vote};
use crate::reservation::event::EventSet;
use crate::reservation::hold::HoldRef;
use crate::reservation::store::{
    AvailabilityQuery, Busy, Change, ChangeDecision, Ended, HoldDecision, HoldRecord, HoldWish,
    ReservationTransaction,
};

/// One request's transaction, as the guard sees it.
pub(in crate::reservation::store) struct SqlReservations {
    db: SqlStore,
    request: RequestTransaction,
    /// Ours if we joined first; gone once it has ended.
    finisher: Mutex<Option<Finisher>>,
    member: bool,
    /// By what a lost commit will be told. Made by the first step that may write.
    written: OnceLock<Arc<Mutex<Option<Written>>>>,
}

impl ReservationTransaction for SqlReservations {
    fn hold(&self, wish: HoldWish) -> StoreFuture<HoldDecision> {
        let (request, db) = (self.request.clone(), self.db.clone());
        let noted = Arc::clone(self.written.get_or_init(Arc::default));
        reading(async move {
            let decision = super::hold(&request, &db, wish).await?;
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
        let noted = Arc::clone(self.written.get_or_init(Arc::default));
        reading(async move {
            let decision = super::change(&request, &db, (target, change), record).await?;
            note(&noted, Written::by_change(&decision));
            Ok(decision)
        })
    }

    fn find(&self, by: HoldRef) -> StoreFuture<Option<HoldRecord>> {
        let (request, db) = (self.request.clone(), self.db.clone());
        reading(async move { super::find(&request, &db, by).await })
    }

    fn availability(&self, query: AvailabilityQuery) -> StoreFuture<Vec<Busy>> {
        let (request, db) = (self.request.clone(), self.db.clone());
        let spans = reading(async move { super::busy(&request, &db, query).await });
        spans.then(crate::reservation::store::bounded)
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
                StoreFuture::carried(finisher.commit_told(|done| Ok(ended(done))))
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
    pub(super) fn open(db: &SqlStore, request: Option<&mut Extensions>) -> Self {
        // Registers the tables, so that they are there before the transaction begins.
        let _ = statements(db);
        let (request, finisher) = match request {
            Some(extensions) => RequestTransaction::join(extensions, db),
            None => {
                let (request, finisher) = RequestTransaction::alone(db);
                (request, Some(finisher))
            }
        };
        Self {
            db: db.clone(),
            member: finisher.is_none(),
            finisher: Mutex::new(finisher),
            request,
            written: OnceLock::new(),
        }
    }

    /// Says by what this commit is told should its reply be lost.
    fn prove(&self, finisher: &mut Finisher) {
        let written = self.written.get().and_then(|noted| noted.lock().take());
        if let Some(written) = written {
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

/// Returns the tables of a dialect, named as the store of `transaction` names them.
pub(crate) fn schema(transaction: &dyn ReservationTransaction, dialect: Dialect) -> String {
    let own = transaction.as_any().downcast_ref::<SqlReservations>();
    let prefix = own.map_or("keep_", |own| own.db.table_prefix());
    tables(prefix, dialect).sql(prefix)
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
