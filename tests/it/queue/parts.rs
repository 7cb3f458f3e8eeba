//! On Redis a large part of jobs is committed by one script and put in its places by others: nobody sees the difference,
//! and no script has much to do.

use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tower_keep::MINUTE;
use tower_keep::backend::memory::MemoryStore;
use tower_keep::backend::redis::RedisStore;
use tower_keep::core::Notice;
use tower_keep::data::queue::{
    Batch, Digest, EnqueueOutcome, Job, JobId, Priority, Queue, QueueErrorKind, QueueStore,
};

use crate::support::redis::{RedisServer, fresh_prefix, shared};

/// Jobs that one script puts in their places.
const PIECE: usize = 64;
/// Jobs that one script goes through in order.
const PIECE_IN_ORDER: usize = 32;

/// What lies on the server.
pub(super) struct Kept {
    pub(super) raw: ::redis::aio::MultiplexedConnection,
    prefix: String,
}

impl Kept {
    pub(super) async fn of(server: &RedisServer, prefix: &str) -> Self {
        let (raw, prefix) = (server.raw().await, prefix.to_owned());
        Self { raw, prefix }
    }

    pub(super) fn key(&self, queue: &str, key: &str) -> String {
        format!("{}:queue:{{{queue}}}:{key}", self.prefix)
    }

    pub(super) async fn length(&mut self, command: &str, queue: &str, key: &str) -> usize {
        let key = self.key(queue, key);
        let length = ::redis::cmd(command).arg(key).to_owned();
        length.query_async(&mut self.raw).await.unwrap()
    }

    /// Pieces of a part that are still to be put in their places.
    pub(super) async fn pieces(&mut self, queue: &str) -> usize {
        let fields = self.length("HLEN", queue, "part").await;
        fields.saturating_sub(1)
    }

    async fn jobs(&mut self, queue: &str) -> [usize; 3] {
        let jobs = self.length("HLEN", queue, "jobs").await;
        let ready = self.length("ZCARD", queue, "ready").await;
        [jobs, ready, self.length("ZCARD", queue, "who").await]
    }
}

fn many(range: std::ops::Range<u64>) -> impl Iterator<Item = Job<u64>> {
    range.map(|number| Job::to(format!("u{}", number % 7), number))
}

/// Jobs of which some join others, take their places, or come twice.
pub(super) fn meeting_each_other(range: std::ops::Range<u64>) -> impl Iterator<Item = Job<u64>> {
    range.map(|number| {
        let job = Job::to(format!("u{}", number % 7), number);
        let again =
            Job::to(format!("u{}", number / 10 % 7), number).once(format!("{}", number / 10));
        let comments = Digest::window(10 * MINUTE).max(20);
        match number % 5 {
            0 => job.digest("comments", comments),
            1 => job.digest("comments", comments).once(format!("n{number}")),
            2 => again.after(MINUTE).replace(),
            3 => again,
            _ => job.priority(Priority::High),
        }
    })
}

/// What becomes of them in a queue of this process.
pub(super) struct Expected(pub(super) Queue<u64>);

impl Expected {
    fn new() -> Self {
        Self::within(1_000, 400)
    }

    pub(super) fn within(all: u64, of_one: u64) -> Self {
        let queue = Queue::new(MemoryStore::new(), "q");
        Self(queue.capacity(all, of_one))
    }

    async fn of(&self, jobs: impl IntoIterator<Item = Job<u64>>) -> Vec<EnqueueOutcome> {
        self.0.enqueue_many(jobs).await.unwrap()
    }

    /// Holds what is in `queue` against what is to be there.
    pub(super) async fn check(&self, queue: &Queue<u64>) {
        let all = async |queue: &Queue<u64>| {
            let mut all = Vec::new();
            for recipient in 0..7 {
                for job in queue.list(&format!("u{recipient}"), 512).await.unwrap() {
                    all.push((job.id, job.state, job.priority, job.items.unwrap()));
                }
            }
            all
        };
        assert_eq!(all(queue).await, all(&self.0).await);
        let (depth, expected) = (queue.depth().await.unwrap(), self.0.depth().await.unwrap());
        assert_eq!(
            (depth.ready, depth.delayed),
            (expected.ready, expected.delayed)
        );
    }
}

