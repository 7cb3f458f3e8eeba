//! A sweeper hears of commits in its process, comes back to refused events, and ends when it is told.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tower_keep::backend::memory::MemoryStore;
use tower_keep::core::Clock;
use tower_keep::reservation::{
    EventKind, EventSet, HoldRef, ReservationGuard, ReservationLayer, Reservations, Sweeper,
};

use super::{MINUTE, clock, slot, stores};

const HOUR: Duration = Duration::from_secs(3_600);

#[tokio::test]
async fn a_commit_wakes_the_sweeper_of_its_process() {
    for store in stores().await {
        let own = ReservationLayer::new(store)
            .record(EventSet::all())
            .reservations();
        let (told, mut heard) = mpsc::unbounded_channel();
        let (end, ended) = oneshot::channel::<()>();
        let sweeper = Sweeper::new(&own).every(HOUR).on_event(move |event| {
            let told = told.clone();
            async move { Ok(told.send(event.kind)?) }
        });
        let sweeping = tokio::spawn(sweeper.run(async move { drop(ended.await) }));
        let hold = own.hold(slot("a"), "ann").await.unwrap().id();
        assert_eq!(heard.recv().await, Some(EventKind::Created));
        own.run(|mut guard: ReservationGuard| async move { guard.confirm(hold).await })
            .await
            .unwrap();
        assert_eq!(heard.recv().await, Some(EventKind::Confirmed));
        end.send(()).unwrap();
        sweeping.await.unwrap();
    }
}

/// Goes with the runtime's own time, which a test may pause.
#[derive(Debug)]
struct Runtime(Instant);

impl Clock for Runtime {
    fn now_micros(&self) -> u64 {
        clock().now_micros() + self.0.elapsed().as_micros() as u64
    }
}

fn paused() -> Reservations {
    let store = MemoryStore::builder().clock(Runtime(Instant::now()));
    let layer = ReservationLayer::new(store.build()).record(EventSet::all());
    layer.reservations()
}

/// Says that it is gone.
struct Told(mpsc::UnboundedSender<()>);

