//! Clients that leave, handlers that fail, and runs that take too long.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use tokio::sync::Notify;
use tower_keep::backend::memory::MemoryStore;
use tower_keep::backend::redis::RedisStore;
use tower_keep::backend::sql::SqlStore;
use tower_keep::core::{Clock, IdempotencyOutcome};
use tower_keep::idempotency::{
    IdempotencyLayer, IdempotencyStore, IdempotentRun, LeaseEnd, RecordId, Scope, ScopeId,
};
use tower_keep::{MINUTE, SECOND};

use super::{App, clock, layer, memory, post};
use crate::support::Wayward;

/// Polls `future` up to `times` times; returns whether it ended.
async fn poll_times<F: Future + ?Sized>(mut future: Pin<Box<F>>, times: usize) -> bool {
    for _ in 0..times {
        if poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx).is_ready())).await {
            return true;
        }
    }
    false
}

async fn counted_once(twins: tower_keep::idempotency::Twins) {
    let mut drops = 0;
    loop {
        let store = Wayward::yielding(memory(&clock()));
        let layer = layer(store).twins(twins);
        let app = App::with(layer.clone(), |_, run| async move {
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
            Response::new(Full::from(format!("run {run}")))
        });
        let ended = poll_times(app.future(post("/pay", "k", "{}")), drops).await;
        let drained = layer.drain(10 * SECOND).await;
        assert_eq!(drained.abandoned, 0);
        let answer = app.post("k", "{}").await;
        assert_eq!(
            (app.runs(), &answer.body[..]),
            (1, &b"run 1"[..]),
            "dropped at await {drops}"
        );
        if ended {
            assert!(answer.is_replay());
            assert!(drops > 5, "the test must have something to drop at");
            return;
        }
        drops += 1;
    }
}

#[tokio::test]
async fn a_client_that_leaves_at_any_await_gets_one_run_in_all() {
    counted_once(tower_keep::idempotency::Twins::Reject).await;
    counted_once(tower_keep::idempotency::Twins::Attach(10 * SECOND)).await;
}

#[tokio::test]
async fn a_panic_is_passed_on_and_frees_the_key_or_leaves_it_undecided() {
    for (end, code) in [(LeaseEnd::Reexecute, 201), (LeaseEnd::Indeterminate, 409)] {
        let app = App::with(
            layer(memory(&clock())).at_lease_end(end),
            |_, run| async move {
                assert!(run > 1, "the first run fails");
                Response::builder()
                    .status(201)
                    .body(Full::default())
                    .unwrap()
            },
        );
        let first = tokio::spawn(app.future(post("/pay", "k", "{}"))).await;
        assert!(first.unwrap_err().is_panic());
        assert_eq!(app.post("k", "{}").await.status, code, "{end:?}");
    }
}

#[tokio::test]
async fn an_operator_resolves_what_is_undecided() {
    use tower_keep::idempotency::{RecordState, ResolveError, ScopeId};
    let layer = layer(memory(&clock())).at_lease_end(LeaseEnd::Indeterminate);
    let app = App::with(layer.clone(), |_, _| async { panic!("undecided") });
    assert!(
        tokio::spawn(app.future(post("/pay", "k", "{}")))
            .await
            .is_err()
    );
    app.post("k", "{}")
        .await
        .check_refused(409, "IDEMPOTENCY_OUTCOME_UNKNOWN");
    let admin = layer.admin();
    let id = admin.id(&ScopeId::global(), "k");
    assert_eq!(id.to_string().parse::<RecordId>().unwrap(), id);
    let info = admin.get(&id).await.unwrap().unwrap();
    assert_eq!(info.state, RecordState::Unknown);
    let paid = Response::builder()
        .status(201)
        .body(Bytes::from("paid by hand"))
        .unwrap();
    admin.complete(&info, paid).await.unwrap();
    let again = app.post("k", "{}").await;
    assert_eq!(
        (again.is_replay(), &again.body[..]),
        (true, &b"paid by hand"[..])
    );
    assert_eq!(
        admin.get(&id).await.unwrap().unwrap().state,
        RecordState::Answered
    );
    admin.release(&info).await.unwrap();
    assert!(matches!(
        admin.release(&info).await,
        Err(ResolveError::Changed)
    ));
}

#[tokio::test(start_paused = true)]
async fn a_run_over_its_limit_is_dropped_and_the_key_is_free() {
    let app = App::with(layer(memory(&clock())), |_, run| async move {
        if run == 1 {
            tokio::time::sleep(10 * MINUTE).await;
        }
        Response::new(Full::default())
    });
    app.post("k", "{}")
        .await
        .check_refused(503, "IDEMPOTENCY_RUN_LIMIT");
    assert_eq!(
        app.post("k", "{}").await.outcome(),
        IdempotencyOutcome::First
    );
}

/// Follows the timers' clock, so that a store sees paused time.
#[derive(Debug)]
pub struct TimerClock(pub tokio::time::Instant);

