//! How requests end: what commits, what rolls back, what hooks are told.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::response::IntoResponse;
use http::StatusCode;
use tokio::sync::{Notify, mpsc};
use tower_keep::backend::sql::{Postgres, Sqlite};
use tower_keep::core::RollbackCause;
use tower_keep::reservation::{
    Commit, HoldOutcome, Payment, ReservationError, ReservationGuard, ReservationLayer,
    ReservationRejection, ReservationStore, Rollback,
};

use super::{App, HELD, MINUTE, check, memory, postgres, slot, sqlite, stores, visits};

async fn answer_with(
    mut guard: ReservationGuard,
    status: StatusCode,
) -> Result<StatusCode, ReservationRejection> {
    guard.hold(slot("a"), "ann").await?;
    Ok(status)
}

#[tokio::test]
async fn success_is_committed_before_it_is_seen_and_every_other_status_rolls_back() {
    for (at, store) in stores().await.into_iter().enumerate() {
        let created = App::new(Arc::clone(&store), async |guard: ReservationGuard| {
            answer_with(guard, StatusCode::NOT_FOUND).await
        });
        assert_eq!(created.post().await.status, StatusCode::NOT_FOUND);
        assert!(!created.is_taken(&slot("a")).await, "engine {at}");
        let created = App::new(store, async |guard: ReservationGuard| {
            answer_with(guard, StatusCode::CREATED).await
        });
        assert_eq!(created.call().await.status(), StatusCode::CREATED);
        assert!(created.is_taken(&slot("a")).await, "engine {at}");
    }
}

#[tokio::test]
async fn an_override_beats_the_status() {
    for store in stores().await {
        let kept = App::new(Arc::clone(&store), async |mut guard: ReservationGuard| {
            guard.hold(slot("kept"), "ann").await.unwrap();
            Commit(StatusCode::CONFLICT)
        });
        assert_eq!(kept.post().await.status, StatusCode::CONFLICT);
        assert!(kept.is_taken(&slot("kept")).await);
        let undone = App::new(store, async |mut guard: ReservationGuard| {
            guard.hold(slot("undone"), "ann").await.unwrap();
            Rollback(StatusCode::OK)
        });
        assert_eq!(undone.post().await.status, StatusCode::OK);
        assert!(!undone.is_taken(&slot("undone")).await);
    }
}

#[tokio::test]
async fn the_handlers_own_sql_shares_the_transaction() {
    let db = sqlite().await;
    let app = App::new(db.clone(), async |mut guard: ReservationGuard<Sqlite>| {
        let hold = guard.hold(slot("a"), "ann").await?;
        let visit = sqlx::query("insert into visits values ('ann')");
        visit.execute(&mut *guard.transaction().await?).await?;
        guard.extend(hold.id(), "ann", MINUTE).await?;
        if hold.outcome() == HoldOutcome::Reused {
            return Ok::<_, ReservationRejection>(StatusCode::IM_A_TEAPOT);
        }
        Ok(StatusCode::CREATED)
    });
    assert_eq!(app.post().await.status, StatusCode::CREATED);
    assert_eq!(visits(&db).await, 1);
    check(
        &app.post().await,
        StatusCode::INTERNAL_SERVER_ERROR,
        "INTERNAL",
    );
    let db = postgres().await;
    let app = App::new(db.clone(), async |mut guard: ReservationGuard<Postgres>| {
        let visit = sqlx::query("insert into visits values ('ann')");
        visit.execute(&mut *guard.transaction().await?).await?;
        guard.hold(slot("a"), "ann").await?;
        Ok::<_, ReservationRejection>(StatusCode::CREATED)
    });
    assert_eq!(app.post().await.status, StatusCode::CREATED);
    assert_eq!(visits(&db).await, 1);
}

#[tokio::test]
async fn a_provider_failure_after_the_hold_releases_it() {
    for store in stores().await {
        let app = App::new(store, async |mut guard: ReservationGuard| {
            let hold = guard.hold(slot("a"), "ann").await.unwrap();
            guard.commit().await.unwrap();
            assert_eq!(guard.find(hold.id()).await.unwrap().unwrap().state(), HELD);
            StatusCode::BAD_GATEWAY
        });
        assert_eq!(app.post().await.status, StatusCode::BAD_GATEWAY);
        assert!(!app.is_taken(&slot("a")).await);
    }
}

