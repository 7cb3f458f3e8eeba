//! What hooks are told where an end could have several causes, and who may end it.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use axum::response::IntoResponse;
use axum::routing::post;
use futures_util::FutureExt;
use http::StatusCode;
use tokio::sync::{mpsc, oneshot};
use tower::{Layer, Service, service_fn};
use tower_keep::core::RollbackCause;
use tower_keep::reservation::{
    HoldOutcome, ReservationError, ReservationGuard, ReservationLayer, ReservationRejection,
    Reservations,
};

use super::{App, memory, slot, stores};

type Told = mpsc::UnboundedSender<String>;

/// Tells the cause of a rollback, and that a hold was refused where that was it.
fn listen(guard: &mut ReservationGuard, told: &Told) {
    let (cause, refused) = (told.clone(), told.clone());
    guard.after_rollback(async move |why| cause.send(format!("{why:?}")).unwrap());
    guard.on_conflict(async move |_| refused.send("refused".to_owned()).unwrap());
}

#[tokio::test]
async fn a_refused_hold_that_was_got_over_is_not_why_the_rest_fails() {
    let (told, mut heard) = mpsc::unbounded_channel();
    let layer = ReservationLayer::new(memory());
    let own = layer.reservations();
    own.hold(slot("a"), "bob").await.unwrap();
    let teller = told.clone();
    let app = App::with(layer, async move |mut guard: ReservationGuard| {
        listen(&mut guard, &teller);
        assert!(guard.hold(slot("a"), "ann").await.is_err());
        guard.hold(slot("b"), "ann").await.unwrap();
        StatusCode::BAD_GATEWAY
    });
    assert_eq!(app.post().await.status, StatusCode::BAD_GATEWAY);
    assert_eq!(heard.recv().await.unwrap(), "Status(502)");
    // The second hook runs behind the first: what it might tell is there when it is dropped.
    drop(app);
    drop(told);
    assert_eq!(heard.recv().await, None);
}

#[tokio::test]
async fn the_refusal_that_the_answer_names_is_the_cause() {
    for (named, expected) in [(true, "Conflict"), (false, "Status(500)")] {
        let (told, mut heard) = mpsc::unbounded_channel();
        let layer = ReservationLayer::new(memory());
        let own = layer.reservations();
        own.hold(slot("a"), "bob").await.unwrap();
        let app = App::with(layer, async move |mut guard: ReservationGuard| {
            listen(&mut guard, &told);
            let refused = guard.hold(slot("a"), "ann").await.unwrap_err();
            if named {
                guard.hold(slot("b"), "ann").await.unwrap();
                return ReservationRejection::from(refused);
            }
            ReservationRejection::from(ReservationError::Internal)
        });
        app.post().await;
        assert_eq!(heard.recv().await.unwrap(), expected);
        drop(app);
        let rest = if named { vec!["refused"] } else { vec![] };
        let mut more = Vec::new();
        while let Some(word) = heard.recv().await {
            more.push(word);
        }
        assert_eq!(more, rest);
    }
}

/// As layers do that answer to a panic: the future is dropped when the panic is over.
#[tokio::test]
async fn a_panic_that_somebody_catches_is_still_told_as_one() {
    for store in stores().await {
        let (told, mut heard) = mpsc::unbounded_channel();
        let action = service_fn(move |request: Request| {
            let told = told.clone();
            async move {
                let guard = ReservationGuard::from_extensions(request.extensions());
                let mut guard: ReservationGuard = guard.unwrap();
                listen(&mut guard, &told);
                if guard.hold(slot("a"), "ann").await.is_ok() {
                    panic!("on purpose");
                }
                Ok::<_, Infallible>(StatusCode::OK.into_response())
            }
        });
        let mut service = ReservationLayer::new(store).layer(action);
        let mut call = Box::pin(service.call(Request::default()));
        let caught = AssertUnwindSafe(&mut call).catch_unwind().await;
        assert!(caught.is_err());
        drop(call);
        assert_eq!(heard.recv().await.unwrap(), "Panic");
    }
}

#[tokio::test]
async fn a_panic_in_a_run_is_told_as_one() {
    for store in stores().await {
        let (told, mut heard) = mpsc::unbounded_channel::<RollbackCause>();
        let own = ReservationLayer::new(store).reservations();
        let task = tokio::spawn(async move {
            let body = move |mut guard: ReservationGuard| {
                let told = told.clone();
                async move {
                    guard.after_rollback(async move |cause| told.send(cause).unwrap());
                    let hold = guard.hold(slot("a"), "ann").await?;
                    assert_eq!(hold.outcome(), HoldOutcome::Reused, "on purpose");
                    Ok::<_, ReservationError>(())
                }
            };
            own.run(body).await
        });
        assert!(task.await.unwrap_err().is_panic());
        assert_eq!(heard.recv().await, Some(RollbackCause::Panic));
    }
}

