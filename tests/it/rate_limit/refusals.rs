//! Who is refused, when, with what answer; and what a refusal leaves untouched.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use super::*;
use http::Method;
use tower::Service;
use tower_keep::SECOND;
use tower_keep::core::{Body, StoreFailure};
use tower_keep::rate_limit::{RateLimitCause, RateLimitRejection};

#[tokio::test]
async fn five_pass_and_the_sixth_is_told_when_to_come_back() {
    let clock = clock();
    let app = App::new(payments(memory(&clock)));
    for _ in 0..5 {
        clock.advance(SECOND);
        assert_eq!(app.get("u1", "192.0.2.1").await.status, StatusCode::OK);
    }
    let answer = app.get("u1", "192.0.2.1").await;
    answer.refused_by("user");
    assert_eq!(app.calls(), 5);
    assert!(answer.field("ratelimit").unwrap().contains("\"user\";r=0"));
    let wait = answer.retry_after();
    assert!(SECOND <= wait && wait <= 15 * MINUTE);
    clock.advance(wait);
    assert_eq!(app.get("u1", "192.0.2.1").await.status, StatusCode::OK);
    app.get("u1", "192.0.2.1").await.refused_by("user");
}

#[tokio::test]
async fn a_refusal_carries_its_cause_and_nothing_of_the_request() {
    let app = App::new(payments(memory(&clock())));
    for _ in 0..5 {
        app.get("u1", "192.0.2.1").await;
    }
    let refused = app.get("u1", "192.0.2.1").await.extensions;
    let cause = refused.get().map(RateLimitRejection::cause);
    assert_eq!((cause, refused.len()), (Some(RateLimitCause::Limited), 1));
}

#[tokio::test]
async fn a_window_slides_and_does_not_start_anew_at_its_boundary() {
    let clock = clock();
    let app = App::new(payments(memory(&clock)));
    clock.advance(890 * SECOND);
    for _ in 0..5 {
        app.get("u1", "192.0.2.1").await;
    }
    clock.advance(11 * SECOND);
    app.get("u1", "192.0.2.1").await.refused_by("user");
}

#[tokio::test]
async fn the_21st_of_an_address_and_the_21st_of_a_day_are_refused_by_their_policies() {
    let clock = clock();
    let app = App::new(payments(memory(&clock)));
    for user in 0..20 {
        let answer = app.get(&format!("u{user}"), "192.0.2.1").await;
        assert_eq!(answer.status, StatusCode::OK);
    }
    app.get("u20", "192.0.2.1").await.refused_by("ip");
    for turn in 0..20 {
        let answer = app.get("daily", &format!("192.0.2.{}", turn + 2)).await;
        assert_eq!(answer.status, StatusCode::OK, "{turn}");
        if turn % 5 == 4 {
            clock.advance(15 * MINUTE + SECOND);
        }
    }
    app.get("daily", "192.0.2.99")
        .await
        .refused_by("user-daily");
}

#[tokio::test]
async fn a_refusal_by_one_policy_charges_no_other() {
    let clock = clock();
    let layer = payments(memory(&clock));
    let (app, limiter) = (App::new(layer.clone()), layer.limiter());
    for user in 0..20 {
        app.get(&format!("u{user}"), "192.0.2.1").await;
    }
    for _ in 0..10 {
        app.get("late", "192.0.2.1").await.refused_by("ip");
    }
    assert_eq!(limiter.peek("user", "late").await.unwrap().attempts, 0);
    assert_eq!(
        limiter.peek("user-daily", "late").await.unwrap().attempts,
        0
    );
    assert_eq!(limiter.peek("global", ()).await.unwrap().attempts, 20);
}

#[tokio::test]
async fn the_problem_document_says_it_all_in_numbers() {
    let clock = clock();
    let app = App::new(payments(memory(&clock)));
    for _ in 0..5 {
        app.get("u1", "192.0.2.1").await;
    }
    clock.advance(720 * SECOND);
    let problem = app.get("u1", "192.0.2.1").await.problem();
    let expected = serde_json::json!({
        "type": "https://iana.org/assignments/http-problem-types#quota-exceeded",
        "title": "Quota Exceeded",
        "status": 429,
        "detail": "policy user allows 5 in 900 s",
        "code": "user",
        "violated-policies": ["user"],
        "error": "Too many requests. Try again in 180 seconds.",
        "reset_time": Timestamp::of(&clock).as_millis() + 180_000,
        "retry_after": 180,
    });
    assert_eq!(problem, expected);
}

