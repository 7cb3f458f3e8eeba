//! Caches: batches, secondary keys, warming, comparing, compression, leases that are given back.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tower_keep::backend::memory::MemoryStore;
use tower_keep::backend::redis::RedisStore;
use tower_keep::core::{Clock, Email, IntoKey, Key, ManualClock, SystemClock};
use tower_keep::data::cache::{
    Cache, CacheOutcome, LoadError, Loaded, Local, Tag, Target, Verified, WarmReport,
};
use tower_keep::ttl::{self, Lifetime, Ttl};
use tower_keep::{MILLIS, SECOND};

use crate::support::redis::{fresh_prefix, shared};

/// Loads the square of each number below 100, and remembers what it was asked for.
#[derive(Clone, Default)]
struct Squares(Arc<Mutex<Vec<Vec<u64>>>>);

impl Squares {
    async fn load(self, mut keys: Vec<u64>) -> Result<Vec<(u64, u64)>, io::Error> {
        keys.sort_unstable();
        self.0.lock().push(keys.clone());
        let known = keys.into_iter().filter(|key| *key < 100);
        Ok(known.map(|key| (key, key * key)).collect())
    }

    fn asked(&self) -> Vec<Vec<u64>> {
        std::mem::take(&mut *self.0.lock())
    }
}

fn clock() -> ManualClock {
    ManualClock::at("2030-01-01T00:00:00.007Z".parse().unwrap())
}

fn squares(store: &RedisStore) -> Cache<u64, u64> {
    Cache::new(store.clone(), "square", ttl::USER)
}

async fn read(cache: &Cache<u64, u64>, source: &Squares, keys: &[u64]) -> Vec<Option<u64>> {
    let source = source.clone();
    let many = cache.get_many_or_load(keys, |keys| source.load(keys));
    let many = many.await.unwrap();
    many.into_iter()
        .map(|value| value.map(|value| *value))
        .collect()
}

#[tokio::test]
async fn a_batch_is_one_fetch_one_call_of_the_loader_and_one_write_and_keeps_its_order() {
    let (server, prefix) = (shared().await, fresh_prefix());
    let (here, there) = (
        server.store_with(&prefix).await,
        server.store_with(&prefix).await,
    );
    let (first, second) = (squares(&here), squares(&there));
    let source = Squares::default();
    // The server knows the scripts from now on.
    read(&first, &source, &[50]).await;
    source.asked();
    let before = here.commands();
    let keys = [7, 3, 200, 7, 5];
    let wanted = [Some(49), Some(9), None, Some(49), Some(25)];
    assert_eq!(read(&first, &source, &keys).await, wanted);
    assert_eq!(here.commands() - before, 2);
    assert_eq!(source.asked(), [[3, 5, 7, 200]]);
    // Absence is remembered, too.
    assert_eq!(read(&first, &source, &keys).await, wanted);
    assert_eq!(here.commands() - before, 2);
    second.get(&1).await.unwrap();
    let before = there.commands();
    let known = second.get_many(&keys).await.unwrap();
    let known: Vec<_> = known
        .into_iter()
        .map(|value| value.map(|value| *value))
        .collect();
    assert_eq!(known, wanted);
    assert_eq!(there.commands() - before, 1);
    // Only what is missing is loaded.
    assert_eq!(read(&second, &source, &[5, 6]).await, [Some(25), Some(36)]);
    assert_eq!(source.asked(), [[6]]);
    let pairs = (1_000..1_600).map(|key| (key, 1));
    let before = here.commands();
    first.put_many(pairs).await.unwrap();
    assert_eq!(here.commands() - before, 2, "600 in parts of 512");
    assert_eq!(*second.get(&1_599).await.unwrap().unwrap(), 1);
}

