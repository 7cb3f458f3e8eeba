//! How fast one worker drains a queue on Redis, beside plain GETs on the same connection.
//!
//! `KEEP_REDIS=redis://127.0.0.1:6379 cargo bench --bench queue`; without the variable nothing is measured.
#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs)]

use std::time::{Duration, Instant};

use tower_keep::backend::redis::RedisStore;
use tower_keep::data::queue::{Job, Queue};

const JOBS: u64 = 100_000;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let Ok(url) = std::env::var("KEEP_REDIS") else {
        println!("set KEEP_REDIS to a server's URL");
        return;
    };
    let prefix = format!("bench{}", std::process::id());
    let store = RedisStore::builder(&url)
        .prefix(&prefix)
        .timeout(Duration::from_secs(10));
    let store = store.open().await.unwrap();
    let queue: Queue<u64> = Queue::new(store.clone(), "drain");
    let started = Instant::now();
    let jobs = (0..JOBS).map(|number| Job::to(number % 20_000, number));
    queue.enqueue_many(jobs).await.unwrap();
    tell("enqueue, 512 a call", JOBS, started);

    let (started, mut slowest, mut drained) = (Instant::now(), Duration::ZERO, 0);
    loop {
        let asked = Instant::now();
        let Some(batch) = queue.lease(5).await.unwrap() else {
            break;
        };
        slowest = slowest.max(asked.elapsed());
        drained += batch.jobs.len() as u64;
        assert!(queue.ack(&batch).await.unwrap().is_complete());
    }
    assert_eq!(drained, JOBS);
    tell("drain, batches of 5, one worker", JOBS, started);
    println!("slowest lease: {slowest:?}");

    let client = redis::Client::open(url).unwrap();
    let mut plain = client.get_multiplexed_async_connection().await.unwrap();
    let started = Instant::now();
    for _ in 0..JOBS / 4 {
        let _: Option<String> = redis::cmd("GET")
            .arg("nothing")
            .query_async(&mut plain)
            .await
            .unwrap();
    }
    tell("GET, one after the other", JOBS / 4, started);
}

fn tell(what: &str, number: u64, since: Instant) {
    let rate = number as f64 / since.elapsed().as_secs_f64();
    println!("{what}: {rate:.0} a second");
}
