//! Caches: a server that refuses writes, loads that nobody may store, what a load leaves behind that is not stored.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tower_keep::backend::fault::Faults;
use tower_keep::backend::memory::MemoryStore;
use tower_keep::backend::redis::RedisStore;
use tower_keep::core::{IntoKey, ManualClock};
use tower_keep::data::cache::{
    Cache, CacheGroup, CacheOutcome, InvalidateOutcome, Loaded, Local, Tag, Target,
};
use tower_keep::ttl::{self, Lifetime, Ttl};
use tower_keep::{MIB, MILLIS, MINUTE, SECOND};

use crate::support::redis::RedisServer;

fn clock() -> ManualClock {
    ManualClock::at("2030-01-01T00:00:00.007Z".parse().unwrap())
}

/// Two caches of one group that keep nothing in this process; values of the second carry a tag.
async fn shared_only(server: &RedisServer) -> (Cache<u64, u64>, Cache<u64, u64>) {
    let group = CacheGroup::new(server.store_with("t").await, "g");
    let users = group.cache("user", ttl::USER).local(Local::off());
    let tagged = group.cache("tagged", ttl::USER).local(Local::off());
    (users, tagged.tag_with(|key, _| [Tag::new("user", *key)]))
}

async fn order(server: &RedisServer, words: &[&str]) {
    let order = redis::cmd(words[0]).arg(&words[1..]).to_owned();
    let mut raw = server.raw().await;
    order.query_async::<redis::Value>(&mut raw).await.unwrap();
}

/// Makes a server refuse every write: it could not save.
async fn break_saving(server: &RedisServer) {
    order(server, &["CONFIG", "SET", "dbfilename", "."]).await;
    order(server, &["BGSAVE"]).await;
    let asked = redis::cmd("INFO").arg("persistence").to_owned();
    loop {
        let info: String = asked.query_async(&mut server.raw().await).await.unwrap();
        if info.contains("rdb_last_bgsave_status:err") {
            return;
        }
        tokio::time::sleep(MILLIS).await;
    }
}

#[tokio::test]
async fn what_a_server_that_cannot_save_was_not_told_is_served_by_no_read() {
    let options = ["--save", "3600 1", "--enable-protected-configs", "yes"];
    let server = RedisServer::start_with(&options).await;
    let (users, tagged) = shared_only(&server).await;
    let (others, _) = shared_only(&server).await;
    for cache in [&users, &tagged] {
        cache.put_many((0..4).map(|key| (key, 1))).await.unwrap();
    }
    break_saving(&server).await;
    assert_eq!(users.remove(&0).await, InvalidateOutcome::Queued);
    let targets = [
        Target::tag(Tag::new("user", 1_u64)),
        Target::prefix("user", 2_u64),
    ];
    let told = users.group().invalidate(targets).await;
    assert_eq!(told, InvalidateOutcome::Queued);
    assert!(users.put(&3, 2).await.is_err());
    let value = |cached: Option<tower_keep::data::cache::Cached<u64>>| cached.map(|cached| *cached);
    for _ in 0..3 {
        for gone in [0, 2, 3] {
            assert_eq!(value(users.get(&gone).await.unwrap()), None, "{gone}");
        }
        assert_eq!(value(tagged.get(&1).await.unwrap()), None);
        // All else is read on.
        assert_eq!(value(users.get(&1).await.unwrap()), Some(1));
        assert_eq!(value(tagged.get(&0).await.unwrap()), Some(1));
        let many = tagged.get_many(&[0, 1, 2]).await.unwrap();
        let many: Vec<_> = many.into_iter().map(value).collect();
        assert_eq!(many, [Some(1), None, Some(1)]);
    }
    let new = |_| async { Ok::<_, io::Error>(7) };
    assert_eq!(*users.get_or_load(&0, new).await.unwrap(), 7);
    // Once it takes writes again, it is told.
    let set = ["CONFIG", "SET", "stop-writes-on-bgsave-error", "no"];
    order(&server, &set).await;
    let patient = async {
        while others.contains(&3).await.unwrap() {
            tokio::time::sleep(20 * MILLIS).await;
        }
    };
    tokio::time::timeout(MINUTE, patient).await.unwrap();
    assert!(!others.contains(&0).await.unwrap() && !others.contains(&2).await.unwrap());
    users.put(&0, 8).await.unwrap();
    let patient = async {
        while value(users.get(&0).await.unwrap()) != Some(8) {
            tokio::time::sleep(20 * MILLIS).await;
        }
    };
    tokio::time::timeout(MINUTE, patient).await.unwrap();
}