impl Drop for Told {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

#[tokio::test(start_paused = true)]
async fn a_consumer_that_hangs_has_failed_and_holds_up_no_other_event() {
    let own = paused();
    let hung = own.hold(slot("a"), "ann").await.unwrap().id();
    own.hold(slot("b"), "bob").await.unwrap();
    let (told, mut heard) = mpsc::unbounded_channel();
    let (gone, mut dropped) = mpsc::unbounded_channel();
    let sweeper = Sweeper::new(&own).every(HOUR).on_event(move |event| {
        let (told, gone) = (told.clone(), Told(gone.clone()));
        async move {
            told.send((event.hold == hung, event.attempts))?;
            if event.hold == hung && event.attempts == 0 {
                std::future::pending::<()>().await;
            }
            drop(gone);
            Ok(())
        }
    });
    let sweeping = tokio::spawn(sweeper.run(std::future::pending()));
    let mut seen = Vec::new();
    while seen.len() < 3 {
        let one = tokio::time::timeout(10 * MINUTE, heard.recv()).await;
        seen.push(one.expect("the sweeper waits for ever").unwrap());
    }
    seen.sort_unstable();
    assert_eq!(seen, [(false, 0), (true, 0), (true, 1)]);
    for _ in 0..3 {
        dropped.recv().await.unwrap();
    }
    sweeping.abort();
}

#[tokio::test]
async fn a_consumer_that_panics_before_it_has_a_future_has_failed() {
    let own = ReservationLayer::new(MemoryStore::new()).record(EventSet::all());
    let own = own.reservations();
    own.hold(slot("a"), "ann").await.unwrap();
    let sweeper = Sweeper::new(&own).on_event(|event| {
        assert!(event.attempts > 0, "this one panics");
        async { Ok(()) }
    });
    assert_eq!(sweeper.once().await.unwrap().delivered, 0);
}

#[tokio::test]
async fn one_round_says_what_it_swept_and_how_much_was_taken() {
    for store in stores().await {
        let own = ReservationLayer::new(store)
            .record(EventSet::all())
            .reservations();
        own.hold(slot("a"), "ann").await.unwrap();
        let refused = own.hold(slot("b"), "bob").await.unwrap().id();
        let sweeper = Sweeper::new(&own).on_event(move |event| async move {
            if event.hold == refused {
                return Err("not now".into());
            }
            Ok(())
        });
        let swept = sweeper.once().await.unwrap();
        assert_eq!((swept.expired, swept.purged, swept.delivered), (0, 0, 1));
        assert_eq!(own.sweep().await.unwrap().delivered, 0, "nobody is told");
    }
}

#[tokio::test]
async fn a_rolled_back_event_is_never_told() {
    for store in stores().await {
        let own = ReservationLayer::new(Arc::clone(&store))
            .record(EventSet::all())
            .reservations();
        let undone = own.run(|mut guard: ReservationGuard| async move {
            guard.hold(slot("a"), "ann").await?;
            guard.find(HoldRef::payment("none")).await?;
            Err::<(), _>(tower_keep::reservation::ReservationError::Internal)
        });
        undone.await.unwrap_err();
        assert!(store.take_events(10, MINUTE).await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn a_refused_event_comes_back_when_it_is_due_however_long_the_pause() {
    // The machine's clock: the first pause is a second.
    let own = ReservationLayer::new(MemoryStore::new())
        .record(EventSet::all())
        .reservations();
    let asked = Arc::new(AtomicU32::new(0));
    let (told, mut heard) = mpsc::unbounded_channel();
    let sweeper = Sweeper::new(&own).every(Duration::MAX).on_event(move |_| {
        let (asked, told) = (Arc::clone(&asked), told.clone());
        async move {
            if asked.fetch_add(1, Ordering::SeqCst) == 0 {
                return Err("not yet".into());
            }
            Ok(told.send(())?)
        }
    });
    let sweeping = tokio::spawn(sweeper.run(std::future::pending()));
    let day = tower_keep::core::Timestamp::MAX.minus(HOUR);
    let slot = tower_keep::reservation::Slot::new("a", day..day.plus(MINUTE));
    own.hold(slot, "ann").await.unwrap();
    assert_eq!(heard.recv().await, Some(()));
    sweeping.abort();
}

#[tokio::test]
async fn reservations_know_their_tables_and_whether_the_store_answers() {
    use tower_keep::backend::sql::{Dialect, SqlStore};
    let db = SqlStore::builder("sqlite::memory:").table_prefix("shop_");
    let own = ReservationLayer::new(db.open().await.unwrap()).reservations();
    own.migrate().await.unwrap();
    own.health().await.unwrap();
    assert!(
        own.schema(Dialect::Sqlite)
            .contains("CREATE TABLE shop_hold")
    );
    assert!(own.schema(Dialect::Postgres).contains("EXCLUDE USING gist"));

    let memory = ReservationLayer::new(MemoryStore::new()).reservations();
    memory.migrate().await.unwrap();
    memory.health().await.unwrap();
    assert!(
        memory
            .schema(Dialect::Sqlite)
            .contains("CREATE TABLE keep_hold")
    );

    let down = SqlStore::builder("postgres://nobody@127.0.0.1:1/none")
        .acquire_timeout(Duration::from_millis(100));
    if let Ok(down) = down.open().await {
        let own = ReservationLayer::new(down).reservations();
        assert_eq!(own.health().await.unwrap_err().code(), "STORE_UNAVAILABLE");
    }
}

#[tokio::test]
async fn a_payment_with_a_name_that_cannot_be_is_an_unknown_payment() {
    for store in stores().await {
        let own = ReservationLayer::new(store).reservations();
        for name in ["", "zero\0byte", &"x".repeat(256)] {
            assert!(own.find(HoldRef::payment(name)).await.unwrap().is_none());
            let refused = own.run(|mut guard: ReservationGuard| async move {
                assert!(guard.find(HoldRef::payment(name)).await?.is_none());
                guard.confirm(HoldRef::payment(name)).await
            });
            assert_eq!(refused.await.unwrap_err().code(), "PAYMENT_NOT_FOUND");
        }
        own.redeliver("zero\0byte".into()).await.unwrap();
    }
}
