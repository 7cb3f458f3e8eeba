//! An origin to put the cache in front of: answers by a closure, counts its calls, and can be held at a gate.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full};
use tokio::sync::Semaphore;
use tower::{Layer, Service, ServiceExt};
use tower_keep::backend::memory::MemoryStore;
use tower_keep::core::{Body, ManualClock, Timestamp};
use tower_keep::response_cache::{ResponseBody, ResponseCache, ResponseCacheLayer};

pub type TestBody = UnsyncBoxBody<Bytes, Broken>;
pub type Seen = Request<Body<Empty<Bytes>>>;
type Answering = dyn Fn(Seen, usize) -> Answer + Send + Sync;
pub type Answer = Pin<Box<dyn Future<Output = Result<Response<TestBody>, Broken>> + Send>>;

#[derive(Debug, PartialEq, Eq)]
pub struct Broken;

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("broken")
    }
}

impl std::error::Error for Broken {}

/// A service that is only callable when it was polled ready.
pub struct Origin {
    answer: Arc<Answering>,
    calls: Arc<AtomicUsize>,
    ready: bool,
}

impl Clone for Origin {
    fn clone(&self) -> Self {
        Self {
            answer: Arc::clone(&self.answer),
            calls: Arc::clone(&self.calls),
            ready: false,
        }
    }
}

impl Origin {
    pub fn new(answer: impl Fn(Seen, usize) -> Answer + Send + Sync + 'static) -> Self {
        Self {
            answer: Arc::new(answer),
            calls: Arc::default(),
            ready: false,
        }
    }

    /// Answers at once; the closure gets the request and the number of the call.
    pub fn of(answer: impl Fn(&Seen, usize) -> Response<String> + Send + Sync + 'static) -> Self {
        Self::new(move |seen, call| {
            let response = answer(&seen, call).map(|text| full(text.into()));
            Box::pin(async { Ok(response) })
        })
    }

    pub fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

impl Service<Seen> for Origin {
    type Response = Response<TestBody>;
    type Error = Broken;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        self.ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, seen: Seen) -> Answer {
        assert!(self.ready, "called without having been polled ready");
        self.ready = false;
        let call = self.calls.fetch_add(1, Ordering::SeqCst);
        (self.answer)(seen, call)
    }
}

pub fn full(data: Bytes) -> TestBody {
    Full::new(data)
        .map_err(|never: Infallible| match never {})
        .boxed_unsync()
}

/// A response with fields, whose body says which call it was.
pub fn said(fields: &[(&str, &str)], text: impl Into<String>) -> Response<String> {
    let mut response = Response::builder();
    for (name, value) in fields {
        response = response.header(*name, *value);
    }
    response.body(text.into()).unwrap()
}

/// A cache in front of an origin.
#[derive(Clone)]
pub struct App {
    pub service: ResponseCache<Origin>,
}

/// What a client got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Got {
    pub status: u16,
    pub fields: http::HeaderMap,
    pub body: String,
}

impl Got {
    pub fn field(&self, name: &str) -> &str {
        self.fields
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }

    pub fn cache_status(&self) -> &str {
        self.field("cache-status")
    }

    pub fn is_hit(&self) -> bool {
        self.cache_status().starts_with("tower-keep;hit")
    }
}

impl App {
    pub fn new(layer: &ResponseCacheLayer, origin: &Origin) -> Self {
        Self {
            service: layer.layer(origin.clone()),
        }
    }

    pub async fn try_call(
        &self,
        request: Request<Empty<Bytes>>,
    ) -> Result<Response<ResponseBody<TestBody>>, Broken> {
        self.service.clone().oneshot(request).await
    }

    pub async fn send(&self, request: Request<Empty<Bytes>>) -> Got {
        let response = self.try_call(request).await.unwrap();
        read(response).await
    }

    pub async fn get(&self, path: &str) -> Got {
        self.get_with(path, &[]).await
    }

    pub async fn get_with(&self, path: &str, fields: &[(&str, &str)]) -> Got {
        self.send(request("GET", path, fields)).await
    }

    pub async fn method(&self, method: &str, path: &str) -> Got {
        self.send(request(method, path, &[])).await
    }
}

pub fn request(method: &str, path: &str, fields: &[(&str, &str)]) -> Request<Empty<Bytes>> {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(Empty::new()).unwrap()
}

pub async fn read(response: Response<ResponseBody<TestBody>>) -> Got {
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Got {
        status: parts.status.as_u16(),
        fields: parts.headers,
        body: String::from_utf8(body.to_vec()).unwrap(),
    }
}

pub fn clock() -> ManualClock {
    ManualClock::at("2030-01-01T00:00:00Z".parse::<Timestamp>().unwrap())
}

pub fn memory(clock: &ManualClock) -> MemoryStore {
    MemoryStore::builder().clock(clock.clone()).build()
}

/// A layer over a fresh memory store.
pub fn layer(clock: &ManualClock) -> ResponseCacheLayer {
    ResponseCacheLayer::new(memory(clock))
}

pub const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// An origin whose calls wait until they are let through.
pub fn gated(
    answer: impl Fn(&Seen, usize) -> Response<String> + Send + Sync + 'static,
) -> (Origin, Arc<Semaphore>) {
    let gate = Arc::new(Semaphore::new(0));
    let held = Arc::clone(&gate);
    let answer = Arc::new(answer);
    let origin = Origin::new(move |seen, call| {
        let (held, answer) = (Arc::clone(&held), Arc::clone(&answer));
        Box::pin(async move {
            held.acquire().await.unwrap().forget();
            Ok(answer(&seen, call).map(|text| full(text.into())))
        })
    });
    (origin, gate)
}

/// Lets other tasks run until `done`, at most for a minute.
pub async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let waiting = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    assert!(
        tokio::time::timeout(secs(60), waiting).await.is_ok(),
        "never: {what}"
    );
}
