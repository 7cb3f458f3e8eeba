//! The rate_limit layer, driven in process.

mod addresses;
mod cancelling;
mod cluster;
mod costs;
mod deny;
mod failover;
mod faults;
mod fields;
mod floods;
mod limiter;
pub mod metered;
mod oracle;
mod outages;
mod platform;
mod program;
mod refusals;
mod said;
mod shadows;
mod stacked;
pub mod telemetry;
mod vectors;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use serde_json::Value;
use tower::{Layer, ServiceExt, service_fn};
use tower_keep::backend::memory::MemoryStore;
use tower_keep::core::{ManualClock, PeerAddr, Principal, Timestamp};
use tower_keep::rate_limit::{Partition, Policy, Quota, RateLimitLayer, RateLimitStore};
use tower_keep::{DAY, MINUTE};

/// Longer than any machine is busy: a store that only is slow must not count as away.
pub const PATIENCE: Duration = Duration::from_secs(5);

pub fn clock() -> ManualClock {
    ManualClock::at("2030-01-15T12:00:00Z".parse::<Timestamp>().unwrap())
}

pub fn memory(clock: &ManualClock) -> MemoryStore {
    MemoryStore::builder().clock(clock.clone()).build()
}

/// The policies of a payment: per user, per user and day, per address, and for everybody.
pub fn payments(store: impl RateLimitStore) -> RateLimitLayer {
    RateLimitLayer::new(store)
        .group("payments")
        .policy(Policy::new(
            "user",
            Quota::new(5, 15 * MINUTE),
            Partition::principal(),
        ))
        .policy(Policy::new(
            "user-daily",
            Quota::new(20, DAY),
            Partition::principal(),
        ))
        .policy(Policy::new(
            "ip",
            Quota::new(20, 15 * MINUTE),
            Partition::client_ip(),
        ))
        .limit(Quota::per_minute(1_000), Partition::global())
}

/// A service that counts its calls, behind a layer.
#[derive(Clone)]
pub struct App {
    pub layer: RateLimitLayer,
    calls: Arc<AtomicUsize>,
    pub status: StatusCode,
}

/// An answer, read to its end.
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub extensions: http::Extensions,
    pub body: Bytes,
}

impl App {
    pub fn new(layer: RateLimitLayer) -> Self {
        let (calls, status) = (Arc::default(), StatusCode::OK);
        Self {
            layer,
            calls,
            status,
        }
    }

    pub fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    pub async fn send(&self, request: Request<()>) -> Answer {
        let (calls, status) = (Arc::clone(&self.calls), self.status);
        let inner = service_fn(move |_: Request<()>| {
            calls.fetch_add(1, Ordering::SeqCst);
            let mut response = Response::new(Full::new(Bytes::from_static(b"done")));
            *response.status_mut() = status;
            async move { Ok::<_, Infallible>(response) }
        });
        let response = self.layer.layer(inner).oneshot(request).await.unwrap();
        read(response).await
    }

    pub async fn get(&self, user: &str, address: &str) -> Answer {
        self.send(request(user, address)).await
    }
}

pub async fn read<B>(response: Response<B>) -> Answer
where
    B: http_body::Body<Data = Bytes>,
    B::Error: std::fmt::Debug,
{
    let (parts, body) = response.into_parts();
    Answer {
        status: parts.status,
        headers: parts.headers,
        extensions: parts.extensions,
        body: body.collect().await.unwrap().to_bytes(),
    }
}

/// A request by `user` (nobody if empty) from `address`.
pub fn request(user: &str, address: &str) -> Request<()> {
    let mut request = Request::new(());
    let peer = SocketAddr::new(address.parse().unwrap(), 40_000);
    request.extensions_mut().insert(PeerAddr(peer));
    if !user.is_empty() {
        request.extensions_mut().insert(Principal::new(user));
    }
    request
}

impl Answer {
    pub fn field(&self, name: &str) -> Option<&str> {
        let value = self.headers.get(name);
        value.map(|value| value.to_str().unwrap())
    }

    pub fn retry_after(&self) -> Duration {
        Duration::from_secs(self.field("retry-after").unwrap().parse().unwrap())
    }

    pub fn problem(&self) -> Value {
        assert_eq!(self.field("content-type"), Some("application/problem+json"));
        serde_json::from_slice(&self.body).unwrap()
    }

    #[track_caller]
    pub fn refused_by(&self, policy: &str) {
        assert_eq!(self.status, StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(self.problem()["code"], policy);
    }
}
