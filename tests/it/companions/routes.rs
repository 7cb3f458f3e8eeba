//! axum's routers: mounted, merged and layered, what a layer takes for the path, and methods beside GET and POST.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use axum::routing::{get, post};
use http::{Method, StatusCode};
use tower::ServiceBuilder;
use tower_keep::MINUTE;
use tower_keep::backend::memory::MemoryStore;
use tower_keep::idempotency::{IdempotencyLayer, Methods, Scope};
use tower_keep::rate_limit::{Partition, Quota, RateLimitLayer};
use tower_keep::response_cache::{ResponseCacheLayer, Target};
use tower_keep::session::{Session, SessionCookie, SessionLayer};

use crate::support::http::{self as client, post as send_post};
use crate::support::serving::{raw, serve};

#[derive(Clone, Default)]
struct Runs(Arc<AtomicUsize>);

impl Runs {
    fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

async fn run(State(runs): State<Runs>) -> String {
    format!("run {}", runs.0.fetch_add(1, Ordering::SeqCst) + 1)
}

#[tokio::test]
async fn one_key_at_two_mounts_of_a_router_is_another_payload() {
    let once = IdempotencyLayer::new(MemoryStore::new(), Scope::global());
    let runs = Runs::default();
    let pay = Router::new().route("/pay", post(run).layer(once));
    let app = Router::new()
        .nest("/experts/{id}", pay.clone())
        .nest("/guests", pay)
        .with_state(runs.clone());
    let key = [("idempotency-key", "k")];
    let first = send_post(&app, "/experts/1/pay", &key, "").await;
    let again = send_post(&app, "/experts/1/pay", &key, "").await;
    assert_eq!((first.text(), again.text()), ("run 1", "run 1"));
    for other in ["/experts/2/pay", "/guests/pay"] {
        let answer = send_post(&app, other, &key, "").await;
        assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{other}");
    }
    assert_eq!(runs.count(), 1);
}

#[tokio::test]
async fn an_endpoint_of_its_own_has_keys_of_its_own_at_each_mount() {
    let once = IdempotencyLayer::new(MemoryStore::new(), Scope::global()).per_endpoint();
    let pay = Router::new().route("/pay", post(run).layer(once));
    let app = Router::new()
        .nest("/experts/{id}", pay)
        .with_state(Runs::default());
    let key = [("idempotency-key", "k")];
    for (path, text) in [
        ("/experts/1/pay", "run 1"),
        ("/experts/2/pay", "run 2"),
        ("/experts/1/pay", "run 1"),
    ] {
        assert_eq!(send_post(&app, path, &key, "").await.text(), text, "{path}");
    }
}

#[tokio::test]
async fn a_cache_knows_each_mount_of_a_router_by_its_whole_path() {
    let cache = ResponseCacheLayer::new(MemoryStore::new()).ttl(MINUTE);
    let items = Router::new().route("/items", get(run).post(async || "changed"));
    let app = Router::new()
        .nest("/a", items.clone().layer(cache.clone()))
        .nest("/b/{of}", items.layer(cache.clone()))
        .with_state(Runs::default());
    let all = async || {
        let mut all = Vec::new();
        for path in ["/a/items", "/b/1/items", "/b/2/items"] {
            all.push(client::get(&app, path).await.text().to_owned());
        }
        all
    };
    assert_eq!(all().await, ["run 1", "run 2", "run 3"]);
    assert_eq!(all().await, ["run 1", "run 2", "run 3"]);
    send_post(&app, "/b/1/items", &[], "").await;
    assert_eq!(all().await, ["run 1", "run 4", "run 3"]);
    cache.handle().invalidate([Target::url("/b/2/items")]).await;
    assert_eq!(all().await, ["run 1", "run 4", "run 5"]);
    cache.handle().invalidate([Target::prefix("/b")]).await;
    assert_eq!(all().await, ["run 1", "run 6", "run 7"]);
}

#[tokio::test]
async fn a_limit_by_path_counts_each_mount_and_one_by_route_each_route() {
    let paths = |partition| {
        let limit = RateLimitLayer::new(MemoryStore::new()).limit(Quota::per_minute(1), partition);
        let users = Router::new()
            .route(
                "/users/{id}",
                get(async |Path(all): Path<Vec<(String, String)>>| format!("{}", all.len())),
            )
            .layer(limit);
        Router::new().nest("/v/{version}", users)
    };
    let asked = [
        "/v/1/users/1",
        "/v/2/users/1",
        "/v/2/users/2",
        "/v/2/users/1",
    ];
    let (by_path, by_route) = (paths(Partition::path()), paths(Partition::matched_path()));
    let mut told = Vec::new();
    for path in asked {
        let (path, route) = (
            client::get(&by_path, path).await,
            client::get(&by_route, path).await,
        );
        told.push((path.status.as_u16(), route.status.as_u16()));
    }
    assert_eq!(told, [(200, 200), (200, 429), (200, 429), (429, 429)]);
}

async fn touched(session: Session) -> &'static str {
    let _ = session.insert("seen", &true);
    "seen"
}

