//! Places of a limit of concurrent calls: nobody keeps one that is not needed, and nobody is called without one.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::error_handling::HandleErrorLayer;
use axum::routing::{any, get};
use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tower::limit::{ConcurrencyLimit, GlobalConcurrencyLimitLayer};
use tower::load_shed::{LoadShedLayer, error::Overloaded};
use tower::{BoxError, Layer, Service, ServiceBuilder, ServiceExt as _};
use tower_keep::MINUTE;
use tower_keep::backend::memory::MemoryStore;
use tower_keep::idempotency::{IdempotencyLayer, Scope, Twins};
use tower_keep::rate_limit::{Partition, Quota, RateLimitLayer};
use tower_keep::response_cache::ResponseCacheLayer;
use tower_keep::session::{RequireLayer, SessionLayer};

use super::{Gate, runs};
use crate::support::http2::{connect, send};
use crate::support::serving::serve;

/// A handler that wants to be asked whether it is ready before each call.
#[derive(Default)]
struct Strict {
    is_ready: bool,
    calls: Arc<AtomicUsize>,
}

impl Clone for Strict {
    fn clone(&self) -> Self {
        Self {
            is_ready: false,
            calls: Arc::clone(&self.calls),
        }
    }
}

impl<B> Service<Request<B>> for Strict {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Response<Full<Bytes>>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.is_ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<B>) -> Self::Future {
        assert!(std::mem::take(&mut self.is_ready), "called unasked");
        self.calls.fetch_add(1, Ordering::SeqCst);
        ready(Ok(Response::new(Full::from("made"))))
    }
}

type Limited = ConcurrencyLimit<Strict>;
type Asked = Request<Full<Bytes>>;

/// Sends `first`, then `again` a thousand times to one and the same service: it is answered without the handler,
/// and the only place is free after each.
async fn keeps_no_place<L, O>(what: &str, layer: L, first: Asked, again: Asked, status: u16)
where
    L: Layer<Limited>,
    L::Service: Service<Asked, Response = Response<O>, Error = Infallible>,
    O: http_body::Body<Data = Bytes, Error: std::fmt::Debug>,
{
    let (strict, places) = (Strict::default(), Arc::new(Semaphore::new(1)));
    let limit = GlobalConcurrencyLimitLayer::with_semaphore(Arc::clone(&places));
    let mut service = layer.layer(limit.layer(strict.clone()));
    let answer = service.ready().await.unwrap().call(first).await.unwrap();
    answer.into_body().collect().await.unwrap();
    let calls = strict.calls.load(Ordering::SeqCst);
    for _ in 0..1_000 {
        let is_ready = service.ready().now_or_never();
        let service = is_ready.expect("a place is free").unwrap();
        let answer = service.call(again.clone()).await.unwrap();
        assert_eq!(answer.status(), status, "{what}");
        drop(answer);
        assert_eq!(places.available_permits(), 1, "{what} keeps a place");
    }
    assert_eq!(strict.calls.load(Ordering::SeqCst), calls, "{what}");
}

fn asked(method: &str, fields: &[(&str, &str)]) -> Asked {
    let mut request = Request::builder().method(method).uri("/a");
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(Full::default()).unwrap()
}

#[tokio::test]
async fn who_is_answered_without_the_handler_leaves_its_place_to_others() {
    let store = MemoryStore::new();
    let get = asked("GET", &[]);
    let one = || Quota::new(1, MINUTE);
    let limit = RateLimitLayer::new(store.clone()).limit(one(), Partition::global());
    keeps_no_place("a 429", limit, get.clone(), get.clone(), 429).await;

    let cache = ResponseCacheLayer::new(store.clone()).ttl(MINUTE);
    keeps_no_place("a hit", cache.clone(), get.clone(), get.clone(), 200).await;
    let not_modified = asked("GET", &[("if-none-match", "*")]);
    keeps_no_place("a 304", cache.clone(), get.clone(), not_modified, 304).await;
    let stored = asked("GET", &[("cache-control", "only-if-cached")]);
    let nothing = ResponseCacheLayer::new(MemoryStore::new());
    keeps_no_place("a 504", nothing, get.clone(), stored, 504).await;

    let once = IdempotencyLayer::new(store.clone(), Scope::global()).require_key();
    let keyed = asked("POST", &[("idempotency-key", "k")]);
    keeps_no_place("a replay", once.clone(), keyed.clone(), keyed.clone(), 200).await;
    let keyless = asked("POST", &[]);
    keeps_no_place("a 400", once.clone(), keyed.clone(), keyless, 400).await;
    let other = asked("PUT", &[("idempotency-key", "k")]);
    let unsafe_too = once.methods(tower_keep::idempotency::Methods::Unsafe);
    keeps_no_place("a 422", unsafe_too, keyed, other, 422).await;

    let nobody = ServiceBuilder::new()
        .layer(SessionLayer::new(store))
        .layer(RequireLayer::login());
    keeps_no_place("a 401", nobody, get.clone(), get, 401).await;
}

