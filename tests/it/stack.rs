//! All layers stacked on one axum app, and what they cost together.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::body::Body;
use axum::extract::State;
use axum::routing::{get, post};
use axum::{Json, Router};
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tower::{ServiceBuilder, ServiceExt};
use tower_keep::backend::fallback::Fallback;
use tower_keep::backend::memory::MemoryStore;
use tower_keep::backend::redis::RedisStore;
use tower_keep::backend::sql::SqlStore;
use tower_keep::core::{ManualClock, PeerAddr, Principal, Timestamp};
use tower_keep::idempotency::{IdempotencyLayer, Scope};
use tower_keep::rate_limit::{Partition, Policy, Quota, RateLimitLayer};
use tower_keep::reservation::{ReservationGuard, ReservationLayer, ReservationRejection, Slot};
use tower_keep::response_cache::ResponseCacheLayer;
use tower_keep::session::{Session, SessionRejection};
use tower_keep::session::{SessionCookie, SessionLayer};
use tower_keep::store::Store;
use tower_keep::{HOUR, MINUTE, SECOND};

use crate::rate_limit::PATIENCE;
use crate::support::redis::shared;

/// How often the innermost code ran.
#[derive(Clone, Debug, Default)]
struct Runs(Arc<[AtomicU64; 2]>);

struct Stack {
    app: Router,
    runs: Runs,
}

async fn slots(State(runs): State<Runs>) -> &'static str {
    runs.0[0].fetch_add(1, Ordering::SeqCst);
    "10:00 11:00"
}

async fn login(session: Session) -> Result<StatusCode, SessionRejection> {
    session.login(Principal::new("u1")).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn book(
    State(runs): State<Runs>,
    user: Principal,
    mut guard: ReservationGuard,
) -> Result<(StatusCode, Json<String>), ReservationRejection> {
    runs.0[1].fetch_add(1, Ordering::SeqCst);
    let start = Timestamp::from_millis(4_000_000_000_000);
    let hold = guard
        .hold(Slot::new("e1", start..start + HOUR), user.id())
        .await?;
    Ok((StatusCode::CREATED, Json(hold.id().to_string())))
}

impl Stack {
    async fn on(store: Arc<dyn Store>) -> Self {
        let db = SqlStore::connect("sqlite::memory:").await.unwrap();
        let clients = RateLimitLayer::new(store.clone())
            .group("clients")
            .policy(Policy::new(
                "ip",
                Quota::per_minute(20),
                Partition::client_ip(),
            ))
            .limit(Quota::per_hour(1_000), Partition::global())
            .timeout(PATIENCE);
        let users = RateLimitLayer::new(store.clone())
            .group("users")
            .policy(Policy::new(
                "user",
                Quota::per_minute(3),
                Partition::principal(),
            ))
            .timeout(PATIENCE);
        let sessions = SessionLayer::new(store.clone()).cookie(SessionCookie::insecure("id"));
        let cached = ResponseCacheLayer::new(store.clone())
            .ttl(MINUTE)
            .local_bytes(0);
        let once = IdempotencyLayer::new(store, Scope::principal()).require_key();
        let runs = Runs::default();
        let app = Router::new()
            .route("/slots", get(slots).layer(cached))
            .route("/login", post(login))
            .route(
                "/book",
                post(book).layer(
                    ServiceBuilder::new()
                        .layer(once)
                        .layer(users)
                        .layer(ReservationLayer::new(db)),
                ),
            )
            .layer(ServiceBuilder::new().layer(clients).layer(sessions))
            .with_state(runs.clone());
        Self { app, runs }
    }

    async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
    ) -> (StatusCode, HeaderMap, bytes::Bytes) {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut request = request.body(axum::body::Body::empty()).unwrap();
        request
            .extensions_mut()
            .insert(PeerAddr(([192, 0, 2, 1], 4_000).into()));
        let (parts, body) = self
            .app
            .clone()
            .oneshot(request)
            .await
            .unwrap()
            .into_parts();
        (
            parts.status,
            parts.headers,
            body.collect().await.unwrap().to_bytes(),
        )
    }

    async fn cookie(&self) -> String {
        let (status, headers, _) = self.send("POST", "/login", &[]).await;
        assert_eq!(status, StatusCode::NO_CONTENT);
        headers[header::SET_COOKIE]
            .to_str()
            .unwrap()
            .split(';')
            .next()
            .unwrap()
            .to_owned()
    }

    fn runs(&self, of: usize) -> u64 {
        self.runs.0[of].load(Ordering::SeqCst)
    }
}

