//! Near the bounds of its queue a part on Redis is weighed a piece at a time, before anything of it is added: it is added or
//! refused as in memory, whoever does it and whatever is lost meanwhile.

use std::future::{Future, poll_fn};
use std::task::Poll;

use tower_keep::MINUTE;
use tower_keep::data::queue::{Digest, EnqueueOutcome, Job, JobId, Queue, QueueErrorKind};

use super::parts::{Expected, Kept, knowing, meeting_each_other};
use crate::support::redis::{RedisServer, fresh_prefix, shared};

type Added = Result<Vec<EnqueueOutcome>, tower_keep::data::queue::QueueError>;

/// What became of jobs; `None` where there was no room.
fn outcome(added: Added) -> Option<Vec<EnqueueOutcome>> {
    match added {
        Ok(added) => Some(added),
        Err(error) => {
            assert!(
                matches!(error.kind(), QueueErrorKind::Full { .. }),
                "{error:?}"
            );
            None
        }
    }
}

/// Numbers that look like chance and are the same each time.
fn drawn(seed: u64, below: u64) -> u64 {
    let mixed = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) % below
}

/// Where they have room only if some of them are none, they are all added, or none.
#[tokio::test]
async fn jobs_that_meet_each_other_near_the_bound_are_all_added_or_none() {
    let (prefix, comments) = (fresh_prefix(), Digest::window(10 * MINUTE).max(100));
    let store = shared().await.store_with(&prefix).await;
    let mut kept = Kept::of(shared().await, &prefix).await;
    let queue: Queue<u64> = Queue::new(store, "q").capacity(50, 10);
    let joining = |range: std::ops::Range<u64>| {
        range.map(move |number| Job::to("u1", number).digest("comments", comments))
    };
    let added = queue.enqueue_many(joining(0..200)).await.unwrap();
    assert_eq!(added[199], EnqueueOutcome::Joined(JobId(2)));
    let apart = (0..9).map(|number| Job::to("u1", number));
    let refused = queue.enqueue_many(joining(0..100).chain(apart)).await;
    let refused = refused.unwrap_err();
    assert!(matches!(refused.kind(), QueueErrorKind::Full { .. }));
    assert_eq!(queue.depth().await.unwrap().waiting(), 2);
    assert_eq!(kept.pieces("q").await, 0);
}

#[tokio::test]
async fn near_its_bounds_a_queue_takes_in_and_refuses_what_one_in_memory_does() {
    let (server, mut refused, mut weighed) = (shared().await, 0, 0);
    for seed in 0..40 {
        let (all, of_one) = (60 + drawn(seed, 150), 15 + drawn(seed + 100, 30));
        let store = server.store_with(&fresh_prefix()).await;
        let queue: Queue<u64> = Queue::new(store.clone(), "q").capacity(all, of_one);
        let expected = Expected::within(all, of_one);
        for step in 0..6 {
            let draw = |kind, below| drawn(1_000 * seed + 10 * step + kind, below);
            let first = draw(0, 300);
            let jobs = || meeting_each_other(first..first + 65 + draw(1, 200));
            let (before, count) = (store.commands(), jobs().count() as u64);
            let added = outcome(queue.enqueue_many(jobs()).await);
            weighed += u64::from(store.commands() - before > 4 + count.div_ceil(32));
            refused += u64::from(added.is_none());
            let same = outcome(expected.0.enqueue_many(jobs()).await);
            assert_eq!(added, same);
            expected.check(&queue).await;
            let most = 1 + draw(2, 30) as usize;
            let batch = queue.lease(most).await.unwrap();
            let same = expected.0.lease(most).await.unwrap();
            let ids = |batch: &tower_keep::data::queue::Batch<u64>| {
                batch.jobs.iter().map(|job| job.id).collect::<Vec<_>>()
            };
            assert_eq!(batch.as_ref().map(ids), same.as_ref().map(ids));
            if let (Some(batch), Some(same)) = (batch, same) {
                assert!(queue.ack(&batch).await.unwrap().is_complete());
                assert!(expected.0.ack(&same).await.unwrap().is_complete());
            }
        }
    }
    // Of 240 parts.
    assert!(refused > 20, "{refused}");
    assert!(weighed > 60, "{weighed}");
}

/// A queue of 150 jobs in all, 60 of one, on Redis, and the same in memory.
struct Near {
    queue: Queue<u64>,
    store: tower_keep::backend::redis::RedisStore,
    kept: Kept,
    expected: Expected,
    prefix: String,
}

impl Near {
    async fn on(server: &RedisServer) -> Self {
        let prefix = fresh_prefix();
        let store = knowing(server, &prefix).await;
        Self {
            queue: Queue::new(store.clone(), "q").capacity(150, 60),
            kept: Kept::of(server, &prefix).await,
            expected: Expected::within(150, 60),
            store,
            prefix,
        }
    }