/// A queue after `before` with a part of `jobs`, whose caller left when the first `done` pieces were in their places.
async fn left_behind(
    before: Vec<Job<u64>>,
    jobs: Vec<Job<u64>>,
    done: usize,
) -> (Queue<u64>, RedisStore, Kept) {
    left_behind_at(shared().await, fresh_prefix(), before, jobs, done).await
}

/// Whether somebody has to go through jobs in order: what one asks for may depend on another.
fn pieces_of(jobs: &[Job<u64>]) -> usize {
    let text = format!("{jobs:?}");
    let is_plain = !text.contains("Some(DigestWish") && !text.contains("Replace");
    jobs.len()
        .div_ceil(if is_plain { PIECE } else { PIECE_IN_ORDER })
}

/// All scripts are known to its server, so that each step is one command.
pub(super) async fn knowing(server: &RedisServer, prefix: &str) -> RedisStore {
    let store = server.store_with(prefix).await;
    let other: Queue<u64> = Queue::new(store.clone(), "other");
    other.enqueue_many(many(0..100)).await.unwrap();
    let meeting: Queue<u64> = Queue::new(store.clone(), "meeting");
    meeting
        .enqueue_many(meeting_each_other(0..100))
        .await
        .unwrap();
    let batch = other.lease(5).await.unwrap().unwrap();
    assert!(other.extend(&batch).await.unwrap().is_complete());
    assert!(other.ack(&batch).await.unwrap().is_complete());
    store
}

async fn left_behind_at(
    server: &RedisServer,
    prefix: String,
    before: Vec<Job<u64>>,
    jobs: Vec<Job<u64>>,
    done: usize,
) -> (Queue<u64>, RedisStore, Kept) {
    let store = knowing(server, &prefix).await;
    let queue: Queue<u64> = Queue::new(store.clone(), "q").capacity(1_000, 400);
    for job in before {
        queue.enqueue(job).await.unwrap();
    }
    let (mut kept, pieces) = (Kept::of(server, &prefix).await, pieces_of(&jobs));
    let last = store.commands() + 1 + done as u64;
    let mut adding = Box::pin(queue.enqueue_many(jobs));
    while store.commands() < last {
        let ended = poll_fn(|cx| Poll::Ready(adding.as_mut().poll(cx).is_ready())).await;
        assert!(!ended, "there are no {done} pieces");
        tokio::task::yield_now().await;
    }
    while kept.pieces("q").await != pieces - done {}
    drop(adding);
    (queue.clone(), store, kept)
}

#[tokio::test]
async fn a_part_is_added_by_one_script_and_put_in_its_place_by_small_ones() {
    for done in 0..8 {
        let (queue, store, mut kept) = left_behind(Vec::new(), many(0..512).collect(), done).await;
        assert_eq!(kept.jobs("q").await, [done * PIECE; 3]);
        let before = store.commands();
        let added = queue.enqueue_many(many(0..300)).await.unwrap();
        // Refused, the rest of the other part; then this one.
        let spent = store.commands() - before;
        assert_eq!((added.len(), spent), (300, 1 + (8 - done as u64) + 1 + 5));
        assert_eq!(kept.jobs("q").await, [812; 3]);
        assert_eq!(kept.pieces("q").await, 0);
    }
}

