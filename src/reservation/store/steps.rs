//! The steps that every store takes, written once: what differs is how rows are locked, read and written.

use smallvec::SmallVec;

use super::calendar::{Calendar, InTheWay, Insertion, Lock, Outbox, Over, PURGE_ROWS, Seen};
use super::{
    Change, ChangeDecision, Delivery, HoldDecision, HoldRecord, HoldWish, KEEP_DELIVERED,
    SweepLimits, SweptBatch,
};
use crate::core::Timestamp;
use crate::core::telemetry::count;
use crate::reservation::event::{EventId, EventSet, ReservationEvent};
use crate::reservation::hold::{HoldId, HoldRef, HoldState, Payment};
use crate::reservation::policy::{self, Admission, Case, Edit, Row, Verdict};
use crate::reservation::slot::Slot;

/// How often a wish is tried when what was in the way vanishes while we look.
const ROUNDS: usize = 3;
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
        let mut over = None;
        if ask {
            match look(calendar, wish, None).await? {
                Found::Free(found) => over = found,
                Found::Refused(refused) => return Ok(refused),
                Found::Twin(twin) => match adopt(calendar, twin, wish).await? {
                    Some(twin) => return Ok(HoldDecision::Reused(twin)),
                    None => continue,
                },
            }
        }
        ask = true;
        let inserted = match over {
            None => calendar.insert(wish).await?,
            Some(over) => calendar.take_over(wish, &over).await?,
        };
        match inserted {
            Insertion::Made(record) => {
                if let Some(event) = policy::creation_event(&record, wish.record) {
                    calendar.write_events(&[event]).await?;
                }
                return Ok(HoldDecision::Created(record));
            }
            // What was seen refuses, but takes nothing over: somebody may have done so since, and a round be lost.
            Insertion::Refused(Some(seen)) => match look(calendar, wish, Some(seen)).await? {
                Found::Free(_) => {}
                Found::Refused(refused) => return Ok(refused),
                Found::Twin(twin) => {
                    if let Some(twin) = adopt(calendar, twin, wish).await? {
                        return Ok(HoldDecision::Reused(twin));
                    }
                }
            },
            Insertion::Refused(None) => {}
        }
    }
    Err(C::crowded())
}

/// What a look at the slots of a wish comes to.
enum Found {
    /// Nobody is in the way; at most holds that are over.
    Free(Option<InTheWay>),
    /// The running hold of the same wish.
    Twin(HoldRecord),
    /// Others are in the way.
    Refused(HoldDecision),
}

/// Looks at what overlaps, unless it has just been seen.
async fn look<C: Calendar>(
    calendar: &mut C,
    wish: &HoldWish,
    seen: Option<Seen>,
) -> Result<Found, C::Error> {
    let (rows, now) = match seen {
        Some(seen) => seen,
        None => {
            let asked = calendar.overlaps(&wish.slots, &wish.holder, &wish.key);
            asked.await?
        }
    };
    if let Some(twin) = twin(calendar, wish, &rows, now).await? {
        return Ok(Found::Twin(twin));
    }
    Ok(match policy::admit(&wish.slots, &rows, now) {
        Admission::Free(holds) if holds.is_empty() => Found::Free(None),
        Admission::Free(holds) => Found::Free(Some(InTheWay { holds, now })),
        Admission::Taken(blockers) => Found::Refused(HoldDecision::Taken(blockers)),
        Admission::Full { left } => Found::Refused(HoldDecision::Full { left }),
    })
}

/// Takes part in the hold of the same wish, as a version of its own: the request that made it releases it no more, should it
/// fail. `None` where the hold has ended since it was seen.
async fn adopt<C: Calendar>(
    calendar: &mut C,
    twin: HoldRecord,
    wish: &HoldWish,
) -> Result<Option<HoldRecord>, C::Error> {
    let Some(mut record) = calendar.load(twin.id, Lock::Yes).await? else {
        return Ok(None);
    };
    if !policy::is_same_wish(&record, wish, record.read_at) {
        return Ok(None);
    }
    record.version += 1;
    calendar.write_hold(&record).await?;
    Ok(Some(record))
}

/// Writes those of `holds` that are over as expired, with their events; `false` where one of them is not, because
/// somebody has made it last since it was seen.
pub(super) async fn expire<C: Calendar>(
    calendar: &mut C,
    holds: &[HoldId],
    record: EventSet,
    now: Timestamp,
) -> Result<bool, C::Error> {
    if holds.is_empty() {
        return Ok(true);
    }
    let over = calendar.expire(holds, now).await?;
    tell_over(calendar, &over, record, now).await?;
    Ok(over.len() == holds.len())
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

/// Says why a wish cannot be granted, without writing; `None` if it may be, or if something would have to be written: holds
/// that are over, or that the hold of the same wish has one more taker.
#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub(super) async fn refusal<C: Calendar>(
    calendar: &mut C,
    wish: &HoldWish,
    seen: Option<Seen>,
) -> Result<Option<HoldDecision>, C::Error> {
    Ok(match look(calendar, wish, seen).await? {
        Found::Refused(refused) => Some(refused),
        Found::Free(_) | Found::Twin(_) => None,
    })
}

