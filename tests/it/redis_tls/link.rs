//! A link by TLS is one like any other: the stores' promises, notices, an outage, both versions of the protocol.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc::unbounded_channel;
use tower_keep::backend::redis::{Reply, Script};
use tower_keep::conformance;
use tower_keep::core::{ManualClock, Notice, Timestamp};

use super::{patient, trusting, until_it_answers};
use crate::support::redis::fresh_prefix;
use crate::support::{Authority, RedisServer};

static ECHO: Script = Script::new("return ARGV[2]");

#[tokio::test]
async fn limits_sessions_and_topics_keep_their_promises() {
    let own = Authority::new();
    let server = RedisServer::start_tls(&own, &["localhost"], &[]).await;
    let clock = ManualClock::at("2030-01-01T00:00:00.007Z".parse::<Timestamp>().unwrap());
    let open = async || {
        let builder = patient(&server.tls_url("localhost")).root_certificates(own.root());
        let builder = builder.prefix(&fresh_prefix()).clock(clock.clone());
        let store = builder.open().await.unwrap();
        until_it_answers(&store).await;
        Arc::new(store)
    };
    conformance::rate_limit::rate_limit(open().await, &clock).await;
    conformance::session::session(open().await, &clock).await;
    conformance::topic::topic(open().await, &clock).await;
}

#[tokio::test]
async fn a_server_that_is_killed_is_found_again_by_calls_and_by_listeners() {
    let own = Authority::new();
    let mut server = RedisServer::start_tls(&own, &["127.0.0.1"], &[]).await;
    let store = trusting(&own, &server.tls_url("127.0.0.1")).await;
    until_it_answers(&store).await;
    let (sender, mut heard) = unbounded_channel();
    let callback = Arc::new(move |notice| drop(sender.send(notice)));
    let _place = store.subscribe("news", callback).await.unwrap();
    let mut next = async || {
        let notice = tokio::time::timeout(Duration::from_secs(30), heard.recv()).await;
        notice.unwrap().unwrap()
    };
    assert_eq!(next().await, Notice::Restored);
    server.kill();
    assert_eq!(next().await, Notice::Lost);
    assert!(store.ping().await.is_err());
    server.restart();
    until_it_answers(&store).await;
    assert_eq!(next().await, Notice::Restored);
    let news = Bytes::from_static(b"it is back");
    store.publish("news", &news).await.unwrap();
    assert_eq!(next().await, Notice::Payload(news));
}

#[tokio::test]
async fn large_values_pass_both_ways_by_either_version() {
    let own = Authority::new();
    for version in ["TLSv1.2", "TLSv1.3"] {
        let protocols = ["--tls-protocols", version];
        let server = RedisServer::start_tls(&own, &["127.0.0.1"], &protocols).await;
        let store = trusting(&own, &server.tls_url("127.0.0.1")).await;
        until_it_answers(&store).await;
        // Many records of TLS, and more than the buffers of either end.
        let large: Vec<u8> = (0..4_000_000_u32).map(|n| (n % 251) as u8).collect();
        let calls = (0..3).map(|_| {
            let call = store.script(&ECHO, &["k"]).arg(&large);
            call.run(Reply::bytes)
        });
        for back in futures_util::future::join_all(calls).await {
            assert!(back.unwrap() == large, "{version}");
        }
    }
}
