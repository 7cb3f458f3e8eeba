//! Leaks, panics, cancellations, poisoned transactions: never a silent success, never a stuck pool.

use std::future::poll_fn;
use std::sync::{Arc, Mutex};
use std::task::Poll;

use http::StatusCode;
use tokio::sync::oneshot;
use tower_keep::backend::sql::{Postgres, SqlStore, Sqlite};
use tower_keep::reservation::{
    ReservationError, ReservationGuard, ReservationRejection, ReservationStore,
};

use super::{App, check, memory, postgres, slot, sqlite, stores, visits};

#[tokio::test]
async fn a_swallowed_sql_error_never_ends_as_a_success() {
    let db = postgres().await;
    let app = App::new(db.clone(), async |mut guard: ReservationGuard<Postgres>| {
        guard.hold(slot("a"), "ann").await.unwrap();
        for _ in 0..2 {
            let mut lease = guard.transaction().await.unwrap();
            let _ = sqlx::query("insert into visits values ('ann')")
                .execute(&mut *lease)
                .await;
        }
        StatusCode::OK
    });
    check(
        &app.post().await,
        StatusCode::INTERNAL_SERVER_ERROR,
        "TRANSACTION_FAILED",
    );
    assert_eq!(visits(&db).await, 0);
    assert!(!app.is_taken(&slot("a")).await);
}

#[tokio::test]
async fn an_error_caught_inside_a_savepoint_does_not_poison() {
    use sqlx::Connection;
    let db = postgres().await;
    let app = App::new(db.clone(), async |mut guard: ReservationGuard<Postgres>| {
        guard.hold(slot("a"), "ann").await.unwrap();
        for _ in 0..2 {
            let mut lease = guard.transaction().await.unwrap();
            let mut savepoint = lease.begin().await.unwrap();
            let visit = sqlx::query("insert into visits values ('ann')");
            if visit.execute(&mut *savepoint).await.is_ok() {
                savepoint.commit().await.unwrap();
            } else {
                savepoint.rollback().await.unwrap();
            }
        }
        StatusCode::OK
    });
    assert_eq!(app.post().await.status, StatusCode::OK);
    assert_eq!(visits(&db).await, 1);
}

#[tokio::test]
async fn user_sql_that_ends_the_transaction_is_found_out() {
    for sql in ["COMMIT", "ROLLBACK", "COMMIT; BEGIN", "ROLLBACK; BEGIN"] {
        let db = postgres().await;
        let app = App::new(
            db.clone(),
            async move |mut guard: ReservationGuard<Postgres>| {
                let mut lease = guard.transaction().await.unwrap();
                sqlx::raw_sql(sql).execute(&mut *lease).await.unwrap();
                drop(lease);
                let _ = guard.hold(slot("a"), "ann").await;
                StatusCode::OK
            },
        );
        check(
            &app.post().await,
            StatusCode::INTERNAL_SERVER_ERROR,
            "TRANSACTION_FAILED",
        );
        assert!(!app.is_taken(&slot("a")).await, "{sql}");
    }
    for sql in [
        "COMMIT",
        "ROLLBACK",
        "insert or rollback into visits values ('twice')",
    ] {
        let db = sqlite().await;
        let twice = sqlx::query("insert into visits values ('twice')");
        twice.execute(db.pool::<Sqlite>().unwrap()).await.unwrap();
        let app = App::new(
            db.clone(),
            async move |mut guard: ReservationGuard<Sqlite>| {
                let mut lease = guard.transaction().await.unwrap();
                let _ = sqlx::raw_sql(sql).execute(&mut *lease).await;
                StatusCode::OK
            },
        );
        for _ in 0..3 {
            check(
                &app.post().await,
                StatusCode::INTERNAL_SERVER_ERROR,
                "TRANSACTION_FAILED",
            );
        }
        assert!(
            app.own.hold(slot("a"), "ann").await.is_ok(),
            "{sql}: the pool is sane"
        );
        assert_eq!(visits(&db).await, 1);
    }
}

