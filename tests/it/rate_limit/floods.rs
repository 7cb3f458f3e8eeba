//! Floods of new keys: memory stays within its bound, and what is refused or shared by all stays counted.

use std::net::{IpAddr, Ipv6Addr};

use tower_keep::SECOND;
use tower_keep::rate_limit::store::{Bucket, Charge, Mode, Outcome, Scope, Tag};
use tower_keep::rate_limit::{Attempt, PartitionKey, RateLimiter};

use super::*;

fn charge<'a>(scope: &'a Scope, key: &'a PartitionKey) -> Charge<'a> {
    Charge {
        bucket: Bucket { scope, key },
        limit: scope.quota().capacity(),
        cost: 1,
        mode: Mode::Enforced,
    }
}

/// The `n`-th of many networks of 64 bits, in no order.
fn network(n: u64) -> PartitionKey {
    let bits = u128::from(n.wrapping_mul(0x9e37_79b9_7f4a_7c15)) << 64;
    PartitionKey::from(IpAddr::from(Ipv6Addr::from(bits)))
}

/// A hundred thousand keys, unless `KEEP_FLOOD` says how many: ten million take some ten minutes without optimisation.
fn flood() -> u64 {
    std::env::var("KEEP_FLOOD").map_or(100_000, |keys| keys.parse().unwrap())
}

#[tokio::test]
async fn where_one_policy_finds_no_room_the_others_are_charged_once() {
    let store = MemoryStore::builder().max_entries(2).build();
    let full = RateLimiter::new(store.clone()).limit(Quota::per_hour(1), Partition::header("x"));
    let record = async |limiter: &RateLimiter, policy, key: &str| {
        limiter
            .record(Attempt::new().on(policy, key))
            .await
            .unwrap();
    };
    // One that refuses stays, and one that this request is about: there is no room for its address.
    record(&full, "x", "refused").await;
    let layer = RateLimitLayer::new(store)
        .policy(Policy::new(
            "user",
            Quota::per_hour(5),
            Partition::principal(),
        ))
        .policy(Policy::new(
            "ip",
            Quota::per_hour(5),
            Partition::client_ip(),
        ));
    let limiter = layer.limiter();
    record(&limiter, "user", "u1").await;
    let answer = App::new(layer).get("u1", "192.0.2.1").await;
    assert_eq!(
        answer.field("ratelimit"),
        Some("\"user\";r=3;t=3600, \"ip\";r=4;t=3600")
    );
    assert_eq!(limiter.peek("user", "u1").await.unwrap().attempts, 2);
}

#[tokio::test]
async fn neighbours_without_room_share_an_entry_and_what_is_counted_for_all_is_never_forgotten() {
    let store = MemoryStore::builder().max_entries(4).build();
    let layer = RateLimitLayer::new(store)
        .policy(Policy::new(
            "ip",
            Quota::per_hour(1),
            Partition::client_ip(),
        ))
        .policy(Policy::new(
            "all",
            Quota::per_hour(1_000),
            Partition::global(),
        ));
    let (app, limiter) = (App::new(layer.clone()), layer.limiter());
    let mut admitted = 0;
    for network in 1..=50 {
        let address = |host| format!("10.{network}.7.{host}");
        admitted += u32::from(app.get("", &address(1)).await.status == StatusCode::OK);
        let is_full = network > 4;
        if is_full {
            app.get("", &address(2)).await.refused_by("ip");
        }
    }
    let all = limiter.peek("all", ()).await.unwrap();
    assert_eq!(all.attempts, admitted);
    assert!(admitted > 4);
}