impl Clock for TimerClock {
    fn now_micros(&self) -> u64 {
        1_893_456_000_000_000 + self.0.elapsed().as_micros() as u64
    }
}

#[tokio::test(start_paused = true)]
async fn a_long_run_keeps_its_lease_and_its_twin_is_told_to_wait() {
    let clock = TimerClock(tokio::time::Instant::now());
    let store = MemoryStore::builder().clock(clock).build();
    let app = App::with(layer(store), |request, _| async move {
        tokio::time::sleep(100 * SECOND).await;
        let run = request.extensions().get::<IdempotentRun>().unwrap();
        assert!(!run.is_lost());
        Response::new(Full::default())
    });
    let first = tokio::spawn(app.future(post("/pay", "k", "{}")));
    for _ in 0..9 {
        tokio::time::sleep(10 * SECOND).await;
        let twin = app.post("k", "{}").await;
        twin.check_refused(409, "IDEMPOTENCY_IN_PROGRESS");
        assert_eq!(twin.headers["retry-after"], "1");
        assert_eq!(twin.problem()["retryable"], true);
    }
    assert_eq!(first.await.unwrap().outcome(), IdempotencyOutcome::First);
    assert_eq!(app.runs(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_owner_that_was_overtaken_learns_it_and_changes_nothing() {
    let clock = clock();
    let (entered, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (inside, wait) = (Arc::clone(&entered), Arc::clone(&go));
    let app = App::with(layer(memory(&clock)), move |request, run| {
        let (inside, wait) = (Arc::clone(&inside), Arc::clone(&wait));
        async move {
            if run == 1 {
                inside.notify_one();
                let own = request.extensions().get::<IdempotentRun>().unwrap().clone();
                own.lost().await;
                assert!(own.is_lost());
                wait.notified().await;
            }
            Response::new(Full::from(format!("run {run}")))
        }
    });
    let zombie = tokio::spawn(app.future(post("/pay", "k", "{}")));
    entered.notified().await;
    clock.advance(30 * SECOND);
    assert_eq!(app.post("k", "{}").await.body, "run 2", "taken over");
    go.notify_one();
    let late = zombie.await.unwrap();
    assert_eq!(
        (&late.body[..], late.outcome()),
        (&b"run 1"[..], IdempotencyOutcome::Unrecorded)
    );
    assert_eq!(late.headers["idempotency-status"], "unrecorded");
    assert_eq!(
        app.post("k", "{}").await.body,
        "run 2",
        "the successor's answer stands"
    );
}

#[tokio::test(start_paused = true)]
async fn draining_waits_for_runs_and_gives_the_rest_up_at_once() {
    let layer = layer(memory(&clock()));
    let app = App::with(layer.clone(), |request: super::Inner, run| async move {
        let takes = if request.uri().path() == "/short" {
            SECOND
        } else {
            60 * MINUTE
        };
        if run <= 2 {
            tokio::time::sleep(takes).await;
        }
        Response::new(Full::default())
    });
    let short = tokio::spawn(app.future(post("/short", "a", "{}")));
    let long = tokio::spawn(app.future(post("/long", "b", "{}")));
    tokio::task::yield_now().await;
    let drained = layer.drain(10 * SECOND).await;
    assert_eq!((drained.finished, drained.abandoned), (1, 1));
    assert_eq!(short.await.unwrap().outcome(), IdempotencyOutcome::First);
    let next = app.send(post("/long", "b", "{}")).await;
    assert_eq!(
        next.outcome(),
        IdempotencyOutcome::First,
        "free at once, not after the lease"
    );
    long.abort();
}

/// A handler that names its run by axum's extractors and frees the key by a directive.
#[tokio::test]
async fn axum_handlers_take_the_run_and_return_directives() {
    use axum::{Router, body::Body, routing::post};
    use tower::ServiceExt;
    use tower_keep::idempotency::Directive;
    async fn handle(run: Option<IdempotentRun>) -> (Directive, String) {
        (
            Directive::Release,
            run.map_or(0, |run| run.fence()).to_string(),
        )
    }
    let app = Router::new()
        .route("/pay", post(handle))
        .layer(layer(memory(&clock())));
    let send = |key: Option<&str>| {
        let request = Request::post("/pay").header("idempotency-key", key.unwrap_or("k"));
        let mut request = request.body(Body::empty()).unwrap();
        if key.is_none() {
            request.headers_mut().clear();
        }
        let app = app.clone();
        async move {
            let response = app.oneshot(request).await.unwrap();
            let body = axum::body::to_bytes(response.into_body(), 99)
                .await
                .unwrap();
            String::from_utf8(body.to_vec())
                .unwrap()
                .parse::<u64>()
                .unwrap()
        }
    };
    let (first, second) = (send(Some("k")).await, send(Some("k")).await);
    assert!(
        second > first && first > 0,
        "a fence rises over all lives of a key"
    );
    assert_eq!(send(None).await, 0);
}

#[tokio::test]
async fn a_client_that_leaves_before_the_handler_starts_leaves_no_run_and_no_claim() {
    let store = memory(&clock());
    let layer = layer(Wayward::yielding(store.clone()));
    let app = App::new(layer.clone());
    for polls in [1, 2] {
        let key = format!("k{polls}");
        assert!(!poll_times(app.future(post("/pay", &key, "{}")), polls).await);
        layer.drain(10 * SECOND).await;
        assert_eq!(app.runs(), 0, "dropped after {polls} polls");
        let id = layer
            .admin()
            .id(&tower_keep::idempotency::ScopeId::global(), &key);
        assert!(
            store.peek(&id).await.unwrap().is_none(),
            "the claim is released"
        );
    }
}

/// Two callers ask for several keys each; what one of them got is removed, page by page.
async fn purged(store: impl IdempotencyStore + Clone, answers: usize) {
    let scope = Scope::by(|parts| Some(ScopeId::new(parts.headers["x-user"].as_bytes())));
    let app = App::new(IdempotencyLayer::new(store, scope));
    let send = |user: &'static str, key: String| {
        let mut request = post("/pay", &key, "{}");
        let user = http::HeaderValue::from_static(user);
        request.headers_mut().insert("x-user", user);
        app.send(request)
    };
    for n in 0..answers {
        assert!(!send("ann", n.to_string()).await.is_replay());
    }
    send("bob", "0".to_owned()).await;
    let admin = app.layer.admin();
    let ann = ScopeId::new("ann");
    assert_eq!(admin.purge(&ann).await.unwrap(), answers as u64);
    assert_eq!(admin.purge(&ann).await.unwrap(), 0);
    assert!(send("bob", "0".to_owned()).await.is_replay());
    for key in [0, answers - 1] {
        let id = admin.id(&ann, &key.to_string());
        assert!(admin.get(&id).await.unwrap().is_none());
        assert!(!send("ann", key.to_string()).await.is_replay(), "it runs");
    }
}

#[tokio::test]
async fn the_answers_of_a_caller_whose_rights_are_withdrawn_are_removed_and_no_others() {
    let clock = clock();
    purged(memory(&clock), 700).await;
    let server = crate::support::redis::shared().await;
    purged(server.store(&clock).await, 700).await;
    // Signs of patterns in the application's own prefix are signs like others.
    let odd = RedisStore::builder(&server.url()).prefix("a*[b]?");
    purged(odd.clock(clock.clone()).open().await.unwrap(), 3).await;
    let sqlite = SqlStore::builder("sqlite::memory:").clock(clock.clone());
    purged(sqlite.open().await.unwrap(), 700).await;
    let url = crate::support::postgres::shared().await.database().await;
    let postgres = SqlStore::builder(&url).acquire_timeout(20 * SECOND);
    purged(postgres.clock(clock).open().await.unwrap(), 700).await;
}

/// Work that never waits: the runtime alone makes it let others in between.
async fn busy_until(done: impl Fn() -> bool) {
    let most = std::time::Instant::now() + MINUTE / 2;
    while !done() && std::time::Instant::now() < most {
        tokio::task::consume_budget().await;
    }
}

#[tokio::test]
async fn the_lease_of_a_handler_that_always_has_something_to_do_is_renewed() {
    let (clock, renewed) = (clock(), Arc::new(AtomicBool::new(false)));
    let layer = layer(memory(&clock)).lease(Duration::from_millis(90));
    let seen = Arc::clone(&renewed);
    let app = App::with(layer.clone(), move |_, _| {
        let seen = Arc::clone(&seen);
        async move {
            busy_until(|| seen.load(Ordering::Acquire)).await;
            Response::new(Full::from("done"))
        }
    });
    let first = tokio::spawn(app.future(post("/pay", "k", "{}")));
    let (admin, mut began) = (layer.admin(), None);
    let id = admin.id(&ScopeId::global(), "k");
    while !first.is_finished() {
        tokio::task::yield_now().await;
        clock.advance(Duration::from_millis(1));
        let Some(record) = admin.get(&id).await.unwrap() else {
            continue;
        };
        if record.lease_until != *began.get_or_insert(record.lease_until) {
            renewed.store(true, Ordering::Release);
        }
    }
    assert!(renewed.load(Ordering::Acquire));
    assert_eq!(&first.await.unwrap().body[..], b"done");
}

#[tokio::test]
async fn a_handler_that_always_has_something_to_do_ends_at_its_limit() {
    let layer = layer(MemoryStore::new()).run_limit(Duration::from_millis(100));
    let app = App::with(layer, |_, _| async {
        busy_until(|| false).await;
        Response::new(Full::from("done"))
    });
    let answer = app.post("k", "{}").await;
    answer.check_refused(503, "IDEMPOTENCY_RUN_LIMIT");
}
