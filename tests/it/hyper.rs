//! The example without axum, as it runs.

use http::{Method, StatusCode};

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
