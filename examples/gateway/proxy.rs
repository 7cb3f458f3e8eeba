//! Forwards a request to the upstream and its answer back, changing as little as HTTP allows.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery, Uri};
use http::{Method, Request, Response, StatusCode, Version};
use http_body::Body as _;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tower::Service;

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// Any body on its way through.
pub type Stream = UnsyncBoxBody<Bytes, BoxError>;

/// More idle connections than this are closed.
const MOST_IDLE: usize = 256;
/// More fields than this are not read from the upstream; a block of them has hyper's bound besides.
const MOST_FIELDS: usize = 1_000;

/// Makes any body a [`Stream`].
pub fn boxed<B>(body: B) -> Stream
where
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    body.map_err(Into::into).boxed_unsync()
}

/// Why the upstream did not answer.
#[derive(Debug)]
pub struct Failure {
    cause: Cause,
    /// Some of the request may have reached it, and whatever it asks for may have been done.
    was_sent: bool,
}

#[derive(Debug)]
enum Cause {
    /// No connection, or one that broke before the head.
    Broken(BoxError),
    /// No head in time.
    TimedOut,
}

impl Failure {
    /// What the client sees.
    pub fn response(&self) -> Response<Stream> {
        match &self.cause {
            Cause::Broken(_) => plain(StatusCode::BAD_GATEWAY, "the upstream did not answer\n"),
            Cause::TimedOut => plain(
                StatusCode::GATEWAY_TIMEOUT,
                "the upstream did not answer in time\n",
            ),
        }
    }

    /// Says whether the upstream may have seen the request.
    pub fn was_sent(&self) -> bool {
        self.was_sent
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.cause {
            Cause::Broken(why) => write!(f, "the upstream did not answer: {why}"),
            Cause::TimedOut => f.write_str("the upstream did not answer in time"),
        }
    }
}

impl std::error::Error for Failure {}

/// A short answer of the gateway's own.
pub fn plain(status: StatusCode, text: &'static str) -> Response<Stream> {
    let mut response = Response::new(boxed(Full::new(Bytes::from_static(text.as_bytes()))));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// The service at the bottom of the stack. Clones share the idle connections.
#[derive(Clone)]
pub struct Proxy {
    upstream: Arc<Upstream>,
}

struct Upstream {
    /// `host:port`, as a connection is opened to.
    address: String,
    timeout: Duration,
    idle: Mutex<Vec<SendRequest<Stream>>>,
}

impl Proxy {
    /// Forwards to `authority`, port 80 unless it names one, and waits up to `timeout` for a head.
    pub fn new(authority: &Authority, timeout: Duration) -> Self {
        let port = authority.port_u16().unwrap_or(80);
        Self {
            upstream: Arc::new(Upstream {
                address: format!("{}:{port}", authority.host()),
                timeout,
                idle: Mutex::default(),
            }),
        }
    }
}

impl Service<Request<Stream>> for Proxy {
    type Response = Response<Stream>;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Stream>, Failure>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Stream>) -> Self::Future {
        let upstream = Arc::clone(&self.upstream);
        Box::pin(async move {
            prepare(&mut request);
            let sent = AtomicBool::new(false);
            let exchange = upstream.exchange(request, &sent);
            let answer = match tokio::time::timeout(upstream.timeout, exchange).await {
                Ok(answered) => answered.and_then(settled).map_err(Cause::Broken),
                Err(_) => Err(Cause::TimedOut),
            };
            let was_sent = sent.load(Ordering::Relaxed);
            answer.map_err(|cause| Failure { cause, was_sent })
        })
    }
}

impl Upstream {
    /// Notes in `sent` from when on the upstream may have seen some of the request.
    async fn exchange(
        self: &Arc<Self>,
        mut request: Request<Stream>,
        sent: &AtomicBool,
    ) -> Result<Response<Stream>, BoxError> {
        loop {
            let (mut sender, is_new) = match self.idle() {
                Some(sender) => (sender, false),
                None => (self.connect().await?, true),
            };
            sent.store(true, Ordering::Relaxed);
            let mut failed = match sender.try_send_request(request).await {
                Ok(response) => return Ok(self.answered(sender, response)),
                Err(failed) => failed,
            };
            match failed.take_message() {
                // Closed while it was idle: nothing was sent, so another connection may send it.
                Some(unsent) => request = unsent,
                None => return Err(failed.into_error().into()),
            }
            sent.store(false, Ordering::Relaxed);
            if is_new {
                return Err(failed.into_error().into());
            }
        }
    }

    fn idle(&self) -> Option<SendRequest<Stream>> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        std::iter::from_fn(|| idle.pop()).find(|sender| !sender.is_closed())
    }

    /// Keeps the connection for another request once this answer is through.
    fn answered(
        self: &Arc<Self>,
        mut sender: SendRequest<Stream>,
        response: Response<hyper::body::Incoming>,
    ) -> Response<Stream> {
        let upstream = Arc::clone(self);
        tokio::spawn(async move {
            if sender.ready().await.is_ok() {
                let mut idle = upstream.idle.lock().unwrap_or_else(PoisonError::into_inner);
                idle.retain(|sender| !sender.is_closed());
                if idle.len() < MOST_IDLE {
                    idle.push(sender);
                }
            }
        });
        response.map(boxed)
    }

    async fn connect(&self) -> Result<SendRequest<Stream>, BoxError> {
        let stream = TcpStream::connect(&self.address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::Builder::new()
            .preserve_header_case(true)
            .max_headers(MOST_FIELDS)
            .handshake(TokioIo::new(stream))
            .await?;
        // Its end is told to whoever waits for an answer on it.
        tokio::spawn(connection);
        Ok(sender)
    }
}

