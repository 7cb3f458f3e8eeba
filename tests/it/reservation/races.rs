//! Two that meet in the same hold or the same slot: one legal end, no error but a lost race.

use std::sync::Arc;
use std::time::Duration;

use tower_keep::backend::memory::MemoryStore;
use tower_keep::backend::sql::SqlStore;
use tower_keep::core::ManualClock;
use tower_keep::reservation::{
    EventKind, EventSet, HoldId, HoldState, Payment, ReservationError, ReservationGuard,
    ReservationLayer, ReservationStore, Reservations, Settled, Slot,
};

use super::{MINUTE, clock, slot};
use crate::support::postgres::shared;

/// Each engine with its clock; locks may be waited for on a loaded machine.
async fn engines() -> Vec<(Arc<dyn ReservationStore>, ManualClock)> {
    let long = Duration::from_secs(30);
    let mut engines: Vec<(Arc<dyn ReservationStore>, ManualClock)> = Vec::new();
    let own = clock();
    engines.push((
        Arc::new(MemoryStore::builder().clock(own.clone()).build()),
        own,
    ));
    for url in [
        "sqlite::memory:".to_owned(),
        shared().await.database().await,
    ] {
        let own = clock();
        let db = SqlStore::builder(&url)
            .clock(own.clone())
            .lock_timeout(long)
            .acquire_timeout(long);
        engines.push((Arc::new(db.open().await.unwrap()), own));
    }
    engines
}

fn own(store: &Arc<dyn ReservationStore>) -> Reservations {
    let layer = ReservationLayer::new(Arc::clone(store));
    layer.record(EventSet::all()).reservations()
}

