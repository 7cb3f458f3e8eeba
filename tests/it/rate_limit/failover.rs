//! A replica takes over: its clock may lag, and the last writes may be missing. Each handle has the clock of its
//! server, as a passed one: a script reads it in the place of the server's own.

use super::*;
use crate::support::RedisServer;
use crate::support::redis_cluster::info;
use tower_keep::backend::redis::RedisStore;
use tower_keep::rate_limit::store::Refunded;
use tower_keep::rate_limit::{Attempt, Decision, Grant, RateLimiter};
use tower_keep::{HOUR, MILLIS, SECOND};

const OPTIONS: [&str; 4] = ["--save", "", "--repl-diskless-sync-delay", "0"];

async fn replica_of(primary: &RedisServer) -> RedisServer {
    let port = primary.address().port().to_string();
    let options = [&OPTIONS[..], &["--replicaof", "127.0.0.1", &port]].concat();
    let replica = RedisServer::start_with(&options).await;
    let mut raw = replica.raw().await;
    while !info(&mut raw, "replication")
        .await
        .contains("master_link_status:up")
    {
        tokio::task::yield_now().await;
    }
    replica
}

/// Waits until `many` replicas have everything.
async fn replicated(primary: &RedisServer, many: u64) {
    let mut raw = primary.raw().await;
    // WAIT looks at the writes of its own connection, and this one comes after all others.
    let _: () = redis::cmd("SET")
        .arg("mark")
        .arg(1)
        .query_async(&mut raw)
        .await
        .unwrap();
    let mut wait = redis::cmd("WAIT");
    let reached: u64 = wait.arg(many).arg(0).query_async(&mut raw).await.unwrap();
    assert!(reached >= many);
}

/// From now on the replica follows nobody.
async fn promote(replica: &RedisServer) {
    let mut raw = replica.raw().await;
    let mut order = redis::cmd("REPLICAOF");
    let _: () = order
        .arg("NO")
        .arg("ONE")
        .query_async(&mut raw)
        .await
        .unwrap();
}

async fn limiter(server: &RedisServer, clock: &ManualClock, quota: Quota) -> RateLimiter {
    let builder = RedisStore::builder(&server.url()).prefix("failover");
    let builder = builder.timeout(PATIENCE).clock(clock.clone());
    let store = builder.open().await.unwrap();
    let policy = Policy::new("p", quota, Partition::global());
    RateLimiter::new(store).policy(policy).timeout(PATIENCE)
}

async fn take(limiter: &RateLimiter, cost: u32) -> Option<Grant> {
    let attempt = Attempt::new().on("p", ()).cost(cost);
    match limiter.check_and_record(attempt).await.unwrap() {
        Decision::Allowed(grant) => Some(grant),
        Decision::Denied(_) => None,
    }
}

fn behind(clock: &ManualClock, lag: Duration) -> ManualClock {
    ManualClock::at(Timestamp::from_millis(
        Timestamp::of(clock).as_millis() - lag.as_millis() as u64,
    ))
}

#[tokio::test]
async fn a_new_primary_whose_clock_lags_admits_nothing_twice() {
    let window = 60 * SECOND;
    for quota in [
        Quota::new(10, window),
        Quota::new(2_000, window),
        Quota::new(10, window).gcra(10),
        Quota::new(10, window).fixed(),
    ] {
        let mut primary = RedisServer::start_with(&OPTIONS).await;
        let mut replicas = Vec::new();
        for _ in 0..3 {
            replicas.push(replica_of(&primary).await);
        }
        let before = clock();
        // Not at the beginning of a fixed window.
        before.advance(30 * SECOND);
        let first = limiter(&primary, &before, quota).await;
        let tenth = quota.limit() / 10;
        for _ in 0..10 {
            assert!(take(&first, tenth).await.is_some(), "{quota:?}");
        }
        assert!(take(&first, tenth).await.is_none(), "{quota:?}");
        replicated(&primary, 3).await;
        primary.kill();
        // Within what is believed of a burst, far beyond it, and by more than the window.
        let lags = [300 * MILLIS, 5 * SECOND, HOUR];
        for (lag, replica) in lags.iter().zip(&replicas) {
            let after = behind(&before, *lag);
            promote(replica).await;
            let second = limiter(replica, &after, quota).await;
            let at_first = Timestamp::of(&after);
            let context = format!("{quota:?}, {lag:?} behind");
            assert!(take(&second, tenth).await.is_none(), "{context}");
            let mut admitted = 0;
            // Until the first of it is free again, by the slower of both clocks, nothing is admitted.
            let status = second.peek("p", ()).await.unwrap();
            let free_in = status.retry_after.expect("it is full");
            assert!(
                free_in <= window + window / 64 + SECOND,
                "{context}: {free_in:?}"
            );
            after.set(at_first.plus(free_in.saturating_sub(MILLIS)));
            assert!(take(&second, tenth).await.is_none(), "{context}");
            // After a window and what a burst is believed no more than the limit counts, and all of it is free.
            after.set(at_first.plus(window + window / 64 + SECOND));
            while take(&second, tenth).await.is_some() {
                admitted += tenth;
            }
            assert_eq!(admitted, quota.limit(), "{context}");
        }
    }
}

#[tokio::test]
async fn what_two_lagging_replicas_never_saw_is_admitted_once_more_and_no_more_than_that() {
    let quota = Quota::new(10, 15 * MINUTE);
    let primary = RedisServer::start_with(&OPTIONS).await;
    let (far, near) = (replica_of(&primary).await, replica_of(&primary).await);
    let now = clock();
    let first = limiter(&primary, &now, quota).await;
    let mut grants = Vec::new();
    let mut take_some = async |many: usize| {
        for _ in 0..many {
            now.advance(SECOND);
            grants.push(take(&first, 1).await.expect("admitted"));
        }
    };
    take_some(4).await;
    replicated(&primary, 2).await;
    promote(&far).await;
    take_some(3).await;
    replicated(&primary, 1).await;
    promote(&near).await;
    take_some(3).await;
    assert!(take(&first, 1).await.is_none());
    // The one that lags farther has another clock, too, and so has the other.
    for (replica, lag, lost) in [(&far, 4 * SECOND, 6), (&near, 300 * MILLIS, 3)] {
        let after = behind(&now, lag);
        let second = limiter(replica, &after, quota).await;
        let mut again = 0;
        while take(&second, 1).await.is_some() {
            again += 1;
        }
        assert_eq!(again, lost, "{lag:?} behind");
    }
    // A receipt of a charge that was lost finds nothing to give back; one that came over does, once.
    let after = behind(&now, 4 * SECOND);
    let second = limiter(&far, &after, quota).await;
    let lost = grants.pop().unwrap();
    assert_eq!(second.refund(lost).await.unwrap(), Refunded::TooLate);
    let known = grants.swap_remove(0);
    assert_eq!(second.refund(known).await.unwrap(), Refunded::Applied);
    assert!(take(&second, 1).await.is_some());
    assert!(take(&second, 1).await.is_none());
}
