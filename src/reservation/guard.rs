//! The guard: a handler's hand on the request's transaction.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use http::Extensions;

use super::availability::Availability;
use super::hold::{Claimant, Hold, HoldId, HoldOutcome, HoldRef, HoldToken, Payment, Settled};
use super::operation::{Confirming, Holding, Processing};
use super::rejection::{Conflict, ReservationError};
use super::request::Request;
use super::slot::{SlotError, Slots};
use super::store::{
    AvailabilityQuery, Change, ChangeDecision, Ended, HoldDecision, HoldRecord, HoldWish,
};
use crate::core::telemetry::{Once, count, error, info, is_heard, warn};
use crate::core::{AfterWork, RollbackCause, StoreError, StoreErrorKind, Timestamp};

/// No engine is named: no raw SQL, and so it runs on every store.
#[derive(Clone, Copy, Debug)]
pub struct AnyEngine;

/// What a guard may be typed by: [`AnyEngine`], or the engine whose SQL the handler speaks.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no engine: use `AnyEngine`, `Postgres` or `Sqlite`"
)]
pub trait GuardEngine: Send + Sync + 'static {
    #[doc(hidden)]
    fn fits(request: &GuardSource) -> bool;
}

impl GuardEngine for AnyEngine {
    fn fits(_: &GuardSource) -> bool {
        true
    }
}

#[cfg(feature = "sqlite")]
impl GuardEngine for crate::backend::sql::Sqlite {
    fn fits(source: &GuardSource) -> bool {
        super::store::is_on::<Self>(&*source.0.transaction)
    }
}

#[cfg(feature = "postgres")]
impl GuardEngine for crate::backend::sql::Postgres {
    fn fits(source: &GuardSource) -> bool {
        super::store::is_on::<Self>(&*source.0.transaction)
    }
}

/// What the layer puts into the request's extensions; guards are made of it.
#[derive(Clone, Debug)]
pub struct GuardSource(pub(crate) Arc<Request>);

/// Holds slots, and lends the connection they are held on, inside the request's one transaction.
///
/// It opens nothing before its first operation. The layer commits when the handler has answered with
/// 200–399, before the client sees it, and rolls back otherwise. A guard that outlives its handler has
/// leaked: nothing is committed and the client gets a 500.
pub struct ReservationGuard<D: GuardEngine = AnyEngine> {
    request: Arc<Request>,
    engine: PhantomData<fn() -> D>,
}

impl<D: GuardEngine> ReservationGuard<D> {
    /// Takes the guard of a request, for services that are not axum handlers.
    ///
    /// # Errors
    /// [`ReservationError::Misconfigured`]: no reservation layer stands outside, or its store is on another
    /// engine than `D`.
    pub fn from_extensions(extensions: &Extensions) -> Result<Self, ReservationError> {
        static LOUD: Once = Once::new();
        let source = extensions.get::<GuardSource>();
        match source.filter(|source| D::fits(source)) {
            Some(source) => Ok(Self::new(&source.0)),
            None => {
                if LOUD.first() {
                    error!("no reservation layer, or another engine than the guard names");
                }
                Err(ReservationError::Misconfigured)
            }
        }
    }

    pub(crate) fn new(request: &Arc<Request>) -> Self {
        request.enter();
        Self {
            request: Arc::clone(request),
            engine: PhantomData,
        }
    }

    /// Holds one slot or several, all or nothing. The holder comes from a
    /// [`Principal`](crate::core::Principal) or a signed guest id, never from the body.
    pub fn hold<'g>(&'g mut self, slots: impl Into<Slots>, holder: &'g str) -> Holding<'g> {
        Holding::new(&self.request, slots.into(), holder)
    }

    /// Moves the end of a held hold to `by` from now, never earlier and never past `hold_at_most`.
    ///
    /// # Errors
    /// [`HoldNotFound`](ReservationError::HoldNotFound) (also for somebody else's),
    /// [`HoldExpired`](ReservationError::HoldExpired), [`HoldState`](ReservationError::HoldState).
    pub async fn extend(
        &mut self,
        hold: HoldId,
        claimant: impl Into<Claimant>,
        by: Duration,
    ) -> Result<Hold, ReservationError> {
        let change = Change::Extend {
            claimant: claimant.into(),
            by,
            at_most: self.request.config.hold_at_most,
        };
        self.request.changed(hold.into(), change).await
    }

