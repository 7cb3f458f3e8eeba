//! What a decision costs in this process: counted, never timed.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use tower::{Layer, Service, service_fn};
use tower_keep::MINUTE;
use tower_keep::backend::memory::MemoryStore;
use tower_keep::core::{Clock, ManualClock, Timestamp};
use tower_keep::rate_limit::{Partition, Policy, Quota, RateLimitLayer};

use super::request;

type Answered = Ready<Result<Response<Full<Bytes>>, Infallible>>;

fn answer(_: Request<()>) -> Answered {
    let mut response = Response::new(Full::new(Bytes::from_static(b"done")));
    let plain = HeaderValue::from_static("text/plain");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    ready(Ok(response))
}

/// Allocations of one request, from the call to the dropped response, beyond those of the bare service.
fn added(layer: &RateLimitLayer, status: StatusCode) -> u64 {
    const ROUNDS: u64 = 100;
    let mut behind = layer.layer(service_fn(answer));
    let mut bare = service_fn(answer);
    let requests = || -> Vec<_> { (0..ROUNDS).map(|_| request("", "192.0.2.7")).collect() };
    // The first refusals write down what all others have in common.
    for _ in 0..4 {
        let warm = behind.call(request("", "192.0.2.7")).now_or_never();
        assert!(warm.is_some(), "memory answers at once");
    }
    let (these, those) = (requests(), requests());
    let with = allocation_counter::measure(|| {
        for request in these {
            let response = behind.call(request).now_or_never();
            let response = response.expect("memory answers at once").unwrap();
            assert_eq!(response.status(), status);
            black_box(response);
        }
    });
    let without = allocation_counter::measure(|| {
        for request in those {
            black_box(bare.call(request).now_or_never());
        }
    });
    let added = with.count_total - without.count_total;
    assert_eq!(added % ROUNDS, 0, "each request costs the same");
    added / ROUNDS
}

/// A second later at each look.
#[derive(Debug, Default)]
struct Ticking(AtomicU64);

impl Clock for Ticking {
    fn now_micros(&self) -> u64 {
        1_900_000_000_000_000 + 1_000_000 * self.0.fetch_add(1, Ordering::Relaxed)
    }
}

fn policy(name: &str, limit: u32, partition: Partition) -> Policy {
    Policy::new(name, Quota::new(limit, MINUTE).gcra(limit), partition)
}

#[test]
fn an_admitted_request_costs_three_allocations_and_one_without_fields_two() {
    let limits = || {
        RateLimitLayer::new(MemoryStore::new()).policy(policy("ip", 10_000, Partition::client_ip()))
    };
    // The state and the address in the extensions, and the `RateLimit` field.
    assert_eq!(added(&limits(), StatusCode::OK), 3);
    assert_eq!(added(&limits().no_fields(), StatusCode::OK), 2);
}

#[test]
fn a_refusal_costs_six_allocations_and_four_where_it_is_told_again() {
    let layer = |store| {
        RateLimitLayer::new(store).limit(Quota::per_hour(1).gcra(1), Partition::client_ip())
    };
    // The typed cause and its place, two of the fields' map, the `RateLimit` field and the document; less what the bare
    // service spends on its own response.
    let anew = layer(MemoryStore::builder().clock(Ticking::default()).build());
    assert_eq!(added(&anew, StatusCode::TOO_MANY_REQUESTS), 6 - 2);
    let still = ManualClock::at("2030-01-15T12:00:00Z".parse::<Timestamp>().unwrap());
    let store = MemoryStore::builder().clock(still).build();
    assert_eq!(added(&layer(store), StatusCode::TOO_MANY_REQUESTS), 4 - 2);
}

#[test]
fn three_limits_in_one_step_cost_as_much_as_two_states_more() {
    let layer = RateLimitLayer::new(MemoryStore::new())
        .policy(policy("path", 10_000, Partition::path()))
        .policy(policy("ip", 10_000, Partition::client_ip()))
        .policy(policy("global", 10_000, Partition::global()));
    assert!(added(&layer, StatusCode::OK) <= 9);
}
