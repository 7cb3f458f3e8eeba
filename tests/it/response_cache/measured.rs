//! What a cache tells of itself: counters, gauges, histograms, spans and warnings.

use std::panic::AssertUnwindSafe;

use bytes::Bytes;
use futures_util::{FutureExt, stream};
use http::Response;
use http::header::{CACHE_CONTROL, VARY};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tower_keep::backend::redis::RedisStore;
use tower_keep::response_cache::{ResponseCacheLayer, Target};

use super::origin::{
    App, Broken, Origin, clock, full, gated, layer, memory, request, said, secs, until,
};
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

#[test]
fn setters_that_contradict_each_other_are_told_of_once_and_sane_ones_never() {
    let logged = Logged::start();
    let refresh = || logged.lines("refresh_after is not below ttl");
    let privacy = || logged.lines("both private and public");
    let new = || layer(&clock());
    let _ = new()
        .ttl(secs(60))
        .refresh_after(secs(59))
        .private()
        .tag("t");
    let _ = new().refresh_after(secs(60)).public().lease(secs(1));
    assert_eq!((refresh(), privacy()), (0, 0));
    let _ = new().ttl(secs(60)).refresh_after(secs(60)).tag("t");
    assert_eq!(refresh(), 1);
    let _ = new().refresh_after(secs(61)).tag("t").ttl(secs(60));
    assert_eq!((refresh(), privacy()), (2, 0));
    let _ = new().private().public().tag("t");
    assert_eq!(privacy(), 1);
    let _ = new().public().tag("t").private();
    assert_eq!((refresh(), privacy()), (2, 2));
}

#[tokio::test]
async fn outcomes_that_are_rarer_are_counted_by_their_own_names() {
    let metered = Metered::start();
    let clock = clock();
    let (origin, gate) = gated(|seen, call| {
        let mut response = said(
            &[("cache-control", "max-age=10, stale-while-revalidate=10")],
            format!("run {call}"),
        );
        if seen.uri().path() == "/failing" && call > 0 {
            *response.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
        }
        response
    });
    let layer = layer(&clock);
    let app = App::new(&layer, &origin);
    let handle = layer.handle();
    let (leads, waits) = tokio::join!(app.get("/failing"), async {
        until("it leads", || origin.calls() == 1).await;
        let (waits, ()) = tokio::join!(app.get("/failing"), async {
            until("one waits", || handle.stats().waiters == 1).await;
            gate.add_permits(1_000);
        });
        waits
    });
    assert_eq!((leads.body, waits.body), ("run 0".into(), "run 0".into()));
    app.method("POST", "/b").await;
    for _ in 0..2 {
        app.get_with("/c", &[("cache-control", "only-if-cached")])
            .await;
    }
    app.get("/d").await;
    clock.advance(secs(20));
    for _ in 0..3 {
        assert_eq!(app.get("/failing").await.body, "run 0");
    }
    app.get("/e").await;
    clock.advance(secs(10));
    for _ in 0..4 {
        app.get("/e").await;
    }
    until("refreshed", || handle.stats().refreshes == 0).await;
    handle.invalidate([Target::tag("t")]).await;
    for _ in 0..2 {
        handle.expire([Target::tag("t"), Target::url("/a")]).await;
    }
    for (outcome, count) in [
        ("collapsed", 1),
        ("bypass", 1),
        ("refused", 2),
        ("stand_in", 3),
        ("stale_hit", 4),
        ("hit", 0),
        ("validated", 0),
        ("uncacheable", 0),
    ] {
        let name = format!("requests_total{{level=local,name=tower-keep,outcome={outcome}}}");
        let counted = metered.counter(&format!("keep_response_cache_{name}"));
        assert_eq!(counted, count, "{name}: {}", metered.scrape());
    }
    for (kind, count) in [("invalidate", 1), ("expire", 2)] {
        let name = format!("keep_response_cache_invalidations_total{{kind={kind}}}");
        assert_eq!(metered.counter(&name), count, "{name}");
    }
}