async fn confirm(own: Reservations, id: HoldId, payment: Option<&'static str>) -> &'static str {
    let done = own.run(move |mut guard: ReservationGuard| async move {
        match payment {
            Some(payment) => guard.confirm(id).paid_by(Payment::new(payment)).await,
            None => guard.confirm(id).await,
        }
    });
    match done.attempts(1).await {
        Ok(Settled::Confirmed(_)) => "confirmed",
        Ok(Settled::AlreadyConfirmed(_)) => "already",
        Ok(Settled::LateConflict(_)) => "late",
        Ok(Settled::DuplicatePayment(_)) => "duplicate",
        Err(error) => panic!("{error:?}"),
        Ok(other) => panic!("{other:?}"),
    }
}

/// `true` for the winner.
async fn take(own: Reservations, slots: Vec<Slot>, who: String) -> bool {
    let done = own.run(move |mut guard: ReservationGuard| {
        let (slots, who) = (slots.clone(), who.clone());
        async move { guard.hold(slots, &who).await }
    });
    match done.attempts(1).await {
        Ok(_) => true,
        Err(ReservationError::Conflict(_)) => false,
        Err(other) => panic!("{other:?}"),
    }
}

async fn told(store: &Arc<dyn ReservationStore>, hold: HoldId) -> Vec<EventKind> {
    let mut kinds = Vec::new();
    let events = store.take_events(10_000, MINUTE).await.unwrap();
    kinds.extend(
        events
            .iter()
            .filter(|event| event.hold == hold)
            .map(|event| event.kind),
    );
    kinds
}

fn count(kinds: &[EventKind], wanted: EventKind) -> usize {
    kinds.iter().filter(|kind| **kind == wanted).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_eight_takers_of_an_expired_hold_one_wins_and_the_expiry_is_told_once() {
    for (store, clock) in engines().await {
        for round in 0..12 {
            let own = own(&store);
            let slot = slot(&format!("room {round}"));
            let gone = own.hold(slot.clone(), "first").await.unwrap().id();
            clock.advance(10 * MINUTE);
            let takers: Vec<_> = (0..8)
                .map(|n| {
                    let taken = take(own.clone(), vec![slot.clone()], format!("guest {n}"));
                    tokio::spawn(taken)
                })
                .collect();
            let sweeping = tokio::spawn({
                let own = own.clone();
                async move { own.sweep().await.unwrap() }
            });
            let mut winners = 0;
            for taker in takers {
                winners += usize::from(taker.await.unwrap());
            }
            sweeping.await.unwrap();
            assert_eq!(winners, 1, "{store:?}");
            assert_eq!(
                count(&told(&store, gone).await, EventKind::Expired),
                1,
                "{store:?}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_webhook_that_comes_four_times_at_once_confirms_once() {
    for (store, _) in engines().await {
        for round in 0..12 {
            let own = own(&store);
            let hold = own
                .hold(slot(&format!("room {round}")), "ann")
                .await
                .unwrap();
            let payment: &'static str = format!("pay-{round}").leak();
            let webhooks: Vec<_> = (0..4)
                .map(|_| tokio::spawn(confirm(own.clone(), hold.id(), Some(payment))))
                .collect();
            let mut answers = Vec::new();
            for webhook in webhooks {
                answers.push(webhook.await.unwrap());
            }
            answers.sort_unstable();
            assert_eq!(answers, ["already", "already", "already", "confirmed"]);
            let kinds = told(&store, hold.id()).await;
            assert_eq!(count(&kinds, EventKind::Confirmed), 1, "{store:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_payments_at_once_one_is_given_back() {
    for (store, _) in engines().await {
        for round in 0..12 {
            let own = own(&store);
            let hold = own
                .hold(slot(&format!("room {round}")), "ann")
                .await
                .unwrap();
            let names = ["a", "b"].map(|one| &*format!("{one}-{round}").leak());
            let webhooks =
                names.map(|name| tokio::spawn(confirm(own.clone(), hold.id(), Some(name))));
            let mut answers = Vec::new();
            for webhook in webhooks {
                answers.push(webhook.await.unwrap());
            }
            answers.sort_unstable();
            assert_eq!(answers, ["confirmed", "duplicate"], "{store:?}");
            let kinds = told(&store, hold.id()).await;
            assert_eq!(count(&kinds, EventKind::DuplicatePayment), 1, "{store:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_payment_beside_takers_and_a_sweeper_ends_in_one_legal_state() {
    for (store, clock) in engines().await {
        for round in 0..16 {
            let own = own(&store);
            // Exclusive, several slots, counted, and both at once.
            let exclusive = slot(&format!("room {round}"));
            let counted = slot(&format!("course {round}")).units(1).of(1);
            let wish = match round % 4 {
                0 => vec![exclusive],
                1 => vec![exclusive.clone(), exclusive.unit("seat")],
                2 => vec![counted],
                _ => vec![exclusive, counted],
            };
            let hold = own.hold(wish.clone(), "ann").await.unwrap().id();
            clock.advance(10 * MINUTE);
            let payment: &'static str = format!("late-{round}").leak();
            let paying = tokio::spawn(confirm(own.clone(), hold, Some(payment)));
            let takers: Vec<_> = (0..3)
                .map(|n| {
                    // Also those who want a part of it only.
                    let wish = if n == 2 {
                        vec![wish[0].clone()]
                    } else {
                        wish.clone()
                    };
                    tokio::spawn(take(own.clone(), wish, format!("guest {n}")))
                })
                .collect();
            let sweeping = tokio::spawn({
                let own = own.clone();
                async move { own.sweep().await.unwrap() }
            });
            let answer = paying.await.unwrap();
            let mut winners = 0;
            for taker in takers {
                winners += usize::from(taker.await.unwrap());
            }
            sweeping.await.unwrap();
            let state = own.find(hold).await.unwrap().unwrap().state();
            let kinds = told(&store, hold).await;
            assert_eq!(count(&kinds, EventKind::Expired), 1, "{store:?} {round}");
            let late = count(&kinds, EventKind::LateConflict);
            match (answer, winners) {
                ("confirmed", 0) => assert_eq!((state, late), (HoldState::Confirmed, 0)),
                ("late", 1) => assert_eq!((state, late), (HoldState::LateConflict, 1)),
                other => panic!("{store:?} {round}: {other:?}"),
            }
            assert_eq!(
                confirm(own, hold, Some(payment)).await,
                match state {
                    HoldState::Confirmed => "already",
                    _ => "late",
                }
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_confirmation_in_time_and_a_release_end_in_one_of_the_two() {
    for (store, _) in engines().await {
        for round in 0..12 {
            let own = own(&store);
            let hold = own
                .hold(slot(&format!("room {round}")), "ann")
                .await
                .unwrap()
                .id();
            let paying = tokio::spawn(confirm(own.clone(), hold, None));
            let releasing = own
                .run(|mut guard: ReservationGuard| async move { guard.release(hold, "ann").await });
            let released = releasing.await;
            let answer = paying.await.unwrap();
            let state = own.find(hold).await.unwrap().unwrap().state();
            // Released first, the payment is late, and nobody has taken the slot.
            assert_eq!(
                (answer, state),
                ("confirmed", HoldState::Confirmed),
                "{store:?}"
            );
            let kinds = told(&store, hold).await;
            assert_eq!(
                count(&kinds, EventKind::Released),
                usize::from(released.is_ok())
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_slots_in_every_order_never_deadlock() {
    for (store, _) in engines().await {
        for round in 0..8 {
            let own = own(&store);
            let lanes = ["a", "b", "c"].map(|lane| slot(&format!("{lane} {round}")));
            let orders = [
                [0, 1, 2],
                [0, 2, 1],
                [1, 0, 2],
                [1, 2, 0],
                [2, 0, 1],
                [2, 1, 0],
            ];
            let takers: Vec<_> = orders
                .iter()
                .map(|order| {
                    let wish = order.map(|at| lanes[at].clone()).to_vec();
                    tokio::spawn(take(own.clone(), wish, format!("{order:?}")))
                })
                .collect();
            let mut winners = 0;
            for taker in takers {
                winners += usize::from(taker.await.unwrap());
            }
            assert_eq!(winners, 1, "{store:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_ten_places_ten_are_taken_and_never_eleven() {
    for (store, _) in engines().await {
        let own = own(&store);
        let takers: Vec<_> = (0..40)
            .map(|n| {
                let wish = vec![slot("course").units(1).of(10)];
                tokio::spawn(take(own.clone(), wish, format!("guest {n}")))
            })
            .collect();
        let mut winners = 0;
        for taker in takers {
            winners += usize::from(taker.await.unwrap());
        }
        assert_eq!(winners, 10, "{store:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_server_defaults_to_one_guest_gets_the_slot() {
    use tower_keep::conformance::reservation::winners_of;
    let defaults = [
        "default_transaction_isolation = 'repeatable read'",
        "default_transaction_isolation = 'serializable'",
        "default_transaction_read_only = on",
    ];
    for default in defaults {
        let url = shared().await.database().await;
        let name = url.rsplit('/').next().unwrap();
        let plain = SqlStore::connect(&url).await.unwrap();
        let pool = plain.pool::<tower_keep::backend::sql::Postgres>().unwrap();
        let sql = format!("alter database {name} set {default}");
        let sql = sqlx::AssertSqlSafe(sql);
        sqlx::raw_sql(sql).execute(pool).await.unwrap();
        // Sessions that begin from here on have the default.
        let db = SqlStore::builder(&url)
            .lock_timeout(Duration::from_secs(30))
            .acquire_timeout(Duration::from_secs(30));
        let store: Arc<dyn ReservationStore> = Arc::new(db.open().await.unwrap());
        let day: tower_keep::core::Timestamp = "2130-01-01T10:00:00Z".parse().unwrap();
        let slot = Slot::new("hot", day..day.plus(MINUTE));
        assert_eq!(winners_of(24, &[store], slot).await, 1, "{default}");
    }
}
