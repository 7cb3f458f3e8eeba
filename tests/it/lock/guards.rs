//! Guards: renewed, lost in time, given back on every way out; and waiters in their order.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;
use tower_keep::backend::memory::MemoryStore;
use tower_keep::core::{Clock, NoticeCallback, StoreErrorKind, StoreFuture, Subscription};
use tower_keep::data::lock::store::{Acquired, Asking, LockKey, Owned, Owner};
use tower_keep::data::lock::{
    Lock, LockError, LockErrorKind, LockState, LockStore, ReleaseOutcome,
};
use tower_keep::{MINUTE, SECOND};

use crate::support::redis::{RedisServer, fresh_prefix, shared};

/// Goes with the runtime's own time, which a test may pause.
#[derive(Debug)]
struct Runtime(Instant);

impl Clock for Runtime {
    fn now_micros(&self) -> u64 {
        1_900_000_000_000_000 + self.0.elapsed().as_micros() as u64
    }
}

fn memory() -> MemoryStore {
    MemoryStore::builder()
        .clock(Runtime(Instant::now()))
        .build()
}

/// A store whose answers can be made to fail, to be late, or to deny.
#[derive(Clone, Debug)]
struct Moody {
    inner: MemoryStore,
    mood: Arc<Mood>,
}

#[derive(Debug, Default)]
struct Mood {
    extends_fail: AtomicBool,
    extends_deny: AtomicBool,
    releases_fail: AtomicBool,
    is_full: AtomicBool,
    lands_later: AtomicBool,
    late_ms: AtomicU64,
    asked: AtomicUsize,
}

impl Moody {
    fn new() -> Self {
        Self {
            inner: memory(),
            mood: Arc::default(),
        }
    }
}

impl LockStore for Moody {
    fn acquire(
        &self,
        key: &LockKey,
        owner: Owner,
        lease: Duration,
        asking: Asking,
    ) -> StoreFuture<Acquired> {
        self.mood.asked.fetch_add(1, Ordering::SeqCst);
        let late = Duration::from_millis(self.mood.late_ms.load(Ordering::SeqCst));
        if self.mood.lands_later.load(Ordering::SeqCst) {
            // On its way to the store, whoever waits for it.
            let (inner, key) = (self.inner.clone(), key.clone());
            let done = tokio::spawn(async move {
                tokio::time::sleep(late).await;
                inner.acquire(&key, owner, lease, asking).await
            });
            return StoreFuture::boxed(async move { done.await.unwrap() });
        }
        let answer = self.inner.acquire(key, owner, lease, asking);
        if late.is_zero() {
            return answer;
        }
        // Done at once, and known late.
        StoreFuture::boxed(async move {
            tokio::time::sleep(late).await;
            answer.await
        })
    }

    fn extend(&self, key: &LockKey, owner: Owner, lease: Duration) -> StoreFuture<Owned> {
        if self.mood.extends_fail.load(Ordering::SeqCst) {
            return StoreFuture::ready(Err(StoreErrorKind::Unavailable.into()));
        }
        if self.mood.extends_deny.load(Ordering::SeqCst) {
            return StoreFuture::ok(Owned::Lost);
        }
        self.inner.extend(key, owner, lease)
    }

    fn release(&self, key: &LockKey, owner: Owner) -> StoreFuture<Owned> {
        if self.mood.releases_fail.load(Ordering::SeqCst) {
            let kind = match self.mood.is_full.load(Ordering::SeqCst) {
                true => StoreErrorKind::Full,
                false => StoreErrorKind::Unavailable,
            };
            return StoreFuture::ready(Err(kind.into()));
        }
        self.inner.release(key, owner)
    }

    fn inspect(&self, key: &LockKey) -> StoreFuture<Option<LockState>> {
        self.inner.inspect(key)
    }

    fn subscribe(&self, key: &LockKey, callback: NoticeCallback) -> StoreFuture<Subscription> {
        LockStore::subscribe(&self.inner, key, callback)
    }
}

