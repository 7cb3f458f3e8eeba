//! Data services: caches, counters and one-time values on every engine; the example on memory and on Redis.

mod cache;
mod counter;
mod once;

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
