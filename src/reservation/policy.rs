//! Every decision about holds, on values and `now`: no I/O, no clock.

mod admission;
mod confirm;

use smallvec::{SmallVec, smallvec};

pub(crate) use self::admission::{Admission, Row, admit, conflict, is_same_wish, over, twins};

use super::event::{EventId, EventKind, EventSet, ReservationEvent};
use super::hold::{HoldId, HoldState, Payment};
use super::store::{Change, ChangeDecision, HoldRecord, PaymentRecord, Standing};
use crate::core::{Ending, Timestamp};

/// Returns the state as it counts at `now`: at exactly `expires_at` it is over.
pub(crate) fn state_at(
    state: HoldState,
    expires_at: Option<Timestamp>,
    now: Timestamp,
) -> HoldState {
    if state.is_running() && expires_at.is_some_and(|end| end <= now) {
        HoldState::Expired
    } else {
        state
    }
}

/// Says whether a response commits: 200–399, unless the handler said otherwise.
pub(crate) fn ending(status: u16, said: Option<Ending>) -> Ending {
    match said {
        Some(ending) => ending,
        None if (200..400).contains(&status) => Ending::Commit,
        None => Ending::Rollback,
    }
}

/// What is written to a hold, and what is answered once it is.
#[derive(Clone, Debug)]
pub(crate) struct Edit {
    pub(crate) record: HoldRecord,
    /// A payment to be written, attached or in its new standing.
    pub(crate) payment: Option<PaymentRecord>,
    pub(crate) events: SmallVec<[ReservationEvent; 2]>,
    pub(crate) outcome: Outcome,
    /// The hold itself changed.
    pub(crate) moved: bool,
    /// What changed it came when the hold was over.
    pub(crate) late: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    AlreadyConfirmed,
    LateConflict,
    DuplicatePayment,
}

impl Edit {
    pub(crate) fn decision(self) -> ChangeDecision {
        match self.outcome {
            Outcome::Done => ChangeDecision::Done(self.record),
            Outcome::AlreadyConfirmed => ChangeDecision::AlreadyConfirmed(self.record),
            Outcome::LateConflict => ChangeDecision::LateConflict(self.record),
            Outcome::DuplicatePayment => ChangeDecision::DuplicatePayment(self.record),
        }
    }
}

/// What a change comes to.
#[derive(Clone, Debug)]
pub(crate) enum Verdict {
    /// Nothing is written.
    Answer(ChangeDecision),
    Write(Box<Edit>),
    /// Late: the slots are taken again if they are free, else the other edit is written.
    Revive {
        if_free: Box<Edit>,
        if_taken: Box<Edit>,
    },
}

/// What a change is decided on: the locked hold, its payments, and the payment spoken of wherever it is.
#[derive(Debug)]
pub(crate) struct Case<'c> {
    pub(crate) record: &'c HoldRecord,
    pub(crate) payments: &'c [PaymentRecord],
    /// The payment by which the hold was named, or which the change carries; known in the store or not.
    pub(crate) spoken: Option<&'c PaymentRecord>,
    /// The hold was named by this payment.
    pub(crate) named_by: Option<&'c str>,
    pub(crate) record_kinds: EventSet,
    pub(crate) now: Timestamp,
}

/// Decides a change.
pub(crate) fn decide(case: &Case<'_>, change: &Change) -> Verdict {
    let (record, now) = (case.record, case.now);
    let state = record.state_at(now);
    match change {
        Change::Extend {
            claimant,
            by,
            at_most,
        } => {
            if !claimant.holds(&record.holder, &record.token) {
                return Verdict::Answer(ChangeDecision::NotFound);
            }
            if state != HoldState::Held {
                return ended(state);
            }
            let end = later(record, now.plus(*by)).min(record.created_at.plus(*at_most));
            let end = later(record, end);
            case.moved(HoldState::Held, Some(end), EventKind::Extended)
        }
        Change::Attach { payment, at_most } => attach(case, state, payment, *at_most),
        Change::Processing { lasting, at_most } => {
            if !state.is_running() {
                return ended(state);
            }
            let end = later(record, now.plus(*lasting)).min(record.created_at.plus(*at_most));
            let end = later(record, end);
            if state == HoldState::Processing && Some(end) == record.expires_at {
                return case.same();
            }
            case.moved(HoldState::Processing, Some(end), EventKind::Processing)
        }
        Change::Confirm { paid_by, late } => confirm::confirm(case, state, paid_by.as_ref(), *late),
        Change::Release { claimant } => {
            if !claimant.holds(&record.holder, &record.token) {
                return Verdict::Answer(ChangeDecision::NotFound);
            }
            match state {
                HoldState::Held | HoldState::Processing => {
                    case.moved(HoldState::Released, None, EventKind::Released)
                }
                HoldState::Released | HoldState::Expired => case.same(),
                other => Verdict::Answer(ChangeDecision::State(other)),
            }
        }
        Change::Compensate { left_at }
            if state == HoldState::Held && record.version == *left_at =>
        {
            case.moved(HoldState::Released, None, EventKind::Released)
        }
        Change::Compensate { .. } => case.same(),
        Change::Cancel { claimant } => {
            if !claimant.holds(&record.holder, &record.token) {
                return Verdict::Answer(ChangeDecision::NotFound);
            }
            match state {
                HoldState::Confirmed => {
                    case.moved(HoldState::Cancelled, None, EventKind::Cancelled)
                }
                HoldState::Cancelled => case.same(),
                other => Verdict::Answer(ChangeDecision::State(other)),
            }
        }
    }
}

