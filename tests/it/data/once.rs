//! One-time values: the suite on every engine, tokens, two processes, cut links.

use std::sync::Arc;

use tower_keep::backend::fallback::Fallback;
use tower_keep::backend::health::StoreHealth;
use tower_keep::backend::memory::MemoryStore;
use tower_keep::backend::redis::RedisStore;
use tower_keep::backend::sql::SqlStore;
use tower_keep::conformance::once::{once, takers_of};
use tower_keep::core::{ManualClock, Principal};
use tower_keep::data::DataErrorKind;
use tower_keep::data::once::{Expect, Once, OnceStore, Progress, PutOutcome, SaveOutcome};
use tower_keep::ttl::{self, Ttl};

use crate::support::Proxy;
use crate::support::postgres;
use crate::support::redis::{RedisServer, fresh_prefix, shared};
use crate::support::redis_cluster::RedisCluster;

fn clock() -> ManualClock {
    ManualClock::at("2030-01-01T00:00:00.007Z".parse().unwrap())
}

#[tokio::test]
async fn memory_keeps_its_promises() {
    let clock = clock();
    let store = MemoryStore::builder().clock(clock.clone()).build();
    once(Arc::new(store), &clock).await;
}

#[tokio::test]
async fn redis_keeps_its_promises_also_behind_a_fallback() {
    let clock = clock();
    let second = MemoryStore::builder().clock(clock.clone()).build();
    let store = Fallback::new(shared().await.store(&clock).await, second);
    once(Arc::new(store), &clock).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_thousand_takes_over_two_handles_one_succeeds() {
    let (server, prefix) = (shared().await, fresh_prefix());
    let mut handles: Vec<Arc<dyn OnceStore>> = Vec::new();
    for _ in 0..2 {
        handles.push(Arc::new(server.store_with(&prefix).await));
    }
    assert_eq!(takers_of(1_000, &handles, "contended").await, 1);
    let memory: [Arc<dyn OnceStore>; 1] = [Arc::new(MemoryStore::new())];
    assert_eq!(takers_of(1_000, &memory, "contended").await, 1);
}

async fn on_sql(url: &str) {
    let clock = clock();
    let store = SqlStore::builder(url).clock(clock.clone()).open().await;
    once(Arc::new(store.unwrap()), &clock).await;
}

#[tokio::test]
async fn sqlite_keeps_its_promises() {
    on_sql("sqlite::memory:").await;
}

#[tokio::test]
async fn postgres_keeps_its_promises() {
    on_sql(&postgres::shared().await.database().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_takes_over_two_pools_one_succeeds_and_of_many_saves_each_version_is_one() {
    let folder = tempfile::tempdir().unwrap();
    let file = format!("sqlite:{}", folder.path().join("keep.db").display());
    for url in [file, postgres::shared().await.database().await] {
        let mut pools: Vec<Arc<dyn OnceStore>> = Vec::new();
        for _ in 0..2 {
            pools.push(Arc::new(SqlStore::connect(&url).await.unwrap()));
        }
        assert_eq!(takers_of(40, &pools, "contended").await, 1, "{url}");
        assert_eq!(savers_of(20, &pools).await, 20, "{url}");
    }
}

/// Saves with the version that was read, again after each conflict, from both stores at once; returns the last version.
async fn savers_of(parallel: usize, stores: &[Arc<dyn OnceStore>]) -> u64 {
    let mut calls = tokio::task::JoinSet::new();
    for index in 0..parallel {
        let store = Arc::clone(&stores[index % stores.len()]);
        let forms: Progress<usize> = Progress::new(store, "form", Ttl::secs(60));
        calls.spawn(async move {
            let mut expect = Expect::Absent;
            loop {
                match forms.save("k", &index, expect).await.unwrap() {
                    SaveOutcome::Saved { version } => return version,
                    SaveOutcome::Conflict { version: 0 } => expect = Expect::Absent,
                    SaveOutcome::Conflict { version } => expect = Expect::Version(version),
                }
            }
        });
    }
    let mut seen = std::collections::BTreeSet::new();
    while let Some(version) = calls.join_next().await {
        assert!(seen.insert(version.unwrap()), "a version was given twice");
    }
    seen.into_iter().max().unwrap()
}

#[tokio::test]
async fn what_has_ended_leaves_the_table_by_itself() {
    let clock = clock();
    let store = SqlStore::builder("sqlite::memory:").clock(clock.clone());
    let store = store.open().await.unwrap();
    let states: Once<u8> = Once::new(store.clone(), "oauth", Ttl::secs(1));
    for _ in 0..20 {
        states.issue(&1).await.unwrap();
    }
    clock.advance(tower_keep::SECOND);
    for _ in 0..6 {
        states.issue(&2).await.unwrap();
    }
    let pool = store.pool::<sqlx::Sqlite>().unwrap();
    let rows = async || -> i64 {
        let rows = sqlx::query_scalar("SELECT count(*) FROM keep_once").fetch_one(pool);
        rows.await.unwrap()
    };
    assert_eq!(rows().await, 6);
    // Also where everybody begins a form and nobody goes on.
    clock.advance(tower_keep::SECOND);
    let forms: Progress<u8> = Progress::new(store.clone(), "form", Ttl::secs(1));
    for user in 0..6_u8 {
        let begun = forms.save(user, &1, Expect::Absent).await.unwrap();
        assert_eq!(begun, SaveOutcome::Saved { version: 1 });
    }
    assert_eq!(rows().await, 6);
}

#[tokio::test]
async fn a_cluster_keeps_its_promises_and_values_spread_over_its_nodes() {
    let (cluster, clock) = (RedisCluster::start(3, false).await, clock());
    let store = cluster.store(&clock).await;
    once(Arc::new(store.clone()), &clock).await;
    let before: Vec<u64> = cluster.sizes().await;
    let states: Once<u8> = Once::new(store, "oauth", ttl::OAUTH_STATE);
    for _ in 0..64 {
        states.issue(&1).await.unwrap();
    }
    let after = cluster.sizes().await;
    assert!(
        before.iter().zip(&after).all(|(old, new)| new > old),
        "{after:?}"
    );
}

#[tokio::test]
async fn a_foreign_attempt_finds_nothing_and_burns_nothing() {
    let states: Once<String> = Once::new(MemoryStore::new(), "oauth", ttl::OAUTH_STATE);
    let (mine, other) = (Principal::new("u1"), Principal::new("u2"));
    let token = states.owned_by(&mine).issue(&"x".to_owned()).await.unwrap();
    assert_eq!(states.owned_by(&other).take(&token).await.unwrap(), None);
    assert_eq!(states.take(&token).await.unwrap(), None);
    let taken = states.owned_by(&mine).take(&token).await.unwrap().unwrap();
    assert_eq!(taken.value, "x");
    assert_eq!(states.owned_by(&mine).take(&token).await.unwrap(), None);
}

#[tokio::test]
async fn weak_tokens_and_large_values_are_refused() {
    let states: Once<String> = Once::new(MemoryStore::new(), "verification", ttl::VERIFICATION);
    let weak = states.put("123456", &String::new()).await.unwrap_err();
    assert_eq!(weak.kind(), DataErrorKind::WeakToken);
    assert_eq!(states.take("123456").await.unwrap(), None);
    // With its quotes.
    let of = |bytes: usize| "x".repeat(bytes - 2);
    let large = states.put("0123456789abcdef", &of(65_537)).await;
    let limit = DataErrorKind::TooLarge { limit: 65_536 };
    assert_eq!(large.unwrap_err().kind(), limit);
    states.put("0123456789abcdef", &of(65_536)).await.unwrap();
    let token = states.issue(&"v".to_owned()).await.unwrap();
    assert_eq!(token.expose().len(), 43);
    assert!(!format!("{token:?}").contains(token.expose()));
    let again = states.put(&token, &"w".to_owned()).await.unwrap();
    assert_eq!(again, PutOutcome::Exists);
}

#[tokio::test]
async fn what_others_wrote_under_a_token_is_no_value_and_no_error() {
    let (server, prefix) = (shared().await, fresh_prefix());
    let store = server.store_with(&prefix).await;
    let states: Once<u8> = Once::new(store.clone(), "oauth", ttl::OAUTH_STATE);
    let tabs: Progress<u8> = Progress::new(store.clone(), "form", ttl::OAUTH_STATE);
    let token = states.issue(&7).await.unwrap();
    tabs.save("u1", &7, Expect::Any).await.unwrap();
    let mut raw = server.raw().await;
    let listed = redis::cmd("KEYS").arg(format!("{prefix}:*")).to_owned();
    let keys: Vec<String> = listed.query_async(&mut raw).await.unwrap();
    assert_eq!(keys.len(), 2);
    for foreign in ["", "x", "1 2 3", "1 2 3 x ", "-1 2 3 4 5"] {
        let mut forge = async || {
            for key in &keys {
                let set = redis::cmd("SET").arg(key).arg(foreign).to_owned();
                let _: () = set.query_async(&mut raw).await.unwrap();
            }
        };
        forge().await;
        assert_eq!(states.peek(&token).await.unwrap(), None, "{foreign}");
        assert_eq!(states.take(&token).await.unwrap(), None, "{foreign}");
        assert_eq!(states.put(&token, &8).await.unwrap(), PutOutcome::Stored);
        assert_eq!(states.take(&token).await.unwrap().unwrap().value, 8);
        assert!(tabs.load("u1").await.unwrap().is_none());
        let saved = tabs.save("u1", &8, Expect::Absent).await.unwrap();
        assert_eq!(saved, SaveOutcome::Saved { version: 1 });
        forge().await;
        assert!(!tabs.remove("u1").await.unwrap(), "{foreign}");
        assert!(tabs.load("u1").await.unwrap().is_none());
    }
}

#[tokio::test]
async fn no_token_is_found_in_the_store() {
    let (server, prefix) = (shared().await, fresh_prefix());
    let states: Once<u8> = Once::new(server.store_with(&prefix).await, "oauth", ttl::OAUTH_STATE);
    let token = states.issue(&7).await.unwrap();
    let mut raw = server.raw().await;
    let keys: Vec<String> = redis::cmd("KEYS")
        .arg(format!("{prefix}:*"))
        .query_async(&mut raw)
        .await
        .unwrap();
    assert_eq!(keys.len(), 1);
    assert!(!keys[0].contains(token.expose()));
}

#[tokio::test]
async fn a_lost_reply_burns_the_token_and_never_gives_it_twice() {
    let server = RedisServer::start().await;
    let proxy = Proxy::before(server.address()).await;
    let store = RedisStore::connect(&format!("redis://{}/", proxy.address())).await;
    let states: Once<u8> = Once::new(store.unwrap(), "oauth", ttl::OAUTH_STATE);
    let token = states.issue(&7).await.unwrap();
    assert!(states.peek(&token).await.unwrap().is_some());
    proxy.cut_at_next_reply();
    // The handle's own answer to a script that it does not know yet may have been the reply that was cut.
    assert!(states.take(&token).await.is_err());
    let second = states.take(&token).await.unwrap();
    let third = states.take(&token).await.unwrap();
    assert!(second.is_none() || third.is_none());
}

#[tokio::test]
async fn a_reply_cut_at_any_byte_burns_the_token_and_never_gives_it_twice() {
    let server = RedisServer::start().await;
    let proxy = Proxy::before(server.address()).await;
    let store = RedisStore::connect(&format!("redis://{}/", proxy.address())).await;
    let states: Once<u8> = Once::new(store.unwrap(), "oauth", ttl::OAUTH_STATE);
    // The server knows the scripts from now on.
    let token = states.issue(&7).await.unwrap();
    assert!(states.take(&token).await.unwrap().is_some());
    let mut bytes = 0;
    loop {
        let token = states.issue(&7).await.unwrap();
        proxy.cut_within_next_reply(bytes);
        let taken = states.take(&token).await;
        assert!(states.take(&token).await.unwrap().is_none(), "{bytes}");
        match taken {
            Err(error) => {
                let kind = error.kind();
                let is_unknown = matches!(
                    kind,
                    DataErrorKind::Unavailable { .. } | DataErrorKind::TimedOut
                );
                assert!(is_unknown, "{bytes}: {kind:?}");
            }
            Ok(taken) => {
                assert_eq!(taken.unwrap().value, 7);
                break;
            }
        }
        bytes += 1;
    }
    assert!(bytes > 40, "{bytes}");
}

#[tokio::test]
async fn with_the_store_away_nothing_is_kept_taken_or_saved_and_nobody_stands_in() {
    let mut server = RedisServer::start().await;
    let redis = RedisStore::connect(&server.url()).await.unwrap();
    let second = MemoryStore::new();
    let store = Fallback::new(redis, second.clone());
    let states: Once<u8> = Once::new(store.clone(), "oauth", ttl::OAUTH_STATE);
    let forms: Progress<u8> = Progress::new(store, "form", Ttl::secs(60));
    let token = states.issue(&7).await.unwrap();
    server.kill();
    // Before and behind the breaker.
    for _ in 0..3 {
        let errors = [
            states.put(&token, &1).await.unwrap_err(),
            states.take(&token).await.unwrap_err(),
            states.peek(&token).await.unwrap_err(),
            forms.save("u1", &1, Expect::Any).await.unwrap_err(),
            forms.load("u1").await.unwrap_err(),
            forms.take("u1").await.unwrap_err(),
            forms.remove("u1").await.unwrap_err(),
        ];
        for error in errors {
            let kind = error.kind();
            assert!(
                matches!(kind, DataErrorKind::Unavailable { .. }),
                "{kind:?}"
            );
        }
    }
    assert_eq!(second.stats().entries, Some(0));
    server.restart();
    let back = async {
        while states.peek(&token).await.is_err() {
            tokio::time::sleep(20 * tower_keep::MILLIS).await;
        }
    };
    tokio::time::timeout(tower_keep::MINUTE, back)
        .await
        .unwrap();
    assert_eq!(forms.load("u1").await.unwrap(), None);
}

#[tokio::test]
async fn two_tabs_never_overwrite_each_other_unseen() {
    let forms: Progress<u8> = Progress::new(MemoryStore::new(), "form", Ttl::secs(60));
    let key = ("u1", "intake");
    forms.save(key, &1, Expect::Absent).await.unwrap();
    let (a, b) = tokio::join!(
        forms.save(key, &2, Expect::Version(1)),
        forms.save(key, &3, Expect::Version(1))
    );
    assert_eq!(a.unwrap(), SaveOutcome::Saved { version: 2 });
    assert_eq!(b.unwrap(), SaveOutcome::Conflict { version: 2 });
    assert_eq!(forms.take(key).await.unwrap().unwrap().value, 2);
    assert!(forms.load(key).await.unwrap().is_none());
}