#[tokio::test]
async fn a_deferred_constraint_refused_at_commit_is_a_500() {
    let db = postgres().await;
    let pool = db.pool::<Postgres>().unwrap();
    let deferred = "alter table visits add constraint later unique (guest) deferrable initially deferred; \
                    alter table visits drop constraint visits_guest_key";
    sqlx::raw_sql(deferred).execute(pool).await.unwrap();
    let app = App::new(db.clone(), async |mut guard: ReservationGuard<Postgres>| {
        for _ in 0..2 {
            let mut lease = guard.transaction().await.unwrap();
            let visit = sqlx::query("insert into visits values ('ann')");
            visit.execute(&mut *lease).await.unwrap();
        }
        StatusCode::OK
    });
    check(
        &app.post().await,
        StatusCode::INTERNAL_SERVER_ERROR,
        "TRANSACTION_FAILED",
    );
    assert_eq!(visits(&db).await, 0);
}

#[tokio::test]
async fn an_early_commit_that_failed_and_was_swallowed_never_ends_as_a_success() {
    let db = postgres().await;
    let app = App::new(db.clone(), async |mut guard: ReservationGuard<Postgres>| {
        guard.hold(slot("a"), "ann").await.unwrap();
        for _ in 0..2 {
            let mut lease = guard.transaction().await.unwrap();
            let visit = sqlx::query("insert into visits values ('ann')");
            let _ = visit.execute(&mut *lease).await;
        }
        assert!(guard.commit().await.is_err());
        StatusCode::OK
    });
    check(
        &app.post().await,
        StatusCode::INTERNAL_SERVER_ERROR,
        "TRANSACTION_FAILED",
    );
    assert_eq!(visits(&db).await, 0);
}

#[tokio::test]
async fn a_guard_that_outlives_its_handler_costs_the_success() {
    for store in stores().await {
        let kept: Arc<Mutex<Option<ReservationGuard>>> = Arc::default();
        let keeper = Arc::clone(&kept);
        let app = App::new(store, async move |mut guard: ReservationGuard| {
            guard.hold(slot("a"), "ann").await.unwrap();
            *keeper.lock().unwrap() = Some(guard);
            StatusCode::OK
        });
        check(
            &app.post().await,
            StatusCode::INTERNAL_SERVER_ERROR,
            "TRANSACTION_LEAKED",
        );
        assert!(!app.is_taken(&slot("a")).await);
        let mut leaked = kept.lock().unwrap().take().unwrap();
        let later = leaked.hold(slot("b"), "ann").await;
        assert!(matches!(later, Err(ReservationError::TransactionLeaked)));
        assert!(app.own.hold(slot("a"), "bob").await.is_ok());
    }
}

#[tokio::test]
async fn a_lease_in_a_task_costs_the_success_and_is_rolled_back_when_it_comes_back() {
    let db = sqlite().await;
    let (let_go, going): (oneshot::Sender<()>, _) = oneshot::channel();
    let going = Arc::new(Mutex::new(Some(going)));
    let app = App::new(
        db.clone(),
        async move |mut guard: ReservationGuard<Sqlite>| {
            let going = going.lock().unwrap().take().unwrap();
            let (leased, has_lease) = oneshot::channel();
            tokio::spawn(async move {
                let mut lease = guard.transaction().await.unwrap();
                let visit = sqlx::query("insert into visits values ('ann')");
                visit.execute(&mut *lease).await.unwrap();
                leased.send(()).unwrap();
                let _ = going.await;
            });
            has_lease.await.unwrap();
            StatusCode::OK
        },
    );
    check(
        &app.post().await,
        StatusCode::INTERNAL_SERVER_ERROR,
        "TRANSACTION_LEAKED",
    );
    let_go.send(()).unwrap();
    assert!(app.own.hold(slot("a"), "bob").await.is_ok());
    assert_eq!(visits(&db).await, 0);
}

