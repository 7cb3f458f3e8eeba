//! What a hold takes, and who is in whose way.
#![allow(clippy::panic, clippy::unwrap_used)]

use std::time::Duration;

use super::{Desk, MINUTE, code};
use crate::core::Timestamp;
use crate::reservation::{
    Conflict, EventKind, HoldId, HoldOutcome, HoldState, ReservationError, ReservationGuard, Slot,
};

pub(super) async fn a_hold_blocks_until_exactly_its_end(desk: &Desk<'_>) {
    let slot = desk.slot("end", 0, 30);
    let hold = desk.held(slot.clone(), "ann").await;
    assert_eq!(hold.outcome(), HoldOutcome::Created);
    assert!(hold.token().is_some());
    assert_eq!(hold.expires_at(), Some(desk.now().plus(10 * MINUTE)));
    desk.clock.advance(10 * MINUTE - Duration::from_millis(1));
    let refused = desk.hold(slot.clone(), "bob").await;
    assert_eq!(code(refused), "SLOT_TEMPORARILY_RESERVED");
    desk.clock.advance(Duration::from_millis(1));
    assert_eq!(desk.state(hold.id()).await, HoldState::Expired);
    assert_eq!(code(desk.hold(slot, "bob").await), "ok");
    assert_eq!(
        desk.events_of(hold.id()).await,
        [EventKind::Created, EventKind::Expired]
    );
}

pub(super) async fn neighbours_do_not_touch_and_buffers_add_up(desk: &Desk<'_>) {
    desk.held(desk.slot("next", 0, 60), "ann").await;
    desk.held(desk.slot("next", 60, 120), "bob").await;
    let overlapping = desk.hold(desk.slot("next", 30, 90), "cid").await;
    assert_eq!(code(overlapping), "SLOT_TEMPORARILY_RESERVED");
    desk.held(desk.slot("next", 30, 60).unit("room"), "cid")
        .await;
    let cleaned = |from, to| {
        desk.slot("buffer", from, to)
            .buffer(Duration::ZERO, 10 * MINUTE)
    };
    desk.held(cleaned(0, 60), "ann").await;
    assert_eq!(
        code(desk.hold(cleaned(69, 80), "bob").await),
        "SLOT_TEMPORARILY_RESERVED"
    );
    desk.held(cleaned(70, 80), "bob").await;
}

pub(super) async fn several_slots_are_one_hold(desk: &Desk<'_>) {
    desk.held(desk.slot("b", 0, 10), "ann").await;
    let both = [
        desk.slot("c", 0, 10),
        desk.slot("b", 5, 15),
        desk.slot("a", 0, 10),
    ];
    assert_eq!(
        code(desk.hold(both, "bob").await),
        "SLOT_TEMPORARILY_RESERVED"
    );
    desk.held(desk.slot("a", 0, 10), "cid").await;
    let free = [desk.slot("d", 0, 10), desk.slot("c", 0, 10)];
    let hold = desk.held(free, "bob").await;
    assert_eq!(hold.slots().len(), 2);
    assert_eq!(
        desk.release(hold.id(), "bob")
            .await
            .map(|hold| hold.state())
            .ok(),
        Some(HoldState::Released)
    );
    desk.held(desk.slot("c", 0, 10), "cid").await;
    desk.held(desk.slot("d", 0, 10), "cid").await;
}

pub(super) async fn the_same_wish_meets_its_own_hold(desk: &Desk<'_>) {
    let slots = [desk.slot("same", 0, 10), desk.slot("same", 20, 30)];
    let first = desk.held(slots.clone(), "ann").await;
    desk.clock.advance(MINUTE);
    let again = desk
        .held(
            [
                Slot::new("same", slots[1].start()..slots[1].end()),
                slots[0].clone(),
            ],
            "ann",
        )
        .await;
    assert_eq!(
        (again.id(), again.outcome()),
        (first.id(), HoldOutcome::Reused)
    );
    assert_eq!(again.expires_at(), first.expires_at());
    assert!(again.token().is_none());
    let part = desk.hold(slots[0].clone(), "ann").await;
    assert_eq!(code(part), "SLOT_TEMPORARILY_RESERVED");
    let slots = &slots;
    let keyed = desk
        .own
        .run(|mut guard: ReservationGuard| async move {
            guard.hold(slots.clone(), "ann").key("second").await
        })
        .await;
    assert_eq!(code(keyed), "SLOT_TEMPORARILY_RESERVED");
    let place = desk.slot("counted twin", 0, 10).units(1).of(2);
    let one = desk.held(place.clone(), "ann").await;
    assert_eq!(desk.held(place, "ann").await.id(), one.id());
}

