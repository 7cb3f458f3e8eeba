//! The cache on a Redis Cluster: entries spread over the nodes, the stamps of invalidations on one of them.

use std::sync::Arc;

use tower_keep::backend::redis::RedisStore;
use tower_keep::conformance;
use tower_keep::core::ManualClock;
use tower_keep::response_cache::{InvalidateOutcome, ResponseCacheLayer, Target};

use super::origin::{App, Origin, clock, gated, said, secs, until};
use crate::support::RedisCluster;
use crate::support::redis::fresh_prefix;

const SLOTS: u16 = 16_384;

/// Processes on one cluster.
struct Fleet {
    cluster: RedisCluster,
    clock: ManualClock,
    prefix: String,
}

impl Fleet {
    async fn start() -> Self {
        Self {
            cluster: RedisCluster::start(3, false).await,
            clock: clock(),
            prefix: fresh_prefix(),
        }
    }

    async fn store(&self) -> RedisStore {
        let builder = RedisStore::builder(&self.cluster.url()).prefix(&self.prefix);
        // A look-up gets a tenth of it, on a machine that may be busy.
        let builder = builder.timeout(secs(20)).clock(self.clock.clone());
        builder.open().await.unwrap()
    }

    /// A process that believes no copies: what it answers is what the cluster has.
    async fn exact(&self, origin: &Origin) -> (RedisStore, ResponseCacheLayer, App) {
        let store = self.store().await;
        let layer = ResponseCacheLayer::new(store.clone()).local_bytes(0);
        let layer = layer.ttl(secs(60)).tag("all");
        let app = App::new(&layer, origin);
        (store, layer, app)
    }

    fn stamps(&self) -> String {
        format!("{}:response_cache:{{stamps}}:set", self.prefix)
    }

    /// The node that a key lies on.
    async fn node_of(&self, key: &str) -> usize {
        let slot: u16 = redis::cmd("CLUSTER")
            .arg(&["KEYSLOT", key])
            .query_async(&mut self.cluster.nodes[0].raw().await)
            .await
            .unwrap();
        usize::from(slot / (SLOTS / 3)).min(2)
    }
}

fn counted() -> Origin {
    Origin::of(|_, call| said(&[("etag", "\"1\"")], format!("run {call}")))
}

/// Waits until `path` is there for `app`.
async fn stored(app: &App, path: &str) {
    for _ in 0..2_000 {
        let got = app
            .get_with(path, &[("cache-control", "only-if-cached")])
            .await;
        if got.status == 200 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
    panic!("{path} was never stored");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_keeps_the_promises_of_a_response_store() {
    let fleet = Fleet::start().await;
    let store = Arc::new(fleet.store().await);
    conformance::response_cache::response_cache(store, &fleet.clock).await;
}

#[tokio::test]
async fn on_a_cluster_a_shared_hit_takes_two_commands_and_obeys_every_invalidation_at_once() {
    let fleet = Fleet::start().await;
    let origin = counted();
    let (_, one_layer, one) = fleet.exact(&origin).await;
    let (two_store, _, two) = fleet.exact(&origin).await;
    for n in 0..30 {
        let path = format!("/p/{n}");
        one.get(&path).await;
        stored(&two, &path).await;
        assert_eq!(two.get(&path).await.body, format!("run {n}"));
    }
    // Every node knows the scripts by now, and this process its nodes.
    for n in 0..30 {
        let before = two_store.commands();
        assert!(two.get(&format!("/p/{n}")).await.is_hit());
        assert_eq!(two_store.commands() - before, 2);
    }
    assert_eq!(origin.calls(), 30);
    let sizes = fleet.cluster.sizes().await;
    assert!(sizes.iter().all(|size| *size > 5), "{sizes:?}");
    let told = one_layer.handle().invalidate([Target::url("/p/3")]).await;
    assert_eq!(told, InvalidateOutcome::Done);
    assert_eq!(two.get("/p/3").await.body, "run 30");
    assert!(two.get("/p/4").await.is_hit());
    one_layer.handle().invalidate([Target::tag("all")]).await;
    for n in 4..10 {
        assert!(!two.get(&format!("/p/{n}")).await.is_hit());
    }
}

#[tokio::test]
async fn on_a_cluster_lost_stamps_make_every_older_entry_a_miss() {
    let fleet = Fleet::start().await;
    let origin = counted();
    let (_, _, one) = fleet.exact(&origin).await;
    let (_, _, two) = fleet.exact(&origin).await;
    for path in ["/a", "/b", "/c"] {
        one.get(path).await;
        stored(&two, path).await;
    }
    fleet.clock.advance(secs(1));
    let node = &fleet.cluster.nodes[fleet.node_of(&fleet.stamps()).await];
    let gone: u64 = redis::cmd("DEL")
        .arg(fleet.stamps())
        .query_async(&mut node.raw().await)
        .await
        .unwrap();
    assert_eq!(gone, 1);
    for (path, run) in [("/a", "run 3"), ("/b", "run 4"), ("/c", "run 5")] {
        assert_eq!(two.get(path).await.body, run);
        stored(&one, path).await;
        assert_eq!(one.get(path).await.body, run);
    }
}

#[tokio::test]
async fn on_a_cluster_fifty_askers_in_two_processes_make_one_call() {
    let fleet = Fleet::start().await;
    let (origin, gate) =
        gated(|_, call| said(&[("cache-control", "max-age=60")], format!("{call}")));
    let apps = [fleet.exact(&origin).await.2, fleet.exact(&origin).await.2];
    for path in ["/a", "/b", "/c"] {
        let before = origin.calls();
        let mut askers = tokio::task::JoinSet::new();
        for n in 0..50 {
            let app = apps[n % 2].clone();
            askers.spawn(async move { app.get(path).await.body });
        }
        until("it was called", || origin.calls() > before).await;
        gate.add_permits(1);
        let bodies = askers.join_all().await;
        assert!(
            bodies.iter().all(|body| *body == before.to_string()),
            "{bodies:?}"
        );
        assert_eq!(origin.calls(), before + 1);
    }
}

#[tokio::test]
async fn with_the_node_of_the_stamps_away_everything_is_fetched_and_nothing_fails() {
    let mut fleet = Fleet::start().await;
    let origin = counted();
    let (_, layer, app) = fleet.exact(&origin).await;
    for path in ["/a", "/b", "/c"] {
        app.get(path).await;
        stored(&app, path).await;
    }
    let at = fleet.node_of(&fleet.stamps()).await;
    fleet.cluster.nodes[at].kill();
    for (index, path) in ["/a", "/b", "/c"].into_iter().enumerate() {
        let got = app.get(path).await;
        assert_eq!(
            (got.status, got.body.as_str()),
            (200, &*format!("run {}", 3 + index))
        );
        assert_eq!(got.cache_status(), "tower-keep;fwd=bypass;detail=store");
    }
    let told = layer.handle().invalidate([Target::tag("all")]).await;
    assert_eq!(told, InvalidateOutcome::Queued);
}