#[tokio::test]
async fn a_middleware_goes_on_with_its_guard_when_a_layer_inside_is_done() {
    for store in stores().await {
        let inner = ReservationLayer::new(Arc::clone(&store));
        let outer = ReservationLayer::new(Arc::clone(&store));
        let own = outer.reservations();
        let action = async |mut guard: ReservationGuard| {
            guard.hold(slot("inside"), "ann").await?;
            Ok::<_, ReservationRejection>(StatusCode::OK)
        };
        let around = async |mut guard: ReservationGuard, request: Request, next: Next| {
            let answer = next.run(request).await;
            guard.hold(slot("outside"), "ann").await?;
            Ok::<_, ReservationRejection>(answer)
        };
        let router = Router::new().route("/", post(action)).layer(inner);
        let router = router.layer(from_fn(around)).layer(outer);
        let answer = crate::support::http::post(&router, "/", &[], "").await;
        assert_eq!(answer.status, StatusCode::OK);
        for name in ["inside", "outside"] {
            let taken = own.hold(slot(name), "bob").await;
            assert!(
                matches!(taken, Err(ReservationError::Conflict(_))),
                "{name}"
            );
        }
    }
}

/// Holds a place of the lane until told to end.
async fn hold_meanwhile(
    own: Reservations,
    has_lane: oneshot::Sender<()>,
    going: oneshot::Receiver<()>,
) -> Result<(), ReservationError> {
    let mut signals = Some((has_lane, going));
    let body = move |mut guard: ReservationGuard| {
        let signals = signals.take();
        async move {
            guard.hold(slot("a").units(1).of(2), "bob").await?;
            let (has_lane, going) = signals.unwrap();
            has_lane.send(()).unwrap();
            let _ = going.await;
            Ok(())
        }
    };
    own.run(body).await
}

#[tokio::test]
async fn a_commit_so_far_waits_for_the_step_of_another_guard() {
    for store in stores().await {
        let (told, mut heard) = mpsc::unbounded_channel();
        let layer = ReservationLayer::new(store);
        let own = layer.reservations();
        let (has_lane, waiting) = oneshot::channel();
        let (let_go, going) = oneshot::channel();
        let rival = tokio::spawn(hold_meanwhile(own.clone(), has_lane, going));
        waiting.await.unwrap();
        let let_go = Arc::new(Mutex::new(Some(let_go)));
        let action = async move |mut first: ReservationGuard, mut second: ReservationGuard| {
            listen(&mut second, &told);
            let told = told.clone();
            second.after_commit(async move { told.send("committed".to_owned()).unwrap() });
            let let_go = let_go.lock().unwrap().take().unwrap();
            let (held, committed, ()) = tokio::join!(
                async { first.hold(slot("a").units(1).of(2), "ann").await },
                second.commit(),
                async { let_go.send(()).unwrap() },
            );
            assert_eq!(held.unwrap().outcome(), HoldOutcome::Created);
            committed.unwrap();
            StatusCode::OK
        };
        let app = App::with(layer, action);
        assert_eq!(app.post().await.status, StatusCode::OK);
        rival.await.unwrap().unwrap();
        drop(app);
        assert_eq!(heard.recv().await.as_deref(), Some("committed"));
        assert_eq!(heard.recv().await, None);
        let full = own.hold(slot("a").units(1).of(2), "cid").await;
        assert!(matches!(full, Err(ReservationError::Conflict(_))));
    }
}