#[tokio::test]
async fn a_refusal_names_all_violated_policies_and_the_longest_wait() {
    let clock = clock();
    let layer = RateLimitLayer::new(memory(&clock))
        .limit(Quota::per_minute(1), Partition::client_ip())
        .limit(Quota::per_hour(1), Partition::global());
    let app = App::new(layer);
    app.get("", "192.0.2.1").await;
    let answer = app.get("", "192.0.2.1").await;
    answer.refused_by("global");
    assert_eq!(
        answer.problem()["violated-policies"],
        serde_json::json!(["client-ip", "global"])
    );
    assert_eq!(answer.retry_after(), Duration::from_secs(3_600));
    let why = answer.extensions.get::<RateLimitRejection>().unwrap();
    assert_eq!(why.cause(), RateLimitCause::Limited);
    assert_eq!(why.violated().count(), 2);
}

#[tokio::test]
async fn of_several_reasons_the_gravest_is_told_and_of_equal_ones_the_first() {
    let clock = clock();
    let layer = RateLimitLayer::new(memory(&clock))
        .policy(Policy::new("full", Quota::per_hour(1), Partition::global()))
        .policy(Policy::new(
            "full-too",
            Quota::per_hour(1),
            Partition::global(),
        ))
        .policy(Policy::new(
            "blocked",
            Quota::per_hour(9),
            Partition::principal(),
        ))
        .policy(
            Policy::new("small", Quota::per_hour(1), Partition::client_ip())
                .cost(|parts| if parts.uri.path() == "/large" { 2 } else { 0 }),
        );
    let (app, limiter) = (App::new(layer.clone()), layer.limiter());
    let answer = async |user: &str, path: &'static str| {
        let mut request = request(user, "192.0.2.1");
        *request.uri_mut() = path.parse().unwrap();
        let answer = app.send(request).await;
        let problem = answer.problem();
        let retry = answer.field("retry-after").map(str::to_owned);
        let names = problem["violated-policies"].as_array().unwrap().len();
        let kind = problem["type"].as_str().unwrap().rsplit('#').next();
        (
            problem["code"].as_str().unwrap().to_owned(),
            kind.unwrap().to_owned(),
            retry,
            names,
        )
    };
    app.get("u1", "192.0.2.1").await;
    limiter.block("blocked", "u2", MINUTE).await.unwrap();
    let told = |code: &str, kind: &str, retry: Option<&str>, names| {
        (
            code.to_owned(),
            kind.to_owned(),
            retry.map(str::to_owned),
            names,
        )
    };
    let hour = Some("3600");
    assert_eq!(
        answer("u1", "/").await,
        told("full", "quota-exceeded", hour, 2)
    );
    // The block ends sooner, and a request that comes back then is refused again.
    assert_eq!(
        answer("u2", "/").await,
        told("blocked", "abnormal-usage-detected", hour, 3)
    );
    // Whatever ends, this one is never admitted.
    assert_eq!(
        answer("u2", "/large").await,
        told("small", "quota-exceeded", None, 4)
    );
}

#[tokio::test]
async fn waiting_as_told_always_suffices() {
    let clock = clock();
    let layer = RateLimitLayer::new(memory(&clock))
        .policy(
            Policy::new("log", Quota::new(7, 10 * SECOND), Partition::global())
                .cost(|parts| parts.uri.path().len() as u32 - 1),
        )
        .policy(Policy::new(
            "gcra",
            Quota::new(9, 10 * SECOND).gcra(4),
            Partition::client_ip(),
        ))
        .policy(Policy::new(
            "fixed",
            Quota::per_minute(40).fixed(),
            Partition::path(),
        ));
    let app = App::new(layer);
    let (mut refusals, mut seed) = (0, 7_u64);
    while refusals < 1_000 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        clock.advance(Duration::from_micros((seed >> 33) % 900_000));
        let path = &"/xxxx"[..2 + (seed >> 60) as usize % 4];
        let ask = || {
            let mut request = request("", "192.0.2.1");
            *request.uri_mut() = path.parse().unwrap();
            request
        };
        let answer = app.send(ask()).await;
        if answer.status == StatusCode::TOO_MANY_REQUESTS {
            refusals += 1;
            clock.advance(answer.retry_after());
            assert_eq!(app.send(ask()).await.status, StatusCode::OK);
        }
    }
}

