//! What one request demands, sends or breaks must never change what another one gets.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};
use http::{Response, StatusCode, header};
use http_body::{Frame, SizeHint};
use http_body_util::{BodyExt, StreamBody};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower::{Layer, Service, ServiceExt};
use tower_keep::backend::redis::RedisStore;
use tower_keep::core::ManualClock;
use tower_keep::response_cache::{KeyRules, ResponseCacheLayer, Target};

use super::origin::{
    App, Broken, Origin, Seen, TestBody, clock, full, gated, layer, read, request, said, secs,
    until,
};
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
    let origin = Origin::of(|_, call| {
        let fields = [("cache-control", "max-age=60"), ("content-location", "/a")];
        said(&fields, call.to_string())
    });
    let app = App::new(&layer, &origin);
    // An answer to POST that is one to GET asks the store before it tells it.
    for method in ["PUT", "POST"] {
        while !app.get("/a").await.is_hit() {
            tokio::task::yield_now().await;
        }
        let change = app.try_call(request(method, "/a", &[]));
        // The handler has answered, the store is being told, the client leaves.
        assert!(futures_util::FutureExt::now_or_never(change).is_none());
        assert!(!app.get("/a").await.is_hit(), "{method}");
    }
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

/// Answers what everybody may have: `public`, with a tag that changes with each run; a 304 to the tag of the run before.
fn versions(status: impl Fn(usize) -> u16 + Send + Sync + 'static) -> Origin {
    Origin::of(move |seen, call| {
        let tag = format!("\"{call}\"");
        let cache_control = "public, max-age=10, stale-while-revalidate=10, stale-if-error=60";
        let fields = [("cache-control", cache_control), ("etag", tag.as_str())];
        let had = seen.headers().get(header::IF_NONE_MATCH).is_some();
        let mut response = said(&fields, format!("run {call}, conditional: {had}"));
        *response.status_mut() = StatusCode::from_u16(status(call)).unwrap();
        if !response.status().is_success() {
            response.headers_mut().clear();
        }
        response
    })
}

#[tokio::test]
async fn what_is_stale_is_refreshed_behind_those_who_share_no_fetch() {
    let ways = [
        ("GET", ("authorization", "Basic a")),
        ("GET", ("range", "bytes=1-2")),
        ("HEAD", ("x-a", "1")),
    ];
    let all = ways.map(|way| (way, false)).into_iter();
    for ((method, field), expired) in all.chain(ways.map(|way| (way, true))) {
        let (clock, origin) = (clock(), versions(|_| 200));
        let layer = layer(&clock);
        let app = App::new(&layer, &origin);
        // By its age, or by an invalidation within its lifetime.
        let make_stale = async || {
            if expired {
                layer.handle().expire([Target::url("/a")]).await;
            } else {
                clock.advance(secs(15));
            }
        };
        app.get_with("/a", &[field]).await;
        app.get("/a").await;
        let before = origin.calls();
        make_stale().await;
        let stale = app.send(request(method, "/a", &[field])).await;
        let left = if expired { -1 } else { -5 };
        let status = format!("tower-keep;hit;ttl={left}");
        assert_eq!(stale.cache_status(), status, "{field:?}");
        until("a refresh", || origin.calls() == before + 1).await;
        let is_new = || async { app.get("/a").await.field("etag") == format!("\"{before}\"") };
        while !is_new().await {
            tokio::task::yield_now().await;
        }
        assert_eq!(origin.calls(), before + 1, "{field:?}");
        // What is not to be stored refreshes nothing.
        make_stale().await;
        let no_store = [("cache-control", "no-store"), field];
        app.send(request(method, "/a", &no_store)).await;
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        assert_eq!(origin.calls(), before + 1, "{field:?}");
    }
}

