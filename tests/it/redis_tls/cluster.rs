//! Clusters and sentinels by TLS: whoever is told of is greeted like the one who told.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc::unbounded_channel;
use tower_keep::backend::redis::{RedisStore, Reply, Script};
use tower_keep::core::{Notice, StoreError};

use super::{patient, trusting, until_it_answers, until_refused_for};
use crate::support::{Authority, RedisCluster, RedisSentinels};

static INCREMENT: Script = Script::new("return redis.call('INCR', KEYS[1])");

fn key(store: &RedisStore, tag: &str) -> String {
    store.key("t").tag([tag]).segment("n").finish()
}

async fn increment(store: &RedisStore, tag: &str) -> Result<i64, StoreError> {
    let call = store.script(&INCREMENT, &[key(store, tag)]);
    call.run(Reply::int).await
}

/// Makes the first call to a node, which has a second for its greeting, and that may not be enough on a busy machine.
async fn first(store: &RedisStore, tag: &str) {
    let asking = async {
        while increment(store, tag).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let asked = tokio::time::timeout(Duration::from_secs(30), asking).await;
    asked.expect("every node answers");
}

#[tokio::test]
async fn every_node_of_a_cluster_is_reached_by_tls_and_a_moved_slot_is_followed() {
    let own = Authority::new();
    let cluster = RedisCluster::start_tls(3, &own).await;
    let one_node = format!("rediss+cluster://{}", cluster.nodes[2].address());
    let store = trusting(&own, &one_node).await;
    let tags: Vec<String> = (0..30).map(|tag| tag.to_string()).collect();
    for tag in &tags {
        first(&store, tag).await;
    }
    let sizes = cluster.sizes().await;
    assert!(sizes.iter().all(|size| *size > 0), "{sizes:?}");
    let (slot, from) = cluster.home(&key(&store, "7")).await;
    let before = increment(&store, "7").await.unwrap();
    cluster.move_slot(slot, from, (from + 1) % 3).await;
    // The node that had it has it no more, and says where it went: nothing is lost, nothing done twice.
    for more in 1..=3 {
        assert_eq!(increment(&store, "7").await.unwrap(), before + more);
    }
}

#[tokio::test]
async fn a_notice_is_heard_on_any_node_of_a_cluster_and_a_stranger_hears_none() {
    let (own, other) = (Authority::new(), Authority::new());
    let cluster = RedisCluster::start_tls(3, &own).await;
    let store = trusting(&own, &cluster.url()).await;
    until_it_answers(&store).await;
    let (sender, mut heard) = unbounded_channel();
    let callback = Arc::new(move |notice| drop(sender.send(notice)));
    let _place = store.subscribe("news", callback).await.unwrap();
    let mut next = async || {
        let notice = tokio::time::timeout(Duration::from_secs(30), heard.recv()).await;
        notice.unwrap().unwrap()
    };
    assert_eq!(next().await, Notice::Restored);
    let news = Bytes::from_static(b"by whichever node");
    store.publish("news", &news).await.unwrap();
    assert_eq!(next().await, Notice::Payload(news));
    let stranger = patient(&cluster.url()).root_certificates(other.root());
    let stranger = stranger.open().await.unwrap();
    until_refused_for(&stranger, &["UnknownIssuer"]).await;
}

#[tokio::test]
async fn sentinels_and_the_primary_that_they_name_are_reached_by_tls_also_after_a_failover() {
    let own = Authority::new();
    let mut set = RedisSentinels::start_tls(&own).await;
    let store = trusting(&own, &set.url()).await;
    first(&store, "x").await;
    assert_eq!(increment(&store, "x").await.unwrap(), 2);
    set.servers[0].kill();
    first(&store, "x").await;
    let role: Vec<redis::Value> = redis::cmd("ROLE")
        .query_async(&mut set.servers[1].raw().await)
        .await
        .unwrap();
    assert_eq!(role[0], redis::Value::BulkString(b"master".to_vec()));
}