#[tokio::test]
async fn a_cost_above_the_limit_is_refused_without_a_time_to_come_back() {
    let policy = Policy::new("tier", Quota::per_minute(10), Partition::global())
        .cost(|parts| if parts.method == Method::POST { 25 } else { 1 });
    let app = App::new(RateLimitLayer::new(MemoryStore::new()).policy(policy));
    let mut request = request("", "192.0.2.1");
    *request.method_mut() = Method::POST;
    let answer = app.send(request).await;
    answer.refused_by("tier");
    assert_eq!(answer.field("retry-after"), None);
    assert_eq!(answer.problem().get("retry_after"), None);
    assert_eq!(answer.field("ratelimit"), Some("\"tier\";r=10"));
}

#[tokio::test]
async fn a_limit_per_request_is_shown_and_capped_and_keeps_what_was_consumed() {
    let policy = Policy::new("tier", Quota::per_minute(4), Partition::global()).limit_by(|parts| {
        let tier = parts.headers.get("x-tier")?;
        tier.to_str().ok()?.parse().ok()
    });
    let app = App::new(RateLimitLayer::new(MemoryStore::new()).policy(policy));
    let ask = |tier: &'static str| {
        let mut request = request("", "192.0.2.1");
        if !tier.is_empty() {
            request
                .headers_mut()
                .insert("x-tier", tier.parse().unwrap());
        }
        app.send(request)
    };
    for (tier, status, line) in [
        ("2", StatusCode::OK, "\"tier\";q=2;w=60"),
        ("99", StatusCode::OK, "\"tier\";q=4;w=60"),
        ("2", StatusCode::TOO_MANY_REQUESTS, "\"tier\";q=2;w=60"),
        ("", StatusCode::OK, "\"tier\";q=4;w=60"),
        ("0", StatusCode::TOO_MANY_REQUESTS, "\"tier\";q=0;w=60"),
    ] {
        let answer = ask(tier).await;
        assert_eq!(
            (answer.status, answer.field("ratelimit-policy")),
            (status, Some(line))
        );
    }
}

#[tokio::test]
async fn preflights_and_exempt_requests_and_listed_addresses_ask_no_store() {
    // A store that can never answer, and a layer that refuses whatever it cannot decide.
    let layer = payments(super::faults::Broken)
        .on_store_failure(StoreFailure::Closed)
        .exempt(|parts| parts.uri.path() == "/health")
        .allow_ips([
            "198.51.100.0/24".parse().unwrap(),
            "203.0.113.0/24".parse().unwrap(),
        ])
        .deny_ips(["203.0.113.7/32".parse().unwrap()]);
    let app = App::new(layer);
    let mut preflight = request("", "192.0.2.1");
    *preflight.method_mut() = Method::OPTIONS;
    preflight
        .headers_mut()
        .insert("origin", "https://a.test".parse().unwrap());
    preflight
        .headers_mut()
        .insert("access-control-request-method", "POST".parse().unwrap());
    let mut health = request("", "192.0.2.1");
    *health.uri_mut() = "/health".parse().unwrap();
    for passing in [
        preflight,
        health,
        request("", "198.51.100.1"),
        request("", "203.0.113.1"),
    ] {
        let answer = app.send(passing).await;
        assert_eq!(
            (answer.status, answer.field("ratelimit")),
            (StatusCode::OK, None)
        );
    }
    let denied = app.get("", "203.0.113.7").await;
    assert_eq!(denied.status, StatusCode::FORBIDDEN);
    assert_eq!(denied.problem()["code"], "ADDRESS_DENIED");
    assert_eq!(denied.field("retry-after"), None);
    assert_eq!(
        app.get("", "192.0.2.1").await.status,
        StatusCode::SERVICE_UNAVAILABLE
    );
}

