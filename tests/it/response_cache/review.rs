//! What one request demands, sends or breaks must never change what another one gets.

use http::{StatusCode, header};
use http_body_util::{BodyExt, StreamBody};
use tower_keep::backend::redis::RedisStore;
use tower_keep::core::ManualClock;
use tower_keep::response_cache::{KeyRules, ResponseCacheLayer, Target};

use super::origin::{App, Origin, clock, full, gated, layer, request, said, secs, until};
use crate::support::redis::{fresh_prefix, shared};

/// Two requests at one time for what is stored and stale: the first with `fields` leads, the other has none.
async fn second_of_two(
    clock: &ManualClock,
    layer: &ResponseCacheLayer,
    status: u16,
    fields: &'static str,
) -> String {
    let (origin, gate) = gated(move |_, call| {
        let fields = [("cache-control", "max-age=1"), ("etag", "\"1\"")];
        let mut response = said(&fields, format!("run {call}"));
        if call == 1 {
            *response.status_mut() = StatusCode::from_u16(status).unwrap();
        }
        response
    });
    gate.add_permits(1);
    let app = App::new(layer, &origin);
    app.get("/a").await;
    let stored = || async { app.get("/a").await.is_hit() };
    while !stored().await {
        tokio::task::yield_now().await;
    }
    clock.advance(secs(5));
    let lead = app.send(request("GET", "/a", &[("cache-control", fields)]));
    let other = app.send(request("GET", "/a", &[]));
    // Polled in this order: the first leads, the other waits for it.
    let open = async { gate.add_permits(2) };
    futures_util::future::join3(lead, other, open).await.1.body
}

#[tokio::test]
async fn what_the_leader_takes_stale_is_not_for_those_who_wait() {
    let clock = clock();
    let builder = RedisStore::builder(&shared().await.url()).prefix(&fresh_prefix());
    let store = builder
        .clock(clock.clone())
        .timeout(secs(10))
        .open()
        .await
        .unwrap();
    store.ping().await.unwrap();
    let layer = ResponseCacheLayer::new(store).local_bytes(0);
    assert_eq!(
        second_of_two(&clock, &layer, 200, "max-stale=60").await,
        "run 1"
    );
}

#[tokio::test]
async fn what_stands_in_for_the_leader_is_not_for_those_who_did_not_ask_for_it() {
    let clock = clock();
    let layer = layer(&clock);
    let body = second_of_two(&clock, &layer, 500, "stale-if-error=60").await;
    assert_eq!(body, "run 2");
}

#[tokio::test]
async fn a_target_with_an_authority_and_another_host_field_is_passed() {
    let origin = Origin::of(|seen, _| {
        let host = seen.headers()[header::HOST].to_str().unwrap().to_owned();
        said(&[("cache-control", "max-age=60")], host)
    });
    let app = App::new(&layer(&clock()), &origin);
    let forged = app
        .get_with("http://a.test/x", &[("host", "evil.test")])
        .await;
    assert_eq!(forged.cache_status(), "tower-keep;fwd=bypass;detail=host");
    assert_eq!(
        app.get_with("http://a.test/x", &[("host", "A.test")])
            .await
            .body,
        "A.test"
    );
    assert!(
        app.get_with("http://a.test/x", &[("host", "a.test")])
            .await
            .is_hit()
    );
}

#[tokio::test]
async fn a_cookie_that_is_sent_twice_fills_no_entry_of_its_first_value() {
    // As a cookie jar reads it: the last one counts.
    let origin = Origin::of(|seen, _| {
        let cookie = seen.headers()[header::COOKIE].to_str().unwrap();
        let theme = cookie.rsplit('=').next().unwrap().to_owned();
        said(&[("cache-control", "max-age=60")], theme)
    });
    let layer = layer(&clock()).key(KeyRules::new().cookie("theme"));
    let app = App::new(&layer, &origin);
    assert_eq!(
        app.get_with("/a", &[("cookie", "theme=light; theme=dark")])
            .await
            .body,
        "dark"
    );
    assert_eq!(
        app.get_with("/a", &[("cookie", "theme=light")]).await.body,
        "light"
    );
}

