//! Random histories of every algorithm on every store, held against an independent oracle.

use tower_keep::conformance::rate_limit::{ALGORITHMS, histories};

use super::*;

/// How many histories of each algorithm: `usual`, unless `KEEP_HISTORIES` says more.
fn wanted(usual: u64) -> u64 {
    std::env::var("KEEP_HISTORIES").map_or(usual, |number| number.parse().unwrap())
}

async fn on_memory(algorithm: &str) {
    let clock = clock();
    let (store, wanted) = (memory(&clock), wanted(20_000));
    let steps = histories(&store, &clock, algorithm, 0..wanted).await;
    assert!(steps as u64 > 5 * wanted, "{steps}");
}

#[tokio::test]
async fn the_exact_log_agrees_with_the_oracle() {
    on_memory("log").await;
}

#[tokio::test]
async fn sub_buckets_agree_with_the_oracle() {
    on_memory("buckets").await;
}

#[tokio::test]
async fn gcra_agrees_with_the_oracle() {
    on_memory("gcra").await;
}

#[tokio::test]
async fn fixed_windows_agree_with_the_oracle() {
    on_memory("fixed").await;
}

#[tokio::test]
async fn calendar_months_agree_with_the_oracle() {
    on_memory("month").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_agrees_with_the_oracle_in_every_algorithm() {
    const HANDLES: u64 = 10;
    let each = wanted(400) / HANDLES;
    let server = crate::support::redis::shared().await;
    let mut running = tokio::task::JoinSet::new();
    for handle in 0..HANDLES {
        let clock = clock();
        let store = server.store(&clock).await;
        running.spawn(async move {
            let seeds = handle * each..(handle + 1) * each;
            for algorithm in ALGORITHMS {
                histories(&store, &clock, algorithm, seeds.clone()).await;
            }
        });
    }
    running.join_all().await;
}
