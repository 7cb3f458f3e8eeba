//! What the log says: of two databases, of a transaction that is open for long, of an event that nobody takes.

use std::time::{Duration, Instant};

use http::Extensions;
use tower_keep::backend::memory::MemoryStore;
use tower_keep::backend::sql::{RequestTransaction, Sqlite};
use tower_keep::reservation::{EventSet, ReservationLayer, Sweeper};

use super::{MINUTE, SECOND, clock, slot, sqlite};
use crate::idempotency::secrets::Log;

#[tokio::test]
async fn two_databases_in_one_request_are_told_of_once_in_a_process() {
    let log = Log::default();
    let _logging = log.listen();
    let (one, other) = (sqlite().await, sqlite().await);
    let told = || log.text().matches("two databases").count();
    for round in 0..3 {
        let mut request = Extensions::new();
        let (_, first) = RequestTransaction::join(&mut request, &one);
        let (_, again) = RequestTransaction::join(&mut request, &one);
        assert!(first.is_some() && again.is_none());
        assert_eq!(told(), usize::from(round > 0), "one database is no two");
        let (_, second) = RequestTransaction::join(&mut request, &other);
        assert!(second.is_some(), "it has a transaction of its own");
        assert_eq!(told(), 1);
    }
    let log = log.text();
    let line = log.lines().find(|line| line.contains("two databases"));
    assert!(line.unwrap().contains("WARN"), "{log}");
}

#[tokio::test]
async fn a_transaction_that_was_open_for_more_than_a_second_is_told_of() {
    let db = sqlite().await;
    for (pause, commits) in [(0, true), (1_001, true), (1_001, false)] {
        let log = Log::default();
        let _logging = log.listen();
        let (transaction, finisher) = RequestTransaction::alone(&db);
        let started = Instant::now();
        drop(transaction.lease::<Sqlite>().await.unwrap());
        tokio::time::sleep(Duration::from_millis(pause)).await;
        if commits {
            finisher.commit().await.unwrap();
        } else {
            let cause = tower_keep::core::RollbackCause::Inner;
            finisher.rollback(cause).await;
        }
        let may_be_slow = started.elapsed() > SECOND;
        let log = log.text();
        let line = log.lines().find(|line| line.contains("open for long"));
        assert!(line.is_some() || pause == 0, "{log}");
        assert!(line.is_none() || may_be_slow, "{log}");
        assert!(line.is_none_or(|line| line.contains("WARN")), "{log}");
    }
}

#[tokio::test]
async fn an_event_that_is_refused_twenty_times_is_parked_with_an_error() {
    let clock = clock();
    let log = Log::default();
    let _logging = log.listen();
    let store = MemoryStore::builder().clock(clock.clone()).build();
    let layer = ReservationLayer::new(store).record(EventSet::all());
    let own = layer.reservations();
    let hold = own.hold(slot("a"), "ann").await.unwrap().id();
    let sweeper = Sweeper::new(&own).on_event(async |_| Err("on purpose".into()));
    for tried in 1..=20 {
        assert_eq!(sweeper.once().await.unwrap().delivered, 0);
        let log = log.text();
        let parked: Vec<_> = log.lines().filter(|line| line.contains("parked")).collect();
        assert_eq!(parked.len(), usize::from(tried == 20), "{tried}: {log}");
        for line in parked {
            assert!(line.contains("ERROR"), "{line}");
            assert!(line.contains(&format!("event={hold}:1")), "{line}");
            assert!(!line.contains("ann"), "{line}");
        }
        // The longest pause of a delivery. That of its end follows one behind.
        clock.advance(60 * MINUTE);
    }
}