#[tokio::test]
async fn a_full_server_takes_invalidations_of_every_kind_and_is_read_on() {
    let server = RedisServer::start().await;
    let (users, tagged) = shared_only(&server).await;
    for cache in [&users, &tagged] {
        cache.put_many((0..4).map(|key| (key, 1))).await.unwrap();
    }
    order(&server, &["CONFIG", "SET", "maxmemory", "1"]).await;
    assert_eq!(users.remove(&0).await, InvalidateOutcome::Done);
    for target in [
        Target::tag(Tag::new("user", 1_u64)),
        Target::prefix("user", 2_u64),
    ] {
        let told = users.group().invalidate([target]).await;
        assert_eq!(told, InvalidateOutcome::Done);
    }
    let there = async |cache: &Cache<u64, u64>, key| cache.contains(&key).await.unwrap();
    assert!(!there(&users, 0).await && !there(&users, 2).await && !there(&tagged, 1).await);
    assert!(there(&users, 1).await && there(&tagged, 0).await);
    // A put that finds no room leaves nothing old, here and elsewhere.
    assert!(users.put(&1, 2).await.is_err());
    assert!(!there(&users, 1).await && there(&users, 3).await);
    let (others, _) = shared_only(&server).await;
    assert!(!there(&others, 1).await && there(&others, 3).await);
    assert_eq!(users.group().clear().await, InvalidateOutcome::Done);
    assert!(!there(&others, 3).await);
}

