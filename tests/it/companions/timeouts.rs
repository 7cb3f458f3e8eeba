//! Timeouts and shed load, outside and inside of the layers: whoever is cut or refused loses nothing.

use std::convert::Infallible;
use std::time::Duration;

use axum::Router;
use axum::error_handling::HandleErrorLayer;
use axum::extract::State;
use axum::routing::{get, post};
use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use tower::limit::ConcurrencyLimitLayer;
use tower::load_shed::LoadShedLayer;
use tower::retry::RetryLayer;
use tower::timeout::{Timeout, TimeoutLayer, error::Elapsed};
use tower::{BoxError, ServiceBuilder, ServiceExt as _, service_fn};
use tower_http::timeout::TimeoutLayer as HttpTimeoutLayer;
use tower_keep::backend::memory::MemoryStore;
use tower_keep::core::{ManualClock, Principal};
use tower_keep::idempotency::{IdempotencyLayer, Scope, Twins};
use tower_keep::response_cache::ResponseCacheLayer;
use tower_keep::session::{Session, SessionCookie, SessionLayer, SessionRejection};
use tower_keep::{MINUTE, SECOND};

use super::{Gate, runs};
use crate::support::http2::{connect, send};
use crate::support::serving::serve;

/// Short: what it cuts waits at a gate that is opened only afterwards.
const SOON: Duration = Duration::from_millis(20);
const KEY: [(&str, &str); 1] = [("idempotency-key", "k")];

fn outer() -> HttpTimeoutLayer {
    HttpTimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, SOON)
}

async fn pay(State(gate): State<Gate>) -> (StatusCode, String) {
    let run = gate.pass().await;
    (StatusCode::CREATED, format!("paid {run}"))
}

#[tokio::test]
async fn a_timeout_outside_of_idempotency_cuts_the_client_and_not_the_run() {
    let gate = Gate::default();
    let once = IdempotencyLayer::new(MemoryStore::new(), Scope::global());
    let layers = ServiceBuilder::new().layer(outer()).layer(once.clone());
    let app = Router::new().route("/pay", post(pay).layer(layers));
    let server = connect(serve(app.with_state(gate.clone())).await).await;
    let cut = send(&server, "POST", "/pay", &KEY, "").await;
    assert_eq!(cut.status(), StatusCode::GATEWAY_TIMEOUT);
    let early = send(&server, "POST", "/pay", &KEY, "").await;
    assert_eq!(early.status(), StatusCode::CONFLICT, "it still runs");
    gate.open(1);
    let drained = once.drain(10 * SECOND).await;
    assert_eq!(drained.abandoned, 0);
    let again = send(&server, "POST", "/pay", &KEY, "").await;
    assert_eq!(again.status(), StatusCode::CREATED);
    assert_eq!((&again.body()[..], gate.runs()), (&b"paid 1"[..], 1));
}

#[tokio::test]
async fn a_timeout_inside_of_idempotency_cuts_the_handler_and_frees_its_key() {
    let gate = Gate::default();
    let once = IdempotencyLayer::new(MemoryStore::new(), Scope::global());
    let layers = ServiceBuilder::new().layer(once).layer(outer());
    let app = Router::new().route("/pay", post(pay).layer(layers));
    let server = connect(serve(app.with_state(gate.clone())).await).await;
    let cut = send(&server, "POST", "/pay", &KEY, "").await;
    assert_eq!(cut.status(), StatusCode::GATEWAY_TIMEOUT);
    gate.open(1);
    let again = send(&server, "POST", "/pay", &KEY, "").await;
    assert_eq!(again.status(), StatusCode::CREATED);
    assert_eq!(
        &again.body()[..],
        b"paid 2",
        "a handler that was cut runs again"
    );
}

