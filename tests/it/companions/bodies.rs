//! tower-http's layers that change bodies and fields, outside and inside of ours.

use std::io::{Read as _, Write as _};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::routing::{MethodRouter, any, get, post};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, Method, StatusCode, header};
use tower::ServiceBuilder;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::compression::CompressionLayer;
use tower_http::cors::CorsLayer;
use tower_http::decompression::{DecompressionLayer, RequestDecompressionLayer};
use tower_http::limit::RequestBodyLimitLayer;
use tower_http::request_id::{MakeRequestUuid, PropagateRequestIdLayer, SetRequestIdLayer};
use tower_http::timeout::{RequestBodyTimeoutLayer, ResponseBodyTimeoutLayer, TimeoutLayer};
use tower_http::trace::TraceLayer;
use tower_keep::MINUTE;
use tower_keep::backend::memory::MemoryStore;
use tower_keep::idempotency::{IdempotencyLayer, Scope};
use tower_keep::rate_limit::{Partition, Quota, RateLimitLayer};
use tower_keep::response_cache::ResponseCacheLayer;
use tower_keep::session::{Session, SessionCookie, SessionLayer};

use super::Gate;
use crate::support::http::{self as client, Answer, request};

const TEXT: &str = "a text that is long enough to be worth the while of whoever compresses it";
const GZIP: (&str, &str) = ("accept-encoding", "gzip");
const KEY: (&str, &str) = ("idempotency-key", "k");

fn unpacked(answer: &Answer) -> String {
    if answer.header("content-encoding").is_empty() {
        return answer.text().to_owned();
    }
    assert_eq!(answer.header("content-encoding"), "gzip");
    let mut text = String::new();
    let mut reader = flate2::read::GzDecoder::new(&answer.body[..]);
    reader.read_to_string(&mut text).unwrap();
    text
}

async fn send(app: &Router, method: Method, fields: &[(&str, &str)], body: &[u8]) -> Answer {
    let body = Bytes::copy_from_slice(body);
    client::send(app, request(method, "/", fields, body)).await
}

/// A handler that counts itself, and answers at once.
async fn made(State(gate): State<Gate>) -> String {
    gate.open(1);
    format!("{TEXT} {}", gate.pass().await)
}

fn cache() -> ResponseCacheLayer {
    ResponseCacheLayer::new(MemoryStore::new()).ttl(MINUTE)
}

fn once() -> IdempotencyLayer {
    IdempotencyLayer::new(MemoryStore::new(), Scope::global())
}

#[tokio::test]
async fn compressed_outside_a_stored_answer_fits_each_client() {
    let gate = Gate::default();
    let layers = ServiceBuilder::new()
        .layer(CompressionLayer::new())
        .layer(cache());
    let app = Router::new()
        .route("/", get(made).layer(layers))
        .with_state(gate.clone());
    for (fields, coding) in [(&[GZIP][..], "gzip"), (&[], ""), (&[GZIP], "gzip")] {
        let answer = send(&app, Method::GET, fields, b"").await;
        assert_eq!(answer.header("content-encoding"), coding);
        assert_eq!(unpacked(&answer), format!("{TEXT} 1"));
        assert!(
            answer.header("vary").contains("accept-encoding"),
            "{answer:?}"
        );
    }
    assert_eq!(gate.runs(), 1);
}

#[tokio::test]
async fn compressed_inside_each_coding_is_stored_and_has_a_tag_of_its_own() {
    let gate = Gate::default();
    let layers = ServiceBuilder::new()
        .layer(cache())
        .layer(CompressionLayer::new());
    let app = Router::new()
        .route("/", get(made).layer(layers))
        .with_state(gate.clone());
    let mut tags = Vec::new();
    for (fields, text) in [(&[GZIP][..], 1), (&[], 2), (&[GZIP], 1), (&[], 2)] {
        let answer = send(&app, Method::GET, fields, b"").await;
        assert_eq!(unpacked(&answer), format!("{TEXT} {text}"));
        tags.push(answer.header("etag").to_owned());
    }
    // The first of a coding has no tag yet where its body streams; what is stored has one.
    assert_ne!(tags[2], tags[3]);
    assert!(!tags[2].is_empty() && !tags[3].is_empty());
    for (coding, own, other) in [(Some(GZIP), 2, 3), (None, 3, 2)] {
        for (tag, status) in [(&tags[own], 304), (&tags[other], 200)] {
            let fields = coding.into_iter().chain([("if-none-match", tag.as_str())]);
            let fields: Vec<_> = fields.collect();
            let answer = send(&app, Method::GET, &fields, b"").await;
            assert_eq!(answer.status, status, "{coding:?} {answer:?}");
        }
    }
    assert_eq!(gate.runs(), 2);
}

