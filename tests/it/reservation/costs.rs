//! What the layer costs in this process: allocations, counted, never timed.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::hint::black_box;

use futures_util::FutureExt as _;
use http::{Request, Response};
use tower::{Layer, Service, service_fn};
use tower_keep::reservation::{ReservationGuard, ReservationLayer, Slot};

use super::{memory, slot};
use crate::support::cost::cost;

fn answer(_: Request<()>) -> Ready<Result<Response<String>, Infallible>> {
    ready(Ok(Response::new(String::new())))
}

#[test]
fn a_request_that_does_not_touch_its_guard_costs_three_allocations_at_most() {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let runtime = runtime.unwrap();
    let _entered = runtime.enter();
    let mut behind = ReservationLayer::new(memory()).layer(service_fn(answer));
    let mut bare = service_fn(answer);
    black_box(behind.call(Request::new(())).now_or_never());
    let (one, other) = (Request::new(()), Request::new(()));
    let with = allocation_counter::measure(|| {
        black_box(behind.call(one).now_or_never());
    });
    let without = allocation_counter::measure(|| {
        black_box(bare.call(other).now_or_never());
    });
    // The map of extensions is made for whoever puts something into it first.
    let made = allocation_counter::measure(|| {
        let mut request = Request::new(());
        request.extensions_mut().insert(0_u8);
        black_box(request);
    });
    let cost = with.count_total - without.count_total;
    assert!(cost <= 3 + made.count_total, "{cost} of {made:?}");
}

#[test]
fn a_hold_in_memory_with_its_end_costs_twenty_five_allocations_at_most() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let layer = ReservationLayer::new(memory());
    let service = layer.layer(service_fn(async |mut request: Request<()>| {
        let slot: Slot = request.extensions_mut().remove().unwrap();
        let mut guard: ReservationGuard =
            ReservationGuard::from_extensions(request.extensions()).unwrap();
        guard.hold(slot, "ann").await.unwrap();
        Ok::<_, Infallible>(Response::new(String::new()))
    }));
    let (allocations, _) = cost(|n| {
        let mut request = Request::new(());
        request.extensions_mut().insert(slot(&n.to_string()));
        let answered = runtime.block_on(service.clone().call(request));
        black_box(answered.unwrap());
    });
    assert!(allocations <= 25.0, "{allocations}");
}
