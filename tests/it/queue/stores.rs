//! The conformance suite on every engine.

use std::sync::Arc;

use tower_keep::backend::fallback::Fallback;
use tower_keep::backend::memory::MemoryStore;
use tower_keep::conformance::queue::{histories, queue};
use tower_keep::core::ManualClock;

use crate::support::redis::shared;
use crate::support::redis_cluster::RedisCluster;

fn clock() -> ManualClock {
    ManualClock::at("2030-01-01T00:00:00.007Z".parse().unwrap())
}

fn memory(clock: &ManualClock) -> MemoryStore {
    MemoryStore::builder().clock(clock.clone()).build()
}

#[tokio::test]
async fn memory_keeps_its_promises() {
    let clock = clock();
    queue(Arc::new(memory(&clock)), &clock).await;
}

#[tokio::test]
async fn redis_keeps_its_promises() {
    let clock = clock();
    queue(Arc::new(shared().await.store(&clock).await), &clock).await;
}

#[tokio::test]
async fn a_fallback_keeps_the_promises_of_its_primary() {
    let clock = clock();
    let store = Fallback::new(shared().await.store(&clock).await, memory(&clock));
    queue(Arc::new(store), &clock).await;
}

#[tokio::test]
async fn random_histories_on_memory_are_those_of_a_sorted_list() {
    for seed in 0..300 {
        let clock = clock();
        histories(Arc::new(memory(&clock)), &clock, seed, 300).await;
    }
}

#[tokio::test]
async fn random_histories_on_redis_are_those_of_a_sorted_list() {
    // So many, or as many as `KEEP_HISTORIES` says.
    let size = std::env::var("KEEP_HISTORIES").ok();
    let size = size.and_then(|size| size.parse().ok()).unwrap_or(20);
    for seed in 1_000..1_000 + size {
        let clock = clock();
        let store = shared().await.store(&clock).await;
        histories(Arc::new(store), &clock, seed, 300).await;
    }
}

#[tokio::test]
async fn a_cluster_keeps_its_promises() {
    let (cluster, clock) = (RedisCluster::start(3, false).await, clock());
    queue(Arc::new(cluster.store(&clock).await), &clock).await;
}