    /// Attaches a payment for good; the hold lasts at least as long as it can be paid.
    ///
    /// # Errors
    /// [`PaymentInUse`](ReservationError::PaymentInUse),
    /// [`PaymentOutlivesHold`](ReservationError::PaymentOutlivesHold), and as [`extend`](Self::extend).
    pub async fn attach_payment(
        &mut self,
        hold: HoldId,
        payment: Payment,
    ) -> Result<Hold, ReservationError> {
        if !payment.is_valid() {
            return Err(SlotError::Payment.into());
        }
        let at_most = self.request.config.hold_at_most;
        let change = Change::Attach { payment, at_most };
        self.request.changed(hold.into(), change).await
    }

    /// Says that a slow payment is under way: the hold lasts for `processing_for` from now.
    pub fn processing(&mut self, hold: impl Into<HoldRef>) -> Processing<'_> {
        Processing::new(&self.request, hold.into())
    }

    /// Confirms a paid hold. Late or doubled payments are values, not errors: an error would be a 409 that
    /// rolls their compensation back.
    pub fn confirm(&mut self, hold: impl Into<HoldRef>) -> Confirming<'_> {
        Confirming::new(&self.request, hold.into())
    }

    /// Gives the slots back; repeated or after the end it does nothing.
    ///
    /// # Errors
    /// [`HoldNotFound`](ReservationError::HoldNotFound), [`HoldState`](ReservationError::HoldState).
    pub async fn release(
        &mut self,
        hold: HoldId,
        claimant: impl Into<Claimant>,
    ) -> Result<Hold, ReservationError> {
        let claimant = claimant.into();
        self.request
            .changed(hold.into(), Change::Release { claimant })
            .await
    }

    /// Takes a confirmed hold back; repeated it does nothing.
    ///
    /// # Errors
    /// As [`release`](Self::release).
    pub async fn cancel(
        &mut self,
        hold: HoldId,
        claimant: impl Into<Claimant>,
    ) -> Result<Hold, ReservationError> {
        let claimant = claimant.into();
        self.request
            .changed(hold.into(), Change::Cancel { claimant })
            .await
    }

    /// Finds a hold, this request's own writes included.
    ///
    /// # Errors
    /// The store's.
    pub async fn find(
        &mut self,
        hold: impl Into<HoldRef>,
    ) -> Result<Option<Hold>, ReservationError> {
        self.request.usable()?;
        let hold = hold.into();
        if !hold.may_exist() {
            return Ok(None);
        }
        let found = self.request.transaction.find(hold).await?;
        Ok(found.map(|record| Hold::of(record, HoldOutcome::Known)))
    }

    /// Lists what blocks a resource, this request's own writes included.
    ///
    /// # Errors
    /// [`SlotInvalid`](ReservationError::SlotInvalid) for more than 366 days,
    /// [`RangeTooWide`](ReservationError::RangeTooWide) for more than 10,000 spans, and the store's.
    pub async fn availability(
        &mut self,
        resource: &str,
        range: std::ops::Range<Timestamp>,
    ) -> Result<Availability, ReservationError> {
        self.request.usable()?;
        let query = AvailabilityQuery::checked(resource, &range)?;
        let spans = self.request.transaction.availability(query).await;
        let spans = spans.map_err(ReservationError::of_availability)?;
        Ok(Availability::new(range, spans))
    }

    /// Commits what was written so far, for calls to others that must not run under a lock. If the
    /// response fails afterwards, holds that this request made and that are still held are released, unless
    /// another request has met or changed them since.
    ///
    /// # Errors
    /// [`NotOwner`](ReservationError::NotOwner) inside somebody else's transaction, else what befell the commit.
    pub async fn commit(&mut self) -> Result<(), ReservationError> {
        self.request.usable()?;
        if self.request.is_run {
            return Err(ReservationError::NotOwner);
        }
        self.request.note_committing();
        let ended = self.request.transaction.commit().await?;
        self.request.note_commit(&ended);
        match ended {
            Ended::Committed => Ok(()),
            Ended::Member => Err(ReservationError::NotOwner),
            ended => Err(refusal_of(ended, &self.request)),
        }
    }

    /// Registers work for after the commit.
    pub fn after_commit(&mut self, work: impl Future<Output = ()> + Send + 'static) {
        self.request.transaction.after(AfterWork::committed(work));
    }

    /// Registers work for after a rollback, told why.
    pub fn after_rollback<F, W>(&mut self, work: F)
    where
        F: FnOnce(RollbackCause) -> W + Send + 'static,
        W: Future<Output = ()> + Send + 'static,
    {
        let work = AfterWork::rolled_back(work);
        self.request.transaction.after(work);
    }

    /// Registers work for after a rollback caused by a refused hold.
    pub fn on_conflict<F, W>(&mut self, work: F)
    where
        F: FnOnce(Conflict) -> W + Send + 'static,
        W: Future<Output = ()> + Send + 'static,
    {
        let refused = Arc::clone(self.request.conflict_cell());
        self.after_rollback(move |cause| async move {
            let conflict = *refused.lock();
            if let (RollbackCause::Conflict, Some(conflict)) = (cause, conflict) {
                work(conflict).await;
            }
        });
    }
}