#[tokio::test]
async fn jobs_that_meet_each_other_are_gone_through_in_order_by_small_scripts() {
    let (store, expected) = (
        shared().await.store_with(&fresh_prefix()).await,
        Expected::new(),
    );
    let queue: Queue<u64> = Queue::new(store.clone(), "q").capacity(1_000, 400);
    for (range, again) in [(0..300, 0..300), (100..612, 611..676)] {
        for range in [range, again] {
            let count = range.end - range.start;
            let before = store.commands();
            let added = queue.enqueue_many(meeting_each_other(range.clone())).await;
            assert_eq!(added.unwrap(), expected.of(meeting_each_other(range)).await);
            let (spent, pieces) = (store.commands() - before, count.div_ceil(32));
            // And a few that teach a server its scripts.
            assert!(
                (1 + pieces..=3 + pieces).contains(&spent),
                "{spent}, {pieces}"
            );
            expected.check(&queue).await;
        }
    }
}

#[tokio::test]
async fn jobs_that_meet_each_other_are_all_added_also_where_their_caller_left() {
    for done in 0..10 {
        let (jobs, expected) = (|| meeting_each_other(0..300), Expected::new());
        let before = Job::to("u4", 900).priority(Priority::Low).once("0");
        expected.0.enqueue(before.clone()).await.unwrap();
        let (queue, store, mut kept) = left_behind(vec![before], jobs().collect(), done).await;
        expected.of(jobs()).await;
        if done % 2 == 0 {
            let before = store.commands();
            let added = queue.enqueue_many(jobs()).await.unwrap();
            assert_eq!(added, expected.of(jobs()).await);
            // Refused, what is left of the other part between two questions for it; then this one.
            let spent = store.commands() - before;
            assert_eq!(spent, 1 + (1 + 10 - done as u64 + 1) + 1 + 10);
        } else {
            // Whatever is ready: it may be one that a job of the part joins, or takes the place of.
            let batch = queue.lease(1).await.unwrap().unwrap();
            assert_eq!(items(&batch), [4]);
            let same = expected.0.lease(1).await.unwrap().unwrap();
            assert_eq!(batch.jobs[0].id, same.jobs[0].id);
        }
        assert_eq!(kept.pieces("q").await, 0);
        expected.check(&queue).await;
    }
}

/// What became of its jobs is kept for the caller.
#[tokio::test]
async fn who_adds_jobs_that_others_put_in_their_places_is_told_what_became_of_them() {
    let server = shared().await;
    for others in 0..3 {
        let prefix = fresh_prefix();
        let (store, mut kept) = (
            knowing(server, &prefix).await,
            Kept::of(server, &prefix).await,
        );
        let expected = Expected::new().of(meeting_each_other(0..300)).await;
        let queue: Queue<u64> = Queue::new(store.clone(), "q");
        let other: Queue<u64> = Queue::new(server.store_with(&prefix).await, "q");
        let (last, pieces) = (store.commands() + 1 + others, 10 - others as usize);
        let mut adding = Box::pin(queue.enqueue_many(meeting_each_other(0..300)));
        while store.commands() < last || kept.pieces("q").await != pieces {
            let ended = poll_fn(|cx| {
                let goes_on = store.commands() < last;
                Poll::Ready(goes_on && adding.as_mut().poll(cx).is_ready())
            });
            assert!(!ended.await);
            tokio::task::yield_now().await;
        }
        let depth = other.depth().await.unwrap();
        assert_eq!(kept.pieces("q").await, 0);
        assert_eq!(adding.await.unwrap(), expected);
        assert_eq!(queue.depth().await.unwrap(), depth);
    }
}

fn items(batch: &Batch<u64>) -> Vec<u64> {
    batch.jobs.iter().map(|job| job.items[0]).collect()
}

