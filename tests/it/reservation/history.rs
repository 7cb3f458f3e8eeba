//! Real concurrency, watched: from its answer until it is given up, a hold is nobody else's.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tower_keep::backend::memory::MemoryStore;
use tower_keep::backend::sql::SqlStore;
use tower_keep::core::Timestamp;
use tower_keep::reservation::{
    Hold, ReservationError, ReservationGuard, ReservationLayer, ReservationStore, Reservations,
    Settled, Slot,
};

use super::MINUTE;
use crate::support::postgres::shared;

const GUESTS: u32 = 8;
const WISHES: u32 = 40;
const CAPACITY: u32 = 3;

/// Somebody surely had these units of these minutes from then to then.
struct Had {
    lane: &'static str,
    minutes: std::ops::Range<u32>,
    units: u32,
    from: Instant,
    to: Instant,
}

/// Small and repeatable.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 33) as u32 % n
    }
}

/// A wish in one lane, or in both.
fn wish(random: &mut Random) -> Vec<(&'static str, std::ops::Range<u32>, u32)> {
    let mut part = |lane, units| {
        let from = random.below(10);
        (lane, from..from + 1 + random.below(3), units)
    };
    match part("which", 0).1.start % 4 {
        0 | 1 => vec![part("alone", 1)],
        2 => vec![part("places", 2)],
        _ => vec![part("alone", 1), part("places", 1)],
    }
}

fn slots(wish: &[(&'static str, std::ops::Range<u32>, u32)]) -> Vec<Slot> {
    let day: Timestamp = "2130-01-01T10:00:00Z".parse().unwrap();
    let slot = |(lane, minutes, units): &(&'static str, std::ops::Range<u32>, u32)| {
        let at = |minute: u32| day.plus(MINUTE * minute);
        let slot = Slot::new(lane, at(minutes.start)..at(minutes.end));
        match *lane {
            "places" => slot.units(*units).of(CAPACITY),
            _ => slot,
        }
    };
    wish.iter().map(slot).collect()
}

/// A lost race, or the hold. Anything else is a fault.
fn won(done: Result<Hold, ReservationError>) -> Option<Hold> {
    match done {
        Ok(hold) => Some(hold),
        Err(ReservationError::Conflict(_)) => None,
        Err(other) => panic!("neither won nor lost: {other:?}"),
    }
}

async fn guest(own: Reservations, brief: Reservations, number: u32) -> Vec<Had> {
    let mut random = Random(u64::from(number) * 7_919 + 1);
    let mut had = Vec::new();
    let name = format!("guest {number}");
    for _ in 0..WISHES {
        let wish = wish(&mut random);
        let short = random.below(4) == 0;
        let asked = Instant::now();
        let holding = if short { &brief } else { &own };
        let Some(hold) = won(holding.hold(slots(&wish), &name).await) else {
            continue;
        };
        let mut from = Instant::now();
        // It lasts from an instant after the asking; its end is surely not before this.
        let mut to = asked + Duration::from_millis(if short { 18 } else { 60_000 });
        let id = hold.id();
        if random.below(2) == 0 {
            tokio::time::sleep(Duration::from_millis(u64::from(random.below(30)))).await;
            let done =
                own.run(|mut guard: ReservationGuard| async move { guard.confirm(id).await });
            let settled = done.await.unwrap();
            if matches!(settled, Settled::LateConflict(_)) {
                keep(&mut had, &wish, from, to);
                continue;
            }
            // In time or late with the slots still free: it is ours from here on, whatever was before.
            keep(&mut had, &wish, from, to.min(Instant::now()));
            from = Instant::now();
            tokio::time::sleep(Duration::from_millis(u64::from(random.below(5)))).await;
            to = Instant::now();
            let name = name.as_str();
            let done =
                own.run(|mut guard: ReservationGuard| async move { guard.cancel(id, name).await });
            done.await.unwrap();
        } else {
            tokio::time::sleep(Duration::from_millis(u64::from(random.below(5)))).await;
            to = to.min(Instant::now());
            let name = name.as_str();
            let done =
                own.run(|mut guard: ReservationGuard| async move { guard.release(id, name).await });
            done.await.unwrap();
        }
        keep(&mut had, &wish, from, to);
    }
    had
}

fn keep(
    had: &mut Vec<Had>,
    wish: &[(&'static str, std::ops::Range<u32>, u32)],
    from: Instant,
    to: Instant,
) {
    if from < to {
        had.extend(wish.iter().map(|(lane, minutes, units)| Had {
            lane,
            minutes: minutes.clone(),
            units: *units,
            from,
            to,
        }));
    }
}

/// At no instant more units of a minute than the lane has; ends come before starts.
fn check(all: &[Had]) {
    let mut steps: BTreeMap<(&str, u32), Vec<(Instant, i64)>> = BTreeMap::new();
    for had in all {
        for minute in had.minutes.clone() {
            let steps = steps.entry((had.lane, minute)).or_default();
            steps.push((had.from, i64::from(had.units)));
            steps.push((had.to, -i64::from(had.units)));
        }
    }
    for ((lane, minute), mut steps) in steps {
        let most = if lane == "places" {
            i64::from(CAPACITY)
        } else {
            1
        };
        steps.sort_unstable();
        let mut units = 0;
        for (_, step) in steps {
            units += step;
            assert!(units <= most, "{units} units of {lane} in minute {minute}");
        }
    }
}

async fn watched(stores: Vec<Arc<dyn ReservationStore>>) {
    let guests: Vec<_> = (0..GUESTS)
        .map(|number| {
            let store = Arc::clone(&stores[number as usize % stores.len()]);
            let layer = ReservationLayer::new(store);
            let own = layer.reservations();
            let brief = layer.hold_for(Duration::from_millis(20)).reservations();
            tokio::spawn(guest(own, brief, number))
        })
        .collect();
    let sweeping = ReservationLayer::new(Arc::clone(&stores[0])).reservations();
    let sweeping = tokio::spawn(async move {
        loop {
            sweeping.sweep().await.unwrap();
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    });
    let mut all = Vec::new();
    for guest in guests {
        all.extend(guest.await.unwrap());
    }
    sweeping.abort();
    assert!(all.len() > 40, "only {} holds: nobody fought", all.len());
    check(&all);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_moment_has_more_units_than_capacity_in_memory() {
    watched(vec![Arc::new(MemoryStore::new())]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_moment_has_more_units_than_capacity_on_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", folder.path().join("watched.db").display());
    let mut stores: Vec<Arc<dyn ReservationStore>> = Vec::new();
    for _ in 0..2 {
        let db = SqlStore::builder(&url).lock_timeout(Duration::from_secs(30));
        stores.push(Arc::new(db.open().await.unwrap()));
    }
    watched(stores).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_moment_has_more_units_than_capacity_on_postgres() {
    let url = shared().await.database().await;
    let mut stores: Vec<Arc<dyn ReservationStore>> = Vec::new();
    for _ in 0..2 {
        let db = SqlStore::builder(&url)
            .lock_timeout(Duration::from_secs(30))
            .acquire_timeout(Duration::from_secs(30));
        stores.push(Arc::new(db.open().await.unwrap()));
    }
    watched(stores).await;
}

#[test]
#[should_panic(expected = "2 units of alone in minute 1")]
fn the_checker_finds_two_holders_of_one_minute() {
    let start = Instant::now();
    let had = |from: u64, to: u64| Had {
        lane: "alone",
        minutes: 1..2,
        units: 1,
        from: start + Duration::from_millis(from),
        to: start + Duration::from_millis(to),
    };
    check(&[had(0, 5), had(4, 9)]);
}
