//! What people ask of a cache: to be filled, and to say why.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Semaphore;
use tower_keep::core::Principal;
use tower_keep::response_cache::{KeyRules, ResponseCacheLayer, WarmReport};

use super::origin::{App, Origin, clock, full, layer, request, said, secs, until};

#[tokio::test]
async fn a_cache_is_warmed_through_the_whole_service_and_fresh_answers_are_left_alone() {
    let origin = Origin::of(|seen, call| match seen.uri().path() {
        "/never" => said(&[("cache-control", "no-store")], "x"),
        _ => said(&[("cache-control", "max-age=60")], format!("run {call}")),
    });
    let layer = layer(&clock());
    let app = App::new(&layer, &origin);
    app.get("/0").await;
    let paths: Vec<String> = (0..40).map(|n| format!("/{n}")).collect();
    let more = ["/never", "not a url", "/1"].map(str::to_owned);
    let report = layer
        .handle()
        .warm::<_, http_body_util::Empty<bytes::Bytes>, _>(
            app.service.clone(),
            paths.iter().chain(&more),
        )
        .await;
    let mut expected = WarmReport::default();
    (expected.stored, expected.present) = (39, 2);
    (expected.refused, expected.failed) = (1, 1);
    assert_eq!(report, expected);
    assert_eq!(origin.calls(), 41);
    for path in &paths {
        assert!(app.get(path).await.is_hit());
    }
}

#[tokio::test]
async fn eight_requests_that_warm_are_under_way_at_once() {
    let (under_way, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let gate = Arc::new(Semaphore::new(0));
    let (own, peak, held) = (Arc::clone(&under_way), Arc::clone(&most), Arc::clone(&gate));
    let origin = Origin::new(move |_, _| {
        let (own, peak, held) = (Arc::clone(&own), Arc::clone(&peak), Arc::clone(&held));
        Box::pin(async move {
            peak.fetch_max(own.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            held.acquire().await.unwrap().forget();
            own.fetch_sub(1, Ordering::SeqCst);
            Ok(said(&[("cache-control", "max-age=60")], "x").map(|text| full(text.into())))
        })
    });
    let layer = layer(&clock());
    let (handle, service) = (layer.handle(), App::new(&layer, &origin).service);
    let warmed = tokio::spawn(async move {
        let urls = (0..40).map(|n| format!("/{n}"));
        let warm = handle.warm::<_, http_body_util::Empty<bytes::Bytes>, _>(service, urls);
        warm.await
    });
    until("eight at once", || under_way.load(Ordering::SeqCst) >= 8).await;
    gate.add_permits(40);
    assert_eq!(warmed.await.unwrap().stored, 40);
    assert_eq!(most.load(Ordering::SeqCst), 8);
}

#[tokio::test]
async fn a_url_with_a_host_is_warmed_for_those_who_ask_that_host() {
    let origin = Origin::of(|_, _| said(&[("cache-control", "max-age=60")], "x"));
    let layer = layer(&clock());
    let app = App::new(&layer, &origin);
    let urls = ["http://clinic.test:8080/a?b=c"];
    let warm = layer.handle();
    let warm = warm.warm::<_, http_body_util::Empty<bytes::Bytes>, _>(app.service.clone(), urls);
    assert_eq!(warm.await.stored, 1);
    let from = async |host| app.send(request("GET", "/a?b=c", &[("host", host)])).await;
    assert!(from("clinic.test:8080").await.is_hit());
    assert!(!from("clinic.test").await.is_hit());
}

async fn why(layer: &ResponseCacheLayer, path: &str, fields: &[(&str, &str)]) -> String {
    layer
        .explain(&request("GET", path, fields))
        .await
        .to_string()
}

#[tokio::test]
async fn an_explanation_shows_no_credentials() {
    let rules = KeyRules::new()
        .header(http::header::AUTHORIZATION)
        .header(http::header::COOKIE)
        .header(http::header::ACCEPT);
    let layer = layer(&clock()).key(rules);
    let asked = [
        ("authorization", "Bearer secret"),
        ("cookie", "sid=secret"),
        ("accept", "x/y"),
    ];
    let why = why(&layer, "/a", &asked).await;
    for shown in [
        "key: authorization (not shown)\n",
        "key: cookie (not shown)\n",
        "key: accept x/y\n",
    ] {
        assert!(why.contains(shown), "{why}");
    }
    assert!(!why.contains("secret"), "{why}");
}

#[tokio::test]
async fn a_route_explains_what_it_would_do_and_does_nothing() {
    let clock = clock();
    let origin = Origin::of(|_, _| {
        said(
            &[
                ("cache-control", "max-age=60, stale-while-revalidate=5"),
                ("vary", "accept, cookie"),
                ("surrogate-key", "a b"),
            ],
            "body",
        )
    });
    let rules = KeyRules::new()
        .header(http::header::AUTHORIZATION)
        .cookie("lang");
    let layer = layer(&clock).key(rules);
    let app = App::new(&layer, &origin);
    let asked = [
        ("host", "a.test"),
        ("accept", "x/y"),
        ("cookie", "lang=secret"),
    ];
    let key = "host: a.test\ntarget: /a\nkey: authorization (absent)\nkey: cookie lang\n";
    assert_eq!(
        why(&layer, "/a", &asked).await,
        format!("{key}entry: none\nthen: fetched")
    );
    app.get_with("/a", &asked).await;
    let calls = origin.calls();
    clock.advance(secs(7));
    let varies = "varies on: accept x/y\nvaries on: cookie (not shown)\n";
    let entry = "entry: status 200, 4 bytes, age 7 s of 60 s, stale while revalidated 5 s, 2 tags and groups";
    assert_eq!(
        why(&layer, "/a", &asked).await,
        format!("{key}{varies}{entry}\nthen: answered from the store")
    );
    clock.advance(secs(53));
    let stale = why(&layer, "/a", &asked).await;
    assert!(
        stale.ends_with("then: answered from the store, and refreshed behind it"),
        "{stale}"
    );
    clock.advance(secs(5));
    let gone = why(&layer, "/a", &asked).await;
    assert!(
        gone.ends_with("then: validated with the handler") || gone.ends_with("then: fetched"),
        "{gone}"
    );
    let upgrade = why(&layer, "/a", &[("upgrade", "x")]).await;
    assert!(
        upgrade.starts_with("passed: fwd=bypass;detail=upgrade"),
        "{upgrade}"
    );
    assert_eq!(origin.calls(), calls);
    let private = layer.clone().private();
    let nobody = why(&private, "/a", &[]).await;
    assert_eq!(
        nobody,
        "then: passed: a private route, and nobody is known to ask"
    );
    let mut mine = request("GET", "/a", &[]);
    mine.extensions_mut().insert(Principal::new("somebody"));
    let mine = private.explain(&mine).await.to_string();
    assert!(
        mine.contains("key: the principal") && !mine.contains("somebody"),
        "{mine}"
    );
}
