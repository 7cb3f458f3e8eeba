//! Random histories of every algorithm on every store, held against an independent oracle.

use std::ops::Range;

use tower_keep::conformance::rate_limit::{ALGORITHMS, histories};

use super::*;

/// Which histories of each algorithm: `usual`, unless `KEEP_HISTORIES` says how many and `KEEP_FIRST_HISTORY` from which on.
fn wanted(usual: u64) -> Range<u64> {
    let number = |name: &str| Some(std::env::var(name).ok()?.parse::<u64>().unwrap());
    let first = number("KEEP_FIRST_HISTORY").unwrap_or(0);
    first..first + number("KEEP_HISTORIES").unwrap_or(usual)
}

async fn on_memory(algorithm: &str) {
    let clock = clock();
    let (store, wanted) = (memory(&clock), wanted(20_000));
    let steps = histories(&store, &clock, algorithm, wanted.clone()).await;
    assert!(steps as u64 >= 3 * (wanted.end - wanted.start), "{steps}");
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
    let wanted = wanted(400);
    let each = (wanted.end - wanted.start).div_ceil(HANDLES);
    let server = crate::support::redis::shared().await;
    let mut running = tokio::task::JoinSet::new();
    for handle in 0..HANDLES {
        let clock = clock();
        let (store, wanted) = (server.store(&clock).await, wanted.clone());
        running.spawn(async move {
            let first = wanted.start + handle * each;
            let seeds = first..wanted.end.min(first + each);
            for algorithm in ALGORITHMS {
                histories(&store, &clock, algorithm, seeds.clone()).await;
            }
        });
    }
    running.join_all().await;
}
