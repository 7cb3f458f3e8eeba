//! The conformance suite on every engine.

use std::sync::Arc;

use tower_keep::MILLIS;
use tower_keep::backend::fallback::Fallback;
use tower_keep::backend::memory::MemoryStore;
use tower_keep::backend::redis::RedisStore;
use tower_keep::conformance::lock::{lock, winners_of};
use tower_keep::core::{IntoKey, ManualClock};
use tower_keep::data::lock::LockStore;
use tower_keep::data::lock::store::{Asking, LockKey, Owner};

use crate::support::redis::{RedisServer, fresh_prefix, shared};
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
    lock(Arc::new(memory(&clock)), &clock).await;
}

#[tokio::test]
async fn redis_keeps_its_promises() {
    let clock = clock();
    lock(Arc::new(shared().await.store(&clock).await), &clock).await;
}

#[tokio::test]
async fn a_fallback_asks_its_primary_only() {
    let clock = clock();
    let second = memory(&clock);
    let store = Fallback::new(shared().await.store(&clock).await, second.clone());
    lock(Arc::new(store.clone()), &clock).await;
    let key = LockKey {
        name: Arc::from("suite"),
        key: "beside".into_key(),
    };
    let lease = std::time::Duration::from_secs(1);
    let owner = Owner([1; 16]);
    store
        .acquire(&key, owner, lease, Asking::Once)
        .await
        .unwrap();
    assert_eq!(second.inspect(&key).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_hundred_owners_one_wins_also_over_two_handles() {
    let (server, prefix) = (shared().await, fresh_prefix());
    let mut handles: Vec<Arc<dyn LockStore>> = Vec::new();
    for _ in 0..2 {
        handles.push(Arc::new(server.store_with(&prefix).await));
    }
    assert_eq!(winners_of(100, &handles, "contended").await, 1);
}

#[tokio::test]
async fn a_cluster_keeps_its_promises() {
    let (cluster, clock) = (RedisCluster::start(3, false).await, clock());
    lock(Arc::new(cluster.store(&clock).await), &clock).await;
}

#[tokio::test]
async fn fences_rise_also_over_a_server_that_forgot_everything_and_one_that_began_anew() {
    use tower_keep::data::lock::{Lock, LockErrorKind};
    let mut server = RedisServer::start().await;
    let store = RedisStore::connect(&server.url()).await.unwrap();
    let lock = Lock::new(store, "payment");
    let fence = async || {
        let guard = loop {
            match lock.try_acquire("k").await {
                Ok(guard) => break guard,
                Err(error) => assert_ne!(error.kind(), LockErrorKind::Busy),
            }
            tokio::time::sleep(MILLIS).await;
        };
        let fence = guard.fence();
        guard.release().await.unwrap();
        fence
    };
    let mut fences = vec![fence().await, fence().await];
    let forget: Result<(), _> = redis::cmd("FLUSHALL")
        .query_async(&mut server.raw().await)
        .await;
    forget.unwrap();
    fences.push(fence().await);
    server.kill();
    server.restart();
    fences.push(fence().await);
    assert!(fences.is_sorted_by(|one, next| one < next), "{fences:?}");
}
