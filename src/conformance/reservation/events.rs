//! Expiries, sweeps, and what is told of them.
#![allow(clippy::panic, clippy::unwrap_used)]

use std::time::Duration;

use super::{Desk, MINUTE};
use crate::reservation::store::{Delivery, SweepLimits, SweptBatch};
use crate::reservation::{EventKind, EventSet, HoldRef, HoldState, Payment, ReservationGuard};

pub(super) async fn an_expiry_is_told_once(desk: &Desk<'_>) {
    let due = desk
        .held([desk.slot("swept", 0, 9), desk.slot("swept", 9, 10)], "ann")
        .await
        .id();
    let kept = desk
        .held(desk.slot("swept", 300_000, 300_010), "ann")
        .await
        .id();
    let confirmed = desk
        .own
        .run(|mut guard: ReservationGuard| async move { guard.confirm(kept).await });
    assert!(confirmed.await.is_ok());
    desk.clock.advance(10 * MINUTE);
    let _ = desk
        .own
        .sweep()
        .await
        .map(|swept| assert!(swept.expired >= 1));
    let again = desk.own.sweep().await;
    assert_eq!(again.map(|swept| swept.expired).ok(), Some(0));
    assert_eq!(
        desk.events_of(due).await,
        [EventKind::Created, EventKind::Expired]
    );
    desk.clock.advance(91 * 24 * 60 * MINUTE);
    assert!(desk.own.sweep().await.is_ok());
    assert!(matches!(desk.own.find(due).await, Ok(None)));
    assert_eq!(desk.state(kept).await, HoldState::Confirmed);
}

pub(super) async fn a_failing_delivery_waits_longer_and_longer_and_is_parked(desk: &Desk<'_>) {
    let hold = desk.held(desk.slot("failing", 0, 10), "ann").await.id();
    let mine = || async {
        let taken = desk.store.take_events(100, MINUTE).await;
        let events = taken.unwrap_or_else(|error| panic!("{error:?}"));
        events.into_iter().find(|event| event.hold == hold)
    };
    let Some(event) = mine().await else {
        panic!("a hold was made, and nothing is told")
    };
    assert!(mine().await.is_none(), "a taken event is leased");
    let mut pause = Duration::from_secs(1);
    for failed in 1..=20 {
        let settled = vec![(event.id.clone(), Delivery::Failed)];
        assert!(desk.store.settle_events(settled).await.is_ok());
        desk.clock.advance(pause - Duration::from_millis(1));
        assert!(
            mine().await.is_none(),
            "it waits {pause:?} after {failed} failures"
        );
        desk.clock.advance(Duration::from_millis(1));
        let due = mine().await.is_some();
        assert_eq!(due, failed < 20, "parked after 20 failures");
        pause = (pause * 2).min(Duration::from_secs(3_600));
    }
    assert!(desk.own.redeliver(event.id.clone()).await.is_ok());
    assert_eq!(mine().await.map(|event| event.attempts), Some(0));
}

/// A lease that ran out was taken over; the first to have it answers late.
pub(super) async fn what_was_delivered_is_not_failed_by_a_late_answer(desk: &Desk<'_>) {
    let hold = desk.held(desk.slot("late answer", 0, 10), "ann").await.id();
    let mine = || async {
        let taken = desk.store.take_events(100, MINUTE).await;
        let events = taken.unwrap_or_else(|error| panic!("{error:?}"));
        events.into_iter().find(|event| event.hold == hold)
    };
    let Some(event) = mine().await else {
        panic!("a hold was made, and nothing is told")
    };
    for delivery in [Delivery::Delivered, Delivery::Failed] {
        let settled = vec![(event.id.clone(), delivery)];
        assert!(desk.store.settle_events(settled).await.is_ok());
    }
    desk.clock.advance(2 * MINUTE);
    assert!(mine().await.is_none(), "delivered is delivered");
    assert!(desk.own.redeliver(event.id.clone()).await.is_ok());
    assert!(mine().await.is_some(), "unless it is wanted again");
    let settled = vec![(event.id, Delivery::Delivered)];
    assert!(desk.store.settle_events(settled).await.is_ok());
}

pub(super) async fn a_sweep_says_how_far_behind_it_was(desk: &Desk<'_>) {
    let limits = SweepLimits {
        batch: 500,
        keep_closed: 90 * 24 * 60 * MINUTE,
        record: EventSet::all(),
    };
    let sweep = || async {
        let swept = desk.store.sweep(limits).await;
        swept.unwrap_or_else(|error| panic!("{error:?}"))
    };
    desk.clock.advance(10 * MINUTE);
    while sweep().await.expired > 0 {}
    let hold = desk.held(desk.slot("behind", 0, 10), "ann").await.id();
    let before = sweep().await;
    assert_eq!(before.lag, Duration::ZERO, "nothing is over");
    assert!(before.pending >= Some(1), "it was not told yet");
    desk.clock.advance(13 * MINUTE);
    let found = sweep().await;
    assert_eq!((found.expired, found.lag), (1, 3 * MINUTE));
    assert!(found.is_last() && found.pending.is_some(), "{found:?}");
    assert!(
        SweptBatch::default().is_last(),
        "a store that swept nothing"
    );
    desk.events_of(hold).await;
    let after = sweep().await;
    assert_eq!((after.lag, after.pending), (Duration::ZERO, Some(0)));
}