#[tokio::test]
async fn a_replay_fits_its_client_where_it_is_compressed_outside() {
    let gate = Gate::default();
    let outside = ServiceBuilder::new()
        .layer(CompressionLayer::new())
        .layer(once());
    let inside = ServiceBuilder::new()
        .layer(once())
        .layer(CompressionLayer::new());
    let app = Router::new()
        .route("/", post(made).layer(outside))
        .with_state(gate.clone());
    for fields in [&[KEY, GZIP][..], &[KEY], &[KEY, GZIP]] {
        let answer = send(&app, Method::POST, fields, b"").await;
        assert_eq!(unpacked(&answer), format!("{TEXT} 1"));
        let coding = if fields.len() == 2 { "gzip" } else { "" };
        assert_eq!(answer.header("content-encoding"), coding);
    }
    let app = Router::new()
        .route("/", post(made).layer(inside))
        .with_state(gate);
    let first = send(&app, Method::POST, &[KEY, GZIP], b"").await;
    let again = send(&app, Method::POST, &[KEY, GZIP], b"").await;
    assert_eq!(again.header("idempotency-replayed"), "true");
    assert_eq!(
        (unpacked(&first), &first.body),
        (format!("{TEXT} 2"), &again.body)
    );
}

#[tokio::test]
async fn a_request_that_is_unpacked_outside_is_the_same_however_it_was_packed() {
    let gate = Gate::default();
    let layers = ServiceBuilder::new()
        .layer(RequestDecompressionLayer::new())
        .layer(once());
    let echo = async |State(gate): State<Gate>, body: String| {
        gate.open(1);
        format!("{body} {}", gate.pass().await)
    };
    let app = Router::new()
        .route("/", post(echo).layer(layers))
        .with_state(gate);
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(TEXT.as_bytes()).unwrap();
    let packed = packed.finish().unwrap();
    let plain = send(&app, Method::POST, &[KEY], TEXT.as_bytes()).await;
    let said = [KEY, ("content-encoding", "gzip")];
    let again = send(&app, Method::POST, &said, &packed).await;
    assert_eq!(plain.text(), format!("{TEXT} 1"));
    assert_eq!((again.status, again.text()), (plain.status, plain.text()));
}

#[tokio::test]
async fn an_upload_over_a_limit_outside_is_told_so_wherever_it_is_found_out() {
    let app = Router::new().route("/", post(async || "taken")).layer(
        ServiceBuilder::new()
            .layer(RequestBodyLimitLayer::new(8))
            .layer(once()),
    );
    let said = send(&app, Method::POST, &[KEY], b"far too much").await;
    assert_eq!(said.status, StatusCode::PAYLOAD_TOO_LARGE);
    let frames = ["far ", "too ", "much"].map(|part| Ok::<_, std::io::Error>(Bytes::from(part)));
    let streamed = Body::from_stream(futures_util::stream::iter(frames));
    let mut streamed = http::Request::post("/").body(streamed).unwrap();
    let key = http::HeaderValue::from_static("k");
    streamed.headers_mut().insert(KEY.0, key);
    let found = client::send(&app, streamed).await;
    assert_eq!(found.status, StatusCode::PAYLOAD_TOO_LARGE, "{found:?}");
    let taken = send(&app, Method::POST, &[KEY], b"enough").await;
    assert_eq!(taken.text(), "taken", "the key is free");
}

async fn fails(State(gate): State<Gate>, session: Session) -> String {
    session.insert("cart", &1).unwrap();
    gate.open(1);
    let run = gate.pass().await;
    assert!(run > 1, "the first run fails");
    format!("run {run}")
}

#[tokio::test]
async fn a_panic_frees_what_it_held_whoever_catches_it() {
    for is_outside in [true, false] {
        let store = MemoryStore::new();
        let sessions = SessionLayer::new(store).cookie(SessionCookie::insecure("id"));
        let route = |keep: Router<Gate>| {
            let keep = if is_outside {
                keep.layer(sessions.clone()).layer(CatchPanicLayer::new())
            } else {
                keep.layer(sessions.clone())
            };
            keep.with_state(Gate::default())
        };
        let inside = |route: MethodRouter<Gate>| {
            if is_outside {
                route
            } else {
                route.layer(CatchPanicLayer::new())
            }
        };
        let pay = Router::new().route("/", inside(post(fails)).layer(once()));
        let page = Router::new().route("/", inside(get(fails)).layer(cache()));
        for (method, app) in [(Method::POST, route(pay)), (Method::GET, route(page))] {
            let failed = send(&app, method.clone(), &[KEY], b"").await;
            assert_eq!(failed.status, StatusCode::INTERNAL_SERVER_ERROR);
            assert_eq!(
                failed.header("set-cookie"),
                "",
                "what was buffered is dropped"
            );
            let again = send(&app, method, &[KEY], b"").await;
            assert_eq!(again.text(), "run 2", "{is_outside}");
        }
    }
}