/// Puts an answer into the form that it has on the client's connection.
fn settled(mut response: Response<Stream>) -> Result<Response<Stream>, BoxError> {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Err("it switched protocols unasked".into());
    }
    if is_coded(response.headers()) {
        return Err("a coding lies under its chunks".into());
    }
    *response.version_mut() = Version::HTTP_11;
    end_hop(response.headers_mut());
    Ok(response)
}

/// The codings that may lie under the chunks (RFC 9112 §7): without their name the body is lost.
const CODINGS: [&str; 5] = ["gzip", "x-gzip", "compress", "x-compress", "deflate"];

/// Says whether a coding lies under the chunks, which is not taken off here. A name that is none is an origin's noise.
fn is_coded(fields: &HeaderMap) -> bool {
    let lines = fields.get_all(header::TRANSFER_ENCODING).iter();
    let mut members = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
    members.any(|member| {
        let is = |coding: &&str| member.trim_ascii().eq_ignore_ascii_case(coding.as_bytes());
        CODINGS.iter().any(is)
    })
}

/// Says whether a request's chunks are all there is: any other coding is refused (RFC 9112 §6.1).
pub fn is_plainly_coded(fields: &HeaderMap) -> bool {
    let mut lines = fields.get_all(header::TRANSFER_ENCODING).iter();
    lines.all(|line| line.as_bytes().eq_ignore_ascii_case(b"chunked"))
}

/// Takes off what ends at this hop. Beside a transfer coding a length means nothing, and must not be handed on
/// (RFC 9112 §6.3).
fn end_hop(fields: &mut HeaderMap) {
    if fields.contains_key(header::TRANSFER_ENCODING) {
        fields.remove(header::CONTENT_LENGTH);
    }
    drop_hop_by_hop(fields);
}

/// Puts a request into the form that it has on an HTTP/1.1 connection to the upstream.
fn prepare(request: &mut Request<Stream>) {
    let ended = request.body().is_end_stream();
    *request.version_mut() = Version::HTTP_11;
    // An absolute target names the host, whatever the field says (RFC 9112 §3.2.2).
    if let Some(host) = request.uri().authority() {
        let host = host.as_str().rsplit('@').next().unwrap_or_default();
        if let Ok(host) = HeaderValue::try_from(host) {
            request.headers_mut().insert(header::HOST, host);
        }
    }
    *request.uri_mut() = origin_form(request.method(), request.uri());
    let fields = request.headers_mut();
    // HTTP/1.0 need not name a host; HTTP/1.1 has at least an empty one (RFC 9112 §3.2).
    if !fields.contains_key(header::HOST) {
        fields.insert(header::HOST, HeaderValue::from_static(""));
    }
    if let Some(left) = forwards_left(fields) {
        fields.insert(
            header::MAX_FORWARDS,
            HeaderValue::from(left.saturating_sub(1)),
        );
    }
    let trailers = takes_trailers(fields);
    end_hop(fields);
    if trailers {
        fields.insert(header::TE, HeaderValue::from_static("trailers"));
        fields.insert(header::CONNECTION, HeaderValue::from_static("te"));
    }
    if !ended && !fields.contains_key(header::CONTENT_LENGTH) {
        fields.insert(
            header::TRANSFER_ENCODING,
            HeaderValue::from_static("chunked"),
        );
    }
}

fn origin_form(method: &Method, uri: &Uri) -> Uri {
    let root = if *method == Method::OPTIONS && uri.authority().is_some() && uri.path() == "/" {
        PathAndQuery::from_static("*")
    } else {
        PathAndQuery::from_static("/")
    };
    let target = match uri.path_and_query() {
        // `OPTIONS http://host` without a path asks about the server (RFC 9112 §3.2.4); with one it says it.
        Some(target) if !target.as_str().is_empty() => target.clone(),
        _ => root,
    };
    Uri::from(target)
}

/// How many more proxies a request may pass.
pub fn forwards_left(fields: &HeaderMap) -> Option<u32> {
    let said = fields.get(header::MAX_FORWARDS)?.to_str().ok()?;
    said.parse().ok()
}

/// Says whether `TE` takes trailers, the only coding that is handed on.
fn takes_trailers(fields: &HeaderMap) -> bool {
    fields.get_all(header::TE).iter().any(|line| {
        let mut members = line.as_bytes().split(|byte| *byte == b',');
        members.any(|member| member.trim_ascii().eq_ignore_ascii_case(b"trailers"))
    })
}

/// HTTP/2 may split one Cookie field into many (RFC 9113 §8.2.3); HTTP/1.1, and all layers here, have one.
pub fn join_cookies(fields: &mut HeaderMap) {
    let lines: Vec<&[u8]> = fields
        .get_all(header::COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    if lines.len() > 1
        && let Ok(joined) = HeaderValue::from_bytes(&lines.join(&b"; "[..]))
    {
        fields.insert(header::COOKIE, joined);
    }
}

/// Fields that end at each hop (RFC 9110 §7.6.1), beside those that `Connection` names.
const HOP_BY_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    HeaderName::from_static("proxy-authentication-info"),
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

fn drop_hop_by_hop(fields: &mut HeaderMap) {
    let mut named: Vec<HeaderName> = Vec::new();
    for line in fields.get_all(header::CONNECTION) {
        let members = line.as_bytes().split(|byte| *byte == b',');
        named.extend(members.filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok()));
    }
    for name in named.iter().chain(&HOP_BY_HOP) {
        // How long the message is concerns the whole way, whatever a sender puts into `Connection`.
        if !matches!(*name, header::CONTENT_LENGTH | header::HOST) {
            fields.remove(name);
        }
    }
}
