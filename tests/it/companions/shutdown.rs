//! A server that is told to stop: what is under way ends well, and nothing hangs.

use axum::Router;
use axum::extract::State;
use axum::routing::{get, post};
use http::StatusCode;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tower_keep::backend::memory::MemoryStore;
use tower_keep::idempotency::{IdempotencyLayer, Scope};
use tower_keep::response_cache::ResponseCacheLayer;
use tower_keep::{MINUTE, SECOND};

use super::Gate;
use crate::support::http2::{connect, send};

async fn made(State(gate): State<Gate>) -> (StatusCode, String) {
    (StatusCode::CREATED, format!("run {}", gate.pass().await))
}

#[tokio::test]
async fn a_server_that_stops_lets_runs_and_fetches_end_and_drains_those_whose_client_left() {
    let gate = Gate::default();
    let once = IdempotencyLayer::new(MemoryStore::new(), Scope::global());
    let cache = ResponseCacheLayer::new(MemoryStore::new()).ttl_for(StatusCode::CREATED, MINUTE);
    let app = Router::new()
        .route("/once", post(made).layer(once.clone()))
        .route("/page", get(made).layer(cache))
        .with_state(gate.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let server = axum::serve(listener, app.clone()).with_graceful_shutdown(async move {
        let _ = stopped.await;
    });
    let server = tokio::spawn(async move { server.await });

    // One whose client leaves, one that stays, and two that share a fetch.
    let mut leaves = TcpStream::connect(address).await.unwrap();
    let gone =
        "POST /once HTTP/1.1\r\nhost: h\r\nidempotency-key: gone\r\ncontent-length: 0\r\n\r\n";
    leaves.write_all(gone.as_bytes()).await.unwrap();
    gate.entered().await;
    drop(leaves);
    let stays = connect(address).await;
    let (once_key, pages) = ([("idempotency-key", "stays")], stays.clone());
    let paid = tokio::spawn(async move { send(&stays, "POST", "/once", &once_key, "").await });
    gate.entered().await;
    let (own, other, probe) = (pages.clone(), pages.clone(), pages);
    let first = tokio::spawn(async move { send(&own, "GET", "/page", &[], "").await });
    gate.entered().await;
    let second = tokio::spawn(async move { send(&other, "GET", "/page", &[], "").await });
    tokio::task::yield_now().await;
    // Behind it on the same connection.
    let nothing = send(&probe, "GET", "/none", &[], "").await;
    assert_eq!(nothing.status(), StatusCode::NOT_FOUND);

    stop.send(()).unwrap();
    gate.open(3);
    for answer in [paid, first, second] {
        let answer = tokio::time::timeout(10 * SECOND, answer).await.unwrap();
        assert_eq!(answer.unwrap().status(), StatusCode::CREATED);
    }
    let ended = tokio::time::timeout(10 * SECOND, server).await;
    ended.expect("the server ends").unwrap().unwrap();
    assert_eq!(once.drain(10 * SECOND).await.abandoned, 0);
    assert_eq!(gate.runs(), 3);
    let key = [("idempotency-key", "gone")];
    let again = crate::support::http::post(&app, "/once", &key, "").await;
    assert_eq!((again.status, gate.runs()), (StatusCode::CREATED, 3));
}
