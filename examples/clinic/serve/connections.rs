//! Connections: each is served until it ends or the process is told to stop. Nobody holds one with half a head.
//!
//! Try it: `(printf 'GET / HTTP/1.1\r\n'; sleep 15) | nc localhost 8080`
//!
//! Proof: `half_a_head_is_not_waited_for_without_an_end`

use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Request};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tower::ServiceExt;
use tower_keep::SECOND;

/// A head that is not there by then is not waited for, nor the next one on a connection.
const LONGEST_HEAD: Duration = SECOND.saturating_mul(10);

/// Serves until `stopped` ends and nothing is under way any more.
pub async fn serve(listener: TcpListener, routes: Router, stopped: impl Future<Output = ()>) {
    let (graceful, mut stopped) = (GracefulShutdown::new(), pin!(stopped));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut stopped => break,
        };
        match accepted {
            Ok((stream, peer)) => begin(stream, peer, routes.clone(), &graceful),
            // Out of descriptors, or a client that left: the next moment may be better.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
    drop(listener);
    graceful.shutdown().await;
}

fn begin(stream: TcpStream, peer: SocketAddr, routes: Router, graceful: &GracefulShutdown) {
    let _ = stream.set_nodelay(true);
    // Of what may yet become HTTP/2 nobody would measure the time.
    let mut builder = auto::Builder::new(TokioExecutor::new()).http1_only();
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(LONGEST_HEAD);
    let service = routes.map_request(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        request.map(Body::new)
    });
    let service = TowerToHyperService::new(service);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    let connection = graceful.watch(connection.into_owned());
    tokio::spawn(async move {
        // An error here is the client's broken connection; there is nobody to tell.
        let _ = connection.await;
    });
}
