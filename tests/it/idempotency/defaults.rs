//! What holds where nothing is set: sizes, times, methods, who runs where.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use http::{Method, Request, Response};
use http_body_util::Full;
use parking_lot::Mutex;
use tokio::time::Instant;
use tower_keep::SECOND;
use tower_keep::backend::memory::MemoryStore;
use tower_keep::core::IdempotencyOutcome;
use tower_keep::idempotency::{IdempotencyLayer, Methods, Scope, Twins};

use super::leaving::TimerClock;
use super::transactional::{Place, connect};
use super::{App, clock, layer, memory, post};
use crate::rate_limit::metered::Metered;
use crate::support::Wayward;
use crate::support::wayward::{Step, away};

const MIB: usize = 1_024 * 1_024;

#[tokio::test]
async fn two_mib_come_in_and_are_kept_and_no_byte_more() {
    let app = App::with(layer(memory(&clock())), |request, _| async move {
        let answer = request.headers()["x-answer"].to_str().unwrap();
        Response::new(Full::from(vec![0; answer.parse().unwrap()]))
    });
    let send = |key: &str, bytes: usize, answer: usize| {
        let request = Request::post("/pay").header("idempotency-key", key);
        let request = request.header("x-answer", answer);
        app.send(request.body(Full::from(vec![0; bytes])).unwrap())
    };
    assert_eq!(send("in", 2 * MIB, 1).await.status, 200);
    let large = send("larger-in", 2 * MIB + 1, 1).await;
    large.check_refused(413, "BODY_TOO_LARGE");
    assert_eq!(app.runs(), 1);
    for (key, bytes) in [("out", 2 * MIB), ("larger-out", 2 * MIB + 1)] {
        let first = send(key, 1, bytes).await;
        assert_eq!((first.status.as_u16(), first.body.len()), (200, bytes));
    }
    let again = send("out", 1, 2 * MIB).await;
    assert_eq!((again.is_replay(), again.body.len()), (true, 2 * MIB));
    let again = send("larger-out", 1, 2 * MIB + 1).await;
    again.check_refused(409, "IDEMPOTENCY_NOT_REPLAYABLE");
}

#[tokio::test(start_paused = true)]
async fn a_run_has_five_minutes() {
    let app = App::with(layer(memory(&clock())), |request, _| async move {
        let seconds = request.headers()["x-seconds"].to_str().unwrap();
        tokio::time::sleep(seconds.parse::<u32>().unwrap() * SECOND).await;
        Response::new(Full::default())
    });
    let send = |seconds: &str| {
        let mut request = post("/pay", seconds, "{}");
        let value = seconds.parse().unwrap();
        request.headers_mut().insert("x-seconds", value);
        app.send(request)
    };
    assert_eq!(send("299").await.outcome(), IdempotencyOutcome::First);
    let began = Instant::now();
    let over = send("301").await;
    over.check_refused(503, "IDEMPOTENCY_RUN_LIMIT");
    assert_eq!(began.elapsed().as_secs(), 300);
}

#[tokio::test]
async fn a_full_store_is_503_with_half_a_minute_to_wait_and_runs_nothing() {
    let store = MemoryStore::builder().max_entries(1).build();
    let app = App::new(layer(store));
    assert_eq!(app.post("one", "{}").await.status, 201);
    let refused = app.post("two", "{}").await;
    refused.check_refused(503, "IDEMPOTENCY_STORE_FULL");
    assert_eq!(refused.headers["retry-after"], "30");
    assert_eq!(app.runs(), 1);
    assert!(app.post("one", "{}").await.is_replay());
}

#[test]
fn a_script_may_want_to_read_four_fields() {
    let layer = layer(MemoryStore::new()).replay_header("x-again".parse().unwrap());
    let names = layer.exposed_headers();
    let expected = [
        "x-again",
        "idempotency-status",
        "idempotency-expires",
        "retry-after",
    ];
    assert_eq!(names.map(|name| name.to_string()), expected);
}

#[tokio::test]
async fn the_safe_methods_and_connect_are_let_pass_and_all_others_are_guarded_if_so_set() {
    let post_patch = ["POST", "PATCH"];
    let not_safe = ["POST", "PATCH", "PUT", "DELETE", "M-SEARCH"];
    for (methods, guarded) in [
        (Methods::PostPatch, &post_patch[..]),
        (Methods::Unsafe, &not_safe),
    ] {
        for method in [
            "GET", "HEAD", "OPTIONS", "TRACE", "CONNECT", "POST", "PATCH", "PUT", "DELETE",
            "M-SEARCH",
        ] {
            let app = App::new(layer(MemoryStore::new()).methods(methods));
            for _ in 0..2 {
                let mut request = post("/pay", "k", "{}");
                *request.method_mut() = Method::from_bytes(method.as_bytes()).unwrap();
                assert_eq!(app.send(request).await.status, 201);
            }
            let runs = if guarded.contains(&method) { 1 } else { 2 };
            assert_eq!(app.runs(), runs, "{methods:?} {method}");
        }
    }
}

