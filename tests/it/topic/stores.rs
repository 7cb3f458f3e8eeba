//! The conformance suite on every engine.

use std::sync::Arc;

use tower_keep::backend::fallback::Fallback;
use tower_keep::backend::memory::MemoryStore;
use tower_keep::conformance::topic::topic;
use tower_keep::core::ManualClock;

use crate::support::redis::shared;
use crate::support::redis_cluster::RedisCluster;

fn clock() -> ManualClock {
    ManualClock::at("2030-01-01T00:00:00.007Z".parse().unwrap())
}

#[tokio::test]
async fn memory_keeps_its_promises() {
    let clock = clock();
    let store = MemoryStore::builder().clock(clock.clone()).build();
    topic(Arc::new(store), &clock).await;
}

#[tokio::test]
async fn redis_keeps_its_promises() {
    let clock = clock();
    topic(Arc::new(shared().await.store(&clock).await), &clock).await;
}

#[tokio::test]
async fn a_fallback_keeps_the_promises_of_its_primary() {
    let clock = clock();
    let memory = MemoryStore::builder().clock(clock.clone()).build();
    let store = Fallback::new(shared().await.store(&clock).await, memory);
    topic(Arc::new(store), &clock).await;
}

#[tokio::test]
async fn a_cluster_keeps_its_promises() {
    let (cluster, clock) = (RedisCluster::start(3, false).await, clock());
    topic(Arc::new(cluster.store(&clock).await), &clock).await;
}
