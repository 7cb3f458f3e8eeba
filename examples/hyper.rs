//! The layers on a bare hyper service, without axum: a counter that cannot be raised twice by one retry.
//!
//! Run it: `cargo run --example hyper`, then
//! `curl -i -X POST localhost:8081/orders -H 'idempotency-key: k1'` twice.

#![allow(clippy::print_stdout, reason = "a program tells where it listens")]

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tower::{ServiceBuilder, ServiceExt};
use tower_keep::core::{Body, PeerAddr};
use tower_keep::idempotency::{IdempotencyLayer, Preset, Scope};
use tower_keep::rate_limit::{Partition, Quota, RateLimitLayer};
use tower_keep::{MINUTE, SECOND};

static ORDERS: AtomicU64 = AtomicU64::new(0);

/// The application: an ordinary async function from a request to a response.
async fn order<B>(request: Request<Body<B>>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (status, text) = match request.method().as_str() {
        "POST" => (
            StatusCode::CREATED,
            format!("order {}\n", ORDERS.fetch_add(1, Ordering::Relaxed) + 1),
        ),
        _ => (
            StatusCode::OK,
            format!("{} orders\n", ORDERS.load(Ordering::Relaxed)),
        ),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    Ok(response)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let store =
        tower_keep::store::open(&std::env::var("KEEP_STORE").unwrap_or("memory:".into())).await?;
    let limit =
        RateLimitLayer::new(store.clone()).limit(Quota::new(100, MINUTE), Partition::client_ip());
    let once = IdempotencyLayer::new(store, Scope::principal().or_client_ip()).preset(Preset::Api);
    let service = ServiceBuilder::new()
        .layer(limit)
        .layer(once)
        .service_fn(order::<Incoming>);

    let address: SocketAddr = std::env::args()
        .nth(1)
        .unwrap_or("127.0.0.1:8081".into())
        .parse()?;
    let listener = TcpListener::bind(address).await?;
    println!("listening on http://{}", listener.local_addr()?);
    loop {
        let Ok((stream, peer)) = listener.accept().await else {
            // Out of descriptors, or a client that left: the next moment may be better.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let service = service
            .clone()
            .map_request(move |mut request: Request<Incoming>| {
                request.extensions_mut().insert(PeerAddr(peer));
                request
            });
        tokio::spawn(async move {
            // An error here is the client's broken connection, or a head that did not come in time; there is nobody to tell.
            let _ = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(10 * SECOND)
                .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
                .await;
        });
    }
}
