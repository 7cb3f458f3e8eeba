//! What holds are counted as.

use tower_keep::core::Timestamp;
use tower_keep::reservation::{HoldId, ReservationGuard, ReservationLayer, Settled, Slot};

use super::{MINUTE, clock, slot, stores};
use crate::idempotency::secrets::Log;
use crate::rate_limit::metered::Metered;

#[tokio::test]
async fn every_outcome_of_a_wish_is_counted_under_its_name() {
    for store in stores().await {
        let metered = Metered::start();
        let layer = ReservationLayer::new(store).offered(|slot, _| slot.resource() != "closed");
        let own = layer.reservations();
        let hold = own.hold(slot("a"), "ann").await.unwrap().id();
        own.hold(slot("a"), "ann").await.unwrap();
        own.hold(slot("a"), "bob").await.unwrap_err();
        let confirm = own.run(|mut guard: ReservationGuard| async move {
            // Inside a transaction as outside.
            guard.hold(slot("closed"), "bob").await.unwrap_err();
            guard.hold(slot("a"), "bob").await.unwrap_err();
            guard.confirm(hold).await
        });
        confirm.await.unwrap();
        own.hold(slot("a"), "bob").await.unwrap_err();
        own.hold(slot("b").units(1).of(1), "ann").await.unwrap();
        own.hold(slot("b").units(1).of(1), "bob").await.unwrap_err();
        let now = Timestamp::of(&clock());
        let past = Slot::new("a", now.minus(2 * MINUTE)..now.minus(MINUTE));
        own.hold(past, "ann").await.unwrap_err();
        own.hold(slot("a"), "").await.unwrap_err();
        for (outcome, times) in [
            ("created", 2),
            ("reused", 1),
            ("taken", 2),
            ("booked", 1),
            ("full", 1),
            ("refused", 3),
            ("contention", 0),
        ] {
            let name = format!("keep_reservation_holds_total{{outcome={outcome}}}");
            let counted = metered.counter(&name);
            assert_eq!(counted, times, "{outcome}: {}", metered.scrape());
        }
        let confirmed = "keep_reservation_transitions_total{late=false,to=confirmed}";
        let confirmed = metered.counter(confirmed);
        assert_eq!(confirmed, 1, "{}", metered.scrape());
        let scrape = metered.scrape();
        assert!(!scrape.contains("ann") && !scrape.contains("bob"));
    }
}

#[tokio::test]
async fn a_late_payment_is_counted_as_late_and_its_conflict_is_told() {
    for store in stores().await {
        let metered = Metered::start();
        let log = Log::default();
        let _logging = log.listen();
        let own = ReservationLayer::new(store).reservations();
        let release = async |hold: HoldId| {
            let released = own
                .run(|mut guard: ReservationGuard| async move { guard.release(hold, "ann").await });
            released.await.unwrap();
        };
        let confirm = async |hold: HoldId| {
            let settled =
                own.run(|mut guard: ReservationGuard| async move { guard.confirm(hold).await });
            settled.await.unwrap()
        };
        let free = own.hold(slot("a"), "ann").await.unwrap().id();
        release(free).await;
        assert!(matches!(confirm(free).await, Settled::Confirmed(_)));
        let taken = own.hold(slot("b"), "ann").await.unwrap().id();
        release(taken).await;
        own.hold(slot("b"), "bob").await.unwrap();
        assert!(!log.text().contains("too late"), "{}", log.text());
        for _ in 0..2 {
            assert!(matches!(confirm(taken).await, Settled::LateConflict(_)));
        }
        let log = log.text();
        let mut lines = log.lines().filter(|line| line.contains("too late"));
        let line = lines.next().unwrap();
        assert!(line.contains("WARN"), "{line}");
        assert!(!line.contains("ann") && !line.contains("bob"), "{line}");
        let name = "keep_reservation_transitions_total";
        let counted = metered.counters(|counter| counter.starts_with(name));
        let of = |labels: &str, times| (format!("{name}{{{labels}}}"), times);
        let expected = [
            of("late=false,to=released", 2),
            of("late=true,to=confirmed", 1),
            of("late=true,to=late_conflict", 1),
        ];
        assert_eq!(counted, expected);
    }
}
