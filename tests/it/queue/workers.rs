//! The service and its workers: retries, deaths, drains, wake-ups, outages.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Semaphore, oneshot};
use tokio::time::Instant;
use tower_keep::backend::memory::MemoryStore;
use tower_keep::backend::redis::RedisStore;
use tower_keep::core::{Clock, Key, ManualClock, NoticeCallback, StoreFuture, Subscription};
use tower_keep::data::queue::store::{
    Claim, Leased, Listed, Listing, NewJob, QueueName, Rules, Settle, Settled, Token,
};
use tower_keep::data::queue::{
    Backoff, Batch, Depth, Digest, EnqueueOutcome, Job, JobError, JobId, JobState, Priority, Queue,
    QueueErrorKind, QueueStore, Retry, WorkReport,
};
use tower_keep::{HOUR, MINUTE, SECOND};

use crate::support::proxy::Proxy;
use crate::support::redis::{RedisServer, fresh_prefix, shared};

fn clock() -> ManualClock {
    ManualClock::at("2030-01-01T00:00:00Z".parse().unwrap())
}

fn memory(clock: &ManualClock) -> MemoryStore {
    MemoryStore::builder().clock(clock.clone()).build()
}

/// Goes with the runtime's own time, which a test may pause.
#[derive(Debug)]
struct Runtime(Instant);

impl Clock for Runtime {
    fn now_micros(&self) -> u64 {
        1_900_000_000_000_000 + self.0.elapsed().as_micros() as u64
    }
}

fn paused() -> MemoryStore {
    MemoryStore::builder()
        .clock(Runtime(Instant::now()))
        .build()
}

fn report(delivered: u64, retried: u64, dead: u64) -> WorkReport {
    WorkReport {
        delivered,
        retried,
        dead,
    }
}

type Done = Result<(), JobError>;

#[tokio::test]
async fn a_job_that_fails_is_tried_five_times_further_and_further_apart_then_dead() {
    let clock = clock();
    let queue: Queue<String> = Queue::new(memory(&clock), "q");
    let id = queue
        .enqueue(Job::to("u1", "x".to_owned()))
        .await
        .unwrap()
        .id();
    let failing = || queue.worker(|_| async { Done::Err(JobError::retry("the provider is away")) });
    for longest in [10, 20, 40, 80] {
        assert_eq!(failing().run_until_idle().await.unwrap(), report(0, 1, 0));
        let shown = &queue.jobs([id]).await.unwrap()[0];
        let now = tower_keep::core::Timestamp::of(&clock);
        assert!(shown.due.since(now) <= longest * SECOND, "{shown:?}");
        clock.advance(longest * SECOND);
    }
    assert_eq!(failing().run_until_idle().await.unwrap(), report(0, 0, 1));
    let dead = &queue.dead(9).await.unwrap()[0];
    assert_eq!(
        (dead.id, dead.state, dead.attempts),
        (id, JobState::Dead, 5)
    );
    assert_eq!(dead.last_error.as_deref(), Some("the provider is away"));
    assert_eq!(queue.revive([id]).await.unwrap(), [id]);
    let good = queue.worker(|_| async { Done::Ok(()) });
    assert_eq!(good.run_until_idle().await.unwrap(), report(1, 0, 0));
}

#[tokio::test]
async fn of_a_batch_only_the_jobs_that_failed_come_again() {
    let clock = clock();
    let queue: Queue<u64> = Queue::new(memory(&clock), "q");
    let jobs = (0..5).map(|number| Job::to("u1", number));
    let ids: Vec<_> = queue
        .enqueue_many(jobs)
        .await
        .unwrap()
        .into_iter()
        .map(EnqueueOutcome::id)
        .collect();
    let worker = queue.worker(|batch: Batch<u64>| async move {
        assert_eq!(batch.jobs.len(), 5);
        batch.fail(1, JobError::retry("later"));
        batch.fail(3, JobError::dead("never"));
        batch.fail(9, JobError::dead("no such job"));
        Done::Ok(())
    });
    assert_eq!(worker.run_until_idle().await.unwrap(), report(3, 1, 1));
    let left: Vec<_> = queue
        .jobs(ids.clone())
        .await
        .unwrap()
        .into_iter()
        .map(|job| (job.id, job.state))
        .collect();
    assert_eq!(
        left,
        [(ids[1], JobState::Delayed), (ids[3], JobState::Dead)]
    );
}