async fn around(request: Request, next: Next) -> Response {
    next.run(request).await
}

/// One route of each kind under all four layers, on a real connection.
async fn under_all(runs: &Runs) -> std::net::SocketAddr {
    let store = MemoryStore::new();
    let limit =
        RateLimitLayer::new(store.clone()).limit(Quota::per_minute(99), Partition::global());
    let sessions = SessionLayer::new(store.clone()).cookie(SessionCookie::insecure("id"));
    let once = IdempotencyLayer::new(store.clone(), Scope::global()).methods(Methods::Unsafe);
    let cache = ResponseCacheLayer::new(store).ttl(MINUTE);
    let pages = Router::new().route("/page", get(run));
    let orders = Router::new()
        .route("/order", post(run))
        .route("/touched", get(touched));
    let app = pages
        .merge(orders)
        .fallback(async |method: Method| (StatusCode::NOT_FOUND, format!("no {method} here")))
        // Each by itself, from the inside out: what `from_fn` makes takes axum's own bodies only.
        .layer(from_fn(around))
        .layer(once)
        .layer(from_fn(around))
        .layer(cache)
        .layer(
            ServiceBuilder::new()
                .layer(limit)
                .layer(from_fn(around))
                .layer(sessions)
                .layer(from_fn(around)),
        )
        .with_state(runs.clone());
    serve(app).await
}

/// Sends a line and the fields after it, and reads the answer.
async fn ask(server: std::net::SocketAddr, line: &str) -> String {
    raw(
        server,
        &format!("{line}\r\nhost: h\r\nconnection: close\r\n\r\n"),
    )
    .await
}

#[tokio::test]
async fn methods_and_paths_that_no_route_has_are_answered_as_without_the_layers() {
    let runs = Runs::default();
    let server = under_all(&runs).await;
    let page = ask(server, "GET /page HTTP/1.1").await;
    assert!(page.ends_with("\r\n\r\nrun 1"), "{page}");
    // Stored, and none of these changes it.
    for (line, status, field, body) in [
        ("HEAD /page HTTP/1.1", "200 OK", "content-length: 5", ""),
        (
            "OPTIONS /page HTTP/1.1",
            "405 Method Not Allowed",
            "allow: GET,HEAD",
            "",
        ),
        (
            "POST /page HTTP/1.1",
            "405 Method Not Allowed",
            "allow: GET,HEAD",
            "",
        ),
        (
            "POST /page HTTP/1.1\r\nidempotency-key: k",
            "405 Method Not Allowed",
            "allow: GET,HEAD",
            "",
        ),
        (
            "POST /page HTTP/1.1\r\nidempotency-key: k",
            "405 Method Not Allowed",
            "allow: GET,HEAD",
            "",
        ),
        (
            "GET /none HTTP/1.1",
            "404 Not Found",
            "content-length: 11",
            "no GET here",
        ),
        (
            "HEAD /none HTTP/1.1",
            "404 Not Found",
            "content-length: 12",
            "",
        ),
        (
            "DELETE /none HTTP/1.1\r\nidempotency-key: d",
            "404 Not Found",
            "",
            "no DELETE here",
        ),
        (
            "GET /order HTTP/1.1",
            "405 Method Not Allowed",
            "allow: POST",
            "",
        ),
        ("HEAD /touched HTTP/1.1", "200 OK", "set-cookie: id=", ""),
        ("GET /page HTTP/1.1", "200 OK", "age: ", "run 1"),
    ] {
        let answer = ask(server, line).await;
        let (head, told) = answer.split_once("\r\n\r\n").unwrap();
        assert!(
            head.starts_with(&format!("HTTP/1.1 {status}\r\n")),
            "{line}: {answer}"
        );
        assert!(head.contains(field), "{line}: {answer}");
        assert_eq!(told, body, "{line}: {answer}");
    }
    assert_eq!(runs.count(), 1);
}