#[tokio::test]
async fn a_hold_committed_early_is_released_when_the_rest_cannot_be_committed() {
    for db in [sqlite().await, postgres().await] {
        let app = App::new(db, async |mut guard: ReservationGuard| {
            guard.hold(slot("a"), "ann").await.unwrap();
            guard.commit().await.unwrap();
            // An operation dropped before its answer dooms what follows.
            doom(&mut guard).await;
            StatusCode::OK
        });
        let refused = app.post().await;
        check(
            &refused,
            StatusCode::INTERNAL_SERVER_ERROR,
            "TRANSACTION_FAILED",
        );
        assert!(!app.is_taken(&slot("a")).await);
    }
}

/// Drops an operation with many statements once it has sent some of them.
async fn doom(guard: &mut ReservationGuard) {
    let begun = guard.find(tower_keep::reservation::HoldRef::payment("p"));
    assert!(begun.await.unwrap().is_none());
    // A busy machine may let the worker of SQLite answer within one poll.
    for n in 0.. {
        let wish = |at: u32| slot("c").unit(format!("{n} {at}"));
        let many: tower_keep::reservation::Slots = (0..32).map(wish).collect();
        let mut dropped = Box::pin(guard.hold(many, "ann").into_future());
        let polled = std::future::poll_fn(|cx| std::task::Poll::Ready(dropped.as_mut().poll(cx)));
        if polled.await.is_pending() {
            return;
        }
    }
}

#[tokio::test]
async fn an_early_commit_that_nobody_waited_for_is_undone_with_the_answer() {
    for db in [sqlite().await, postgres().await] {
        let app = App::new(db, async |mut guard: ReservationGuard| {
            guard.hold(slot("a"), "ann").await.unwrap();
            // A timeout round the commit: it goes on, the handler has given up.
            let mut commit = Box::pin(guard.commit());
            std::future::poll_fn(|cx| {
                let _ = commit.as_mut().poll(cx);
                std::task::Poll::Ready(())
            })
            .await;
            drop(commit);
            let payment = tower_keep::reservation::HoldRef::payment("p");
            assert!(guard.find(payment).await.unwrap().is_none());
            StatusCode::GATEWAY_TIMEOUT
        });
        assert_eq!(app.post().await.status, StatusCode::GATEWAY_TIMEOUT);
        assert!(!app.is_taken(&slot("a")).await);
    }
}

#[tokio::test]
async fn what_was_committed_early_stays_when_the_answer_is_good() {
    for store in stores().await {
        let app = App::new(store, async |mut guard: ReservationGuard| {
            guard.hold(slot("a"), "ann").await.unwrap();
            guard.commit().await.unwrap();
            guard.hold(slot("b"), "ann").await.unwrap();
            StatusCode::OK
        });
        assert_eq!(app.post().await.status, StatusCode::OK);
        assert!(app.is_taken(&slot("a")).await && app.is_taken(&slot("b")).await);
    }
}