#[tokio::test]
async fn an_error_of_the_service_inside_comes_out_as_it_is_and_frees_the_key() {
    let gate = Gate::default();
    let handler = runs::<BoxError>(&gate, StatusCode::OK);
    let service = ServiceBuilder::new()
        .layer(IdempotencyLayer::new(MemoryStore::new(), Scope::global()))
        .layer(LoadShedLayer::new())
        .layer(ConcurrencyLimitLayer::new(1))
        .layer(TimeoutLayer::new(SOON))
        .service(handler);
    let keyed = |key: &str| {
        let request = Request::post("/pay").header("idempotency-key", key);
        service
            .clone()
            .oneshot(request.body(Full::default()).unwrap())
    };
    let busy = tokio::spawn(keyed("other"));
    gate.entered().await;
    let shed = keyed("k").await.unwrap_err();
    assert!(shed.is::<tower::load_shed::error::Overloaded>(), "{shed}");
    assert!(busy.await.unwrap().unwrap_err().is::<Elapsed>());
    let slow = keyed("k").await.unwrap_err();
    assert!(slow.is::<Elapsed>(), "{slow}");
    gate.open(1);
    let answer = keyed("k").await.unwrap().into_body();
    assert_eq!(&answer.collect().await.unwrap().to_bytes()[..], b"run 3");
}

/// Sends again what failed, as it was.
#[derive(Clone)]
struct Again(usize);

type Sent = Request<Full<Bytes>>;

impl<R> tower::retry::Policy<Sent, R, BoxError> for Again {
    type Future = std::future::Ready<()>;

    fn retry(&mut self, _: &mut Sent, result: &mut Result<R, BoxError>) -> Option<Self::Future> {
        self.0 = self.0.checked_sub(usize::from(result.is_err()))?;
        result.is_err().then(|| std::future::ready(()))
    }

    fn clone_request(&mut self, request: &Sent) -> Option<Sent> {
        Some(request.clone())
    }
}

#[tokio::test]
async fn what_is_sent_again_outside_of_idempotency_runs_once_and_its_answer_comes_back() {
    let gate = Gate::default();
    let handler = runs::<BoxError>(&gate, StatusCode::OK);
    let once = IdempotencyLayer::new(MemoryStore::new(), Scope::global());
    let once = once.twins(Twins::Attach(MINUTE));
    let service = ServiceBuilder::new()
        .layer(RetryLayer::new(Again(1)))
        .layer(TimeoutLayer::new(SOON))
        .layer(once.clone())
        .service(handler);
    let request = Request::post("/pay").header("idempotency-key", "k");
    let request = request.body(Full::default()).unwrap();
    let first = service.clone().oneshot(request.clone()).await.unwrap_err();
    assert!(first.is::<Elapsed>(), "both were cut: {first}");
    gate.open(1);
    assert_eq!(once.drain(10 * SECOND).await.abandoned, 0);
    let answer = service.oneshot(request).await.unwrap().into_body();
    let answer = answer.collect().await.unwrap().to_bytes();
    assert_eq!((&answer[..], gate.runs()), (&b"run 1"[..], 1));
}

type Fetched = Request<tower_keep::core::Body<Full<Bytes>>>;

fn page() -> Request<Full<Bytes>> {
    Request::get("/page").body(Full::default()).unwrap()
}

#[tokio::test]
async fn those_who_wait_for_a_fetch_get_it_though_its_own_client_was_timed_out() {
    let gate = Gate::default();
    let own = gate.clone();
    let handler = service_fn(move |_: Fetched| {
        let gate = own.clone();
        async move {
            let run = gate.pass().await;
            Ok::<_, Infallible>(Response::new(Full::<Bytes>::from(format!("made {run}"))))
        }
    });
    let cache = ResponseCacheLayer::new(MemoryStore::new()).ttl(MINUTE);
    let cached = ServiceBuilder::new().layer(cache).service(handler);
    let leader = tokio::spawn(Timeout::new(cached.clone(), SOON).oneshot(page()));
    gate.entered().await;
    let mut waiter = Box::pin(cached.clone().oneshot(page()));
    assert!(waiter.as_mut().now_or_never().is_none());
    assert!(leader.await.unwrap().unwrap_err().is::<Elapsed>());
    gate.open(1);
    let answer = waiter.await.unwrap().into_body().collect().await.unwrap();
    assert_eq!((&*answer.to_bytes(), gate.runs()), (&b"made 1"[..], 1));
    let hit = cached.oneshot(page()).await.unwrap();
    assert!(
        hit.headers()["cache-status"]
            .to_str()
            .unwrap()
            .contains(";hit")
    );
}

