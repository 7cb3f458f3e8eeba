//! The steps that every store takes, written once: what differs is how rows are locked, read and written.

use std::time::Duration;

use smallvec::SmallVec;

use super::{
    AvailabilityQuery, Busy, Change, ChangeDecision, Delivery, HoldDecision, HoldRecord, HoldWish,
    KEEP_DELIVERED, PaymentRecord, SweepLimits, SweptBatch,
};
use crate::core::Timestamp;
use crate::reservation::event::{EventId, EventSet, ReservationEvent};
use crate::reservation::hold::{HoldId, HoldRef, Payment};
use crate::reservation::policy::{self, Admission, Case, Edit, Row, Verdict};
use crate::reservation::slot::Slot;

/// How often a wish is tried when what was in the way vanishes while we look.
const ROUNDS: usize = 3;
/// Rows that one sweep removes.
pub(super) const PURGE_ROWS: i64 = 1_000;

/// A hold that was just written as expired.
#[derive(Debug)]
pub(super) struct Over {
    pub(super) hold: HoldId,
    pub(super) holder: Box<str>,
    pub(super) version: u32,
}

/// What a step asks of an engine, inside one transaction. A refused insert leaves no row of itself.
pub(super) trait Calendar: Send {
    type Error: Send;

    /// The engine refuses overlaps by a constraint, so that an exclusive wish is inserted before asking.
    const INSERT_FIRST: bool;

    /// Says that others were faster too often.
    fn crowded() -> Self::Error;