#[tokio::test]
async fn a_batch_joins_loads_that_run_and_one_key_joins_a_batch() {
    let cache: Cache<u64, u64> = Cache::new(MemoryStore::new(), "square", ttl::USER);
    let (source, gate) = (Squares::default(), Arc::new(Semaphore::new(0)));
    let single = {
        let (cache, gate) = (cache.clone(), Arc::clone(&gate));
        tokio::spawn(async move {
            let load = |_| async move {
                drop(gate.acquire().await);
                Ok::<_, io::Error>(4_444_u64)
            };
            *cache.get_or_load(&4, load).await.unwrap()
        })
    };
    let entered = || cache.stats().loads;
    while entered() < 1 {
        tokio::time::sleep(MILLIS).await;
    }
    let batch = {
        let (cache, source, gate) = (cache.clone(), source.clone(), Arc::clone(&gate));
        tokio::spawn(async move {
            let load = |keys| async move {
                drop(gate.acquire().await);
                source.load(keys).await
            };
            let many = cache.get_many_or_load(&[4, 5], load).await.unwrap();
            many.iter()
                .map(|value| value.as_deref().copied())
                .collect::<Vec<_>>()
        })
    };
    while entered() < 2 {
        tokio::time::sleep(MILLIS).await;
    }
    let joined = {
        let cache = cache.clone();
        tokio::spawn(async move {
            let load = |_| async { Ok::<_, io::Error>(Some(0_u64)) };
            cache
                .find_or_load(&5, load)
                .await
                .unwrap()
                .map(|value| *value)
        })
    };
    tokio::task::yield_now().await;
    gate.add_permits(10);
    assert_eq!(single.await.unwrap(), 4_444);
    assert_eq!(batch.await.unwrap(), [Some(4_444), Some(25)]);
    assert_eq!(joined.await.unwrap(), Some(25));
    assert_eq!(source.asked(), [[5]]);
}

#[tokio::test]
async fn a_batch_whose_loader_fails_is_an_error_but_for_what_is_stale() {
    let clock = clock();
    let life = Lifetime::new(Ttl::secs(10)).stale_for(Ttl::secs(100));
    let store = MemoryStore::builder().clock(clock.clone()).build();
    let cache: Cache<u64, u64> = Cache::new(store, "square", life).local(Local::off());
    cache.put(&1, 7).await.unwrap();
    clock.advance(10 * SECOND);
    let failing = |_| async { Err::<Vec<(u64, u64)>, _>(io::Error::other("no")) };
    let stale = cache.get_many_or_load(&[1], failing).await.unwrap();
    let stale = stale[0].as_ref().unwrap();
    assert_eq!((**stale, stale.outcome()), (7, CacheOutcome::Stale));
    let failed = cache.get_many_or_load(&[1, 2], failing).await.unwrap_err();
    assert!(failed.downcast_ref::<io::Error>().is_some());
    // A panic, too, and neither poisons the keys.
    let panics = |_| async { Ok::<Vec<(u64, u64)>, io::Error>(vec![(2, "x".parse().unwrap())]) };
    let panicked = cache.get_many_or_load(&[2], panics).await.unwrap_err();
    assert!(matches!(panicked, LoadError::Panicked));
    clock.advance(30 * SECOND);
    let source = Squares::default();
    assert_eq!(read(&cache, &source, &[1, 2]).await, [Some(1), Some(4)]);
}

