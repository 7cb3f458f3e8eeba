//! 100,000 jobs drained from Redis by one worker: tower-keep beside apalis-redis and plain GETs, in turn, in one run.
//!   bench-queue redis://127.0.0.1:7399/     empties that server: give it one of its own
//! At last the server's own time for each script, as its slow log tells it: p50, p99 and the longest, in µs.
//! BENCH_N: jobs (100,000); BENCH_ROUNDS: rounds (3); BENCH_SUBJECT: keep or apalis alone. Both workers take 5 and 100 jobs at a time,
//! each recipient has that many.
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use apalis_core::backend::TaskSink;
use apalis_core::error::BoxDynError;
use apalis_core::worker::builder::WorkerBuilder;
use apalis_core::worker::context::WorkerContext;
use apalis_redis::{Config, RedisStorage};
use tower_keep::backend::redis::RedisStore;
use tower_keep::data::queue::{Batch, Job, JobError, Queue};

/// Jobs a second: enqueued, then drained.
type Rates = (f64, f64);

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

fn is_wanted(subject: &str) -> bool {
    std::env::var("BENCH_SUBJECT").map_or(true, |wanted| wanted == subject)
}

fn rate(number: u64, since: Instant) -> f64 {
    number as f64 / since.elapsed().as_secs_f64()
}

/// As a worker does it: leased in batches, worked on one batch after the other, acked.
async fn keep(url: &str, jobs: u64, batch: usize) -> Rates {
    let store = RedisStore::builder(url)
        .timeout(Duration::from_secs(10))
        .open()
        .await
        .unwrap();
    let queue: Queue<u64> = Queue::new(store, "drain").capacity(u64::MAX >> 12, u64::MAX >> 12);
    let started = Instant::now();
    queue
        .enqueue_many((0..jobs).map(|number| Job::to(number % (jobs / batch as u64).max(1), number)))
        .await
        .unwrap();
    let enqueued = rate(jobs, started);
    let started = Instant::now();
    let done = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&done);
    let worker = queue.worker(move |batch: Batch<u64>| {
        let count = Arc::clone(&count);
        async move {
            count.fetch_add(batch.jobs.len() as u64, Ordering::Relaxed);
            Ok::<(), JobError>(())
        }
    });
    let report = worker
        .concurrency(1)
        .batch(batch)
        .run_until_idle()
        .await
        .unwrap();
    let drained = rate(jobs, started);
    assert_eq!(
        (report.delivered, done.load(Ordering::Relaxed)),
        (jobs, jobs)
    );
    (enqueued, drained)
}

/// Its script hands all due jobs to one call of Lua's `unpack`, which refuses some thousands: with 100,000 queued at
/// once no worker ever gets one. So it gets as many as it bears, again and again.
const APALIS_BEARS: u64 = 5_000;
/// Each worker there needs a name of its own: the last one counts as alive for a while.
static WORKERS: AtomicU64 = AtomicU64::new(0);

async fn apalis(url: &str, jobs: u64, batch: usize) -> Rates {
    let (mut enqueuing, mut draining, mut done) = (0.0, 0.0, 0);
    while done < jobs {
        let slice = APALIS_BEARS.min(jobs - done);
        let (enqueued, drained) = apalis_slice(url, slice, batch).await;
        enqueuing += slice as f64 / enqueued;
        draining += slice as f64 / drained;
        done += slice;
    }
    (jobs as f64 / enqueuing, jobs as f64 / draining)
}

async fn apalis_slice(url: &str, jobs: u64, batch: usize) -> Rates {
    let connection = apalis_redis::connect(url).await.unwrap();
    let config = Config::default().queue("drain").batch_size(batch);
    let mut storage = RedisStorage::new(connection).with_config(config);
    let started = Instant::now();
    let mut next = 0;
    while next < jobs {
        let end = (next + 512).min(jobs);
        storage.push_bulk((next..end).collect()).await.unwrap();
        next = end;
    }
    let enqueued = rate(jobs, started);
    let started = Instant::now();
    let done = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&done);
    let work = move |_: u64, worker: WorkerContext| {
        let count = Arc::clone(&count);
        async move {
            if count.fetch_add(1, Ordering::Relaxed) + 1 == jobs {
                worker.stop().unwrap();
            }
            Ok::<(), BoxDynError>(())
        }
    };
    let worker = WorkerBuilder::new(format!("one {}", WORKERS.fetch_add(1, Ordering::Relaxed))).backend(storage).build(work);
    worker.run().await.unwrap();
    assert_eq!(done.load(Ordering::Relaxed), jobs);
    (enqueued, rate(jobs, started))
}

async fn get(url: &str, number: u64) -> f64 {
    let client = redis::Client::open(url).unwrap();
    let mut plain = client.get_multiplexed_async_connection().await.unwrap();
    let started = Instant::now();
    for _ in 0..number {
        let _: Option<String> = redis::cmd("GET")
            .arg("nothing")
            .query_async(&mut plain)
            .await
            .unwrap();
    }
    rate(number, started)
}