#[tokio::test]
async fn a_lease_takes_what_comes_before_a_part_and_waits_for_nothing() {
    let of = |rank: Priority, jobs: std::ops::Range<u64>| {
        jobs.map(move |number| Job::to("u1", number).priority(rank))
            .collect::<Vec<_>>()
    };
    let (normal, low) = (Priority::Normal, Priority::Low);
    let before = [of(low, 900..902), of(normal, 902..904)].concat();
    let (queue, store, mut kept) = left_behind(before, of(low, 0..100), 0).await;
    let last = store.commands();
    let batch = queue.lease(9).await.unwrap().unwrap();
    assert_eq!(items(&batch), [902, 903]);
    assert!(queue.extend(&batch).await.unwrap().is_complete());
    assert!(queue.ack(&batch).await.unwrap().is_complete());
    // A command each: nobody had to put the part in its place for these.
    assert_eq!((store.commands() - last, kept.pieces("q").await), (3, 2));
    let batch = queue.lease(4).await.unwrap().unwrap();
    assert_eq!(items(&batch)[..2], [900, 901]);
    assert!(queue.ack(&batch).await.unwrap().is_complete());
    assert_eq!(
        queue.depth().await.unwrap().ready,
        102 - batch.jobs.len() as u64
    );
    // All of a part comes after what is there, or before it, by the most urgent of its jobs.
    let (queue, ..) = left_behind(of(normal, 900..901), of(Priority::High, 0..100), 1).await;
    assert_eq!(items(&queue.lease(2).await.unwrap().unwrap()), [0, 1]);
    let mixed = [of(low, 0..99), of(Priority::High, 99..100)].concat();
    let (queue, ..) = left_behind(of(normal, 900..901), mixed, 0).await;
    assert_eq!(items(&queue.lease(2).await.unwrap().unwrap()), [99]);
    assert_eq!(items(&queue.lease(2).await.unwrap().unwrap()), [900]);
}

/// Ids are known as soon as the part is, and those that were known stay with their jobs.
#[tokio::test]
async fn ids_given_in_a_part_are_known_with_it() {
    let given = |range: std::ops::Range<u64>| {
        range
            .map(|number| Job::to("u1", number).once(format!("id {number}")))
            .collect::<Vec<_>>()
    };
    for done in [0, 1] {
        let (queue, _, mut kept) = left_behind(given(90..92), given(0..200), done).await;
        let again = queue.enqueue_many(given(0..202)).await.unwrap();
        let ids = |one: &EnqueueOutcome| (matches!(one, EnqueueOutcome::New(_)), one.id().0);
        let mut expected = Vec::new();
        for number in 0..202 {
            expected.push(match number {
                90 | 91 => (false, number - 89),
                0..90 => (false, number + 3),
                92..200 => (false, number + 1),
                _ => (true, number + 1),
            });
        }
        assert_eq!(again.iter().map(ids).collect::<Vec<_>>(), expected);
        assert_eq!(kept.jobs("q").await, [202; 3]);
        assert_eq!(queue.depth().await.unwrap().ready, 202);
    }
}