#[tokio::test]
async fn a_twin_that_waits_leaves_its_place_to_others_and_asks_for_one_again_when_it_runs() {
    for first in [StatusCode::OK, StatusCode::SERVICE_UNAVAILABLE] {
        let (gate, places) = (Gate::default(), Arc::new(Semaphore::new(2)));
        let handler = runs::<Infallible>(&gate, first);
        let once = IdempotencyLayer::new(MemoryStore::new(), Scope::global());
        let service = ServiceBuilder::new()
            .layer(once.twins(Twins::Attach(MINUTE)))
            .layer(GlobalConcurrencyLimitLayer::with_semaphore(places.clone()))
            .service(handler);
        let keyed = asked("POST", &[("idempotency-key", "k")]);
        let first_run = tokio::spawn(service.clone().oneshot(keyed.clone()));
        gate.entered().await;
        let mut twin = Box::pin(service.clone().oneshot(keyed));
        assert!(twin.as_mut().now_or_never().is_none());
        assert_eq!(places.available_permits(), 1, "the twin keeps a place");
        gate.open(1);
        assert_eq!(first_run.await.unwrap().unwrap().status(), first);
        gate.open(1);
        let answer = twin.await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        let expected = if first == StatusCode::OK { 1 } else { 2 };
        assert_eq!(
            (gate.runs(), &*body),
            (expected, format!("run {expected}").as_bytes())
        );
        assert_eq!(places.available_permits(), 2);
    }
}

#[tokio::test]
async fn a_twin_has_its_place_again_before_it_claims() {
    let (gate, places) = (Gate::default(), Arc::new(Semaphore::new(2)));
    let handler = runs::<Infallible>(&gate, StatusCode::SERVICE_UNAVAILABLE);
    let once = IdempotencyLayer::new(MemoryStore::new(), Scope::global());
    let once = once.twins(Twins::Attach(MINUTE));
    let limit = GlobalConcurrencyLimitLayer::with_semaphore(places.clone());
    let limited = ServiceBuilder::new().layer(once.clone()).layer(limit);
    let limited = limited.service(handler.clone());
    let free = ServiceBuilder::new().layer(once).service(handler);
    let keyed = asked("POST", &[("idempotency-key", "k")]);
    let first_run = tokio::spawn(limited.clone().oneshot(keyed.clone()));
    gate.entered().await;
    let mut twin = Box::pin(limited.oneshot(keyed.clone()));
    assert!(twin.as_mut().now_or_never().is_none());
    // Others have both places when the first run ends without an answer to keep.
    let _one = places.acquire().await.unwrap();
    let mut other = Box::pin(places.acquire());
    assert!(other.as_mut().now_or_never().is_none());
    gate.open(1);
    let first = first_run.await.unwrap().unwrap();
    assert_eq!(first.status(), StatusCode::SERVICE_UNAVAILABLE);
    let other = other.await.unwrap();
    assert!(twin.as_mut().now_or_never().is_none(), "it has no place");
    gate.open(1);
    let third = free.oneshot(keyed).now_or_never();
    let third = third.expect("a key that nobody runs is free").unwrap();
    assert_eq!(third.status(), StatusCode::OK);
    drop(other);
    let answer = twin.await.unwrap();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    assert_eq!((gate.runs(), &*body), (2, &b"run 2"[..]));
}

