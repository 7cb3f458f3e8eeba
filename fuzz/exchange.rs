//! One exchange as text, sent through a cache three times: what must hold whatever the text is.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, EXPIRES, LAST_MODIFIED};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Full};
use tower::{Layer, ServiceExt, service_fn};
use tower_keep::backend::memory::MemoryStore;
use tower_keep::core::{Body, ManualClock};
use tower_keep::response_cache::{Head, ResponseCacheLayer};

/// A request and the answer to it: a line, fields, an empty line; then a status, fields, an empty line, the body.
struct Exchange {
    method: Method,
    uri: Uri,
    asked: HeaderMap,
    status: StatusCode,
    answered: HeaderMap,
    body: Bytes,
}

fn parse(text: &[u8]) -> Option<Exchange> {
    let (line, rest) = line(text)?;
    let space = line.iter().position(|byte| *byte == b' ')?;
    let (method, target) = (&line[..space], &line[space + 1..]);
    let (asked, rest) = fields(rest)?;
    let (status, rest) = self::line(rest)?;
    let (answered, body) = fields(rest)?;
    Some(Exchange {
        method: Method::from_bytes(method).ok()?,
        uri: Uri::try_from(target).ok()?,
        asked,
        status: StatusCode::from_bytes(status).ok()?,
        answered,
        body: Bytes::copy_from_slice(body),
    })
}

fn line(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = text.iter().position(|byte| *byte == b'\n')?;
    Some((&text[..end], &text[end + 1..]))
}

fn fields(mut rest: &[u8]) -> Option<(HeaderMap, &[u8])> {
    let mut fields = HeaderMap::new();
    loop {
        let (text, after) = line(rest)?;
        rest = after;
        if text.is_empty() {
            return Some((fields, rest));
        }
        let colon = text.iter().position(|byte| *byte == b':')?;
        let name = HeaderName::from_bytes(&text[..colon]).ok()?;
        let value = HeaderValue::from_bytes(text[colon + 1..].trim_ascii()).ok()?;
        fields.try_append(name, value).ok()?;
    }
}

/// Sends the exchange at once, again, and after 61 seconds. Text that is none is left alone.
pub fn run(text: &[u8]) {
    let Some(exchange) = parse(text) else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build();
    runtime.expect("a runtime").block_on(through(exchange));
}

async fn through(exchange: Exchange) {
    let (exchange, calls) = (Arc::new(exchange), Arc::new(AtomicUsize::new(0)));
    let clock = ManualClock::at("2030-01-01T00:00:00Z".parse().expect("a time"));
    let store = MemoryStore::builder().clock(clock.clone()).build();
    let (own, count) = (Arc::clone(&exchange), Arc::clone(&calls));
    let origin = service_fn(move |_request: Request<Body<Empty<Bytes>>>| {
        count.fetch_add(1, Ordering::SeqCst);
        let mut response = Response::new(Full::new(own.body.clone()));
        *response.status_mut() = own.status;
        *response.headers_mut() = own.answered.clone();
        async { Ok::<_, Infallible>(response) }
    });
    let service = ResponseCacheLayer::new(store).layer(origin);
    for (round, wait) in [0, 0, 61].into_iter().enumerate() {
        clock.advance(Duration::from_secs(wait));
        let mut request = Request::new(Empty::<Bytes>::new());
        *request.method_mut() = exchange.method.clone();
        *request.uri_mut() = exchange.uri.clone();
        *request.headers_mut() = exchange.asked.clone();
        let before = calls.load(Ordering::SeqCst);
        let response = service.clone().oneshot(request).await.expect("no error");
        let (parts, body) = response.into_parts();
        let body = body.collect().await.map(|body| body.to_bytes());
        let ran = calls.load(Ordering::SeqCst) - before;
        check(&exchange, round, ran, parts.status, body.ok().as_deref());
    }
}

fn check(exchange: &Exchange, round: usize, ran: usize, status: StatusCode, body: Option<&[u8]>) {
    let is_get = exchange.method == Method::GET;
    let asked_if = [
        "if-none-match",
        "if-modified-since",
        "range",
        "cache-control",
    ];
    let plain = !asked_if
        .iter()
        .any(|name| exchange.asked.contains_key(*name));
    if !is_get && exchange.method != Method::HEAD {
        assert_eq!(ran, 1, "all else runs");
    }
    let says = [CACHE_CONTROL, EXPIRES, LAST_MODIFIED];
    let silent = !says.iter().any(|name| exchange.answered.contains_key(name))
        && !exchange.answered.contains_key("cdn-cache-control");
    if silent && plain {
        assert_eq!(
            ran, 1,
            "nothing is stored that nobody called storable, round {round}"
        );
    }
    if ran == 0 && is_get && plain {
        assert_eq!(status, exchange.status, "round {round}");
        assert_eq!(body, Some(&exchange.body[..]), "round {round}");
    }
}

/// Reads a head as a store may return it; what can be read is written and read again the same.
pub fn decode(bytes: &[u8]) {
    if let Some(head) = Head::decode(bytes) {
        let written = head.encode();
        let again = Head::decode(&written).expect("what was written can be read");
        assert_eq!(again.encode(), written);
    }
}
