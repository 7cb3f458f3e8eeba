//! A gateway killed while others, in other processes on one Redis, wait for the answer that it fetches.

use std::time::{Duration, Instant};

use crate::gateway::wire::{Gateway, Origin, Reply, response};
use crate::support::Program;
use crate::support::redis::RedisServer;

const LEASE: Duration = Duration::from_secs(5);

#[tokio::test]
async fn who_waits_for_a_process_that_is_killed_gets_an_answer_of_one_new_run_within_two_leases() {
    let (redis, origin) = (RedisServer::start().await, Origin::start().await);
    let (store, upstream) = (redis.tcp_url(), origin.url());
    let start = || {
        let options = [
            "--listen",
            "127.0.0.1:0",
            "--upstream",
            &upstream,
            "--store",
            &store,
            "--cache",
            "--lease",
            "5",
            // Who hears nothing of the store in time fetches by himself: on a busy machine that takes its time.
            "--store-timeout",
            "20",
        ];
        Gateway {
            origin: origin.clone(),
            program: Program::start("gateway", &options),
        }
    };
    let (leader, followers) = (start(), [start(), start()]);
    // All are connected and know the scripts.
    let fields = [("cache-control", "max-age=600")];
    for gateway in followers.iter().chain([&leader]) {
        origin.says("/warm", [response(200, &fields, "warm")]);
        assert_eq!(gateway.get("/warm", &[]).await.status, 200);
    }
    origin.says(
        "/a",
        [Reply::Hang, response(200, &fields, "of the second run")],
    );
    // Whatever runs besides says so.
    origin.says(
        "/a",
        (0..9).map(|_| response(200, &fields, "of another run")),
    );
    let began = Instant::now();
    let Gateway { program, .. } = &leader;
    let address = program.address();
    let hanging = tokio::spawn(async move { Gateway::get_at(address, "/a").await });
    while origin.seen("/a").is_empty() {
        assert!(began.elapsed() < 30 * LEASE);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let waiting: Vec<_> = (0..20)
        .map(|number| {
            let address = followers[number % 2].program.address();
            tokio::spawn(async move {
                let asked = Instant::now();
                let got = Gateway::get_at(address, "/a").await;
                (got, asked.elapsed())
            })
        })
        .collect();
    // Dead without a word: nothing is given back.
    leader.program.signal("KILL");
    drop(leader);
    assert_ne!(hanging.await.unwrap().status, 200);
    for waited in waiting {
        let (got, took) = waited.await.unwrap();
        assert_eq!((got.status, &got.text()[..]), (200, "of the second run"));
        // Two leases, and what a busy machine takes.
        assert!(took < 2 * LEASE + Duration::from_secs(20), "{took:?}");
    }
    assert_eq!(origin.seen("/a").len(), 2);
    // The lease was waited for, not passed by.
    assert!(began.elapsed() >= LEASE);
}
