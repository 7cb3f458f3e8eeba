//! A process for the tests of locks and queues: says on its output what it does, step by step, and waits to be killed.
#![allow(clippy::panic, clippy::print_stdout, clippy::unwrap_used, missing_docs)]

use std::time::Duration;

use tower_keep::backend::redis::RedisStore;
use tower_keep::data::lock::Lock;
use tower_keep::data::queue::Queue;

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