    /// Adds `jobs` until `steps` commands after the first have gone out, and the last is answered.
    async fn adding(
        &mut self,
        jobs: Vec<Job<u64>>,
        steps: u64,
    ) -> std::pin::Pin<Box<impl Future<Output = Added> + use<>>> {
        let (queue, last) = (self.queue.clone(), self.store.commands() + 1 + steps);
        let mut adding = Box::pin(async move { queue.enqueue_many(jobs).await });
        while self.store.commands() < last {
            let ended = poll_fn(|cx| Poll::Ready(adding.as_mut().poll(cx).is_ready())).await;
            assert!(!ended, "there are no {steps} steps");
            tokio::task::yield_now().await;
        }
        // What was sent before this is done when this is.
        while self.kept.pieces("q").await == 0 {}
        adding
    }
}

/// 200 of which 67 are new: seven pieces.
const FITTING: std::ops::Range<u64> = 0..200;
/// 512 of which 167 would be new: refused at one of the last of 16 pieces.
const REFUSED: std::ops::Range<u64> = 0..512;

#[tokio::test]
async fn a_part_whose_caller_left_while_it_was_weighed_is_added_or_refused_by_the_next() {
    for range in [FITTING, REFUSED] {
        for steps in 0..6 {
            let mut near = Near::on(shared().await).await;
            let jobs = || meeting_each_other(range.clone());
            drop(near.adding(jobs().collect(), steps).await);
            let expected = outcome(near.expected.0.enqueue_many(jobs()).await);
            assert_eq!(expected.is_some(), range == FITTING);
            near.expected.check(&near.queue).await;
            assert_eq!(near.kept.pieces("q").await, 0);
        }
    }
}

#[tokio::test]
async fn who_adds_a_part_that_others_weighed_is_told_that_it_was_added_or_refused() {
    for range in [FITTING, REFUSED] {
        let mut near = Near::on(shared().await).await;
        let jobs = || meeting_each_other(range.clone());
        let adding = near.adding(jobs().collect(), 2).await;
        let other: Queue<u64> =
            Queue::new(shared().await.store_with(&near.prefix).await, "q").capacity(150, 60);
        let depth = other.depth().await.unwrap();
        assert_eq!(
            outcome(adding.await),
            outcome(near.expected.0.enqueue_many(jobs()).await)
        );
        assert_eq!(near.queue.depth().await.unwrap(), depth);
    }
}

/// What was counted may be lost, as every key may that has an end: nobody believes half of it.
#[tokio::test]
async fn a_part_is_weighed_again_where_what_was_counted_is_lost() {
    for range in [FITTING, REFUSED] {
        let mut near = Near::on(shared().await).await;
        let jobs = || meeting_each_other(range.clone());
        let adding = near.adding(jobs().collect(), 2).await;
        let pattern = near.kept.key("q", "book:*");
        let keys = ::redis::cmd("KEYS").arg(pattern).to_owned();
        let keys: Vec<String> = keys.query_async(&mut near.kept.raw).await.unwrap();
        let mut delete = ::redis::cmd("DEL");
        assert_eq!(keys.len(), 1);
        delete
            .arg(&keys)
            .exec_async(&mut near.kept.raw)
            .await
            .unwrap();
        assert_eq!(
            outcome(adding.await),
            outcome(near.expected.0.enqueue_many(jobs()).await)
        );
        near.expected.check(&near.queue).await;
        let keys = ::redis::cmd("EXISTS").arg(&keys).to_owned();
        let kept: u64 = keys.query_async(&mut near.kept.raw).await.unwrap();
        assert_eq!(kept, 0, "what was counted is forgotten");
    }
}

#[tokio::test]
async fn a_full_server_still_weighs_a_part_and_works_it_off() {
    let server = RedisServer::start().await;
    for range in [FITTING, REFUSED] {
        let mut near = Near::on(&server).await;
        let jobs = || meeting_each_other(range.clone());
        drop(near.adding(jobs().collect(), 1).await);
        let expected = outcome(near.expected.0.enqueue_many(jobs()).await);
        let room = async |bytes: &str| {
            let mut set = ::redis::cmd("CONFIG");
            set.arg("SET").arg("maxmemory").arg(bytes);
            set.exec_async(&mut server.raw().await).await.unwrap();
        };
        room("1").await;
        let batch = near.queue.lease(9).await.unwrap();
        assert_eq!(batch.is_some(), expected.is_some());
        assert_eq!(near.kept.pieces("q").await, 0);
        room("0").await;
    }
}

/// What is over makes room, also for a part.
#[tokio::test]
async fn a_part_without_room_is_weighed_again_after_what_is_over_made_some() {
    let near = Near::on(shared().await).await;
    let queue = near.queue.expire_after(tower_keep::MILLIS);
    let old = (0..60).map(|number| Job::to("u0", number));
    queue.enqueue_many(old).await.unwrap();
    tokio::time::sleep(5 * tower_keep::MILLIS).await;
    let comments = Digest::window(10 * MINUTE).max(9);
    let key = |number: u64| format!("comments {}", number / 2);
    let new = || (0..100).map(|number| Job::to("u0", number).digest(key(number), comments));
    let added = outcome(queue.enqueue_many(new()).await).unwrap();
    assert_eq!(added.len(), 100);
    assert_eq!(queue.depth().await.unwrap().waiting(), 50);
    let others = (0..100).map(|number| Job::to("u0", number).digest(number, comments));
    assert_eq!(outcome(queue.enqueue_many(others).await), None);
    assert_eq!(queue.depth().await.unwrap().waiting(), 50);
}
