//! What is kept of an answer, for how long, and how it comes back.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body::{Frame, SizeHint};
use http_body_util::{BodyExt, Full, StreamBody};
use tokio::sync::Notify;
use tower::{Layer, ServiceExt, service_fn};
use tower_keep::core::IdempotencyOutcome;
use tower_keep::idempotency::{Directive, FingerprintRule, IdempotencyLayer, StatusPolicy, Twins};
use tower_keep::{MINUTE, SECOND};

use super::{App, Inner, clock, layer, memory, post};
use crate::rate_limit::metered::Metered;
use crate::support::redis::shared;

#[tokio::test]
async fn a_repetition_gets_the_first_answer_byte_for_byte_until_its_time_is_over() {
    let clock = clock();
    let app = App::new(layer(memory(&clock)).ttl(10 * MINUTE).report_status());
    let first = app.post("k", "{}").await;
    assert_eq!((first.status.as_u16(), first.is_replay()), (201, false));
    assert_eq!(first.outcome(), IdempotencyOutcome::First);
    assert_eq!(first.headers["idempotency-status"], "first");
    clock.advance(10 * MINUTE - Duration::from_millis(1));
    let again = app.post("k", "{}").await;
    assert_eq!((again.status, &again.body), (first.status, &first.body));
    assert_eq!(again.headers["location"], first.headers["location"]);
    assert_eq!(again.headers["cache-control"], "no-store");
    assert_eq!(again.headers["idempotency-status"], "replayed");
    assert_eq!(
        again.headers["idempotency-expires"],
        "Tue, 01 Jan 2030 00:10:00 GMT"
    );
    assert_eq!(
        (again.is_replay(), again.outcome()),
        (true, IdempotencyOutcome::Replayed)
    );
    assert_eq!(app.runs(), 1);
    clock.advance(Duration::from_millis(1));
    assert_eq!(app.post("k", "{}").await.body, "run 2");
}

/// The handler's own fields, with those that must not come back.
fn fields() -> HeaderMap {
    let mut fields = HeaderMap::new();
    for (name, value) in [
        ("x-twice", &b"a"[..]),
        ("x-twice", b"b"),
        ("x-latin", b"caf\xe9"),
        ("x-secret", b"s3cret"),
        ("etag", b"\"v1\""),
        ("connection", b"x-own, close"),
        ("x-own", b"1"),
        ("set-cookie", b"id=1"),
        ("set-cookie", b"id=2"),
        ("date", b"Tue, 01 Jan 2030 00:00:00 GMT"),
        ("content-length", b"5"),
        ("age", b"3"),
        ("via", b"1.1 p"),
        ("keep-alive", b"timeout=5"),
        ("proxy-connection", b"close"),
        ("proxy-authenticate", b"Basic"),
        ("proxy-authorization", b"x"),
        ("te", b"trailers"),
        ("trailer", b"x-sum"),
        ("transfer-encoding", b"chunked"),
        ("upgrade", b"h2c"),
        ("www-authenticate", b"Basic"),
        ("authentication-info", b"x"),
        ("proxy-authentication-info", b"x"),
        ("ratelimit", b"\"user\";r=1"),
        ("ratelimit-policy", b"\"user\";q=1"),
        ("ratelimit-remaining", b"1"),
        ("x-ratelimit-limit", b"1"),
        ("x-ratelimit-remaining", b"1"),
        ("x-ratelimit-reset", b"1"),
        ("x-ratelimit-custom", b"1"),
        ("cache-status", b"x"),
        ("x-request-id", b"r"),
        ("x-correlation-id", b"r"),
        ("traceparent", b"00"),
        ("tracestate", b"a=b"),
        ("server-timing", b"db"),
        ("idempotency-mark", b"1"),
        ("idempotency-key", b"1"),
        ("cache-control", b"public, max-age=60"),
    ] {
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        let mut value = HeaderValue::from_bytes(value).unwrap();
        value.set_sensitive(name == "x-secret");
        fields.append(name, value);
    }
    fields
}

async fn comes_back(app: App) {
    let first = app.post("k", "{}").await;
    assert!(
        first.headers.contains_key("set-cookie"),
        "the first client gets all of it"
    );
    let again = app.post("k", "{}").await;
    let mut expected = HeaderMap::new();
    for name in ["x-twice", "x-latin", "x-secret", "etag"] {
        for value in fields().get_all(name) {
            expected.append(HeaderName::from_static(name), value.clone());
        }
    }
    expected.insert("idempotency-replayed", HeaderValue::from_static("true"));
    expected.insert("cache-control", HeaderValue::from_static("no-store"));
    assert_eq!(again.headers, expected);
    let is_sensitive = |name| again.headers[name].is_sensitive();
    assert!(is_sensitive("x-secret") && !is_sensitive("etag"));
    assert_eq!(&again.body[..], b"\xff\x00abc");
    assert_eq!(app.runs(), 1);
}