#[tokio::test]
async fn a_stale_answer_stands_in_for_a_service_that_is_too_slow_or_too_busy() {
    let gate = Gate::default();
    let own = gate.clone();
    let handler = service_fn(move |_: Fetched| {
        let gate = own.clone();
        async move {
            let run = gate.pass().await;
            Ok::<_, BoxError>(Response::new(Full::<Bytes>::from(format!("made {run}"))))
        }
    });
    let clock = ManualClock::at("2030-01-01T00:00:00Z".parse().unwrap());
    let store = MemoryStore::builder().clock(clock.clone()).build();
    let cache = ResponseCacheLayer::new(store).ttl(SECOND);
    let limited = ServiceBuilder::new()
        .layer(LoadShedLayer::new())
        .layer(ConcurrencyLimitLayer::new(1))
        .layer(TimeoutLayer::new(SOON))
        .service(handler);
    let cached = ServiceBuilder::new()
        .layer(cache.stale_if_error(MINUTE))
        .service(limited.clone());
    gate.open(1);
    cached.clone().oneshot(page()).await.unwrap();
    gate.entered().await;
    clock.advance(5 * SECOND);
    let slow = cached.clone().oneshot(page()).await.unwrap();
    let body = slow.into_body().collect().await.unwrap().to_bytes();
    assert_eq!((&*body, gate.runs()), (&b"made 1"[..], 2));
    gate.entered().await;
    // Nobody is asked for a second after that.
    clock.advance(5 * SECOND);
    let other = page().map(tower_keep::core::Body::pass);
    let busy = tokio::spawn(limited.oneshot(other));
    gate.entered().await;
    let shed = cached.oneshot(page()).await.unwrap();
    let body = shed.into_body().collect().await.unwrap().to_bytes();
    assert_eq!((&*body, gate.runs()), (&b"made 1"[..], 3));
    assert!(busy.await.unwrap().unwrap_err().is::<Elapsed>());
}

async fn log_in(State(gate): State<Gate>, session: Session) -> Result<(), SessionRejection> {
    session.login(Principal::new("ann")).await?;
    session.insert("cart", &1)?;
    gate.pass().await;
    Ok(())
}

async fn who(session: Session) -> Result<String, SessionRejection> {
    let who = session.principal().await?;
    let cart: Option<u32> = session.get("cart").await?;
    Ok(format!(
        "{} {cart:?}",
        who.map_or("nobody".to_owned(), |own| own.id().to_owned())
    ))
}

async fn timed_out(_: BoxError) -> StatusCode {
    StatusCode::GATEWAY_TIMEOUT
}

#[tokio::test]
async fn what_was_committed_before_a_timeout_stands_and_what_was_buffered_is_dropped() {
    let gate = Gate::default();
    let sessions = SessionLayer::new(MemoryStore::new()).cookie(SessionCookie::insecure("id"));
    let inner = ServiceBuilder::new()
        .layer(sessions.clone())
        .layer(HandleErrorLayer::new(timed_out))
        .layer(TimeoutLayer::new(SOON));
    let outside = ServiceBuilder::new().layer(outer()).layer(sessions.clone());
    let app = Router::new()
        .route("/in", post(log_in).layer(inner))
        .route("/out", post(log_in).layer(outside))
        .route("/who", get(who).layer(sessions.clone()));
    let server = connect(serve(app.with_state(gate)).await).await;
    let cut = send(&server, "POST", "/in", &[], "").await;
    assert_eq!(cut.status(), StatusCode::GATEWAY_TIMEOUT);
    let cookie = cut.headers()[header::SET_COOKIE].to_str().unwrap();
    let own = [("cookie", cookie.split(';').next().unwrap())];
    let told = send(&server, "GET", "/who", &own, "").await;
    assert_eq!(&told.body()[..], b"ann None");
    // Outside of the layer nobody is left to tell the client: the login is in the list, without a holder.
    let before = sessions.directory().list("ann").await.unwrap().len();
    let cut = send(&server, "POST", "/out", &[], "").await;
    assert_eq!(cut.status(), StatusCode::GATEWAY_TIMEOUT);
    assert!(!cut.headers().contains_key(header::SET_COOKIE));
    let after = sessions.directory().list("ann").await.unwrap().len();
    assert_eq!((before, after), (1, 2));
}
