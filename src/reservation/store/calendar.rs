//! What the steps ask of an engine: how rows are locked, read and written inside one transaction.

use std::time::Duration;

use super::{AvailabilityQuery, Busy, Delivery, HoldRecord, HoldWish, PaymentRecord, steps};
use crate::core::Timestamp;
use crate::reservation::event::{EventId, EventSet, ReservationEvent};
use crate::reservation::hold::{HoldId, HoldRef, Payment};
use crate::reservation::policy::{Edit, Row};
use crate::reservation::slot::Slot;

/// Rows that one sweep removes.
pub(super) const PURGE_ROWS: i64 = 1_000;

/// A hold that was just written as expired.
#[derive(Debug)]
pub(super) struct Over {
    pub(super) hold: HoldId,
    pub(super) holder: Box<str>,
    pub(super) version: u32,
}

/// Holds that were over when they were read, and are in the way of a wish.
#[derive(Debug)]
pub(super) struct InTheWay {
    pub(super) holds: Vec<HoldId>,
    pub(super) now: Timestamp,
}

/// The rows in blocking states that overlap a wish, and the clock.
pub(super) type Seen = (Vec<Row>, Timestamp);

/// What became of the rows of a new hold.
#[derive(Debug)]
pub(super) enum Insertion {
    Made(HoldRecord),
    /// Something is in the way; and what, if the same statement saw it.
    Refused(Option<Seen>),
}

/// What a step asks of an engine, inside one transaction. A refused insert leaves no row of itself.
pub(super) trait Calendar: Send {
    type Error: Send;

    /// The engine refuses overlaps by a constraint, so that an exclusive wish is inserted before asking.
    const INSERT_FIRST: bool;

    /// Rows are locked apart from lanes. Everybody takes lanes first, so a change that may have to take
    /// its slots again looks before it locks.
    const LOCKS_ROWS: bool;

    /// Says that others were faster too often.
    fn crowded() -> Self::Error;

    fn lock_lanes(
        &mut self,
        slots: &[Slot],
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Locks the rows of holds, all in the order in which everybody does; where rows are locked at all.
    fn lock_holds(
        &mut self,
        holds: &[HoldId],
    ) -> impl Future<Output = Result<(), Self::Error>> + Send {
        let _ = holds;
        std::future::ready(Ok(()))
    }

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
    ) -> impl Future<Output = Result<Seen, Self::Error>> + Send;

    fn load(
        &mut self,
        hold: HoldId,
        lock: Lock,
    ) -> impl Future<Output = Result<Option<HoldRecord>, Self::Error>> + Send;

    fn payment(
        &mut self,
        payment: &str,
    ) -> impl Future<Output = Result<Option<PaymentRecord>, Self::Error>> + Send;

    /// Reads the payments of a hold, and the one spoken of, wherever it is.
    fn payments(
        &mut self,
        hold: HoldId,
        spoken: &str,
    ) -> impl Future<Output = Result<Vec<PaymentRecord>, Self::Error>> + Send;

    /// Confirms in one statement, where the engine can, what is confirmed in time; `None` leaves
    /// everything as it was, and the policy decides.
    fn confirm_in_time(
        &mut self,
        target: &HoldRef,
        paid_by: Option<&Payment>,
        kinds: EventSet,
    ) -> impl Future<Output = Result<Option<HoldRecord>, Self::Error>> + Send {
        let _ = (target, paid_by, kinds);
        std::future::ready(Ok(None))
    }

    /// Writes payment, hold and events of an edit; `false`, and nothing, if the payment belongs to
    /// another hold.
    fn write(&mut self, edit: &Edit) -> impl Future<Output = Result<bool, Self::Error>> + Send {
        async move {
            // The payment first: if it has just been given to another hold, nothing of ours was written.
            if let Some(payment) = &edit.payment
                && !self.write_payment(payment).await?
            {
                return Ok(false);
            }
            if edit.moved {
                self.write_hold(&edit.record).await?;
            }
            if !edit.events.is_empty() {
                self.write_events(&edit.events).await?;
            }
            Ok(true)
        }
    }

    /// Inserts the rows of a new hold, all or none.
    fn insert(
        &mut self,
        wish: &HoldWish,
    ) -> impl Future<Output = Result<Insertion, Self::Error>> + Send;

    /// Writes what is in the way and over as expired, and inserts the rows of a new hold, all or none; none where
    /// somebody has made one of those last since it was seen.
    fn take_over(
        &mut self,
        wish: &HoldWish,
        over: &InTheWay,
    ) -> impl Future<Output = Result<Insertion, Self::Error>> + Send
    where
        Self: Sized,
    {
        async move {
            match steps::expire(self, &over.holds, wish.record, over.now).await? {
                true => self.insert(wish).await,
                false => Ok(Insertion::Refused(None)),
            }
        }
    }

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

    fn busy(
        &mut self,
        query: &AvailabilityQuery,
    ) -> impl Future<Output = Result<Vec<Busy>, Self::Error>> + Send;
}

/// Events waiting beyond that are not counted.
pub(super) const MOST_COUNTED: i64 = 100_000;

/// For how long the first of the due holds has been over; `oldest` is the first end of a running hold, over or not.
pub(super) fn lag_of(now: Timestamp, oldest: Option<Timestamp>) -> Duration {
    let over = oldest.map_or(0, |oldest| {
        now.as_millis().saturating_sub(oldest.as_millis())
    });
    Duration::from_millis(over)
}

/// What was recorded and has to be told.
pub(super) trait Outbox: Calendar {
    fn purge_events(
        &mut self,
        delivered_before: Timestamp,
    ) -> impl Future<Output = Result<u64, Self::Error>> + Send;

    fn take_events(
        &mut self,
        limit: u32,
        lease: Duration,
    ) -> impl Future<Output = Result<Vec<ReservationEvent>, Self::Error>> + Send;

    /// Reads how far the store is behind ([`lag_of`]).
    fn lag(&mut self) -> impl Future<Output = Result<Duration, Self::Error>> + Send;

    /// Counts the events that are neither delivered nor parked, up to [`MOST_COUNTED`].
    fn pending(&mut self) -> impl Future<Output = Result<u64, Self::Error>> + Send;

    /// Writes how a delivery went. What was delivered or parked meanwhile stays so, unless it is wanted again.
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
