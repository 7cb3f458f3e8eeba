//! Wishes for several slots and places, late payments, releases and a sweeper over the same few slots: each
//! may lose, none waits in a circle.

use std::time::Duration;

use tower_keep::backend::sql::{Postgres, SqlStore};
use tower_keep::core::ManualClock;
use tower_keep::reservation::{
    EventSet, HoldId, Payment, ReservationError, ReservationGuard, ReservationLayer, Reservations,
    Slot,
};

use super::{MINUTE, SECOND, clock, slot};
use crate::support::postgres::shared;

/// A stream of numbers that is the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, most: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) % most
    }

    /// Two or three of four exclusive and three counted lanes, in any order.
    fn wish(&mut self, round: u64) -> Vec<Slot> {
        let mut lanes: Vec<u64> = (0..7).collect();
        let mut wish = Vec::new();
        for _ in 0..2 + self.below(2) {
            let lane = lanes.remove(self.below(lanes.len() as u64) as usize);
            let own = slot(&format!("lane {lane} of {round}"));
            wish.push(if lane < 4 { own } else { own.units(1).of(2) });
        }
        wish
    }
}

/// Whatever is decided is a decision; contention is none.
fn decided<T: std::fmt::Debug>(done: Result<T, ReservationError>) -> Option<T> {
    match done {
        Ok(done) => Some(done),
        Err(
            ReservationError::Conflict(_)
            | ReservationError::HoldState(_)
            | ReservationError::HoldExpired,
        ) => None,
        Err(other) => panic!("{other:?}"),
    }
}

async fn take(own: Reservations, wish: Vec<Slot>, who: String) -> Option<HoldId> {
    let done = own.run(move |mut guard: ReservationGuard| {
        let (wish, who) = (wish.clone(), who.clone());
        async move { guard.hold(wish, &who).await }
    });
    decided(done.attempts(1).await).map(|hold| hold.id())
}

async fn pay(own: Reservations, hold: HoldId, payment: String) {
    let done = own.run(move |mut guard: ReservationGuard| {
        let payment = payment.clone();
        async move { guard.confirm(hold).paid_by(Payment::new(payment)).await }
    });
    decided(done.attempts(1).await);
}

async fn release(own: Reservations, hold: HoldId, who: String) {
    let done = own.run(move |mut guard: ReservationGuard| {
        let who = who.clone();
        async move { guard.release(hold, who.as_str()).await }
    });
    decided(done.attempts(1).await);
}

async fn open() -> (SqlStore, Reservations, ManualClock) {
    let url = shared().await.database().await;
    let clock = clock();
    let db = SqlStore::builder(&url)
        .clock(clock.clone())
        .lock_timeout(60 * SECOND)
        .acquire_timeout(60 * SECOND)
        .statement_timeout(120 * SECOND)
        .transaction_timeout(120 * SECOND)
        .max_connections(16);
    let db = db.open().await.unwrap();
    let layer = ReservationLayer::new(db.clone()).record(EventSet::all());
    (db, layer.reservations(), clock)
}

/// `KEEP_CROSSINGS` is the number of rounds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wishes_for_several_late_payments_and_a_sweeper_never_wait_in_a_circle() {
    let (db, own, clock) = open().await;
    let rounds = std::env::var("KEEP_CROSSINGS").map_or(12, |rounds| rounds.parse().unwrap());
    let mut dice = Dice(7);
    for round in 0..rounds {
        let mut old = Vec::new();
        for n in 0..6 {
            let who = format!("old {n}");
            let hold = take(own.clone(), dice.wish(round), who.clone()).await;
            old.extend(hold.map(|hold| (hold, who)));
        }
        // They end in the middle of what follows.
        clock.advance(10 * MINUTE - Duration::from_millis(2));
        let mut all = Vec::new();
        for n in 0..8 {
            let taken = take(own.clone(), dice.wish(round), format!("new {n}"));
            all.push(tokio::spawn(async move {
                taken.await;
            }));
            let Some((hold, who)) = old.get(n % old.len().max(1)).cloned() else {
                continue;
            };
            all.push(tokio::spawn(pay(own.clone(), hold, format!("{round} {n}"))));
            if dice.below(3) == 0 {
                all.push(tokio::spawn(release(own.clone(), hold, who)));
            }
            if dice.below(2) == 0 {
                let own = own.clone();
                all.push(tokio::spawn(async move {
                    own.sweep().await.unwrap();
                }));
            }
            clock.advance(Duration::from_millis(1));
        }
        for one in all {
            one.await.unwrap();
        }
    }
    let deadlocks = "select deadlocks from pg_stat_database where datname = current_database()";
    let deadlocks: i64 = sqlx::query_scalar(deadlocks)
        .fetch_one(db.pool::<Postgres>().unwrap())
        .await
        .unwrap();
    assert_eq!(deadlocks, 0);
}
