//! Limits on a Redis Cluster of three nodes: one command for each decision, wherever its keys lie.

use tower_keep::backend::redis::RedisStore;
use tower_keep::conformance;
use tower_keep::conformance::rate_limit::{ALGORITHMS, histories};
use tower_keep::rate_limit::store::{Bucket, Charge, Mode, Scope, Source, Tag};
use tower_keep::rate_limit::{Attempt, PartitionKey, RateLimitErrorKind, RateLimiter};

use super::*;
use crate::support::RedisCluster;

fn charge<'a>(scope: &'a Scope, key: &'a PartitionKey) -> Charge<'a> {
    Charge {
        bucket: Bucket { scope, key },
        limit: scope.quota().capacity(),
        cost: 1,
        mode: Mode::Enforced,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_keeps_the_promises_and_agrees_with_the_oracle() {
    let (cluster, clock) = (RedisCluster::start(3, false).await, clock());
    let store = cluster.store(&clock).await;
    conformance::rate_limit::rate_limit(Arc::new(store.clone()), &clock).await;
    for algorithm in ALGORITHMS {
        histories(&store, &clock, algorithm, 0..40).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mixed_group_lies_on_one_node_and_a_group_of_one_partition_on_all() {
    let (cluster, clock) = (RedisCluster::start(3, false).await, clock());
    let store = cluster.store(&clock).await;
    let mixed = App::new(payments(store.clone()).timeout(PATIENCE));
    for n in 0..5 {
        let before = store.commands();
        let answer = mixed.get("anna", "192.0.2.1").await;
        assert_eq!(
            answer.field("ratelimit").unwrap().matches(";r=").count(),
            4,
            "request {n}"
        );
        // The first one teaches the node the script.
        let commands = store.commands() - before;
        assert_eq!(
            commands,
            1 + u64::from(n == 0),
            "one step for four policies"
        );
    }
    let refused = mixed.get("anna", "192.0.2.1").await;
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
    let untouched = mixed.get("bert", "192.0.2.1").await;
    assert!(
        untouched
            .field("ratelimit")
            .unwrap()
            .contains("\"ip\";r=14")
    );
    let used = cluster.sizes().await;
    assert_eq!(used.iter().filter(|size| **size > 0).count(), 1, "{used:?}");

    let by_user = RateLimitLayer::new(store)
        .group("users")
        .timeout(PATIENCE)
        .policy(Policy::new(
            "user",
            Quota::per_minute(5),
            Partition::principal(),
        ))
        .policy(Policy::new(
            "day",
            Quota::per_day(20),
            Partition::principal(),
        ));
    let app = App::new(by_user);
    for user in 0..60 {
        let answer = app.get(&format!("user-{user}"), "192.0.2.1").await;
        assert!(answer.field("ratelimit").unwrap().contains("\"day\";r=19"));
    }
    let sizes = cluster.sizes().await;
    assert_eq!(sizes.iter().sum::<u64>(), used.iter().sum::<u64>() + 120);
    assert!(sizes.iter().all(|size| *size >= 20), "{sizes:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_on_several_nodes_are_reset_by_one_call() {
    let (cluster, clock) = (RedisCluster::start(3, false).await, clock());
    let store = cluster.store(&clock).await;
    let scopes = ["user", "day"].map(|policy| Scope::new("g", Tag::Key, policy, Quota::per_day(5)));
    let keys: Vec<_> = (0..30)
        .map(|n| PartitionKey::from(format!("user-{n}")))
        .collect();
    let mut buckets = Vec::new();
    for key in &keys {
        let charges = scopes.each_ref().map(|scope| charge(scope, key));
        assert!(store.check_and_record(&charges).await.unwrap().admitted);
        store.block(&charges[0].bucket, MINUTE).await.unwrap();
        buckets.extend(charges.map(|charge| charge.bucket));
    }
    let kept = cluster.sizes().await;
    assert!(kept.iter().all(|size| *size > 0), "{kept:?}");
    for key in &keys {
        // Teaches all nodes the script.
        let scope = Scope::new("h", Tag::Key, "user", Quota::per_day(5));
        let bucket = Bucket { scope: &scope, key };
        store.reset(&[bucket]).await.unwrap();
    }
    let before = store.commands();
    store.reset(&buckets).await.unwrap();
    assert_eq!(store.commands() - before, 30, "one command for each user");
    assert_eq!(cluster.sizes().await, [0, 0, 0]);
    store.reset(&[]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_on_one_node_is_heard_by_a_process_that_knew_the_key_as_full() {
    let (cluster, clock) = (RedisCluster::start(3, false).await, clock());
    let handle = || {
        let builder = RedisStore::builder(&cluster.url()).timeout(PATIENCE);
        builder.clock(clock.clone()).open()
    };
    let (store, other) = (handle().await.unwrap(), handle().await.unwrap());
    let scope = Scope::new("g", Tag::Key, "user", Quota::per_day(1));
    let users: Vec<_> = (0..6)
        .map(|n| PartitionKey::from(format!("user-{n}")))
        .collect();
    for user in &users {
        let full = [charge(&scope, user)];
        let started = std::time::Instant::now();
        while store.check_and_record(&full).await.unwrap().source != Source::DenyCache {
            assert!(started.elapsed() < 6 * PATIENCE, "nobody listens");
            tokio::task::yield_now().await;
        }
        other.reset(&[full[0].bucket]).await.unwrap();
        while !store.check_and_record(&full).await.unwrap().admitted {
            assert!(started.elapsed() < 6 * PATIENCE, "the notice never came");
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn one_attempt_by_several_keys_of_one_partition_is_refused_wherever_it_counts() {
    let limiter = RateLimiter::new(MemoryStore::new())
        .policy(Policy::new(
            "sender",
            Quota::per_day(5),
            Partition::principal(),
        ))
        .policy(Policy::new(
            "recipient",
            Quota::per_day(5),
            Partition::principal(),
        ));
    let attempt = Attempt::new().on("sender", "anna").on("recipient", "bert");
    let error = limiter.check_and_record(attempt).await.unwrap_err();
    assert_eq!(error.kind(), RateLimitErrorKind::KeysDiffer);
    assert_eq!(limiter.peek("sender", "anna").await.unwrap().attempts, 0);

    let recipient = Partition::custom("recipient", |_| None);
    let limiter = RateLimiter::new(MemoryStore::new())
        .policy(Policy::new(
            "sender",
            Quota::per_day(5),
            Partition::principal(),
        ))
        .policy(Policy::new("recipient", Quota::per_day(5), recipient));
    let attempt = Attempt::new().on("sender", "anna").on("recipient", "bert");
    assert!(
        limiter
            .check_and_record(attempt)
            .await
            .unwrap()
            .is_allowed()
    );
    assert_eq!(limiter.peek("recipient", "bert").await.unwrap().attempts, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_moves_under_load_and_no_more_than_the_limit_pass() {
    const LIMIT: u32 = 600;
    let cluster = Arc::new(RedisCluster::start(3, false).await);
    let store = cluster.store(&clock()).await;
    let quotas = [Quota::per_day(LIMIT), Quota::per_day(2_000).gcra(LIMIT)];
    let scopes = quotas.map(|quota| Scope::new("moving", Tag::Group, "p", quota));
    let key = PartitionKey::from(());
    let charges = scopes.each_ref().map(|scope| charge(scope, &key));
    assert!(store.check_and_record(&charges).await.unwrap().admitted);
    let (mut admitted, mut unknown) = (1, 0);
    let (from, slot) = place_of(&cluster).await;
    let to = (from + 1) % 3;
    let moving = tokio::spawn({
        let cluster = Arc::clone(&cluster);
        async move { cluster.move_slot(slot, from, to).await }
    });
    while !moving.is_finished() || admitted + unknown < 50 {
        match store.check_and_record(&charges).await {
            Ok(verdict) => admitted += u32::from(verdict.admitted),
            Err(error) if error.is_unknown() => unknown += 1,
            Err(_) => {}
        }
        tokio::task::yield_now().await;
    }
    moving.await.unwrap();
    let used = store.check(&charges).await.unwrap().states[0].used;
    assert!(
        (admitted..=admitted + unknown).contains(&used),
        "{used} of {admitted} and {unknown}"
    );
    while store.check_and_record(&charges).await.unwrap().admitted {
        admitted += 1;
    }
    assert!((LIMIT - unknown..=LIMIT).contains(&admitted), "{admitted}");
    assert!(
        cluster.sizes().await[to] >= 2,
        "they live on the other node now"
    );
}

/// The node that holds the only key there is, and that key's slot.
async fn place_of(cluster: &RedisCluster) -> (usize, u16) {
    let sizes = cluster.sizes().await;
    let node = sizes.iter().position(|size| *size > 0).unwrap();
    let mut raw = cluster.nodes[node].raw().await;
    let key: String = redis::cmd("RANDOMKEY").query_async(&mut raw).await.unwrap();
    let slot = redis::cmd("CLUSTER")
        .arg("KEYSLOT")
        .arg(key)
        .query_async(&mut raw)
        .await;
    (node, slot.unwrap())
}