#[tokio::test]
async fn a_panic_rolls_back() {
    for store in stores().await {
        let app = App::new(store, async |mut guard: ReservationGuard| {
            guard.hold(slot("a"), "ann").await.unwrap();
            if guard
                .find(tower_keep::reservation::HoldRef::payment("none"))
                .await
                .is_ok()
            {
                panic!("on purpose");
            }
            StatusCode::OK
        });
        assert!(tokio::spawn(app.call()).await.unwrap_err().is_panic());
        assert!(app.own.hold(slot("a"), "bob").await.is_ok());
    }
}

/// Polls a request `polls` times and drops it.
async fn cancel_after(app: &App, polls: usize) {
    let mut call = Box::pin(app.call());
    for _ in 0..polls {
        let done = poll_fn(|cx| Poll::Ready(call.as_mut().poll(cx).is_ready())).await;
        if done {
            return;
        }
        tokio::task::yield_now().await;
    }
}

async fn several(mut guard: ReservationGuard) -> Result<StatusCode, ReservationRejection> {
    let hold = guard.hold([slot("a"), slot("b")], "ann").await?;
    guard.find(hold.id()).await?;
    guard.release(hold.id(), "ann").await?;
    Ok(StatusCode::OK)
}

#[tokio::test]
async fn a_memory_database_survives_1000_cancelled_requests() {
    let db = sqlite().await;
    let app = App::new(db.clone(), several);
    for request in 0..1_000 {
        cancel_after(&app, request % 40).await;
    }
    assert_eq!(app.post().await.status, StatusCode::OK);
    assert!(!app.is_taken(&slot("a")).await);
    assert_eq!(visits(&db).await, 0, "it is still the same database");
}

#[tokio::test]
async fn cancelled_requests_leave_no_session_in_a_transaction() {
    let db = postgres().await;
    let app = App::new(db.clone(), several);
    for request in 0..1_000 {
        cancel_after(&app, request % 60).await;
    }
    assert_eq!(app.post().await.status, StatusCode::OK);
    let pool = db.pool::<Postgres>().unwrap().clone();
    db.close(std::time::Duration::from_secs(10)).await;
    assert!(pool.is_closed());
    let url = pool.connect_options();
    let own = sqlx::PgPool::connect_with((*url).clone()).await.unwrap();
    let idle: i64 = sqlx::query_scalar(
        "select count(*) from pg_stat_activity where datname = current_database() \
         and state like 'idle in transaction%'",
    )
    .fetch_one(&own)
    .await
    .unwrap();
    assert_eq!(idle, 0);
}

#[tokio::test]
async fn cancelled_requests_leave_no_lock_in_memory() {
    let app = App::new(memory(), several);
    for request in 0..1_000 {
        cancel_after(&app, request % 10).await;
    }
    assert!(app.own.hold(slot("a"), "bob").await.is_ok());
}

#[tokio::test]
async fn an_operation_dropped_half_way_dooms_the_transaction() {
    for db in [sqlite().await, postgres().await] {
        let app = App::new(db, async |mut guard: ReservationGuard| {
            guard.hold(slot("a"), "ann").await.unwrap();
            // A quick engine may be done within one poll: the one that is dropped is under way.
            let is_half_way = async |guard: &mut ReservationGuard, at: u32| {
                let other = slot("b").unit(at.to_string());
                let mut second = Box::pin(guard.hold(other, "ann").into_future());
                poll_fn(|cx| Poll::Ready(second.as_mut().poll(cx).is_pending())).await
            };
            let mut at = 0;
            while !is_half_way(&mut guard, at).await {
                at += 1;
                // Out of the runtime's budget, an operation would be dropped before it has begun.
                tokio::task::yield_now().await;
                assert!(at < 3_000, "every operation is done within one poll");
            }
            let next = guard.hold(slot("c"), "ann").await;
            assert!(next.is_err(), "after {at} that were done at once: {next:?}");
            StatusCode::OK
        });
        check(
            &app.post().await,
            StatusCode::INTERNAL_SERVER_ERROR,
            "TRANSACTION_FAILED",
        );
        assert!(!app.is_taken(&slot("a")).await);
    }
}