async fn empty(url: &str) {
    let client = redis::Client::open(url).unwrap();
    let mut plain = client.get_multiplexed_async_connection().await.unwrap();
    redis::cmd("FLUSHALL").exec_async(&mut plain).await.unwrap();
}

/// Words of a call that has more than any queue's script has in common: of a part.
const LARGE: usize = 23;

/// What the server noted since the last question: the times of large calls and of small ones.
async fn noted(plain: &mut redis::aio::MultiplexedConnection, large: &str, small: &str) {
    type Entry = (u64, u64, u64, Vec<Vec<u8>>, redis::Value, redis::Value);
    let log: Vec<Entry> = redis::cmd("SLOWLOG").arg("GET").arg(-1).query_async(plain).await.unwrap();
    let mut times = [Vec::new(), Vec::new()];
    for (_, _, spent, words, ..) in log {
        if words[0] == b"EVALSHA" {
            times[usize::from(words.len() < LARGE)].push(spent);
        }
    }
    for (name, mut times) in [large, small].into_iter().zip(times) {
        times.sort_unstable();
        if let Some(longest) = times.last() {
            let at = |share: usize| times[times.len() * share / 100];
            println!("{name}: {} scripts, p50 {}, p99 {}, longest {longest} µs", times.len(), at(50), at(99));
        }
    }
    redis::cmd("SLOWLOG").arg("RESET").exec_async(plain).await.unwrap();
}

/// The server's time: parts of 512 while the queue fills, plain and with ids, then batches of five.
async fn server_times(url: &str, jobs: u64) {
    let client = redis::Client::open(url).unwrap();
    let mut plain = client.get_multiplexed_async_connection().await.unwrap();
    // A long log takes long to tell.
    plain.set_response_timeout(Duration::from_secs(60));
    let admin = plain.clone();
    let set = async |name: &str, value: i64| {
        let mut set = redis::cmd("CONFIG");
        set.arg("SET").arg(name).arg(value);
        set.exec_async(&mut admin.clone()).await.unwrap();
    };
    set("slowlog-max-len", 1_000_000).await;
    // What took long before, another's scripts among it, is none of ours.
    redis::cmd("SLOWLOG").arg("RESET").exec_async(&mut plain).await.unwrap();
    set("slowlog-log-slower-than", 0).await;
    let store = RedisStore::builder(url).timeout(Duration::from_secs(10)).open().await.unwrap();
    let queue: Queue<u64> = Queue::new(store, "times").capacity(u64::MAX >> 12, 1_000);
    let job = |number: u64| Job::to(number % (jobs / 5).max(1), number);
    // A script that the server does not know is sent as EVAL, and not counted.
    queue.enqueue_many((0..jobs).map(job)).await.unwrap();
    noted(&mut plain, "512 enqueued", "64 of them put in their places").await;
    let ids = (0..jobs / 10).map(|number| job(number).once(number.to_string()));
    queue.enqueue_many(ids.clone()).await.unwrap();
    noted(&mut plain, "512 with ids", "64 of them put in their places").await;
    queue.enqueue_many(ids).await.unwrap();
    noted(&mut plain, "512 ids again", "what is left of them").await;
    let mut batches = Vec::new();
    for _ in 0..jobs / 20 {
        batches.push(queue.lease(5).await.unwrap().unwrap());
    }
    noted(&mut plain, "5 leased", "").await;
    for batch in &batches {
        assert!(queue.ack(batch).await.unwrap().is_complete());
    }
    noted(&mut plain, "5 acked", "").await;
    set("slowlog-log-slower-than", 10_000).await;
    set("slowlog-max-len", 128).await;
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let Some(url) = std::env::args().nth(1) else {
        println!("bench-queue URL, of a server that may be emptied");
        return;
    };
    let (jobs, rounds) = (
        setting("BENCH_N", 100_000),
        setting("BENCH_ROUNDS", 3).max(1),
    );
    let mut gets = Vec::new();
    for batch in [5, 100] {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            gets.push(get(&url, jobs / 4).await);
            empty(&url).await;
            if is_wanted("keep") {
                ours.push(keep(&url, jobs, batch).await);
                empty(&url).await;
            }
            if is_wanted("apalis") {
                theirs.push(apalis(&url, jobs, batch).await);
                empty(&url).await;
            }
        }
        let plain = median(gets.clone());
        for (name, rates) in [("tower-keep", ours), ("apalis-redis 1.0", theirs)] {
            if rates.is_empty() {
                continue;
            }
            let (enqueued, drained): (Vec<f64>, Vec<f64>) = rates.into_iter().unzip();
            let (enqueued, drained) = (median(enqueued), median(drained));
            println!(
                "{name}, {batch} at a time: enqueued {enqueued:.0} a second, drained {drained:.0} ({:.2} x GET)",
                drained / plain
            );
        }
    }
    println!("GET, one after the other: {:.0} a second", median(gets));
    server_times(&url, jobs).await;
    empty(&url).await;
}
