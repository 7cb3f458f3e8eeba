//! What no service sees in process: HTTP/2 and the odd corners of HTTP/1.1, over sockets and through the layers.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use axum::Router;
use axum::extract::{Request, State};
use axum::routing::{any, get, post};
use http::{StatusCode, header};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tower::{Service, ServiceBuilder};
use tower_keep::MINUTE;
use tower_keep::backend::memory::MemoryStore;
use tower_keep::backend::sql::SqlStore;
use tower_keep::core::Principal;
use tower_keep::idempotency::{IdempotencyLayer, Methods, Scope};
use tower_keep::rate_limit::{Partition, Quota, RateLimitLayer};
use tower_keep::reservation::ReservationLayer;
use tower_keep::response_cache::ResponseCacheLayer;
use tower_keep::session::{Session, SessionCookie, SessionLayer, SessionRejection};

use crate::support::http2::{Frames, connect, send};
use crate::support::serving::{raw, serve};

/// Bodies as the handler got them.
#[derive(Clone, Default)]
struct Bodies(Arc<Mutex<Vec<String>>>);

async fn take(State(bodies): State<Bodies>, body: String) -> String {
    let mut all = bodies.0.lock().unwrap();
    all.push(body);
    format!("{} taken", all.len())
}

#[tokio::test]
async fn a_session_is_found_in_a_cookie_that_http_2_cut_up() {
    async fn login(session: Session) -> Result<StatusCode, SessionRejection> {
        session.login(Principal::new("u1")).await?;
        Ok(StatusCode::NO_CONTENT)
    }
    let sessions = SessionLayer::new(MemoryStore::new()).cookie(SessionCookie::insecure("id"));
    let app = Router::new()
        .route("/login", post(login))
        .route("/me", get(async |user: Principal| user.id().to_owned()))
        .layer(sessions);
    let connection = connect(serve(app).await).await;
    let answer = send(&connection, "POST", "/login", &[], "").await;
    let set = answer.headers()[header::SET_COOKIE].to_str().unwrap();
    let own = set.split(';').next().unwrap();
    let crumbs = [("cookie", "a=1"), ("cookie", own), ("cookie", "z=2")];
    let answer = send(&connection, "GET", "/me", &crumbs, "").await;
    assert_eq!(
        (answer.status(), &answer.body()[..]),
        (StatusCode::OK, &b"u1"[..])
    );
}

#[tokio::test]
async fn a_hundred_streams_of_one_connection_with_one_key_run_once() {
    let bodies = Bodies::default();
    let once = IdempotencyLayer::new(MemoryStore::new(), Scope::global());
    let app = Router::new()
        .route("/", post(take).layer(once))
        .with_state(bodies.clone());
    let connection = connect(serve(app).await).await;
    let mut streams = JoinSet::new();
    for _ in 0..100 {
        let connection = connection.clone();
        let key = [("idempotency-key", "k")];
        streams.spawn(async move { send(&connection, "POST", "/", &key, "paid").await });
    }
    for answer in streams.join_all().await {
        let told = matches!(answer.status(), StatusCode::OK | StatusCode::CONFLICT);
        assert!(told, "{answer:?}");
    }
    assert_eq!(*bodies.0.lock().unwrap(), ["paid"]);
}

/// Tells when the answer to a request was made, or given up.
#[derive(Clone)]
struct Ended<S>(S, Arc<Notify>);

struct Ending<F>(Pin<Box<F>>, Arc<Notify>);

impl<F: Future> Future for Ending<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.0.as_mut().poll(cx)
    }
}

impl<F> Drop for Ending<F> {
    fn drop(&mut self) {
        self.1.notify_one();
    }
}

impl<S: Service<Request>> Service<Request> for Ended<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = Ending<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        Ending(Box::pin(self.0.call(request)), Arc::clone(&self.1))
    }
}