#[tokio::test(start_paused = true)]
async fn a_value_that_takes_longer_to_load_than_anybody_waits_is_stored() {
    let store = MemoryStore::new();
    for at in 0..7_u32 {
        let users: Cache<u64, u64> = Cache::new(store.clone(), "user", ttl::USER);
        tokio::spawn(async move {
            tokio::time::sleep(at * 700 * MILLIS).await;
            loop {
                let slow = |_| async {
                    tokio::time::sleep(3 * SECOND).await;
                    Ok::<_, io::Error>(1)
                };
                users.get_or_load(&7, slow).await.unwrap();
                tokio::time::sleep(MILLIS).await;
            }
        });
    }
    tokio::time::sleep(10 * SECOND).await;
    let cold: Cache<u64, u64> = Cache::new(store, "user", ttl::USER);
    assert!(cold.get(&7).await.unwrap().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_batch_replaces_what_it_cannot_read_and_waits_for_nobody() {
    let store = MemoryStore::new();
    let old: Cache<u64, u64> = Cache::new(store.clone(), "user", ttl::USER);
    old.put_many([(1, 1), (2, 2)]).await.unwrap();
    let new: Cache<u64, u64> = Cache::new(store.clone(), "user", ttl::USER).schema(1);
    let began = tokio::time::Instant::now();
    let load = |keys: Vec<u64>| async {
        Ok::<_, io::Error>(keys.into_iter().map(|key| (key, 9)).collect())
    };
    let many = new.get_many_or_load(&[1, 2, 3], load).await.unwrap();
    assert!(many.into_iter().all(|value| *value.unwrap() == 9));
    assert!(began.elapsed() < SECOND, "it waited for nobody");
    let cold: Cache<u64, u64> = Cache::new(store, "user", ttl::USER).schema(1);
    for key in 1..=3 {
        assert_eq!(*cold.get(&key).await.unwrap().unwrap(), 9);
    }
}

#[tokio::test]
async fn what_was_loaded_and_is_not_stored_leaves_nothing_older_behind() {
    let store = MemoryStore::new();
    let [here, there] = [0; 2].map(|_| Cache::<u64, String>::new(store.clone(), "text", ttl::USER));
    let absent = Arc::new(AtomicUsize::new(0));
    for round in 0..3 {
        here.put(&7, "old".to_owned()).await.unwrap();
        assert_eq!(*there.get(&7).await.unwrap().unwrap(), "old");
        let large = "x".repeat(MIB + 1);
        if round == 0 {
            let load = |_| async { Ok::<_, io::Error>(large) };
            here.refresh(&7, load).await.unwrap();
        } else if round == 1 {
            let load = |_| async { Ok::<_, io::Error>(Loaded::new("new".to_owned()).no_store()) };
            here.refresh(&7, load).await.unwrap();
        } else {
            // What was remembered to be absent is there, and stored nowhere.
            here.remove(&7).await;
            let absent = Arc::clone(&absent);
            let none = |_| async move {
                absent.fetch_add(1, Ordering::SeqCst);
                Ok::<_, io::Error>(None::<String>)
            };
            here.find_or_load(&7, none.clone()).await.unwrap();
            let load = |_| async { Ok::<_, io::Error>(Loaded::new("new".to_owned()).no_store()) };
            here.get_or_load(&7, load).await.unwrap();
            here.find_or_load(&7, none).await.unwrap();
        }
        assert!(here.get(&7).await.unwrap().is_none(), "{round}");
        assert!(there.get(&7).await.unwrap().is_none(), "{round}");
    }
    assert_eq!(absent.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_row_that_was_deleted_is_gone_when_its_refresh_finds_nothing() {
    let clock = clock();
    let store = MemoryStore::builder().clock(clock.clone()).build();
    let life = Lifetime::new(Ttl::secs(100))
        .jitter(0)
        .refresh_after(10 * SECOND);
    let rows: Cache<u64, u64> =
        Cache::new(store, "row", life).missing_for(std::time::Duration::ZERO);
    rows.put(&1, 1).await.unwrap();
    rows.put(&2, 2).await.unwrap();
    clock.advance(20 * SECOND);
    let none = |_| async { Ok::<_, io::Error>(None::<u64>) };
    assert_eq!(*rows.find_or_load(&1, none).await.unwrap().unwrap(), 1);
    let none = |_| async { Ok::<_, io::Error>(Vec::<(u64, u64)>::new()) };
    let due = rows.get_many_or_load(&[2], none).await.unwrap();
    assert_eq!(**due[0].as_ref().unwrap(), 2);
    for key in [1, 2] {
        let patient = async {
            while rows.get(&key).await.unwrap().is_some() {
                tokio::time::sleep(MILLIS).await;
            }
        };
        tokio::time::timeout(MINUTE, patient).await.unwrap();
    }
}

#[tokio::test]
async fn a_refresh_whose_fill_is_lost_leaves_no_older_copy_here() {
    let faults = Faults::default();
    let store = tower_keep::store::builder("memory:").faults(&faults);
    let users: Cache<u64, u64> = Cache::new(store.open().await.unwrap(), "user", ttl::USER);
    users.put(&7, 1).await.unwrap();
    assert_eq!(*users.get(&7).await.unwrap().unwrap(), 1);
    let cut = faults.clone();
    let load = |_| async move {
        cut.cut();
        Ok::<_, io::Error>(2)
    };
    assert_eq!(*users.refresh(&7, load).await.unwrap(), 2);
    let known = users.get(&7).await;
    assert!(!matches!(known, Ok(Some(cached)) if *cached == 1));
    faults.mend();
    let known = users.get(&7).await.unwrap();
    assert!(known.is_none_or(|cached| *cached == 2));
}

#[tokio::test]
async fn in_an_outage_what_is_here_answers_each_kind_of_read() {
    let mut server = RedisServer::start().await;
    let builder = RedisStore::builder(&server.url()).timeout(200 * MILLIS);
    let store = builder.open().await.unwrap();
    let names = Cache::<u64, String>::new(store, "name", ttl::USER)
        .alias("name", |name: &String| Some(name.clone()));
    let loads = Arc::new(AtomicUsize::new(0));
    let read = async || {
        let loads = Arc::clone(&loads);
        let load = || async move {
            loads.fetch_add(1, Ordering::SeqCst);
            Ok::<_, io::Error>((7, "x".to_owned()))
        };
        names.get_or_load_by([("name", "x".into_key())], load).await
    };
    assert_eq!(*read().await.unwrap(), "x");
    assert_eq!(*names.get(&7).await.unwrap().unwrap(), "x");
    server.kill();
    // Copies are believed as long as the link seems to live.
    let known = loop {
        match names.get(&7).await {
            Ok(Some(known)) if known.outcome() == CacheOutcome::LocalHit => {
                tokio::time::sleep(MILLIS).await;
            }
            other => break other.unwrap().unwrap(),
        }
    };
    assert_eq!((&**known, known.outcome()), ("x", CacheOutcome::Bypassed));
    let found = names.get_by("name", "x").await.unwrap().unwrap();
    assert_eq!(&**found, "x");
    let many = names.get_many(&[7, 7]).await.unwrap();
    assert!(many.into_iter().all(|name| **name.unwrap() == *"x"));
    for _ in 0..5 {
        assert_eq!(*read().await.unwrap(), "x");
    }
    assert_eq!(loads.load(Ordering::SeqCst), 1);
    // What is not here, nobody can tell.
    names.get(&8).await.unwrap_err();
    names.get_many(&[7, 8]).await.unwrap_err();
    names.get_by("name", "y").await.unwrap_err();
    names.remove(&7).await;
    names.get(&7).await.unwrap_err();
    names.get_by("name", "x").await.unwrap_err();
}

#[test]
fn what_a_runtime_kept_back_that_has_ended_is_told_by_whoever_reads_next() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let (server, users, others) = runtime.block_on(async {
        let options = ["--save", "3600 1", "--enable-protected-configs", "yes"];
        let server = RedisServer::start_with(&options).await;
        let (users, _) = shared_only(&server).await;
        let (others, _) = shared_only(&server).await;
        users.put(&7, 1).await.unwrap();
        break_saving(&server).await;
        (server, users, others)
    });
    let short = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let removed = short.block_on(async {
        let removed = users.remove(&7).await;
        // Refused again: from now on only whoever is at work asks.
        users.get(&8).await.unwrap();
        removed
    });
    assert_eq!(removed, InvalidateOutcome::Queued);
    drop(short);
    runtime.block_on(async {
        order(
            &server,
            &["CONFIG", "SET", "stop-writes-on-bgsave-error", "no"],
        )
        .await;
        // Nobody else is at work: it begins with this read.
        assert!(users.get(&7).await.unwrap().is_none());
        for _ in 0..1_000 {
            if others.get(&7).await.unwrap().is_none() {
                break;
            }
            tokio::time::sleep(10 * MILLIS).await;
        }
        let left = others.get(&7).await.unwrap();
        assert!(left.is_none(), "it was never told");
    });
}