fn remaining(headers: &HeaderMap, policy: &str) -> Option<u64> {
    let lines = headers
        .get_all("ratelimit")
        .iter()
        .map(|line| line.to_str().unwrap());
    let mut items = lines.flat_map(|line| line.split(','));
    let item = items.find(|item| item.trim().starts_with(&format!("\"{policy}\"")))?;
    item.split(";r=").nth(1)?.split(';').next()?.parse().ok()
}

async fn a_booking_goes_through_all_five_and_its_replay_costs_no_quota_of_the_user(stack: Stack) {
    let cookie = stack.cookie().await;
    let headers = [("cookie", cookie.as_str()), ("idempotency-key", "k1")];
    let (status, fields, first) = stack.send("POST", "/book", &headers).await;
    assert_eq!(status, StatusCode::CREATED, "{first:?}");
    assert_eq!(
        (remaining(&fields, "ip"), remaining(&fields, "user")),
        (Some(18), Some(2))
    );
    let (status, fields, again) = stack.send("POST", "/book", &headers).await;
    assert_eq!((status, &again), (StatusCode::CREATED, &first));
    assert_eq!(
        (remaining(&fields, "ip"), remaining(&fields, "user")),
        (Some(17), None)
    );
    assert_eq!(stack.runs(1), 1);
    let (status, _, refused) = stack
        .send("POST", "/book", &[("idempotency-key", "k1")])
        .await;
    assert_eq!(status, StatusCode::FORBIDDEN, "{refused:?}");
    for key in ["k2", "k3"] {
        // The same wish under another key meets its own hold.
        let headers = [("cookie", cookie.as_str()), ("idempotency-key", key)];
        assert_eq!(
            stack.send("POST", "/book", &headers).await.0,
            StatusCode::CREATED
        );
    }
    let headers = [("cookie", cookie.as_str()), ("idempotency-key", "k4")];
    assert_eq!(
        stack.send("POST", "/book", &headers).await.0,
        StatusCode::TOO_MANY_REQUESTS
    );
    assert_eq!(
        stack.send("POST", "/book", &headers).await.0,
        StatusCode::TOO_MANY_REQUESTS
    );
    assert_eq!(stack.runs(1), 3);
}

async fn a_cached_page_is_made_once_and_carries_no_foreign_fields(stack: Stack) {
    let cookie = stack.cookie().await;
    for _ in 0..3 {
        let (status, fields, body) = stack
            .send("GET", "/slots", &[("cookie", cookie.as_str())])
            .await;
        assert_eq!((status, &body[..]), (StatusCode::OK, &b"10:00 11:00"[..]));
        assert!(!fields.contains_key(header::SET_COOKIE));
        assert_eq!(fields.get_all("ratelimit").iter().count(), 1);
    }
    assert_eq!(stack.runs(0), 1);
}

async fn memory() -> Stack {
    Stack::on(Arc::new(MemoryStore::new())).await
}

async fn redis() -> (Stack, RedisStore) {
    let store = shared()
        .await
        .store_with(&crate::support::redis::fresh_prefix())
        .await;
    (
        Stack::on(Arc::new(Fallback::new(store.clone(), MemoryStore::new()))).await,
        store,
    )
}

#[tokio::test]
async fn all_five_parts_in_memory() {
    a_booking_goes_through_all_five_and_its_replay_costs_no_quota_of_the_user(memory().await).await;
    a_cached_page_is_made_once_and_carries_no_foreign_fields(memory().await).await;
}

#[tokio::test]
async fn all_five_parts_on_redis() {
    a_booking_goes_through_all_five_and_its_replay_costs_no_quota_of_the_user(redis().await.0)
        .await;
    a_cached_page_is_made_once_and_carries_no_foreign_fields(redis().await.0).await;
}

