//! Every conformance suite on every engine.

mod idempotency {
    use std::sync::Arc;
    use std::time::Duration;

    use bytes::Bytes;
    use tower_keep::backend::fallback::Fallback;
    use tower_keep::backend::memory::MemoryStore;
    use tower_keep::backend::sql::SqlStore;
    use tower_keep::conformance::idempotency::{
        answer, claim, fresh_id, fresh_nonce, histories, idempotency, print, winners_of,
    };
    use tower_keep::core::{ManualClock, StoreErrorKind, Timestamp};
    use tower_keep::idempotency::{Begin, Content, IdempotencyStore, Owned, State};

    use crate::support::redis::{fresh_prefix, shared};

    fn clock() -> ManualClock {
        ManualClock::at("2030-01-01T00:00:00.007Z".parse::<Timestamp>().unwrap())
    }

    fn memory(clock: &ManualClock) -> MemoryStore {
        MemoryStore::builder().clock(clock.clone()).build()
    }

    #[tokio::test]
    async fn memory_keeps_its_promises() {
        let clock = clock();
        idempotency(Arc::new(memory(&clock)), &clock).await;
    }

    #[tokio::test]
    async fn redis_keeps_its_promises() {
        let clock = clock();
        idempotency(Arc::new(shared().await.store(&clock).await), &clock).await;
    }

    /// SQLite in a file, since several connections are the harder case, and Postgres.
    async fn sql(clock: &ManualClock) -> Vec<(Option<tempfile::TempDir>, SqlStore)> {
        let folder = tempfile::tempdir().unwrap();
        let file = format!("sqlite:{}", folder.path().join("keys.db").display());
        let url = crate::support::postgres::shared().await.database().await;
        let mut stores = Vec::new();
        for (folder, url) in [(Some(folder), file), (None, url)] {
            let db = SqlStore::builder(&url).clock(clock.clone()).open();
            stores.push((folder, db.await.unwrap()));
        }
        stores
    }

    #[tokio::test]
    async fn sqlite_and_postgres_keep_their_promises() {
        let clock = clock();
        for (_folder, db) in sql(&clock).await {
            idempotency(Arc::new(db), &clock).await;
        }
        let memory = SqlStore::builder("sqlite::memory:").clock(clock.clone());
        idempotency(Arc::new(memory.open().await.unwrap()), &clock).await;
    }

    #[tokio::test]
    async fn random_histories_on_sqlite_and_postgres_follow_from_the_facts() {
        for seed in 0..6 {
            let clock = clock();
            for (_folder, db) in sql(&clock).await {
                histories(Arc::new(db), &clock, seed, 200).await;
            }
        }
    }

    /// Another version, an unknown state, an answer cut off: none of them is a miss, nor after its end.
    #[tokio::test]
    async fn a_damaged_row_is_answered_and_never_run_again() {
        let clock = clock();
        for (_folder, db) in sql(&clock).await {
            for damage in [
                "version = 2",
                "state = 7",
                "at_end = 0",
                "nonce = fingerprint",
                "answer = nonce",
            ] {
                let (id, first) = (fresh_id(), claim(fresh_nonce(), print(1)));
                db.begin(&id, &first).await.unwrap();
                let ttl = Duration::from_secs(600);
                let done = answer(print(1), b"body");
                db.complete(&id, first.nonce, done, ttl).await.unwrap();
                let text = format!(
                    "update keep_idempotency set {damage} where fence > 0 and expires_at > 0"
                );
                crate::support::sql::execute(&db, &text).await;
                let next = claim(fresh_nonce(), print(1));
                let Begin::Done(record) = db.begin(&id, &next).await.unwrap() else {
                    panic!("{damage}: not taken for an answer");
                };
                assert!(
                    matches!(record.content, Content::Unreadable),
                    "{damage}: {record:?}"
                );
                let complete = db.complete(&id, next.nonce, answer(print(1), b"x"), ttl);
                assert_eq!(complete.await.unwrap(), Owned::Lost, "{damage}");
                crate::support::sql::execute(&db, "delete from keep_idempotency").await;
            }
        }
    }