#[tokio::test]
async fn a_panic_stays_in_its_batch_and_poison_is_dead_at_once() {
    // The failed job's next try is not due while the clock stands.
    let store = memory(&clock());
    let queue: Queue<u64> = Queue::new(store.clone(), "q");
    let texts: Queue<String> = Queue::new(store, "q");
    queue.enqueue(Job::to("a", 1)).await.unwrap();
    texts
        .enqueue(Job::to("b", "no number".to_owned()).priority(Priority::High))
        .await
        .unwrap();
    queue.enqueue(Job::to("c", 3)).await.unwrap();
    let worker = queue.worker(|batch: Batch<u64>| async move {
        assert_ne!(batch.jobs[0].items, [1], "this one panics");
        Done::Ok(())
    });
    assert_eq!(worker.run_until_idle().await.unwrap(), report(1, 1, 0));
    let poison = &queue.dead(9).await.unwrap()[0];
    assert_eq!(
        (poison.items.as_ref(), poison.last_error.as_deref()),
        (None, Some("undecodable payload"))
    );
    let failed = &queue.list("a", 9).await.unwrap()[0];
    assert!(
        failed
            .last_error
            .as_ref()
            .unwrap()
            .contains("this one panics")
    );
}

#[tokio::test]
async fn what_is_due_in_two_hours_with_a_life_of_one_comes_then() {
    let clock = clock();
    let queue: Queue<u64> = Queue::new(memory(&clock), "q").expire_after(HOUR);
    let due = tower_keep::core::Timestamp::of(&clock) + 2 * HOUR;
    queue.enqueue(Job::to("u1", 1).at(due)).await.unwrap();
    clock.advance(7_199 * SECOND);
    assert!(queue.lease(1).await.unwrap().is_none());
    clock.advance(SECOND);
    assert_eq!(queue.lease(1).await.unwrap().unwrap().jobs[0].due, due);
}

#[tokio::test]
async fn a_late_ack_is_lost_and_says_so() {
    let clock = clock();
    let queue: Queue<u64> = Queue::new(memory(&clock), "q");
    queue.enqueue(Job::to("u1", 1)).await.unwrap();
    let batch = queue.lease(5).await.unwrap().unwrap();
    clock.advance(20 * SECOND);
    assert!(queue.extend(&batch).await.unwrap().is_complete());
    clock.advance(30 * SECOND);
    let late = queue.ack(&batch).await.unwrap();
    assert_eq!((late.done.len(), late.lost.len()), (0, 1));
    let again = queue.lease_from("u1", 5).await.unwrap().unwrap();
    assert_eq!(
        (again.jobs[0].id, again.jobs[0].attempt),
        (batch.jobs[0].id, 2)
    );
    let nacked = queue.nack(&again.jobs[0], Retry::Dead).await.unwrap();
    assert!(nacked.is_complete() && queue.depth().await.unwrap().dead == 1);
}

#[tokio::test]
async fn a_digest_is_one_job_of_many_items() {
    let clock = clock();
    let queue: Queue<u64> = Queue::new(memory(&clock), "q");
    let comment =
        |number| Job::to("u1", number).digest("comments", Digest::window(10 * MINUTE).max(20));
    for number in 0..7 {
        queue.enqueue(comment(number)).await.unwrap();
    }
    clock.advance(10 * MINUTE);
    let batch = queue.lease(5).await.unwrap().unwrap();
    assert_eq!(
        (batch.jobs.len(), &batch.jobs[0].items[..]),
        (1, &[0, 1, 2, 3, 4, 5, 6][..])
    );
}

