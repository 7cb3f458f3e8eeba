//! What the future of every store method costs: already known without a box, beside boxed, beside a plain async call.
#![allow(clippy::unwrap_used, missing_docs)]

use std::future::Future;
use std::hint::black_box;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use criterion::{Criterion, criterion_group, criterion_main};
use tower_keep::core::StoreFuture;

/// A store trait in miniature, behind a `dyn` as the layers hold it.
trait Answer: Send + Sync {
    fn ready(&self, n: u64) -> StoreFuture<u64>;
    fn boxed(&self, n: u64) -> StoreFuture<u64>;
}

struct Store;

impl Answer for Store {
    fn ready(&self, n: u64) -> StoreFuture<u64> {
        StoreFuture::ok(n + 1)
    }

    fn boxed(&self, n: u64) -> StoreFuture<u64> {
        StoreFuture::boxed(async move { Ok(n + 1) })
    }
}

async fn plain(n: u64) -> u64 {
    black_box(n) + 1
}

fn now<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => unreachable!("these futures never wait"),
    }
}

fn store_future(criterion: &mut Criterion) {
    let store: Arc<dyn Answer> = Arc::new(Store);
    let mut group = criterion.benchmark_group("store_future");
    group.bench_function("static async fn", |bencher| {
        bencher.iter(|| now(plain(black_box(1))));
    });
    group.bench_function("dyn, ready", |bencher| {
        bencher.iter(|| now(store.ready(black_box(1))).unwrap());
    });
    group.bench_function("dyn, boxed", |bencher| {
        bencher.iter(|| now(store.boxed(black_box(1))).unwrap());
    });
    group.finish();
}

criterion_group!(benches, store_future);
criterion_main!(benches);
