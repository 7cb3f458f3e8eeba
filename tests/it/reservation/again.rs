//! How often and how long: the attempts of a run, the work after an end, the wait for a lane. In paused time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::http::StatusCode;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tower_keep::backend::sql::Postgres;
use tower_keep::reservation::{
    ReservationError, ReservationGuard, ReservationLayer, Reservations, Retryable,
};

use super::{App, SECOND, memory, slot};
use crate::rate_limit::metered::Metered;

/// Runs what always wants another attempt; returns how often it ran and how long it took.
async fn contended(own: &Reservations, within: Option<Duration>) -> (usize, Duration) {
    let (calls, started) = (AtomicUsize::new(0), Instant::now());
    let counted = &calls;
    let run = own.run(|_: ReservationGuard| async move {
        counted.fetch_add(1, Ordering::SeqCst);
        Err::<(), _>(ReservationError::Contention { again: true })
    });
    let refused = match within {
        Some(within) => run.within(within).await,
        None => run.await,
    };
    assert!(matches!(
        refused,
        Err(ReservationError::Contention { again: true })
    ));
    (calls.load(Ordering::SeqCst), started.elapsed())
}

#[tokio::test(start_paused = true)]
async fn a_run_makes_five_attempts_with_short_pauses() {
    let own = ReservationLayer::new(memory()).reservations();
    // Four pauses of up to 20, 40, 80 and 160 ms, and a step of the timer each.
    let longest = Duration::from_millis(20 + 40 + 80 + 160 + 4);
    let mut all = Duration::ZERO;
    for _ in 0..20 {
        let (calls, took) = contended(&own, None).await;
        assert_eq!(calls, 5);
        assert!(took <= longest, "{took:?}");
        all += took;
    }
    assert!(all > Duration::ZERO, "there are pauses");
    assert_eq!(contended(&own, Some(Duration::ZERO)).await.0, 1);
}

/// An application's own error, as it wraps the database's.
#[derive(Debug)]
struct Wrapped(sqlx::Error);

impl From<ReservationError> for Wrapped {
    fn from(error: ReservationError) -> Self {
        panic!("{error:?}")
    }
}

impl Retryable for Wrapped {
    fn is_worth_again(&self) -> bool {
        self.0.is_worth_again()
    }

    fn reason(&self) -> &'static str {
        self.0.reason()
    }
}

#[tokio::test]
async fn another_attempt_is_counted_by_its_reason() {
    let metered = Metered::start();
    let db = super::postgres().await;
    let own = ReservationLayer::new(db).reservations();
    for code in ["40001", "40P01"] {
        let refused = own.run(|mut guard: ReservationGuard<Postgres>| async move {
            let mut lease = guard.transaction().await?;
            let sql = format!("do $$ begin raise exception using errcode = '{code}'; end $$");
            let raised = sqlx::raw_sql(sqlx::AssertSqlSafe(sql));
            raised.execute(&mut *lease).await.map_err(Wrapped)?;
            Ok::<_, Wrapped>(())
        });
        refused.attempts(3).await.unwrap_err();
    }
    contended(&own, None).await;
    let counted = metered.counters(|name| name.starts_with("keep_sql_retries_total"));
    let of = |reason: &str, times| (format!("keep_sql_retries_total{{reason={reason}}}"), times);
    let expected = [
        of("contention", 4),
        of("deadlock", 2),
        of("serialization", 2),
    ];
    assert_eq!(counted, expected);
}

#[tokio::test(start_paused = true)]
async fn work_after_the_end_that_hangs_or_panics_holds_up_the_rest_for_half_a_minute_at_most() {
    let metered = Metered::start();
    let (told, mut heard) = mpsc::unbounded_channel();
    let app = App::new(memory(), async move |mut guard: ReservationGuard| {
        let told = told.clone();
        guard.after_commit(std::future::pending());
        guard.after_commit(async { panic!("on purpose") });
        guard.after_commit(async move { told.send(Instant::now()).unwrap() });
        guard.hold(slot("a"), "ann").await.unwrap();
        StatusCode::OK
    });
    let started = Instant::now();
    assert_eq!(app.post().await.status, StatusCode::OK);
    let ran = heard.recv().await.unwrap() - started;
    assert!((30 * SECOND..31 * SECOND).contains(&ran), "{ran:?}");
    assert_eq!(metered.counter("keep_sql_after_work_failures_total"), 2);
}

#[tokio::test(start_paused = true)]
async fn a_lane_of_memory_is_waited_for_three_seconds() {
    let metered = Metered::start();
    let own = ReservationLayer::new(memory()).reservations();
    let (entered, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (first, gates) = (own.clone(), (Arc::clone(&entered), Arc::clone(&go)));
    let holding = tokio::spawn(async move {
        let run = first.run(|mut guard: ReservationGuard| {
            let (entered, go) = gates.clone();
            async move {
                guard.hold(slot("a"), "ann").await?;
                entered.notify_one();
                go.notified().await;
                Ok::<_, ReservationError>(())
            }
        });
        run.await
    });
    entered.notified().await;
    let started = Instant::now();
    let alone = own.hold(slot("a"), "bob").await.unwrap_err();
    assert!(
        matches!(alone, ReservationError::Contention { .. }),
        "{alone:?}"
    );
    let waited = started.elapsed();
    assert!((3 * SECOND..4 * SECOND).contains(&waited), "{waited:?}");
    let inside = own.run(|mut guard: ReservationGuard| async move {
        guard.hold(slot("a"), "bob").await?;
        Ok::<_, ReservationError>(())
    });
    assert!(inside.attempts(1).await.is_err());
    let contended = "keep_reservation_holds_total{outcome=contention}";
    assert_eq!(metered.counter(contended), 2, "{}", metered.scrape());
    go.notify_one();
    holding.await.unwrap().unwrap();
}
