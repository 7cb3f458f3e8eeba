//! Locks in SQL: the suite on each engine, and two pools.

use std::sync::Arc;

use tower_keep::backend::sql::SqlStore;
use tower_keep::conformance::lock::{lock, winners_of};
use tower_keep::core::ManualClock;
use tower_keep::data::lock::{Lock, LockStore};
use tower_keep::{MINUTE, SECOND};

use crate::support::postgres::shared;

async fn suite(url: &str) {
    let clock = ManualClock::at("2030-01-01T00:00:00.007Z".parse().unwrap());
    let store = SqlStore::builder(url).clock(clock.clone()).open().await;
    lock(Arc::new(store.unwrap()), &clock).await;
}

#[tokio::test]
async fn sqlite_keeps_its_promises() {
    suite("sqlite::memory:").await;
}

#[tokio::test]
async fn postgres_keeps_its_promises() {
    suite(&shared().await.database().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_fifty_owners_on_two_pools_one_wins_and_a_waiter_gets_it_after_the_release() {
    let folder = tempfile::tempdir().unwrap();
    let file = format!("sqlite:{}", folder.path().join("keep.db").display());
    for url in [file, shared().await.database().await] {
        let mut pools: Vec<Arc<dyn LockStore>> = Vec::new();
        for _ in 0..2 {
            pools.push(Arc::new(SqlStore::connect(&url).await.unwrap()));
        }
        assert_eq!(winners_of(50, &pools, "contended").await, 1, "{url}");
        let [here, there] = [0, 1].map(|pool| Lock::new(Arc::clone(&pools[pool]), "l"));
        let guard = here.try_acquire("k").await.unwrap();
        let fence = guard.fence();
        let waiter =
            tokio::spawn(
                async move { there.acquire("k", MINUTE).await.map(|guard| guard.fence()) },
            );
        tokio::time::sleep(SECOND / 10).await;
        let released = std::time::Instant::now();
        guard.release().await.unwrap();
        assert!(waiter.await.unwrap().unwrap() > fence);
        // It looks every 250 ms at most; the lease would last 30 s.
        assert!(released.elapsed() < 10 * SECOND);
    }
}