#[tokio::test]
async fn hooks_are_told_how_it_ended_and_run_when_it_has() {
    for store in stores().await {
        let (told, mut heard) = mpsc::unbounded_channel();
        let layer = ReservationLayer::new(store);
        let own = layer.reservations();
        let app = App::with(layer, async move |mut guard: ReservationGuard| {
            let (yes, no, lost) = (told.clone(), told.clone(), told.clone());
            guard.after_commit(async move { yes.send("committed".to_owned()).unwrap() });
            guard.after_rollback(async move |cause: RollbackCause| {
                no.send(format!("{cause:?}")).unwrap();
            });
            guard.on_conflict(async move |_| lost.send("lost".to_owned()).unwrap());
            guard.hold(slot("a").units(1).of(1), "ann").key("1").await?;
            Ok::<_, ReservationRejection>(StatusCode::OK)
        });
        assert_eq!(app.post().await.status, StatusCode::OK);
        assert_eq!(heard.recv().await.unwrap(), "committed");
        assert!(own.hold(slot("a").units(1).of(2), "bob").await.is_ok());
        assert_eq!(app.post().await.status, StatusCode::OK);
        assert_eq!(heard.recv().await.unwrap(), "committed");
    }
    let (told, mut heard) = mpsc::unbounded_channel();
    let app = App::new(memory(), async move |mut guard: ReservationGuard| {
        let (no, lost) = (told.clone(), told.clone());
        guard.after_rollback(async move |cause| no.send(format!("{cause:?}")).unwrap());
        guard.on_conflict(async move |_| lost.send("lost".to_owned()).unwrap());
        guard.hold(slot("a"), "bob").await?;
        Ok::<_, ReservationRejection>(StatusCode::OK)
    });
    app.own.hold(slot("a"), "ann").await.unwrap();
    assert_eq!(app.post().await.status, StatusCode::CONFLICT);
    assert_eq!(heard.recv().await.unwrap(), "Conflict");
    assert_eq!(heard.recv().await.unwrap(), "lost");
}

#[tokio::test]
async fn the_payment_session_is_expired_after_the_rollback() {
    let db = sqlite().await;
    let (told, mut heard) = mpsc::unbounded_channel();
    let seen = db.clone();
    let app = App::new(db, async move |mut guard: ReservationGuard<Sqlite>| {
        let (told, db) = (told.clone(), seen.clone());
        guard.after_rollback(async move |_| {
            // The only connection is free again: no lock is held over this call.
            told.send(visits(&db).await).unwrap();
        });
        let visit = sqlx::query("insert into visits values ('ann')");
        let mut lease = guard.transaction().await.unwrap();
        visit.execute(&mut *lease).await.unwrap();
        StatusCode::PAYMENT_REQUIRED
    });
    assert_eq!(app.post().await.status, StatusCode::PAYMENT_REQUIRED);
    assert_eq!(heard.recv().await, Some(0));
}

#[tokio::test]
async fn an_inner_layer_only_votes() {
    let db = sqlite().await;
    let outer = ReservationLayer::new(db.clone());
    for (status, taken) in [(StatusCode::BAD_REQUEST, false), (StatusCode::OK, true)] {
        let app = App::with(
            ReservationLayer::new(db.clone()),
            async move |mut guard: ReservationGuard| {
                guard.hold(slot("a"), "ann").await.unwrap();
                assert!(matches!(
                    guard.commit().await,
                    Err(ReservationError::NotOwner)
                ));
                status
            },
        );
        let both = App {
            router: app.router.layer(outer.clone()),
            own: app.own,
        };
        assert_eq!(both.post().await.status, status);
        assert_eq!(both.is_taken(&slot("a")).await, taken);
    }
}

#[tokio::test]
async fn a_run_commits_and_is_done_again_after_contention() {
    for store in stores().await {
        let own = ReservationLayer::new(store).reservations();
        let tries = AtomicUsize::new(0);
        let tries = &tries;
        let held = own
            .run(|mut guard: ReservationGuard| async move {
                let hold = guard.hold(slot("a"), "ann").await?;
                if tries.fetch_add(1, Ordering::SeqCst) < 2 {
                    return Err(ReservationError::Contention { again: true });
                }
                assert!(matches!(
                    guard.commit().await,
                    Err(ReservationError::NotOwner)
                ));
                Ok(hold)
            })
            .await
            .unwrap();
        assert_eq!(tries.load(Ordering::SeqCst), 3);
        assert_eq!(own.find(held.id()).await.unwrap().unwrap().state(), HELD);
        let waited = own
            .run(|_: ReservationGuard| async move {
                tries.fetch_add(1, Ordering::SeqCst);
                Err::<(), _>(ReservationError::Contention { again: false })
            })
            .await;
        assert!(waited.is_err());
        assert_eq!(tries.load(Ordering::SeqCst), 4);
    }
}