#[tokio::test]
async fn a_hundred_thousand_events_of_one_recipient_go_in_batches_of_a_hundred() {
    let queue: Queue<u64> = Queue::new(MemoryStore::new(), "events").capacity(100_000, 100_000);
    let jobs = (0..100_000).map(|number| Job::to("all", number));
    assert_eq!(queue.enqueue_many(jobs).await.unwrap().len(), 100_000);
    let refused = queue.enqueue(Job::to("all", 0)).await.unwrap_err().kind();
    assert_eq!(refused, QueueErrorKind::Full { retry_after: 1 });
    let (sum, batches) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicUsize::new(0)));
    let (add, one_more) = (Arc::clone(&sum), Arc::clone(&batches));
    let worker = queue.worker(move |batch: Batch<u64>| {
        one_more.fetch_add(1, Ordering::Relaxed);
        add.fetch_add(batch.into_items().sum(), Ordering::Relaxed);
        async { Done::Ok(()) }
    });
    assert_eq!(
        worker.batch(100).run_until_idle().await.unwrap(),
        report(100_000, 0, 0)
    );
    assert_eq!(sum.load(Ordering::Relaxed), 99_999 * 100_000 / 2);
    assert_eq!(batches.load(Ordering::Relaxed), 1_000);
}

#[tokio::test(start_paused = true)]
async fn a_worker_keeps_its_lease_while_it_works_and_takes_no_more_than_it_has_slots_for() {
    let queue: Queue<u64> = Queue::new(paused(), "q").lease_for(3 * SECOND);
    queue
        .enqueue_many((0..10).map(|number| Job::to(number, number)))
        .await
        .unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let worker = queue.worker(|_| async {
        tokio::time::sleep(10 * SECOND).await;
        Done::Ok(())
    });
    let running = tokio::spawn(worker.concurrency(2).run(async { drop(stopped.await) }));
    for _ in 0..5 {
        tokio::time::sleep(2 * SECOND).await;
        let depth = queue.depth().await.unwrap();
        assert!(depth.leased <= 2, "{depth:?}");
    }
    tokio::time::sleep(41 * SECOND).await;
    stop.send(()).unwrap();
    assert_eq!(running.await.unwrap(), report(10, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn at_a_shutdown_what_is_unfinished_goes_back_uncounted() {
    let queue: Queue<u64> = Queue::new(paused(), "q");
    queue
        .enqueue_many([Job::to("quick", 1), Job::to("slow", 60)])
        .await
        .unwrap();
    let worker = queue.worker(|batch: Batch<u64>| async move {
        tokio::time::sleep(Duration::from_secs(batch.jobs[0].items[0])).await;
        Done::Ok(())
    });
    let started = Instant::now();
    let shutdown = tokio::time::sleep(Duration::from_millis(100));
    assert_eq!(
        worker.drain(5 * SECOND).run(shutdown).await,
        report(1, 0, 0)
    );
    assert!(started.elapsed() < 6 * SECOND);
    let left = &queue.list("slow", 9).await.unwrap()[0];
    assert_eq!((left.state, left.attempts), (JobState::Ready, 0));
}

#[tokio::test(start_paused = true)]
async fn a_sleeping_worker_wakes_for_what_is_due() {
    let queue: Queue<u64> = Queue::new(paused(), "q");
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let worker = queue.worker(move |batch: Batch<u64>| {
        let _ = tell.send((Instant::now(), batch.jobs[0].items[0]));
        async { Done::Ok(()) }
    });
    let running = tokio::spawn(worker.run(std::future::pending()));
    tokio::time::sleep(SECOND).await;
    let started = Instant::now();
    queue
        .enqueue(Job::to("a", 1).after(Duration::from_millis(1_700)))
        .await
        .unwrap();
    queue
        .enqueue(Job::to("b", 2).after(Duration::from_millis(300)))
        .await
        .unwrap();
    queue.enqueue(Job::to("c", 3)).await.unwrap();
    for (after, expected) in [(0, 3), (300, 2), (1_700, 1)] {
        let (at, item) = told.recv().await.unwrap();
        assert_eq!(item, expected);
        let late = (at - started).as_millis() - after;
        assert!(late <= 3, "{late} ms late");
    }
    running.abort();
}

#[tokio::test]
async fn a_worker_is_told_of_a_job_by_another_process() {
    let (server, prefix) = (shared().await, fresh_prefix());
    let here: Queue<u64> = Queue::new(server.store_with(&prefix).await, "q");
    let there: Queue<u64> = Queue::new(server.store_with(&prefix).await, "q");
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let worker = here.worker(move |batch: Batch<u64>| {
        let _ = tell.send(batch.jobs[0].items[0]);
        async { Done::Ok(()) }
    });
    let running = tokio::spawn(worker.run(std::future::pending()));
    tokio::time::sleep(Duration::from_millis(300)).await;
    let started = std::time::Instant::now();
    for number in 0..3 {
        there.enqueue(Job::to("u1", number)).await.unwrap();
        assert_eq!(told.recv().await, Some(number));
    }
    // It looks every 5 s by itself: three times told is faster.
    assert!(started.elapsed() < 5 * SECOND);
    running.abort();
}

#[tokio::test]
async fn an_empty_queue_is_none_and_an_unreachable_one_an_error_that_a_worker_survives() {
    let mut server =
        RedisServer::start_with(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    let queue: Queue<u64> = Queue::new(server.store_with("t").await, "q");
    assert!(queue.lease(1).await.unwrap().is_none());
    queue.enqueue(Job::to("u1", 1)).await.unwrap();
    let (entered, entering) = oneshot::channel();
    let (go, gone_on) = oneshot::channel::<()>();
    let once = std::sync::Mutex::new(Some((entered, gone_on)));
    let worker = queue.worker(move |_| {
        let (entered, gone_on) = once.lock().unwrap().take().unwrap();
        async move {
            entered.send(()).unwrap();
            let _ = gone_on.await;
            Done::Ok(())
        }
    });
    let (stop, stopped) = oneshot::channel::<()>();
    let running = tokio::spawn(worker.run(async { drop(stopped.await) }));
    entering.await.unwrap();
    server.kill();
    assert!(queue.lease(1).await.is_err());
    assert!(queue.enqueue(Job::to("u1", 2)).await.is_err());
    // The work ends while the store is away: its ack waits for the store, within the lease.
    go.send(()).unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    server.restart();
    stop.send(()).unwrap();
    assert_eq!(running.await.unwrap(), report(1, 0, 0));
    loop {
        match queue.depth().await {
            Ok(depth) => break assert_eq!(depth.waiting(), 0),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

#[tokio::test]
async fn answers_lost_on_a_cut_link_are_asked_for_once_more_where_that_is_harmless() {
    let proxy = Proxy::before(shared().await.address()).await;
    let url = format!("redis://{}/", proxy.address());
    let store = RedisStore::builder(&url)
        .prefix(&fresh_prefix())
        .timeout(5 * SECOND);
    let queue: Queue<u64> = Queue::new(store.open().await.unwrap(), "q");
    queue.enqueue(Job::to("u1", 0).once("warm")).await.unwrap();
    proxy.cut_at_next_reply();
    let added = queue.enqueue(Job::to("u1", 1).once("e1")).await.unwrap();
    // It was added by the call whose answer was lost.
    assert!(matches!(added, EnqueueOutcome::Duplicate(_)));
    assert_eq!(queue.count("u1").await.unwrap().ready, 2);
    let batch = queue.lease(5).await.unwrap().unwrap();
    proxy.cut_at_next_reply();
    assert!(queue.extend(&batch).await.unwrap().is_complete());
    proxy.cut_at_next_reply();
    assert!(queue.ack(&batch).await.unwrap().is_complete());
    proxy.cut_at_next_reply();
    let plain = queue.enqueue(Job::to("u1", 3)).await.unwrap_err().kind();
    assert!(matches!(plain, QueueErrorKind::Unavailable { .. }));
}

#[tokio::test]
async fn a_lease_and_the_ack_of_its_batch_are_one_command_each() {
    let store = shared().await.store_with(&fresh_prefix()).await;
    let queue: Queue<u64> = Queue::new(store.clone(), "q");
    let fill = async || {
        queue
            .enqueue_many((0..5).map(|number| Job::to("u1", number)))
            .await
            .unwrap()
    };
    fill().await;
    let batch = queue.lease(5).await.unwrap().unwrap();
    let _ = queue.ack(&batch).await.unwrap();
    let mut last = store.commands();
    let mut spent = || {
        let before = std::mem::replace(&mut last, store.commands());
        last - before
    };
    fill().await;
    assert_eq!(spent(), 1);
    let batch = queue.lease(5).await.unwrap().unwrap();
    assert_eq!((batch.jobs.len(), spent()), (5, 1));
    assert!(queue.ack(&batch).await.unwrap().is_complete());
    assert_eq!(spent(), 1);
}

#[tokio::test]
async fn what_is_moved_together_takes_as_many_commands_of_the_server_as_one_job() {
    let server = RedisServer::start().await;
    let queue: Queue<u64> = Queue::new(server.store_with("work").await, "q");
    let mut last = server.all_commands().await;
    let mut check = async |most: u64, what: &str| {
        let before = std::mem::replace(&mut last, server.all_commands().await);
        assert!(last - before <= most, "{what}: {}", last - before);
    };
    let plain = |range: std::ops::Range<u64>| range.map(|number| Job::to("u1", number));
    queue.enqueue_many(plain(0..1)).await.unwrap();
    check(40, "the first").await;
    // What the connection of each look costs is among them; a part is put in its place by 64 jobs.
    queue.enqueue_many(plain(0..512)).await.unwrap();
    check(130, "512 jobs").await;
    let ids = (0..300).map(|number| Job::to("u1", number).once(format!("id {number}")));
    queue.enqueue_many(ids.clone()).await.unwrap();
    check(110, "300 jobs with ids").await;
    let again = queue.enqueue_many(ids).await.unwrap();
    assert!(
        again
            .iter()
            .all(|one| matches!(one, EnqueueOutcome::Duplicate(_)))
    );
    check(30, "300 ids again").await;
    let comments = Digest::window(MINUTE).max(20);
    let digests = (0..412).map(|number| Job::to("u2", number).digest("comments", comments));
    let added = queue.enqueue_many(digests).await.unwrap();
    let ids: Vec<JobId> = added.iter().map(|one| one.id()).collect();
    assert_eq!(
        ids.iter().collect::<std::collections::BTreeSet<_>>().len(),
        21
    );
    // Gone through 32 at a time: each piece is looked up and written by itself.
    check(350, "412 items of digests").await;
    let digests = (0..60).map(|number| Job::to("u3", number).digest("comments", comments));
    queue.enqueue_many(digests).await.unwrap();
    check(32, "60 items of digests").await;
    let batch = queue.lease_from("u1", 500).await.unwrap().unwrap();
    assert_eq!(batch.jobs.len(), 100);
    check(40, "a lease of 100").await;
    assert!(queue.extend(&batch).await.unwrap().is_complete());
    check(26, "100 extended").await;
    assert!(queue.ack(&batch).await.unwrap().is_complete());
    check(26, "100 acked").await;
    let listed = queue.list("u1", 512).await.unwrap();
    assert_eq!(listed.len(), 512);
    check(30, "512 listed").await;
    let ids = listed.iter().take(100).map(|job| job.id);
    assert_eq!(queue.cancel("u1", ids).await.unwrap().len(), 100);
    check(26, "100 cancelled").await;
    let failing: Queue<u64> = Queue::new(server.store(&clock()).await, "failing");
    failing.enqueue_many(plain(0..100)).await.unwrap();
    let worker = failing.worker(|_| async { Done::Err(JobError::retry("no")) });
    let worker = worker.batch(100).concurrency(1);
    assert!(worker.run_until_idle().await.unwrap().retried >= 100);
    check(120, "100 enqueued, leased and given back").await;
}

#[tokio::test]
async fn what_cannot_be_enqueued_is_said_and_adds_nothing() {
    let queue: Queue<String> =
        Queue::new(MemoryStore::new(), "q").backoff(Backoff::exponential(SECOND, MINUTE));
    let large = Job::to("u1", "x".repeat(300_000));
    let refused = queue
        .enqueue_many([Job::to("u1", String::new()), large])
        .await
        .unwrap_err();
    assert!(matches!(refused.kind(), QueueErrorKind::TooLarge { limit } if limit > 262_000));
    assert_eq!(queue.depth().await.unwrap().waiting(), 0);
}

#[tokio::test]
async fn a_recipient_without_a_name_is_one_like_any_other() {
    let store = shared().await.store_with(&fresh_prefix()).await;
    let queue: Queue<u64> = Queue::new(store, "q").lease_for(Duration::MAX);
    queue
        .enqueue_many([Job::to("u1", 1), Job::to("", 2)])
        .await
        .unwrap();
    assert_eq!(queue.count("").await.unwrap().ready, 1);
    assert_eq!(
        queue.lease_from("", 9).await.unwrap().unwrap().jobs[0].items,
        [2]
    );
    assert!(queue.lease_from("", 9).await.unwrap().is_none());
}

/// A store whose acks wait at a gate, that may never answer an extension, tell of jobs that it does not give or of none
/// that comes, and that writes down what it is asked.
#[derive(Clone, Debug)]
struct SlowAck {
    inner: MemoryStore,
    gate: Arc<Semaphore>,
    extends: bool,
    teases: bool,
    tells: bool,
    asked: Arc<Mutex<Vec<&'static str>>>,
}

impl SlowAck {
    fn new(gate: &Arc<Semaphore>) -> Self {
        Self {
            inner: MemoryStore::new(),
            gate: Arc::clone(gate),
            extends: true,
            teases: false,
            tells: true,
            asked: Arc::default(),
        }
    }
}

impl QueueStore for SlowAck {
    fn enqueue(
        &self,
        queue: &QueueName,
        jobs: Vec<NewJob>,
        rules: &Rules,
    ) -> StoreFuture<Vec<EnqueueOutcome>> {
        self.inner.enqueue(queue, jobs, rules)
    }

    fn lease(&self, queue: &QueueName, claim: Claim, rules: &Rules) -> StoreFuture<Leased> {
        self.asked.lock().unwrap().push("lease");
        let leased = self.inner.lease(queue, claim, rules);
        if !self.teases {
            return leased;
        }
        StoreFuture::boxed(async move {
            let mut leased = leased.await?;
            leased.next_due = Some(leased.now);
            Ok(leased)
        })
    }

    fn ack(&self, queue: &QueueName, token: Token, ids: Vec<JobId>) -> StoreFuture<Vec<Settled>> {
        self.asked.lock().unwrap().push("ack");
        let (own, queue) = (self.clone(), queue.clone());
        StoreFuture::boxed(async move {
            own.gate.acquire().await.unwrap().forget();
            own.inner.ack(&queue, token, ids).await
        })
    }

    fn nack(
        &self,
        queue: &QueueName,
        token: Token,
        jobs: Vec<(JobId, Settle)>,
        rules: &Rules,
    ) -> StoreFuture<Vec<Settled>> {
        self.inner.nack(queue, token, jobs, rules)
    }

    fn extend(
        &self,
        queue: &QueueName,
        token: Token,
        ids: Vec<JobId>,
        lease: Duration,
    ) -> StoreFuture<Vec<Settled>> {
        self.asked.lock().unwrap().push("extend");
        if !self.extends {
            return StoreFuture::boxed(std::future::pending());
        }
        self.inner.extend(queue, token, ids, lease)
    }

    fn cancel(
        &self,
        queue: &QueueName,
        recipient: &Key,
        ids: Vec<JobId>,
    ) -> StoreFuture<Vec<JobId>> {
        self.inner.cancel(queue, recipient, ids)
    }

    fn list(&self, queue: &QueueName, listing: Listing, rules: &Rules) -> StoreFuture<Vec<Listed>> {
        self.inner.list(queue, listing, rules)
    }

    fn count(
        &self,
        queue: &QueueName,
        recipient: Option<&Key>,
        rules: &Rules,
    ) -> StoreFuture<Depth> {
        self.inner.count(queue, recipient, rules)
    }

    fn revive(&self, queue: &QueueName, ids: Vec<JobId>, rules: &Rules) -> StoreFuture<Vec<JobId>> {
        self.inner.revive(queue, ids, rules)
    }

    fn subscribe(&self, queue: &QueueName, callback: NoticeCallback) -> StoreFuture<Subscription> {
        let callback = if self.tells {
            callback
        } else {
            Arc::new(|_| {})
        };
        QueueStore::subscribe(&self.inner, queue, callback)
    }

    fn contradicts(&self, name: &str, what: &str) -> bool {
        QueueStore::contradicts(&self.inner, name, what)
    }
}

#[tokio::test]
async fn work_goes_on_beside_an_ack_but_no_more_acks_wait_than_there_are_slots() {
    let gate = Arc::new(Semaphore::new(0));
    let queue: Queue<u32> = Queue::new(SlowAck::new(&gate), "q");
    let jobs = (0..6).map(|number| Job::to(number, number));
    queue.enqueue_many(jobs).await.unwrap();
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (begun, at_once, peak) = (Arc::new(AtomicUsize::new(0)), running, Arc::clone(&most));
    let count = Arc::clone(&begun);
    let worker = queue.worker(move |_: Batch<u32>| {
        let (count, running, peak) = (Arc::clone(&count), Arc::clone(&at_once), Arc::clone(&peak));
        async move {
            count.fetch_add(1, Ordering::SeqCst);
            peak.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::task::yield_now().await;
            running.fetch_sub(1, Ordering::SeqCst);
            Ok::<(), JobError>(())
        }
    });
    let work = tokio::spawn(worker.concurrency(1).batch(1).run_until_idle());
    // With the acks held back: the one whose ack waits, and the next.
    for _ in 0..1_000 {
        tokio::task::yield_now().await;
    }
    assert_eq!(begun.load(Ordering::SeqCst), 2);
    gate.add_permits(6);
    let report = work.await.unwrap().unwrap();
    assert_eq!((report.delivered, most.load(Ordering::SeqCst)), (6, 1));
}

#[tokio::test]
async fn the_next_lease_goes_out_before_the_ack_of_the_last_batch() {
    let store = SlowAck::new(&Arc::new(Semaphore::new(3)));
    let queue: Queue<u32> = Queue::new(store.clone(), "q");
    let jobs = (0..3).map(|number| Job::to(number, number));
    queue.enqueue_many(jobs).await.unwrap();
    let worker = queue.worker(|_: Batch<u32>| async { Ok::<(), JobError>(()) });
    let report = worker.concurrency(1).batch(1).run_until_idle().await;
    assert_eq!(report.unwrap().delivered, 3);
    let asked = store.asked.lock().unwrap();
    let leases_before_acks: Vec<_> = (0..asked.len())
        .filter(|at| asked[*at] == "ack")
        .map(|at| asked[..at].iter().filter(|one| **one == "lease").count())
        .collect();
    assert_eq!(leases_before_acks, [2, 3, 4], "{asked:?}");
}

/// What a job waits for may be what the extension waits for: a connection, the right to write.
#[tokio::test(start_paused = true)]
async fn a_job_goes_on_while_its_lease_is_extended() {
    let mut store = SlowAck::new(&Arc::new(Semaphore::new(1)));
    (store.inner, store.extends) = (paused(), false);
    let asked = Arc::clone(&store.asked);
    let queue: Queue<u32> = Queue::new(store, "q");
    queue.enqueue(Job::to("u1", 1)).await.unwrap();
    let worker = queue.worker(move |_: Batch<u32>| {
        let asked = Arc::clone(&asked);
        async move {
            while !asked.lock().unwrap().contains(&"extend") {
                tokio::time::sleep(SECOND).await;
            }
            Done::Ok(())
        }
    });
    let worked = tokio::time::timeout(HOUR, worker.run_until_idle()).await;
    assert_eq!(worked.unwrap().unwrap(), report(1, 0, 0));
}

/// It is locked by somebody, say, or was in an index alone.
#[tokio::test(start_paused = true)]
async fn a_worker_does_not_go_round_and_round_a_job_that_it_is_not_given() {
    let mut store = SlowAck::new(&Arc::new(Semaphore::new(0)));
    (store.inner, store.teases) = (paused(), true);
    let asked = Arc::clone(&store.asked);
    let queue: Queue<u32> = Queue::new(store, "q");
    let worker = queue.worker(|_: Batch<u32>| async { Done::Ok(()) });
    let shutdown = tokio::time::sleep(10 * SECOND);
    assert_eq!(worker.run(shutdown).await, report(0, 0, 0));
    let looks = asked.lock().unwrap().len();
    assert!((3..=200).contains(&looks), "{looks} looks");
}

/// The work is done, its ack is not answered, and the shutdown waits no longer: the job is not done again.
#[tokio::test(start_paused = true)]
async fn what_was_done_is_acked_at_a_shutdown_and_never_given_back() {
    let gate = Arc::new(Semaphore::new(0));
    let mut store = SlowAck::new(&gate);
    store.inner = paused();
    let queue: Queue<u32> = Queue::new(store, "q");
    let jobs = [Job::to("u1", 1), Job::to("u1", 2), Job::to("u1", 3)];
    queue.enqueue_many(jobs).await.unwrap();
    let worker = queue.worker(|batch: Batch<u32>| async move {
        batch.fail(1, JobError::dead("never"));
        Done::Ok(())
    });
    tokio::spawn(async move {
        tokio::time::sleep(6 * SECOND).await;
        gate.add_permits(9);
    });
    let shutdown = tokio::time::sleep(Duration::from_millis(100));
    let done = worker.drain(5 * SECOND).run(shutdown).await;
    assert_eq!(done, report(2, 0, 1));
    let depth = queue.depth().await.unwrap();
    assert_eq!((depth.ready, depth.leased, depth.dead), (0, 0, 1));
}

#[tokio::test]
async fn a_worker_that_is_told_to_stop_leases_no_more_though_nothing_can_be_read() {
    let store = SlowAck::new(&Arc::new(Semaphore::new(0)));
    let foreign: Queue<String> = Queue::new(store.clone(), "q");
    foreign
        .enqueue_many((0..400).map(|n| Job::to(n, "no number".to_owned())))
        .await
        .unwrap();
    let asked = Arc::clone(&store.asked);
    let queue: Queue<u64> = Queue::new(store, "q");
    let worker = queue.worker(|_: Batch<u64>| async { Done::Ok(()) });
    let shutdown = async {
        // Whoever shares the thread has a turn while they are buried.
        while asked.lock().unwrap().len() < 3 {
            tokio::task::yield_now().await;
        }
    };
    assert_eq!(worker.run(shutdown).await, report(0, 0, 0));
    let leases = asked.lock().unwrap().len();
    assert!(leases < 10, "{leases} leases");
    // Who leases by hand sees none of them.
    queue.enqueue(Job::to("good", 7)).await.unwrap();
    let found = queue.lease(1).await.unwrap().unwrap();
    assert_eq!(found.into_items().collect::<Vec<_>>(), [7]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_does_not_wait_for_work_that_holds_its_thread() {
    let queue: Queue<u64> = Queue::new(MemoryStore::new(), "q");
    queue.enqueue(Job::to("a", 1)).await.unwrap();
    let (let_go, gate) = std::sync::mpsc::channel::<()>();
    let (stuck, gate) = (Arc::new(Semaphore::new(0)), Arc::new(Mutex::new(gate)));
    let told = Arc::clone(&stuck);
    let worker = queue.worker(move |_: Batch<u64>| {
        let (told, gate) = (Arc::clone(&told), Arc::clone(&gate));
        async move {
            told.add_permits(1);
            let _ = gate.lock().unwrap().recv();
            Done::Ok(())
        }
    });
    let shutdown = async move { drop(stuck.acquire().await) };
    let stopped = worker.drain(Duration::from_millis(50)).run(shutdown);
    // Far longer than a shutdown takes, and over only when the work is.
    assert!(tokio::time::timeout(60 * SECOND, stopped).await.is_ok());
    drop(let_go);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_is_told_nothing_looks_after_five_seconds() {
    let mut store = SlowAck::new(&Arc::new(Semaphore::new(1)));
    store.tells = false;
    let queue: Queue<u64> = Queue::new(store, "q");
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let worker = queue.worker(move |_: Batch<u64>| {
        let _ = tell.send(Instant::now());
        async { Done::Ok(()) }
    });
    let began = Instant::now();
    let running = tokio::spawn(worker.run(std::future::pending()));
    tokio::time::sleep(SECOND).await;
    queue.enqueue(Job::to("u1", 1)).await.unwrap();
    let after = told.recv().await.unwrap() - began;
    let (least, most) = (5 * SECOND, 5 * SECOND + Duration::from_millis(10));
    assert!((least..=most).contains(&after), "{after:?}");
    running.abort();
}