/// The server takes a stream that was reset without an error for one that has ended: whoever began an upload and took
/// it back would have its half carried out, and its key used up.
#[tokio::test]
async fn an_upload_that_its_client_took_back_claims_nothing() {
    for fields in [&[][..], &[("content-length", "10")]] {
        let (bodies, ended) = (Bodies::default(), Arc::<Notify>::default());
        let once = IdempotencyLayer::new(MemoryStore::new(), Scope::global());
        let watch = Arc::clone(&ended);
        let watched = tower::layer::layer_fn(move |inner| Ended(inner, Arc::clone(&watch)));
        let layers = ServiceBuilder::new().layer(watched).layer(once);
        let app = Router::new()
            .route("/", post(take).layer(layers))
            .with_state(bodies.clone());
        let server = serve(app).await;
        let key = [("idempotency-key", "k")];
        let mut client = Frames::post(server, "/", &[&key, fields].concat(), b"half").await;
        client.reset_without_error().await;
        ended.notified().await;
        client.rest().await;
        let connection = connect(server).await;
        let answer = send(&connection, "POST", "/", &key, "0123456789").await;
        assert_eq!(answer.status(), StatusCode::OK, "{answer:?}");
        assert_eq!(*bodies.0.lock().unwrap(), ["0123456789"], "{fields:?}");
    }
}

#[tokio::test]
async fn whoever_waits_for_100_is_refused_without_being_asked_for_the_body() {
    let store = MemoryStore::new();
    let none = RateLimitLayer::new(store.clone()).limit(Quota::new(1, MINUTE), Partition::global());
    let once = IdempotencyLayer::new(store, Scope::global()).require_key();
    let app = Router::new()
        .route("/limited", post(take).layer(none))
        .route("/once", post(take).layer(once.max_request_body(10)))
        .with_state(Bodies::default());
    let server = serve(app).await;
    let begin = |path: &str, fields: &str| {
        let head = "host: h\r\nexpect: 100-continue\r\ncontent-length: 11\r\n";
        format!("POST {path} HTTP/1.1\r\n{head}{fields}\r\n")
    };
    let spent = begin("/limited", "connection: close\r\n") + "hello world";
    let spent = raw(server, &spent).await;
    assert!(spent.contains("HTTP/1.1 200 OK\r\n"), "{spent}");
    for (path, fields, status) in [
        ("/limited", "", "429"),
        ("/once", "", "400"),
        ("/once", "idempotency-key: k\r\n", "413"),
    ] {
        // The body never came, so the connection cannot be used again: it ends with the answer.
        let answer = raw(server, &begin(path, fields)).await;
        let head = format!("HTTP/1.1 {status} ");
        assert!(answer.starts_with(&head), "{answer}");
        assert!(answer.contains("application/problem+json"), "{answer}");
    }
}

async fn switch(request: Request) -> http::Response<axum::body::Body> {
    let upgrade = hyper::upgrade::on(request);
    tokio::spawn(async move {
        let stream: Upgraded = upgrade.await.unwrap();
        let (mut from, mut to) = tokio::io::split(TokioIo::new(stream));
        tokio::io::copy(&mut from, &mut to).await.unwrap();
        to.shutdown().await.unwrap();
    });
    http::Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "upgrade")
        .header(header::UPGRADE, "echo")
        .body(axum::body::Body::empty())
        .unwrap()
}

#[tokio::test]
async fn a_protocol_is_switched_through_all_layers() {
    let (store, db) = (
        MemoryStore::new(),
        SqlStore::connect("sqlite::memory:").await.unwrap(),
    );
    let layers = ServiceBuilder::new()
        .layer(RateLimitLayer::new(store.clone()).limit(Quota::per_minute(9), Partition::global()))
        .layer(SessionLayer::new(store.clone()))
        .layer(ResponseCacheLayer::new(store.clone()).ttl(MINUTE))
        .layer(IdempotencyLayer::new(store, Scope::global()).methods(Methods::Unsafe))
        .layer(ReservationLayer::new(db));
    let server = serve(Router::new().route("/", any(switch).layer(layers))).await;
    for line in ["GET / HTTP/1.1", "POST / HTTP/1.1\r\nidempotency-key: k"] {
        let mut stream = TcpStream::connect(server).await.unwrap();
        let head = format!("{line}\r\nhost: h\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(b"hello").await.unwrap();
        // Half closed: what was sent comes back all the same.
        stream.shutdown().await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(
            answer.starts_with("HTTP/1.1 101 Switching Protocols\r\n"),
            "{answer}"
        );
        assert!(answer.ends_with("\r\n\r\nhello"), "{answer}");
    }
}