#[tokio::test]
async fn a_refresh_under_credentials_ends_nothing_that_others_have() {
    let (clock, origin) = (clock(), versions(|call| if call == 1 { 401 } else { 200 }));
    let app = App::new(&layer(&clock), &origin);
    app.get("/a").await;
    clock.advance(secs(12));
    app.get_with("/a", &[("authorization", "forged")]).await;
    until("the refresh", || origin.calls() == 2).await;
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
    let other = app.get("/a").await;
    assert_eq!(other.cache_status(), "tower-keep;hit;ttl=-2");
    assert_eq!(other.field("etag"), "\"0\"");
}

#[tokio::test]
async fn what_those_who_share_no_fetch_find_stale_is_validated_and_stands_in() {
    let (clock, origin) = (clock(), versions(|call| if call == 2 { 503 } else { 200 }));
    let app = App::new(&layer(&clock), &origin);
    let known = [("authorization", "Basic a")];
    app.get("/a").await;
    clock.advance(secs(25));
    let got = app.get_with("/a", &known).await;
    assert_eq!(got.body, "run 1, conditional: true");
    clock.advance(secs(25));
    let stood_in = app.get_with("/a", &known).await;
    assert_eq!(stood_in.body, "run 1, conditional: true");
    assert!(
        stood_in.cache_status().contains("stale-if-error"),
        "{}",
        stood_in.cache_status()
    );
    // That says nothing of others' requests.
    let other = app.get("/a").await;
    assert_eq!(other.body, "run 3, conditional: true");
}

#[tokio::test]
async fn a_stale_answer_stands_in_for_those_who_are_passed_too() {
    for (method, field, body) in [
        ("HEAD", ("x-a", "1"), ""),
        ("GET", ("range", "bytes=0-4"), "run 0"),
        (
            "GET",
            ("cache-control", "no-store"),
            "run 0, conditional: false",
        ),
    ] {
        let (clock, origin) = (clock(), versions(|call| if call == 0 { 200 } else { 502 }));
        let app = App::new(&layer(&clock), &origin);
        app.get("/a").await;
        clock.advance(secs(25));
        let got = app.send(request(method, "/a", &[field])).await;
        assert!(got.status < 300, "{field:?} {}", got.status);
        assert_eq!(got.body, body, "{field:?}");
        assert!(got.cache_status().contains("stale-if-error"), "{field:?}");
    }
}

/// Says that it is longer than anything can be.
struct Endless(Option<Bytes>);

impl http_body::Body for Endless {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match self.0.take() {
            Some(data) => Poll::Ready(Some(Ok(Frame::data(data)))),
            None => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(u64::MAX)
    }
}

#[tokio::test]
async fn a_body_that_says_an_impossible_size_is_passed_on() {
    let origin = Origin::new(|_, _| {
        Box::pin(async {
            let body = Endless(Some(Bytes::from_static(b"begin"))).boxed_unsync();
            let response = Response::builder().header("cache-control", "max-age=60");
            Ok(response.body(body).unwrap())
        })
    });
    let app = App::new(&layer(&clock()), &origin);
    let response = app.try_call(request("GET", "/a", &[])).await.unwrap();
    let mut body = std::pin::pin!(response.into_body());
    let first = body.frame().await.unwrap().unwrap();
    assert_eq!(first.into_data().unwrap(), "begin");
}

#[tokio::test]
async fn a_body_without_end_can_be_given_up_while_it_is_warmed() {
    let origin = Origin::new(|_, _| {
        Box::pin(async {
            let frames = futures_util::stream::repeat_with(|| Ok(Frame::data(Bytes::new())));
            Ok(Response::new(StreamBody::new(frames).boxed_unsync()))
        })
    });
    let layer = layer(&clock());
    let (handle, app) = (layer.handle(), App::new(&layer, &origin).service);
    let warming = async move {
        handle
            .warm::<_, http_body_util::Empty<Bytes>, _>(app, ["/a"])
            .await
    };
    let ended = tokio::time::timeout(std::time::Duration::from_millis(50), warming).await;
    assert!(ended.is_err());
}

