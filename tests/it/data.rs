//! Data services: caches, counters, one-time values and health on every engine; the example on memory and on Redis.

mod ages;
mod batches;
mod cache;
mod coherence;
mod costs;
mod counted;
mod counter;
mod defaults;
mod dropped;
mod health;
mod lost;
mod once;
mod processes;
mod refused;
pub mod telemetry;

use crate::support::program;
use crate::support::redis::RedisServer;

const SAID: &str = "a second click is told to come back in 60 s
appointment-7 is charged under a fence
appointment-7 is charged under a fence
the same event again: Duplicate(JobId(1))
to u1: booked
to u2: a comment, another, a third
2 jobs delivered, 1 waiting for its time
the expert is Online
the expert is Busy
resumed after the first: Busy
a customer is created at the provider
c1: Loaded
c1: LocalHit
found by address: true
forgotten: true
seats given: [true, false, true, false]
visits: 3
of two takes 1 got the state
one tab: Saved { version: 1 }
the other: Conflict { version: 1 }
health: healthy
";

#[tokio::test]
async fn the_example_does_on_every_store_what_it_says() {
    let server = RedisServer::start().await;
    for url in ["memory:".to_owned(), server.url()] {
        let (code, said, complaints) = program::run("data", &[&url]);
        assert_eq!(
            (code, &said[..], &complaints[..]),
            (Some(0), SAID, ""),
            "{url}"
        );
    }
}
