//! What a confirmation comes to: in time, again, or too late.

use super::{Case, Edit, Outcome, Verdict};
use crate::core::Timestamp;
use crate::reservation::event::{EventId, EventKind};
use crate::reservation::hold::{HoldId, HoldState, Payment};
use crate::reservation::store::{ChangeDecision, LateConfirm, PaymentRecord, Standing};

/// Decides a confirmation in `state`, the hold's at the case's time.
pub(super) fn confirm(
    case: &Case<'_>,
    state: HoldState,
    paid_by: Option<&Payment>,
    late: LateConfirm,
) -> Verdict {
    if case
        .spoken
        .is_some_and(|known| known.hold != case.record.id)
    {
        return Verdict::Answer(ChangeDecision::PaymentInUse);
    }
    let paying = Paying::of(case, paid_by);
    match state {
        HoldState::Held | HoldState::Processing => {
            let mut edit = case.edit(HoldState::Confirmed, None, 1, Outcome::Done);
            edit.payment = paying.with(Standing::Paid);
            case.tell(&mut edit, EventKind::Confirmed, paying.name);
            Verdict::Write(Box::new(edit))
        }
        HoldState::Confirmed | HoldState::Cancelled => confirm_again(case, state, &paying),
        HoldState::LateConflict => {
            let edit = case.still(Outcome::LateConflict);
            if paying.name.is_none() {
                return Verdict::Write(Box::new(edit));
            }
            let (outcome, kind) = (Outcome::LateConflict, EventKind::LateConflict);
            give_back(case, edit, outcome, kind, &paying, Standing::Late)
        }
        HoldState::Expired | HoldState::Released => confirm_late(case, &paying, late),
    }
}

/// The payment that a confirmation speaks of, if it speaks of one.
struct Paying<'c> {
    name: Option<&'c str>,
    hold: HoldId,
    valid_until: Option<Timestamp>,
    /// Where it stood before.
    standing: Option<Standing>,
}

impl<'c> Paying<'c> {
    fn of(case: &Case<'c>, paid_by: Option<&'c Payment>) -> Self {
        let known = case.spoken.and_then(|known| known.valid_until);
        Self {
            name: paid_by.map(Payment::id).or(case.named_by),
            hold: case.record.id,
            valid_until: known.or_else(|| paid_by.and_then(|payment| payment.valid_until)),
            standing: case.spoken.map(|known| known.standing),
        }
    }

    fn with(&self, standing: Standing) -> Option<PaymentRecord> {
        self.name.map(|name| PaymentRecord {
            payment: name.into(),
            hold: self.hold,
            valid_until: self.valid_until,
            standing,
        })
    }
}

/// The first payment to reach a hold is its payment; any other is given back.
fn confirm_again(case: &Case<'_>, state: HoldState, paying: &Paying<'_>) -> Verdict {
    let mut paid = case.payments.iter().map(|known| known.standing);
    let mut edit = case.still(Outcome::AlreadyConfirmed);
    if paying.name.is_none() || paying.standing == Some(Standing::Paid) {
        return Verdict::Write(Box::new(edit));
    }
    if state == HoldState::Cancelled {
        // Nobody has anything for it, whether or not another payment was first.
        let (outcome, kind) = (Outcome::LateConflict, EventKind::LateConflict);
        return give_back(case, edit, outcome, kind, paying, Standing::Late);
    }
    if !paid.any(|standing| standing == Standing::Paid) {
        edit.payment = paying.with(Standing::Paid);
        return Verdict::Write(Box::new(edit));
    }
    let (outcome, kind) = (Outcome::DuplicatePayment, EventKind::DuplicatePayment);
    give_back(case, edit, outcome, kind, paying, Standing::Duplicate)
}

fn confirm_late(case: &Case<'_>, paying: &Paying<'_>, late: LateConfirm) -> Verdict {
    let record = case.record;
    // An expiry that nobody had written is written with it, as a version of its own.
    let unnoticed = record.state.is_running();
    let steps = if unnoticed { 2 } else { 1 };
    let both = |state, outcome, kind, standing| {
        let mut edit = case.edit(state, None, steps, outcome);
        edit.late = true;
        if unnoticed {
            let id = EventId::of_change(record.id, record.version + 1);
            case.tell_as(&mut edit, EventKind::Expired, id, None);
        }
        edit.payment = paying.with(standing);
        case.tell(&mut edit, kind, paying.name);
        Box::new(edit)
    };
    let if_taken = both(
        HoldState::LateConflict,
        Outcome::LateConflict,
        EventKind::LateConflict,
        Standing::Late,
    );
    if late == LateConfirm::Reject {
        return Verdict::Write(if_taken);
    }
    let if_free = both(
        HoldState::Confirmed,
        Outcome::Done,
        EventKind::Confirmed,
        Standing::Paid,
    );
    Verdict::Revive { if_free, if_taken }
}

/// A payment that has to be given back: told once, however often it comes.
fn give_back(
    case: &Case<'_>,
    mut edit: Edit,
    outcome: Outcome,
    kind: EventKind,
    paying: &Paying<'_>,
    standing: Standing,
) -> Verdict {
    edit.outcome = outcome;
    if matches!(paying.standing, None | Some(Standing::Attached)) {
        edit.payment = paying.with(standing);
        case.tell(&mut edit, kind, paying.name);
    }
    Verdict::Write(Box::new(edit))
}