#[tokio::test]
async fn who_reads_a_body_along_is_counted() {
    let metered = Metered::start();
    let (send, frames) = tokio::sync::mpsc::unbounded_channel::<Result<Frame<Bytes>, Broken>>();
    let frames = parking_lot::Mutex::new(Some(frames));
    let origin = Origin::new(move |_, _| {
        let frames = frames.lock().take().unwrap();
        let stream = stream::unfold(frames, |mut frames| async move {
            let frame = frames.recv().await?;
            Some((frame, frames))
        });
        let response = said(&[("cache-control", "max-age=60")], "");
        Box::pin(async { Ok(response.map(|_| StreamBody::new(stream).boxed_unsync())) })
    });
    let app = App::new(&layer(&clock()), &origin);
    let ask = || app.try_call(request("GET", "/a", &[]));
    let first = ask().await.unwrap();
    assert_eq!(metered.counter("keep_response_cache_joined_total"), 0);
    let (second, third) = (ask().await.unwrap(), ask().await.unwrap());
    drop(send);
    for response in [first, second, third] {
        response.into_body().collect().await.unwrap();
    }
    assert_eq!(metered.counter("keep_response_cache_joined_total"), 2);
}

#[tokio::test(start_paused = true)]
async fn a_takeover_a_late_answer_and_a_run_of_ones_own_are_counted() {
    let metered = Metered::start();
    let counted = |name: &str| metered.counter(&format!("keep_response_cache_{name}_total"));
    let clock = clock();
    let store = memory(&clock);
    let (slow, slow_gate) = gated(|_, _| said(&[("cache-control", "max-age=60")], "old"));
    let (quick, quick_gate) = gated(|_, _| said(&[("cache-control", "max-age=60")], "new"));
    let spawned = |store, origin: &Origin| {
        let app = App::new(&ResponseCacheLayer::new(store), origin);
        tokio::spawn(async move { app.get("/a").await.body })
    };
    let old = spawned(store.clone(), &slow);
    until("the first runs", || slow.calls() == 1).await;
    let new = spawned(store.clone(), &quick);
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!((quick.calls(), counted("takeovers")), (0, 0));
    // Its lease is over, and the other has waited for it.
    clock.advance(secs(5));
    until("the second runs", || quick.calls() == 1).await;
    assert_eq!((counted("takeovers"), counted("alone")), (1, 0));
    quick_gate.add_permits(1);
    assert_eq!(
        (new.await.unwrap(), counted("superseded")),
        ("new".into(), 0)
    );
    slow_gate.add_permits(1);
    assert_eq!(
        (old.await.unwrap(), counted("superseded")),
        ("old".into(), 1)
    );

    // One cache: who waited for two leases runs alone.
    let (origin, gate) = gated(|_, _| said(&[("cache-control", "max-age=60")], "x"));
    let app = App::new(&layer(&clock).lease(secs(1)), &origin);
    let ask = || {
        let app = app.clone();
        tokio::spawn(async move { app.get("/b").await.body })
    };
    let both = [ask(), ask()];
    until("gone alone", || origin.calls() == 2).await;
    assert_eq!((counted("takeovers"), counted("alone")), (1, 1));
    gate.add_permits(2);
    for one in both {
        assert_eq!(one.await.unwrap(), "x");
    }
}

#[tokio::test]
async fn copies_that_gave_way_are_counted() {
    let metered = Metered::start();
    let store = shared().await.store(&clock()).await;
    let layer = ResponseCacheLayer::new(store).local_bytes(64 * 1_024);
    let origin = Origin::of(|_, _| said(&[("cache-control", "max-age=60")], "x".repeat(4_096)));
    let app = App::new(&layer, &origin);
    for n in 0..100 {
        app.get(&format!("/{n}")).await;
    }
    // It is shown when somebody asks for the numbers, and once only.
    for _ in 0..2 {
        let there = layer.handle().stats().local_entries;
        let evicted = metered.counter("keep_response_cache_evictions_total{name=tower-keep}");
        assert!(there < 16, "{there}");
        assert_eq!(evicted, 100 - there as u64);
    }
}