#[tokio::test]
async fn a_shadow_policy_refuses_nobody_and_is_in_no_field() {
    let layer = RateLimitLayer::new(MemoryStore::new())
        .policy(Policy::new("tried", Quota::per_minute(1), Partition::global()).shadow())
        .policy(Policy::new(
            "real",
            Quota::per_minute(3),
            Partition::global(),
        ));
    let app = App::new(layer.clone());
    for _ in 0..3 {
        let answer = app.get("", "192.0.2.1").await;
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.field("ratelimit-policy"), Some("\"real\";q=3;w=60"));
    }
    app.get("", "192.0.2.1").await.refused_by("real");
    assert_eq!(layer.limiter().peek("tried", ()).await.unwrap().attempts, 1);
}

#[tokio::test]
async fn a_hook_may_change_the_document_and_the_fields_come_after_it() {
    let layer = RateLimitLayer::new(MemoryStore::new())
        .limit(Quota::per_minute(1), Partition::global())
        .on_rejection(|why, response| {
            *response.body_mut() = Bytes::from(format!("{why:?}"));
            response
                .headers_mut()
                .insert("content-type", "text/plain".parse().unwrap());
            response
                .headers_mut()
                .insert("retry-after", "7".parse().unwrap());
        });
    let app = App::new(layer);
    app.get("", "192.0.2.1").await;
    let answer = app.get("", "192.0.2.1").await;
    assert!(answer.body.starts_with(b"RateLimitRejection"));
    assert_eq!(answer.field("retry-after"), Some("7"));
    assert!(answer.field("ratelimit").is_some());
    // What it says of the limits itself stands alone.
    let own = RateLimitLayer::new(MemoryStore::new())
        .limit(Quota::per_minute(1), Partition::global())
        .on_rejection(|_, response| {
            let own = "\"own\";r=0".parse().unwrap();
            response.headers_mut().insert("ratelimit", own);
        });
    let app = App::new(own);
    app.get("", "192.0.2.1").await;
    let answer = app.get("", "192.0.2.1").await;
    let lines: Vec<_> = answer.headers.get_all("ratelimit").iter().collect();
    assert_eq!(lines, ["\"own\";r=0"]);
    assert_eq!(answer.field("ratelimit-policy"), None);
}

#[tokio::test]
async fn a_hook_that_makes_a_response_of_its_own_keeps_it_out_of_caches_and_its_cause_in_it() {
    let listed = "192.0.2.9/32".parse().unwrap();
    let own = |cache: Option<&'static str>| {
        RateLimitLayer::new(MemoryStore::new())
            .limit(Quota::per_minute(1), Partition::global())
            .deny_ips([listed])
            .on_rejection(move |why, response| {
                *response = Response::new(Bytes::from_static(b"own"));
                *response.status_mut() = why.status();
                if let Some(cache) = cache {
                    let cache = cache.parse().unwrap();
                    response.headers_mut().insert("cache-control", cache);
                }
            })
    };
    for (said, sent) in [(None, "no-store"), (Some("private"), "private")] {
        let app = App::new(own(said));
        app.get("", "192.0.2.1").await;
        let answer = app.get("", "192.0.2.1").await;
        assert_eq!((answer.status.as_u16(), &*answer.body), (429, &b"own"[..]));
        assert_eq!(answer.field("cache-control"), Some(sent));
        let cause = answer.extensions.get::<RateLimitRejection>().unwrap();
        assert_eq!(cause.cause(), RateLimitCause::Limited);
        let answer = app.get("", "192.0.2.9").await;
        let cause = answer.extensions.get::<RateLimitRejection>().unwrap();
        assert_eq!(cause.cause(), RateLimitCause::Listed);
    }
}

