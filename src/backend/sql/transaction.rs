//! The handle that every member of a request's transaction has.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
#[cfg(feature = "axum")]
use std::sync::atomic::Ordering;

use http::Extensions;
use smallvec::SmallVec;
use tokio::sync::MutexGuard;

use super::engine::Engine;
use super::error::{TransactionError, TransactionErrorKind};
use super::finisher::Finisher;
use super::lease::Lease;
use super::open::Step;
use super::shared::Shared;
use super::store::SqlStore;
use crate::core::telemetry::{Once, warn};
use crate::core::{AfterWork, RollbackCause, Vote};

/// One transaction, shared by all layers and handlers of a request; in the request's extensions.
#[derive(Clone)]
pub struct RequestTransaction {
    shared: Arc<Shared>,
}

/// The transactions of a request, one per database.
#[derive(Clone, Default)]
struct Members(SmallVec<[RequestTransaction; 1]>);

/// A library step under way, on the connection of the open transaction.
pub(crate) type StepFuture<'c, T> =
    Pin<Box<dyn Future<Output = Result<T, TransactionError>> + Send + 'c>>;

impl RequestTransaction {
    /// Joins the request's transaction on `db`. The first to join gets the [`Finisher`]; nothing is opened.
    pub fn join(extensions: &mut Extensions, db: &SqlStore) -> (Self, Option<Finisher>) {
        static TWO: Once = Once::new();
        let members = extensions.get_or_insert_default::<Members>();
        // One that has ended belongs to an earlier run of the same request.
        members.0.retain(|member| !member.is_closed());
        let own = members.0.iter().find(|member| member.is_on(db));
        if let Some(member) = own {
            return (member.clone(), None);
        }
        if !members.0.is_empty() && TWO.first() {
            warn!("one request writes to two databases: these are two transactions, not one");
        }
        let (transaction, finisher) = Self::alone(db);
        members.0.push(transaction.clone());
        (transaction, Some(finisher))
    }

    /// Finds the request's transaction on `db`, if somebody has joined one.
    #[must_use]
    pub fn find(extensions: &Extensions, db: &SqlStore) -> Option<Self> {
        let members = extensions.get::<Members>()?;
        let mut open = members.0.iter().filter(|member| !member.is_closed());
        open.find(|member| member.is_on(db)).cloned()
    }

    /// Finds the request's transaction on this engine, if there is exactly one.
    #[cfg(feature = "axum")]
    pub(super) fn only<D: Engine>(extensions: &Extensions) -> Option<Self> {
        let members = extensions.get::<Members>()?.0.iter();
        let mut fit = members.filter(|member| !member.is_closed() && member.speaks::<D>());
        let only = fit.next()?;
        fit.next().is_none().then(|| only.clone())
    }

    /// Makes a transaction that belongs to no request.
    #[must_use]
    pub fn alone(db: &SqlStore) -> (Self, Finisher) {
        let shared = Shared::new(db.clone());
        let finisher = Finisher::new(Arc::clone(&shared));
        (Self { shared }, finisher)
    }