    fn lock_lanes(
        &mut self,
        slots: &[Slot],
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Locks what a change by or with a payment will touch.
    fn lock_payment(
        &mut self,
        payment: &str,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Reads the rows in blocking states that overlap, and the clock.
    fn overlaps(
        &mut self,
        slots: &[Slot],
        holder: &str,
        key: &str,
    ) -> impl Future<Output = Result<(Vec<Row>, Timestamp), Self::Error>> + Send;

    fn load(
        &mut self,
        hold: HoldId,
        lock: Lock,
    ) -> impl Future<Output = Result<Option<HoldRecord>, Self::Error>> + Send;

    fn payment(
        &mut self,
        payment: &str,
    ) -> impl Future<Output = Result<Option<PaymentRecord>, Self::Error>> + Send;

    fn payments(
        &mut self,
        hold: HoldId,
    ) -> impl Future<Output = Result<Vec<PaymentRecord>, Self::Error>> + Send;

    /// Inserts the rows of a new hold, all or none.
    fn insert(
        &mut self,
        wish: &HoldWish,
    ) -> impl Future<Output = Result<Option<HoldRecord>, Self::Error>> + Send;

    /// Puts fresh rows of `record` in the place of its old ones, which block nothing; all or none.
    fn replace(
        &mut self,
        record: &HoldRecord,
    ) -> impl Future<Output = Result<bool, Self::Error>> + Send;

    /// Writes those of `holds` that are over at `now` as expired, and says which.
    fn expire(
        &mut self,
        holds: &[HoldId],
        now: Timestamp,
    ) -> impl Future<Output = Result<Vec<Over>, Self::Error>> + Send;

    /// Writes up to `batch` holds that are over as expired; those that another sweeper has are left out.
    fn expire_due(
        &mut self,
        batch: u32,
    ) -> impl Future<Output = Result<(Vec<Over>, Timestamp), Self::Error>> + Send;

    /// Writes a payment; `false` if it belongs to another hold.
    fn write_payment(
        &mut self,
        payment: &PaymentRecord,
    ) -> impl Future<Output = Result<bool, Self::Error>> + Send;

    /// Writes state, end and version of a locked hold.
    fn write_hold(
        &mut self,
        record: &HoldRecord,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Writes events; one that is already there stays as it is.
    fn write_events(
        &mut self,
        events: &[ReservationEvent],
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;

    fn purge_holds(
        &mut self,
        closed_before: Timestamp,
    ) -> impl Future<Output = Result<u64, Self::Error>> + Send;

    fn purge_events(
        &mut self,
        delivered_before: Timestamp,
    ) -> impl Future<Output = Result<u64, Self::Error>> + Send;

    fn busy(
        &mut self,
        query: &AvailabilityQuery,
    ) -> impl Future<Output = Result<Vec<Busy>, Self::Error>> + Send;

    fn take_events(
        &mut self,
        limit: u32,
        lease: Duration,
    ) -> impl Future<Output = Result<Vec<ReservationEvent>, Self::Error>> + Send;

    fn settle_event(
        &mut self,
        event: &EventId,
        delivery: Delivery,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;
}

/// Whether a hold is read to be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lock {
    No,
    Yes,
}

/// Holds, or says who is in the way. Two that want the same meet in the constraint or under the lane's
/// lock: a check that came before the insert could be overtaken.
pub(super) async fn hold<C: Calendar>(
    calendar: &mut C,
    wish: &HoldWish,
) -> Result<HoldDecision, C::Error> {
    let counted = wish.slots.iter().any(Slot::is_counted);
    let mut ask = counted || !C::INSERT_FIRST;
    if ask {
        calendar.lock_lanes(&wish.slots).await?;
    }
    for _ in 0..ROUNDS {
        if ask && let Some(refused) = clear(calendar, wish).await? {
            return Ok(refused);
        }
        ask = true;
        if let Some(record) = calendar.insert(wish).await? {
            if let Some(event) = policy::creation_event(&record, wish.record) {
                calendar.write_events(&[event]).await?;
            }
            return Ok(HoldDecision::Created(record));
        }
    }
    Err(C::crowded())
}

/// Looks at what overlaps: an answer, or `None` when the way is free, holds that are over written so.
async fn clear<C: Calendar>(
    calendar: &mut C,
    wish: &HoldWish,
) -> Result<Option<HoldDecision>, C::Error> {
    let (rows, now) = calendar
        .overlaps(&wish.slots, &wish.holder, &wish.key)
        .await?;
    for twin in policy::twins(&rows, now) {
        let record = calendar.load(twin, Lock::No).await?;
        if let Some(record) = record.filter(|record| policy::is_same_wish(record, wish, now)) {
            return Ok(Some(HoldDecision::Reused(record)));
        }
    }
    match policy::admit(&wish.slots, &rows, now) {
        Admission::Free(over) => {
            expire(calendar, &over, wish.record, now).await?;
            Ok(None)
        }
        Admission::Taken(blockers) => Ok(Some(HoldDecision::Taken(blockers))),
        Admission::Full { left } => Ok(Some(HoldDecision::Full { left })),
    }
}

async fn expire<C: Calendar>(
    calendar: &mut C,
    holds: &[HoldId],
    record: EventSet,
    now: Timestamp,
) -> Result<(), C::Error> {
    if holds.is_empty() {
        return Ok(());
    }
    let over = calendar.expire(holds, now).await?;
    tell_over(calendar, &over, record, now).await
}

async fn tell_over<C: Calendar>(
    calendar: &mut C,
    over: &[Over],
    record: EventSet,
    now: Timestamp,
) -> Result<(), C::Error> {
    let events: SmallVec<[ReservationEvent; 4]> = over
        .iter()
        .filter_map(|gone| policy::expiry_event(gone.hold, &gone.holder, gone.version, record, now))
        .collect();
    if events.is_empty() {
        return Ok(());
    }
    calendar.write_events(&events).await
}

/// Changes a hold: locked, read, decided by the policy, written.
pub(super) async fn change<C: Calendar>(
    calendar: &mut C,
    target: &HoldRef,
    change: &Change,
    kinds: EventSet,
) -> Result<ChangeDecision, C::Error> {
    let carried = match change {
        Change::Attach { payment, .. } => Some(payment),
        Change::Confirm { paid_by, .. } => paid_by.as_ref(),
        _ => None,
    };
    let named = match target {
        HoldRef::Payment(payment) => Some(&**payment),
        HoldRef::Id(_) => None,
    };
    let spoken = carried.map(Payment::id).or(named);
    if let Some(payment) = spoken {
        calendar.lock_payment(payment).await?;
    }
    let id = match target {
        HoldRef::Id(id) => *id,
        HoldRef::Payment(payment) => match calendar.payment(payment).await? {
            Some(known) => known.hold,
            None => return Ok(ChangeDecision::PaymentNotFound),
        },
    };
    let Some(record) = calendar.load(id, Lock::Yes).await? else {
        return Ok(ChangeDecision::NotFound);
    };
    let payments = match spoken {
        Some(_) => calendar.payments(id).await?,
        None => Vec::new(),
    };
    let mut known = payments
        .iter()
        .find(|known| Some(&*known.payment) == spoken)
        .cloned();
    if let (None, Some(payment)) = (&known, carried) {
        known = calendar.payment(payment.id()).await?;
    }
    let case = Case {
        record: &record,
        payments: &payments,
        spoken: known.as_ref(),
        named_by: named,
        record_kinds: kinds,
        now: record.read_at,
    };
    match policy::decide(&case, change) {
        Verdict::Answer(decision) => Ok(decision),
        Verdict::Write(edit) => write(calendar, *edit).await,
        Verdict::Revive { if_free, if_taken } => {
            revive(calendar, &record, kinds, *if_free, *if_taken).await
        }
    }
}

/// The payment first: if it has just been given to another hold, nothing of ours has been written.
async fn write<C: Calendar>(calendar: &mut C, edit: Edit) -> Result<ChangeDecision, C::Error> {
    if let Some(payment) = &edit.payment
        && !calendar.write_payment(payment).await?
    {
        return Ok(ChangeDecision::PaymentInUse);
    }
    if edit.moved {
        calendar.write_hold(&edit.record).await?;
    }
    if !edit.events.is_empty() {
        calendar.write_events(&edit.events).await?;
    }
    Ok(edit.decision())
}

/// Takes the slots of a hold that is over again: the only way into a blocking state is an insert that
/// may be refused.
async fn revive<C: Calendar>(
    calendar: &mut C,
    record: &HoldRecord,
    kinds: EventSet,
    if_free: Edit,
    if_taken: Edit,
) -> Result<ChangeDecision, C::Error> {
    calendar.lock_lanes(&record.slots).await?;
    // Its own rows leave the blocking states first; the event of that is in the edits.
    let mut resting = record.clone();
    resting.state = record.state_at(record.read_at);
    calendar.write_hold(&resting).await?;
    for _ in 0..ROUNDS {
        let (rows, now) = calendar
            .overlaps(&record.slots, &record.holder, &record.key)
            .await?;
        match policy::admit(&record.slots, &rows, now) {
            Admission::Free(over) => expire(calendar, &over, kinds, now).await?,
            _ => return write(calendar, if_taken).await,
        }
        if let Some(payment) = &if_free.payment
            && !calendar.write_payment(payment).await?
        {
            return Ok(ChangeDecision::PaymentInUse);
        }
        if calendar.replace(&if_free.record).await? {
            if !if_free.events.is_empty() {
                calendar.write_events(&if_free.events).await?;
            }
            return Ok(if_free.decision());
        }
    }
    Err(C::crowded())
}

/// Finds a hold by id or payment.
pub(super) async fn find<C: Calendar>(
    calendar: &mut C,
    by: &HoldRef,
) -> Result<Option<HoldRecord>, C::Error> {
    let id = match by {
        HoldRef::Id(id) => *id,
        HoldRef::Payment(payment) => match calendar.payment(payment).await? {
            Some(known) => known.hold,
            None => return Ok(None),
        },
    };
    calendar.load(id, Lock::No).await
}

/// Writes how deliveries went.
pub(super) async fn settle<C: Calendar>(
    calendar: &mut C,
    outcomes: &[(EventId, Delivery)],
) -> Result<(), C::Error> {
    for (event, delivery) in outcomes {
        calendar.settle_event(event, *delivery).await?;
    }
    Ok(())
}

/// Ends due holds and removes what is long closed.
pub(super) async fn sweep<C: Calendar>(
    calendar: &mut C,
    limits: SweepLimits,
) -> Result<SweptBatch, C::Error> {
    let (over, now) = calendar.expire_due(limits.batch).await?;
    tell_over(calendar, &over, limits.record, now).await?;
    let holds = calendar.purge_holds(now.minus(limits.keep_closed)).await?;
    let events = calendar.purge_events(now.minus(KEEP_DELIVERED)).await?;
    Ok(SweptBatch {
        expired: over.len() as u64,
        purged: holds + events,
    })
}
