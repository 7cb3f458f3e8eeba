//! Caches: the suite on every engine, loads counted, races with invalidations, outages, two processes.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Semaphore;
use tower_keep::backend::fallback::Fallback;
use tower_keep::backend::memory::MemoryStore;
use tower_keep::backend::redis::RedisStore;
use tower_keep::conformance::cache::cache;
use tower_keep::core::ManualClock;
use tower_keep::data::cache::{
    Cache, CacheGroup, CacheOutcome, CacheStore, InvalidateOutcome, LoadError, Loaded, Local, Tag,
    Target,
};
use tower_keep::ttl::{self, Lifetime, Ttl};
use tower_keep::{HOUR, MILLIS, MINUTE, SECOND};

use crate::support::redis::{RedisServer, fresh_prefix, shared};
use crate::support::redis_cluster::RedisCluster;

fn clock() -> ManualClock {
    ManualClock::at("2030-01-01T00:00:00.007Z".parse().unwrap())
}

fn memory(clock: &ManualClock) -> MemoryStore {
    MemoryStore::builder().clock(clock.clone()).build()
}

/// A loader that counts its runs and says which it was.
#[derive(Clone, Default)]
struct Source(Arc<AtomicUsize>);

impl Source {
    async fn load(self) -> Result<usize, io::Error> {
        Ok(self.0.fetch_add(1, Ordering::SeqCst) + 1)
    }

