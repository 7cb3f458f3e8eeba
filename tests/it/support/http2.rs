//! HTTP/2 without TLS: a client as hyper has it, and one that writes its frames by hand.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Opens a connection over which any number of requests may go at once.
pub async fn connect(server: SocketAddr) -> SendRequest<Full<Bytes>> {
    let stream = TcpStream::connect(server).await.unwrap();
    let io = TokioIo::new(stream);
    let (sender, connection) = handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    sender
}

/// Sends a request to `host.test` and reads the answer whole.
pub async fn send(
    connection: &SendRequest<Full<Bytes>>,
    method: &str,
    path: &str,
    fields: &[(&str, &str)],
    body: &'static str,
) -> Response<Bytes> {
    let mut request = Request::builder().method(method);
    request = request.uri(format!("http://host.test{path}"));
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::from(body)).unwrap();
    let answered = connection.clone().send_request(request).await.unwrap();
    let (parts, body) = answered.into_parts();
    Response::from_parts(parts, body.collect().await.unwrap().to_bytes())
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const CANCEL: u32 = 8;

/// Frames by hand, on one stream (RFC 9113 §4.1).
pub struct Frames(TcpStream);

impl Frames {
    /// Connects, and begins a POST of `path` with these fields and the first bytes of a body.
    pub async fn post(
        server: SocketAddr,
        path: &str,
        fields: &[(&str, &str)],
        body: &[u8],
    ) -> Self {
        let mut stream = TcpStream::connect(server).await.unwrap();
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        stream.write_all(preface).await.unwrap();
        let mut own = Self(stream);
        own.frame(SETTINGS, 0, 0, &[]).await;
        let own_fields = [
            (":method", "POST"),
            (":scheme", "http"),
            (":authority", "host.test"),
            (":path", path),
        ];
        let mut block = Vec::new();
        for (name, value) in own_fields.iter().chain(fields) {
            // Each as a literal that no table remembers (RFC 7541 §6.2.2).
            block.push(0);
            for text in [name, value] {
                block.push(u8::try_from(text.len()).unwrap());
                block.extend_from_slice(text.as_bytes());
            }
        }
        own.frame(HEADERS, END_HEADERS, 1, &block).await;
        own.frame(DATA, 0, 1, body).await;
        own
    }

    /// Takes the stream back and says that nothing was wrong.
    pub async fn reset_without_error(&mut self) {
        self.frame(RST_STREAM, 0, 1, &0_u32.to_be_bytes()).await;
    }

    /// Ends the body.
    pub async fn end(&mut self) {
        self.frame(DATA, END_STREAM, 1, &[]).await;
    }

    /// Takes the stream back: its answer is not wanted any more.
    pub async fn cancel(&mut self) {
        self.frame(RST_STREAM, 0, 1, &CANCEL.to_be_bytes()).await;
    }

    /// Reads what comes until the server closes.
    pub async fn rest(mut self) {
        self.0.shutdown().await.unwrap();
        let _ = self.0.read_to_end(&mut Vec::new()).await;
    }

    /// Reads what comes, and answers nothing, until the server closes.
    pub async fn until_hung_up(mut self) {
        let _ = self.0.read_to_end(&mut Vec::new()).await;
    }

    async fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut frame = length[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend_from_slice(payload);
        self.0.write_all(&frame).await.unwrap();
    }
}
