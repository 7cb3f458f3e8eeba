//! What the services cost in this process: counted, never timed.

use std::hint::black_box;
use std::io;

use futures_util::FutureExt as _;
use tower_keep::backend::memory::MemoryStore;
use tower_keep::core::{Email, IntoKey};
use tower_keep::data::cache::{Cache, CacheOutcome};
use tower_keep::data::counter::Counter;
use tower_keep::ttl;

/// A load with its flight, lease, record and fill, the growth of tables included; the features for telemetry are on.
const MOST_OF_A_LOAD: f64 = 40.0;

/// Allocations of this thread in a hundred calls of what is known already.
fn allocations<T>(mut call: impl FnMut() -> T) -> u64 {
    black_box(call());
    let counted = allocation_counter::measure(|| {
        for _ in 0..100 {
            black_box(call());
        }
    });
    counted.count_total
}

async fn check_hits<K>(key: K)
where
    K: IntoKey + std::hash::Hash + Eq + Clone + Send + Sync + 'static,
{
    let cache: Cache<K, String> = Cache::new(MemoryStore::new(), "user", ttl::USER);
    let load = |_: K| async { Ok::<_, io::Error>("ann".to_owned()) };
    cache.get_or_load(&key, load).await.unwrap();
    let hit = || {
        let cached = cache.get_or_load(&key, load).now_or_never();
        let cached = cached.expect("known already").unwrap();
        assert_eq!(cached.outcome(), CacheOutcome::LocalHit);
    };
    assert_eq!(allocations(hit), 0);
    let found = || {
        let cached = cache.get(&key).now_or_never();
        assert_eq!(&**cached.expect("known already").unwrap().unwrap(), "ann");
    };
    assert_eq!(allocations(found), 0);
    // After an invalidation of something else the names are looked at once more, and no longer.
    cache.group().clear().await;
    cache.get_or_load(&key, load).await.unwrap();
    cache.group().invalidate([cache.target(&key)]).await;
    cache.get_or_load(&key, load).await.unwrap();
    assert_eq!(allocations(hit), 0);
}

#[tokio::test]
async fn a_hit_in_this_process_allocates_nothing() {
    check_hits("a name with some % escapes".to_owned()).await;
    check_hits(7_u64).await;
    check_hits(("appointments".to_owned(), -7_i32, u128::MAX)).await;
}

#[tokio::test]
async fn a_remembered_absence_allocates_nothing() {
    let cache: Cache<u64, String> = Cache::new(MemoryStore::new(), "user", ttl::USER);
    let load = |_: u64| async { Ok::<_, io::Error>(None::<String>) };
    assert!(cache.find_or_load(&7, load).await.unwrap().is_none());
    let absent = || {
        let cached = cache.find_or_load(&7, load).now_or_never();
        assert!(cached.expect("known already").unwrap().is_none());
    };
    assert_eq!(allocations(absent), 0);
}

#[tokio::test]
async fn a_count_that_waits_already_is_added_to_without_an_allocation() {
    let counter = Counter::new(MemoryStore::new(), "metrics");
    let add = || counter.add(("signup", "free", 7), 1, ttl::METRIC).unwrap();
    assert_eq!(allocations(add), 0);
    counter.flush().await.unwrap();
    assert_eq!(counter.value(("signup", "free", 7)).await.unwrap(), 101);
    // What is hashed costs what hashing costs.
    assert!(Email("ann@example.test").into_key().as_str().len() > 40);
}

#[test]
fn a_load_allocates_a_bounded_number_of_times() {
    let cache: Cache<u64, u64> = Cache::new(MemoryStore::new(), "user", ttl::USER);
    // One thread runs everything, tasks included.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let load = |keys: std::ops::Range<u64>| {
        runtime.block_on(async {
            for key in keys {
                let load = |id: u64| async move { Ok::<_, io::Error>(id) };
                cache.get_or_load(&key, load).await.unwrap();
            }
        });
    };
    load(0..1_000);
    let counted = allocation_counter::measure(|| load(1_000..2_000));
    let each = counted.count_total as f64 / 1_000.0;
    assert!(each <= MOST_OF_A_LOAD, "{each} a load");
}
