//! Memory stays within its bound, and a full table evicts instead of refusing.

use std::time::Duration;

use tower_keep::backend::memory::MemoryStore;
use tower_keep::response_cache::{ResponseCacheLayer, ResponseStore, Target};

use super::origin::{App, Origin, clock, layer, said, secs};

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

#[tokio::test]
async fn a_header_block_over_16_kib_keeps_an_answer_out() {
    for (kib, is_kept) in [(15, true), (17, false)] {
        let large = "x".repeat(kib * 1_024);
        let origin = Origin::of(move |_, _| {
            said(&[("cache-control", "max-age=60"), ("x-large", &large)], "")
        });
        let app = App::new(&layer(&clock()), &origin);
        let first = app.get("/a").await;
        let refused = first.cache_status() == "tower-keep;fwd=uri-miss;detail=too-large";
        assert_eq!(refused, !is_kept, "{kib} KiB: {}", first.cache_status());
        let second = app.get("/a").await;
        assert_eq!((second.is_hit(), second.status), (is_kept, 200));
        assert_eq!(second.field("x-large").len(), kib * 1_024);
        assert_eq!(origin.calls(), if is_kept { 1 } else { 2 });
    }
}

#[tokio::test]
async fn bodies_of_up_to_1_mib_are_kept_where_nothing_else_is_said() {
    for (length, is_kept) in [(1_048_576, true), (1_048_577, false)] {
        let body = "x".repeat(length);
        let origin = Origin::of(move |_, _| said(&[("cache-control", "max-age=60")], &*body));
        let app = App::new(&layer(&clock()), &origin);
        for _ in 0..2 {
            assert_eq!(app.get("/a").await.body.len(), length);
        }
        assert_eq!(origin.calls(), if is_kept { 1 } else { 2 }, "{length}");
    }
}

#[test]
fn a_lease_is_5_s_long_and_never_below_100_ms_nor_above_60_s() {
    let lease = |set: Option<Duration>| {
        let layer = layer(&clock());
        let layer = set.map_or(layer.clone(), |lease| layer.lease(lease));
        let shown = format!("{layer:?}");
        let (_, rest) = shown.split_once("lease: ").unwrap();
        rest.split(',').next().unwrap().to_owned()
    };
    assert_eq!(lease(None), "5s");
    assert_eq!(lease(Some(Duration::from_millis(1))), "100ms");
    assert_eq!(lease(Some(secs(1))), "1s");
    assert_eq!(lease(Some(secs(3_600))), "60s");
}