pub(super) async fn refusals_say_what_is_in_the_way_and_no_more(desk: &Desk<'_>) {
    let slot = desk.slot("refused", 0, 10);
    let hold = desk.held(slot.clone(), "ann").await;
    let taken = |by_you| {
        ReservationError::Conflict(Conflict::SlotTaken {
            held_until: hold.expires_at(),
            by_you,
            retry_after: 600,
        })
    };
    let wider = desk.slot("refused", 0, 20);
    let by_other = desk.hold(wider.clone(), "bob").await.unwrap_err();
    assert_eq!(format!("{by_other:?}"), format!("{:?}", taken(false)));
    let by_self = desk.hold(wider.clone(), "ann").await.unwrap_err();
    assert_eq!(format!("{by_self:?}"), format!("{:?}", taken(true)));
    let id = hold.id();
    let confirmed = desk
        .own
        .run(|mut guard: ReservationGuard| async move { guard.confirm(id).await })
        .await;
    assert!(confirmed.is_ok());
    assert_eq!(
        code(desk.hold(wider.clone(), "bob").await),
        "SLOT_ALREADY_BOOKED"
    );
    assert_eq!(code(desk.hold(wider, "ann").await), "ALREADY_BOOKED_BY_YOU");
    let past = Slot::new("refused", Timestamp::EPOCH..Timestamp::from_millis(1));
    assert_eq!(code(desk.hold(past, "ann").await), "SLOT_IN_PAST");
    assert_eq!(
        code(desk.hold(desk.slot("refused", 0, 5), "").await),
        "SLOT_INVALID"
    );
}

pub(super) async fn places_are_counted_at_the_busiest_instant(desk: &Desk<'_>) {
    let places = |from, to, units| desk.slot("places", from, to).units(units).of(2);
    desk.held(places(0, 20, 1), "ann").await;
    desk.held(places(30, 50, 1), "bob").await;
    desk.held(places(10, 40, 1), "cid").await;
    let full = desk.hold(places(15, 35, 1), "dot").await;
    assert_eq!(code(full), "CAPACITY_EXCEEDED");
    desk.held(places(50, 60, 2), "dot").await;
    let around = |units| {
        let wish = |from, to| desk.slot("around", from, to).units(units).of(3);
        [wish(10, 20), wish(30, 40)]
    };
    desk.held(desk.slot("around", 0, 60).units(1).of(3), "ann")
        .await;
    assert_eq!(code(desk.hold(around(3), "bob").await), "CAPACITY_EXCEEDED");
    desk.held(around(2), "bob").await;
    let exclusive = desk.hold(desk.slot("places", 55, 70), "eve").await;
    assert_eq!(code(exclusive), "SLOT_TEMPORARILY_RESERVED");
    desk.held(desk.slot("places", 60, 70), "eve").await;
    let counted = desk.hold(places(65, 75, 1), "ann").await;
    assert_eq!(code(counted), "SLOT_TEMPORARILY_RESERVED");
}

pub(super) async fn a_hold_belongs_to_its_holder_and_its_token(desk: &Desk<'_>) {
    let hold = desk.held(desk.slot("own", 0, 10), "ann").await;
    assert_eq!(code(desk.release(hold.id(), "bob").await), "HOLD_NOT_FOUND");
    let wrong = crate::reservation::HoldToken::from("wrong");
    assert_eq!(code(desk.release(hold.id(), wrong).await), "HOLD_NOT_FOUND");
    let unknown = HoldId::from(uuid::Uuid::nil());
    assert_eq!(code(desk.release(unknown, "ann").await), "HOLD_NOT_FOUND");
    let Some(token) = hold.token().cloned() else {
        panic!("a new hold comes with its token");
    };
    assert_eq!(code(desk.release(hold.id(), token).await), "ok");
    assert_eq!(code(desk.release(hold.id(), "ann").await), "ok");
}