fn with_fields(layer: tower_keep::idempotency::IdempotencyLayer) -> App {
    App::with(layer, |_, _| async {
        let mut response = Response::new(Full::from(&b"\xff\x00abc"[..]));
        *response.headers_mut() = fields();
        response
    })
}

#[tokio::test]
async fn fields_of_one_exchange_are_never_kept_and_all_others_are_on_every_engine() {
    comes_back(with_fields(layer(memory(&clock())))).await;
    comes_back(with_fields(layer(shared().await.store(&clock()).await))).await;
    for place in super::transactional::Place::both().await {
        comes_back(with_fields(layer(place.db.clone()))).await;
    }
    for place in super::transactional::Place::both().await {
        comes_back(with_fields(place.layer())).await;
    }
}

#[tokio::test]
async fn an_empty_body_stays_empty() {
    let app = App::with(layer(shared().await.store(&clock()).await), |_, _| async {
        Response::builder()
            .status(204)
            .body(Full::default())
            .unwrap()
    });
    app.post("k", "{}").await;
    let again = app.post("k", "{}").await;
    assert_eq!(
        (again.status.as_u16(), again.is_replay(), again.body.len()),
        (204, true, 0)
    );
}

#[tokio::test]
async fn a_status_that_is_released_runs_again_and_one_with_retry_after_too() {
    for (status, later, runs) in [
        (500, false, 2),
        (409, false, 1),
        (409, true, 2),
        (429, false, 2),
        (302, true, 1),
    ] {
        let app = App::with(layer(memory(&clock())), move |_, _| async move {
            let answer = Response::builder().status(status);
            let answer = if later {
                answer.header("retry-after", "1")
            } else {
                answer
            };
            answer.body(Full::default()).unwrap()
        });
        app.post("k", "{}").await;
        app.post("k", "{}").await;
        assert_eq!(app.runs(), runs, "{status}");
    }
}

#[tokio::test]
async fn every_status_of_100_to_599_comes_back_runs_again_or_is_refused_as_the_table_says() {
    for (policy, kept) in [
        (
            StatusPolicy::default(),
            vec![
                200..=400,
                402..=402,
                404..=406,
                409..=420,
                422..=422,
                424..=424,
                426..=428,
                430..=499,
            ],
        ),
        (
            StatusPolicy::ietf(),
            vec![
                200..=400,
                402..=402,
                404..=406,
                409..=420,
                422..=422,
                424..=424,
                426..=428,
                430..=599,
            ],
        ),
        (
            StatusPolicy::stripe(),
            vec![
                200..=399,
                402..=402,
                404..=408,
                410..=424,
                426..=428,
                430..=599,
            ],
        ),
        (StatusPolicy::success_only(), vec![200..=299]),
    ] {
        let layer = layer(memory(&clock())).statuses(policy);
        let app = App::with(layer, |request, _| async move {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let status = std::str::from_utf8(&body).unwrap();
            let answer = Response::builder().status(status);
            answer.body(Full::from(b"\xfe".repeat(3))).unwrap()
        });
        for status in 100..600_u16 {
            let send = || {
                let request = Request::post("/pay").header("idempotency-key", status.to_string());
                app.send(request.body(Full::from(status.to_string())).unwrap())
            };
            let before = app.runs();
            let (first, again) = (send().await, send().await);
            assert_eq!((first.status.as_u16(), first.is_replay()), (status, false));
            let is_kept = kept.iter().any(|kept| kept.contains(&status));
            if status < 200 {
                again.check_refused(409, "IDEMPOTENCY_NOT_REPLAYABLE");
            } else {
                assert_eq!((again.status, again.is_replay()), (first.status, is_kept));
                assert_eq!(again.body, first.body, "{status}");
            }
            let expected = if is_kept || status < 200 { 1 } else { 2 };
            assert_eq!(app.runs() - before, expected, "{status}");
        }
    }
}