/// The table of the README, counted: limit 1, session read 1, write and rotate 1, idempotency 2 / 1 / 1, cache 1 / 2.
#[tokio::test]
async fn every_path_keeps_its_budget_of_commands() {
    let (stack, store) = redis().await;
    let cookie = stack.cookie().await;
    let cookie = ("cookie", cookie.as_str());
    // The server learns each script once; after that every path is counted.
    stack
        .send("POST", "/book", &[cookie, ("idempotency-key", "warm")])
        .await;
    stack
        .send("POST", "/book", &[cookie, ("idempotency-key", "warm")])
        .await;
    stack.send("GET", "/slots?warm", &[]).await;
    stack.send("GET", "/slots?warm", &[]).await;
    // What follows an answer (the write of a cache miss) is waited for; more than expected never comes.
    let count = async |expected: u64, method: &str, path: &str, headers: &[(&str, &str)]| {
        let before = store.commands();
        stack.send(method, path, headers).await;
        let sent = async {
            while store.commands() < before + expected {
                tokio::task::yield_now().await;
            }
        };
        let _ = tokio::time::timeout(5 * SECOND, sent).await;
        assert_eq!(store.commands() - before, expected, "{method} {path}");
    };
    const LIMIT: u64 = 1;
    count(LIMIT + 1, "POST", "/login", &[]).await;
    // The session is not touched: no command for its cookie.
    count(LIMIT + 2, "GET", "/slots?a", &[cookie]).await;
    count(LIMIT + 1, "GET", "/slots?a", &[cookie]).await;
    // The first run: limit, session read, begin and complete, the user's limit.
    let key = ("idempotency-key", "k");
    count(LIMIT + 1 + 2 + LIMIT, "POST", "/book", &[cookie, key]).await;
    count(LIMIT + 1 + 1, "POST", "/book", &[cookie, key]).await;
}

#[tokio::test]
async fn a_clock_rules_every_layer_through_one_url() {
    let clock = ManualClock::at("2030-01-01T00:00:00Z".parse().unwrap());
    let store = tower_keep::store::builder("memory:")
        .clock(clock.clone())
        .open()
        .await
        .unwrap();
    let stack = Stack::on(store).await;
    let cookie = stack.cookie().await;
    stack.send("GET", "/slots", &[]).await;
    clock.advance(MINUTE);
    stack.send("GET", "/slots", &[]).await;
    assert_eq!(stack.runs(0), 2);
    clock.advance(15 * MINUTE);
    let headers = [("cookie", cookie.as_str()), ("idempotency-key", "k")];
    assert_eq!(
        stack.send("POST", "/book", &headers).await.0,
        StatusCode::FORBIDDEN
    );
}

/// Its trailer is kept by both layers that keep answers.
async fn summed() -> Response<Body> {
    let fields = HeaderMap::from_iter([("x-sum".parse().unwrap(), "7".parse().unwrap())]);
    let body = Full::from("abc").with_trailers(async { Some(Ok(fields)) });
    let said = Response::builder().header(header::TRAILER, "x-sum");
    let said = said.header(header::CACHE_CONTROL, "max-age=60");
    said.body(Body::new(body)).unwrap()
}

#[tokio::test]
async fn trailers_of_a_kept_answer_go_over_http_1() {
    let store = MemoryStore::new();
    let once = IdempotencyLayer::new(store.clone(), Scope::global());
    let app = Router::new()
        .route("/cached", get(summed).layer(ResponseCacheLayer::new(store)))
        .route("/once", post(summed).layer(once));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    let send = async |line: &str| {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = "host: h\r\nidempotency-key: k\r\nte: trailers\r\nconnection: te, close";
        let request = format!("{line} HTTP/1.1\r\n{head}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    for (line, kept) in [
        ("POST /once", "idempotency-replayed: true"),
        ("GET /cached", "age: 0"),
    ] {
        send(line).await;
        let again = send(line).await;
        assert!(again.contains(kept), "{again}");
        assert!(
            again.ends_with("3\r\nabc\r\n0\r\nx-sum: 7\r\n\r\n"),
            "{again}"
        );
    }
}
