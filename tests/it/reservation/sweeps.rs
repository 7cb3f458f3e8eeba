//! Sweepers side by side, their batches, and what they do when the store fails.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tower_keep::backend::memory::MemoryStore;
use tower_keep::backend::sql::SqlStore;
use tower_keep::core::ManualClock;
use tower_keep::reservation::{
    HoldId, HoldState, Payment, ReservationGuard, ReservationLayer, ReservationStore, Reservations,
    Sweeper,
};

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

/// One hold in each state, by the resource it was made for.
async fn one_of_each(own: &Reservations) -> Vec<(HoldState, HoldId)> {
    use HoldState::{Cancelled, Confirmed, Expired, LateConflict, Released};
    let mut holds = Vec::new();
    for state in [Confirmed, Released, Expired, Cancelled, LateConflict] {
        let name = format!("{state:?}");
        let hold = own.hold(slot(&name), "ann").await.unwrap().id();
        holds.push((state, hold));
        let moved = own.run(|mut guard: ReservationGuard| {
            let name = name.clone();
            async move {
                match state {
                    Released => drop(guard.release(hold, "ann").await?),
                    Confirmed => drop(guard.confirm(hold).await?),
                    Cancelled => {
                        guard.confirm(hold).await?;
                        guard.cancel(hold, "ann").await?;
                    }
                    LateConflict => {
                        guard.attach_payment(hold, Payment::new("late")).await?;
                        guard.release(hold, "ann").await?;
                        guard.hold(slot(&name), "bob").await?;
                        guard.confirm(hold).await?;
                    }
                    _ => {}
                }
                Ok::<_, tower_keep::reservation::ReservationError>(())
            }
        });
        moved.await.unwrap();
    }
    holds
}

#[tokio::test]
async fn what_is_closed_is_forgotten_when_it_has_been_kept_for_as_long_as_was_said() {
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    const MILLI: Duration = Duration::from_millis(1);
    // Nobody says how long: 90 days.
    for kept in [None, Some(7 * DAY)] {
        let clock = clock();
        for (engine, store) in engines(&clock).await.into_iter().enumerate() {
            let own = ReservationLayer::new(store).reservations();
            let mut sweeper = Sweeper::new(&own);
            if let Some(kept) = kept {
                sweeper = sweeper.keep_closed(kept);
            }
            let holds = one_of_each(&own).await;
            let states = async || {
                let mut states = Vec::new();
                for (_, hold) in &holds {
                    let found = own.find(*hold).await.unwrap();
                    states.extend(found.map(|hold| hold.state()));
                }
                states
            };
            // Those that run are over here, and closed by this sweep: that of the late one's rival, too.
            clock.advance(10 * MINUTE);
            assert_eq!(sweeper.once().await.unwrap().expired, 2);
            let all: Vec<HoldState> = holds.iter().map(|(state, _)| *state).collect();
            assert_eq!(states().await, all);
            clock.advance(kept.unwrap_or(90 * DAY) - 10 * MINUTE - MILLI);
            assert_eq!(sweeper.once().await.unwrap().purged, 0);
            assert_eq!(states().await, all);
            clock.advance(2 * MILLI);
            assert_eq!(sweeper.once().await.unwrap().purged, 3, "engine {engine}");
            assert_eq!(states().await, [HoldState::Confirmed, HoldState::Expired]);
            clock.advance(10 * MINUTE);
            assert_eq!(sweeper.once().await.unwrap().purged, 2, "engine {engine}");
            assert_eq!(states().await, [HoldState::Confirmed]);
            // A booking is the application's record; memory keeps it until so long after its end: tomorrow, and an hour.
            clock.advance(2 * DAY);
            let in_memory = u64::from(engine == 0);
            assert_eq!(sweeper.once().await.unwrap().purged, in_memory);
            assert_eq!(states().await.is_empty(), engine == 0);
            clock.advance(366 * DAY);
            assert_eq!(sweeper.once().await.unwrap().purged, 0);
            clock.set(
                "2030-01-01T09:00:00Z"
                    .parse::<tower_keep::core::Timestamp>()
                    .unwrap(),
            );
        }
    }
}
