//! The conformance suite on every engine.

use std::sync::Arc;
use std::time::Duration;

use tower_keep::backend::fallback::Fallback;
use tower_keep::backend::memory::MemoryStore;
use tower_keep::backend::redis::RedisStore;
use tower_keep::conformance::queue::{histories, queue};
use tower_keep::core::ManualClock;
use tower_keep::data::queue::{Digest, EnqueueOutcome, Job, Priority, Queue, Retry};
use tower_keep::{HOUR, SECOND};

use crate::support::redis::{fresh_prefix, shared};
use crate::support::redis_cluster::RedisCluster;

fn clock() -> ManualClock {
    ManualClock::at("2030-01-01T00:00:00.007Z".parse().unwrap())
}

fn memory(clock: &ManualClock) -> MemoryStore {
    MemoryStore::builder().clock(clock.clone()).build()
}

#[tokio::test]
async fn memory_keeps_its_promises() {
    let clock = clock();
    queue(Arc::new(memory(&clock)), &clock).await;
}

#[tokio::test]
async fn redis_keeps_its_promises() {
    let clock = clock();
    queue(Arc::new(shared().await.store(&clock).await), &clock).await;
}

#[tokio::test]
async fn a_fallback_keeps_the_promises_of_its_primary() {
    let clock = clock();
    let store = Fallback::new(shared().await.store(&clock).await, memory(&clock));
    queue(Arc::new(store), &clock).await;
}

#[tokio::test]
async fn random_histories_on_memory_are_those_of_a_sorted_list() {
    for seed in 0..300 {
        let clock = clock();
        histories(Arc::new(memory(&clock)), &clock, seed, 300).await;
    }
}

#[tokio::test]
async fn random_histories_on_redis_are_those_of_a_sorted_list() {
    // So many, or as many as `KEEP_HISTORIES` says.
    let size = std::env::var("KEEP_HISTORIES").ok();
    let size = size.and_then(|size| size.parse().ok()).unwrap_or(20);
    for seed in 1_000..1_000 + size {
        let clock = clock();
        let store = shared().await.store(&clock).await;
        histories(Arc::new(store), &clock, seed, 300).await;
    }
}

#[tokio::test]
async fn what_is_done_leaves_nothing_of_itself_on_redis() {
    let (server, clock) = (shared().await, clock());
    let prefix = fresh_prefix();
    let store = RedisStore::builder(&server.url()).prefix(&prefix);
    let queue: Queue<String> = Queue::new(store.clock(clock.clone()).open().await.unwrap(), "q");
    let add = |size: usize| queue.enqueue(Job::to("a", "x".repeat(size)));
    for round in 0..3 {
        let mut ids = Vec::new();
        for size in [10, 2_000, 10, 2_000] {
            ids.push(add(size).await.unwrap().id());
        }
        // Taken and done, taken back, or a dead letter that is forgotten.
        match round {
            0 => {
                let batch = queue.lease(9).await.unwrap().unwrap();
                assert_eq!(batch.jobs.len(), 4);
                assert!(queue.ack(&batch).await.unwrap().is_complete());
            }
            1 => assert_eq!(queue.cancel("a", ids).await.unwrap().len(), 4),
            _ => {
                clock.advance(Duration::from_secs(2 * 24 * 3_600));
                assert_eq!(queue.depth().await.unwrap().dead, 4);
                clock.advance(Duration::from_secs(8 * 24 * 3_600));
                assert_eq!(queue.depth().await.unwrap().dead, 0);
            }
        }
    }
    let keys: Vec<String> = redis::cmd("KEYS")
        .arg(format!("{prefix}*"))
        .query_async(&mut server.raw().await)
        .await
        .unwrap();
    assert_eq!(keys.len(), 1, "the last number alone: {keys:?}");
}

/// A few ids are looked at each time; those whose job is still there hold up no other.
pub async fn ids_go_after_their_jobs(
    queue: Queue<u64>,
    clock: &ManualClock,
    ids: impl AsyncFn() -> usize,
) {
    let queue = queue.remember_for(HOUR);
    let job = |number: u64| Job::to("a", number).once(number.to_string());
    let far = |number| job(number).after(100 * 24 * HOUR);
    let look = async || {
        for _ in 0..5 {
            assert!(queue.lease(5).await.unwrap().is_none());
        }
    };
    queue.enqueue_many((0..150).map(far)).await.unwrap();
    queue.enqueue_many((150..300).map(job)).await.unwrap();
    // Of half of these nothing remains, of the others a dead letter each.
    while let Some(batch) = queue.lease(50).await.unwrap() {
        for job in batch.jobs.iter().filter(|job| job.items[0] % 2 == 0) {
            assert!(queue.nack(job, Retry::Dead).await.unwrap().is_complete());
        }
        assert_eq!(queue.ack(&batch).await.unwrap().done.len(), 25);
    }
    assert_eq!(ids().await, 300);
    clock.advance(HOUR);
    look().await;
    assert_eq!(ids().await, 225);
    clock.advance(8 * 24 * HOUR);
    look().await;
    assert_eq!(ids().await, 150);
    let outcome = queue.enqueue(far(0)).await.unwrap();
    assert!(matches!(outcome, EnqueueOutcome::Duplicate(_)));
    let outcome = queue.enqueue(job(299)).await.unwrap();
    assert!(matches!(outcome, EnqueueOutcome::New(_)));
}

