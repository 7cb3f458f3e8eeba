//! Many requests, one run: in one process, under every way that a leader can be lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::join_all;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tokio::sync::mpsc;
use tower_keep::core::{AskVisitor, Visitor};
use tower_keep::response_cache::{ResponseBody, ResponseCacheLayer, Target};

use super::leaks::FakeSession;
use super::origin::{
    App, Broken, Origin, TestBody, clock, full, gated, layer, memory, read, request, said, secs,
    until,
};

/// Starts `count` requests, and returns them once all of them wait or run.
fn start(
    app: &App,
    count: usize,
) -> Vec<tokio::task::JoinHandle<Result<super::origin::Got, Broken>>> {
    let one = || {
        let app = app.clone();
        tokio::spawn(async move {
            match app.try_call(request("GET", "/a", &[])).await {
                Ok(response) => Ok(read(response).await),
                Err(broken) => Err(broken),
            }
        })
    };
    (0..count).map(|_| one()).collect()
}

async fn all(
    running: Vec<tokio::task::JoinHandle<Result<super::origin::Got, Broken>>>,
) -> Vec<Result<super::origin::Got, Broken>> {
    join_all(running)
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect()
}

#[tokio::test]
async fn ten_thousand_cold_requests_are_one_run() {
    let clock = clock();
    let (origin, gate) =
        gated(|_, call| said(&[("cache-control", "max-age=60")], format!("run {call}")));
    let layer = layer(&clock);
    let app = App::new(&layer, &origin);
    let running = start(&app, 10_000);
    until("started", || origin.calls() == 1).await;
    tokio::task::yield_now().await;
    gate.add_permits(1);
    let got = all(running).await;
    assert!(got.iter().all(|got| got.as_ref().unwrap().body == "run 0"));
    let collapsed = got
        .iter()
        .filter(|got| got.as_ref().unwrap().cache_status().ends_with(";collapsed"))
        .count();
    assert_eq!((origin.calls(), collapsed), (1, 9_999));
    assert_eq!(layer.handle().stats().flights, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_caches_on_one_store_share_one_run_by_its_lease() {
    let store = memory(&clock());
    let (origin, gate) =
        gated(|_, call| said(&[("cache-control", "max-age=60")], format!("run {call}")));
    let apps = [0, 1].map(|_| App::new(&ResponseCacheLayer::new(store.clone()), &origin));
    let running: Vec<_> = apps.iter().flat_map(|app| start(app, 50)).collect();
    until("started", || origin.calls() == 1).await;
    gate.add_permits(1);
    assert!(
        all(running)
            .await
            .iter()
            .all(|got| got.as_ref().unwrap().body == "run 0")
    );
    assert_eq!(origin.calls(), 1);
}

#[tokio::test]
async fn waiters_of_another_variant_run_for_themselves() {
    let clock = clock();
    let (origin, gate) = gated(|seen, _| {
        let language = seen.headers()["accept-language"]
            .to_str()
            .unwrap()
            .to_owned();
        said(
            &[("cache-control", "max-age=60"), ("vary", "accept-language")],
            language,
        )
    });
    let app = App::new(&layer(&clock), &origin);
    let ask = |language: &'static str| {
        let app = app.clone();
        tokio::spawn(async move {
            app.get_with("/a", &[("accept-language", language)])
                .await
                .body
        })
    };
    let running: Vec<_> = ["de", "en", "de", "en", "fr"]
        .map(|language| (language, ask(language)))
        .into_iter()
        .collect();
    until("started", || origin.calls() == 1).await;
    gate.add_permits(10);
    for (language, body) in running {
        assert_eq!(body.await.unwrap(), language);
    }
    assert_eq!(origin.calls(), 3);
}

#[tokio::test]
async fn an_uncacheable_answer_releases_all_at_once_and_is_remembered() {
    let clock = clock();
    let storable = Arc::new(AtomicUsize::new(0));
    let own = Arc::clone(&storable);
    let (origin, gate) = gated(move |_, call| {
        let fields = if own.load(Ordering::SeqCst) == 0 {
            "no-store"
        } else {
            "max-age=60"
        };
        said(&[("cache-control", fields)], format!("run {call}"))
    });
    let app = App::new(&layer(&clock), &origin);
    let running = start(&app, 20);
    until("started", || origin.calls() == 1).await;
    gate.add_permits(1);
    until("all run at once", || origin.calls() == 20).await;
    gate.add_permits(1_000);
    let bodies: std::collections::HashSet<String> = all(running)
        .await
        .into_iter()
        .map(|got| got.unwrap().body)
        .collect();
    assert_eq!(bodies.len(), 20, "nobody gets somebody else's");
    // Marked: no flight, each its own run; then storable after all.
    all(start(&app, 5)).await;
    assert_eq!(origin.calls(), 25);
    storable.store(1, Ordering::SeqCst);
    app.get("/a").await;
    assert!(app.get("/a").await.is_hit());
}

#[tokio::test]
async fn a_mark_ends() {
    let clock = clock();
    let (origin, gate) = gated(|_, call| {
        let mut response = said(&[("cache-control", "no-store")], format!("run {call}"));
        if call == 0 {
            *response.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
        }
        response
    });
    let layer = layer(&clock);
    let app = App::new(&layer, &origin);
    gate.add_permits(1);
    app.get("/a").await;
    let running = start(&app, 2);
    until("both run", || origin.calls() == 3).await;
    gate.add_permits(2);
    all(running).await;
    clock.advance(secs(1));
    let running = start(&app, 2);
    until("one runs", || origin.calls() == 4).await;
    assert_eq!(layer.handle().stats().flights, 1);
    gate.add_permits(2);
    all(running).await;
}

#[tokio::test]
async fn a_key_is_known_as_uncacheable_for_a_minute_and_by_an_error_for_a_second() {
    for (status, millis) in [(200, 60_000), (404, 60_000), (500, 1_000), (503, 1_000)] {
        let clock = clock();
        let (origin, gate) = gated(move |_, call| {
            let mut response = said(&[("cache-control", "no-store")], format!("run {call}"));
            *response.status_mut() = http::StatusCode::from_u16(status).unwrap();
            response
        });
        let layer = layer(&clock);
        let app = App::new(&layer, &origin);
        gate.add_permits(1);
        app.get("/a").await;
        clock.advance(Duration::from_millis(millis - 1));
        let running = start(&app, 2);
        until("both ask", || {
            origin.calls() == 3 || layer.handle().stats().waiters > 0
        })
        .await;
        assert_eq!(origin.calls(), 3, "{status} is marked");
        gate.add_permits(2);
        all(running).await;
        clock.advance(Duration::from_millis(1));
        let running = start(&app, 2);
        until("both ask once more", || {
            origin.calls() == 5 || layer.handle().stats().waiters > 0
        })
        .await;
        assert_eq!(origin.calls(), 4, "{status} is not marked any more");
        gate.add_permits(2);
        all(running).await;
    }
}

#[tokio::test]
async fn an_error_is_not_shared() {
    let clock = clock();
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let held = Arc::clone(&gate);
    let origin = Origin::new(move |_, call| {
        let held = Arc::clone(&held);
        Box::pin(async move {
            held.acquire().await.unwrap().forget();
            if call == 0 {
                Err(Broken)
            } else {
                Ok(said(&[("cache-control", "max-age=60")], "fine").map(|text| full(text.into())))
            }
        })
    });
    let app = App::new(&layer(&clock), &origin);
    let running = start(&app, 10);
    until("started", || origin.calls() == 1).await;
    gate.add_permits(100);
    let got = all(running).await;
    assert_eq!(got.iter().filter(|got| got.is_err()).count(), 1);
    assert_eq!(
        got.iter()
            .filter(|got| got.as_ref().is_ok_and(|got| got.body == "fine"))
            .count(),
        9
    );
    assert!(app.get("/a").await.is_hit(), "no mark");
}

#[tokio::test]
async fn a_panic_goes_to_the_leader_and_one_waiter_takes_over() {
    let clock = clock();
    let (origin, gate) = gated(|_, call| {
        assert!(call > 0, "the first run panics");
        said(&[("cache-control", "max-age=60")], format!("run {call}"))
    });
    let layer = layer(&clock);
    let app = App::new(&layer, &origin);
    let running = start(&app, 10);
    until("started", || origin.calls() == 1).await;
    gate.add_permits(1);
    until("taken over", || origin.calls() == 2).await;
    gate.add_permits(1);
    let got = join_all(running).await;
    assert_eq!(
        got.iter()
            .filter(|got| got.as_ref().is_err_and(|error| error.is_panic()))
            .count(),
        1
    );
    assert!(
        got.into_iter()
            .flatten()
            .all(|got| got.unwrap().body == "run 1")
    );
    assert_eq!((origin.calls(), layer.handle().stats().flights), (2, 0));
}

#[tokio::test]
async fn a_run_that_others_wait_for_goes_on_when_its_client_leaves() {
    let clock = clock();
    let (origin, gate) =
        gated(|_, call| said(&[("cache-control", "max-age=60")], format!("run {call}")));
    let app = App::new(&layer(&clock), &origin);
    let mut leader = Box::pin(app.try_call(request("GET", "/a", &[])));
    assert!((&mut leader).now_or_never().is_none());
    let mut waiter = Box::pin(app.get("/a"));
    assert!((&mut waiter).now_or_never().is_none());
    drop(leader);
    gate.add_permits(1);
    assert_eq!(waiter.await.body, "run 0");
    assert_eq!(origin.calls(), 1);
}

#[tokio::test]
async fn a_run_that_nobody_waits_for_ends_with_its_client_and_gives_the_lease_back() {
    let clock = clock();
    let (origin, gate) =
        gated(|_, call| said(&[("cache-control", "max-age=60")], format!("run {call}")));
    let layer = layer(&clock);
    let app = App::new(&layer, &origin);
    let mut leader = Box::pin(app.try_call(request("GET", "/a", &[])));
    assert!((&mut leader).now_or_never().is_none());
    drop(leader);
    assert_eq!(layer.handle().stats().flights, 0);
    gate.add_permits(1);
    // With the lease still held this would wait for it.
    assert_eq!(app.get("/a").now_or_never().unwrap().body, "run 1");
}

#[tokio::test]
async fn waiters_are_dropped_freely() {
    let clock = clock();
    let (origin, gate) =
        gated(|_, call| said(&[("cache-control", "max-age=60")], format!("run {call}")));
    let app = App::new(&layer(&clock), &origin);
    let mut leader = Box::pin(app.get("/a"));
    assert!((&mut leader).now_or_never().is_none());
    let mut waiter = Box::pin(app.get("/a"));
    assert!((&mut waiter).now_or_never().is_none());
    drop(waiter);
    gate.add_permits(1);
    assert_eq!(leader.await.body, "run 0");
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_longer_than_two_leases() {
    let clock = clock();
    let (origin, gate) =
        gated(|_, call| said(&[("cache-control", "max-age=60")], format!("run {call}")));
    let app = App::new(&layer(&clock).lease(secs(1)), &origin);
    let mut leader = Box::pin(app.get("/a"));
    assert!((&mut leader).now_or_never().is_none());
    let began = tokio::time::Instant::now();
    let waiter = tokio::spawn({
        let app = app.clone();
        async move { app.get("/a").await }
    });
    until("gone alone", || origin.calls() == 2).await;
    assert!(began.elapsed() >= secs(2) && began.elapsed() < secs(3));
    gate.add_permits(2);
    let got = waiter.await.unwrap();
    assert_eq!(got.cache_status(), "tower-keep;fwd=uri-miss;collapsed=?0");
    leader.await;
}

#[tokio::test]
async fn an_invalidation_beats_a_fetch_that_began_before_it() {
    let clock = clock();
    let (origin, gate) = gated(|_, call| {
        said(
            &[("cache-control", "max-age=60"), ("cache-tag", "t")],
            format!("run {call}"),
        )
    });
    for target in [
        Target::tag("t"),
        Target::url("/a"),
        Target::everything(),
        Target::prefix("/a"),
    ] {
        let layer = layer(&clock);
        let app = App::new(&layer, &origin);
        let before = origin.calls();
        let mut old = Box::pin(app.get("/a"));
        assert!((&mut old).now_or_never().is_none());
        layer.handle().invalidate([target]).await;
        // A newcomer does not join what began before.
        let mut new = Box::pin(app.get("/a"));
        assert!((&mut new).now_or_never().is_none());
        gate.add_permits(2);
        let (old, new) = tokio::join!(old, new);
        assert_ne!(old.body, new.body, "{target:?}");
        assert_eq!(app.get("/a").await.body, new.body, "{target:?}");
        assert_eq!(origin.calls() - before, 2);
    }
}

/// A body that sends what it is told to.
fn streamed(frames: mpsc::UnboundedReceiver<Result<Frame<Bytes>, Broken>>) -> TestBody {
    let stream = futures_util::stream::unfold(frames, |mut frames| async move {
        let frame = frames.recv().await?;
        Some((frame, frames))
    });
    StreamBody::new(stream).boxed_unsync()
}

type Sender = mpsc::UnboundedSender<Result<Frame<Bytes>, Broken>>;

fn streaming(
    fields: &'static [(&'static str, &'static str)],
) -> (Origin, Arc<parking_lot::Mutex<Vec<Sender>>>) {
    let senders: Arc<parking_lot::Mutex<Vec<Sender>>> = Arc::default();
    let own = Arc::clone(&senders);
    let origin = Origin::new(move |_, _| {
        let (sender, frames) = mpsc::unbounded_channel();
        own.lock().push(sender);
        Box::pin(async move { Ok(said(fields, "").map(|_| streamed(frames))) })
    });
    (origin, senders)
}

fn send(senders: &Arc<parking_lot::Mutex<Vec<Sender>>>, at: usize, data: &'static str) {
    senders.lock()[at]
        .send(Ok(Frame::data(Bytes::from_static(data.as_bytes()))))
        .unwrap();
}

#[tokio::test]
async fn the_head_and_each_frame_leave_at_once_and_the_entry_is_there_before_the_end() {
    let (origin, senders) = streaming(&[("cache-control", "max-age=60")]);
    let layer = layer(&clock());
    let app = App::new(&layer, &origin);
    let response = app.try_call(request("GET", "/a", &[])).await.unwrap();
    let mut body = response.into_body();
    send(&senders, 0, "one");
    assert_eq!(
        body.frame().await.unwrap().unwrap().into_data().unwrap(),
        "one"
    );
    send(&senders, 0, "two");
    assert_eq!(
        body.frame().await.unwrap().unwrap().into_data().unwrap(),
        "two"
    );
    let waiter = tokio::spawn({
        let app = app.clone();
        async move { app.get("/a").await }
    });
    senders.lock().clear();
    assert!(body.frame().await.is_none());
    assert_eq!(app.get("/a").await.body, "onetwo");
    assert_eq!(waiter.await.unwrap().body, "onetwo");
    assert_eq!(
        (origin.calls(), layer.handle().stats().unfinished_bytes),
        (1, 0)
    );
}

#[tokio::test]
async fn a_slow_reader_keeps_nobody_waiting() {
    let (origin, senders) = streaming(&[("cache-control", "max-age=60")]);
    let app = App::new(&layer(&clock()), &origin);
    let unread = app.try_call(request("GET", "/a", &[])).await.unwrap();
    send(&senders, 0, "all");
    senders.lock().clear();
    assert_eq!(app.get("/a").await.body, "all");
    assert_eq!(read(unread).await.body, "all");
    assert_eq!(origin.calls(), 1);
}

#[tokio::test]
async fn a_body_goes_on_without_its_reader() {
    let (origin, senders) = streaming(&[("cache-control", "max-age=60")]);
    let app = App::new(&layer(&clock()), &origin);
    drop(app.try_call(request("GET", "/a", &[])).await.unwrap());
    send(&senders, 0, "all");
    senders.lock().clear();
    assert_eq!(app.get("/a").await.body, "all");
    assert_eq!(origin.calls(), 1);
}

#[tokio::test]
async fn a_cut_body_and_a_wrong_length_store_nothing() {
    let (origin, senders) = streaming(&[("cache-control", "max-age=60")]);
    let app = App::new(&layer(&clock()), &origin);
    let response = app.try_call(request("GET", "/a", &[])).await.unwrap();
    send(&senders, 0, "half");
    senders.lock()[0].send(Err(Broken)).unwrap();
    assert!(response.into_body().collect().await.is_err());
    let response = app.try_call(request("GET", "/a", &[])).await.unwrap();
    assert_eq!(origin.calls(), 2);
    drop(response);
    let wrong = Origin::of(|_, call| {
        said(
            &[("cache-control", "max-age=60"), ("content-length", "9")],
            format!("run {call}"),
        )
    });
    let app = App::new(&layer(&clock()), &wrong);
    assert_eq!(
        app.get("/a").await.cache_status(),
        "tower-keep;fwd=uri-miss;detail=cut"
    );
    assert_eq!(app.get("/a").await.body, "run 1");
}

#[tokio::test]
async fn large_bodies_stream_through_whole() {
    let (origin, senders) = streaming(&[("cache-control", "max-age=60")]);
    let layer = layer(&clock()).max_body(5);
    let app = App::new(&layer, &origin);
    let response = app.try_call(request("GET", "/a", &[])).await.unwrap();
    for _ in 0..4 {
        send(&senders, 0, "four");
        tokio::task::yield_now().await;
    }
    senders.lock().clear();
    assert_eq!(read(response).await.body, "fourfourfourfour");
    assert_eq!(layer.handle().stats().unfinished_bytes, 0);
    let whole = Origin::of(|_, call| {
        said(
            &[("cache-control", "max-age=60")],
            format!("long run {call}"),
        )
    });
    let app = App::new(&layer.clone(), &whole);
    for call in 0..2 {
        let got = app.get("/b").await;
        assert_eq!(got.body, format!("long run {call}"));
    }
    let announced = Origin::of(|_, _| {
        said(
            &[("cache-control", "max-age=60"), ("content-length", "8")],
            "12345678",
        )
    });
    let got = App::new(&layer, &announced).get("/c").await;
    assert_eq!(
        (got.cache_status(), got.body.as_str()),
        ("tower-keep;fwd=uri-miss;detail=too-large", "12345678")
    );
}

#[tokio::test]
async fn trailers_are_kept() {
    let (origin, senders) = streaming(&[("cache-control", "max-age=60"), ("trailer", "x-sum")]);
    let app = App::new(&layer(&clock()), &origin);
    let first = app.try_call(request("GET", "/a", &[])).await.unwrap();
    send(&senders, 0, "data");
    let mut trailers = http::HeaderMap::new();
    trailers.insert("x-sum", "7".parse().unwrap());
    senders.lock()[0]
        .send(Ok(Frame::trailers(trailers.clone())))
        .unwrap();
    assert_eq!(
        first.into_body().collect().await.unwrap().trailers(),
        Some(&trailers)
    );
    let hit = app.try_call(request("GET", "/a", &[])).await.unwrap();
    assert_eq!(hit.headers()["trailer"], "x-sum");
    let hit = hit.into_body().collect().await.unwrap();
    assert_eq!(
        (hit.trailers().cloned(), hit.to_bytes()),
        (Some(trailers), Bytes::from_static(b"data"))
    );
}

/// Trailers of which only `x-sum` is for everybody.
fn mixed_trailers() -> http::HeaderMap {
    let names = [
        "x-sum",
        "set-cookie",
        "authentication-info",
        "x-mine",
        "x-own",
        "x-hop",
        "ratelimit",
    ];
    let value = http::HeaderValue::from_static("7");
    let all = names.map(|name| (http::HeaderName::from_static(name), value.clone()));
    all.into_iter().collect()
}

const MIXED: &[(&str, &str)] = &[
    (
        "cache-control",
        "max-age=60, no-cache=\"x-mine\", private=\"x-own\"",
    ),
    ("connection", "x-hop"),
];

async fn trailers(answer: http::Response<ResponseBody<TestBody>>) -> http::HeaderMap {
    let body = answer.into_body().collect().await.unwrap();
    body.trailers().cloned().unwrap_or_default()
}

#[tokio::test]
async fn trailers_of_one_exchange_reach_its_own_client_only() {
    let mut shared = http::HeaderMap::new();
    shared.insert("x-sum", mixed_trailers()["x-sum"].clone());
    // While it streams, and in what is stored; stored, and larger than that.
    for most in [1_024, 6] {
        let (origin, senders) = streaming(MIXED);
        let app = App::new(&layer(&clock()).max_body(most), &origin);
        let first = app.try_call(request("GET", "/a", &[])).await.unwrap();
        send(&senders, 0, "data");
        let joiner = app.try_call(request("GET", "/a", &[])).await.unwrap();
        assert!(
            joiner.headers()["cache-status"]
                .to_str()
                .unwrap()
                .ends_with(";collapsed")
        );
        // Both have read what will fall out of the window.
        let (mut first, mut joiner) = (first, joiner);
        for body in [first.body_mut(), joiner.body_mut()] {
            assert!(body.frame().await.unwrap().unwrap().is_data());
        }
        send(&senders, 0, "more");
        let end = Frame::trailers(mixed_trailers());
        senders.lock()[0].send(Ok(end)).unwrap();
        let (first, joiner) = tokio::join!(trailers(first), trailers(joiner));
        assert_eq!(first, mixed_trailers(), "{most}");
        assert_eq!(joiner, shared, "{most}");
        if most > 8 {
            let hit = app.try_call(request("GET", "/a", &[])).await.unwrap();
            assert!(
                hit.headers()["cache-status"]
                    .to_str()
                    .unwrap()
                    .contains(";hit")
            );
            assert_eq!(trailers(hit).await, shared);
            assert_eq!(origin.calls(), 1);
        }
    }
}

#[tokio::test]
async fn trailers_of_a_body_that_is_there_at_once_are_kept_apart_too() {
    for named in ["x-sum", "set-cookie"] {
        let origin = Origin::new(move |_, _| {
            let mut all = http::HeaderMap::new();
            all.insert(named, "7".parse().unwrap());
            let frames = [
                Frame::data(Bytes::from_static(b"data")),
                Frame::trailers(all),
            ];
            let frames = futures_util::stream::iter(frames.map(Ok));
            let fields = [("cache-control", "max-age=60"), ("content-length", "4")];
            let answer = said(&fields, "").map(|_| StreamBody::new(frames).boxed_unsync());
            Box::pin(async { Ok(answer) })
        });
        let app = App::new(&layer(&clock()), &origin);
        let first = app.try_call(request("GET", "/a", &[])).await.unwrap();
        assert_eq!(trailers(first).await[named], "7");
        let hit = app.try_call(request("GET", "/a", &[])).await.unwrap();
        let is_kept = named == "x-sum";
        // Without trailers there is a length again.
        assert_eq!(
            hit.headers().contains_key("content-length"),
            !is_kept,
            "{named}"
        );
        assert_eq!(trailers(hit).await.contains_key(named), is_kept, "{named}");
        assert_eq!(origin.calls(), 1);
    }
}

#[tokio::test]
async fn trailers_over_4_kib_are_passed_on_and_keep_the_answer_out() {
    let name = "x-sum";
    for (length, is_kept) in [(4_096 - name.len(), true), (4_097 - name.len(), false)] {
        let long = "7".repeat(length);
        let value = http::HeaderValue::try_from(long.as_str()).unwrap();
        let origin = Origin::new(move |_, _| {
            let mut all = http::HeaderMap::new();
            all.insert(name, value.clone());
            let frames = [
                Frame::data(Bytes::from_static(b"data")),
                Frame::trailers(all),
            ];
            let frames = futures_util::stream::iter(frames.map(Ok));
            let answer = said(&[("cache-control", "max-age=60")], "")
                .map(|_| StreamBody::new(frames).boxed_unsync());
            Box::pin(async { Ok(answer) })
        });
        let app = App::new(&layer(&clock()), &origin);
        for _ in 0..2 {
            let got = app.try_call(request("GET", "/a", &[])).await.unwrap();
            let got = got.into_body().collect().await.unwrap();
            assert_eq!(got.trailers().unwrap()[name], long.as_str(), "{length}");
            assert_eq!(got.to_bytes(), "data");
        }
        assert_eq!(origin.calls(), if is_kept { 1 } else { 2 }, "{length}");
    }
}

#[tokio::test]
async fn a_304_that_hides_a_trailer_hides_the_stored_one() {
    let clock = clock();
    let origin = Origin::new(|seen, _| {
        let mut all = http::HeaderMap::new();
        all.insert("x-sum", "7".parse().unwrap());
        all.insert("x-late", "7".parse().unwrap());
        let frames = [
            Frame::data(Bytes::from_static(b"data")),
            Frame::trailers(all),
        ];
        let frames = futures_util::stream::iter(frames.map(Ok));
        let confirms = seen.headers().contains_key("if-none-match");
        let said_so = if confirms {
            "max-age=60, private=\"x-late\""
        } else {
            "max-age=60"
        };
        let fields = [("cache-control", said_so), ("etag", "\"1\"")];
        let mut answer = said(&fields, "").map(|_| StreamBody::new(frames).boxed_unsync());
        if confirms {
            *answer.status_mut() = http::StatusCode::NOT_MODIFIED;
            *answer.body_mut() = full(Bytes::new());
        }
        Box::pin(async { Ok(answer) })
    });
    let app = App::new(&layer(&clock), &origin);
    app.get("/a").await;
    clock.advance(secs(60));
    app.get("/a").await;
    let hit = app.try_call(request("GET", "/a", &[])).await.unwrap();
    let kept = trailers(hit).await;
    assert_eq!(
        (kept.contains_key("x-sum"), kept.contains_key("x-late")),
        (true, false)
    );
    assert_eq!(origin.calls(), 2);
}

#[tokio::test]
async fn what_turns_out_to_be_one_visitors_is_cut_for_others_though_it_would_not_be_kept_anyway() {
    let short = &[("cache-control", "max-age=60")];
    let cut = &[("cache-control", "max-age=60"), ("content-length", "20")];
    // Too large with the bytes after the touch, too large already, and of another length than it said.
    for (most, fields, is_over) in [(6, &short[..], false), (6, short, true), (99, cut, false)] {
        let (origin, senders) = streaming(fields);
        let app = App::new(&layer(&clock()).max_body(most), &origin);
        let session = Arc::<FakeSession>::default();
        let mut asked = request("GET", "/a", &[]);
        let ask: Arc<dyn AskVisitor> = Arc::clone(&session) as _;
        asked.extensions_mut().insert(Visitor::new(ask));
        let mut first = app.try_call(asked).await.unwrap();
        send(&senders, 0, "data");
        let mut joiner = app.try_call(request("GET", "/a", &[])).await.unwrap();
        assert_eq!(origin.calls(), 1);
        for data in ["data", "more"].iter().take(1 + usize::from(is_over)) {
            if *data == "more" {
                send(&senders, 0, data);
            }
            for body in [first.body_mut(), joiner.body_mut()] {
                let frame = body.frame().await.unwrap().unwrap();
                assert_eq!(frame.into_data().unwrap(), data);
            }
        }
        session.mark_personal();
        send(&senders, 0, "mine");
        senders.lock().clear();
        let (first, joiner) =
            tokio::join!(first.into_body().collect(), joiner.into_body().collect());
        assert_eq!(first.unwrap().to_bytes(), "mine", "{most} {is_over}");
        assert!(joiner.is_err(), "{most} {is_over}");
    }
}

#[tokio::test]
async fn a_refresh_behind_an_answer_runs_once_and_ends_what_became_uncacheable() {
    let clock = clock();
    let (origin, gate) = gated(|_, call| {
        let fields = if call == 1 {
            "no-store"
        } else {
            "max-age=10, stale-while-revalidate=60"
        };
        said(&[("cache-control", fields)], format!("run {call}"))
    });
    gate.add_permits(1);
    let layer = layer(&clock);
    let app = App::new(&layer, &origin);
    app.get("/a").await;
    clock.advance(secs(11));
    for got in all(start(&app, 50)).await {
        assert_eq!(got.unwrap().body, "run 0");
    }
    until("refreshing", || origin.calls() == 2).await;
    gate.add_permits(1);
    until("refreshed", || layer.handle().stats().refreshes == 0).await;
    gate.add_permits(1);
    assert_eq!(app.get("/a").await.body, "run 2");
}