#[tokio::test]
async fn a_flood_of_addresses_leaves_memory_flat_an_attacker_refused_and_the_global_count_whole() {
    const ENTRIES: usize = 8_000;
    let clock = clock();
    let store = MemoryStore::builder()
        .clock(clock.clone())
        .max_entries(ENTRIES)
        .build();
    let ip = Scope::new("g", Tag::Group, "ip", Quota::per_hour(3));
    let global = Scope::new("g", Tag::Group, "global", Quota::per_hour(1 << 30)).pinned();
    let (everybody, attacker) = (PartitionKey::from(()), network(u64::MAX));
    let take = |key: &PartitionKey| {
        let charges = [charge(&ip, key), charge(&global, &everybody)];
        let verdict = store.check_and_record(&charges);
        verdict.try_now().unwrap().unwrap()
    };
    let blocked = network(u64::MAX - 1);
    let bucket = charge(&ip, &blocked).bucket;
    store.block(&bucket, 3_600 * SECOND).await.unwrap();
    for _ in 0..3 {
        assert!(take(&attacker).admitted);
    }
    for n in 0..flood() {
        assert!(take(&network(n)).admitted, "key {n}");
        if n % 5_000 == 0 {
            assert_eq!(take(&attacker).states[0].outcome, Outcome::Denied);
            assert_eq!(take(&blocked).states[0].outcome, Outcome::Blocked);
            clock.advance(Duration::from_millis(1));
            // The shared entries of those who find no room come on top, 256 of a policy.
            let size = store.size();
            assert!(size.entries <= ENTRIES as u64 + 256, "{size:?}");
            assert!(size.bytes <= 256 * (ENTRIES as u64 + 256), "{size:?}");
        }
    }
    assert!(!take(&attacker).admitted && !take(&blocked).admitted);
    let counted = take(&network(u64::MAX - 2)).states[1].used;
    assert_eq!(u64::from(counted), flood() + 4);
    let limiter = RateLimiter::new(store.clone());
    assert!(format!("{limiter:?}").contains("MemoryStore"));
}

#[tokio::test]
async fn keys_that_find_no_room_share_the_quota_of_their_neighbourhood() {
    let clock = clock();
    let store = MemoryStore::builder()
        .clock(clock.clone())
        .max_entries(1_000)
        .build();
    let scope = Scope::new("g", Tag::Key, "ip", Quota::per_minute(1));
    let take = |address: [u8; 4]| {
        let key = PartitionKey::from(IpAddr::from(address));
        let verdict = store.check_and_record(&[charge(&scope, &key)]);
        verdict.try_now().unwrap().unwrap().admitted
    };
    // Each of these refuses from now on, so that none may be evicted.
    for n in 0..1_000_u32 {
        let [.., b, c] = n.to_be_bytes();
        assert!(take([10, 0, b, c]));
        assert!(!take([10, 0, b, c]));
    }
    assert!(take([192, 0, 2, 1]), "the first of its neighbourhood");
    for last in 1..=255 {
        assert!(!take([192, 0, 2, last]), "its neighbours share with it");
    }
    // 256 entries for all neighbourhoods: whoever comes, they admit no more than one each.
    let mut admitted = 1;
    for n in 0..20_000_u32 {
        let [.., a, b] = n.to_be_bytes();
        admitted += u32::from(take([172, a, b, 1]));
    }
    assert!((200..=256).contains(&admitted), "{admitted}");
    assert!(!take([10, 0, 0, 0]), "whoever has an entry keeps it");
    clock.advance(MINUTE);
    assert!(take([192, 0, 2, 1]) && !take([192, 0, 2, 1]));
    assert!(take([192, 0, 2, 2]), "there is room again");
}

#[tokio::test]
async fn a_layer_at_its_bound_answers_from_shared_entries_and_not_with_an_error() {
    let store = MemoryStore::builder().max_entries(1).build();
    let layer = RateLimitLayer::new(store)
        .limit(Quota::per_minute(1), Partition::client_ip())
        .limit(Quota::per_minute(100), Partition::global())
        .on_store_failure(tower_keep::core::StoreFailure::Closed);
    let app = App::new(layer);
    for last in 1..=20 {
        let answer = app.get("", &format!("10.{last}.0.1")).await;
        assert_ne!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    }
    app.get("", "10.1.0.1").await.refused_by("client-ip");
}

#[tokio::test]
async fn of_the_sampled_the_least_used_goes() {
    let store = MemoryStore::builder()
        .clock(clock())
        .max_entries(64)
        .build();
    let limiter = RateLimiter::new(store).limit(Quota::per_hour(10), Partition::client_ip());
    let record = async |n: u8, times: u32| {
        let attempt = Attempt::new().on("client-ip", IpAddr::from([10, 0, 0, n]));
        limiter.record(attempt.cost(times)).await.unwrap();
    };
    // One of four has all but one of its units in use.
    let busy = (0..64).filter(|n| n % 4 == 0);
    for n in 0..64 {
        record(n, if n % 4 == 0 { 9 } else { 1 }).await;
    }
    for n in 64..=255 {
        record(n, 1).await;
    }
    for n in busy {
        let status = limiter.peek("client-ip", IpAddr::from([10, 0, 0, n]));
        assert_eq!(status.await.unwrap().attempts, 9, "{n}");
    }
}
