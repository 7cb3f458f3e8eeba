//! A part of many bytes is put aside before it is promised: no script on Redis carries much, and what is never promised goes.

use std::future::{Future, poll_fn};
use std::task::Poll;

use tower_keep::MINUTE;
use tower_keep::backend::memory::MemoryStore;
use tower_keep::data::queue::{Digest, Job, Queue, QueueErrorKind};

use super::parts::{Kept, knowing};
use crate::support::redis::{fresh_prefix, shared};

/// 100 jobs of 8 KiB: a piece has seven, two pieces go aside together, the 15 of them by eight scripts.
const ASIDE: u64 = 8;
const PIECES: u64 = 15;

fn large() -> impl Iterator<Item = Job<String>> {
    (0..100).map(|number: u32| {
        let job = Job::to(
            format!("u{}", number % 7),
            format!("{number}:{}", "x".repeat(8_192)),
        );
        match number % 10 {
            0 => job.digest("comments", Digest::window(10 * MINUTE).max(9)),
            1 => job.once(format!("{}", number / 20)),
            _ => job,
        }
    })
}

async fn aside(kept: &mut Kept) -> Vec<String> {
    let pattern = kept.key("q", "stage:*");
    let keys = ::redis::cmd("KEYS").arg(pattern).to_owned();
    keys.query_async(&mut kept.raw).await.unwrap()
}

async fn shown(queue: &Queue<String>) -> Vec<(u64, Vec<String>)> {
    let mut all = Vec::new();
    for recipient in 0..7 {
        for job in queue.list(&format!("u{recipient}"), 512).await.unwrap() {
            all.push((job.id.0, job.items.unwrap()));
        }
    }
    all
}

#[tokio::test]
async fn many_bytes_come_in_small_scripts_and_are_added_as_few_are() {
    let prefix = fresh_prefix();
    let store = knowing(shared().await, &prefix).await;
    let mut kept = Kept::of(shared().await, &prefix).await;
    let queue: Queue<String> = Queue::new(store.clone(), "q");
    let expected: Queue<String> = Queue::new(MemoryStore::new(), "q");
    for again in 0..2 {
        let before = store.commands();
        let added = queue.enqueue_many(large()).await.unwrap();
        let spent = store.commands() - before;
        assert_eq!(added, expected.enqueue_many(large()).await.unwrap());
        // One of them teaches the server its script.
        assert_eq!(spent, ASIDE + 1 + PIECES + u64::from(again == 0));
        assert_eq!(shown(&queue).await, shown(&expected).await);
        assert_eq!(aside(&mut kept).await, [""; 0]);
        assert_eq!(kept.length("EXISTS", "q", "part").await, 0);
    }
}

#[tokio::test]
async fn who_leaves_while_it_puts_a_part_aside_has_added_nothing_and_after_it_all() {
    for steps in [1, ASIDE - 1, ASIDE, ASIDE + 1, ASIDE + 3] {
        let prefix = fresh_prefix();
        let store = knowing(shared().await, &prefix).await;
        let mut kept = Kept::of(shared().await, &prefix).await;
        let warm: Queue<String> = Queue::new(store.clone(), "warm");
        warm.enqueue_many(large()).await.unwrap();
        let queue: Queue<String> = Queue::new(store.clone(), "q");
        let last = store.commands() + steps;
        let mut adding = Box::pin(queue.enqueue_many(large()));
        while store.commands() < last {
            let ended = poll_fn(|cx| Poll::Ready(adding.as_mut().poll(cx).is_ready())).await;
            assert!(!ended);
            tokio::task::yield_now().await;
        }
        drop(adding);
        if steps <= ASIDE {
            while aside(&mut kept).await.is_empty() {}
            for key in aside(&mut kept).await {
                let ends = ::redis::cmd("PTTL").arg(key).to_owned();
                let ends: i64 = ends.query_async(&mut kept.raw).await.unwrap();
                assert!((1..=60_000).contains(&ends), "it goes by itself: {ends}");
            }
            assert_eq!(queue.depth().await.unwrap().waiting(), 0);
        } else {
            while kept.length("EXISTS", "q", "part").await == 0 {}
            assert_eq!(aside(&mut kept).await, [""; 0]);
            let expected: Queue<String> = Queue::new(MemoryStore::new(), "q");
            expected.enqueue_many(large()).await.unwrap();
            assert_eq!(shown(&queue).await, shown(&expected).await);
        }
    }
}

#[tokio::test]
async fn what_was_put_aside_and_is_lost_is_not_promised() {
    let prefix = fresh_prefix();
    let store = knowing(shared().await, &prefix).await;
    let mut kept = Kept::of(shared().await, &prefix).await;
    let queue: Queue<String> = Queue::new(store.clone(), "q");
    queue.enqueue_many(large()).await.unwrap();
    let before = queue.depth().await.unwrap();
    let last = store.commands() + 3;
    let mut adding = Box::pin(queue.enqueue_many(large()));
    while store.commands() < last {
        let ended = poll_fn(|cx| Poll::Ready(adding.as_mut().poll(cx).is_ready())).await;
        assert!(!ended);
        tokio::task::yield_now().await;
    }
    while aside(&mut kept).await.is_empty() {}
    for key in aside(&mut kept).await {
        let delete = ::redis::cmd("DEL").arg(key).to_owned();
        let _: u64 = delete.query_async(&mut kept.raw).await.unwrap();
    }
    let refused = adding.await.unwrap_err();
    assert!(
        matches!(refused.kind(), QueueErrorKind::Unavailable { .. }),
        "{refused:?}"
    );
    assert_eq!(queue.depth().await.unwrap(), before);
}