#[tokio::test]
async fn a_response_that_says_so_is_free_of_charge() {
    let policy = Policy::new("reads", Quota::per_minute(2), Partition::global())
        .refund_when(|response| response.status == StatusCode::NOT_MODIFIED);
    let layer = RateLimitLayer::new(MemoryStore::new()).policy(policy);
    let mut app = App::new(layer);
    app.status = StatusCode::NOT_MODIFIED;
    for _ in 0..5 {
        let answer = app.get("", "192.0.2.1").await;
        assert_eq!(answer.field("ratelimit").unwrap(), "\"reads\";r=1;t=60");
    }
    app.status = StatusCode::OK;
    for _ in 0..2 {
        assert_eq!(app.get("", "192.0.2.1").await.status, StatusCode::OK);
    }
    app.get("", "192.0.2.1").await.refused_by("reads");
}

#[tokio::test]
async fn an_inner_error_is_the_inner_s_own_and_keeps_the_charge() {
    let layer =
        RateLimitLayer::new(MemoryStore::new()).limit(Quota::per_minute(5), Partition::global());
    let inner = service_fn(async |_: Request<()>| Err::<Response<Full<Bytes>>, _>("broken"));
    let error = layer.layer(inner).oneshot(request("", "192.0.2.1")).await;
    assert_eq!(error.err(), Some("broken"));
    assert_eq!(
        layer.limiter().peek("global", ()).await.unwrap().attempts,
        1
    );
}

/// Panics when it is called without having been asked whether it is ready; a clone never was.
struct Strict {
    ready: bool,
    called: Arc<AtomicBool>,
}

impl Clone for Strict {
    fn clone(&self) -> Self {
        Self {
            ready: false,
            called: Arc::clone(&self.called),
        }
    }
}

impl Service<Request<()>> for Strict {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<()>) -> Self::Future {
        assert!(
            std::mem::take(&mut self.ready),
            "called without having been ready"
        );
        self.called.store(true, Ordering::SeqCst);
        std::future::ready(Ok(Response::new(Full::default())))
    }
}

#[tokio::test]
async fn only_the_service_that_was_ready_is_called() {
    let redis = crate::support::redis::shared().await.store(&clock()).await;
    let stores: [Arc<dyn RateLimitStore>; 2] = [Arc::new(MemoryStore::new()), Arc::new(redis)];
    for store in stores {
        let called = Arc::new(AtomicBool::new(false));
        let strict = Strict {
            ready: false,
            called: Arc::clone(&called),
        };
        let layer = RateLimitLayer::new(store)
            .limit(Quota::per_minute(1), Partition::global())
            .timeout(PATIENCE);
        let mut service = layer.layer(strict);
        for (turn, expected) in [(1, true), (2, false), (3, false)] {
            called.store(false, Ordering::SeqCst);
            service
                .ready()
                .await
                .unwrap()
                .call(request("", "192.0.2.1"))
                .await
                .unwrap();
            assert_eq!(called.load(Ordering::SeqCst), expected, "turn {turn}");
        }
    }
}

#[test]
fn every_kind_of_body_compiles() {
    fn service<Q, R>() -> impl Service<Request<Q>, Response = Response<Body<R>>> + Clone {
        let inner = service_fn(async |_: Request<Q>| -> Result<Response<R>, Infallible> {
            std::future::pending().await
        });
        RateLimitLayer::new(MemoryStore::new()).layer(inner)
    }
    type Grpc =
        http_body_util::combinators::UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;
    let _ = service::<axum::body::Body, axum::body::Body>();
    let _ = service::<Full<Bytes>, Full<Bytes>>();
    let _ =
        service::<hyper::body::Incoming, http_body_util::combinators::BoxBody<Bytes, Infallible>>();
    let _ = service::<Grpc, Grpc>();
    let _ = service::<(), String>();
}

#[test]
fn two_policies_of_one_name_and_a_name_with_blanks_are_refused_where_they_are_written() {
    let policy = || Policy::new("user", Quota::default(), Partition::global());
    let twice = || {
        RateLimitLayer::new(MemoryStore::new())
            .policy(policy())
            .policy(policy())
    };
    assert!(std::panic::catch_unwind(twice).is_err());
    for name in ["", "two words", "UPPER", "a\"b", &"x".repeat(65)] {
        assert!(
            Policy::try_new(name, Quota::default(), Partition::global()).is_err(),
            "{name}"
        );
    }
}

