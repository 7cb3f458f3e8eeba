//! The idempotency layer, driven in process.

mod answers;
mod clinic;
mod costs;
mod defaults;
mod draining;
mod faults;
mod hostile;
mod leaving;
mod outages;
mod partitions;
mod processes;
mod refusals;
pub mod secrets;
mod stopped;
mod tables;
mod tees;
mod together;
mod told;
mod transactional;
mod twins;
mod uploads;

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use serde_json::Value;
use tower::{Layer, Service};
use tower_keep::backend::memory::MemoryStore;
use tower_keep::core::{IdempotencyOutcome, ManualClock, Timestamp};
use tower_keep::idempotency::{IdempotencyLayer, IdempotencyRejection, IdempotencyStore, Scope};

pub fn clock() -> ManualClock {
    ManualClock::at("2030-01-01T00:00:00Z".parse::<Timestamp>().unwrap())
}

pub fn memory(clock: &ManualClock) -> MemoryStore {
    MemoryStore::builder().clock(clock.clone()).build()
}

pub fn layer(store: impl IdempotencyStore) -> IdempotencyLayer {
    IdempotencyLayer::new(store, Scope::global())
}

pub type Inner = Request<tower_keep::core::Body<Full<Bytes>>>;
type Handle = dyn Fn(Inner, usize) -> Handling + Send + Sync;
type Handling = Pin<Box<dyn Future<Output = Response<Full<Bytes>>> + Send>>;

/// A request on its way.
pub type Sent = Pin<Box<dyn Future<Output = Answer> + Send>>;

/// A handler that counts its runs, behind a layer.
#[derive(Clone)]
pub struct App {
    pub layer: IdempotencyLayer,
    runs: Arc<AtomicUsize>,
    handle: Arc<Handle>,
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub extensions: http::Extensions,
    pub body: Bytes,
}

impl App {
    /// Answers 201 with the number of the run.
    pub fn new(layer: IdempotencyLayer) -> Self {
        Self::with(layer, |_, run| async move {
            let answer = Response::builder()
                .status(201)
                .header("location", format!("/orders/{run}"));
            answer.body(Full::from(format!("run {run}"))).unwrap()
        })
    }

    pub fn with<F>(
        layer: IdempotencyLayer,
        handle: impl Fn(Inner, usize) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Response<Full<Bytes>>> + Send + 'static,
    {
        let handle = Arc::new(move |request, run| Box::pin(handle(request, run)) as Handling);
        Self {
            layer,
            runs: Arc::default(),
            handle,
        }
    }

    /// How often the handler was called.
    pub fn runs(&self) -> usize {
        self.runs.load(Ordering::SeqCst)
    }

    pub fn future(
        &self,
        request: Request<Full<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Answer> + Send + 'static>> {
        let handler = Handler {
            runs: Arc::clone(&self.runs),
            handle: Arc::clone(&self.handle),
        };
        let mut service = self.layer.layer(handler);
        let sent = service.call(request);
        Box::pin(read(sent))
    }

    pub async fn send(&self, request: Request<Full<Bytes>>) -> Answer {
        self.future(request).await
    }

    pub async fn post(&self, key: &str, body: &'static str) -> Answer {
        self.send(post("/pay", key, body)).await
    }
}

/// The service behind the layer.
#[derive(Clone)]
struct Handler {
    runs: Arc<AtomicUsize>,
    handle: Arc<Handle>,
}

impl Service<Inner> for Handler {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Inner) -> Self::Future {
        let run = self.runs.fetch_add(1, Ordering::SeqCst) + 1;
        let answer = (self.handle)(request, run);
        Box::pin(async move { Ok(answer.await) })
    }
}

async fn read<F>(sent: F) -> Answer
where
    F: Future<Output = Result<Response<tower_keep::core::Body<Full<Bytes>>>, Infallible>>,
{
    let (parts, body) = sent.await.unwrap().into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Answer {
        status: parts.status,
        headers: parts.headers,
        extensions: parts.extensions,
        body,
    }
}

impl Answer {
    #[track_caller]
    pub fn outcome(&self) -> IdempotencyOutcome {
        *self
            .extensions
            .get::<IdempotencyOutcome>()
            .expect("an outcome")
    }

    pub fn is_replay(&self) -> bool {
        self.headers
            .get("idempotency-replayed")
            .is_some_and(|value| value == "true")
    }

    #[track_caller]
    pub fn problem(&self) -> Value {
        serde_json::from_slice(&self.body).expect("a problem document")
    }

    #[track_caller]
    pub fn check_refused(&self, status: u16, code: &str) {
        let problem = self.problem();
        assert_eq!(
            (self.status.as_u16(), &problem["code"]),
            (status, &Value::from(code))
        );
        assert_eq!(problem["status"], status);
        assert!(
            self.extensions
                .get::<IdempotencyRejection>()
                .is_some_and(|why| why.code() == code)
        );
    }
}

pub fn post(path: &str, key: &str, body: &'static str) -> Request<Full<Bytes>> {
    let request = Request::post(path).header("idempotency-key", key);
    request
        .header("content-type", "application/json")
        .body(Full::from(body))
        .unwrap()
}
