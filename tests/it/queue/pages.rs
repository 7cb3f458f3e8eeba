//! On Redis the items of a digest lie in pages: what joins copies one page and not all that is there, and nothing is left behind.

use tower_keep::core::ManualClock;
use tower_keep::data::queue::{Digest, EnqueueOutcome, Job, JobId, Queue, Retry};
use tower_keep::{DAY, MINUTE};

use super::parts::Kept;
use crate::support::redis::{fresh_prefix, shared};

/// Bytes after which items begin a new page.
const PAGE: usize = 8192;

fn clock() -> ManualClock {
    ManualClock::at("2030-01-01T00:00:00Z".parse().unwrap())
}

/// Items of one digest in several calls, some of them together: short ones, and ones that are longer than a page.
fn calls() -> Vec<Vec<String>> {
    let size = |number: usize| [3, 500, 3_000, 20_000, 40, 8_192, 900][number % 7];
    let item = |number: usize| format!("{number}:{}", "x".repeat(size(number)));
    let mut calls = vec![(0..2).map(item).collect::<Vec<_>>()];
    for call in 0..20 {
        let first = 2 + 2 * call;
        calls.push((first..first + 1 + call % 2).map(item).collect());
    }
    calls
}

fn comments(item: String) -> Job<String> {
    let long = Digest::window(10 * MINUTE).max(1_000);
    Job::to("u1", item).digest("comments", long)
}

/// A queue with one digest of all those items, on the server's clock.
async fn joined(queue: &Queue<String>) -> (JobId, Vec<String>) {
    let (mut all, mut digest) = (Vec::new(), None);
    for items in calls() {
        all.extend(items.clone());
        let jobs = items.into_iter().map(comments);
        for outcome in queue.enqueue_many(jobs).await.unwrap() {
            match outcome {
                EnqueueOutcome::New(id) => assert_eq!(digest.replace(id), None),
                joined => assert_eq!(joined, EnqueueOutcome::Joined(digest.unwrap())),
            }
        }
    }
    (digest.unwrap(), all)
}

async fn sizes(kept: &mut Kept) -> Vec<usize> {
    let command = ::redis::cmd("HVALS").arg(kept.key("q", "items")).to_owned();
    let pages: Vec<Vec<u8>> = command.query_async(&mut kept.raw).await.unwrap();
    pages.iter().map(Vec::len).collect()
}

async fn on_redis() -> (Queue<String>, Kept, ManualClock) {
    let (prefix, clock) = (fresh_prefix(), clock());
    let store = shared().await.builder(&prefix).clock(clock.clone());
    let kept = Kept::of(shared().await, &prefix).await;
    (Queue::new(store.open().await.unwrap(), "q"), kept, clock)
}

#[tokio::test]
async fn what_joins_a_digest_copies_no_more_than_a_page() {
    let (queue, mut kept, clock) = on_redis().await;
    let (id, all) = joined(&queue).await;
    let longest = calls().iter().map(|call| call.concat().len() + 64).max();
    let sizes = sizes(&mut kept).await;
    assert!(sizes.iter().sum::<usize>() > 15 * PAGE);
    assert!(
        sizes.iter().all(|size| *size < PAGE + longest.unwrap()),
        "{sizes:?}"
    );
    let shown = queue.jobs([id]).await.unwrap();
    assert_eq!(shown[0].items.as_ref().unwrap(), &all);
    let shown = queue.list("u1", 9).await.unwrap();
    assert_eq!(shown[0].items.as_ref().unwrap(), &all);
    clock.advance(10 * MINUTE);
    let batch = queue.lease_from("u1", 1).await.unwrap().unwrap();
    assert_eq!(batch.jobs[0].items, all);
}

#[tokio::test]
async fn no_page_of_a_digest_is_left_behind() {
    let (queue, mut kept, clock) = on_redis().await;
    let other = |number: u64| Job::to("u1", "y".repeat(5_000)).once(number.to_string());
    queue.enqueue(other(1)).await.unwrap();
    let length = async |kept: &mut Kept| kept.length("HLEN", "q", "items").await;
    let (id, _) = joined(&queue).await;
    assert!(length(&mut kept).await > 10);
    assert_eq!(queue.cancel("u1", [id]).await.unwrap(), [id]);
    assert_eq!(length(&mut kept).await, 1);
    let (_, all) = joined(&queue).await;
    clock.advance(10 * MINUTE);
    let batch = queue.lease_from("u1", 9).await.unwrap().unwrap();
    assert_eq!(batch.jobs.len(), 2);
    assert_eq!(batch.jobs[1].items, all);
    assert!(queue.ack(&batch).await.unwrap().is_complete());
    assert_eq!(length(&mut kept).await, 0);
}

#[tokio::test]
async fn a_dead_digest_lives_again_with_all_its_pages_or_is_dropped_with_them() {
    let (queue, mut kept, clock) = on_redis().await;
    let fail = async || {
        let batch = queue.lease_from("u1", 1).await.unwrap().unwrap();
        let failed = queue.nack(&batch.jobs[0], Retry::Dead).await.unwrap();
        assert!(failed.is_complete());
        batch.jobs[0].items.clone()
    };
    let (id, all) = joined(&queue).await;
    clock.advance(10 * MINUTE);
    assert_eq!(fail().await, all);
    assert_eq!(queue.revive([id]).await.unwrap(), [id]);
    assert_eq!(fail().await, all);
    assert_eq!(
        queue.dead(9).await.unwrap()[0].items.as_ref().unwrap(),
        &all
    );
    assert!(kept.length("HLEN", "q", "items").await > 10);
    clock.advance(7 * DAY + MINUTE);
    assert_eq!(queue.depth().await.unwrap().dead, 0);
    assert_eq!(kept.length("HLEN", "q", "items").await, 0);
}

/// A script that moves a hundred jobs leases fewer of them.
#[tokio::test]
async fn a_large_lease_moves_fewer_of_the_leases_that_ended() {
    let clock = clock();
    let server = shared().await;
    let prefix = fresh_prefix();
    let store = server.builder(&prefix).clock(clock.clone());
    let queue: Queue<u64> = Queue::new(store.open().await.unwrap(), "q");
    let jobs = (0..200).map(|number| Job::to("u1", number));
    queue.enqueue_many(jobs).await.unwrap();
    let mut kept = Kept::of(server, &prefix).await;
    for _ in 0..2 {
        assert_eq!(queue.lease(100).await.unwrap().unwrap().jobs.len(), 100);
    }
    clock.advance(10 * MINUTE);
    let batch = queue.lease(100).await.unwrap().unwrap();
    assert_eq!(batch.jobs.len(), 25);
    let batch = queue.lease(5).await.unwrap().unwrap();
    assert_eq!(batch.jobs.len(), 5);
    let [ready, leased] = [
        kept.length("ZCARD", "q", "ready").await,
        kept.length("ZCARD", "q", "leased").await,
    ];
    assert_eq!([ready, leased], [43, 157]);
}