    /// Lends the connection; the transaction begins at first use.
    ///
    /// # Errors
    /// When it cannot begin, can only roll back, has ended, or is on another engine.
    pub async fn lease<D: Engine>(&self) -> Result<Lease<'_, D>, TransactionError> {
        self.shared.usable()?;
        if !self.speaks::<D>() {
            return Err(TransactionError::new(TransactionErrorKind::WrongEngine));
        }
        let mut slot = self.enter().await?;
        if let Some(open) = slot.as_mut() {
            // What would be written without the transaction would stay, whatever is told of the rest.
            let mut fuse = self.fuse();
            self.shared.in_time(open.is_there()).await?;
            fuse.cause = None;
            open.used = true;
        }
        let lent = MutexGuard::try_map(slot, |slot| D::of(slot.as_mut()?.connection().ok()?));
        match lent {
            Ok(connection) => Ok(Lease { connection }),
            Err(_) => Err(TransactionError::new(TransactionErrorKind::WrongEngine)),
        }
    }

    /// Says how the transaction should end; one vote for a rollback decides.
    pub fn vote(&self, vote: Vote) {
        self.shared.vote(vote);
    }

    /// Registers work for after the end.
    pub fn after(&self, work: AfterWork) {
        self.shared.said.lock().after.push(work);
    }

    /// Registers work for after the commit.
    pub fn after_commit(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.after(AfterWork::committed(work));
    }

    /// Registers work for after a rollback.
    pub fn after_rollback<F, W>(&self, work: F)
    where
        F: FnOnce(RollbackCause) -> W + Send + 'static,
        W: Future<Output = ()> + Send + 'static,
    {
        self.after(AfterWork::rolled_back(work));
    }

    /// Runs a step of the library. If it fails in the database, or is dropped before its answer, the
    /// transaction can only roll back.
    pub(crate) async fn operate<T, F>(&self, step: F) -> Result<T, TransactionError>
    where
        F: for<'c> FnOnce(Step<'c>) -> StepFuture<'c, T> + Send,
    {
        self.step(step, Names::Nothing).await
    }

    /// The same for a step that puts the transaction's name into [`Step::xid`] wherever it writes: as long as
    /// there is none, a lost COMMIT has lost nothing.
    pub(crate) async fn operate_named<T, F>(&self, step: F) -> Result<T, TransactionError>
    where
        F: for<'c> FnOnce(Step<'c>) -> StepFuture<'c, T> + Send,
    {
        self.step(step, Names::WhatItWrites).await
    }

    async fn step<T, F>(&self, step: F, names: Names) -> Result<T, TransactionError>
    where
        F: for<'c> FnOnce(Step<'c>) -> StepFuture<'c, T> + Send,
    {
        let mut slot = self.enter().await?;
        let Some(open) = slot.as_mut() else {
            return Err(TransactionError::new(TransactionErrorKind::Ended));
        };
        let mut fuse = self.fuse();
        open.nameless |= names == Names::Nothing;
        let work = async {
            open.check().await?;
            step(open.step()?).await
        };
        let done = self.shared.in_time(work).await;
        match &done {
            Ok(_) => fuse.cause = None,
            Err(error) => fuse.cause = Some(cause_of(error.kind())),
        }
        done
    }

    /// Counts an extracted guard: one that is alive when the request ends has leaked.
    #[cfg(feature = "axum")]
    pub(super) fn guard(&self) -> Guarded {
        self.shared.guards.fetch_add(1, Ordering::SeqCst);
        Guarded(Arc::clone(&self.shared))
    }

    async fn enter(&self) -> Result<MutexGuard<'_, Option<super::open::Open>>, TransactionError> {
        self.shared
            .enter(self.shared.db.inner.settings.lock_timeout)
            .await
    }

    fn fuse(&self) -> Fuse<'_> {
        Fuse {
            shared: &self.shared,
            cause: Some(RollbackCause::Poisoned),
        }
    }

    fn speaks<D: Engine>(&self) -> bool {
        self.shared.db.dialect() == D::DIALECT
    }

    fn is_closed(&self) -> bool {
        self.shared.said.lock().closed
    }

    fn is_on(&self, db: &SqlStore) -> bool {
        Arc::ptr_eq(&self.shared.db.inner, &db.inner)
    }
}

/// Whether a step says which transaction it wrote in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Names {
    Nothing,
    WhatItWrites,
}

/// Dooms the transaction unless the step came to its answer.
struct Fuse<'s> {
    shared: &'s Arc<Shared>,
    cause: Option<RollbackCause>,
}

impl Drop for Fuse<'_> {
    fn drop(&mut self) {
        if let Some(cause) = self.cause {
            self.shared.doom(cause);
        }
    }
}

const fn cause_of(kind: TransactionErrorKind) -> RollbackCause {
    match kind {
        TransactionErrorKind::LockTimeout | TransactionErrorKind::Conflict => {
            RollbackCause::Contention
        }
        TransactionErrorKind::Doomed(cause) => cause,
        _ => RollbackCause::Poisoned,
    }
}

/// An extracted guard, as long as it lives.
#[cfg(feature = "axum")]
pub(super) struct Guarded(Arc<Shared>);

#[cfg(feature = "axum")]
impl Drop for Guarded {
    fn drop(&mut self) {
        self.0.guards.fetch_sub(1, Ordering::SeqCst);
    }
}

impl fmt::Debug for RequestTransaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestTransaction")
            .field("closed", &self.is_closed())
            .finish_non_exhaustive()
    }
}
