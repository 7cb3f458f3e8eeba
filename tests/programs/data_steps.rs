//! A process for the tests of data services and limits: says on its output what it does, step by step, and waits to be killed.
#![allow(clippy::panic, clippy::print_stdout, clippy::unwrap_used, missing_docs)]

use std::time::Duration;

use tower_keep::backend::redis::RedisStore;
use tower_keep::core::StoreFailure;
use tower_keep::data::cache::Cache;
use tower_keep::data::counter::Counter;
use tower_keep::data::lock::Lock;
use tower_keep::data::once::{Expect, Once, Progress, SaveOutcome};
use tower_keep::data::queue::Queue;
use tower_keep::data::topic::{Event, Topic};
use tower_keep::rate_limit::{Attempt, Partition, Policy, Quota, RateLimiter};
use tower_keep::ttl;

const LEASE: Duration = Duration::from_millis(500);

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [program, url, prefix, step] = &arguments[..] else {
        panic!("program, url, prefix, step");
    };
    let store = RedisStore::builder(url)
        .prefix(prefix)
        .open()
        .await
        .unwrap();
    match &program[..] {
        "hold" => hold(store).await,
        "work" => work(store, step).await,
        "share" => share(store).await,
        "load" => load(store, step).await,
        "burst" => burst(store, step).await,
        "tell" => tell(store, step).await,
        other => panic!("no such program: {other}"),
    }
}

/// Holds one lock again and again, and writes under it.
async fn hold(store: RedisStore) {
    let lock = Lock::new(store, "payment").lease(LEASE);
    loop {
        let Ok(guard) = lock.acquire("k", Duration::from_secs(60)).await else {
            continue;
        };
        println!("held {}", guard.fence());
        let writing = async {
            for _ in 0..20 {
                println!("write {}", guard.fence());
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::select! {
            biased;
            () = guard.lost() => println!("lost {}", guard.fence()),
            () = writing => {}
        }
        let _ = guard.release().await;
    }
}

/// Works off jobs one by one, until `step`, where it waits for its end.
async fn work(store: RedisStore, step: &str) {
    let queue: Queue<u64> = Queue::new(store, "jobs").lease_for(4 * LEASE);
    let at = async |here: &str, id: &dyn std::fmt::Display| {
        println!("{here} {id}");
        if here == step {
            std::future::pending::<()>().await;
        }
    };
    while let Some(batch) = queue.lease(1).await.unwrap() {
        let id = batch.jobs[0].id;
        at("leased", &id).await;
        at("sent", &id).await;
        assert!(queue.ack(&batch).await.unwrap().is_complete());
        at("acked", &id).await;
    }
    println!("idle -");
    std::future::pending::<()>().await;
}

/// Counts, takes and saves beside others, and says what it got.
async fn share(store: RedisStore) {
    let metrics = Counter::new(store.clone(), "metrics").flush_every(Duration::from_millis(5));
    for _ in 0..500 {
        metrics.incr("direct", 1, ttl::METRIC).await.unwrap();
        metrics.add("buffered", 1, ttl::METRIC).unwrap();
    }
    metrics.flush().await.unwrap();
    let tokens: Once<u64> = Once::new(store.clone(), "token", ttl::VERIFICATION);
    let forms: Progress<u64> = Progress::new(store, "form", ttl::FORM_PROGRESS);
    for number in 0..100 {
        let taken = tokens.take(format!("a token of the test {number}")).await;
        if taken.unwrap().is_some() {
            println!("took {number}");
        }
        let version = forms.load("k").await.unwrap().map(|saved| saved.version);
        let expect = version.map_or(Expect::Absent, Expect::Version);
        if let SaveOutcome::Saved { version } = forms.save("k", &number, expect).await.unwrap() {
            println!("saved {version}");
        }
    }
    println!("done -");
    std::future::pending::<()>().await;
}

/// Follows a topic and publishes to it beside others, and says what it read.
async fn tell(store: RedisStore, own: &str) {
    let topic: Topic<String> = Topic::new(store, "expert").retain(1_000, Duration::from_secs(600));
    let mut feed = topic.subscribe("e1").await.unwrap();
    println!("listens -");
    // It begins when both do.
    let Some(Event::Message { .. }) = feed.next().await else {
        panic!("a gap at the beginning");
    };
    for number in 0..100 {
        let said = format!("{own}{number}");
        topic.publish("e1", &said).await.unwrap();
    }
    loop {
        match feed.next().await {
            Some(Event::Message { value, .. }) => println!("read {value}"),
            _ => println!("gap -"),
        }
    }
}

/// Loads one key, slowly or never, and says what it got.
async fn load(store: RedisStore, step: &str) {
    let users: Cache<String, String> = Cache::new(store, "user", ttl::USER);
    let hangs = step == "hang";
    let own = std::process::id().to_string();
    let load = move |_| async move {
        println!("loading -");
        if hangs {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        Ok::<_, std::io::Error>(own)
    };
    let key = "u1".to_owned();
    let got = users.get_or_load(&key, load).await.unwrap();
    println!("got {}", *got);
    // From now on it says what it reads whenever that changes.
    let mut last = got.to_string();
    loop {
        let now = users.get(&key).await.unwrap();
        let now = now.map_or_else(|| "-".to_owned(), |value| value.to_string());
        if now != last {
            println!("reads {now}");
            last = now;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Sends so many attempts at a limit of five at once, together with one other process, and says how many were admitted.
async fn burst(store: RedisStore, step: &str) {
    let parallel: usize = step.parse().unwrap();
    let minute = Duration::from_secs(60);
    let limiter = RateLimiter::new(store.clone())
        .timeout(Duration::from_secs(5))
        .on_store_failure(StoreFailure::Closed)
        .policy(Policy::new("five", Quota::per_hour(5), Partition::global()));
    let ready = Counter::new(store, "ready");
    ready.incr("both", 1, ttl::METRIC).await.unwrap();
    let both = async {
        while ready.value("both").await.unwrap() < 2 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(minute, both).await.unwrap();
    let mut attempts = tokio::task::JoinSet::new();
    for _ in 0..parallel {
        let limiter = limiter.clone();
        attempts.spawn(async move {
            let attempt = Attempt::new().on("five", ());
            let decision = limiter.check_and_record(attempt);
            let decision = tokio::time::timeout(minute, decision).await.unwrap();
            decision.unwrap().is_allowed()
        });
    }
    let admitted = attempts.join_all().await;
    let admitted = admitted.into_iter().filter(|admitted| *admitted);
    println!("admitted {}", admitted.count());
}