fn attach(
    case: &Case<'_>,
    state: HoldState,
    payment: &Payment,
    at_most: std::time::Duration,
) -> Verdict {
    let record = case.record;
    if let Some(known) = case.spoken {
        if known.hold != record.id {
            return Verdict::Answer(ChangeDecision::PaymentInUse);
        }
        // The event overtook the attaching, or this is a repetition.
        if state != HoldState::Held {
            return case.same();
        }
    }
    if state != HoldState::Held {
        return ended(state);
    }
    if payment
        .valid_until
        .is_some_and(|end| end > record.created_at.plus(at_most))
    {
        return Verdict::Answer(ChangeDecision::PaymentOutlivesHold);
    }
    let end = payment
        .valid_until
        .map_or(record.expires_at, |end| Some(later(record, end)));
    let known = case
        .spoken
        .is_some_and(|known| known.valid_until >= payment.valid_until);
    if known && end == record.expires_at {
        return case.same();
    }
    let mut edit = case.edit(HoldState::Held, end, 1, Outcome::Done);
    edit.payment = Some(PaymentRecord {
        payment: payment.id.clone(),
        hold: record.id,
        valid_until: payment.valid_until,
        standing: case
            .spoken
            .map_or(Standing::Attached, |known| known.standing),
    });
    case.tell(&mut edit, EventKind::PaymentAttached, Some(payment.id()));
    Verdict::Write(Box::new(edit))
}

impl Case<'_> {
    /// The hold moves to `state`, with one event.
    fn moved(&self, state: HoldState, end: Option<Timestamp>, kind: EventKind) -> Verdict {
        let mut edit = self.edit(state, end, 1, Outcome::Done);
        self.tell(&mut edit, kind, None);
        Verdict::Write(Box::new(edit))
    }

    fn same(&self) -> Verdict {
        Verdict::Answer(ChangeDecision::Same(self.record.clone()))
    }

    /// The hold stays as it is.
    fn still(&self, outcome: Outcome) -> Edit {
        Edit {
            record: self.record.clone(),
            payment: None,
            events: smallvec![],
            outcome,
            moved: false,
            late: false,
        }
    }

    fn edit(&self, state: HoldState, end: Option<Timestamp>, steps: u32, outcome: Outcome) -> Edit {
        let mut edit = self.still(outcome);
        edit.record.state = state;
        edit.record.expires_at = end;
        edit.record.changed_at = self.now;
        edit.record.version += steps;
        edit.moved = true;
        edit
    }

    fn tell(&self, edit: &mut Edit, kind: EventKind, payment: Option<&str>) {
        let id = match (kind, payment) {
            (EventKind::LateConflict | EventKind::DuplicatePayment, Some(payment)) => {
                EventId::of_payment(self.record.id, payment)
            }
            _ => EventId::of_change(self.record.id, edit.record.version),
        };
        self.tell_as(edit, kind, id, payment);
    }

    fn tell_as(&self, edit: &mut Edit, kind: EventKind, id: EventId, payment: Option<&str>) {
        if self.record_kinds.contains(kind) {
            edit.events.push(ReservationEvent {
                id,
                kind,
                hold: self.record.id,
                holder: self.record.holder.clone(),
                payment: payment.map(Box::from),
                at: self.now,
                attempts: 0,
            });
        }
    }
}

/// The event of a hold that was found to be over, or `None` if such events are not recorded.
pub(crate) fn expiry_event(
    hold: HoldId,
    holder: &str,
    version: u32,
    record: EventSet,
    now: Timestamp,
) -> Option<ReservationEvent> {
    record
        .contains(EventKind::Expired)
        .then(|| ReservationEvent {
            id: EventId::of_change(hold, version),
            kind: EventKind::Expired,
            hold,
            holder: holder.into(),
            payment: None,
            at: now,
            attempts: 0,
        })
}

/// The event of a hold that was made, or `None` if such events are not recorded.
pub(crate) fn creation_event(record: &HoldRecord, kinds: EventSet) -> Option<ReservationEvent> {
    kinds
        .contains(EventKind::Created)
        .then(|| ReservationEvent {
            id: EventId::of_change(record.id, record.version),
            kind: EventKind::Created,
            hold: record.id,
            holder: record.holder.clone(),
            payment: None,
            at: record.created_at,
            attempts: 0,
        })
}

/// The end never moves forward in time: max(old, new).
fn later(record: &HoldRecord, end: Timestamp) -> Timestamp {
    record.expires_at.map_or(end, |old| old.max(end))
}

/// Not possible any more: over, or in another state.
const fn ended(state: HoldState) -> Verdict {
    Verdict::Answer(match state {
        HoldState::Expired => ChangeDecision::Expired,
        other => ChangeDecision::State(other),
    })
}
