//! Listens, speaks HTTP/1.1 and cleartext HTTP/2, and drains when it is told to stop.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpStream};
use tower::{Service, ServiceExt};
use tower_keep::core::PeerAddr;

use crate::proxy::{Stream, boxed, plain};
use crate::stack::Route;

/// What is still under way when it is told to stop has this long.
const DRAIN: Duration = Duration::from_secs(5);

/// Serves until `stopped` ends.
pub async fn serve(listener: TcpListener, route: Route, stopped: impl Future<Output = ()>) {
    let graceful = GracefulShutdown::new();
    let mut stopped = std::pin::pin!(stopped);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut stopped => break,
        };
        match accepted {
            Ok((stream, peer)) => serve_connection(stream, peer, route.clone(), &graceful),
            // Out of descriptors, or a client that left: the next moment may be better.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
    drop(listener);
    let _ = tokio::time::timeout(DRAIN, graceful.shutdown()).await;
}

fn serve_connection(
    stream: TcpStream,
    peer: SocketAddr,
    route: Route,
    graceful: &GracefulShutdown,
) {
    let _ = stream.set_nodelay(true);
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .preserve_header_case(true)
        .max_headers(1_000);
    builder.http2().timer(TokioTimer::new());
    let service = service_fn(move |request| answer(route.clone(), peer, request));
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    let connection = graceful.watch(connection.into_owned());
    tokio::spawn(async move {
        // An error here is the client's broken connection; there is nobody to tell.
        let _ = connection.await;
    });
}

async fn answer(
    mut route: Route,
    peer: SocketAddr,
    mut request: Request<Incoming>,
) -> Result<Response<Stream>, Infallible> {
    if request.method() == Method::CONNECT {
        return Ok(plain(StatusCode::NOT_IMPLEMENTED, "no tunnels here\n"));
    }
    request.extensions_mut().insert(PeerAddr(peer));
    let answered = match route.ready().await {
        Ok(route) => route.call(request.map(boxed)).await,
        Err(failure) => Err(failure),
    };
    Ok(answered.unwrap_or_else(|failure| failure.response()))
}
