//! What a limit costs around one axum route: allowed (one hot key, many keys), denied, three policies; and the store alone.
#![allow(clippy::unwrap_used, missing_docs)]

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::routing::get;
use criterion::{Criterion, criterion_group, criterion_main};
use http::Request;
use http_body_util::BodyExt;
use tokio::runtime::{Builder, Runtime};
use tower::{Service, ServiceExt};
use tower_keep::HOUR;
use tower_keep::backend::memory::MemoryStore;
use tower_keep::rate_limit::store::{Bucket, Charge, Mode, Scope, Tag};
use tower_keep::rate_limit::{
    Partition, PartitionKey, Policy, Quota, RateLimitLayer, RateLimitStore,
};

/// Never full in a run: one unit comes back each microsecond.
const GENEROUS: Quota = Quota::per_second(1_000_000).gcra(1_000_000);

fn route() -> Router {
    Router::new().route("/", get(async || "hello"))
}

fn limited(layer: impl FnOnce(RateLimitLayer) -> RateLimitLayer) -> Router {
    route().layer(layer(RateLimitLayer::new(MemoryStore::new())))
}

/// Runs over `keys` addresses in a fixed but scattered order.
struct Addresses {
    keys: u64,
    state: u64,
}

impl Addresses {
    fn next(&mut self) -> IpAddr {
        self.state = self
            .state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let address = 0x0a00_0000 + ((self.state >> 33) % self.keys) as u32;
        IpAddr::from(address.to_be_bytes())
    }
}

async fn send(app: &Router, address: IpAddr) -> u16 {
    let mut request = Request::new(Body::empty());
    let peer = SocketAddr::new(address, 40_000);
    request.extensions_mut().insert(ConnectInfo(peer));
    let mut app = app.clone();
    let ready = ServiceExt::<Request<Body>>::ready(&mut app).await.unwrap();
    let response = ready.call(request).await.unwrap();
    let status = response.status().as_u16();
    response.into_body().collect().await.unwrap();
    status
}

fn around_a_route(c: &mut Criterion) {
    let runtime: Runtime = Builder::new_current_thread().build().unwrap();
    let by_address = || Policy::new("ip", GENEROUS, Partition::client_ip());
    let subjects = [
        ("bare", route(), 1, 200),
        (
            "allowed, hot key",
            limited(|layer| layer.policy(by_address())),
            1,
            200,
        ),
        (
            "allowed, hot key, no fields",
            limited(|layer| layer.policy(by_address()).no_fields()),
            1,
            200,
        ),
        (
            "allowed, 100,000 keys",
            limited(|layer| layer.policy(by_address())),
            100_000,
            200,
        ),
        (
            "allowed, exact, 100,000 keys",
            limited(|layer| layer.limit(Quota::new(1_000, HOUR), Partition::client_ip())),
            100_000,
            200,
        ),
        (
            "allowed, three policies",
            limited(|layer| {
                layer
                    .policy(by_address())
                    .limit(GENEROUS, Partition::principal())
                    .limit(GENEROUS, Partition::global())
            }),
            1,
            200,
        ),
        (
            "denied",
            limited(|layer| layer.limit(Quota::new(1, HOUR), Partition::client_ip())),
            1,
            429,
        ),
    ];
    let mut group = c.benchmark_group("rate_limit");
    group.measurement_time(Duration::from_secs(3));
    for (name, app, keys, expected) in subjects {
        let mut addresses = Addresses { keys, state: 7 };
        runtime.block_on(async {
            for _ in 0..keys * 2 {
                send(&app, addresses.next()).await;
            }
            assert_eq!(send(&app, addresses.next()).await, expected, "{name}");
        });
        group.bench_function(name, |bencher| {
            bencher.iter(|| runtime.block_on(send(&app, addresses.next())));
        });
    }
    group.finish();
}

fn the_store_alone(c: &mut Criterion) {
    let mut group = c.benchmark_group("rate_limit_store");
    let quotas = [("gcra", GENEROUS), ("exact", Quota::per_second(1_000))];
    for (name, quota) in quotas {
        for keys in [1, 100, 10_000] {
            let store = MemoryStore::new();
            let scope = Scope::new("bench", Tag::Key, name, quota);
            let mut addresses = Addresses { keys, state: 7 };
            group.bench_function(format!("{name}, {keys} keys"), |bencher| {
                bencher.iter(|| {
                    let key = PartitionKey::from(addresses.next());
                    let charge = Charge {
                        bucket: Bucket {
                            scope: &scope,
                            key: &key,
                        },
                        limit: quota.capacity(),
                        cost: 1,
                        mode: Mode::Enforced,
                    };
                    store.check_and_record(&[charge]).try_now().is_ok()
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, around_a_route, the_store_alone);
criterion_main!(benches);
