//! Applications on real sockets, and requests written by hand.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Serves an application as hyper speaks, HTTP/1.1 and HTTP/2.
pub async fn serve(app: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = TowerToHyperService::new(app.clone());
            tokio::spawn(async move {
                let builder = auto::Builder::new(TokioExecutor::new());
                let connection =
                    builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
                // An end that a client made is none of ours.
                let _ = connection.await;
            });
        }
    });
    address
}

/// Writes a request by hand and reads until the server closes.
pub async fn raw(server: SocketAddr, text: &str) -> String {
    let mut stream = TcpStream::connect(server).await.unwrap();
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// Writes these bytes and nothing more, and waits until the server hangs up: answered or not, an end.
pub async fn hung_up_on(server: SocketAddr, sent: &str) {
    let mut stream = TcpStream::connect(server).await.unwrap();
    stream.write_all(sent.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // The server waits ten seconds. One that is not done after six times that is never done.
    let end = tokio::time::timeout(Duration::from_secs(60), stream.read_to_end(&mut answer)).await;
    assert!(end.is_ok(), "{sent:?} holds a connection for ever");
}