fn retry_after(error: &LockError) -> u64 {
    match error {
        LockError::Busy { retry_after } => *retry_after,
        other => panic!("not busy: {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_taken_lock_is_busy_for_the_rest_of_its_lease_in_whole_seconds() {
    let lock = Lock::new(memory(), "payment").lease(30 * SECOND);
    let guard = lock.try_acquire("k").await.unwrap();
    assert!(guard.is_held());
    assert_eq!(retry_after(&lock.try_acquire("k").await.unwrap_err()), 30);
    tokio::time::sleep(Duration::from_millis(9_500)).await;
    assert_eq!(retry_after(&lock.try_acquire("k").await.unwrap_err()), 21);
    assert_eq!(
        retry_after(&lock.acquire("k", SECOND).await.unwrap_err()),
        30
    );
    assert!(lock.try_acquire("other").await.is_ok());
    assert_eq!(guard.release().await.unwrap(), ReleaseOutcome::Released);
    assert!(lock.try_acquire("k").await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_lock_is_renewed_and_lost_when_the_longest_hold_is_over() {
    let lock = Lock::new(memory(), "l")
        .lease(30 * SECOND)
        .hold_at_most(2 * MINUTE);
    let started = Instant::now();
    let guard = lock.try_acquire("k").await.unwrap();
    tokio::time::sleep(110 * SECOND).await;
    assert!(guard.is_held() && lock.try_acquire("k").await.is_err());
    guard.lost().await;
    let held = started.elapsed();
    assert!(held < 2 * MINUTE && held > 119 * SECOND, "{held:?}");
    // Lost before the store lets go: nobody else has it yet.
    assert!(!guard.is_held() && lock.inspect("k").await.unwrap().is_some());
    tokio::time::sleep(2 * MINUTE - started.elapsed()).await;
    assert!(lock.try_acquire("k").await.is_ok());
    assert_eq!(guard.release().await.unwrap(), ReleaseOutcome::WasLost);
}

#[tokio::test(start_paused = true)]
async fn with_the_store_away_it_is_lost_before_the_lease_ends() {
    let store = Moody::new();
    let lock = Lock::new(store.clone(), "l").lease(30 * SECOND);
    let started = Instant::now();
    let guard = lock.try_acquire("k").await.unwrap();
    store.mood.extends_fail.store(true, Ordering::SeqCst);
    guard.lost().await;
    assert_eq!(started.elapsed(), 30 * SECOND - Duration::from_millis(302));
    assert!(!guard.is_held() && lock.inspect("k").await.unwrap().is_some());
}

#[tokio::test(start_paused = true)]
async fn one_failed_renewal_alone_loses_nothing() {
    let store = Moody::new();
    let lock = Lock::new(store.clone(), "l").lease(30 * SECOND);
    let guard = lock.try_acquire("k").await.unwrap();
    for _ in 0..5 {
        store.mood.extends_fail.store(true, Ordering::SeqCst);
        tokio::time::sleep(12 * SECOND).await;
        store.mood.extends_fail.store(false, Ordering::SeqCst);
        tokio::time::sleep(8 * SECOND).await;
        assert!(guard.is_held());
    }
}

#[tokio::test(start_paused = true)]
async fn another_owner_is_told_at_once() {
    let store = Moody::new();
    let lock = Lock::new(store.clone(), "l").lease(30 * SECOND);
    let started = Instant::now();
    let guard = lock.try_acquire("k").await.unwrap();
    store.mood.extends_deny.store(true, Ordering::SeqCst);
    guard.lost().await;
    assert_eq!(started.elapsed(), 10 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn an_acquire_that_is_dropped_gives_back_what_it_got() {
    let store = Moody::new();
    let lock = Lock::new(store.clone(), "l");
    store.mood.late_ms.store(100, Ordering::SeqCst);
    let dropped = tokio::time::timeout(Duration::from_millis(50), lock.try_acquire("k"));
    assert!(dropped.await.is_err());
    store.mood.late_ms.store(0, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(lock.inspect("k").await.unwrap(), None);
    // Dropped while it waits, it leaves the lane to the next.
    let guard = lock.try_acquire("k").await.unwrap();
    let waits = tokio::time::timeout(SECOND, lock.acquire("k", MINUTE));
    assert!(waits.await.is_err());
    let next = tokio::spawn({
        let lock = lock.clone();
        async move { lock.acquire("k", MINUTE).await.is_ok() }
    });
    tokio::task::yield_now().await;
    drop(guard);
    assert!(next.await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn an_acquire_that_lands_after_its_caller_has_left_is_given_back_all_the_same() {
    let store = Moody::new();
    let lock = Lock::new(store.clone(), "l");
    store.mood.lands_later.store(true, Ordering::SeqCst);
    store.mood.late_ms.store(100, Ordering::SeqCst);
    let dropped = tokio::time::timeout(Duration::from_millis(50), lock.try_acquire("k"));
    assert!(dropped.await.is_err());
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(lock.inspect("k").await.unwrap().is_some());
    // Far below the lease of 30 s.
    tokio::time::sleep(5 * SECOND).await;
    assert_eq!(lock.inspect("k").await.unwrap(), None);
}

#[tokio::test]
async fn a_full_server_frees_a_lock_and_keeps_its_fence() {
    let server = RedisServer::start().await;
    let store = server.store_with("t").await;
    let lock = Lock::new(store, "l");
    let memory = async |bytes: &str| {
        let set = redis::cmd("CONFIG")
            .arg(&["SET", "maxmemory", bytes])
            .to_owned();
        set.query_async::<()>(&mut server.raw().await)
            .await
            .unwrap();
    };
    let guard = lock.try_acquire("k").await.unwrap();
    let fence = guard.fence();
    memory("1").await;
    assert_eq!(guard.release().await.unwrap(), ReleaseOutcome::Released);
    assert_eq!(lock.inspect("k").await.unwrap(), None);
    let refused = lock.try_acquire("k").await.unwrap_err();
    assert!(matches!(refused.kind(), LockErrorKind::Full), "{refused:?}");
    memory("0").await;
    assert!(lock.try_acquire("k").await.unwrap().fence() > fence);
}

#[tokio::test(start_paused = true)]
async fn what_could_not_be_released_in_an_outage_is_released_after_it_and_not_at_its_end() {
    let store = Moody::new();
    let lock = Lock::new(store.clone(), "l").lease(MINUTE);
    for (is_dropped, is_full) in [(false, false), (true, false), (false, true), (true, true)] {
        let guard = lock.try_acquire("k").await.unwrap();
        store.mood.is_full.store(is_full, Ordering::SeqCst);
        store.mood.releases_fail.store(true, Ordering::SeqCst);
        if is_dropped {
            drop(guard);
        } else {
            guard.release().await.unwrap_err();
        }
        tokio::time::sleep(5 * SECOND).await;
        assert!(lock.inspect("k").await.unwrap().is_some());
        store.mood.releases_fail.store(false, Ordering::SeqCst);
        tokio::time::sleep(5 * SECOND).await;
        assert_eq!(lock.inspect("k").await.unwrap(), None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_dropped_guard_and_a_panic_release() {
    let lock = Lock::new(memory(), "l");
    drop(lock.try_acquire("k").await.unwrap());
    let waited = Instant::now();
    let run = tokio::spawn({
        let lock = lock.clone();
        async move {
            let work = |_| async { panic!("the work fails") };
            lock.run("k", SECOND, work).await
        }
    });
    let ended: Result<Result<(), LockError>, _> = run.await;
    assert!(ended.unwrap_err().is_panic());
    let ran = lock.run("k", SECOND, |fence| async move { fence.0 > 0 });
    assert!(ran.await.unwrap());
    assert!(lock.try_acquire("k").await.is_ok());
    assert!(waited.elapsed() < SECOND);
}

#[tokio::test(start_paused = true)]
async fn work_is_dropped_when_its_lock_is_lost() {
    let store = Moody::new();
    let lock = Lock::new(store.clone(), "l").lease(SECOND);
    store.mood.extends_deny.store(true, Ordering::SeqCst);
    let finished = Arc::new(AtomicBool::new(false));
    let end = Arc::clone(&finished);
    let work = |_| async move {
        tokio::time::sleep(MINUTE).await;
        end.store(true, Ordering::SeqCst);
    };
    let lost = lock.run("k", SECOND, work).await.unwrap_err();
    assert_eq!(lost.kind(), LockErrorKind::Lost);
    tokio::time::sleep(2 * MINUTE).await;
    assert!(!finished.load(Ordering::SeqCst));
}

#[tokio::test(start_paused = true)]
async fn a_hundred_waiters_get_it_once_each_in_order_and_one_asks_at_a_time() {
    let store = Moody::new();
    let lock = Lock::new(store.clone(), "l");
    let guard = lock.try_acquire("k").await.unwrap();
    let (order, inside) = (Arc::new(parking()), Arc::new(AtomicBool::new(false)));
    let mut waiters = tokio::task::JoinSet::new();
    for number in 0..100 {
        let (lock, order, inside) = (lock.clone(), Arc::clone(&order), Arc::clone(&inside));
        waiters.spawn(async move {
            let guard = lock.acquire("k", 10 * MINUTE).await.unwrap();
            assert!(!inside.swap(true, Ordering::SeqCst), "two inside");
            order.lock().unwrap().push(number);
            tokio::time::sleep(Duration::from_millis(5)).await;
            inside.store(false, Ordering::SeqCst);
            guard.release().await.unwrap();
        });
        tokio::task::yield_now().await;
    }
    let before = store.mood.asked.load(Ordering::SeqCst);
    tokio::time::sleep(SECOND).await;
    assert_eq!(
        store.mood.asked.load(Ordering::SeqCst),
        before,
        "nobody asks while it is held"
    );
    assert!(before <= 3, "one waiter asks, not a hundred: {before}");
    drop(guard);
    while let Some(done) = waiters.join_next().await {
        done.unwrap();
    }
    assert_eq!(*order.lock().unwrap(), (0..100).collect::<Vec<_>>());
}

fn parking() -> std::sync::Mutex<Vec<u32>> {
    std::sync::Mutex::default()
}

#[tokio::test]
async fn a_waiter_that_comes_after_the_last_has_left_waits_for_no_connection() {
    let server = RedisServer::start().await;
    let handle = || server.store_with("keep");
    let (lock, other) = (
        Lock::new(handle().await, "l"),
        Lock::new(handle().await, "l"),
    );
    let mut raw = server.raw().await;
    let mut connections = Vec::new();
    for key in 0..6 {
        let guard = lock.try_acquire(key).await.unwrap();
        let release = async {
            let channel = format!("*{{l:{key}}}*");
            loop {
                let mut listeners = redis::cmd("PUBSUB");
                listeners.arg("CHANNELS").arg(&channel);
                let listeners: Vec<String> = listeners.query_async(&mut raw).await.unwrap();
                if !listeners.is_empty() {
                    break;
                }
            }
            guard.release().await.unwrap();
        };
        let (waited, ()) = tokio::join!(other.acquire(key, MINUTE), release);
        waited.unwrap().release().await.unwrap();
        let mut stats = redis::cmd("INFO");
        let stats: String = stats.arg("stats").query_async(&mut raw).await.unwrap();
        let line = stats
            .lines()
            .find(|line| line.starts_with("total_connections_received"));
        connections.push(line.unwrap().to_owned());
    }
    assert_eq!(connections[0], connections[5]);
}

#[tokio::test]
async fn each_step_is_one_command_and_a_waiter_is_woken_by_the_release() {
    let (server, prefix) = (shared().await, fresh_prefix());
    let store = server.store_with(&prefix).await;
    let other = Lock::new(server.store_with(&prefix).await, "l");
    let lock = Lock::new(store.clone(), "l");
    lock.try_acquire("warm")
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    let before = store.commands();
    let guard = lock.try_acquire("k").await.unwrap();
    assert_eq!(store.commands() - before, 1);
    let waiter =
        tokio::spawn(async move { other.acquire("k", MINUTE).await.map(|guard| guard.fence()) });
    tokio::time::sleep(Duration::from_millis(50)).await;
    let (fence, released) = (guard.fence(), std::time::Instant::now());
    let before = store.commands();
    assert_eq!(guard.release().await.unwrap(), ReleaseOutcome::Released);
    assert_eq!(store.commands() - before, 1);
    assert!(waiter.await.unwrap().unwrap() > fence);
    // Far below the lease of 30 s: it was told.
    assert!(released.elapsed() < 5 * SECOND);
}

#[tokio::test]
async fn with_the_store_away_nobody_gets_it() {
    let mut server = RedisServer::start().await;
    let one = Lock::new(server.store_with("t").await, "l");
    let two = Lock::new(server.store_with("t").await, "l");
    server.kill();
    for lock in [one, two] {
        let refused = lock.acquire("k", SECOND).await.unwrap_err().kind();
        assert!(
            matches!(
                refused,
                LockErrorKind::Unavailable | LockErrorKind::TimedOut
            ),
            "{refused:?}"
        );
    }
}

#[tokio::test]
async fn an_answer_lost_on_a_cut_link_is_asked_for_once_more() {
    let server = shared().await;
    let proxy = crate::support::proxy::Proxy::before(server.address()).await;
    let url = format!("redis://{}/", proxy.address());
    let store = tower_keep::backend::redis::RedisStore::builder(&url);
    let store = store
        .prefix(&fresh_prefix())
        .timeout(5 * SECOND)
        .open()
        .await
        .unwrap();
    let lock = Lock::new(store, "l");
    lock.try_acquire("warm")
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    proxy.cut_at_next_reply();
    let guard = lock.try_acquire("k").await.unwrap();
    proxy.cut_at_next_reply();
    assert_eq!(guard.release().await.unwrap(), ReleaseOutcome::Released);
}

#[tokio::test(start_paused = true)]
async fn times_without_end_are_cut_to_a_year() {
    let lock = Lock::new(memory(), "l")
        .lease(Duration::MAX)
        .hold_at_most(Duration::MAX);
    let guard = lock.try_acquire("k").await.unwrap();
    let waits = tokio::time::timeout(SECOND, lock.acquire("k", Duration::MAX));
    assert!(waits.await.is_err() && guard.is_held());
}