#[cfg(any(feature = "sqlite", feature = "postgres"))]
impl<D: GuardEngine + crate::backend::sql::Engine> ReservationGuard<D> {
    /// Lends the connection for the handler's own SQL, in the same transaction.
    ///
    /// # Errors
    /// When the transaction cannot begin, or can only roll back.
    pub async fn transaction(
        &mut self,
    ) -> Result<crate::backend::sql::Lease<'_, D>, ReservationError> {
        self.request.usable()?;
        let transaction = super::store::request_of(&*self.request.transaction);
        let transaction = transaction.ok_or(ReservationError::Misconfigured)?;
        Ok(transaction.lease::<D>().await?)
    }
}

impl<D: GuardEngine> Drop for ReservationGuard<D> {
    fn drop(&mut self) {
        self.request.leave();
    }
}

impl<D: GuardEngine> fmt::Debug for ReservationGuard<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReservationGuard").finish_non_exhaustive()
    }
}

/// Names what became of a transaction that was to commit and did not.
pub(crate) fn refusal_of(ended: Ended, request: &Request) -> ReservationError {
    match ended {
        Ended::RolledBack(RollbackCause::Contention | RollbackCause::Aborted) => {
            ReservationError::Contention { again: true }
        }
        Ended::RolledBack(RollbackCause::Leaked) => ReservationError::TransactionLeaked,
        Ended::RolledBack(cause) => ReservationError::TransactionFailed(cause),
        Ended::Unknown => ReservationError::CommitUnknown {
            holds: request.made(),
        },
        Ended::Committed | Ended::Member => ReservationError::Internal,
    }
}

impl Request {
    pub(crate) async fn held(
        &self,
        wish: HoldWish,
        token: HoldToken,
    ) -> Result<Hold, ReservationError> {
        self.usable()?;
        let asked = Asked::of(&wish);
        let decision = self.transaction.hold(wish).await;
        let decision = decision.inspect_err(not_held)?;
        match &decision {
            HoldDecision::Created(record) => self.note_made(record.id, record.version),
            HoldDecision::Reused(record) => self.note_seen(record.id, record.version, 1),
            HoldDecision::Taken(_) | HoldDecision::Full { .. } => {}
        }
        match held(decision, token, asked) {
            Ok(hold) => {
                self.forget_conflict();
                Ok(hold)
            }
            Err(conflict) => {
                self.note_conflict(conflict);
                Err(conflict.into())
            }
        }
    }

    pub(crate) async fn changed(
        &self,
        target: HoldRef,
        change: Change,
    ) -> Result<Hold, ReservationError> {
        match self.change(target, change).await? {
            Settled::Confirmed(hold) => Ok(hold),
            _ => Err(ReservationError::Internal),
        }
    }