#[tokio::test]
async fn behind_load_shed_a_hit_a_replay_and_a_429_wait_for_nobodys_place() {
    let places = Arc::new(Semaphore::new(1));
    let store = MemoryStore::new();
    let one = Quota::new(1, MINUTE);
    let layers = ServiceBuilder::new()
        .layer(ResponseCacheLayer::new(store.clone()).ttl(MINUTE))
        .layer(IdempotencyLayer::new(store.clone(), Scope::global()))
        .layer(RateLimitLayer::new(store).limit(one, Partition::path()))
        .layer(LoadShedLayer::new())
        .layer(GlobalConcurrencyLimitLayer::with_semaphore(places.clone()));
    let service = layers.service(Strict::default());
    let ask = |path: &str, method: &str, key: &str| {
        let mut request = asked(method, &[("idempotency-key", key)]);
        *request.uri_mut() = path.parse().unwrap();
        let answer = service.clone().oneshot(request).now_or_never();
        let answer = answer.expect("nobody waits");
        answer.map(|answer| answer.status().as_u16())
    };
    assert_eq!(ask("/a", "GET", "").unwrap(), 200);
    assert_eq!(ask("/b", "POST", "k").unwrap(), 200);
    let _taken = places.acquire().await.unwrap();
    assert_eq!(ask("/a", "GET", "").unwrap(), 200);
    assert_eq!(ask("/b", "POST", "k").unwrap(), 200);
    assert_eq!(ask("/b", "POST", "other").unwrap(), 429);
    let shed = ask("/c", "POST", "new").unwrap_err();
    assert!(shed.is::<Overloaded>(), "{shed}");
}

async fn told(error: BoxError) -> (StatusCode, String) {
    (StatusCode::SERVICE_UNAVAILABLE, error.to_string())
}

/// Each layer between tower's own, above and below, on one route of an axum application.
macro_rules! among {
    ($keep:expr) => {
        ServiceBuilder::new()
            .layer(HandleErrorLayer::new(told))
            .buffer(64)
            .load_shed()
            .timeout(MINUTE)
            .concurrency_limit(64)
            .layer($keep)
            .buffer(64)
            .timeout(MINUTE)
            .concurrency_limit(1)
            .layer(HandleErrorLayer::new(told))
            .load_shed()
            .timeout(MINUTE)
    };
}

#[tokio::test]
async fn each_layer_works_between_buffers_limits_and_timeouts() {
    let store = MemoryStore::new();
    let limit = RateLimitLayer::new(store.clone()).limit(Quota::per_hour(40), Partition::global());
    let once = IdempotencyLayer::new(store.clone(), Scope::global()).twins(Twins::Attach(MINUTE));
    let sessions = SessionLayer::new(store.clone());
    let cache = ResponseCacheLayer::new(store).ttl(MINUTE);
    let runs = [(); 4].map(|()| Arc::<AtomicUsize>::default());
    let handler = |own: usize| {
        let runs = Arc::clone(&runs[own]);
        move || async move {
            runs.fetch_add(1, Ordering::SeqCst);
            tokio::task::yield_now().await;
            "made"
        }
    };
    let app = Router::new()
        .route("/0", any(handler(0)).layer(among!(limit)))
        .route("/1", any(handler(1)).layer(among!(once)))
        .route("/2", any(handler(2)).layer(among!(sessions)))
        .route("/3", get(handler(3)).layer(among!(cache)));
    let connection = connect(serve(app).await).await;
    for (own, method, expected) in [
        (0, "GET", 40),
        (1, "POST", 1),
        (2, "GET", 50),
        (3, "GET", 1),
    ] {
        let mut all = JoinSet::new();
        for _ in 0..50 {
            let connection = connection.clone();
            all.spawn(async move {
                let path = format!("/{own}");
                let key = [("idempotency-key", "k")];
                send(&connection, method, &path, &key, "").await.status()
            });
        }
        let all = tokio::time::timeout(Duration::from_secs(20), all.join_all());
        let all = all.await.expect("nobody waits for ever");
        let good = all.iter().filter(|status| **status == StatusCode::OK);
        assert_eq!(
            good.count(),
            if own == 0 { 40 } else { 50 },
            "{own}: {all:?}"
        );
        assert_eq!(runs[own].load(Ordering::SeqCst), expected, "{own}");
    }
}
