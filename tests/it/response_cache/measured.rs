//! What a cache tells of itself: counters, gauges, histograms, spans and warnings.

use std::panic::AssertUnwindSafe;

use bytes::Bytes;
use futures_util::{FutureExt, stream};
use http::Response;
use http::header::{CACHE_CONTROL, VARY};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tower_keep::backend::redis::RedisStore;
use tower_keep::response_cache::ResponseCacheLayer;

use super::origin::{App, Broken, Origin, clock, full, layer, request, said, secs, until};
use crate::rate_limit::metered::Metered;
use crate::rate_limit::telemetry::Logged;
use crate::support::redis::{fresh_prefix, shared};

/// Fresh answers, and one of each way to fail.
fn origin() -> Origin {
    Origin::new(|seen, call| {
        let path = seen.uri().path().to_owned();
        Box::pin(async move {
            assert_ne!(path, "/panic");
            if path == "/broken" {
                return Err(Broken);
            }
            let mut response = said(&[("cache-control", "max-age=60"), ("etag", "\"a\"")], "x");
            if path == "/vary" {
                response.headers_mut().insert(VARY, "*".parse().unwrap());
            }
            if path == "/stale" && call > 0 {
                *response.status_mut() = http::StatusCode::NOT_MODIFIED;
            }
            Ok(response.map(|text| full(text.into())))
        })
    })
}

#[tokio::test]
async fn requests_fetches_and_refusals_are_counted_by_what_became_of_them() {
    let metered = Metered::start();
    let clock = clock();
    let layer = layer(&clock).name("shop");
    let app = App::new(&layer, &origin());
    for path in ["/stale", "/stale", "/vary"] {
        app.get(path).await;
    }
    clock.advance(secs(60));
    app.get("/stale").await;
    let fails = |path| app.try_call(request("GET", path, &[]));
    assert!(fails("/broken").await.is_err());
    let panicked = AssertUnwindSafe(fails("/panic")).catch_unwind().await;
    assert!(panicked.is_err());
    for (name, count) in [
        ("requests_total{level=local,name=shop,outcome=stored}", 1),
        ("requests_total{level=local,name=shop,outcome=hit}", 1),
        ("requests_total{level=local,name=shop,outcome=validated}", 1),
        (
            "requests_total{level=local,name=shop,outcome=uncacheable}",
            1,
        ),
        ("refusals_total{reason=vary}", 1),
        ("fetches_total{kind=miss,result=ok}", 2),
        ("fetches_total{kind=validate,result=ok}", 1),
        ("fetches_total{kind=miss,result=error}", 1),
        ("fetches_total{kind=miss,result=panic}", 1),
        ("fetch_seconds{kind=miss}", 3),
        ("fetch_seconds{kind=validate}", 1),
    ] {
        let name = format!("keep_response_cache_{name}");
        assert_eq!(
            metered.counter(&name),
            count,
            "{name}: {}",
            metered.scrape()
        );
    }
    let stats = layer.handle().stats();
    assert!(stats.refusals.contains(&("vary", 1)) && stats.reachable && !stats.shared);
    assert_eq!((stats.recent_hits, stats.recent_requests), (1, 4));
    assert!((stats.recent_hit_rate() - 0.25).abs() < 1e-9);
    assert!(
        !metered.scrape().contains("/stale"),
        "no label comes from a request"
    );
}

#[tokio::test]
async fn a_shared_store_is_timed_and_gauges_show_how_things_stand() {
    let metered = Metered::start();
    let prefix = fresh_prefix();
    let builder = RedisStore::builder(&shared().await.url()).prefix(&prefix);
    let store = builder.timeout(secs(10)).open().await.unwrap();
    let layer = ResponseCacheLayer::new(store).local_bytes(1_024 * 1_024);
    let app = App::new(&layer, &origin());
    app.get("/a").await;
    app.get("/a").await;
    let stats = layer.handle().stats();
    assert!(stats.shared && stats.reachable);
    let value = |name: &str| metered.value(&format!("keep_response_cache_{name}"));
    assert!(
        value("store_seconds{method=lookup}") >= Some(1.0),
        "{}",
        metered.scrape()
    );
    assert_eq!(
        value("requests_total{level=local,name=tower-keep,outcome=hit}"),
        Some(1.0)
    );
    assert_eq!(
        value("requests_total{level=shared,name=tower-keep,outcome=stored}"),
        Some(1.0)
    );
    for (gauge, shown) in [
        ("flights", 0.0),
        ("waiters", 0.0),
        ("local_entries", stats.local_entries as f64),
        ("local_bytes", stats.local_bytes as f64),
        ("queued_invalidations", 0.0),
        ("suspended", 0.0),
    ] {
        assert_eq!(
            value(&format!("{gauge}{{name=tower-keep}}")),
            Some(shown),
            "{gauge}"
        );
    }
    assert!(value("stamp_lag_seconds{name=tower-keep}").is_some());
    assert!(stats.local_entries == 1 && stats.local_bytes > 0);
}

#[tokio::test]
async fn each_considered_request_is_a_span_with_its_outcome_and_shows_nothing_of_it() {
    let logged = Logged::start();
    let app = App::new(&layer(&clock()), &origin());
    for _ in 0..2 {
        app.get("/hidden?of=somebody").await;
    }
    let ended = |outcome: &str| {
        let outcome = format!("outcome=\"{outcome}\"");
        logged.lines_with(&["response_cache{", "key=\"", &outcome, "close"])
    };
    assert_eq!((ended("stored"), ended("hit")), (1, 1));
    assert_eq!(logged.lines("hidden") + logged.lines("somebody"), 0);
}

#[tokio::test]
async fn a_private_route_that_never_saw_a_principal_is_told_of_once() {
    let logged = Logged::start();
    let told = || logged.lines("never saw a principal");
    let private = layer(&clock()).private();
    let app = App::new(&private, &origin());
    for _ in 0..99 {
        app.get("/a").await;
    }
    assert_eq!(told(), 0);
    for _ in 0..50 {
        app.get("/a").await;
    }
    assert_eq!(told(), 1);
}

#[tokio::test]
async fn a_body_without_room_among_those_under_way_streams_through_and_marks_nothing() {
    const MIB: usize = 1_024 * 1_024;
    let origin = Origin::new(|_, _| {
        let frames = stream::unfold(0, |at| async move {
            tokio::task::yield_now().await;
            (at < 18).then(|| (Ok(Frame::data(Bytes::from(vec![b'x'; MIB]))), at + 1))
        });
        let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
        let fields = response.headers_mut();
        fields.insert(CACHE_CONTROL, "max-age=60".parse().unwrap());
        Box::pin(async { Ok(response) })
    });
    let layer = layer(&clock()).max_body(64 * MIB);
    let got = App::new(&layer, &origin).get("/a").await;
    assert_eq!(got.body.len(), 18 * MIB);
    let handle = layer.handle();
    until("let go", || handle.stats().unfinished_bytes == 0).await;
    let refusals = handle.stats().refusals;
    assert!(refusals.contains(&("bounds", 1)) && refusals.contains(&("too-large", 0)));
    let why = layer.explain(&request("GET", "/a", &[])).await.to_string();
    assert!(why.ends_with("then: fetched"), "{why}");
}
