//! What clients do to a connection while the layers work: they pipeline, wait, break off, reset; the server says farewell.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::routing::{get, post};
use http::StatusCode;
use http_body_util::BodyExt as _;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tower_keep::backend::memory::MemoryStore;
use tower_keep::idempotency::{IdempotencyLayer, Scope};
use tower_keep::response_cache::ResponseCacheLayer;
use tower_keep::{MINUTE, SECOND};

use super::Gate;
use crate::support::http2::{Frames, connect, send};
use crate::support::serving::{raw, serve};

const KEY: [(&str, &str); 1] = [("idempotency-key", "k")];

async fn made(State(gate): State<Gate>) -> String {
    format!("run {}", gate.pass().await)
}

/// `/once` and `/page`, each by one run, and the layer of the first.
fn app(gate: &Gate) -> (Router, IdempotencyLayer) {
    let once = IdempotencyLayer::new(MemoryStore::new(), Scope::global());
    let cache = ResponseCacheLayer::new(MemoryStore::new()).ttl(MINUTE);
    let app = Router::new()
        .route("/once", post(made).layer(once.clone()))
        .route("/page", get(made).layer(cache))
        .with_state(gate.clone());
    (app, once)
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_turn_and_the_second_of_a_key_is_a_replay() {
    let gate = Gate::default();
    gate.open(2);
    let server = serve(app(&gate).0).await;
    let mut sent = String::new();
    for line in ["POST /once", "POST /once", "GET /page", "GET /page"] {
        sent +=
            &format!("{line} HTTP/1.1\r\nhost: h\r\nidempotency-key: k\r\ncontent-length: 0\r\n");
        sent += if sent.matches("HTTP").count() == 4 {
            "connection: close\r\n\r\n"
        } else {
            "\r\n"
        };
    }
    let answers = raw(server, &sent).await;
    let answers: Vec<_> = answers.split("HTTP/1.1 200 OK\r\n").skip(1).collect();
    let ends = answers
        .iter()
        .map(|answer| answer.split_once("\r\n\r\n").unwrap().1);
    assert_eq!(
        ends.collect::<Vec<_>>(),
        ["run 1", "run 1", "run 2", "run 2"]
    );
    assert!(!answers[0].contains("idempotency-replayed"), "{answers:?}");
    assert!(
        answers[1].contains("idempotency-replayed: true"),
        "{answers:?}"
    );
    assert!(
        answers[3].contains("; hit") || answers[3].contains(";hit"),
        "{answers:?}"
    );
}

#[tokio::test]
async fn whoever_waits_for_100_is_told_to_go_on_and_trailers_reach_the_handler() {
    async fn summed(request: Request) -> String {
        let whole = request.into_body().collect().await.unwrap();
        let sum = whole
            .trailers()
            .map(|fields| fields["x-sum"].to_str().unwrap().to_owned());
        format!("{:?} {}", sum, String::from_utf8_lossy(&whole.to_bytes()))
    }
    let once = IdempotencyLayer::new(MemoryStore::new(), Scope::global());
    let server = serve(Router::new().route("/", post(summed).layer(once))).await;
    for replayed in [false, true] {
        let mut stream = TcpStream::connect(server).await.unwrap();
        let head = "POST / HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\nidempotency-key: k\r\n\
            transfer-encoding: chunked\r\ntrailer: x-sum\r\nconnection: close\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut told = [0; 25];
        stream.read_exact(&mut told).await.unwrap();
        assert_eq!(&told, b"HTTP/1.1 100 Continue\r\n\r\n");
        let rest = b"3\r\nabc\r\n2\r\nde\r\n0\r\nx-sum: 5\r\n\r\n";
        stream.write_all(rest).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("Some(\"5\") abcde"), "{answer}");
        assert_eq!(
            answer.contains("idempotency-replayed: true"),
            replayed,
            "{answer}"
        );
    }
}

/// Serves HTTP/2 connections; one says farewell when it is told to, and tells that it has.
async fn serve_until(app: Router, farewell: Arc<Notify>, said: Arc<Notify>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = TowerToHyperService::new(app.clone());
            let (farewell, said) = (Arc::clone(&farewell), Arc::clone(&said));
            tokio::spawn(async move {
                let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                let connection = builder.serve_connection(TokioIo::new(stream), service);
                let mut connection = std::pin::pin!(connection);
                tokio::select! {
                    _ = connection.as_mut() => return,
                    () = farewell.notified() => connection.as_mut().graceful_shutdown(),
                }
                said.notify_one();
                let _ = connection.await;
            });
        }
    });
    address
}

#[tokio::test]
async fn streams_that_are_under_way_when_the_server_says_farewell_get_their_answers() {
    let (farewell, said) = <(Arc<Notify>, Arc<Notify>)>::default();
    let gate = Gate::default();
    let server = serve_until(app(&gate).0, Arc::clone(&farewell), Arc::clone(&said)).await;
    let connection = connect(server).await;
    let mut streams = JoinSet::new();
    for own in 0..101 {
        let connection = connection.clone();
        streams.spawn(async move {
            match own {
                0 => send(&connection, "POST", "/once", &KEY, "").await,
                _ => send(&connection, "GET", "/page", &[], "").await,
            }
        });
    }
    gate.entered().await;
    gate.entered().await;
    // All streams are there when the one that was sent last has been answered.
    let last = send(&connection, "GET", "/none", &[], "").await;
    assert_eq!(last.status(), StatusCode::NOT_FOUND);
    farewell.notify_one();
    said.notified().await;
    gate.open(2);
    let answers = tokio::time::timeout(10 * SECOND, streams.join_all());
    for answer in answers.await.expect("nobody waits for ever") {
        assert_eq!(answer.status(), StatusCode::OK);
    }
    assert_eq!(gate.runs(), 2);
    let mut over = connection;
    while over.ready().await.is_ok() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_stream_that_is_cancelled_in_the_handler_cuts_no_run() {
    let gate = Gate::default();
    let (app, once) = app(&gate);
    let server = serve(app).await;
    let length = [KEY[0], ("content-length", "4")];
    let mut client = Frames::post(server, "/once", &length, b"paid").await;
    client.end().await;
    gate.entered().await;
    client.cancel().await;
    client.rest().await;
    gate.open(1);
    assert_eq!(once.drain(10 * SECOND).await.abandoned, 0);
    let connection = connect(server).await;
    let again = send(&connection, "POST", "/once", &KEY, "paid").await;
    assert_eq!((&again.body()[..], gate.runs()), (&b"run 1"[..], 1));
}

#[tokio::test]
async fn a_client_that_breaks_off_its_upload_runs_nothing_and_its_retry_does() {
    let gate = Gate::default();
    let server = serve(app(&gate).0).await;
    for part in [
        "content-length: 10\r\n\r\nhalf",
        "transfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    ] {
        let mut stream = TcpStream::connect(server).await.unwrap();
        let head = format!("POST /once HTTP/1.1\r\nhost: h\r\nidempotency-key: k\r\n{part}");
        stream.write_all(head.as_bytes()).await.unwrap();
        // Only the sending half: the server reads to the end, and hangs up.
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8(answer).unwrap();
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 400"),
            "{answer}"
        );
    }
    assert_eq!(gate.runs(), 0);
    gate.open(1);
    let connection = connect(server).await;
    let paid = send(&connection, "POST", "/once", &KEY, "whole").await;
    assert_eq!(&paid.body()[..], b"run 1");
}