/// What failed waits, and then stands behind what became due meanwhile; so a backlog is taken from its front.
pub(super) async fn events_come_in_the_order_in_which_they_became_due(desk: &Desk<'_>) {
    let take = |most| async move {
        let taken = desk.store.take_events(most, MINUTE).await;
        taken.unwrap_or_else(|error| panic!("{error:?}"))
    };
    let settle = |event, delivery| async move {
        let settled = desk.store.settle_events(vec![(event, delivery)]).await;
        assert!(settled.is_ok());
    };
    loop {
        let earlier = take(100).await;
        if earlier.is_empty() {
            break;
        }
        for event in earlier {
            settle(event.id, Delivery::Delivered).await;
        }
    }
    let failing = desk.held(desk.slot("order", 0, 10), "ann").await.id();
    let event = take(1).await.remove(0);
    assert_eq!(event.hold, failing);
    settle(event.id, Delivery::Failed).await;
    desk.clock.advance(Duration::from_millis(500));
    let younger = desk.held(desk.slot("order", 20, 30), "ann").await.id();
    desk.clock.advance(Duration::from_secs(1));
    let (first, second) = (take(1).await, take(1).await);
    let holds = [first[0].hold, second[0].hold];
    assert_eq!(holds, [younger, failing]);
    desk.clock.advance(2 * MINUTE);
    let together = take(2).await;
    let holds = together.iter().map(|event| event.hold);
    assert!(holds.eq([failing, younger]), "a batch is oldest first");
    for event in first.into_iter().chain(second) {
        settle(event.id, Delivery::Delivered).await;
    }
}

/// What is closed goes after the time that the sweep says, with its payments; what was delivered goes after a week.
pub(super) async fn what_is_long_over_goes_with_all_that_belongs_to_it(desk: &Desk<'_>) {
    let sweep = |keep_closed| async move {
        let limits = SweepLimits {
            batch: 500,
            keep_closed,
            record: EventSet::all(),
        };
        let mut purged = 0;
        loop {
            let swept = desk.store.sweep(limits).await;
            let swept = swept.unwrap_or_else(|error| panic!("{error:?}"));
            purged += swept.purged;
            if swept.is_last() {
                return purged;
            }
        }
    };
    let (day, long) = (24 * 60 * MINUTE, 90 * 24 * 60 * MINUTE);
    // What others have left.
    sweep(long).await;
    let other = desk.held(desk.slot("purged", 0, 10), "ann").await.id();
    desk.events_of(other).await;
    desk.clock.advance(8 * day);
    sweep(MINUTE).await;
    desk.events_of(other).await;
    desk.clock.advance(8 * day);
    sweep(MINUTE).await;
    let hold = desk.held(desk.slot("purged", 0, 10), "ann").await.id();
    let payment = Payment::new("purged-1");
    let attached = desk
        .own
        .run(|mut guard: ReservationGuard| {
            let payment = payment.clone();
            async move { guard.attach_payment(hold, payment).await }
        })
        .await;
    assert!(attached.is_ok(), "{attached:?}");
    assert!(desk.release(hold, "ann").await.is_ok());
    let told = desk.events_of(hold).await.len() as u64;
    assert_eq!(told, 3);
    desk.clock.advance(7 * day - MINUTE);
    assert_eq!(sweep(long).await, 0, "delivered less than a week ago");
    desk.clock.advance(2 * MINUTE);
    assert_eq!(sweep(long).await, told);
    let by = HoldRef::payment("purged-1");
    assert!(matches!(desk.store.find(by.clone()).await, Ok(Some(_))));
    assert_eq!(sweep(8 * day).await, 0, "closed less than eight days ago");
    desk.clock.advance(day);
    assert_eq!(sweep(8 * day).await, 1);
    assert!(matches!(desk.store.find(by).await, Ok(None)));
    // Its payment is nobody's any more, and may come with another hold.
    let next = desk.held(desk.slot("purged", 0, 10), "bob").await.id();
    let attached = desk
        .own
        .run(|mut guard: ReservationGuard| {
            let payment = payment.clone();
            async move { guard.attach_payment(next, payment).await }
        })
        .await;
    assert!(attached.is_ok(), "{attached:?}");
}