    #[tokio::test]
    async fn rows_that_are_gone_are_swept_now_and_then_and_no_other() {
        let clock = clock();
        for (_folder, db) in sql(&clock).await {
            for _ in 0..600 {
                let (id, first) = (fresh_id(), claim(fresh_nonce(), print(1)));
                db.begin(&id, &first).await.unwrap();
            }
            let (kept, mut long) = (fresh_id(), claim(fresh_nonce(), print(1)));
            long.keep = Duration::from_secs(86_400);
            db.begin(&kept, &long).await.unwrap();
            clock.advance(Duration::from_secs(700));
            let count = "select count(*) from keep_idempotency";
            assert_eq!(crate::support::sql::number(&db, count).await, 601);
            for _ in 0..256 {
                db.begin(&kept, &long).await.unwrap();
            }
            let waiting = std::time::Instant::now();
            while crate::support::sql::number(&db, count).await != 101 {
                assert!(waiting.elapsed() < Duration::from_secs(30), "not swept");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            assert!(db.peek(&kept).await.unwrap().is_some());
        }
    }

    #[tokio::test]
    async fn a_fallback_keeps_the_promises_of_its_primary() {
        let clock = clock();
        let (redis, second) = (shared().await.store(&clock).await, memory(&clock));
        let store = Fallback::new(redis, second.clone());
        idempotency(Arc::new(store.clone()), &clock).await;
        let id = fresh_id();
        store
            .begin(&id, &claim(fresh_nonce(), print(1)))
            .await
            .unwrap();
        assert!(
            second.peek(&id).await.unwrap().is_none(),
            "the secondary was asked"
        );
    }

    #[tokio::test]
    async fn random_histories_on_memory_follow_from_the_facts() {
        for seed in 0..400 {
            let clock = clock();
            histories(Arc::new(memory(&clock)), &clock, seed, 300).await;
        }
    }

    #[tokio::test]
    async fn random_histories_on_redis_follow_from_the_facts() {
        for seed in 0..20 {
            let clock = clock();
            let store = shared().await.store(&clock).await;
            histories(Arc::new(store), &clock, seed, 300).await;
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn of_fifty_contenders_one_wins_also_over_two_handles() {
        let one: Arc<dyn IdempotencyStore> = Arc::new(MemoryStore::new());
        assert_eq!(winners_of(50, &[one]).await, 1);
        let (server, prefix) = (shared().await, fresh_prefix());
        let mut handles: Vec<Arc<dyn IdempotencyStore>> = Vec::new();
        for _ in 0..2 {
            handles.push(Arc::new(server.store_with(&prefix).await));
        }
        assert_eq!(winners_of(50, &handles).await, 1);
        let folder = tempfile::tempdir().unwrap();
        let file = format!("sqlite:{}", folder.path().join("keys.db").display());
        let url = crate::support::postgres::shared().await.database().await;
        for url in [file, url] {
            let mut handles: Vec<Arc<dyn IdempotencyStore>> = Vec::new();
            for _ in 0..2 {
                handles.push(Arc::new(SqlStore::connect(&url).await.unwrap()));
            }
            assert_eq!(winners_of(50, &handles).await, 1, "{url}");
        }
    }

    #[tokio::test]
    async fn a_full_memory_refuses_claims_and_holds_room_for_a_tombstone() {
        let clock = clock();
        let builder = MemoryStore::builder().clock(clock.clone());
        let store = builder.max_entries(2).max_bytes(100_000).build();
        let claims = [1, 2].map(|_| (fresh_id(), claim(fresh_nonce(), print(1))));
        for (id, claim) in &claims {
            assert!(matches!(
                store.begin(id, claim).await.unwrap(),
                Begin::Run(_)
            ));
        }
        let refused = store
            .begin(&fresh_id(), &claim(fresh_nonce(), print(1)))
            .await;
        assert_eq!(refused.unwrap_err().kind(), StoreErrorKind::Full);
        let (id, first) = &claims[0];
        let large = answer(print(1), &vec![0; 200_000]);
        let refused = store
            .complete(id, first.nonce, large, Duration::from_secs(9))
            .await;
        assert_eq!(refused.unwrap_err().kind(), StoreErrorKind::TooLarge);
        let small = answer(print(1), b"fits");
        let done = store
            .complete(id, first.nonce, small, Duration::from_secs(9))
            .await;
        assert_eq!(done.unwrap(), Owned::Yes);
        clock.advance(Duration::from_secs(9));
        let next = store
            .begin(&fresh_id(), &claim(fresh_nonce(), print(1)))
            .await
            .unwrap();
        assert!(matches!(next, Begin::Run(_)), "what has expired makes room");
    }

    /// A record of another version, one cut off, and one with a forged length: none of them is a miss.
    #[tokio::test]
    async fn a_damaged_record_is_answered_and_never_run_again() {
        let (server, prefix) = (shared().await, fresh_prefix());
        let store = server.store_with(&prefix).await;
        let mut raw = server.raw().await;
        let (id, first) = (fresh_id(), claim(fresh_nonce(), print(1)));
        store.begin(&id, &first).await.unwrap();
        let done = answer(print(1), b"body");
        store
            .complete(&id, first.nonce, done, Duration::from_secs(600))
            .await
            .unwrap();
        let name = format!("{prefix}:idempotency:{id}");
        let whole: Vec<u8> = ::redis::cmd("GET")
            .arg(&name)
            .query_async(&mut raw)
            .await
            .unwrap();
        let mut newer = whole.clone();
        newer[0] = 2;
        let mut forged = whole.clone();
        forged[87] = 0xFF;
        for damaged in [
            b"x".to_vec(),
            newer,
            whole[..whole.len() - 1].to_vec(),
            forged,
        ] {
            let set = ::redis::cmd("SET").arg(&name).arg(&damaged).to_owned();
            let _: () = set.query_async(&mut raw).await.unwrap();
            let begun = store
                .begin(&id, &claim(fresh_nonce(), print(1)))
                .await
                .unwrap();
            let Begin::Done(record) = begun else {
                panic!("{begun:?}")
            };
            assert!(matches!(record.content, Content::Unreadable), "{record:?}");
            assert_eq!(record.head.state, State::Unreadable);
        }
        let body = Bytes::from(whole);
        assert!(body.ends_with(b"body"));
    }

    #[tokio::test]
    async fn redis_is_asked_once_per_step_and_keeps_no_record_longer_than_it_counts() {
        let (server, prefix) = (shared().await, fresh_prefix());
        let store = server.store_with(&prefix).await;
        let (id, first) = (fresh_id(), claim(fresh_nonce(), print(1)));
        // The first use of each script teaches it to the server.
        store.begin(&fresh_id(), &first).await.unwrap();
        store.peek(&id).await.unwrap();
        let before = store.commands();
        store.begin(&id, &first).await.unwrap();
        store.peek(&id).await.unwrap();
        assert_eq!(store.commands() - before, 2);
        let mut raw = server.raw().await;
        let name = format!("{prefix}:idempotency:{id}");
        let left: i64 = ::redis::cmd("PTTL")
            .arg(&name)
            .query_async(&mut raw)
            .await
            .unwrap();
        assert!((590_000..=600_000).contains(&left), "{left}");
        let size: usize = ::redis::cmd("STRLEN")
            .arg(&name)
            .query_async(&mut raw)
            .await
            .unwrap();
        assert_eq!(size, tower_keep::idempotency::HEAD_BYTES);
    }
}

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
            for (step, (here, there)) in by_memory.iter().zip(&by_redis).enumerate() {
                assert!(
                    here.agrees_with(there),
                    "seed {seed}, step {step}: {here:?} and {there:?}"
                );
            }
            assert_eq!(by_memory.len(), by_redis.len());
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

mod response_cache {
    use std::sync::Arc;
    use std::time::Duration;

    use tower_keep::backend::fallback::Fallback;
    use tower_keep::backend::memory::MemoryStore;
    use tower_keep::backend::redis::RedisStore;
    use tower_keep::conformance::response_cache::response_cache;
    use tower_keep::core::ManualClock;

    use crate::support::redis;

    fn clock() -> ManualClock {
        ManualClock::at("2030-01-01T00:00:00Z".parse().unwrap())
    }

    /// The suite writes far more in one call than any request does.
    async fn patient(clock: &ManualClock) -> RedisStore {
        let url = redis::shared().await.url();
        let builder = RedisStore::builder(&url).prefix(&redis::fresh_prefix());
        let builder = builder.timeout(Duration::from_secs(10));
        builder.clock(clock.clone()).open().await.unwrap()
    }

    #[tokio::test]
    async fn memory() {
        let clock = clock();
        let store = MemoryStore::builder().clock(clock.clone()).build();
        response_cache(Arc::new(store), &clock).await;
    }

    #[tokio::test]
    async fn redis_server() {
        let clock = clock();
        response_cache(Arc::new(patient(&clock).await), &clock).await;
    }

    #[tokio::test]
    async fn fallback() {
        let clock = clock();
        let memory = MemoryStore::builder().clock(clock.clone()).build();
        response_cache(
            Arc::new(Fallback::new(patient(&clock).await, memory)),
            &clock,
        )
        .await;
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

mod session {
    use std::sync::Arc;

    use tower_keep::backend::fallback::Fallback;
    use tower_keep::backend::memory::MemoryStore;
    use tower_keep::conformance::session::{random_sequence, session, session_histories};
    use tower_keep::core::{ManualClock, Timestamp};

    use tower_keep::backend::sql::SqlStore;

    use crate::support::postgres::shared as postgres;
    use crate::support::redis::shared;

    fn clock() -> ManualClock {
        ManualClock::at("2030-01-01T00:00:00.007Z".parse::<Timestamp>().unwrap())
    }

    fn memory(clock: &ManualClock) -> MemoryStore {
        MemoryStore::builder().clock(clock.clone()).build()
    }

    async fn sql(url: &str, clock: &ManualClock) -> SqlStore {
        let builder = SqlStore::builder(url).clock(clock.clone());
        builder.open().await.unwrap()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn memory_keeps_its_promises() {
        let clock = clock();
        session(Arc::new(memory(&clock)), &clock).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn redis_keeps_its_promises() {
        let clock = clock();
        session(Arc::new(shared().await.store(&clock).await), &clock).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_fallback_keeps_the_promises_of_its_primary() {
        let clock = clock();
        let store = Fallback::new(shared().await.store(&clock).await, memory(&clock));
        session(Arc::new(store), &clock).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn sqlite_keeps_its_promises() {
        let folder = tempfile::tempdir().unwrap();
        let file = format!("sqlite:{}", folder.path().join("keep.db").display());
        for url in ["sqlite::memory:", &file] {
            let clock = clock();
            session(Arc::new(sql(url, &clock).await), &clock).await;
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn postgres_keeps_its_promises() {
        let (clock, url) = (clock(), postgres().await.database().await);
        session(Arc::new(sql(&url, &clock).await), &clock).await;
    }

    /// So many histories, or as many as `KEEP_HISTORIES` says.
    fn histories(usual: u64) -> std::ops::Range<u64> {
        let size = std::env::var("KEEP_HISTORIES").ok();
        let size = size.and_then(|size| size.parse().ok());
        1_000..1_000 + size.unwrap_or(usual)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_order_explains_what_memory_says_to_three_at_once() {
        let clock = clock();
        session_histories(Arc::new(memory(&clock)), &clock, histories(400)).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_order_explains_what_redis_says_to_three_at_once() {
        let clock = clock();
        let store = shared().await.store(&clock).await;
        session_histories(Arc::new(store), &clock, histories(60)).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_order_explains_what_sqlite_says_to_three_at_once() {
        let clock = clock();
        let folder = tempfile::tempdir().unwrap();
        let file = format!("sqlite:{}", folder.path().join("keep.db").display());
        let store = sql(&file, &clock).await;
        session_histories(Arc::new(store), &clock, histories(30)).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_order_explains_what_postgres_says_to_three_at_once() {
        let (clock, url) = (clock(), postgres().await.database().await);
        let store = sql(&url, &clock).await;
        session_histories(Arc::new(store), &clock, histories(30)).await;
    }

    #[tokio::test]
    async fn memory_answers_long_random_sequences_as_the_oracle_does() {
        let clock = clock();
        let store = memory(&clock);
        for seed in 100..200 {
            random_sequence(&store, &clock, seed, 300).await;
        }
    }

    #[tokio::test]
    async fn sqlite_answers_long_random_sequences_as_the_oracle_does() {
        let clock = clock();
        let store = sql("sqlite::memory:", &clock).await;
        for seed in 400..410 {
            random_sequence(&store, &clock, seed, 200).await;
        }
    }

    #[tokio::test]
    async fn postgres_answers_long_random_sequences_as_the_oracle_does() {
        let clock = clock();
        let store = sql(&postgres().await.database().await, &clock).await;
        for seed in 500..505 {
            random_sequence(&store, &clock, seed, 200).await;
        }
    }

    #[tokio::test]
    async fn redis_answers_long_random_sequences_as_the_oracle_does() {
        let clock = clock();
        let store = shared().await.store(&clock).await;
        for seed in 300..320 {
            random_sequence(&store, &clock, seed, 200).await;
        }
    }
}
