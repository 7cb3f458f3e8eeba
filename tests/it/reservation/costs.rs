//! What the layer costs in this process: allocations, counted, never timed.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::hint::black_box;

use futures_util::FutureExt as _;
use http::{Request, Response};
use sqlx::PgPool;
use tokio::runtime::Runtime;
use tower::{Layer, Service, service_fn};
use tower_keep::backend::sql::{Postgres, SqlStore};
use tower_keep::core::Body;
use tower_keep::reservation::{ReservationGuard, ReservationLayer, ReservationStore, Slot};

use super::{memory, postgres, slot, sqlite};
use crate::support::cost::cost;
use crate::support::postgres::shared;

fn answer(_: Request<()>) -> Ready<Result<Response<String>, Infallible>> {
    ready(Ok(Response::new(String::new())))
}

/// What a request that does not touch its guard makes beyond the map of extensions.
fn untouched(store: impl ReservationStore) -> i64 {
    let mut behind = ReservationLayer::new(store).layer(service_fn(answer));
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
    let counted = [with, without, made].map(|counted| counted.count_total as i64);
    counted[0] - counted[1] - counted[2]
}

fn runtime() -> Runtime {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().build().unwrap()
}

#[test]
fn a_request_that_does_not_touch_its_guard_costs_three_allocations_at_most() {
    let runtime = runtime();
    let _entered = runtime.enter();
    let cost = untouched(memory());
    assert!(cost <= 3, "{cost}");
}

#[test]
fn it_costs_as_few_where_the_store_is_a_database() {
    let runtime = runtime();
    for store in [runtime.block_on(sqlite()), runtime.block_on(postgres())] {
        let _entered = runtime.enter();
        let cost = untouched(store.clone());
        assert!(cost <= 3, "{store:?}: {cost}");
    }
}

/// Allocations of one request that `service` answers on `pool`, to the connection's way back into it.
fn in_transaction<S>(runtime: &Runtime, pool: &PgPool, service: &S) -> f64
where
    S: Service<Request<()>, Response = Response<Body<String>>, Error = Infallible> + Clone,
{
    let (allocations, _) = cost(|_| {
        let mut request = Request::new(());
        request.extensions_mut().insert(0_u8);
        runtime.block_on(async {
            black_box(service.clone().call(request).await.unwrap());
            while pool.num_idle() == 0 {
                tokio::task::yield_now().await;
            }
        });
    });
    allocations
}

#[test]
fn an_insert_of_ones_own_on_postgres_costs_seven_allocations_more_than_by_hand_at_most() {
    const INSERT: &str = "insert into visits (guest) values ($1)";
    let runtime = runtime();
    let (store, pool) = runtime.block_on(async {
        let url = shared().await.database().await;
        let store = SqlStore::connect(&url).await.unwrap();
        let pool = PgPool::connect(&url).await.unwrap();
        let made = sqlx::query("create table visits (guest text)");
        made.execute(&pool).await.unwrap();
        (store, pool)
    });
    let own = store.pool::<Postgres>().unwrap().clone();
    let layer = ReservationLayer::new(store);
    let kept = layer.layer(service_fn(async |request: Request<()>| {
        let guard = ReservationGuard::<Postgres>::from_extensions(request.extensions());
        let mut guard = guard.unwrap();
        let mut lease = guard.transaction().await.unwrap();
        let inserted = sqlx::query(INSERT).bind("ann").execute(&mut *lease);
        inserted.await.unwrap();
        Ok::<_, Infallible>(Response::new(String::new()))
    }));
    let by_hand = service_fn(async |_: Request<()>| {
        let mut transaction = pool.begin().await.unwrap();
        let inserted = sqlx::query(INSERT).bind("ann").execute(&mut *transaction);
        inserted.await.unwrap();
        transaction.commit().await.unwrap();
        Ok::<_, Infallible>(Response::new(Body::pass(String::new())))
    });
    let by_hand = in_transaction(&runtime, &pool, &by_hand);
    let kept = in_transaction(&runtime, &own, &kept);
    assert!(kept <= by_hand + 7.0, "{kept}, by hand {by_hand}");
}

#[test]
fn a_hold_in_memory_with_its_end_costs_twenty_five_allocations_at_most() {
    let runtime = runtime();
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
