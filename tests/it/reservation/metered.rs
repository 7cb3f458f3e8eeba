//! What holds are counted as.

use tower_keep::core::Timestamp;
use tower_keep::reservation::{ReservationGuard, ReservationLayer, Slot};

use super::{MINUTE, clock, slot, stores};
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
        let confirmed = "keep_reservation_transitions_total{to=confirmed}";
        let confirmed = metered.counter(confirmed);
        assert_eq!(confirmed, 1, "{}", metered.scrape());
        let scrape = metered.scrape();
        assert!(!scrape.contains("ann") && !scrape.contains("bob"));
    }
}
