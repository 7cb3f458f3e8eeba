//! Listens, speaks HTTP/1.1 and cleartext HTTP/2, and drains when it is told to stop.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::uri::Authority;
use http::{Method, Request, Response, StatusCode, Version, header};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tower::{Service, ServiceExt};
use tower_keep::core::PeerAddr;

use crate::proxy::{BoxError, Stream, boxed, forwards_left, is_plainly_coded, join_cookies, plain};
use crate::stack::{Route, Stack};

/// What is still under way when it is told to stop has this long.
const DRAIN: Duration = Duration::from_secs(5);
/// A connection whose first request is not there by then is closed. hyper waits for a first byte for ever, since it does
/// not know yet which language is spoken; it sees to the next head of HTTP/1.1 itself.
const FIRST_REQUEST: Duration = Duration::from_secs(10);
/// A client that is gone without a word answers no ping of HTTP/2: one after so long, and as long for the answer.
const PING: Duration = Duration::from_secs(10);

/// Serves until `stopped` ends.
pub async fn serve(listener: TcpListener, stack: Stack, stopped: impl Future<Output = ()>) {
    let Stack { route, once } = stack;
    let graceful = GracefulShutdown::new();
    let mut stopped = pin!(stopped);
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
    let told = Instant::now();
    let _ = tokio::time::timeout(DRAIN, graceful.shutdown()).await;
    // A run goes on without its client, and nobody's connection is open for it.
    if let Some(once) = once {
        once.drain(DRAIN.saturating_sub(told.elapsed())).await;
    }
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
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING);
    let asked = Arc::new(Notify::new());
    let asks = Arc::clone(&asked);
    let service = service_fn(move |request| {
        asks.notify_one();
        answer(route.clone(), peer, request)
    });
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    let connection = graceful.watch(connection.into_owned());
    tokio::spawn(async move {
        let mut connection = pin!(connection);
        // An error here is the client's broken connection; there is nobody to tell.
        tokio::select! {
            _ = connection.as_mut() => return,
            () = tokio::time::sleep(FIRST_REQUEST) => return,
            () = asked.notified() => {}
        }
        let _ = connection.await;
    });
}

async fn answer(
    mut route: Route,
    peer: SocketAddr,
    mut request: Request<Incoming>,
) -> Result<Response<Stream>, Infallible> {
    if let Some(own) = own_answer(&request) {
        return Ok(own);
    }
    if request.version() == Version::HTTP_2 {
        join_cookies(request.headers_mut());
    }
    request.extensions_mut().insert(PeerAddr(peer));
    let request = match request.version() {
        Version::HTTP_2 => request.map(|body| boxed(Whole(body))),
        _ => request.map(boxed),
    };
    let answered = match route.ready().await {
        Ok(route) => route.call(request).await,
        Err(failure) => Err(failure),
    };
    Ok(answered.unwrap_or_else(|failure| failure.response()))
}

/// What the gateway answers itself: what no proxy may forward, or what is meant for it.
fn own_answer(request: &Request<Incoming>) -> Option<Response<Stream>> {
    let (method, fields) = (request.method(), request.headers());
    if *method == Method::CONNECT {
        return Some(plain(StatusCode::NOT_IMPLEMENTED, "no tunnels here\n"));
    }
    if !names_its_host(request) {
        return Some(plain(StatusCode::BAD_REQUEST, "one valid Host, please\n"));
    }
    if !is_plainly_coded(fields) {
        return Some(plain(
            StatusCode::NOT_IMPLEMENTED,
            "unknown transfer coding\n",
        ));
    }
    // The last one that such a request may reach answers it (RFC 9110 §7.6.2).
    let ends_here = forwards_left(fields) == Some(0);
    (ends_here && (*method == Method::OPTIONS || *method == Method::TRACE)).then(|| {
        let status = if *method == Method::TRACE {
            StatusCode::NOT_IMPLEMENTED
        } else {
            StatusCode::OK
        };
        plain(status, "")
    })
}

/// HTTP/1.1 names exactly one valid host (RFC 9112 §3.2): two readers of two lines could take two different ones.
fn names_its_host(request: &Request<Incoming>) -> bool {
    let mut lines = request.headers().get_all(header::HOST).iter();
    match (lines.next(), lines.next()) {
        (None, _) => request.version() != Version::HTTP_11,
        (Some(host), None) => {
            host.is_empty()
                || Authority::try_from(host.as_bytes())
                    .is_ok_and(|host| !host.as_str().contains('@'))
        }
        (Some(_), Some(_)) => false,
    }
}

/// A body that came over HTTP/2, whole or broken off. hyper takes a stream that was reset without an error for one that
/// has ended, which is true of answers only: handed on so, half a request would be a whole one.
struct Whole(Incoming);

impl Body for Whole {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match ready!(Pin::new(&mut self.0).poll_frame(cx)) {
            None if !self.0.is_end_stream() => {
                Poll::Ready(Some(Err("the client took its request back".into())))
            }
            frame => Poll::Ready(frame.map(|frame| frame.map_err(Into::into))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}
