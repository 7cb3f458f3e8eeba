//! Numbers that hold where nobody sets others: how much a queue takes, how long it remembers, how its workers work.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;
use tower_keep::backend::memory::MemoryStore;
use tower_keep::core::ManualClock;
use tower_keep::data::queue::{
    Batch, Digest, EnqueueOutcome, Job, JobError, Queue, QueueErrorKind,
};
use tower_keep::{DAY, HOUR, MILLIS, SECOND};

fn clock() -> ManualClock {
    ManualClock::at("2030-01-01T00:00:00Z".parse().unwrap())
}

fn memory(clock: &ManualClock) -> MemoryStore {
    MemoryStore::builder().clock(clock.clone()).build()
}

type Done = Result<(), JobError>;

#[tokio::test]
async fn a_recipient_has_room_for_a_thousand_jobs_and_a_queue_for_a_hundred_thousand() {
    let queue: Queue<u8> = Queue::new(MemoryStore::new(), "q");
    let is_full = async |recipient: u64| {
        let full = queue.enqueue(Job::to(recipient, 1)).await.unwrap_err();
        matches!(full.kind(), QueueErrorKind::Full { .. })
    };
    for recipient in 0..100_u64 {
        for jobs in [500, 500] {
            let jobs = (0..jobs).map(|_| Job::to(recipient, 1));
            queue.enqueue_many(jobs).await.unwrap();
        }
        assert!(is_full(recipient).await, "{recipient}");
    }
    assert_eq!(queue.depth().await.unwrap().ready, 100_000);
    assert!(is_full(100).await, "the whole queue");
    let batch = queue.lease_from(0_u64, 1).await.unwrap().unwrap();
    let _ = queue.ack(&batch).await.unwrap();
    queue.enqueue(Job::to(100_u64, 1)).await.unwrap();
}

#[tokio::test]
async fn an_id_is_remembered_for_a_day() {
    let clock = clock();
    let queue: Queue<u8> = Queue::new(memory(&clock), "q");
    let job = || Job::to("u1", 1).once("e");
    queue.enqueue(job()).await.unwrap();
    let batch = queue.lease(1).await.unwrap().unwrap();
    let _ = queue.ack(&batch).await.unwrap();
    clock.advance(DAY - MILLIS);
    let known = queue.enqueue(job()).await.unwrap();
    assert!(matches!(known, EnqueueOutcome::Duplicate(_)), "{known:?}");
    clock.advance(MILLIS);
    let new = queue.enqueue(job()).await.unwrap();
    assert!(matches!(new, EnqueueOutcome::New(_)), "{new:?}");
}

#[tokio::test]
async fn a_digest_collects_a_hundred_items() {
    let clock = clock();
    let queue: Queue<u64> = Queue::new(memory(&clock), "q");
    let add = async |item| {
        let job = Job::to("u1", item).digest("d", Digest::window(HOUR));
        queue.enqueue(job).await.unwrap()
    };
    add(0).await;
    for item in 1..99 {
        assert!(matches!(add(item).await, EnqueueOutcome::Joined(_)));
    }
    assert!(queue.lease(9).await.unwrap().is_none(), "one more fits");
    assert!(matches!(add(99).await, EnqueueOutcome::Joined(_)));
    // The next one is another's.
    assert!(matches!(add(100).await, EnqueueOutcome::New(_)));
    let batch = queue.lease(9).await.unwrap().unwrap();
    let items: Vec<usize> = batch.jobs.iter().map(|job| job.items.len()).collect();
    assert_eq!(items, [100]);
}

#[tokio::test(start_paused = true)]
async fn a_worker_works_on_four_batches_of_five_at_once() {
    let queue: Queue<u64> = Queue::new(MemoryStore::new(), "q");
    for recipient in 0..6_u64 {
        let jobs = (0..10).map(|item| Job::to(recipient, item));
        queue.enqueue_many(jobs).await.unwrap();
    }
    let (gate, running) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let (tell, mut sizes) = mpsc::unbounded_channel();
    let (closed, inside) = (Arc::clone(&gate), Arc::clone(&running));
    let worker = queue.worker(move |batch: Batch<u64>| {
        let _ = tell.send(batch.jobs.len());
        let (closed, inside) = (Arc::clone(&closed), Arc::clone(&inside));
        async move {
            inside.fetch_add(1, Ordering::SeqCst);
            drop(closed.acquire().await);
            Done::Ok(())
        }
    });
    let working = tokio::spawn(worker.run_until_idle());
    // The runtime's time goes on once nobody has anything to do.
    tokio::time::sleep(MILLIS).await;
    assert_eq!(running.load(Ordering::SeqCst), 4);
    for _ in 0..4 {
        assert_eq!(sizes.recv().await, Some(5));
    }
    gate.close();
    assert_eq!(working.await.unwrap().unwrap().delivered, 60);
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_waits_thirty_seconds_for_the_work_under_way() {
    let queue: Queue<u64> = Queue::new(MemoryStore::new(), "q");
    queue.enqueue(Job::to("u1", 1)).await.unwrap();
    let worker = queue.worker(|_: Batch<u64>| std::future::pending::<Done>());
    let began = Instant::now();
    worker.run(tokio::time::sleep(SECOND)).await;
    let over = began.elapsed() - SECOND;
    let (least, most) = (30 * SECOND, 30 * SECOND + Duration::from_millis(10));
    assert!((least..=most).contains(&over), "{over:?}");
    assert_eq!(queue.depth().await.unwrap().ready, 1);
}