#[tokio::test]
async fn a_directive_of_the_handler_beats_the_policy() {
    let clock = clock();
    let statuses = StatusPolicy::default().on(409, Directive::StoreFor(10 * SECOND));
    let say = |directive: Option<Directive>, status: u16| {
        App::with(
            layer(memory(&clock)).statuses(statuses.clone()),
            move |_, _| async move {
                let mut response = Response::builder()
                    .status(status)
                    .body(Full::default())
                    .unwrap();
                if let Some(directive) = directive {
                    response.extensions_mut().insert(directive);
                }
                response
            },
        )
    };
    let app = say(Some(Directive::Release), 200);
    app.post("k", "{}").await;
    app.post("k", "{}").await;
    assert_eq!(app.runs(), 2);
    let app = say(Some(Directive::Store), 500);
    app.post("k", "{}").await;
    assert!(app.post("k", "{}").await.is_replay());
    let app = say(None, 409);
    app.post("k", "{}").await;
    clock.advance(10 * SECOND - Duration::from_millis(1));
    assert!(app.post("k", "{}").await.is_replay());
    clock.advance(Duration::from_millis(1));
    assert!(!app.post("k", "{}").await.is_replay());
    let app = say(Some(Directive::Unknown), 200);
    assert_eq!(app.post("k", "{}").await.status, 200);
    app.post("k", "{}")
        .await
        .check_refused(409, "IDEMPOTENCY_OUTCOME_UNKNOWN");
    assert_eq!(app.runs(), 1);
}

#[tokio::test]
async fn what_cannot_be_kept_goes_out_whole_and_a_retry_is_told_that_it_ran() {
    let app = App::with(
        layer(memory(&clock())).max_response_body(10),
        |_, _| async {
            let answer = Response::builder()
                .header("etag", "\"v1\"")
                .header("location", "/o/1");
            answer.body(Full::from("more than ten bytes")).unwrap()
        },
    );
    assert_eq!(app.post("k", "{}").await.body, "more than ten bytes");
    let again = app.post("k", "{}").await;
    again.check_refused(409, "IDEMPOTENCY_NOT_REPLAYABLE");
    assert_eq!(again.problem()["original_status"], 200);
    assert_eq!(
        (&again.headers["etag"], &again.headers["location"]),
        (
            &HeaderValue::from_static("\"v1\""),
            &HeaderValue::from_static("/o/1")
        )
    );
    assert_eq!(app.runs(), 1);
    for (name, value) in [
        ("content-type", "text/event-stream"),
        ("content-type", "application/grpc+proto"),
    ] {
        let app = App::with(layer(memory(&clock())), move |_, _| async move {
            Response::builder()
                .header(name, value)
                .body(Full::from("event"))
                .unwrap()
        });
        assert_eq!(app.post("k", "{}").await.body, "event");
        app.post("k", "{}")
            .await
            .check_refused(409, "IDEMPOTENCY_NOT_REPLAYABLE");
    }
}

type Frames = Vec<Result<&'static str, std::io::Error>>;

/// Sends one request to a handler whose body, of unknown size, is made of these frames.
async fn stream(
    layer: &tower_keep::idempotency::IdempotencyLayer,
    frames: fn() -> Frames,
) -> (StatusCode, Result<Bytes, ()>) {
    let inner = service_fn(move |_: Inner| {
        let frames = frames().into_iter();
        let frames = frames.map(|frame| frame.map(|text| Frame::data(Bytes::from(text))));
        let body = StreamBody::new(futures_util::stream::iter(frames));
        async move { Ok::<_, Infallible>(Response::new(body)) }
    });
    let response = layer
        .layer(inner)
        .oneshot(post("/pay", "k", "{}"))
        .await
        .unwrap();
    let status = response.status();
    (
        status,
        response
            .into_body()
            .collect()
            .await
            .map(|all| all.to_bytes())
            .map_err(drop),
    )
}

#[tokio::test]
async fn a_body_of_unknown_size_is_kept_if_it_ends_within_the_limit() {
    let layer = layer(memory(&clock())).max_response_body(10);
    let small = || vec![Ok("ab"), Ok(""), Ok("cd")];
    let first = stream(&layer, small).await;
    assert_eq!(first, (StatusCode::OK, Ok(Bytes::from("abcd"))));
    assert_eq!(stream(&layer, Vec::new).await, first, "the replay");
}