#[tokio::test]
async fn services_without_axum_take_the_guard_from_the_extensions() {
    use std::convert::Infallible;
    use tower::{Layer, ServiceExt, service_fn};
    let layer = ReservationLayer::new(memory());
    let own = layer.reservations();
    let service = layer.layer(service_fn(async |request: http::Request<()>| {
        let mut guard: ReservationGuard =
            ReservationGuard::from_extensions(request.extensions()).unwrap();
        guard.hold(slot("a"), "ann").await.unwrap();
        Ok::<_, Infallible>(http::Response::new(
            axum::body::Body::empty().into_response(),
        ))
    }));
    service.oneshot(http::Request::new(())).await.unwrap();
    let calendar = own.availability("a", slot("a").blocks()).await.unwrap();
    assert_eq!(calendar.spans().len(), 1);
}

#[tokio::test]
async fn a_sweeper_tells_an_expiry_and_asks_again_until_it_is_taken() {
    use tower_keep::reservation::{DeliveryError, EventKind, Sweeper};
    let (clock, calls) = (super::clock(), Arc::new(AtomicUsize::new(0)));
    let store = tower_keep::backend::memory::MemoryStore::builder().clock(clock.clone());
    let own = ReservationLayer::new(store.build()).reservations();
    let hold = own.hold(slot("a"), "ann").await.unwrap().id();
    let counted = Arc::clone(&calls);
    let sweeper = Sweeper::new(&own).on_event(move |event| {
        let first = counted.fetch_add(1, Ordering::SeqCst) == 0;
        async move {
            assert_eq!((event.hold, event.kind), (hold, EventKind::Expired));
            if first {
                return Err(DeliveryError::from("not now"));
            }
            Ok(())
        }
    });
    clock.advance(10 * MINUTE);
    sweeper.once().await.unwrap();
    sweeper.once().await.unwrap();
    assert_eq!(calls.load(Ordering::SeqCst), 1, "a failure waits");
    clock.advance(MINUTE);
    sweeper.clone().run(async {}).await;
    sweeper.once().await.unwrap();
    assert_eq!(calls.load(Ordering::SeqCst), 2);
}

