//! The example without axum, as it runs.

use http::{Method, StatusCode};

use crate::support::serving::hung_up_on;
use crate::support::{Browser, Program};

#[tokio::test]
async fn a_retry_on_bare_hyper_raises_the_counter_once() {
    let program = Program::start("hyper", &["127.0.0.1:0"]);
    let browser = Browser::new(program.address());
    let order = async |key: &str| {
        browser
            .send(Method::POST, "/orders", &[("idempotency-key", key)], None)
            .await
    };
    let (first, again, other) = (order("k1").await, order("k1").await, order("k2").await);
    assert_eq!(
        (first.status, &first.body[..]),
        (StatusCode::CREATED, &b"order 1\n"[..])
    );
    assert_eq!((again.status, &again.body), (first.status, &first.body));
    assert_eq!(
        (
            first.header("idempotency-replayed"),
            again.header("idempotency-replayed")
        ),
        ("", "true")
    );
    assert_eq!(&other.body[..], b"order 2\n");
    assert!(
        first.header("ratelimit").starts_with("\"client-ip\";r=99"),
        "{}",
        first.header("ratelimit")
    );
}

#[tokio::test]
async fn the_example_outlives_a_moment_without_descriptors() {
    let program = Program::start_with_descriptors("hyper", &["127.0.0.1:0"], 20);
    let address = program.address();
    let connect = async || tokio::net::TcpStream::connect(address).await;
    let mut crowd = Vec::new();
    for _ in 0..40 {
        crowd.push(connect().await);
    }
    drop(crowd);
    let browser = Browser::new(address);
    let answered = async {
        let key = [("idempotency-key", "k")];
        while browser
            .try_send(Method::POST, "/orders", &key, None)
            .await
            .is_none_or(|reply| reply.status != StatusCode::CREATED)
        {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    let patience = std::time::Duration::from_secs(30);
    tokio::time::timeout(patience, answered).await.unwrap();
}

#[tokio::test]
async fn half_a_head_is_not_waited_for_without_an_end() {
    let program = Program::start("hyper", &["127.0.0.1:0"]);
    let beginnings = ["", "P", "PRI * H", "GET / HTTP/1.1\r\nHost: h\r\n"];
    let waiting = beginnings.map(|sent| hung_up_on(program.address(), sent));
    futures_util::future::join_all(waiting).await;
}
