//! What every store promises about payments, in time and too late.
#![allow(clippy::panic, clippy::unwrap_used)]

use super::{Desk, MINUTE, code};
use crate::reservation::{
    EventKind, Hold, HoldId, HoldRef, HoldState, Payment, ReservationError, ReservationGuard,
    Reservations, Settled,
};

pub(super) async fn payments(desk: &Desk<'_>) {
    a_payment_belongs_to_one_hold_and_makes_it_last(desk).await;
    a_webhook_links_the_payment_to_its_hold(desk).await;
    a_second_payment_is_told_once(desk).await;
    a_late_payment_of_free_slots_is_honoured(desk).await;
    a_late_payment_of_taken_slots_is_given_back(desk).await;
    a_late_payment_can_be_refused_always(desk).await;
    a_payment_of_a_released_or_cancelled_hold_is_settled(desk).await;
    the_first_payment_of_a_cancelled_hold_is_given_back(desk).await;
}

async fn attach(desk: &Desk<'_>, hold: HoldId, payment: Payment) -> Result<Hold, ReservationError> {
    let payment = &payment;
    desk.own
        .run(|mut guard: ReservationGuard| async move {
            guard.attach_payment(hold, payment.clone()).await
        })
        .await
}

async fn confirm(own: &Reservations, by: HoldRef, paid_by: Option<&str>) -> &'static str {
    let by = &by;
    let done = own
        .run(|mut guard: ReservationGuard| async move {
            let confirming = guard.confirm(by.clone());
            match paid_by {
                Some(payment) => confirming.paid_by(Payment::new(payment)).await,
                None => confirming.await,
            }
        })
        .await;
    match done {
        Ok(Settled::Confirmed(_)) => "confirmed",
        Ok(Settled::AlreadyConfirmed(_)) => "already",
        Ok(Settled::LateConflict(_)) => "late",
        Ok(Settled::DuplicatePayment(_)) => "duplicate",
        Err(error) => error.code(),
    }
}

async fn a_payment_belongs_to_one_hold_and_makes_it_last(desk: &Desk<'_>) {
    let hold = desk.held(desk.slot("pay", 0, 10), "ann").await.id();
    let other = desk.held(desk.slot("pay", 10, 20), "bob").await.id();
    let end = desk.now().plus(60 * MINUTE);
    let payment = Payment::new("pay-1").valid_until(end);
    let attached = attach(desk, hold, payment.clone()).await;
    assert_eq!(attached.ok().and_then(|hold| hold.expires_at()), Some(end));
    assert_eq!(code(attach(desk, hold, payment.clone()).await), "ok");
    assert_eq!(code(attach(desk, other, payment).await), "PAYMENT_IN_USE");
    let endless = Payment::new("pay-2").valid_until(desk.now().plus(24 * 60 * MINUTE + MINUTE));
    assert_eq!(
        code(attach(desk, hold, endless).await),
        "PAYMENT_OUTLIVES_HOLD"
    );
    desk.clock.advance(59 * MINUTE);
    assert_eq!(desk.state(hold).await, HoldState::Held);
    assert_eq!(desk.state(other).await, HoldState::Expired);
}

async fn a_webhook_links_the_payment_to_its_hold(desk: &Desk<'_>) {
    let own = &desk.own;
    assert_eq!(
        confirm(own, HoldRef::payment("hook-1"), None).await,
        "PAYMENT_NOT_FOUND"
    );
    let hold = desk.held(desk.slot("hook", 0, 10), "ann").await.id();
    assert_eq!(code(attach(desk, hold, Payment::new("hook-1")).await), "ok");
    assert_eq!(
        confirm(own, HoldRef::payment("hook-1"), None).await,
        "confirmed"
    );
    assert_eq!(desk.state(hold).await, HoldState::Confirmed);
    assert_eq!(
        confirm(own, HoldRef::payment("hook-1"), None).await,
        "already"
    );
    let early = desk.held(desk.slot("hook", 10, 20), "ann").await.id();
    assert_eq!(
        confirm(own, early.into(), Some("hook-2")).await,
        "confirmed"
    );
    assert_eq!(
        code(attach(desk, early, Payment::new("hook-2")).await),
        "ok"
    );
    assert_eq!(
        confirm(own, hold.into(), Some("hook-2")).await,
        "PAYMENT_IN_USE"
    );
}

async fn a_second_payment_is_told_once(desk: &Desk<'_>) {
    let own = &desk.own;
    let hold = desk.held(desk.slot("twice", 0, 10), "ann").await.id();
    assert_eq!(
        confirm(own, hold.into(), Some("twice-1")).await,
        "confirmed"
    );
    for _ in 0..2 {
        assert_eq!(
            confirm(own, hold.into(), Some("twice-2")).await,
            "duplicate"
        );
        assert_eq!(confirm(own, hold.into(), Some("twice-1")).await, "already");
    }
    let told = desk.events_of(hold).await;
    let doubles = told
        .iter()
        .filter(|kind| **kind == EventKind::DuplicatePayment);
    assert_eq!(doubles.count(), 1);
}