/// One layer remembers answers, the other is made anew for each request and remembers none.
#[tokio::test]
async fn a_refusal_that_is_told_again_says_to_the_byte_what_one_made_anew_says() {
    let quotas = [
        Quota::new(2, MINUTE),
        Quota::new(2, MINUTE).gcra(2),
        Quota::new(2, MINUTE).fixed(),
    ];
    let (mut refusals, mut shared) = (0, 0);
    for quota in quotas {
        let (clock, anew) = (super::clock(), super::clock());
        let layer =
            |store: MemoryStore| RateLimitLayer::new(store).limit(quota, Partition::principal());
        let (store, other) = (memory(&clock), memory(&anew));
        let app = App::new(layer(store));
        let mut last = Bytes::new();
        for turn in 0..600_u64 {
            let step = Duration::from_millis(turn * 7_919 % 403 * (turn % 3));
            clock.advance(step);
            anew.advance(step);
            let user = format!("u{}", turn * 31 % 5);
            let answer = app.get(&user, "192.0.2.1").await;
            let fresh = App::new(layer(other.clone())).get(&user, "192.0.2.1").await;
            assert_eq!(
                (answer.status, &answer.headers),
                (fresh.status, &fresh.headers)
            );
            assert_eq!(answer.body, fresh.body);
            if answer.status == StatusCode::TOO_MANY_REQUESTS {
                let names = answer.headers.keys().count();
                assert_eq!((names, answer.extensions.len()), (6, 1));
                refusals += 1;
                shared += usize::from(answer.body.as_ptr() == last.as_ptr());
                last = answer.body;
            }
        }
    }
    assert!(refusals > 300, "{refusals}");
    assert!(shared > 0);
}

#[tokio::test]
async fn only_a_whole_preflight_is_not_limited() {
    const PREFLIGHT: [&str; 2] = ["origin", "access-control-request-method"];
    for (method, fields) in [
        (Method::GET, &PREFLIGHT[..]),
        (Method::OPTIONS, &PREFLIGHT[1..]),
        (Method::OPTIONS, &PREFLIGHT[..1]),
    ] {
        let layer = RateLimitLayer::new(MemoryStore::new());
        let app = App::new(layer.limit(Quota::per_minute(1), Partition::client_ip()));
        let ask = || {
            let mut request = request("", "192.0.2.1");
            *request.method_mut() = method.clone();
            for field in fields {
                request.headers_mut().insert(*field, "x".parse().unwrap());
            }
            app.send(request)
        };
        assert_eq!(ask().await.status, StatusCode::OK, "{method} {fields:?}");
        ask().await.refused_by("client-ip");
    }
}

#[tokio::test]
async fn who_is_listed_and_who_comes_while_the_store_is_away_get_the_whole_document() {
    let layer = RateLimitLayer::new(super::faults::Broken)
        .limit(Quota::per_minute(1), Partition::client_ip())
        .on_store_failure(StoreFailure::Closed)
        .deny_ips(["203.0.113.7/32".parse().unwrap()]);
    let app = App::new(layer);
    let denied = app.get("", "203.0.113.7").await;
    assert_eq!(denied.status, StatusCode::FORBIDDEN);
    let expected = serde_json::json!({
        "type": "about:blank",
        "title": "Forbidden",
        "status": 403,
        "code": "ADDRESS_DENIED",
    });
    assert_eq!(denied.problem(), expected);

    let away = app.get("", "192.0.2.1").await;
    assert_eq!(away.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(away.field("cache-control"), Some("no-store"));
    let expected = serde_json::json!({
        "type": "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity",
        "title": "Temporary Reduced Capacity",
        "status": 503,
        "detail": "the service cannot reach its store, try again later",
        "code": "STORE_UNAVAILABLE",
        "error": "The service is short of capacity. Try again later.",
        "retry_after": away.retry_after().as_secs(),
    });
    assert_eq!(away.problem(), expected);
}
