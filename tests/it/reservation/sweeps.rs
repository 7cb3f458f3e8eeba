//! Sweepers side by side, their batches, and what they do when the store fails.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tower_keep::backend::memory::MemoryStore;
use tower_keep::backend::sql::SqlStore;
use tower_keep::core::ManualClock;
use tower_keep::reservation::{ReservationLayer, ReservationStore, Reservations, Sweeper};

use super::{MINUTE, SECOND, clock, slot, sqlite};

const DUE: u64 = 100;

/// Every engine by one clock.
async fn engines(clock: &ManualClock) -> Vec<Arc<dyn ReservationStore>> {
    let url = crate::support::postgres::shared().await.database().await;
    let postgres = SqlStore::builder(&url).acquire_timeout(20 * SECOND);
    let sqlite = SqlStore::builder("sqlite::memory:").lock_timeout(20 * SECOND);
    vec![
        Arc::new(MemoryStore::builder().clock(clock.clone()).build()),
        Arc::new(sqlite.clock(clock.clone()).open().await.unwrap()),
        Arc::new(postgres.clock(clock.clone()).open().await.unwrap()),
    ]
}

/// Makes holds that are all due, of two slots each.
async fn due(own: &Reservations, clock: &ManualClock) {
    for n in 0..DUE {
        let both = [slot(&format!("{n}")), slot(&format!("{n}")).unit("more")];
        own.hold(both, "ann").await.unwrap();
    }
    clock.advance(10 * MINUTE);
}

#[tokio::test]
async fn sweepers_side_by_side_count_each_hold_once() {
    let clock = clock();
    for store in engines(&clock).await {
        let own = ReservationLayer::new(store).reservations();
        for _ in 0..3 {
            due(&own, &clock).await;
            let sweepers = (0..4).map(|_| {
                let own = own.clone();
                tokio::spawn(async move { own.sweep().await.unwrap().expired })
            });
            let counted = join_all(sweepers).await.into_iter();
            assert_eq!(counted.map(Result::unwrap).sum::<u64>(), DUE);
        }
    }
}

#[tokio::test]
async fn a_batch_is_as_large_as_it_was_said_and_the_end_comes_after_it() {
    let clock = clock();
    for store in engines(&clock).await {
        let own = ReservationLayer::new(store).reservations();
        due(&own, &clock).await;
        // It is told to end before it begins.
        Sweeper::new(&own).batch(10).run(async {}).await;
        assert_eq!(own.sweep().await.unwrap().expired, DUE - 10);
    }
}

/// How often a sweeper whose store fails has tried within `time`.
async fn tries(time: Duration) -> usize {
    let log = crate::idempotency::secrets::Log::default();
    let _logging = log.listen();
    let db = sqlite().await;
    let own = ReservationLayer::new(db.clone()).reservations();
    db.close(20 * SECOND).await;
    let sweeper = Sweeper::new(&own).every(SECOND);
    tokio::time::pause();
    let ended = tokio::time::timeout(time, sweeper.run(std::future::pending()));
    assert!(ended.await.is_err(), "it goes on");
    tokio::time::resume();
    let log = log.text();
    log.matches("a sweep failed").count()
}

#[tokio::test]
async fn a_store_that_fails_is_asked_after_a_second_and_then_ever_later_up_to_five_minutes() {
    for (after, expected) in [
        (0, 1),
        (2, 2),
        (6, 3),
        (510, 9),
        (512, 10),
        (805, 10),
        (820, 11),
    ] {
        // The wait is over between two tries, not at one.
        let time = Duration::from_millis(after * 1_000 + 500);
        assert_eq!(tries(time).await, expected, "after {after} s");
    }
}