#[tokio::test]
async fn a_batch_that_fails_gives_all_its_leases_back_by_one_command() {
    let (server, prefix) = (shared().await, fresh_prefix());
    let (clock, keys) = (clock(), (0..20).collect::<Vec<u64>>());
    let store = || server.builder(&prefix).clock(clock.clone());
    let here = store().open().await.unwrap();
    let there = store().open().await.unwrap();
    let life = || Lifetime::new(Ttl::secs(10)).stale_for(Ttl::secs(100));
    let cache = |store: &RedisStore| {
        let cache: Cache<u64, u64> = Cache::new(store.clone(), "square", life());
        cache.local(Local::off())
    };
    let (first, second) = (cache(&here), cache(&there));
    let failing = |_| async { Err::<Vec<(u64, u64)>, _>(io::Error::other("no")) };
    // The server knows the scripts from now on.
    first.get_many_or_load(&[50], failing).await.unwrap_err();
    let before = here.commands();
    first.get_many_or_load(&keys, failing).await.unwrap_err();
    assert_eq!(here.commands() - before, 2, "a fetch, and all leases back");
    let source = Squares::default();
    let wanted: Vec<_> = keys.iter().map(|key| Some(key * key)).collect();
    assert_eq!(read(&second, &source, &keys).await, wanted);
    assert_eq!(
        source.asked(),
        std::slice::from_ref(&keys),
        "nobody holds them"
    );
    // Stale values whose loader has just failed are given, and leased to nobody either.
    clock.advance(10 * SECOND);
    first.get_many_or_load(&keys, failing).await.unwrap();
    let before = here.commands();
    let stale = first.get_many_or_load(&keys, failing).await.unwrap();
    assert!(stale.iter().all(Option::is_some));
    // Behind the answer; one more command on the same connection comes after it.
    while here.commands() - before < 2 {
        tokio::task::yield_now().await;
    }
    first.get(&99).await.unwrap();
    assert_eq!(here.commands() - before, 3, "a fetch, and all leases back");
    assert_eq!(read(&second, &source, &keys).await, wanted);
    assert_eq!(source.asked(), [keys], "nobody holds them");
}

/// A clock that stops whoever reads it next, once.
#[derive(Debug, Default)]
struct Stopping(Mutex<Option<Stop>>);

#[derive(Debug)]
struct Stop {
    stopped: mpsc::Sender<()>,
    go_on: mpsc::Receiver<()>,
    was_told: Arc<AtomicBool>,
}