tokio::task_local! {
    static ROUND_THE_CALL: u8;
}

#[tokio::test]
async fn a_request_that_nobody_disturbs_stays_in_its_task() {
    let metered = Metered::start();
    let detached = || metered.counter("keep_idempotency_detached_total");
    let app = App::with(layer(memory(&clock())), |_, _| async {
        tokio::task::yield_now().await;
        let seen = ROUND_THE_CALL.try_with(|seen| *seen).unwrap_or(0);
        Response::new(Full::from(vec![seen]))
    });
    let answer = ROUND_THE_CALL.scope(7, app.post("k", "{}")).await;
    assert_eq!((&answer.body[..], detached()), (&[7][..], 0));
    let mut left = app.future(post("/pay", "left", "{}"));
    while app.runs() < 2 {
        assert!((&mut left).now_or_never().is_none());
    }
    drop(left);
    assert_eq!(detached(), 1);
    app.layer.drain(10 * SECOND).await;
    assert!(app.post("left", "{}").await.is_replay());
}

#[tokio::test(start_paused = true)]
async fn a_twin_of_another_process_looks_soon_and_then_every_half_second() {
    let clock = TimerClock(Instant::now());
    let store = MemoryStore::builder().clock(clock).build();
    let looks = Arc::<Mutex<Vec<Instant>>>::default();
    let own = Arc::clone(&looks);
    let looked = Wayward::new(store.clone()).before(move |step| {
        if matches!(step, Step::Begin | Step::Peek) {
            own.lock().push(Instant::now());
        }
        async { Ok(()) }
    });
    let first = App::with(layer(store), |_, _| async {
        tokio::time::sleep(5 * SECOND).await;
        Response::new(Full::default())
    });
    let twin = App {
        layer: layer(looked).twins(Twins::Attach(20 * SECOND)),
        ..first.clone()
    };
    let running = tokio::spawn(first.future(post("/pay", "k", "{}")));
    tokio::task::yield_now().await;
    assert!(twin.post("k", "{}").await.is_replay());
    running.await.unwrap();
    let looks = looks.lock();
    let pauses = looks.windows(2).map(|two| (two[1] - two[0]).as_millis());
    let told = [25, 50, 100, 200, 400].into_iter();
    for (n, (pause, told)) in pauses.zip(told.chain(std::iter::repeat(500))).enumerate() {
        // A fifth up or down, and timers count whole milliseconds.
        let most = told * 6 / 5 + 2;
        assert!((told * 4 / 5..=most).contains(&pause), "{n}: {pause} ms");
    }
    assert!((12..=17).contains(&(looks.len() - 1)), "{}", looks.len());
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_written_up_to_three_times_before_its_client_has_it() {
    for (fails, outcome, waits) in [
        (0, IdempotencyOutcome::First, 0),
        (1, IdempotencyOutcome::First, 100),
        (2, IdempotencyOutcome::First, 400),
        (3, IdempotencyOutcome::Unrecorded, 400),
    ] {
        let tries = Arc::<AtomicUsize>::default();
        let own = Arc::clone(&tries);
        let store = Wayward::new(memory(&clock())).before(move |step| {
            let is_complete = matches!(step, Step::Complete(_));
            let fails = is_complete && own.fetch_add(1, Ordering::SeqCst) < fails;
            async move { if fails { away() } else { Ok(()) } }
        });
        let app = App::new(layer(store));
        let began = Instant::now();
        let answer = app.post("k", "{}").await;
        let waited = began.elapsed().as_millis();
        assert_eq!(answer.outcome(), outcome, "{fails} fail");
        let tries = tries.load(Ordering::SeqCst);
        assert_eq!(tries, (fails + 1).min(3), "{fails} fail");
        // Each timer may be a millisecond late.
        assert!((waits..=waits + 2).contains(&waited), "{fails}: {waited}");
    }
}

#[tokio::test]
async fn a_twin_that_waits_for_nobody_is_refused_long_before_one_that_waits() {
    let place = Place::postgres().await;
    let (go, stay) = tokio::sync::watch::channel(());
    let app = App::with(place.layer(), move |_, _| {
        let mut stay = stay.clone();
        async move {
            let _ = stay.changed().await;
            Response::new(Full::from(Bytes::new()))
        }
    });
    let first = tokio::spawn(app.future(post("/pay", "k", "{}")));
    while app.runs() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let foreign = async |twins: Twins| {
        let db = connect(&place.url).await;
        let layer = IdempotencyLayer::transactional(db, Scope::global()).twins(twins);
        let twin = App {
            layer,
            ..app.clone()
        };
        let began = Instant::now();
        let refused = twin.post("k", "{}").await;
        refused.check_refused(409, "IDEMPOTENCY_IN_PROGRESS");
        began.elapsed()
    };
    let waits = Twins::Attach(3 * SECOND);
    let (short, long) = tokio::join!(foreign(Twins::Reject), foreign(waits));
    assert!(short * 2 < long, "{short:?} and {long:?}");
    drop(go);
    first.await.unwrap();
    assert_eq!(app.runs(), 1);
}