    pub(crate) async fn change(
        &self,
        target: HoldRef,
        change: Change,
    ) -> Result<Settled, ReservationError> {
        self.usable()?;
        if !target.may_exist() {
            return Err(ReservationError::PaymentNotFound);
        }
        let record = self.config.record;
        let decision = self.transaction.change(target, change, record).await?;
        match &decision {
            ChangeDecision::Done(record) => self.note_seen(record.id, record.version, 1),
            ChangeDecision::Same(record) => self.note_seen(record.id, record.version, 0),
            _ => {}
        }
        settled(decision)
    }
}

/// What was asked for, to be logged if it is refused.
#[derive(Debug)]
pub(crate) struct Asked(Option<(Box<str>, Timestamp, Timestamp)>);

impl Asked {
    /// Notes the first slot; nothing where nobody listens.
    pub(crate) fn of(wish: &HoldWish) -> Self {
        let slot = wish.slots.first().filter(|_| is_heard!());
        Self(slot.map(|slot| (slot.resource.clone(), slot.start, slot.end)))
    }

    /// Logs the refusal.
    fn refused(&self, state: &'static str, by_you: bool, left: u32) {
        if let Some((resource, from, to)) = &self.0 {
            info!(%resource, %from, %to, state, by_you, left, "a hold was refused");
            let _ = (resource, from, to, state, by_you, left);
        }
    }
}

/// Counts a wish that others were in the way of for too long.
pub(crate) fn not_held(problem: &StoreError) {
    if problem.kind() == StoreErrorKind::Contention {
        count!("keep_reservation_holds_total", 1, "outcome" => "contention");
    }
}

/// What a wish's decision is to the caller; counts and logs refusals, never naming another holder.
pub(crate) fn held(
    decision: HoldDecision,
    token: HoldToken,
    asked: Asked,
) -> Result<Hold, Conflict> {
    match decision {
        HoldDecision::Created(record) => {
            count!("keep_reservation_holds_total", 1, "outcome" => "created");
            let mut hold = Hold::of(record, HoldOutcome::Created);
            hold.token = Some(token);
            Ok(hold)
        }
        HoldDecision::Reused(record) => {
            count!("keep_reservation_holds_total", 1, "outcome" => "reused");
            Ok(Hold::of(record, HoldOutcome::Reused))
        }
        HoldDecision::Taken(blockers) => {
            let outcome = if blockers.booked { "booked" } else { "taken" };
            count!("keep_reservation_holds_total", 1, "outcome" => outcome);
            asked.refused(outcome, blockers.by_you, 0);
            Err(blockers.into())
        }
        HoldDecision::Full { left } => {
            count!("keep_reservation_holds_total", 1, "outcome" => "full");
            asked.refused("full", false, left);
            Err(Conflict::CapacityExceeded { left })
        }
    }
}

pub(crate) fn settled(decision: ChangeDecision) -> Result<Settled, ReservationError> {
    let known = |record: HoldRecord| Hold::of(record, HoldOutcome::Known);
    match decision {
        ChangeDecision::Done(record) | ChangeDecision::Same(record) => {
            Ok(Settled::Confirmed(known(record)))
        }
        ChangeDecision::AlreadyConfirmed(record) => Ok(Settled::AlreadyConfirmed(known(record))),
        ChangeDecision::LateConflict(record) => {
            warn!("a payment came too late and its slots are taken");
            Ok(Settled::LateConflict(known(record)))
        }
        ChangeDecision::DuplicatePayment(record) => Ok(Settled::DuplicatePayment(known(record))),
        ChangeDecision::NotFound => Err(ReservationError::HoldNotFound),
        ChangeDecision::PaymentNotFound => Err(ReservationError::PaymentNotFound),
        ChangeDecision::Expired => Err(ReservationError::HoldExpired),
        ChangeDecision::State(state) => Err(ReservationError::HoldState(state)),
        ChangeDecision::PaymentInUse => Err(ReservationError::PaymentInUse),
        ChangeDecision::PaymentOutlivesHold => Err(ReservationError::PaymentOutlivesHold),
    }
}
