//! No read that starts after an invalidation was obeyed returns what was there before it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tower_keep::response_cache::{ResponseCacheLayer, Target};

use super::origin::{App, Origin, clock, full, memory, said, secs};
use crate::support::redis::{fresh_prefix, shared};

/// An origin that reads the truth when it is called, and takes its time to say it.
fn truthful(truth: &Arc<AtomicUsize>, fields: &'static [(&'static str, &'static str)]) -> Origin {
    let truth = Arc::clone(truth);
    Origin::new(move |_, call| {
        let version = truth.load(Ordering::SeqCst);
        Box::pin(async move {
            for _ in 0..(call % 7) * 20 {
                tokio::task::yield_now().await;
            }
            Ok(said(fields, version.to_string()).map(|text| full(text.into())))
        })
    })
}

/// Reads through `readers` while the truth changes and `target` is invalidated through `writer`.
async fn check(
    writer: ResponseCacheLayer,
    readers: Vec<App>,
    truth: Arc<AtomicUsize>,
    targets: &'static [&'static str],
) {
    let obeyed = Arc::new(AtomicUsize::new(0));
    let mut running = tokio::task::JoinSet::new();
    for app in readers {
        let obeyed = Arc::clone(&obeyed);
        running.spawn(async move {
            for _ in 0..400 {
                let oldest = obeyed.load(Ordering::SeqCst);
                let got: usize = app.get("/a").await.body.parse().unwrap();
                assert!(
                    got >= oldest,
                    "got {got}, though {oldest} was obeyed before"
                );
                tokio::task::yield_now().await;
            }
        });
    }
    running.spawn(async move {
        for round in 0..300 {
            let version = truth.fetch_add(1, Ordering::SeqCst) + 1;
            let target = match targets[round % targets.len()] {
                "tag" => Target::tag("t"),
                "url" => Target::url("/a"),
                "prefix" => Target::prefix("/"),
                _ => Target::everything(),
            };
            writer.handle().invalidate([target]).await;
            obeyed.store(version, Ordering::SeqCst);
            tokio::task::yield_now().await;
        }
    });
    while let Some(ended) = running.join_next().await {
        ended.unwrap();
    }
}

const KINDS: &[&str] = &["tag", "url", "prefix", "everything"];

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn in_one_cache() {
    let truth = Arc::new(AtomicUsize::new(0));
    let layer = ResponseCacheLayer::new(memory(&clock()));
    let origin = truthful(
        &truth,
        &[("cache-control", "max-age=60"), ("cache-tag", "t")],
    );
    let readers = (0..8).map(|_| App::new(&layer, &origin)).collect();
    check(layer, readers, truth, KINDS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn in_two_caches_on_one_memory_store() {
    let truth = Arc::new(AtomicUsize::new(0));
    let store = memory(&clock());
    let layers = [0, 1].map(|_| {
        ResponseCacheLayer::new(store.clone())
            .ttl(secs(60))
            .tag("t")
    });
    let origin = truthful(&truth, &[("vary", "accept")]);
    let readers = (0..8).map(|n| App::new(&layers[n % 2], &origin)).collect();
    let [writer, _] = layers;
    check(writer, readers, truth, KINDS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn in_one_cache_with_copies_of_a_shared_store() {
    let truth = Arc::new(AtomicUsize::new(0));
    let store = shared().await.store(&clock()).await;
    let layer = ResponseCacheLayer::new(store);
    let origin = truthful(
        &truth,
        &[("cache-control", "max-age=60"), ("cache-tag", "t")],
    );
    let readers = (0..4).map(|_| App::new(&layer, &origin)).collect();
    check(layer, readers, truth, KINDS).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn in_two_processes_without_copies_that_look() {
    let truth = Arc::new(AtomicUsize::new(0));
    let (server, prefix) = (shared().await, fresh_prefix());
    let (one, two) = (
        server.store_with(&prefix).await,
        server.store_with(&prefix).await,
    );
    let layers = [one, two].map(|store| ResponseCacheLayer::new(store).local_bytes(0));
    let origin = truthful(
        &truth,
        &[("cache-control", "max-age=60"), ("cache-tag", "t")],
    );
    let readers = (0..4).map(|n| App::new(&layers[n % 2], &origin)).collect();
    let [writer, _] = layers;
    check(writer, readers, truth, KINDS).await;
}
