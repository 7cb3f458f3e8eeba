//! Every call of a service, dropped at each of its awaits: what it was to do is done whole or not at all, and what
//! comes next finds nothing in its way.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;

use tower_keep::SECOND;
use tower_keep::backend::redis::RedisStore;
use tower_keep::core::ManualClock;
use tower_keep::data::cache::{Cache, InvalidateOutcome};
use tower_keep::data::counter::Counter;
use tower_keep::data::lock::Lock;
use tower_keep::data::once::{Expect, Once, Progress, SaveOutcome};
use tower_keep::data::queue::{Job, Queue};
use tower_keep::data::topic::{Event, Topic};
use tower_keep::ttl;

use crate::support::redis::shared;

async fn store() -> (RedisStore, ManualClock) {
    let clock = ManualClock::at("2030-01-01T00:00:00.007Z".parse().unwrap());
    (shared().await.store(&clock).await, clock)
}

/// Polls `future` so many times, each time that it is woken, and drops it; returns what it ended with before.
async fn polled<T>(times: usize, future: impl Future<Output = T>) -> Option<T> {
    let (mut future, mut polls) = (pin!(future), 0);
    poll_fn(|cx| {
        if polls == times {
            return Poll::Ready(None);
        }
        polls += 1;
        match future.as_mut().poll(cx) {
            Poll::Ready(ended) => Poll::Ready(Some(ended)),
            // Dropped at once: whoever would wake it finds nobody.
            Poll::Pending if polls == times => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

#[tokio::test]
async fn a_job_that_is_enqueued_leased_and_acked_by_callers_who_leave_is_there_once_until_it_is_acked()
 {
    let (store, clock) = store().await;
    for times in 0.. {
        let queue: Queue<u64> = Queue::new(store.clone(), &format!("jobs{times}")).attempts(100);
        let added = polled(times, queue.enqueue(Job::to("u1", 7).once("one"))).await;
        // Of the same connection: whatever was sent before is done.
        let before = queue.depth().await.unwrap();
        assert!(before.ready <= 1 && before.waiting() == before.ready);
        assert!(added.is_none() || before.ready == 1);
        queue.enqueue(Job::to("u1", 7).once("one")).await.unwrap();
        assert_eq!(queue.depth().await.unwrap().waiting(), 1);
        let leased = polled(times, queue.lease(1)).await;
        let held = queue.depth().await.unwrap();
        assert_eq!((held.ready + held.leased, held.delayed), (1, 0));
        assert!(leased.is_none() || held.leased == 1);
        // What was leased without an answer returns at its end.
        clock.advance(30 * SECOND);
        let batch = queue.lease(1).await.unwrap().unwrap();
        assert_eq!(batch.jobs[0].attempt, 1 + held.leased as u32);
        let acked = polled(times, queue.ack(&batch)).await;
        let left = queue.depth().await.unwrap();
        assert_eq!(left.waiting(), left.leased);
        match acked {
            None => assert!(left.leased <= 1),
            Some(acked) => {
                assert!(acked.unwrap().is_complete());
                assert_eq!(left.leased, 0);
                assert!(times > 1, "it was dropped at no await");
                return;
            }
        }
    }
}

#[tokio::test]
async fn a_token_is_kept_or_not_and_taken_or_not_and_a_save_is_whole() {
    let (store, _clock) = store().await;
    let states: Once<u64> = Once::new(store.clone(), "state", ttl::OAUTH_STATE);
    let forms: Progress<u64> = Progress::new(store, "form", ttl::FORM_PROGRESS);
    for times in 0.. {
        let token = format!("a token of this test {times}");
        let put = polled(times, states.put(&token, &7)).await;
        let kept = states.peek(&token).await.unwrap().is_some();
        assert!(put.is_none() || kept);
        states.put(&token, &7).await.unwrap();
        let taken = polled(times, states.take(&token)).await;
        let mut given = usize::from(matches!(&taken, Some(Ok(Some(_)))));
        assert!(taken.is_none() || given == 1);
        for _ in 0..2 {
            given += usize::from(states.take(&token).await.unwrap().is_some());
        }
        assert!(given <= 1, "{times}");
        let key = ("u1", times as u64);
        forms.save(key, &1, Expect::Absent).await.unwrap();
        let saved = polled(times, forms.save(key, &2, Expect::Version(1))).await;
        let now = forms.load(key).await.unwrap().unwrap();
        assert_eq!(now.value, now.version);
        let is_over = taken.is_some() && saved.is_some();
        if let Some(saved) = saved {
            assert_eq!(saved.unwrap(), SaveOutcome::Saved { version: 2 });
            assert_eq!(now.version, 2);
        }
        if is_over {
            assert!(times > 1, "it was dropped at no await");
            return;
        }
    }
}

#[tokio::test]
async fn an_increment_counts_once_or_not_and_what_was_added_is_flushed_once() {
    let (store, _clock) = store().await;
    for times in 0.. {
        let metrics = Counter::new(store.clone(), &format!("metrics{times}"));
        let counted = polled(times, metrics.incr("direct", 1, ttl::METRIC)).await;
        let value = metrics.value("direct").await.unwrap();
        assert!(value == 1 || (counted.is_none() && value == 0), "{value}");
        metrics.add("buffered", 5, ttl::METRIC).unwrap();
        let flushed = polled(times, metrics.flush()).await;
        metrics.flush().await.unwrap();
        assert_eq!(metrics.value("buffered").await.unwrap(), 5);
        if counted.is_some() && flushed.is_some() {
            assert!(times > 1, "it was dropped at no await");
            return;
        }
    }
}

#[tokio::test]
async fn a_lock_is_held_or_free_and_one_that_its_taker_left_is_free_at_once() {
    let (store, _clock) = store().await;
    for times in 0.. {
        let (lock, key) = (Lock::new(store.clone(), "payment"), times as u64);
        let taken = polled(times, lock.try_acquire(key)).await;
        let is_over = taken.is_some();
        drop(taken);
        // Given back by a task, long before its end.
        let guard = lock.acquire(key, 20 * SECOND).await.unwrap();
        drop(polled(times, guard.release()).await);
        lock.acquire(key, 20 * SECOND)
            .await
            .unwrap()
            .release()
            .await
            .unwrap();
        if is_over {
            assert!(times > 1, "it was dropped at no await");
            return;
        }
    }
}

#[tokio::test]
async fn an_event_is_published_once_or_not_and_a_reader_that_leaves_its_place_loses_none() {
    let (store, _clock) = store().await;
    let topic: Topic<u64> = Topic::new(store, "expert");
    let (mut feed, mut published) = (topic.subscribe("e1").await.unwrap(), 0);
    for times in 0.. {
        let value = times as u64;
        let event = polled(times, topic.publish("e1", &value)).await;
        let latest = topic.latest("e1").await.unwrap();
        let is_there = latest.is_some_and(|latest| latest.value == value);
        assert!(is_there || event.is_none());
        published += u64::from(is_there);
        if event.is_some() {
            break;
        }
    }
    let (mut read, mut times) = (Vec::new(), 0);
    while (read.len() as u64) < published {
        times = (times + 1) % 4;
        match polled(times, feed.next()).await {
            Some(Some(Event::Message { value, .. })) => read.push(value),
            None => tokio::task::yield_now().await,
            other => panic!("{other:?}"),
        }
    }
    let last = *read.last().unwrap();
    assert!(read.is_sorted() && last > 1, "{read:?}");
    assert_eq!(feed.position().unwrap().seq(), published);
}

#[tokio::test]
async fn a_put_and_an_invalidation_go_on_without_their_callers_and_so_does_a_load() {
    let (store, _clock) = store().await;
    let users: Cache<u64, u64> = Cache::new(store, "user", ttl::USER);
    let reads = async |key: u64, wanted: Option<u64>| {
        while users.get(&key).await.unwrap().map(|value| *value) != wanted {
            tokio::task::yield_now().await;
        }
    };
    for times in 1..6 {
        users.put(&times, 1).await.unwrap();
        drop(polled(times as usize, users.put(&times, 2)).await);
        reads(times, Some(2)).await;
        let gone = polled(times as usize, users.remove(&times)).await;
        assert!(gone.is_none_or(|gone| gone == InvalidateOutcome::Done));
        reads(times, None).await;
        let load = users.get_or_load(&times, |key| async move { Ok::<_, std::io::Error>(key) });
        drop(polled(times as usize, load).await);
        reads(times, Some(times)).await;
    }
}