/// Two submits of one form: the first has committed its hold and waits for the provider, the second meets that hold.
async fn two_submits(
    store: Arc<dyn ReservationStore>,
    pays: bool,
    first_answer: StatusCode,
) -> [StatusCode; 2] {
    let (entered, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let gates = (Arc::clone(&entered), Arc::clone(&go));
    let first = App::new(Arc::clone(&store), move |mut guard: ReservationGuard| {
        let (entered, go) = gates.clone();
        async move {
            let hold = guard.hold(slot("a"), "ann").await.unwrap();
            guard.commit().await.unwrap();
            // Its own changes are no reason to keep it.
            let payment = Payment::new("first");
            guard.attach_payment(hold.id(), payment).await.unwrap();
            guard.commit().await.unwrap();
            entered.notify_one();
            go.notified().await;
            first_answer
        }
    });
    let second = App::new(store, move |mut guard: ReservationGuard| async move {
        let hold = guard.hold(slot("a"), "ann").await.unwrap();
        assert_eq!(hold.outcome(), HoldOutcome::Reused);
        if pays {
            let payment = Payment::new("second");
            guard.attach_payment(hold.id(), payment).await.unwrap();
        }
        StatusCode::CREATED
    });
    let later = async {
        entered.notified().await;
        let answer = second.post().await.status;
        go.notify_one();
        answer
    };
    let (first, second) = tokio::join!(first.post(), later);
    [first.status, second]
}

#[tokio::test]
async fn a_failed_request_does_not_release_what_another_has_answered_for() {
    for pays in [true, false] {
        for (at, store) in stores().await.into_iter().enumerate() {
            let answers = two_submits(Arc::clone(&store), pays, StatusCode::BAD_GATEWAY).await;
            assert_eq!(answers, [StatusCode::BAD_GATEWAY, StatusCode::CREATED]);
            let desk = App::new(store, async |_: ReservationGuard| StatusCode::OK);
            assert!(desk.is_taken(&slot("a")).await, "engine {at}, pays {pays}");
        }
    }
}

#[tokio::test]
async fn a_failed_request_releases_what_it_changed_itself() {
    for (at, store) in stores().await.into_iter().enumerate() {
        let app = App::new(store, async |mut guard: ReservationGuard| {
            let hold = guard.hold(slot("a"), "ann").await.unwrap();
            guard.commit().await.unwrap();
            guard.extend(hold.id(), "ann", 11 * MINUTE).await.unwrap();
            guard.commit().await.unwrap();
            let again = guard.hold(slot("a"), "ann").await.unwrap();
            assert_eq!(again.id(), hold.id());
            // Rolled back with the answer.
            let payment = Payment::new("p");
            guard.attach_payment(hold.id(), payment).await.unwrap();
            StatusCode::BAD_GATEWAY
        });
        assert_eq!(app.post().await.status, StatusCode::BAD_GATEWAY);
        assert!(!app.is_taken(&slot("a")).await, "engine {at}");
    }
}

/// The holder has his hold answered for by another request once the first has committed it; then the first goes on, and
/// fails. Whether the slot is still taken.
async fn answered_for_meanwhile(
    store: Arc<dyn ReservationStore>,
    pays: bool,
    in_a_route: bool,
) -> bool {
    let (entered, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let gates = (Arc::clone(&entered), Arc::clone(&go));
    let first = App::new(Arc::clone(&store), move |mut guard: ReservationGuard| {
        let (entered, go) = gates.clone();
        async move {
            let hold = guard.hold(slot("a"), "ann").await.unwrap();
            let payment = Payment::new("p");
            if pays {
                let paid = guard.attach_payment(hold.id(), payment.clone()).await;
                paid.unwrap();
            }
            guard.commit().await.unwrap();
            entered.notify_one();
            go.notified().await;
            if pays {
                guard.attach_payment(hold.id(), payment).await.unwrap();
                guard.commit().await.unwrap();
            }
            StatusCode::BAD_GATEWAY
        }
    });
    let second = App::new(store, async |mut guard: ReservationGuard| {
        let hold = guard.hold(slot("a"), "ann").await.unwrap();
        assert_eq!(hold.outcome(), HoldOutcome::Reused);
        StatusCode::CREATED
    });
    let later = async {
        entered.notified().await;
        if in_a_route {
            assert_eq!(second.post().await.status, StatusCode::CREATED);
        } else {
            let hold = second.own.hold(slot("a"), "ann").await.unwrap();
            assert_eq!(hold.outcome(), HoldOutcome::Reused);
        }
        go.notify_one();
    };
    let (failed, ()) = tokio::join!(first.post(), later);
    assert_eq!(failed.status, StatusCode::BAD_GATEWAY);
    second.is_taken(&slot("a")).await
}

#[tokio::test]
async fn a_failed_request_does_not_release_what_was_met_outside_any_request() {
    for (at, store) in stores().await.into_iter().enumerate() {
        let is_taken = answered_for_meanwhile(store, false, false).await;
        assert!(is_taken, "engine {at}");
    }
}

#[tokio::test]
async fn a_step_that_changes_nothing_makes_no_hold_of_anothers_ones_own() {
    for (at, store) in stores().await.into_iter().enumerate() {
        let is_taken = answered_for_meanwhile(store, true, true).await;
        assert!(is_taken, "engine {at}");
    }
}

#[tokio::test]
async fn a_second_early_commit_that_nobody_waited_for_is_undone_with_the_answer() {
    for db in [sqlite().await, postgres().await] {
        let app = App::new(db, async |mut guard: ReservationGuard| {
            let hold = guard.hold(slot("a"), "ann").await.unwrap();
            guard.commit().await.unwrap();
            guard.extend(hold.id(), "ann", 11 * MINUTE).await.unwrap();
            let mut commit = Box::pin(guard.commit());
            std::future::poll_fn(|cx| {
                let _ = commit.as_mut().poll(cx);
                std::task::Poll::Ready(())
            })
            .await;
            drop(commit);
            StatusCode::GATEWAY_TIMEOUT
        });
        assert_eq!(app.post().await.status, StatusCode::GATEWAY_TIMEOUT);
        assert!(!app.is_taken(&slot("a")).await);
    }
}