#[tokio::test]
async fn a_commit_so_far_that_waits_past_the_end_of_its_request_commits_nothing() {
    for store in stores().await {
        let layer = ReservationLayer::new(store);
        let own = layer.reservations();
        let (has_lane, waiting) = oneshot::channel();
        let (let_go, going) = oneshot::channel();
        let rival = tokio::spawn(hold_meanwhile(own.clone(), has_lane, going));
        waiting.await.unwrap();
        let (ended, mut heard) = mpsc::unbounded_channel();
        let action = async move |mut first: ReservationGuard, mut second: ReservationGuard| {
            let (asked, both_asked) = oneshot::channel();
            let ended = ended.clone();
            // The guards outlive the handler.
            tokio::spawn(async move {
                let (_, committed, ()) = tokio::join!(
                    async { first.hold(slot("a").units(1).of(2), "ann").await },
                    second.commit(),
                    async { asked.send(()).unwrap() },
                );
                ended.send(committed.is_ok()).unwrap();
            });
            both_asked.await.unwrap();
            StatusCode::OK
        };
        let app = App::with(layer, action);
        let answer = app.post().await;
        assert_eq!(answer.code(), "TRANSACTION_LEAKED");
        let_go.send(()).unwrap();
        rival.await.unwrap().unwrap();
        assert_eq!(heard.recv().await, Some(false));
        let place = own.hold(slot("a").units(1).of(2), "cid").await;
        assert!(place.is_ok(), "{place:?}");
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Broken(u8);

#[tokio::test]
async fn an_error_of_the_service_rolls_back_and_stays_what_it_is() {
    use tower::ServiceExt;
    for store in stores().await {
        let (told, mut heard) = mpsc::unbounded_channel();
        let layer = ReservationLayer::new(store);
        let own = layer.reservations();
        let action = service_fn(move |request: Request| {
            let told = told.clone();
            async move {
                let guard = ReservationGuard::from_extensions(request.extensions());
                let mut guard: ReservationGuard = guard.unwrap();
                listen(&mut guard, &told);
                guard.hold(slot("a"), "ann").await.unwrap();
                Err::<axum::response::Response, _>(Broken(7))
            }
        });
        let answered = layer.layer(action).oneshot(Request::default()).await;
        assert_eq!(answered.err(), Some(Broken(7)));
        assert_eq!(heard.recv().await.unwrap(), "Inner");
        own.hold(slot("a"), "bob").await.unwrap();
    }
}

/// The inner layer sees the leak and votes, the outer answers for the transaction.
#[tokio::test]
async fn a_leak_inside_takes_all_with_it_and_is_logged_by_its_route() {
    for store in stores().await {
        let log = crate::idempotency::secrets::Log::default();
        let _logging = log.listen();
        let inner = ReservationLayer::new(Arc::clone(&store));
        let outer = ReservationLayer::new(store);
        let own = outer.reservations();
        let kept: Arc<Mutex<Option<ReservationGuard>>> = Arc::default();
        let leaking = Arc::clone(&kept);
        let action = async move |mut guard: ReservationGuard| {
            guard.hold(slot("a"), "ann").await.unwrap();
            *leaking.lock().unwrap() = Some(guard);
            StatusCode::OK
        };
        let router = Router::new().route("/orders/{id}", post(action));
        let router = router.layer(inner).layer(outer);
        let answer = crate::support::http::post(&router, "/orders/17", &[], "").await;
        super::check(
            &answer,
            StatusCode::INTERNAL_SERVER_ERROR,
            "TRANSACTION_LEAKED",
        );
        own.hold(slot("a"), "bob").await.unwrap();
        let log = log.text();
        let line = log.lines().find(|line| line.contains("outlived")).unwrap();
        assert!(line.contains("ERROR"), "{line}");
        assert!(line.contains("route=POST /orders/{id}"), "{line}");
        assert!(!line.contains("/orders/17"), "{line}");
        drop(kept);
    }
}

/// Where no router says which route it is, the path does.
#[tokio::test]
async fn a_leak_without_a_router_is_logged_by_its_path() {
    use tower::ServiceExt;
    let log = crate::idempotency::secrets::Log::default();
    let _logging = log.listen();
    let kept: Arc<Mutex<Option<ReservationGuard>>> = Arc::default();
    let leaking = Arc::clone(&kept);
    let action = service_fn(move |request: Request| {
        let guard = ReservationGuard::from_extensions(request.extensions());
        *leaking.lock().unwrap() = Some(guard.unwrap());
        async { Ok::<_, Infallible>(StatusCode::OK.into_response()) }
    });
    let service = ReservationLayer::new(memory()).layer(action);
    let request = Request::put("/plain?secret=1").body(axum::body::Body::empty());
    let answer = service.oneshot(request.unwrap()).await.unwrap();
    assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
    let log = log.text();
    assert!(log.contains("route=PUT /plain"), "{log}");
    assert!(!log.contains("secret"), "{log}");
}

#[tokio::test]
async fn a_missing_layer_is_told_once_in_a_process() {
    let log = crate::idempotency::secrets::Log::default();
    let _logging = log.listen();
    let action = async |_: ReservationGuard| StatusCode::OK;
    let router = Router::new().route("/", post(action));
    for _ in 0..3 {
        let answer = crate::support::http::post(&router, "/", &[], "").await;
        assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
    }
    let log = log.text();
    assert_eq!(log.matches("no reservation layer").count(), 1, "{log}");
}
