//! Every conformance suite on every engine.

mod rate_limit {
    use std::sync::Arc;

    use tower_keep::backend::fallback::Fallback;
    use tower_keep::backend::memory::MemoryStore;
    use tower_keep::conformance::rate_limit::{admitted_of, history, rate_limit};
    use tower_keep::core::{ManualClock, Timestamp};
    use tower_keep::rate_limit::{Quota, RateLimitStore};

    use crate::support::redis::shared;

    /// The middle of a month, a window and a sub-bucket.
    fn clock() -> ManualClock {
        ManualClock::at("2030-01-15T12:00:03.007Z".parse::<Timestamp>().unwrap())
    }

    fn memory(clock: &ManualClock) -> MemoryStore {
        MemoryStore::builder().clock(clock.clone()).build()
    }

    #[tokio::test]
    async fn memory_keeps_its_promises() {
        let clock = clock();
        rate_limit(Arc::new(memory(&clock)), &clock).await;
    }

    #[tokio::test]
    async fn redis_keeps_its_promises() {
        let clock = clock();
        rate_limit(Arc::new(shared().await.store(&clock).await), &clock).await;
    }

    #[tokio::test]
    async fn a_fallback_keeps_the_promises_of_its_primary() {
        let clock = clock();
        let store = Fallback::new(shared().await.store(&clock).await, memory(&clock));
        rate_limit(Arc::new(store), &clock).await;
    }

    #[tokio::test]
    async fn memory_and_redis_tell_the_same_histories() {
        for seed in 0..24 {
            let (here, there) = (clock(), clock());
            let redis = shared().await.store(&there).await;
            let by_memory = history(Arc::new(memory(&here)), &here, seed, 400).await;
            let by_redis = history(Arc::new(redis), &there, seed, 400).await;
            for (line, (here, there)) in by_memory.lines().zip(by_redis.lines()).enumerate() {
                assert_eq!(here, there, "seed {seed}, line {line}");
            }
            assert_eq!(by_memory.lines().count(), by_redis.lines().count());
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn of_fifty_in_parallel_exactly_five_pass_also_over_two_handles() {
        let quota = Quota::new(5, std::time::Duration::from_secs(900));
        let one: Arc<dyn RateLimitStore> = Arc::new(MemoryStore::new());
        assert_eq!(admitted_of(50, &[one], quota, "memory").await, 5);
        let server = shared().await;
        let mut handles: Vec<Arc<dyn RateLimitStore>> = Vec::new();
        for _ in 0..2 {
            handles.push(Arc::new(server.store_with("fifty").await));
        }
        assert_eq!(admitted_of(50, &handles, quota, "redis").await, 5);
    }
}

mod reservation {
    use std::sync::Arc;
    use std::time::Duration;

    use tower_keep::backend::memory::MemoryStore;
    use tower_keep::backend::sql::SqlStore;
    use tower_keep::conformance::reservation::{model, reservation, winners_of};
    use tower_keep::core::{ManualClock, Timestamp};
    use tower_keep::reservation::{ReservationStore, Slot};

    use crate::support::postgres::shared;

    fn clock() -> ManualClock {
        ManualClock::at("2030-01-01T09:00:00Z".parse::<Timestamp>().unwrap())
    }

    fn memory(clock: &ManualClock) -> Arc<dyn ReservationStore> {
        Arc::new(MemoryStore::builder().clock(clock.clone()).build())
    }

    async fn sql(url: &str, clock: &ManualClock) -> Arc<dyn ReservationStore> {
        let store = SqlStore::builder(url).clock(clock.clone()).open();
        Arc::new(store.await.unwrap())
    }

    fn slot() -> Slot {
        let start = Timestamp::MAX.minus(Duration::from_secs(86_400));
        Slot::new("hot", start..start.plus(Duration::from_secs(3_600)))
    }

    #[tokio::test]
    async fn memory_keeps_its_promises() {
        let clock = clock();
        reservation(memory(&clock), &clock).await;
    }

    #[tokio::test]
    async fn memory_agrees_with_a_coloured_calendar() {
        for seed in 0..40 {
            let clock = clock();
            model(memory(&clock), &clock, seed, 500).await;
        }
    }

    #[tokio::test]
    async fn sqlite_in_memory_keeps_its_promises() {
        let clock = clock();
        reservation(sql("sqlite::memory:", &clock).await, &clock).await;
    }

    #[tokio::test]
    async fn a_sqlite_file_keeps_its_promises() {
        let (clock, folder) = (clock(), tempfile::tempdir().unwrap());
        let url = format!("sqlite:{}", folder.path().join("keep.db").display());
        reservation(sql(&url, &clock).await, &clock).await;
    }

    #[tokio::test]
    async fn postgres_keeps_its_promises() {
        let clock = clock();
        let url = shared().await.database().await;
        reservation(sql(&url, &clock).await, &clock).await;
    }

    #[tokio::test]
    async fn sqlite_agrees_with_a_coloured_calendar() {
        for seed in 0..12 {
            let clock = clock();
            model(sql("sqlite::memory:", &clock).await, &clock, seed, 300).await;
        }
    }

    #[tokio::test]
    async fn postgres_agrees_with_a_coloured_calendar() {
        for seed in 100..103 {
            let clock = clock();
            let url = shared().await.database().await;
            model(sql(&url, &clock).await, &clock, seed, 200).await;
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn of_64_wishes_for_one_slot_exactly_one_wins() {
        let memory: Arc<dyn ReservationStore> = Arc::new(MemoryStore::new());
        let sqlite: Arc<dyn ReservationStore> =
            Arc::new(SqlStore::connect("sqlite::memory:").await.unwrap());
        for store in [memory, sqlite] {
            assert_eq!(winners_of(64, &[Arc::clone(&store)], slot()).await, 1);
            let places = slot().unit("places").units(1).of(10);
            assert_eq!(winners_of(64, &[store], places).await, 10);
        }
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("keep.db").display());
        let server = shared().await.database().await;
        for url in [url, server] {
            let mut pools: Vec<Arc<dyn ReservationStore>> = Vec::new();
            for _ in 0..2 {
                pools.push(Arc::new(SqlStore::connect(&url).await.unwrap()));
            }
            assert_eq!(winners_of(64, &pools, slot()).await, 1, "{url}");
            let places = slot().unit("places").units(1).of(10);
            assert_eq!(winners_of(64, &pools, places).await, 10, "{url}");
        }
    }
}