#[tokio::test]
async fn a_body_of_unknown_size_beyond_the_limit_goes_out_whole_and_is_not_kept() {
    let layer = layer(memory(&clock())).max_response_body(5);
    let large = || vec![Ok("abcd"), Ok("efgh"), Ok("ij")];
    assert_eq!(
        stream(&layer, large).await,
        (StatusCode::OK, Ok(Bytes::from("abcdefghij")))
    );
    assert_eq!(stream(&layer, large).await.0, StatusCode::CONFLICT);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_always_has_one_more_empty_frame_is_waited_for_no_longer_than_others() {
    const FRAMES: usize = 1_000_000;
    for uses_up_its_turn in [false, true] {
        let layer = layer(memory(&clock()));
        let taken = Arc::<AtomicUsize>::default();
        let own = Arc::clone(&taken);
        let service = layer.layer(service_fn(move |_: Inner| {
            let taken = Arc::clone(&own);
            let frames = futures_util::stream::poll_fn(move |cx| {
                if uses_up_its_turn {
                    for _ in 0..4 {
                        ready!(tokio::task::coop::poll_proceed(cx)).made_progress();
                    }
                }
                let more = taken.fetch_add(1, Ordering::SeqCst) < FRAMES;
                let frame = more.then(|| Ok::<_, Infallible>(Frame::data(Bytes::new())));
                Poll::Ready(frame)
            });
            async move { Ok::<_, Infallible>(Response::new(StreamBody::new(frames))) }
        }));
        let taken = || taken.load(Ordering::SeqCst);
        let sent = tokio::spawn(service.clone().oneshot(post("/pay", "k", "{}")));
        while taken() == 0 {
            tokio::task::yield_now().await;
        }
        tokio::time::advance(5 * SECOND - Duration::from_millis(10)).await;
        assert!(taken() < FRAMES && !sent.is_finished(), "others work");
        tokio::time::advance(SECOND).await;
        let first = sent.await.unwrap().unwrap();
        assert!(taken() < FRAMES, "it is not waited for to its end");
        assert_eq!(first.status(), StatusCode::OK);
        let again = service.oneshot(post("/pay", "k", "{}")).await.unwrap();
        assert_eq!(again.status(), StatusCode::CONFLICT);
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_is_500_and_never_runs_again() {
    let metered = Metered::start();
    let layer = layer(memory(&clock()));
    let broken = || vec![Ok("ab"), Err(std::io::Error::other("cut"))];
    let (status, body) = stream(&layer, broken).await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    let problem: serde_json::Value = serde_json::from_slice(&body.unwrap()).unwrap();
    assert_eq!(problem["code"], "IDEMPOTENCY_ANSWER_LOST");
    assert_eq!(stream(&layer, broken).await.0, StatusCode::CONFLICT);
    let lost = "keep_idempotency_tombstones_total{reason=body_failed}";
    assert_eq!(metered.counter(lost), 1);
}

#[tokio::test]
async fn sanitize_changes_what_is_kept_and_replay_only_names_the_fields() {
    let layer = layer(memory(&clock()))
        .replay_only(["location"])
        .sanitize(|answer| {
            answer.body = Bytes::from_static(b"again");
        });
    let app = App::new(layer);
    assert_eq!(app.post("k", "{}").await.body, "run 1");
    let again = app.post("k", "{}").await;
    assert_eq!((&again.body[..], again.headers.len()), (&b"again"[..], 3));
    assert_eq!(again.headers["location"], "/orders/1");
}

#[tokio::test]
async fn without_a_key_or_with_another_method_nothing_is_asked_or_kept() {
    let server = shared().await;
    let store = server.store(&clock()).await;
    let app = App::new(layer(store.clone()));
    for request in [
        Request::post("/pay").body(Full::default()).unwrap(),
        Request::get("/pay")
            .header("idempotency-key", "k")
            .body(Full::default())
            .unwrap(),
        Request::put("/pay")
            .header("idempotency-key", "k")
            .body(Full::default())
            .unwrap(),
    ] {
        let answer = app.send(request).await;
        assert!(answer.extensions.get::<IdempotencyOutcome>().is_none());
    }
    assert_eq!((app.runs(), store.commands()), (3, 0));
}

#[tokio::test]
async fn a_first_run_is_two_commands_a_replay_one_a_conflict_one() {
    let server = shared().await;
    let store = server.store(&clock()).await;
    let app = App::new(layer(store.clone()));
    app.post("warm", "{}").await;
    let mut before = store.commands();
    let mut spent = || {
        let now = store.commands();
        now - std::mem::replace(&mut before, now)
    };
    app.post("k", "{}").await;
    assert_eq!(spent(), 2, "first run");
    assert!(app.post("k", "{}").await.is_replay());
    assert_eq!(spent(), 1, "replay");
    app.post("k", "{\"other\":1}")
        .await
        .check_refused(422, "IDEMPOTENCY_KEY_REUSED");
    assert_eq!(spent(), 1, "conflict");
    let (let_go, gate) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (opened, entered) = (Arc::clone(&let_go), Arc::clone(&gate));
    let slow = App::with(layer(store.clone()), move |_, _| {
        let (opened, entered) = (Arc::clone(&opened), Arc::clone(&entered));
        async move {
            entered.notify_one();
            opened.notified().await;
            Response::new(Full::default())
        }
    });
    let first = tokio::spawn(slow.future(post("/pay", "slow", "{}")));
    gate.notified().await;
    assert_eq!(spent(), 1, "the claim");
    slow.post("slow", "{}")
        .await
        .check_refused(409, "IDEMPOTENCY_IN_PROGRESS");
    assert_eq!(spent(), 1, "a twin");
    let_go.notify_one();
    first.await.unwrap();
    assert_eq!(spent(), 1, "the answer");
}

#[tokio::test]
async fn a_body_that_ends_before_its_length_is_one_that_broke_off() {
    let app = App::with(layer(memory(&clock())), |_, _| async {
        let response = Response::builder().header("content-length", "10");
        response.body(Full::from("short")).unwrap()
    });
    let first = app.post("k", "{}").await;
    first.check_refused(500, "IDEMPOTENCY_ANSWER_LOST");
    let again = app.post("k", "{}").await;
    again.check_refused(409, "IDEMPOTENCY_NOT_REPLAYABLE");
    assert_eq!(app.runs(), 1);
}

#[tokio::test]
async fn trailers_come_back_under_the_names_that_announced_them() {
    for tee in [0, 1 << 20] {
        let layer = layer(memory(&clock())).tee_up_to(tee);
        let layer = layer.max_response_body(if tee > 0 { 1 } else { 1 << 20 });
        let service = layer.layer(service_fn(|_: Inner| async {
            let mut fields = HeaderMap::new();
            fields.insert("x-sum", HeaderValue::from_static("7"));
            let body = Full::from("abc").with_trailers(async { Some(Ok(fields)) });
            let response = Response::builder().header("trailer", "x-sum");
            Ok::<_, Infallible>(response.body(body).unwrap())
        }));
        let send = async || {
            let sent = service.clone().oneshot(post("/pay", "k", "{}"));
            let (parts, body) = sent.await.unwrap().into_parts();
            let body = body.collect().await.unwrap();
            (parts.headers, body.trailers().cloned())
        };
        send().await;
        layer.drain(10 * SECOND).await;
        let (fields, trailers) = send().await;
        assert_eq!(fields["idempotency-replayed"], "true");
        assert_eq!(
            (&fields["trailer"], &trailers.unwrap()["x-sum"]),
            (&"x-sum".parse().unwrap(), &"7".parse().unwrap())
        );
    }
}

#[tokio::test]
async fn the_same_layer_twice_around_one_handler_is_once() {
    for twins in [Twins::Reject, Twins::Attach(SECOND)] {
        twice(layer(memory(&clock())).twins(twins)).await;
        for place in super::transactional::Place::both().await {
            twice(place.layer().twins(twins)).await;
        }
    }
    let uploads = FingerprintRule::bytes().digest_uploads();
    twice(
        layer(memory(&clock()))
            .fingerprint(uploads)
            .max_request_body(1),
    )
    .await;
}

async fn twice(layer: IdempotencyLayer) {
    let runs = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&runs);
    let handler = service_fn(
        move |request: Request<tower_keep::core::Body<tower_keep::core::Body<Full<Bytes>>>>| {
            let counted = Arc::clone(&counted);
            async move {
                let body = request.into_body().collect().await.unwrap().to_bytes();
                assert_eq!(body, "hello");
                let run = counted.fetch_add(1, Ordering::SeqCst) + 1;
                Ok::<_, Infallible>(Response::new(Full::<Bytes>::from(format!("run {run}"))))
            }
        },
    );
    let service = layer.layer(layer.layer(handler));
    for is_replay in [false, true] {
        let mut request = post("/pay", "k", "hello");
        // Of "hello", as RFC 9530 spells it.
        let digest = "sha-256=:LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=:";
        request
            .headers_mut()
            .insert("content-digest", HeaderValue::from_static(digest));
        let response = service.clone().oneshot(request).await.unwrap();
        assert_eq!(
            response.headers().contains_key("idempotency-replayed"),
            is_replay
        );
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, "run 1");
    }
    assert_eq!(runs.load(Ordering::SeqCst), 1);
}

/// Says a size, and never comes to it.
struct Empty;

impl http_body::Body for Empty {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(Some(Ok(Frame::data(Bytes::new()))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(5)
    }
}

#[tokio::test]
async fn a_body_that_never_comes_to_its_size_ends_at_the_run_limit() {
    let layer = layer(memory(&clock())).run_limit(Duration::from_millis(100));
    let service = layer.layer(service_fn(|_: Inner| async {
        Ok::<_, Infallible>(Response::new(Empty))
    }));
    let response = service.oneshot(post("/pay", "k", "{}")).await.unwrap();
    assert_eq!(response.status(), 503);
}
