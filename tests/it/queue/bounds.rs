//! No script on Redis does much at once: what is over moves together, and what is shown comes in pieces.

use std::time::Duration;

use tower_keep::backend::redis::RedisStore;
use tower_keep::core::ManualClock;
use tower_keep::data::queue::{Batch, Job, JobId, JobState, JobView, Queue, Retry};
use tower_keep::{HOUR, MINUTE, SECOND};

use crate::support::redis::{RedisServer, fresh_prefix, shared};

/// What a call may take, those within its scripts included: as many for five jobs as for five hundred.
const MOST_COMMANDS: u64 = 60;

fn clock() -> ManualClock {
    ManualClock::at("2030-01-01T00:00:00.007Z".parse().unwrap())
}

fn many(to: &'static str, range: std::ops::Range<u64>) -> impl Iterator<Item = Job<u64>> {
    range.map(move |number| Job::to(to, number))
}

async fn bury<T: serde::de::DeserializeOwned>(queue: &Queue<T>, batch: &Batch<T>) {
    for job in &batch.jobs {
        assert!(queue.nack(job, Retry::Dead).await.unwrap().is_complete());
    }
}

/// A worker dies with a hundred jobs, a hundred others are due and a hundred have expired meanwhile.
#[tokio::test]
async fn what_is_over_moves_together_and_not_job_by_job() {
    let (server, clock) = (RedisServer::start().await, clock());
    let prefix = fresh_prefix();
    let store = server.builder(&prefix).clock(clock.clone()).open().await;
    let queue: Queue<u64> = Queue::new(store.unwrap(), "q").expire_after(2 * HOUR);
    let spent = async |before: u64| server.all_commands().await - before;
    // Each script is known to the server.
    queue.enqueue_many(many("x", 0..100)).await.unwrap();
    let batch = queue.lease(100).await.unwrap().unwrap();
    bury(&queue, &batch).await;
    assert_eq!(queue.depth().await.unwrap().dead, 100);

    let dead = queue.dead(200).await.unwrap();
    let before = server.all_commands().await;
    let revived = queue.revive(dead.iter().map(|job| job.id)).await.unwrap();
    assert_eq!(revived.len(), 100);
    let commands = spent(before).await;
    assert!(commands < MOST_COMMANDS, "{commands} for a hundred revived");

    // Those expire; of the second hundred each is leased, and the third is due, when the first lease comes.
    clock.advance(2 * HOUR - MINUTE);
    queue.enqueue_many(many("a", 100..200)).await.unwrap();
    let due = many("b", 200..300).map(|job| job.after(30 * SECOND));
    queue.enqueue_many(due).await.unwrap();
    let held = queue.lease_from("a", 100).await.unwrap().unwrap();
    assert_eq!(held.jobs.len(), 100);
    clock.advance(MINUTE);
    let (mut leased, mut looks) = (0, 0);
    while leased < 200 {
        let before = server.all_commands().await;
        let batch = queue.lease(100).await.unwrap();
        let commands = spent(before).await;
        // What it takes may need more than one script: each hundred has a look of its own at most.
        assert!(commands < 2 * MOST_COMMANDS, "{commands} in a lease");
        leased += batch.map_or(0, |batch| batch.jobs.len());
        looks += 1;
        assert!(looks < 9, "{leased}");
    }
    let before = server.all_commands().await;
    for _ in 0..3 {
        queue.depth().await.unwrap();
    }
    let commands = spent(before).await;
    assert!(commands < 3 * MOST_COMMANDS, "{commands} in three counts");
    let depth = queue.depth().await.unwrap();
    assert_eq!(
        (depth.ready, depth.delayed, depth.leased, depth.dead),
        (0, 0, 200, 100)
    );
    // Dead letters that are forgotten go together, too.
    clock.advance(8 * 24 * HOUR);
    let before = server.all_commands().await;
    queue.depth().await.unwrap();
    let commands = spent(before).await;
    assert!(
        commands < MOST_COMMANDS,
        "{commands} in a look at what is dead"
    );
}

/// Those that expired stand first, and a lease of few jobs does not always look for them.
#[tokio::test]
async fn a_lease_buries_what_stands_before_it_together() {
    let server = RedisServer::start().await;
    let store = server.store_with(&fresh_prefix()).await;
    let queue: Queue<u64> = Queue::new(store, "q").expire_after(Duration::from_millis(1));
    queue.enqueue_many(many("a", 0..64)).await.unwrap();
    assert!(queue.lease(1).await.unwrap().is_none());
    for round in 0..12 {
        queue.enqueue_many(many("a", 0..64)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(2)).await;
        let before = server.all_commands().await;
        assert!(queue.lease(1).await.unwrap().is_none());
        let commands = server.all_commands().await - before;
        assert!(commands < MOST_COMMANDS, "{commands} in round {round}");
    }
    assert_eq!(queue.depth().await.unwrap().dead, 13 * 64);
}

const LARGE: usize = 200_000;

fn check_pieces(store: &RedisStore, before: u64, shown: usize) {
    let spent = store.commands() - before;
    let least = (shown * LARGE / (2 * 1024 * 1024)) as u64;
    assert!(spent >= least, "{shown} large jobs in {spent} commands");
}

/// While a server writes a hundred megabytes it does nothing else.
#[tokio::test]
async fn large_jobs_are_shown_in_pieces() {
    let store = shared().await.store_with(&fresh_prefix()).await;
    let queue: Queue<String> = Queue::new(store.clone(), "q");
    let job = |number: usize| Job::to("a", format!("{number:02}{}", "x".repeat(LARGE)));
    let mut ids: Vec<JobId> = Vec::new();
    for first in (0..64).step_by(16) {
        let added = queue.enqueue_many((first..first + 16).map(job)).await;
        ids.extend(added.unwrap().iter().map(|job| job.id()));
    }
    let before = store.commands();
    let listed = queue.list("a", 512).await.unwrap();
    check_pieces(&store, before, 64);
    assert_eq!(listed.iter().map(|job| job.id).collect::<Vec<_>>(), ids);
    let whole = |(at, job): (usize, &JobView<String>)| {
        let items = job.items.as_ref().unwrap();
        assert!(items[0].starts_with(&format!("{at:02}x")) && items[0].len() == LARGE + 2);
    };
    listed.iter().enumerate().for_each(whole);
    assert_eq!(queue.list("a", 20).await.unwrap().len(), 20);

    let turned: Vec<JobId> = ids.iter().rev().copied().collect();
    let before = store.commands();
    let found = queue.jobs(turned.clone()).await.unwrap();
    check_pieces(&store, before, 64);
    assert_eq!(found.iter().map(|job| job.id).collect::<Vec<_>>(), turned);

    while let Some(batch) = queue.lease(64).await.unwrap() {
        bury(&queue, &batch).await;
    }
    let before = store.commands();
    let dead = queue.dead(512).await.unwrap();
    check_pieces(&store, before, 64);
    assert!(dead.iter().all(|job| job.state == JobState::Dead));
    let mut dead: Vec<JobId> = dead.iter().map(|job| job.id).collect();
    dead.sort_unstable();
    assert_eq!(dead, ids);
}