#[tokio::test]
async fn a_body_that_panics_in_its_task_cuts_the_reader() {
    let origin = Origin::new(|_, _| {
        let frames = futures_util::stream::unfold((), |()| async {
            tokio::task::yield_now().await;
            panic!("in the body")
        });
        Box::pin(async {
            Ok(said(&[("cache-control", "max-age=60")], "")
                .map(|_| StreamBody::new(frames).boxed_unsync()))
        })
    });
    let layer = layer(&clock());
    let app = App::new(&layer, &origin);
    let response = app.try_call(request("GET", "/a", &[])).await.unwrap();
    let read = tokio::time::timeout(secs(5), response.into_body().collect());
    assert!(read.await.expect("the reader waits for ever").is_err());
    assert_eq!(layer.handle().stats().flights, 0);
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_hangs_costs_newcomers_nothing_once_its_lease_is_over() {
    let clock = clock();
    let origin = Origin::new(|_, call| {
        Box::pin(async move {
            if call == 0 {
                std::future::pending::<()>().await;
            }
            Ok(
                said(&[("cache-control", "no-store")], format!("run {call}"))
                    .map(|text| full(text.into())),
            )
        })
    });
    let real = super::origin::clock();
    let layer = layer(&clock).real_clock(0, real.clone());
    let app = App::new(&layer, &origin);
    let hung = tokio::spawn({
        let app = app.clone();
        async move { app.get("/a").await }
    });
    until("called", || origin.calls() == 1).await;
    clock.advance(secs(5));
    real.advance(secs(5));
    let asked = tokio::time::Instant::now();
    assert_eq!(app.get("/a").await.body, "run 1");
    assert_eq!(asked.elapsed(), secs(0));
    hung.abort();
}

#[tokio::test(start_paused = true)]
async fn a_run_whose_client_has_left_does_not_hang_for_ever() {
    let origin = Origin::new(|_, _| Box::pin(std::future::pending()));
    let layer = layer(&clock());
    let app = App::new(&layer, &origin);
    let start = |app: App| tokio::spawn(async move { app.get("/a").await });
    let leader = start(app.clone());
    until("called", || origin.calls() == 1).await;
    let waiter = start(app.clone());
    tokio::time::sleep(secs(1)).await;
    leader.abort();
    tokio::time::sleep(secs(1)).await;
    waiter.abort();
    assert_eq!(layer.handle().stats().flights, 1);
    tokio::time::sleep(secs(121)).await;
    assert_eq!(layer.handle().stats().flights, 0);
}

#[tokio::test]
async fn an_invalidation_outlives_the_client_that_caused_it() {
    let clock = clock();
    let prefix = fresh_prefix();
    let open = async || {
        let builder = RedisStore::builder(&shared().await.url()).prefix(&prefix);
        let store = builder.clock(clock.clone()).timeout(secs(10)).open().await;
        let store = store.unwrap();
        store.ping().await.unwrap();
        store
    };
    let layer = ResponseCacheLayer::new(open().await).local_bytes(0);
    let origin = Origin::of(|_, call| said(&[("cache-control", "max-age=60")], call.to_string()));
    let app = App::new(&layer, &origin);
    while !app.get("/a").await.is_hit() {
        tokio::task::yield_now().await;
    }
    let change = app.try_call(request("PUT", "/a", &[]));
    // The handler has answered, the store is being told, the client leaves.
    assert!(futures_util::FutureExt::now_or_never(change).is_none());
    assert!(!app.get("/a").await.is_hit());
}

#[tokio::test]
async fn newcomers_do_not_join_a_fetch_that_an_expiry_has_hit() {
    let layer = layer(&clock());
    let (origin, gate) =
        gated(|_, call| said(&[("cache-control", "max-age=60")], format!("run {call}")));
    let app = App::new(&layer, &origin);
    let start = |app: App| tokio::spawn(async move { app.get("/a").await.body });
    let old = start(app.clone());
    until("called", || origin.calls() == 1).await;
    layer.handle().expire([Target::url("/a")]).await;
    let newcomer = start(app.clone());
    tokio::task::yield_now().await;
    gate.add_permits(2);
    assert_eq!(old.await.unwrap(), "run 0");
    assert_eq!(newcomer.await.unwrap(), "run 1");
}

#[tokio::test]
async fn a_named_default_port_is_the_same_host_to_an_invalidation() {
    let layer = layer(&clock());
    let origin = Origin::of(|_, call| said(&[("cache-control", "max-age=60")], call.to_string()));
    let app = App::new(&layer, &origin);
    app.get_with("/a", &[("host", "a.test:443")]).await;
    layer
        .handle()
        .invalidate([Target::url("https://a.test:443/a")])
        .await;
    assert!(!app.get_with("/a", &[("host", "a.test:443")]).await.is_hit());
}

#[tokio::test]
async fn a_layer_that_stands_twice_around_one_service_does_not_wait_for_itself() {
    use axum::body::Body;
    use axum::routing::get;
    use tower::ServiceExt;

    let layer = layer(&clock()).ttl(secs(60));
    let app = axum::Router::new()
        .route("/a", get(|| async { "a" }).layer(layer.clone()))
        .layer(layer);
    let ask = app.oneshot(http::Request::get("/a").body(Body::empty()).unwrap());
    let answer = tokio::time::timeout(secs(2), ask).await;
    assert_eq!(answer.expect("it waits").unwrap().status(), 200);
}

/// An answer that varies, then breaks in its body: its lease was taken before anybody knew the names.
async fn a_cut_answer_that_varies(one: &ResponseCacheLayer, two: &ResponseCacheLayer) {
    let origin = Origin::new(|_, call| {
        let response = said(&[("cache-control", "max-age=60"), ("vary", "accept")], "");
        let response = response.map(|_| {
            if call > 0 {
                return full("whole".into());
            }
            let broken = futures_util::stream::iter([Err(super::origin::Broken)]);
            StreamBody::new(broken).boxed_unsync()
        });
        Box::pin(async { Ok(response) })
    });
    let (one, two) = (App::new(one, &origin), App::new(two, &origin));
    let cut = one.try_call(request("GET", "/a", &[])).await.unwrap();
    assert!(cut.into_body().collect().await.is_err());
    // The release goes on behind the answer; a lease left behind would last a minute.
    let next = tokio::time::timeout(secs(20), two.get("/a")).await;
    assert_eq!(next.expect("the lease is still held").body, "whole");
}

#[tokio::test]
async fn a_cut_answer_that_varies_gives_its_lease_back() {
    let store = tower_keep::backend::memory::MemoryStore::new();
    let layer = || ResponseCacheLayer::new(store.clone()).lease(secs(60));
    a_cut_answer_that_varies(&layer(), &layer()).await;
}

#[tokio::test]
async fn a_cut_answer_that_varies_gives_its_lease_back_on_a_shared_store() {
    let store = RedisStore::builder(&shared().await.url()).prefix(&fresh_prefix());
    let store = store.open().await.unwrap();
    let layer = || ResponseCacheLayer::new(store.clone()).lease(secs(60));
    a_cut_answer_that_varies(&layer(), &layer()).await;
}

#[tokio::test]
async fn a_request_that_leaves_while_it_looks_up_leaves_no_lease_behind() {
    use crate::support::{Proxy, RedisServer};

    let server = RedisServer::start().await;
    let proxy = Proxy::before(server.address()).await;
    let through = RedisStore::builder(&format!("redis://{}/", proxy.address()))
        .prefix("left")
        .timeout(secs(10));
    let through = through.open().await.unwrap();
    through.ping().await.unwrap();
    let direct = RedisStore::builder(&server.url()).prefix("left");
    let direct = direct.open().await.unwrap();
    let origin =
        Origin::of(|_, call| said(&[("cache-control", "max-age=60")], format!("run {call}")));
    let leaving = App::new(&ResponseCacheLayer::new(through).lease(secs(60)), &origin);
    // The scripts are known to the server from here on.
    leaving.get("/warm").await;
    proxy.delay(std::time::Duration::from_millis(500));
    let gone = tokio::time::timeout(std::time::Duration::from_millis(50), leaving.get("/a")).await;
    assert!(gone.is_err(), "answered before it could leave");
    let staying = App::new(&ResponseCacheLayer::new(direct).lease(secs(60)), &origin);
    let next = tokio::time::timeout(secs(20), staying.get("/a")).await;
    assert_eq!(next.expect("the lease is still held").body, "run 1");
}

#[tokio::test]
async fn a_preference_that_is_none_selects_no_variant_of_a_valid_one() {
    let origin = Origin::of(|seen, _| {
        let fields = [("cache-control", "max-age=60"), ("vary", "accept-language")];
        let said_so = seen.headers().get(header::ACCEPT_LANGUAGE);
        said(&fields, format!("{:?}", said_so.unwrap()))
    });
    let app = App::new(&layer(&clock()), &origin);
    // What a handler cannot read it answers in its own language: nobody else may get that.
    for (forged, valid) in [
        ("de;q=800", "de;q=0.8"),
        ("d e", "de"),
        ("de; q =0.8", "de;q=0.8"),
        ("de;q= 0.8", "de;q=0.8"),
        ("de;q=0.8;q=800", "de;q=0.8;q=0.8"),
    ] {
        for value in [forged, valid] {
            let got = app.get_with("/a", &[("accept-language", value)]).await;
            assert_eq!(got.body, format!("{value:?}"), "{forged}");
        }
    }
    let spaced = app
        .get_with("/a", &[("accept-language", "de ;\tq=0.8")])
        .await;
    assert!(spaced.is_hit(), "{}", spaced.cache_status());
}