#[tokio::test]
async fn an_id_goes_from_redis_when_its_time_is_over_and_its_job_is_gone() {
    let (server, clock, prefix) = (shared().await, clock(), fresh_prefix());
    let store = server.builder(&prefix).clock(clock.clone()).open().await;
    let ids = async || {
        let mut once = redis::cmd("HLEN");
        once.arg(format!("{prefix}:queue:{{q}}:once"));
        once.query_async(&mut server.raw().await).await.unwrap()
    };
    ids_go_after_their_jobs(Queue::new(store.unwrap(), "q"), &clock, ids).await;
}

/// By the server's clock not every lease looks for what is over.
#[tokio::test]
async fn by_the_servers_clock_what_is_over_is_leased_by_nobody() {
    let store = shared().await.store_with(&fresh_prefix()).await;
    let queue: Queue<u64> = Queue::new(store, "q").expire_after(Duration::from_millis(1));
    for round in 0..24 {
        let jobs = (0..3).map(|to| Job::to(to.to_string(), round));
        queue.enqueue_many(jobs).await.unwrap();
        tokio::time::sleep(Duration::from_millis(2)).await;
        assert!(queue.lease(9).await.unwrap().is_none());
        assert!(queue.lease_from("1", 9).await.unwrap().is_none());
    }
    let depth = queue.depth().await.unwrap();
    assert_eq!((depth.waiting(), depth.dead), (0, 72));
}

/// A lease forgets a hundred ids at most, and each round leaves more behind.
pub async fn ids_of_digests_and_of_cancelled_jobs_go(
    queue: Queue<u64>,
    clock: &ManualClock,
    ids: impl AsyncFn() -> usize,
) {
    let queue = queue.remember_for(5 * SECOND);
    for round in 0..40 {
        let item = |n: u64| {
            let job = Job::to("a", n).once(format!("{round} {n}"));
            job.digest("comments", Digest::window(SECOND).max(200))
        };
        queue.enqueue_many((0..140).map(item)).await.unwrap();
        let plain = Job::to("c", 0).once(format!("c {round}"));
        let id = queue.enqueue(plain).await.unwrap().id();
        assert_eq!(queue.cancel("c", [id]).await.unwrap(), [id]);
        clock.advance(2 * SECOND);
        let leased = queue.lease(5).await.unwrap().unwrap();
        assert!(queue.ack(&leased).await.unwrap().is_complete());
    }
    let left = ids().await;
    assert!(left < 600, "{left} of 5,640");
}

#[tokio::test]
async fn ids_that_no_lease_of_their_own_follows_go_from_redis() {
    let (server, clock, prefix) = (shared().await, clock(), fresh_prefix());
    let store = server.builder(&prefix).clock(clock.clone()).open().await;
    let ids = async || {
        let mut once = redis::cmd("HLEN");
        once.arg(format!("{prefix}:queue:{{q}}:once"));
        once.query_async(&mut server.raw().await).await.unwrap()
    };
    let queue = Queue::new(store.unwrap(), "q");
    ids_of_digests_and_of_cancelled_jobs_go(queue, &clock, ids).await;
}

/// Not every lease looks for what may be forgotten; so many as do keep up with those that leave something behind.
#[tokio::test]
async fn by_the_servers_clock_ids_do_not_pile_up() {
    for (batch, looks) in [(5, 900), (50, 70)] {
        let (server, prefix) = (shared().await, fresh_prefix());
        let store = server.store_with(&prefix).await;
        let remembered = Duration::from_millis(500);
        let queue: Queue<usize> = Queue::new(store, "q").remember_for(remembered);
        for round in 0..6_000 / batch {
            let job = |n| Job::to("a", n).once(format!("{round} {n}"));
            queue.enqueue_many((0..batch).map(job)).await.unwrap();
            let leased = queue.lease(batch).await.unwrap().unwrap();
            assert!(queue.ack(&leased).await.unwrap().is_complete());
        }
        tokio::time::sleep(remembered).await;
        for _ in 0..looks {
            assert!(queue.lease(batch).await.unwrap().is_none());
        }
        let ids: usize = redis::cmd("HLEN")
            .arg(format!("{prefix}:queue:{{q}}:once"))
            .query_async(&mut server.raw().await)
            .await
            .unwrap();
        assert!(ids < 1_000, "{ids} of {batch} at a time");
    }
}

/// Five hundred that expired stand before one that has not.
#[tokio::test]
async fn what_is_ready_is_leased_however_many_expired_before_it() {
    let clock = clock();
    let store = shared().await.store(&clock).await;
    let queue: Queue<u64> = Queue::new(store, "q").capacity(10_000, 10_000);
    let old = (0..500).map(|n| Job::to("a", n).priority(Priority::High));
    queue.enqueue_many(old).await.unwrap();
    clock.advance(Duration::from_secs(24 * 3_600));
    queue.enqueue(Job::to("b", 500)).await.unwrap();
    let leased = queue.lease(9).await.unwrap().unwrap();
    assert_eq!((leased.jobs.len(), leased.jobs[0].items[0]), (1, 500));
}

#[tokio::test]
async fn a_cluster_keeps_its_promises() {
    let (cluster, clock) = (RedisCluster::start(3, false).await, clock());
    queue(Arc::new(cluster.store(&clock).await), &clock).await;
}