#[tokio::test]
async fn a_request_that_touches_nothing_opens_nothing() {
    let db = sqlite().await;
    let pool = db.pool::<Sqlite>().unwrap().clone();
    let app = App::new(db, async move |_: ReservationGuard| {
        // The only connection can be had.
        assert!(pool.acquire().await.is_ok());
        StatusCode::OK
    });
    for _ in 0..3 {
        assert_eq!(app.post().await.status, StatusCode::OK);
    }
}

#[tokio::test]
async fn a_transaction_open_for_too_long_is_taken_back() {
    let db = SqlStore::builder("sqlite::memory:")
        .transaction_timeout(std::time::Duration::from_millis(50))
        .clock(super::clock())
        .open()
        .await
        .unwrap();
    let other = tower_keep::reservation::ReservationLayer::new(db.clone()).reservations();
    let app = App::new(db.clone(), async move |mut guard: ReservationGuard| {
        guard.hold(slot("a"), "ann").await.unwrap();
        // The slow handler's lock is gone before it is done.
        other.hold(slot("a"), "bob").await.unwrap();
        StatusCode::OK
    });
    check(
        &app.post().await,
        StatusCode::INTERNAL_SERVER_ERROR,
        "TRANSACTION_FAILED",
    );
    assert!(ReservationStore::now(&db) > tower_keep::core::Timestamp::EPOCH);
}

#[tokio::test]
async fn a_transaction_past_its_time_has_failed_and_leaked_nothing() {
    let short = std::time::Duration::from_secs(2);
    let db = SqlStore::builder("sqlite::memory:").transaction_timeout(short);
    let app = App::new(
        db.clock(super::clock()).open().await.unwrap(),
        async move |mut guard: ReservationGuard<Sqlite>| {
            guard.hold(slot("a"), "ann").await.unwrap();
            let lease = guard.transaction().await.unwrap();
            tokio::time::sleep(2 * short).await;
            // Whoever takes it back waits for this, and has its turn before the answer is out.
            drop(lease);
            StatusCode::OK
        },
    );
    check(
        &app.post().await,
        StatusCode::INTERNAL_SERVER_ERROR,
        "TRANSACTION_FAILED",
    );
    assert!(!app.is_taken(&slot("a")).await);
}

#[tokio::test]
async fn a_transaction_ends_in_time_although_the_runtime_that_watched_has_gone() {
    let db = SqlStore::builder("sqlite::memory:")
        .transaction_timeout(std::time::Duration::from_secs(3))
        .lock_timeout(60 * super::SECOND)
        .acquire_timeout(60 * super::SECOND)
        .clock(super::clock())
        .open()
        .await
        .unwrap();
    let own = tower_keep::reservation::ReservationLayer::new(db.clone()).reservations();
    own.migrate().await.unwrap();
    let (begun, has_begun) = std::sync::mpsc::channel::<()>();
    let (first_ended, first_has_ended) = oneshot::channel();
    let first = std::thread::spawn({
        let own = own.clone();
        move || {
            let mut runtime = tokio::runtime::Builder::new_multi_thread();
            let runtime = runtime.worker_threads(1).enable_all().build().unwrap();
            runtime.block_on(own.hold(slot("first"), "ann")).unwrap();
            first_ended.send(()).unwrap();
            // The runtime, and who watches on it, lives on until another has begun.
            has_begun.recv().unwrap();
        }
    });
    first_has_ended.await.unwrap();
    let app = App::new(db, async move |mut guard: ReservationGuard| {
        guard.hold(slot("a"), "ann").await.unwrap();
        begun.send(()).unwrap();
        // Has its turn once this one's time is over.
        own.hold(slot("a"), "bob").await.unwrap();
        StatusCode::OK
    });
    check(
        &app.post().await,
        StatusCode::INTERNAL_SERVER_ERROR,
        "TRANSACTION_FAILED",
    );
    first.join().unwrap();
}