/// Whatever is asked next, and however much of the part is in its place.
#[tokio::test]
async fn whoever_comes_next_sees_all_of_a_part_that_was_left_behind() {
    for (kind, done) in (0..10).flat_map(|kind| [(kind, 0), (kind, 3)]) {
        let dead = Job::to("u9", 900).once("dead");
        let (queue, _, mut kept) = left_behind(vec![dead], many(0..300).collect(), done).await;
        let at = format!("kind {kind}, {done} pieces");
        let mut waiting = 301;
        match kind {
            0 => {}
            1 => assert_eq!(queue.count("u3").await.unwrap().ready, 43, "{at}"),
            2 => {
                let listed = queue.list("u3", 512).await.unwrap();
                let items = listed.iter().map(|job| job.items.as_ref().unwrap()[0]);
                assert!(items.eq((3..300).step_by(7)), "{at}");
            }
            3 => {
                let batch = queue.lease_from("u3", 100).await.unwrap().unwrap();
                assert!(items(&batch).into_iter().eq((3..300).step_by(7)), "{at}");
            }
            4 => {
                let first = queue.lease(9).await.unwrap().unwrap();
                assert_eq!(items(&first), [900], "{at}");
                let next = queue.lease(4).await.unwrap().unwrap();
                assert_eq!(items(&next), [0, 7, 14, 21], "{at}");
            }
            5 => {
                let ids: Vec<JobId> = (2..=301).map(JobId).collect();
                let gone = queue.cancel("u3", ids).await.unwrap();
                assert_eq!(gone.len(), 43, "{at}");
                waiting -= 43;
            }
            6 => {
                let found = queue.jobs((2..=301).map(JobId)).await.unwrap();
                assert_eq!(found.len(), 300, "{at}");
            }
            7 => {
                let added = queue.enqueue(Job::to("u3", 300)).await.unwrap();
                assert_eq!(added, EnqueueOutcome::New(JobId(302)), "{at}");
                waiting += 1;
            }
            8 => {
                // Of seven hundred more one has no room.
                let full = queue.clone().capacity(812, 812);
                let refused = full.enqueue_many(many(0..512)).await.unwrap_err();
                assert!(
                    matches!(refused.kind(), QueueErrorKind::Full { .. }),
                    "{at}"
                );
                full.enqueue_many(many(1..512)).await.unwrap();
                waiting += 511;
            }
            _ => {
                let full = queue.clone().capacity(1_000, 43);
                let refused = full.enqueue(Job::to("u3", 300)).await.unwrap_err();
                assert!(
                    matches!(refused.kind(), QueueErrorKind::Full { .. }),
                    "{at}"
                );
            }
        }
        assert_eq!(queue.depth().await.unwrap().waiting(), waiting, "{at}");
        assert_eq!(kept.pieces("q").await, 0, "{at}");
    }
}

/// What is in the queue is worked off also where the server has no room for more: only so does it get room.
#[tokio::test]
async fn a_full_server_still_puts_a_part_in_its_place() {
    let server = RedisServer::start().await;
    for (done, is_plain) in [(0, true), (3, true), (0, false), (3, false)] {
        let (jobs, first) = match is_plain {
            true => (many(0..300).collect(), 0),
            false => (meeting_each_other(0..300).collect(), 4),
        };
        let (queue, _, mut kept) =
            left_behind_at(&server, fresh_prefix(), Vec::new(), jobs, done).await;
        let room = async |bytes: &str| {
            let mut set = ::redis::cmd("CONFIG");
            set.arg("SET").arg("maxmemory").arg(bytes);
            set.exec_async(&mut server.raw().await).await.unwrap();
        };
        room("1").await;
        let batch = queue.lease(9).await.unwrap().unwrap();
        assert_eq!(items(&batch)[0], first);
        assert_eq!(kept.pieces("q").await, 0);
        assert!(queue.ack(&batch).await.unwrap().is_complete());
        let refused = queue.enqueue(Job::to("u1", 1)).await;
        assert!(refused.is_err(), "there is no room: {refused:?}");
        room("0").await;
    }
}

/// Ids whose time is over are looked at beside what is asked for, and that writes; what is extended is written anew.
#[tokio::test]
async fn a_full_server_still_leases_lists_and_extends() {
    let server = RedisServer::start().await;
    let store = server.store_with(&fresh_prefix()).await;
    let queue: Queue<u64> = Queue::new(store, "q").remember_for(Duration::from_millis(1));
    let jobs = (0..30).map(|n| Job::to(format!("u{}", n % 2), n).once(format!("id {n}")));
    queue.enqueue_many(jobs).await.unwrap();
    let held = queue.lease(1).await.unwrap().unwrap();
    tokio::time::sleep(Duration::from_millis(5)).await;
    let mut set = ::redis::cmd("CONFIG");
    set.arg("SET").arg("maxmemory").arg("1");
    set.exec_async(&mut server.raw().await).await.unwrap();
    assert!(queue.extend(&held).await.unwrap().is_complete());
    assert_eq!(queue.depth().await.unwrap().leased, 1);
    let batch = queue.lease(20).await.unwrap().unwrap();
    assert!(queue.extend(&batch).await.unwrap().is_complete());
    assert!(queue.ack(&batch).await.unwrap().is_complete());
    assert!(queue.lease_from("u0", 20).await.unwrap().is_some());
}