/// Finds the running hold of the same wish.
async fn twin<C: Calendar>(
    calendar: &mut C,
    wish: &HoldWish,
    rows: &[Row],
    now: Timestamp,
) -> Result<Option<HoldRecord>, C::Error> {
    for twin in policy::twins(rows, now) {
        let record = calendar.load(twin, Lock::No).await?;
        if let Some(record) = record.filter(|record| policy::is_same_wish(record, wish, now)) {
            return Ok(Some(record));
        }
    }
    Ok(None)
}

/// Changes a hold: locked, read, decided by the policy, written.
pub(super) async fn change<C: Calendar>(
    calendar: &mut C,
    target: &HoldRef,
    change: &Change,
    kinds: EventSet,
) -> Result<ChangeDecision, C::Error> {
    if let Change::Confirm { paid_by, .. } = change {
        let paid_by = paid_by.as_ref();
        if let Some(record) = calendar.confirm_in_time(target, paid_by, kinds).await? {
            note_moved(record.state, false);
            return Ok(ChangeDecision::Done(record));
        }
    }
    let named = match target {
        HoldRef::Payment(payment) => Some(&**payment),
        HoldRef::Id(_) => None,
    };
    let spoken = change.carried().map(Payment::id).or(named);
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
    let Some(record) = load_to_change(calendar, id, change).await? else {
        return Ok(ChangeDecision::NotFound);
    };
    let mut payments = match spoken {
        Some(spoken) => calendar.payments(id, spoken).await?,
        None => Vec::new(),
    };
    let known = payments
        .iter()
        .find(|known| Some(&*known.payment) == spoken)
        .cloned();
    payments.retain(|known| known.hold == id);
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

/// Locks a hold. A counted one that may be over by then takes its lanes before its rows, and its rows together
/// with those of others that are over in its lanes, as a wish does that finds them in the way: in any other
/// order they would wait for each other.
async fn load_to_change<C: Calendar>(
    calendar: &mut C,
    id: HoldId,
    change: &Change,
) -> Result<Option<HoldRecord>, C::Error> {
    if C::LOCKS_ROWS && matches!(change, Change::Confirm { .. }) {
        let Some(seen) = calendar.load(id, Lock::No).await? else {
            return Ok(None);
        };
        if seen.slots.iter().any(Slot::is_counted) {
            calendar.lock_lanes(&seen.slots).await?;
            let (rows, now) = calendar
                .overlaps(&seen.slots, &seen.holder, &seen.key)
                .await?;
            let mut holds = policy::over(&rows, now);
            holds.push(id);
            calendar.lock_holds(&holds).await?;
        }
    }
    calendar.load(id, Lock::Yes).await
}

async fn write<C: Calendar>(calendar: &mut C, edit: Edit) -> Result<ChangeDecision, C::Error> {
    if calendar.write(&edit).await? {
        if edit.moved {
            note_moved(edit.record.state, edit.late);
        }
        Ok(edit.decision())
    } else {
        Ok(ChangeDecision::PaymentInUse)
    }
}

/// Counts a hold that was changed, by the state it has come to.
fn note_moved(to: HoldState, late: bool) {
    let late = if late { "true" } else { "false" };
    count!("keep_reservation_transitions_total", 1, "to" => to.as_str(), "late" => late);
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
    let decision = take_again(calendar, record, kinds, if_free, if_taken).await?;
    if let ChangeDecision::PaymentInUse = decision {
        // No edit was written, so nobody has told of its end.
        calendar.write_hold(record).await?;
    }
    Ok(decision)
}

async fn take_again<C: Calendar>(
    calendar: &mut C,
    record: &HoldRecord,
    kinds: EventSet,
    if_free: Edit,
    if_taken: Edit,
) -> Result<ChangeDecision, C::Error> {
    for _ in 0..ROUNDS {
        let (rows, now) = calendar
            .overlaps(&record.slots, &record.holder, &record.key)
            .await?;
        match policy::admit(&record.slots, &rows, now) {
            Admission::Free(over) => {
                if !expire(calendar, &over, kinds, now).await? {
                    continue;
                }
            }
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
            note_moved(if_free.record.state, if_free.late);
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
pub(super) async fn settle<C: Outbox>(
    calendar: &mut C,
    outcomes: &[(EventId, Delivery)],
) -> Result<(), C::Error> {
    for (event, delivery) in outcomes {
        calendar.settle_event(event, *delivery).await?;
    }
    Ok(())
}

/// Ends due holds and removes what is long closed.
pub(super) async fn sweep<C: Outbox>(
    calendar: &mut C,
    limits: SweepLimits,
) -> Result<SweptBatch, C::Error> {
    let lag = calendar.lag().await?;
    let (over, now) = calendar.expire_due(limits.batch).await?;
    tell_over(calendar, &over, limits.record, now).await?;
    let holds = calendar.purge_holds(now.minus(limits.keep_closed)).await?;
    let events = calendar.purge_events(now.minus(KEEP_DELIVERED)).await?;
    let (expired, purged) = (over.len() as u64, holds + events);
    // Counting a backlog takes as long as a batch: once, by the last of a sweep.
    let most = u64::try_from(PURGE_ROWS).unwrap_or(u64::MAX);
    let is_last = expired < u64::from(limits.batch) && holds < most && events < most;
    let pending = match is_last {
        true => Some(calendar.pending().await?),
        false => None,
    };
    Ok(SweptBatch {
        expired,
        purged,
        lag,
        pending,
    })
}