#[tokio::test]
async fn the_longest_time_is_as_long_as_any() {
    let (clock, origin) = (clock(), Origin::of(|_, _| said(&[], "a")));
    let longest = std::time::Duration::MAX;
    let layer = layer(&clock).ttl(longest).stale_while_revalidate(longest);
    let app = App::new(&layer, &origin);
    let first = app.get("/a").await;
    assert_eq!(
        first.cache_status(),
        "tower-keep;fwd=uri-miss;stored;ttl=2147483648"
    );
    clock.advance(secs(30 * 86_400 - 1));
    assert!(app.get("/a").await.is_hit());
}

#[tokio::test]
async fn a_range_of_all_is_one_also_while_the_body_is_on_its_way() {
    let origin = Origin::new(|seen, _| {
        Box::pin(async move {
            assert!(!seen.headers().contains_key(header::RANGE));
            let frames = futures_util::stream::iter(["hel", "lo"]).then(|text| async move {
                tokio::task::yield_now().await;
                Ok(Frame::data(Bytes::from_static(text.as_bytes())))
            });
            let response = Response::builder()
                .header("cache-control", "max-age=60")
                .header("content-digest", "sha-256=:x:")
                .header("content-length", "5");
            Ok(response
                .body(StreamBody::new(frames).boxed_unsync())
                .unwrap())
        })
    });
    let app = App::new(&layer(&clock()), &origin);
    for is_hit in [false, true] {
        let got = app.get_with("/a", &[("range", "bytes=0-")]).await;
        assert_eq!((got.status, got.is_hit()), (206, is_hit));
        assert_eq!(got.field("content-range"), "bytes 0-4/5");
        assert_eq!((got.field("content-digest"), &got.body[..]), ("", "hello"));
    }
    let other = [("range", "bytes=0-"), ("if-range", "\"x\"")];
    assert_eq!(app.get_with("/b", &other).await.status, 200);
}

/// Has places for so many requests; who is ready holds one.
struct Places {
    inner: Origin,
    all: Arc<Semaphore>,
    held: Option<OwnedSemaphorePermit>,
    asked: Option<BoxFuture<'static, OwnedSemaphorePermit>>,
}

impl Clone for Places {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            all: Arc::clone(&self.all),
            held: None,
            asked: None,
        }
    }
}

impl Service<Seen> for Places {
    type Response = Response<TestBody>;
    type Error = Broken;
    type Future = BoxFuture<'static, Result<Response<TestBody>, Broken>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        if self.held.is_none() {
            let all = Arc::clone(&self.all);
            let asked = self
                .asked
                .get_or_insert_with(|| async { all.acquire_owned().await.unwrap() }.boxed());
            self.held = Some(std::task::ready!(asked.as_mut().poll(cx)));
            self.asked = None;
        }
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, seen: Seen) -> Self::Future {
        let (place, answer) = (self.held.take().expect("ready"), self.inner.call(seen));
        async move {
            let answer = answer.await;
            drop(place);
            answer
        }
        .boxed()
    }
}

#[tokio::test]
async fn who_waits_for_somebody_elses_fetch_holds_no_place_of_the_inner_service() {
    let (origin, gate) = gated(|seen, _| {
        let fields = [("cache-control", "max-age=60")];
        said(&fields, seen.uri().path().to_owned())
    });
    let places = Places {
        inner: origin.clone(),
        all: Arc::new(Semaphore::new(2)),
        held: None,
        asked: None,
    };
    let layer = layer(&clock());
    let (service, handle) = (layer.layer(places), layer.handle());
    let send = |path: &str| {
        let sent = service.clone().oneshot(request("GET", path, &[]));
        tokio::spawn(async move { read(sent.await.unwrap()).await.body })
    };
    let slow = [send("/slow"), send("/slow"), send("/slow")];
    until("two wait", || handle.stats().waiters == 2).await;
    let other = send("/other");
    until("the other runs", || origin.calls() == 2).await;
    gate.add_permits(2);
    assert_eq!(other.await.unwrap(), "/other");
    for one in slow {
        assert_eq!(one.await.unwrap(), "/slow");
    }
    assert_eq!(origin.calls(), 2);
}