async fn a_late_payment_of_free_slots_is_honoured(desk: &Desk<'_>) {
    let slots = [
        desk.slot("late free", 0, 10),
        desk.slot("late free", 10, 20).unit("u"),
    ];
    let hold = desk.held(slots.clone(), "ann").await.id();
    assert_eq!(code(attach(desk, hold, Payment::new("late-1")).await), "ok");
    desk.clock.advance(10 * MINUTE);
    assert_eq!(
        confirm(&desk.own, HoldRef::payment("late-1"), None).await,
        "confirmed"
    );
    assert_eq!(desk.state(hold).await, HoldState::Confirmed);
    assert_eq!(code(desk.hold(slots, "bob").await), "SLOT_ALREADY_BOOKED");
    let told = desk.events_of(hold).await;
    assert_eq!(
        told.iter()
            .filter(|kind| **kind == EventKind::Expired)
            .count(),
        1
    );
    assert_eq!(told.last(), Some(&EventKind::Confirmed));
}

async fn a_late_payment_of_taken_slots_is_given_back(desk: &Desk<'_>) {
    let slot = desk.slot("late taken", 0, 10);
    let hold = desk.held(slot.clone(), "ann").await.id();
    assert_eq!(code(attach(desk, hold, Payment::new("late-2")).await), "ok");
    desk.clock.advance(10 * MINUTE);
    let winner = desk.held(slot, "bob").await.id();
    for _ in 0..2 {
        assert_eq!(
            confirm(&desk.own, HoldRef::payment("late-2"), None).await,
            "late"
        );
    }
    assert_eq!(desk.state(hold).await, HoldState::LateConflict);
    assert_eq!(desk.state(winner).await, HoldState::Held);
    let told = desk.events_of(hold).await;
    let count = |kind| told.iter().filter(|told| **told == kind).count();
    assert_eq!(
        (count(EventKind::LateConflict), count(EventKind::Expired)),
        (1, 1)
    );
    assert_eq!(
        confirm(&desk.own, hold.into(), Some("late-3")).await,
        "late"
    );
    assert_eq!(desk.events_of(hold).await, [EventKind::LateConflict]);
}

async fn a_late_payment_can_be_refused_always(desk: &Desk<'_>) {
    let hold = desk.held(desk.slot("late never", 0, 10), "ann").await.id();
    desk.clock.advance(10 * MINUTE);
    assert_eq!(
        confirm(&desk.strict, hold.into(), Some("late-4")).await,
        "late"
    );
    assert_eq!(desk.state(hold).await, HoldState::LateConflict);
}

async fn a_payment_of_a_released_or_cancelled_hold_is_settled(desk: &Desk<'_>) {
    let slot = desk.slot("late released", 0, 10).units(1).of(1);
    let hold = desk.held(slot.clone(), "ann").await.id();
    assert_eq!(code(desk.release(hold, "ann").await), "ok");
    assert_eq!(
        confirm(&desk.own, hold.into(), Some("late-5")).await,
        "confirmed"
    );
    assert_eq!(
        code(desk.hold(slot.clone(), "bob").await),
        "CAPACITY_EXCEEDED"
    );
    let cancelled = desk
        .own
        .run(|mut guard: ReservationGuard| async move { guard.cancel(hold, "ann").await })
        .await;
    assert_eq!(code(cancelled), "ok");
    assert_eq!(
        confirm(&desk.own, hold.into(), Some("late-5")).await,
        "already"
    );
    assert_eq!(
        confirm(&desk.own, hold.into(), Some("late-6")).await,
        "late"
    );
    assert_eq!(desk.state(hold).await, HoldState::Cancelled);
    assert_eq!(code(desk.hold(slot, "bob").await), "ok");
}

/// Confirmed at the desk, cancelled, and then the money comes: nobody has anything for it.
async fn the_first_payment_of_a_cancelled_hold_is_given_back(desk: &Desk<'_>) {
    let slot = desk.slot("cancelled unpaid", 0, 10);
    let hold = desk.held(slot, "ann").await.id();
    let attached = attach(desk, hold, Payment::new("late-7")).await;
    assert_eq!(code(attached), "ok");
    assert_eq!(confirm(&desk.own, hold.into(), None).await, "confirmed");
    let cancelled = desk
        .own
        .run(|mut guard: ReservationGuard| async move { guard.cancel(hold, "ann").await })
        .await;
    assert_eq!(code(cancelled), "ok");
    for _ in 0..2 {
        let by = HoldRef::payment("late-7");
        assert_eq!(confirm(&desk.own, by, None).await, "late");
    }
    let told = desk.events_of(hold).await;
    let late = told.iter().filter(|kind| **kind == EventKind::LateConflict);
    assert_eq!(late.count(), 1, "{told:?}");
    assert_eq!(desk.state(hold).await, HoldState::Cancelled);
}
