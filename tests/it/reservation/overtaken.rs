//! Who takes over what is over, on Postgres, while somebody else's transaction has changed it in time and is still open.

use std::sync::Arc;

use tokio::sync::{Notify, oneshot};
use tower_keep::backend::sql::{Postgres, SqlStore};
use tower_keep::core::{ManualClock, Timestamp};
use tower_keep::reservation::{
    Conflict, EventKind, EventSet, HoldId, HoldRef, HoldState, Payment, ReservationError,
    ReservationGuard, ReservationLayer, Reservations, Settled, Slot, Sweeper,
};

use super::orders::patient;
use super::waited::somebody_waits;
use super::{MINUTE, SECOND, clock, slot};

async fn desk() -> (Reservations, SqlStore, ManualClock) {
    let (clock, url) = (
        clock(),
        crate::support::postgres::shared().await.database().await,
    );
    let db = patient(&url, &clock).await;
    let layer = ReservationLayer::new(db.clone()).record(EventSet::all());
    (layer.reservations(), db, clock)
}

/// What makes a hold last.
#[derive(Clone, Copy, Debug)]
enum Change {
    Confirm,
    Extend,
    Attach,
    Process,
}

impl Change {
    async fn make(self, guard: &mut ReservationGuard, hold: HoldId, now: Timestamp) {
        match self {
            Self::Confirm => drop(guard.confirm(hold).await.unwrap()),
            Self::Extend => drop(guard.extend(hold, "ann", 20 * MINUTE).await.unwrap()),
            Self::Attach => {
                let payment = Payment::new("p").valid_until(now.plus(15 * MINUTE));
                drop(guard.attach_payment(hold, payment).await.unwrap());
            }
            Self::Process => drop(guard.processing(hold).await.unwrap()),
        }
    }
}

/// Changes the hold a second before its end, and comes to an end itself when somebody waits for it, a minute later.
async fn change_and_stay(
    own: &Reservations,
    (db, clock): (&SqlStore, &ManualClock),
    (change, hold): (Change, HoldId),
    is_changed: &Notify,
) {
    clock.advance(10 * MINUTE - SECOND);
    let now = Timestamp::of(clock);
    let changing = own.run(|mut guard: ReservationGuard| async move {
        change.make(&mut guard, hold, now).await;
        clock.advance(MINUTE);
        is_changed.notify_one();
        somebody_waits(db.pool::<Postgres>().unwrap()).await;
        Ok::<_, ReservationError>(())
    });
    changing.within(5 * MINUTE).await.unwrap();
}

#[tokio::test]
async fn a_place_whose_hold_was_made_to_last_meanwhile_is_not_sold_twice() {
    for change in [
        Change::Confirm,
        Change::Extend,
        Change::Attach,
        Change::Process,
    ] {
        for beside in [false, true] {
            let (own, db, clock) = desk().await;
            let place = slot("a").units(1).of(1);
            let hold = own.hold(place.clone(), "ann").await.unwrap().id();
            let wish: Vec<Slot> = match beside {
                true => vec![place.clone(), slot("room")],
                false => vec![place.clone()],
            };
            let is_changed = Notify::new();
            let taking = async {
                is_changed.notified().await;
                own.hold(wish, "bob").await
            };
            let at = (&db, &clock);
            let changing = change_and_stay(&own, at, (change, hold), &is_changed);
            let ((), taken) = tokio::join!(changing, taking);
            let is_full = matches!(
                taken,
                Err(ReservationError::Conflict(Conflict::CapacityExceeded {
                    left: 0
                }))
            );
            assert!(is_full, "{change:?}, beside {beside}: {taken:?}");
            let calendar = own.availability("a", place.blocks()).await.unwrap();
            assert_eq!(calendar.spans().len(), 1, "{change:?}, beside {beside}");
        }
    }
}

#[tokio::test]
async fn a_late_confirmation_with_another_holds_payment_leaves_the_end_of_its_hold_to_be_told() {
    let (own, db, clock) = desk().await;
    let late = own.hold(slot("a"), "ann").await.unwrap().id();
    clock.advance(5 * MINUTE);
    let other = own.hold(slot("b"), "ann").await.unwrap().id();
    clock.advance(5 * MINUTE);
    let (attached, is_attached) = oneshot::channel();
    let mut attached = Some(attached);
    let attaching = own.run(|mut guard: ReservationGuard| {
        let (attached, pool) = (attached.take().unwrap(), db.pool::<Postgres>().unwrap());
        async move {
            guard.attach_payment(other, Payment::new("p")).await?;
            attached.send(()).unwrap();
            somebody_waits(pool).await;
            Ok::<_, ReservationError>(())
        }
    });
    let confirming = async {
        is_attached.await.unwrap();
        // A webhook that answers 200 whatever comes: what it was told is not an error of its own.
        let told = own.run(|mut guard: ReservationGuard| async move {
            let paid = guard.confirm(late).paid_by(Payment::new("p")).await;
            Ok::<_, ReservationError>(paid.map(|settled: Settled| settled.hold().id()))
        });
        told.await.unwrap()
    };
    let (attached, refused) = tokio::join!(attaching, confirming);
    attached.unwrap();
    assert!(
        matches!(refused, Err(ReservationError::PaymentInUse)),
        "{refused:?}"
    );
    let ended = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let told = Arc::clone(&ended);
    let sweeper = Sweeper::new(&own).on_event(move |event| {
        if event.kind == EventKind::Expired {
            told.lock().push(event.hold);
        }
        async { Ok(()) }
    });
    sweeper.once().await.unwrap();
    assert_eq!(*ended.lock(), [late]);
    let now = own.find(HoldRef::from(late)).await.unwrap().unwrap();
    assert_eq!(now.state(), HoldState::Expired);
}
