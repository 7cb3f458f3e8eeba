//! What cannot be wanted at all, how far everything may go, and what stands in several ways at once.

use std::sync::Arc;
use std::time::Duration;

use tower_keep::backend::memory::MemoryStore;
use tower_keep::core::Timestamp;
use tower_keep::reservation::{
    BusyState, Conflict, HoldId, Payment, ReservationError, ReservationGuard, ReservationLayer,
    Reservations, Slot, SlotError, Slots,
};

use super::{MINUTE, SECOND, clock, memory, slot, sqlite, stores};

const DAY: Duration = Duration::from_secs(86_400);

fn now() -> Timestamp {
    Timestamp::of(&clock())
}

/// Why the slots are no wish; `None` is a wish that was granted.
async fn invalid(own: &Reservations, slots: impl Into<Slots>, holder: &str) -> Option<SlotError> {
    match own.hold(slots, holder).await {
        Ok(_) => None,
        Err(ReservationError::SlotInvalid(why)) => Some(why),
        Err(other) => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn every_bound_of_a_wish_is_kept_to_the_last_step() {
    let own = ReservationLayer::new(memory()).reservations();
    let text = |n: usize| "x".repeat(n);
    let (start, ms) = (now().plus(DAY), Duration::from_millis(1));
    for (n, fits) in [(1, true), (200, true), (201, false), (0, false)] {
        let made = Slot::try_new(text(n), start..start.plus(MINUTE));
        assert_eq!(made.err(), (!fits).then_some(SlotError::Resource), "{n}");
    }
    for (n, fits) in [(64, true), (65, false)] {
        let refused = invalid(&own, slot("unit").unit(text(n)), "ann").await;
        assert_eq!(refused, (!fits).then_some(SlotError::Unit), "{n}");
    }
    for (n, fits) in [(1, true), (128, true), (129, false), (0, false)] {
        let refused = invalid(&own, slot(&format!("holder {n}")), &text(n)).await;
        assert_eq!(refused, (!fits).then_some(SlotError::Holder), "{n}");
    }
    for (name, before, after, fits) in [
        ("both", 7 * DAY, 7 * DAY, true),
        ("before", 7 * DAY + ms, Duration::ZERO, false),
        ("after", Duration::ZERO, 7 * DAY + ms, false),
    ] {
        let refused = invalid(&own, slot(name).buffer(before, after), "ann").await;
        assert_eq!(refused, (!fits).then_some(SlotError::Buffer), "{name}");
    }
    for (units, of, fits) in [
        (1_000_000, 1_000_000, true),
        (1, 1_000_001, false),
        (2, 1, false),
        (0, 1, false),
    ] {
        let counted = slot(&format!("{units}/{of}")).units(units).of(of);
        let refused = invalid(&own, counted, "ann").await;
        assert_eq!(refused, (!fits).then_some(SlotError::Units), "{units}/{of}");
    }
    for (n, fits) in [(32, true), (33, false)] {
        let several = (0..n).map(|at| slot(&format!("{at} of {n}")));
        let refused = invalid(&own, several.collect::<Slots>(), "ann").await;
        assert_eq!(refused, (!fits).then_some(SlotError::Count), "{n}");
    }
    let control = invalid(&own, slot("c").unit("a\u{7f}"), "ann").await;
    assert_eq!(control, Some(SlotError::Unit));
    let control = invalid(&own, slot("c"), "ann\n").await;
    assert_eq!(control, Some(SlotError::Holder));
}

#[tokio::test]
async fn keys_and_payments_are_bounded_too() {
    let own = ReservationLayer::new(memory()).reservations();
    for (key, fits) in [
        ("x".repeat(64), true),
        ("x".repeat(65), false),
        ("a\tb".into(), false),
    ] {
        let key = &key;
        let held = own.run(|mut guard: ReservationGuard| async move {
            guard.hold(slot("key"), "ann").key(key).await
        });
        match held.await {
            Ok(_) => assert!(fits, "{key}"),
            Err(ReservationError::SlotInvalid(why)) => {
                assert_eq!((fits, why), (false, SlotError::Key), "{key}");
            }
            Err(other) => panic!("{other:?}"),
        }
    }
    let hold = own.hold(slot("paid"), "ann").await.unwrap().id();
    for (id, fits) in [
        ("x".repeat(255), true),
        ("x".repeat(256), false),
        (String::new(), false),
        ("a\0".into(), false),
    ] {
        let id = &id;
        let attached = own.run(|mut guard: ReservationGuard| async move {
            guard.attach_payment(hold, Payment::new(id)).await
        });
        let refused = attached.await.err();
        assert_eq!(refused.is_none(), fits, "{id}: {refused:?}");
        // The same bound where a payment confirms in one step.
        let paid = own.run(|mut guard: ReservationGuard| async move {
            let paid_by = guard.confirm(hold).paid_by(Payment::new(id));
            let _ = paid_by.await?;
            // Taken back: the next one meets a hold that is held.
            Err::<(), _>(ReservationError::Internal)
        });
        for refused in [refused, paid.await.err()].into_iter().flatten() {
            match refused {
                ReservationError::SlotInvalid(why) => {
                    assert_eq!((fits, why), (false, SlotError::Payment), "{id}");
                }
                ReservationError::Internal => assert!(fits, "{id}"),
                other => panic!("{other:?}"),
            }
        }
    }
}

#[tokio::test]
async fn what_is_over_is_in_the_past_and_what_is_under_way_is_not() {
    for store in stores().await {
        let own = ReservationLayer::new(store).reservations();
        let (early, ms) = (now().minus(2 * MINUTE), Duration::from_millis(1));
        for over in [now().minus(MINUTE), now()] {
            let over = Slot::new("a", early..over).in_progress();
            let refused = own.hold(over, "ann").await.unwrap_err();
            assert!(
                matches!(refused, ReservationError::SlotInPast),
                "{refused:?}"
            );
        }
        let begun = Slot::new("a", early..now().plus(ms));
        let refused = own.hold(begun.clone(), "ann").await.unwrap_err();
        assert!(
            matches!(refused, ReservationError::SlotInPast),
            "{refused:?}"
        );
        own.hold(begun.in_progress(), "ann").await.unwrap();
    }
}

/// The database is closed: whatever asked it would be told so.
#[tokio::test]
async fn an_impossible_wish_asks_no_store() {
    let db = sqlite().await;
    let layer = ReservationLayer::new(db.clone()).offered(|slot, _| slot.resource() != "closed");
    let own = layer.reservations();
    db.close(20 * SECOND).await;
    let past = Slot::new("a", now().minus(2 * MINUTE)..now().minus(MINUTE));
    let twice = [slot("a"), slot("a")];
    for (at, (slots, holder, code)) in [
        (Slots::from(past.clone()), "ann", "past"),
        (past.in_progress().into(), "ann", "past"),
        (slot("closed").into(), "ann", "not offered"),
        (slot("a").units(2).of(1).into(), "ann", "invalid"),
        (twice.into(), "ann", "invalid"),
        (Vec::new().into(), "ann", "invalid"),
        (slot("a").into(), "", "invalid"),
        (slot("a").into(), "ann", "store"),
    ]
    .into_iter()
    .enumerate()
    {
        let told = match own.hold(slots, holder).await.unwrap_err() {
            ReservationError::SlotInPast => "past",
            ReservationError::SlotNotOffered => "not offered",
            ReservationError::SlotInvalid(_) => "invalid",
            _ => "store",
        };
        assert_eq!(told, code, "{at}");
    }
}

fn taken(refused: Result<tower_keep::reservation::Hold, ReservationError>) -> Conflict {
    match refused.unwrap_err() {
        ReservationError::Conflict(conflict) => conflict,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn of_several_in_the_way_the_last_end_is_told_and_only_all_mine_are_mine() {
    for (first, second) in [(5, 10), (10, 5)] {
        for store in stores().await {
            let for_minutes = |n: u32| {
                let layer = ReservationLayer::new(Arc::clone(&store));
                layer.hold_for(n * MINUTE).reservations()
            };
            let start = slot("a").start();
            let hour = |from: u32| {
                let from = start.plus(from * 60 * MINUTE);
                Slot::new("a", from..from.plus(60 * MINUTE))
            };
            let (one, two) = (for_minutes(first), for_minutes(second));
            one.hold(hour(0), "ann").await.unwrap();
            two.hold(hour(1), "bob").await.unwrap();
            let both = Slot::new("a", start..start.plus(120 * MINUTE));
            for (who, mine) in [("ann", false), ("cid", false)] {
                let Conflict::SlotTaken {
                    held_until,
                    by_you,
                    retry_after,
                    ..
                } = taken(one.hold(both.clone(), who).await)
                else {
                    panic!("taken")
                };
                assert_eq!(held_until, Some(now().plus(10 * MINUTE)));
                assert_eq!((by_you, retry_after), (mine, 600));
            }
            two.hold(hour(2), "bob").await.unwrap();
            let his = Slot::new("a", start.plus(60 * MINUTE)..start.plus(180 * MINUTE));
            let told = taken(one.hold(his, "bob").await);
            assert!(
                matches!(told, Conflict::SlotTaken { by_you: true, .. }),
                "{told:?}"
            );
        }
    }
}

#[tokio::test]
async fn a_slow_payment_takes_eleven_days_unless_it_says_so_and_thirty_at_most() {
    for store in stores().await {
        let own = ReservationLayer::new(store).reservations();
        for (name, lasting, days) in [
            ("default", None, 11),
            ("long", Some(30 * DAY), 30),
            ("too long", Some(31 * DAY), 30),
        ] {
            let hold: HoldId = own.hold(slot(name), "ann").await.unwrap().id();
            let slow = own.run(|mut guard: ReservationGuard| async move {
                let slow = guard.processing(hold);
                match lasting {
                    Some(lasting) => slow.lasting(lasting).await,
                    None => slow.await,
                }
            });
            let end = slow.await.unwrap().expires_at();
            assert_eq!(end, Some(now().plus(days * DAY)), "{name}");
        }
    }
}

#[tokio::test]
async fn a_full_store_of_memory_refuses_and_forgets_nobody() {
    let store = MemoryStore::builder().clock(clock()).max_entries(2).build();
    let own = ReservationLayer::new(store).reservations();
    let mut kept = Vec::new();
    for name in ["a", "b"] {
        kept.push(own.hold(slot(name), "ann").await.unwrap().id());
    }
    let full = own.hold(slot("c"), "ann").await.unwrap_err();
    let answer = axum::response::IntoResponse::into_response(full);
    assert_eq!(answer.status(), 503);
    for hold in kept {
        assert!(own.find(hold).await.unwrap().is_some());
    }
}

#[tokio::test]
async fn a_calendar_is_ordered_and_names_each_span_in_full() {
    for store in stores().await {
        let own = ReservationLayer::new(store).reservations();
        let start = slot("a").start();
        let hour = |from: u32| {
            let from = start.plus(from * 60 * MINUTE);
            Slot::new("a", from..from.plus(60 * MINUTE))
        };
        own.hold(hour(0).unit("2").units(3).of(5), "ann")
            .await
            .unwrap();
        own.hold(hour(2), "ann").await.unwrap();
        let booked = own.hold(hour(0), "bob").await.unwrap().id();
        own.run(|mut guard: ReservationGuard| async move { guard.confirm(booked).await })
            .await
            .unwrap();
        let held = BusyState::Held(now().plus(10 * MINUTE));
        let expected = [
            ("", 0, BusyState::Booked, 1),
            ("", 2, held, 1),
            ("2", 0, held, 3),
        ]
        .map(|(unit, from, state, units)| {
            let span = hour(from);
            (unit.to_owned(), span.start(), span.end(), state, units)
        });
        let all = own.availability("a", start..start.plus(366 * DAY));
        let all = all.await.unwrap();
        let spans = all.spans().iter().map(|busy| {
            let unit = busy.unit.to_string();
            (unit, busy.start, busy.end, busy.state, busy.units)
        });
        assert_eq!(spans.collect::<Vec<_>>(), expected);
        let longer = start..start.plus(366 * DAY + Duration::from_millis(1));
        let refused = own.availability("a", longer).await;
        assert!(matches!(refused, Err(ReservationError::SlotInvalid(_))));
    }
}