/// Its caller may leave before anything is in its place: whoever sleeps is told all the same.
#[tokio::test]
async fn who_sleeps_is_woken_for_a_part_whose_caller_has_left() {
    let prefix = fresh_prefix();
    let sleeping = shared().await.store_with(&prefix).await;
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let callback = Arc::new(move |notice| drop(tell.send(notice)));
    let name = Arc::from("q");
    let listening = QueueStore::subscribe(&sleeping, &name, callback);
    let listening = listening.await.unwrap();
    assert_eq!(told.recv().await, Some(Notice::Restored));
    let jobs = many(0..100).collect();
    let (_, _, mut kept) = left_behind_at(shared().await, prefix, Vec::new(), jobs, 0).await;
    assert!(matches!(told.recv().await, Some(Notice::Payload(_))));
    assert_eq!(kept.pieces("q").await, 2);
    drop(listening);
}

/// The one key in which the caller's answers wait.
async fn told(kept: &mut Kept) -> String {
    let pattern = format!("{}:queue:{{q}}:told:*", kept.prefix);
    let keys = ::redis::cmd("KEYS").arg(pattern).to_owned();
    let keys: Vec<String> = keys.query_async(&mut kept.raw).await.unwrap();
    keys.into_iter().next().unwrap_or_default()
}

/// A server may evict the one key of a queue that has an end, or its time may be over: nobody is told of fewer jobs.
#[tokio::test]
async fn answers_that_are_lost_between_two_pieces_are_never_told_as_those_of_others() {
    let server = shared().await;
    let prefix = fresh_prefix();
    let (store, mut kept) = (
        knowing(server, &prefix).await,
        Kept::of(server, &prefix).await,
    );
    let expected = Expected::new().of(meeting_each_other(0..300)).await;
    let queue: Queue<u64> = Queue::new(store.clone(), "q");
    let mut adding = Box::pin(queue.enqueue_many(meeting_each_other(0..300)));
    let last = store.commands() + 3;
    while store.commands() < last {
        let ended = poll_fn(|cx| Poll::Ready(adding.as_mut().poll(cx).is_ready())).await;
        assert!(!ended);
        tokio::task::yield_now().await;
    }
    while kept.pieces("q").await != 8 {}
    let key = told(&mut kept).await;
    let mut delete = ::redis::cmd("DEL");
    delete.arg(key).exec_async(&mut kept.raw).await.unwrap();
    assert_eq!(adding.await.unwrap(), expected);
}

#[tokio::test]
async fn answers_of_another_number_than_the_jobs_are_none() {
    let server = shared().await;
    let prefix = fresh_prefix();
    let (store, mut kept) = (
        knowing(server, &prefix).await,
        Kept::of(server, &prefix).await,
    );
    let queue: Queue<u64> = Queue::new(store.clone(), "q");
    let other: Queue<u64> = Queue::new(server.store_with(&prefix).await, "q");
    let mut adding = Box::pin(queue.enqueue_many(meeting_each_other(0..300)));
    let last = store.commands() + 1;
    while store.commands() < last || kept.pieces("q").await != 10 {
        let ended = poll_fn(|cx| {
            let goes_on = store.commands() < last;
            Poll::Ready(goes_on && adding.as_mut().poll(cx).is_ready())
        });
        assert!(!ended.await);
        tokio::task::yield_now().await;
    }
    assert!(other.depth().await.unwrap().waiting() > 0);
    let key = told(&mut kept).await;
    let mut cut = ::redis::cmd("SET");
    cut.arg(key).arg("00000000000000001").arg("KEEPTTL");
    cut.exec_async(&mut kept.raw).await.unwrap();
    let unknown = adding.await.unwrap_err();
    assert!(
        matches!(unknown.kind(), QueueErrorKind::TimedOut),
        "{unknown:?}"
    );
}
