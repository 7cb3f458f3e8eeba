//! The conformance suites on a Redis Cluster: the same promises, and no step that spans nodes.

use std::sync::Arc;

use tower_keep::conformance;
use tower_keep::core::{ManualClock, Timestamp};

use crate::support::RedisCluster;

fn clock() -> ManualClock {
    ManualClock::at("2030-01-01T00:00:00.007Z".parse::<Timestamp>().unwrap())
}

async fn spread(cluster: &RedisCluster) {
    let sizes = cluster.sizes().await;
    assert!(sizes.iter().all(|size| *size > 0), "{sizes:?}");
}

#[tokio::test]
async fn idempotency() {
    let (cluster, clock) = (RedisCluster::start(3, false).await, clock());
    let store = Arc::new(cluster.store(&clock).await);
    conformance::idempotency::idempotency(store, &clock).await;
    spread(&cluster).await;
}