impl Clock for Stopping {
    fn now_micros(&self) -> u64 {
        let stop = self.0.lock().take();
        if let Some(stop) = stop {
            stop.stopped.send(()).unwrap();
            let told = stop.go_on.recv_timeout(10 * SECOND);
            stop.was_told.store(told.is_ok(), Ordering::SeqCst);
        }
        SystemClock.now_micros()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_of_what_is_here_holds_up_no_other_key() {
    let clock = Arc::new(Stopping::default());
    let store = MemoryStore::builder().clock(Arc::clone(&clock)).build();
    let cache: Cache<u64, u64> = Cache::new(store, "square", ttl::USER);
    let source = Squares::default();
    let here = [Some(1), Some(4), Some(9)];
    assert_eq!(read(&cache, &source, &[1, 2, 3]).await, here);
    let ((stopped, at_stop), (tell, go_on)) = (mpsc::channel(), mpsc::channel());
    let was_told = Arc::<AtomicBool>::default();
    *clock.0.lock() = Some(Stop {
        stopped,
        go_on,
        was_told: Arc::clone(&was_told),
    });
    let batch = {
        let (cache, source) = (cache.clone(), source.clone());
        tokio::spawn(async move { read(&cache, &source, &[1, 2, 3]).await })
    };
    let at_stop = move || at_stop.recv_timeout(10 * SECOND);
    tokio::task::spawn_blocking(at_stop).await.unwrap().unwrap();
    assert_eq!(read(&cache, &source, &[4]).await, [Some(16)]);
    // Fails where nobody waits any more.
    let _ = tell.send(());
    assert_eq!(batch.await.unwrap(), here);
    assert!(was_told.load(Ordering::SeqCst), "it was waited for");
    assert_eq!(source.asked(), [vec![1, 2, 3], vec![4]]);
}

#[tokio::test]
async fn an_invalidation_during_a_batch_hits_its_own_key_only() {
    let cache: Cache<u64, u64> = Cache::new(MemoryStore::new(), "square", ttl::USER)
        .tag_with(|key, _| [Tag::new("square", key)]);
    let (gate, entered) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    for target in [
        Target::key(cache.cache_key(&2)),
        Target::tag(Tag::new("square", 2_u8)),
    ] {
        cache.group().clear().await;
        let batch = {
            let (cache, gate, entered) = (cache.clone(), Arc::clone(&gate), Arc::clone(&entered));
            tokio::spawn(async move {
                let load = |keys: Vec<u64>| async move {
                    entered.add_permits(1);
                    gate.acquire().await.unwrap().forget();
                    Ok::<_, io::Error>(keys.into_iter().map(|key| (key, 100)).collect::<Vec<_>>())
                };
                cache
                    .get_many_or_load(&[1, 2, 3], load)
                    .await
                    .unwrap()
                    .len()
            })
        };
        entered.acquire().await.unwrap().forget();
        cache.group().invalidate([target.clone()]).await;
        gate.add_permits(1);
        assert_eq!(batch.await.unwrap(), 3);
        let left = cache.get_many(&[1, 2, 3]).await.unwrap();
        let left: Vec<bool> = left.iter().map(Option::is_some).collect();
        assert_eq!(left, [true, false, true], "{target:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_processes_that_ask_for_the_same_batch_load_it_once() {
    let (server, prefix) = (shared().await, fresh_prefix());
    let (calls, mut tasks) = (Arc::new(AtomicUsize::new(0)), tokio::task::JoinSet::new());
    let keys: Vec<u64> = (0..50).collect();
    for _ in 0..3 {
        let cache = squares(&server.store_with(&prefix).await);
        for _ in 0..4 {
            let (cache, calls, keys) = (cache.clone(), Arc::clone(&calls), keys.clone());
            tasks.spawn(async move {
                let load = |keys: Vec<u64>| async move {
                    calls.fetch_add(keys.len(), Ordering::SeqCst);
                    tokio::time::sleep(50 * MILLIS).await;
                    Ok::<_, io::Error>(keys.into_iter().map(|key| (key, key)).collect::<Vec<_>>())
                };
                let many = cache.get_many_or_load(&keys, load).await.unwrap();
                assert!(
                    many.iter()
                        .zip(&keys)
                        .all(|(value, key)| **value.as_ref().unwrap() == *key)
                );
            });
        }
    }
    while let Some(task) = tasks.join_next().await {
        task.unwrap();
    }
    assert_eq!(calls.load(Ordering::SeqCst), 50);
}

#[tokio::test]
async fn a_batch_does_not_wait_for_a_part_that_another_process_loads() {
    let (server, prefix) = (shared().await, fresh_prefix());
    let here = squares(&server.store_with(&prefix).await);
    let there = squares(&server.store_with(&prefix).await);
    let (gate, source) = (Arc::new(Semaphore::new(0)), Squares::default());
    let other = {
        let gate = Arc::clone(&gate);
        tokio::spawn(async move {
            let load = |_| async move {
                drop(gate.acquire().await);
                Ok::<_, io::Error>(1_u64)
            };
            *here.get_or_load(&1, load).await.unwrap()
        })
    };
    // It has the lease once a look finds it busy: until then both are loaded here.
    tokio::time::sleep(20 * MILLIS).await;
    assert_eq!(read(&there, &source, &[1, 2]).await, [Some(1), Some(4)]);
    assert!(!other.is_finished());
    gate.add_permits(1);
    assert_eq!(other.await.unwrap(), 1);
}

#[tokio::test]
async fn warming_loads_what_is_absent_in_parts_of_a_hundred() {
    let cache: Cache<u64, u64> = Cache::new(MemoryStore::new(), "square", ttl::USER);
    let source = Squares::default();
    let before: Vec<u64> = (0..30).collect();
    read(&cache, &source, &before).await;
    source.asked();
    let own = source.clone();
    let report = cache.warm(0..250, move |keys| own.clone().load(keys)).await;
    let wanted = WarmReport {
        present: 30,
        loaded: 70,
        missing: 150,
        failed: 0,
    };
    assert_eq!(report, wanted);
    let asked = source.asked();
    assert!(asked.iter().all(|keys| keys.len() <= 100));
    assert_eq!(asked.iter().map(Vec::len).sum::<usize>(), 220);
    cache.group().clear().await;
    let failing = |_| async { Err::<Vec<(u64, u64)>, _>(io::Error::other("no")) };
    let report = cache.warm(0..150, failing).await;
    assert_eq!((report.failed, report.loaded), (150, 0));
}

#[tokio::test]
async fn verifying_compares_and_changes_nothing() {
    let cache: Cache<u64, u64> = Cache::new(MemoryStore::new(), "square", ttl::USER)
        .sanitize(|value: &mut u64| *value %= 10);
    let verify = |found: Option<u64>| {
        let cache = cache.clone();
        async move {
            let load = |_| async move { Ok::<_, io::Error>(found) };
            cache.verify(&1, load).await.unwrap()
        }
    };
    assert_eq!(verify(Some(7)).await, Verified::NotCached);
    cache.put(&1, 17).await.unwrap();
    assert_eq!(verify(Some(27)).await, Verified::InSync);
    assert_eq!(verify(Some(8)).await, Verified::Differs);
    assert_eq!(verify(None).await, Verified::Gone);
    assert_eq!(*cache.get(&1).await.unwrap().unwrap(), 7);
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Customer {
    id: String,
    user: Option<String>,
    email: String,
}

fn customer(email: &str) -> Customer {
    Customer {
        id: "c1".to_owned(),
        user: Some("u1".to_owned()),
        email: email.to_owned(),
    }
}

fn customers(store: impl tower_keep::data::cache::CacheStore) -> Cache<String, Customer> {
    Cache::new(store, "customer", ttl::CUSTOMER)
        .alias("user", |customer: &Customer| customer.user.clone())
        .alias("email", |customer| Some(Email(customer.email.clone())))
}

fn by(user: &str, email: &str) -> [(&'static str, Key); 2] {
    [
        ("user", user.into_key()),
        ("email", Email(email).into_key()),
    ]
}

#[tokio::test]
async fn a_customer_is_found_by_each_of_its_names_and_by_no_old_one() {
    let (server, prefix) = (shared().await, fresh_prefix());
    let (here, there) = (
        server.store_with(&prefix).await,
        server.store_with(&prefix).await,
    );
    let (first, second) = (customers(here), customers(there.clone()));
    let id = "c1".to_owned();
    first.put(&id, customer("old@x.test")).await.unwrap();
    // The server knows the scripts from now on.
    assert!(second.get_by("user", "nobody").await.unwrap().is_none());
    second.get(&"c9".to_owned()).await.unwrap();
    let before = there.commands();
    let found = second.get_by("email", Email(" OLD@x.test")).await.unwrap();
    assert_eq!(*found.unwrap(), customer("old@x.test"));
    assert_eq!(there.commands() - before, 2);
    let found = second.get_by("email", Email("old@x.test")).await.unwrap();
    assert_eq!(found.unwrap().outcome(), CacheOutcome::LocalHit);
    assert_eq!(there.commands() - before, 2);
    // The address changes: the old one finds nothing, here at once, there with the notice.
    first.put(&id, customer("new@x.test")).await.unwrap();
    assert!(
        first
            .get_by("email", Email("old@x.test"))
            .await
            .unwrap()
            .is_none()
    );
    while second
        .get_by("email", Email("old@x.test"))
        .await
        .unwrap()
        .is_some()
    {
        tokio::time::sleep(MILLIS).await;
    }
    assert!(
        second
            .get_by("email", Email("new@x.test"))
            .await
            .unwrap()
            .is_some()
    );
    assert!(second.get_by("user", "u1").await.unwrap().is_some());
    // A name under one alias is no name under another.
    assert!(second.get_by("email", "u1").await.unwrap().is_none());
    let keys: Vec<String> = redis::cmd("KEYS")
        .arg(format!("{prefix}:*"))
        .query_async(&mut server.raw().await)
        .await
        .unwrap();
    assert!(
        keys.iter()
            .all(|key| !key.contains("x.test") && !key.contains("u1")),
        "{keys:?}"
    );
    first.remove(&id).await;
    assert!(first.get_by("user", "u1").await.unwrap().is_none());
}

#[tokio::test]
async fn a_creation_by_user_and_one_by_address_at_once_are_one_load() {
    let cache = customers(MemoryStore::new());
    let (gate, created) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let create = |names: Vec<(&'static str, Key)>| {
        let (cache, gate, created) = (cache.clone(), Arc::clone(&gate), Arc::clone(&created));
        tokio::spawn(async move {
            let load = || async move {
                created.fetch_add(1, Ordering::SeqCst);
                gate.acquire().await.unwrap().forget();
                Ok::<_, io::Error>(("c1".to_owned(), customer("a@x.test")))
            };
            cache.get_or_load_by(names, load).await.unwrap().id.clone()
        })
    };
    let [user, email] = by("u1", "a@x.test");
    let both = create(vec![user.clone(), email.clone()]);
    while created.load(Ordering::SeqCst) < 1 {
        tokio::time::sleep(MILLIS).await;
    }
    let others = [create(vec![email.clone()]), create(vec![user])];
    tokio::task::yield_now().await;
    gate.add_permits(10);
    assert_eq!(both.await.unwrap(), "c1");
    for other in others {
        assert_eq!(other.await.unwrap(), "c1");
    }
    assert_eq!(create(vec![email]).await.unwrap(), "c1");
    assert_eq!(created.load(Ordering::SeqCst), 1);
    assert!(cache.get(&"c1".to_owned()).await.unwrap().is_some());
    let none = cache.get_or_load_by([], || async {
        Ok::<_, io::Error>(("c1".to_owned(), customer("a@x.test")))
    });
    assert!(matches!(none.await, Err(LoadError::Failed(_))));
}

#[tokio::test]
async fn two_processes_that_create_by_different_names_create_once() {
    let (server, prefix) = (shared().await, fresh_prefix());
    let (here, there) = (
        server.store_with(&prefix).await,
        server.store_with(&prefix).await,
    );
    let (first, second) = (customers(here), customers(there.clone()));
    let (gate, created) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let create = |cache: &Cache<String, Customer>, names: Vec<(&'static str, Key)>| {
        let (cache, gate, created) = (cache.clone(), Arc::clone(&gate), Arc::clone(&created));
        tokio::spawn(async move {
            let load = || async move {
                created.fetch_add(1, Ordering::SeqCst);
                drop(gate.acquire().await);
                Ok::<_, io::Error>(("c1".to_owned(), customer("a@x.test")))
            };
            cache.get_or_load_by(names, load).await.unwrap().id.clone()
        })
    };
    // It listens, and the server knows the scripts.
    assert!(second.get_by("user", "u1").await.unwrap().is_none());
    let [user, email] = by("u1", "a@x.test");
    // A name that is given twice is one.
    let leading = create(&first, vec![user, email.clone(), email.clone()]);
    while created.load(Ordering::SeqCst) < 1 {
        tokio::time::sleep(MILLIS).await;
    }
    let before = there.commands();
    let waiting = create(&second, vec![email]);
    // It has looked where the name leads, and asked for its lease.
    while there.commands() < before + 2 {
        tokio::time::sleep(MILLIS).await;
    }
    gate.close();
    assert_eq!(leading.await.unwrap(), "c1");
    assert_eq!(waiting.await.unwrap(), "c1");
    assert_eq!(created.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_value_that_is_due_answers_a_batch_at_once_and_is_loaded_behind_it() {
    let clock = clock();
    let store = MemoryStore::builder().clock(clock.clone()).build();
    let life = Lifetime::new(Ttl::secs(50)).refresh_after(20 * SECOND);
    let cache: Cache<u64, u64> = Cache::new(store, "square", life);
    let source = Squares::default();
    assert_eq!(read(&cache, &source, &[1, 2]).await, [Some(1), Some(4)]);
    assert_eq!(source.asked(), [[1, 2]]);
    clock.advance(20 * SECOND - MILLIS);
    read(&cache, &source, &[1, 2]).await;
    assert!(source.asked().is_empty());
    clock.advance(MILLIS);
    let gate = Arc::new(Semaphore::new(0));
    for _ in 0..2 {
        // Also while the load runs, and by the same load.
        let (gate, source) = (Arc::clone(&gate), source.clone());
        let many = cache.get_many_or_load(&[1, 2], |keys| async move {
            drop(gate.acquire().await);
            source.load(keys).await
        });
        let outcomes = many.await.unwrap().into_iter().flatten();
        let outcomes: Vec<_> = outcomes.map(|cached| cached.outcome()).collect();
        assert_eq!(outcomes, [CacheOutcome::LocalHit; 2]);
    }
    gate.close();
    let age = || async { cache.get(&1).await.unwrap().unwrap().age() };
    while age().await > SECOND {
        tokio::time::sleep(MILLIS).await;
    }
    assert_eq!(source.asked(), [[1, 2]]);
    // With the rest, where there is one.
    clock.advance(20 * SECOND);
    let wanted = [Some(1), Some(9)];
    assert_eq!(read(&cache, &source, &[1, 3]).await, wanted);
    assert_eq!(source.asked(), [[1, 3]]);
}

#[tokio::test]
async fn a_value_that_is_due_is_found_by_name_at_once_and_loaded_behind_once_in_a_while() {
    let clock = clock();
    let life = Lifetime::new(Ttl::secs(50)).refresh_after(20 * SECOND);
    for local in [Local::entries(10), Local::off()] {
        let store = MemoryStore::builder().clock(clock.clone()).build();
        let cache: Cache<String, Customer> = Cache::new(store, "customer", life)
            .alias("email", |customer: &Customer| {
                Some(Email(customer.email.clone()))
            })
            .local(local);
        let loads = Arc::new(AtomicUsize::new(0));
        let find = |fails: bool| {
            let loads = Arc::clone(&loads);
            let [_, email] = by("u1", "a@x.test");
            cache.get_or_load_by([email], move || async move {
                loads.fetch_add(1, Ordering::SeqCst);
                let found = ("c1".to_owned(), customer("a@x.test"));
                if fails {
                    Err(io::Error::other("no"))
                } else {
                    Ok(found)
                }
            })
        };
        assert_eq!(find(false).await.unwrap().outcome(), CacheOutcome::Loaded);
        clock.advance(20 * SECOND);
        let cached = find(true).await.unwrap();
        assert_eq!(cached.age(), 20 * SECOND);
        while loads.load(Ordering::SeqCst) < 2 || cache.stats().load_errors < 1 {
            tokio::time::sleep(MILLIS).await;
        }
        // After a failure the loader has its rest.
        find(false).await.unwrap();
        tokio::time::sleep(5 * MILLIS).await;
        assert_eq!(loads.load(Ordering::SeqCst), 2);
        clock.advance(30 * SECOND);
        assert_eq!(find(false).await.unwrap().outcome(), CacheOutcome::Loaded);
        clock.advance(20 * SECOND);
        assert_eq!(find(false).await.unwrap().age(), 20 * SECOND);
        let age = || async {
            let found = cache.get(&"c1".to_owned()).await.unwrap();
            found.unwrap().age()
        };
        while age().await > SECOND {
            tokio::time::sleep(MILLIS).await;
        }
        assert_eq!(loads.load(Ordering::SeqCst), 4);
    }
}

#[tokio::test]
async fn a_load_by_name_gives_way_to_an_invalidation_of_the_key_it_did_not_know() {
    let cache = customers(MemoryStore::new());
    let id = "c1".to_owned();
    let (gate, entered) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let early = {
        let (cache, gate, entered) = (cache.clone(), Arc::clone(&gate), Arc::clone(&entered));
        tokio::spawn(async move {
            let load = || async move {
                entered.add_permits(1);
                drop(gate.acquire().await);
                Ok::<_, io::Error>(("c1".to_owned(), customer("old@x.test")))
            };
            let found = cache.get_or_load_by(by("u1", "old@x.test"), load).await;
            found.unwrap().email.clone()
        })
    };
    drop(entered.acquire().await);
    cache.remove(&id).await;
    // A later caller does not join it.
    let load = || async { Ok::<_, io::Error>(("c1".to_owned(), customer("new@x.test"))) };
    let late = {
        let cache = cache.clone();
        tokio::spawn(async move {
            let found = cache.get_or_load_by(by("u1", "new@x.test"), load).await;
            found.unwrap().email.clone()
        })
    };
    assert_eq!(late.await.unwrap(), "new@x.test");
    gate.add_permits(1);
    assert_eq!(early.await.unwrap(), "old@x.test");
    let kept = cache.get(&id).await.unwrap().unwrap();
    assert_eq!(kept.email, "new@x.test");
    assert!(
        cache
            .get_by("email", Email("old@x.test"))
            .await
            .unwrap()
            .is_none()
    );
}

#[tokio::test]
async fn compressed_values_are_smaller_and_are_read_by_who_does_not_compress() {
    let (server, prefix) = (shared().await, fresh_prefix());
    let store = server.store_with(&prefix).await;
    let writer: Cache<u8, String> =
        Cache::new(store.clone(), "page", ttl::USER).compress_over(1_000);
    let reader: Cache<u8, String> = Cache::new(store, "page", ttl::USER);
    let (long, short) = ("tower".repeat(2_000), "keep".to_owned());
    writer.put(&1, long.clone()).await.unwrap();
    writer.put(&2, short.clone()).await.unwrap();
    assert_eq!(*reader.get(&1).await.unwrap().unwrap(), long);
    assert_eq!(*reader.get(&2).await.unwrap().unwrap(), short);
    let mut raw = server.raw().await;
    let mut length = redis::cmd("STRLEN");
    length.arg(format!("{prefix}:cache:{{page}}:record:page:1"));
    let length: usize = length.query_async(&mut raw).await.unwrap();
    assert!((1..1_000).contains(&length), "{length}");
}

#[tokio::test(start_paused = true)]
async fn what_is_not_stored_keeps_nobody_waiting() {
    let cache: Cache<u8, String> = Cache::new(MemoryStore::new(), "page", ttl::USER);
    let began = tokio::time::Instant::now();
    for _ in 0..3 {
        let load = |_| async { Ok::<_, io::Error>(Loaded::new("x".to_owned()).no_store()) };
        cache.get_or_load(&1, load).await.unwrap();
        let large = |_| async { Ok::<_, io::Error>("x".repeat(2 << 20)) };
        cache.get_or_load(&2, large).await.unwrap();
        let failing = |_| async { Err::<String, _>(io::Error::other("no")) };
        cache.get_or_load(&3, failing).await.unwrap_err();
    }
    assert!(began.elapsed() < SECOND, "leases were left behind");
    assert!(!cache.contains(&1).await.unwrap() && !cache.contains(&2).await.unwrap());
}

#[tokio::test]
async fn values_that_look_like_nothing_are_values_and_loaded_once() {
    use serde_json::{Value, json};
    let values = || {
        [
            json!(0),
            json!(false),
            json!(""),
            json!([]),
            json!({}),
            json!(null),
            json!("true"),
            json!(true),
            json!("0"),
            json!([1]),
        ]
    };
    let loads = Arc::new(AtomicUsize::new(0));
    let on_redis = shared().await.store_with(&fresh_prefix()).await;
    let caches: [Cache<usize, Value>; 2] = [
        Cache::new(MemoryStore::new(), "any", ttl::USER).local(Local::off()),
        Cache::new(on_redis, "any", ttl::USER).local(Local::off()),
    ];
    for cache in caches {
        loads.store(0, Ordering::SeqCst);
        for _ in 0..3 {
            for (key, value) in values().into_iter().enumerate() {
                let (loads, loaded) = (Arc::clone(&loads), value.clone());
                let found = cache.get_or_load(&key, move |_| async move {
                    loads.fetch_add(1, Ordering::SeqCst);
                    Ok::<_, io::Error>(loaded)
                });
                assert_eq!(*found.await.unwrap(), value);
            }
        }
        let keys: Vec<usize> = (0..values().len()).collect();
        let many = cache.get_many_or_load(&keys, |_| async {
            Err::<Vec<(usize, Value)>, _>(io::Error::other("all are there"))
        });
        let many: Vec<Value> = many
            .await
            .unwrap()
            .into_iter()
            .map(|value| (*value.unwrap()).clone())
            .collect();
        assert_eq!(many, values());
        assert_eq!(loads.load(Ordering::SeqCst), values().len());
    }
}
