//! Memory stays within its bound, and a full table evicts instead of refusing.

use tower_keep::backend::memory::MemoryStore;
use tower_keep::response_cache::{ResponseCacheLayer, ResponseStore, Target};

use super::origin::{App, Origin, clock, said, secs};

/// The bytes that the store holds at most; a table may be over by what one answer weighs.
const BOUND: usize = 1_024 * 1_024;

#[tokio::test]
async fn a_full_store_evicts_and_never_refuses() {
    let clock = clock();
    let store = MemoryStore::builder()
        .clock(clock.clone())
        .max_bytes(BOUND)
        .build();
    let large = "x".repeat(100_000);
    let origin = Origin::of(move |seen, call| {
        let body = if seen.uri().path().starts_with("/large") {
            large.clone()
        } else {
            format!("run {call}")
        };
        said(&[("cache-control", "max-age=60")], body)
    });
    let app = App::new(&ResponseCacheLayer::new(store), &origin);
    for n in 0..2_000 {
        app.get(&format!("/small/{n}")).await;
        assert!(app.get(&format!("/small/{n}")).await.is_hit(), "small {n}");
    }
    for n in 0..40 {
        app.get(&format!("/large/{n}")).await;
        assert!(app.get(&format!("/large/{n}")).await.is_hit(), "large {n}");
    }
}

#[tokio::test]
async fn the_bound_holds_while_keys_are_used_again_under_writes() {
    let clock = clock();
    let server = crate::support::redis::shared().await;
    let store = server.store(&clock).await;
    assert_eq!(
        ResponseStore::place(&store),
        tower_keep::response_cache::store::Place::Shared
    );
    let layer = ResponseCacheLayer::new(store)
        .local_bytes(2 * BOUND)
        .ttl(secs(60));
    let origin = Origin::of(|seen, _| {
        let length = 4_000 * (seen.uri().path().len() % 7 + 1);
        said(&[], "x".repeat(length))
    });
    let app = App::new(&layer, &origin);
    let handle = layer.handle();
    for round in 0..4 {
        for n in 0..250 {
            app.get(&format!("/{:0width$}", n, width = 1 + (n + round) % 9))
                .await;
            let bytes = handle.stats().local_bytes;
            assert!(bytes <= 2 * BOUND + 2 * BOUND / 100, "{bytes}");
        }
        handle.invalidate([Target::everything()]).await;
    }
    assert!(handle.stats().local_bytes > BOUND, "it is used, too");
}