    fn loads(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

async fn read(users: &Cache<String, usize>, source: &Source) -> (usize, CacheOutcome) {
    let source = source.clone();
    let key = "u1".to_owned();
    let cached = users.get_or_load(&key, |_| source.load());
    let cached = cached.await.unwrap();
    (*cached, cached.outcome())
}

async fn until(what: impl Fn() -> bool) {
    while !what() {
        tokio::time::sleep(MILLIS).await;
    }
}

#[tokio::test]
async fn memory_keeps_its_promises() {
    let clock = clock();
    cache(Arc::new(memory(&clock)), &clock).await;
}

#[tokio::test]
async fn redis_keeps_its_promises_also_behind_a_fallback() {
    let clock = clock();
    let store = Fallback::new(shared().await.store(&clock).await, memory(&clock));
    cache(Arc::new(store), &clock).await;
}

#[tokio::test]
async fn a_cluster_keeps_its_promises() {
    let (cluster, clock) = (RedisCluster::start(3, false).await, clock());
    cache(Arc::new(cluster.store(&clock).await), &clock).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_parallel_misses_load_once() {
    let users: Cache<String, usize> = Cache::new(MemoryStore::new(), "user", ttl::USER);
    let (source, gate) = (Source::default(), Arc::new(Semaphore::new(0)));
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..10_000 {
        let (users, source, gate) = (users.clone(), source.clone(), Arc::clone(&gate));
        calls.spawn(async move {
            let load = |_| async move {
                drop(gate.acquire().await);
                source.load().await
            };
            *users.get_or_load(&"u1".to_owned(), load).await.unwrap()
        });
    }
    tokio::time::sleep(20 * MILLIS).await;
    gate.add_permits(10_000);
    while let Some(call) = calls.join_next().await {
        assert_eq!(call.unwrap(), 1);
    }
    assert_eq!(source.loads(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_processes_load_once_between_them() {
    let (server, prefix) = (shared().await, fresh_prefix());
    let (source, mut calls) = (Source::default(), tokio::task::JoinSet::new());
    for _ in 0..3 {
        let store = server.store_with(&prefix).await;
        let users: Cache<String, usize> = Cache::new(store, "user", ttl::USER);
        for _ in 0..20 {
            let (users, source) = (users.clone(), source.clone());
            calls.spawn(async move {
                let load = |_| async move {
                    tokio::time::sleep(50 * MILLIS).await;
                    source.load().await
                };
                *users.get_or_load(&"u1".to_owned(), load).await.unwrap()
            });
        }
    }
    while let Some(call) = calls.join_next().await {
        assert_eq!(call.unwrap(), 1);
    }
    assert_eq!(source.loads(), 1);
}

#[tokio::test]
async fn a_loader_that_fails_panics_or_hangs_poisons_nothing() {
    let users: Cache<String, usize> =
        Cache::new(MemoryStore::new(), "user", ttl::USER).load_timeout(MILLIS, 20 * MILLIS);
    let key = "u1".to_owned();
    let failed = users
        .get_or_load(&key, |_| async { Err::<usize, _>(io::Error::other("no")) })
        .await;
    let failed = failed.unwrap_err();
    assert_eq!(
        failed.downcast_ref::<io::Error>().unwrap().to_string(),
        "no"
    );
    let panicked = users
        .get_or_load(&key, |_| async {
            Ok::<_, io::Error>("no number".parse::<usize>().unwrap())
        })
        .await;
    assert!(matches!(panicked, Err(LoadError::Panicked)));
    let hung = users
        .get_or_load(&key, |_| std::future::pending::<Result<usize, io::Error>>())
        .await;
    assert!(matches!(hung, Err(LoadError::TimedOut)));
    let source = Source::default();
    assert_eq!(read(&users, &source).await, (1, CacheOutcome::Loaded));
    assert_eq!(read(&users, &source).await, (1, CacheOutcome::LocalHit));
}

#[tokio::test]
async fn a_caller_that_leaves_does_not_stop_the_load() {
    let users: Cache<String, usize> = Cache::new(MemoryStore::new(), "user", ttl::USER);
    let (source, gate) = (Source::default(), Arc::new(Semaphore::new(0)));
    let (own, closed) = (source.clone(), Arc::clone(&gate));
    let key = "u1".to_owned();
    let leaving = users.get_or_load(&key, |_| async move {
        drop(closed.acquire().await);
        own.load().await
    });
    assert!(tokio::time::timeout(MILLIS, leaving).await.is_err());
    gate.add_permits(1);
    while users.get(&key).await.unwrap().is_none() {
        tokio::time::sleep(MILLIS).await;
    }
    assert_eq!(read(&users, &source).await.0, 1);
}

#[tokio::test]
async fn analytics_are_refreshed_behind_the_reader_between_20_and_27_minutes() {
    let clock = clock();
    let data: Cache<String, usize> =
        Cache::new(memory(&clock), "analytics", ttl::ANALYTICS).local(Local::entries(10).ttl(HOUR));
    let source = Source::default();
    assert_eq!(read(&data, &source).await.0, 1);
    clock.advance(Duration::from_secs(1_199));
    assert_eq!(read(&data, &source).await.0, 1);
    clock.advance(SECOND);
    // The old one at once, and one load behind it.
    let (value, outcome) = read(&data, &source).await;
    assert_eq!((value, outcome), (1, CacheOutcome::LocalHit));
    until(|| source.loads() == 2).await;
    let fresh = || async { data.get(&"u1".to_owned()).await.unwrap().map(|v| *v) };
    while fresh().await != Some(2) {
        tokio::time::sleep(MILLIS).await;
    }
    clock.advance(Duration::from_secs(1_800));
    assert_eq!(fresh().await, None);
}

#[tokio::test]
async fn a_stale_value_stands_in_for_a_loader_that_is_slow_or_fails() {
    let clock = clock();
    let life = Lifetime::new(Ttl::secs(10)).stale_for(Ttl::secs(100));
    let data: Cache<String, usize> = Cache::new(memory(&clock), "data", life)
        .load_timeout(5 * MILLIS, SECOND)
        .local(Local::off());
    let key = "u1".to_owned();
    data.put(&key, 7).await.unwrap();
    clock.advance(10 * SECOND);
    let failing = |_| async { Err::<usize, _>(io::Error::other("no")) };
    let cached = data.get_or_load(&key, failing).await.unwrap();
    assert_eq!((*cached, cached.outcome()), (7, CacheOutcome::Stale));
    // For the shorter of 30 s and the ttl no other load is tried.
    let source = Source::default();
    assert_eq!(read(&data, &source).await, (7, CacheOutcome::Stale));
    assert_eq!(source.loads(), 0);
    clock.advance(10 * SECOND);
    let gate = Arc::new(Semaphore::new(0));
    let closed = Arc::clone(&gate);
    let slow = data.get_or_load(&key, |_| async move {
        drop(closed.acquire().await);
        Ok::<_, io::Error>(8_usize)
    });
    assert_eq!(*slow.await.unwrap(), 7);
    // The load went on.
    gate.add_permits(1);
    while data.get(&key).await.unwrap().map(|value| *value) != Some(8) {
        tokio::time::sleep(MILLIS).await;
    }
    clock.advance(110 * SECOND);
    let gone = data.get_or_load(&key, failing).await;
    assert!(gone.is_err());
}

#[tokio::test]
async fn an_invalidation_leaves_the_loads_that_run_to_those_who_asked_before() {
    let users: Cache<String, usize> = Cache::new(MemoryStore::new(), "user", ttl::USER);
    for target in [
        Target::key(match_key(&users)),
        Target::tag(Tag::new("any", "tag")),
        Target::prefix("user", "u1"),
        Target::all(),
    ] {
        users.remove(&"u1".to_owned()).await;
        let (entered, gate) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
        let (inside, closed) = (Arc::clone(&entered), Arc::clone(&gate));
        let early = {
            let users = users.clone();
            tokio::spawn(async move {
                let load = |_| async move {
                    inside.add_permits(1);
                    drop(closed.acquire().await);
                    Ok::<_, io::Error>(100_usize)
                };
                *users.get_or_load(&"u1".to_owned(), load).await.unwrap()
            })
        };
        drop(entered.acquire().await);
        let group = users.group();
        assert_eq!(
            group.invalidate([target.clone()]).await,
            InvalidateOutcome::Done
        );
        let is_tag = target == Target::tag(Tag::new("any", "tag"));
        let late = {
            let users = users.clone();
            tokio::spawn(async move {
                let load = |_| async { Ok::<_, io::Error>(200_usize) };
                *users.get_or_load(&"u1".to_owned(), load).await.unwrap()
            })
        };
        if is_tag {
            // The value has no such tag: its fill stands, and the late one may have it too.
            tokio::time::sleep(5 * MILLIS).await;
            gate.add_permits(1);
            assert_eq!(early.await.unwrap(), 100);
            late.await.unwrap();
            continue;
        }
        assert_eq!(late.await.unwrap(), 200, "{target:?}");
        gate.add_permits(1);
        assert_eq!(early.await.unwrap(), 100);
        let cached = users.get(&"u1".to_owned()).await.unwrap().unwrap();
        assert_eq!(*cached, 200, "{target:?}");
    }
}

fn match_key(users: &Cache<String, usize>) -> tower_keep::data::cache::CacheKey {
    users.cache_key(&"u1".to_owned())
}

#[tokio::test]
async fn one_call_drops_a_user_from_all_caches_of_the_group_in_one_command() {
    let store = shared().await.store_with(&fresh_prefix()).await;
    let db = CacheGroup::new(store.clone(), "db");
    let cache = |name: &str| -> Cache<String, usize> {
        db.cache(name, ttl::USER)
            .tag_with(|id, _| [Tag::new("user", id)])
    };
    let caches = [cache("user"), cache("profile"), cache("dashboard")];
    let (mine, other) = ("u1".to_owned(), "u10".to_owned());
    for cache in &caches {
        cache.put(&mine, 1).await.unwrap();
        cache.put(&other, 2).await.unwrap();
        assert!(cache.contains(&mine).await.unwrap());
    }
    db.invalidate([Target::tag(Tag::new("user", "nobody"))])
        .await;
    let before = store.commands();
    db.invalidate([Target::tag(Tag::new("user", &mine))]).await;
    assert_eq!(store.commands() - before, 1);
    for cache in &caches {
        assert!(!cache.contains(&mine).await.unwrap());
        assert!(cache.contains(&other).await.unwrap());
    }
}

#[tokio::test]
async fn a_local_hit_is_no_command_a_shared_hit_one_and_a_miss_two() {
    let (server, prefix) = (shared().await, fresh_prefix());
    let (here, there) = (
        server.store_with(&prefix).await,
        server.store_with(&prefix).await,
    );
    let users = |store: &RedisStore| Cache::new(store.clone(), "user", ttl::USER);
    let (first, second): (Cache<String, usize>, Cache<String, usize>) =
        (users(&here), users(&there));
    let source = Source::default();
    let other = "u2".to_owned();
    // The server knows the scripts from now on.
    let load = |_| async { Ok::<_, io::Error>(9_usize) };
    first.get_or_load(&other, load).await.unwrap();
    let before = here.commands();
    assert_eq!(read(&first, &source).await.1, CacheOutcome::Loaded);
    assert_eq!(here.commands() - before, 2);
    assert_eq!(read(&first, &source).await.1, CacheOutcome::LocalHit);
    assert_eq!(here.commands() - before, 2);
    second.get(&other).await.unwrap();
    let before = there.commands();
    assert_eq!(read(&second, &source).await.1, CacheOutcome::SharedHit);
    assert_eq!(there.commands() - before, 1);
    // What one process writes, the other does not serve from its copy.
    first.put(&"u1".to_owned(), 42).await.unwrap();
    while read(&second, &source).await.0 != 42 {
        tokio::time::sleep(MILLIS).await;
    }
    assert_eq!(source.loads(), 1);
}

#[tokio::test]
async fn a_read_that_loads_nothing_starts_no_script_unless_the_record_has_tags() {
    let (server, clock) = (RedisServer::start().await, clock());
    let store = server.store(&clock).await;
    let of = |name| Cache::<u64, String>::new(store.clone(), name, ttl::USER).local(Local::off());
    let (users, rooms) = (of("user"), of("room"));
    for cache in [&users, &rooms] {
        cache.put(&7, "x".to_owned()).await.unwrap();
    }
    let tag = Tag::new("floor", "2");
    // Teaches the server the script.
    users
        .get_or_load(&8, |_| async { Err::<String, _>(io::Error::other("none")) })
        .await
        .unwrap_err();
    let (before, sent) = (server.scripts().await, store.commands());
    for _ in 0..3 {
        assert_eq!(*users.get(&7).await.unwrap().unwrap(), "x");
        assert!(users.get(&9).await.unwrap().is_none());
    }
    assert_eq!(server.scripts().await - before, 0);
    assert_eq!(store.commands() - sent, 6);
    let tagged = Loaded::new("y".to_owned()).tag(tag.clone());
    rooms
        .get_or_load(&8, |_| async { Ok::<_, io::Error>(tagged) })
        .await
        .unwrap();
    let sent = store.commands();
    assert_eq!(*rooms.get(&8).await.unwrap().unwrap(), "y");
    assert_eq!(store.commands() - sent, 2, "looked at, and found tagged");
    for _ in 0..3 {
        assert_eq!(*rooms.get(&8).await.unwrap().unwrap(), "y");
        assert_eq!(*rooms.get(&7).await.unwrap().unwrap(), "x");
    }
    assert_eq!(
        store.commands() - sent,
        2 + 6,
        "asked by the script from then on"
    );
}

#[tokio::test]
async fn a_process_that_knows_a_value_to_be_fresh_reads_it_through_its_loader_without_a_script() {
    let (server, clock, prefix) = (RedisServer::start().await, clock(), fresh_prefix());
    let open = async || {
        let builder = server.builder(&prefix).timeout(10 * SECOND);
        builder.clock(clock.clone()).open().await.unwrap()
    };
    let (here, there) = (open().await, open().await);
    let life = Lifetime::new(Ttl::hours(1)).refresh_after(MINUTE).jitter(0);
    let of = |store: &RedisStore| {
        let group = CacheGroup::new(store.clone(), "db");
        let users: Cache<String, usize> = group.cache("user", life);
        users.local(Local::off())
    };
    let (first, second) = (of(&here), of(&there));
    let source = Source::default();
    // What was read, by so many commands, and how many of them were scripts.
    let took = async |cache: &Cache<String, usize>, store: &RedisStore| {
        let (sent, scripts) = (store.commands(), server.scripts().await);
        let value = read(cache, &source).await.0;
        let sent = store.commands() - sent;
        (value, sent, server.scripts().await - scripts)
    };
    // Teaches the server the scripts.
    read(&first, &source).await;
    first.remove(&"u1".to_owned()).await;
    assert_eq!(took(&first, &here).await, (2, 2, 2), "a miss");
    assert_eq!(took(&first, &here).await, (2, 1, 0));
    assert_eq!(took(&second, &there).await, (2, 1, 1), "new here");
    assert_eq!(took(&second, &there).await, (2, 1, 0));
    // What was invalidated elsewhere costs one more, once; here, none.
    first.remove(&"u1".to_owned()).await;
    assert_eq!(took(&second, &there).await, (3, 3, 2));
    assert_eq!(took(&second, &there).await, (3, 1, 0));
    let prefix = Target::prefix("user", "u1");
    first.group().invalidate([prefix]).await;
    assert_eq!(took(&first, &here).await, (4, 2, 2));
    // A put is known, too.
    second.put(&"u1".to_owned(), 40).await.unwrap();
    assert_eq!(took(&second, &there).await, (40, 1, 0));
    // Damage is a miss.
    let mut raw = server.raw().await;
    let question = redis::cmd("KEYS").arg("*:record:*").to_owned();
    let keys: Vec<String> = question.query_async(&mut raw).await.unwrap();
    let damage = redis::cmd("SET").arg(&[&keys[0], "x"]).to_owned();
    damage.query_async::<()>(&mut raw).await.unwrap();
    assert_eq!(took(&second, &there).await, (5, 3, 2));
    // To the millisecond at which a refresh is due, for which the script gives the lease.
    clock.advance(MINUTE - MILLIS);
    assert_eq!(took(&second, &there).await, (5, 1, 0));
    clock.advance(MILLIS);
    let due = took(&second, &there).await;
    assert!(due.0 == 5 && due.2 >= 1, "{due:?}");
    until(|| source.loads() == 6).await;
}

#[tokio::test]
async fn a_cache_believes_no_demoted_server_and_one_that_takes_no_writes() {
    let (server, clock) = (RedisServer::start().await, clock());
    let store = server.store(&clock).await;
    let users = Cache::<u64, String>::new(store, "user", ttl::USER).local(Local::off());
    users.put(&7, "x".to_owned()).await.unwrap();
    let mut raw = server.raw().await;
    let mut order = async |words: &[&str]| {
        let order = redis::cmd(words[0]).arg(&words[1..]).to_owned();
        order.query_async::<()>(&mut raw).await.unwrap();
    };
    order(&["CONFIG", "SET", "min-replicas-to-write", "1"]).await;
    assert_eq!(*users.get(&7).await.unwrap().unwrap(), "x");
    order(&["CONFIG", "SET", "min-replicas-to-write", "0"]).await;
    let load = || users.get_or_load(&7, |_| async { Ok::<_, io::Error>("new".to_owned()) });
    assert_eq!(*load().await.unwrap(), "x");
    order(&["REPLICAOF", "127.0.0.1", "1"]).await;
    users.get(&7).await.unwrap_err();
    assert_eq!(*load().await.unwrap(), "new", "loaded, and kept nowhere");
}

#[tokio::test]
async fn absence_is_remembered_and_no_secret_is_kept() {
    let clock = clock();
    let store = memory(&clock);
    let data: Cache<String, String> =
        Cache::new(store.clone(), "data", ttl::USER).sanitize(|value: &mut String| {
            *value = value.replace("secret", "-");
        });
    let key = "u1".to_owned();
    let counted = Source::default();
    let find = || {
        let counted = counted.clone();
        data.find_or_load(&key, |_| async move {
            counted.load().await?;
            Ok::<_, io::Error>(None::<String>)
        })
    };
    assert!(find().await.unwrap().is_none());
    assert!(find().await.unwrap().is_none());
    assert_eq!(counted.loads(), 1);
    let load = |_| async { Ok::<_, io::Error>("a secret".to_owned()) };
    assert_eq!(*data.get_or_load(&key, load).await.unwrap(), "a -");
    let cold: Cache<String, String> = Cache::new(store, "data", ttl::USER);
    assert_eq!(*cold.get(&key).await.unwrap().unwrap(), "a -");
    data.remove(&key).await;
    assert!(find().await.unwrap().is_none());
    clock.advance(30 * SECOND);
    assert!(find().await.unwrap().is_none());
    assert_eq!(counted.loads(), 3);
    let once = |_| async { Ok::<_, io::Error>(Loaded::new(String::new()).no_store()) };
    data.get_or_load(&key, once).await.unwrap();
    assert!(!data.contains(&key).await.unwrap());
}

#[tokio::test]
async fn another_schema_is_a_miss() {
    let store = MemoryStore::new();
    let old: Cache<String, usize> = Cache::new(store.clone(), "user", ttl::USER);
    old.put(&"u1".to_owned(), 1).await.unwrap();
    let new: Cache<String, usize> = Cache::new(store, "user", ttl::USER).schema(1);
    assert!(new.get(&"u1".to_owned()).await.unwrap().is_none());
    assert_eq!(read(&new, &Source::default()).await.1, CacheOutcome::Loaded);
    assert_eq!(new.stats().undecodable, 3);
}

#[tokio::test]
async fn in_an_outage_values_are_loaded_and_what_was_invalidated_stays_gone() {
    let mut server = RedisServer::start_with(&["--save", "", "--appendonly", "yes"]).await;
    let open = async || {
        let builder = RedisStore::builder(&server.url());
        builder.timeout(200 * MILLIS).open().await.unwrap()
    };
    let (here, there) = (open().await, open().await);
    let users: Cache<String, usize> = Cache::new(here, "user", ttl::USER);
    let others: Cache<String, usize> = Cache::new(there, "user", ttl::USER);
    let source = Source::default();
    assert_eq!(read(&users, &source).await.0, 1);
    server.kill();
    let key = "u1".to_owned();
    assert_eq!(users.remove(&key).await, InvalidateOutcome::Queued);
    let (value, outcome) = read(&users, &source).await;
    assert_eq!((value, outcome), (2, CacheOutcome::Bypassed));
    assert!(users.put(&key, 7).await.is_err());
    server.restart();
    // The record of before is still on the server; nobody gets it once the queue is told.
    let alive = async || {
        let known = others.get(&key).await;
        matches!(known, Ok(None))
    };
    let patient = async {
        while !alive().await {
            tokio::time::sleep(20 * MILLIS).await;
        }
    };
    tokio::time::timeout(MINUTE, patient).await.unwrap();
    assert!(read(&users, &source).await.0 > 2);
}

#[tokio::test]
async fn any_store_behind_a_pointer_will_do() {
    let store: Arc<dyn CacheStore> = Arc::new(MemoryStore::new());
    let users: Cache<String, usize> = Cache::new(store, "user", ttl::USER);
    assert_eq!(read(&users, &Source::default()).await.0, 1);
    let debug = format!("{users:?} {:?}", users.get(&"u1".to_owned()).await);
    assert!(!debug.contains("u1"), "{debug}");
    let all = tower_keep::store::open("memory:").await.unwrap();
    let users: Cache<String, usize> = Cache::new(all, "user", ttl::USER);
    assert_eq!(read(&users, &Source::default()).await.0, 1);
}

#[tokio::test]
async fn a_loader_may_have_all_the_time_there_is() {
    let users: Cache<u32, u32> = Cache::new(MemoryStore::new(), "user", ttl::USER)
        .load_timeout(std::time::Duration::MAX, std::time::Duration::MAX);
    let load = |id| async move { Ok::<_, std::io::Error>(id) };
    assert_eq!(*users.get_or_load(&1, load).await.unwrap(), 1);
    let many = users.get_many_or_load(&[1, 2], |ids: Vec<u32>| async move {
        Ok::<_, std::io::Error>(ids.into_iter().map(|id| (id, id)).collect())
    });
    assert_eq!(many.await.unwrap().len(), 2);
}