#[tokio::test]
async fn each_answer_that_was_kept_goes_out_under_the_id_of_its_own_request() {
    let name = HeaderName::from_static("x-request-id");
    let ids = ServiceBuilder::new()
        .layer(SetRequestIdLayer::new(name.clone(), MakeRequestUuid))
        .layer(PropagateRequestIdLayer::new(name.clone()));
    let app = Router::new()
        .route(
            "/",
            get(made).layer(cache()).merge(post(made).layer(once())),
        )
        .layer(ids)
        .with_state(Gate::default());
    for method in [Method::GET, Method::POST] {
        let (first, again) = (
            send(&app, method.clone(), &[KEY], b"").await,
            send(&app, method, &[KEY], b"").await,
        );
        assert_eq!(first.body, again.body);
        let (first, again) = (first.header("x-request-id"), again.header("x-request-id"));
        assert!(!first.is_empty() && !again.is_empty() && first != again);
    }
}

#[tokio::test]
async fn a_preflight_costs_nothing_and_each_origin_gets_its_own_answer() {
    let limit =
        RateLimitLayer::new(MemoryStore::new()).limit(Quota::per_minute(4), Partition::global());
    let cors = || CorsLayer::very_permissive().expose_headers([header::RETRY_AFTER]);
    let outside = ServiceBuilder::new()
        .layer(cors())
        .layer(limit.clone())
        .layer(cache());
    let inside = ServiceBuilder::new()
        .layer(limit)
        .layer(cache())
        .layer(cors());
    for (own, app) in [any(made).layer(outside), any(made).layer(inside)]
        .into_iter()
        .enumerate()
    {
        let app = Router::new().route("/", app).with_state(Gate::default());
        let preflight = [
            ("origin", "https://a.test"),
            ("access-control-request-method", "GET"),
        ];
        for _ in 0..9 {
            let answer = send(&app, Method::OPTIONS, &preflight, b"").await;
            assert_eq!(answer.status, StatusCode::OK, "{own}");
            assert_eq!(answer.header("ratelimit"), "");
        }
        for origin in ["https://a.test", "https://b.test"] {
            let answer = send(&app, Method::GET, &[("origin", origin)], b"").await;
            assert_eq!(answer.status, StatusCode::OK, "{own}");
            assert_eq!(
                answer.header("access-control-allow-origin"),
                origin,
                "{own}"
            );
        }
    }
}

/// The README's order with a companion of every kind outside of all, between, and inside of all.
#[tokio::test]
async fn the_whole_stack_takes_every_kind_of_body() {
    macro_rules! companions {
        () => {
            ServiceBuilder::new()
                .layer(TraceLayer::new_for_http())
                .layer(CatchPanicLayer::new())
                .layer(ResponseBodyTimeoutLayer::new(MINUTE))
                .layer(RequestBodyTimeoutLayer::new(MINUTE))
                .layer(RequestBodyLimitLayer::new(1_000))
                .layer(RequestDecompressionLayer::new())
                .layer(CompressionLayer::new())
                .layer(DecompressionLayer::new())
                .layer(TimeoutLayer::with_status_code(
                    StatusCode::GATEWAY_TIMEOUT,
                    MINUTE,
                ))
                .layer(CorsLayer::permissive())
        };
    }
    let store = MemoryStore::new();
    let limit = RateLimitLayer::new(store.clone()).limit(Quota::per_minute(9), Partition::global());
    let sessions = SessionLayer::new(store.clone());
    let layers = companions!()
        .layer(limit)
        .layer(companions!())
        .layer(sessions)
        .layer(companions!())
        .layer(cache())
        .layer(companions!())
        .layer(once())
        .layer(companions!());
    let echo = async |fields: HeaderMap, body: String| {
        assert!(!fields.contains_key("content-encoding"));
        format!("{TEXT} {body}")
    };
    let app = Router::new().route("/", any(echo).layer(layers));
    let page = send(&app, Method::GET, &[], b"").await;
    assert_eq!(page.text(), format!("{TEXT} "));
    for _ in 0..2 {
        let paid = send(&app, Method::POST, &[KEY], b"7").await;
        assert_eq!(paid.text(), format!("{TEXT} 7"), "{paid:?}");
    }
}
