//! The channel of invalidations is cut while everything else works: nothing stale outlives a second, nor the reconnect.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use tokio::time::Instant;
use tower_keep::backend::redis::RedisStore;
use tower_keep::response_cache::{InvalidateOutcome, ResponseCacheLayer, Target};

use super::origin::{App, Origin, said, secs};
use crate::support::RedisServer;

async fn send(raw: &mut MultiplexedConnection, words: &[&str]) {
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]);
    let _: redis::Value = command.query_async(raw).await.unwrap();
}

async fn listeners(raw: &mut MultiplexedConnection) -> usize {
    let mut command = redis::cmd("CLIENT");
    command.arg(&["LIST", "TYPE", "PUBSUB"]);
    let list: String = command.query_async(raw).await.unwrap();
    list.lines().count()
}

async fn until_listeners(raw: &mut MultiplexedConnection, wanted: usize) {
    let started = Instant::now();
    while listeners(raw).await != wanted {
        assert!(started.elapsed() < secs(60), "{wanted} listeners");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn while_its_channel_is_cut_a_process_obeys_within_a_second_and_nothing_stale_is_left_after_it()
 {
    let server = RedisServer::start().await;
    let mut raw = server.raw().await;
    let open = async || {
        let builder = RedisStore::builder(&server.url()).prefix("cut");
        builder.timeout(secs(20)).open().await.unwrap()
    };
    let origin = Origin::of(|_, call| said(&[("cache-control", "max-age=3600")], call.to_string()));
    let one = App::new(&ResponseCacheLayer::new(open().await), &origin);
    let two = ResponseCacheLayer::new(open().await);
    let read = async || one.get("/a").await.body.parse::<usize>().unwrap();
    read().await;
    until_listeners(&mut raw, 1).await;
    // Commands go on; listening is refused.
    send(&mut raw, &["ACL", "SETUSER", "default", "-subscribe"]).await;
    send(&mut raw, &["CLIENT", "KILL", "TYPE", "PUBSUB"]).await;
    let cut = Instant::now();
    let (mut hits, mut changes) = (0, 0);
    while cut.elapsed() < secs(5) {
        let before = origin.calls();
        let told = two.handle().invalidate([Target::url("/a")]).await;
        assert_eq!(told, InvalidateOutcome::Done);
        changes += 1;
        let invalidated = Instant::now();
        loop {
            let asked = Instant::now();
            let version = read().await;
            if version >= before {
                break;
            }
            hits += 1;
            // A read that begins a second after it is told to never gets the old.
            assert!(asked - invalidated < secs(1), "{:?}", asked - invalidated);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    assert!(
        hits > 0 && changes > 1,
        "copies answered meanwhile: {hits}, {changes}"
    );
    assert_eq!(listeners(&mut raw).await, 0, "it stayed cut");
    let before = origin.calls();
    two.handle().invalidate([Target::url("/a")]).await;
    let invalidated = Instant::now();
    send(&mut raw, &["ACL", "SETUSER", "default", "+subscribe"]).await;
    until_listeners(&mut raw, 1).await;
    tokio::time::sleep(secs(1).saturating_sub(invalidated.elapsed())).await;
    for _ in 0..50 {
        assert!(
            read().await >= before,
            "nothing stale survives the reconnect"
        );
    }
}
