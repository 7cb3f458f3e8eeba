//! Connections on which nothing comes, or nothing more.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::Notify;

use crate::gateway::wire::{Gateway, Reply, response};
use crate::support::http2::Frames;
use crate::support::serving::hung_up_on;

#[tokio::test]
async fn a_first_request_is_not_waited_for_without_an_end_and_an_answer_is() {
    let gateway = Gateway::start(&[]).await;
    let go = Arc::new(Notify::new());
    let Reply::Bytes(late) = response(200, &[], "late") else {
        unreachable!()
    };
    let reply = Reply::Later(Arc::clone(&go), late);
    gateway.origin.says("/late", [reply]);
    let beginnings = [
        "",
        "P",
        "PRI * H",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: h\r\n",
    ];
    let silent = async {
        while gateway.origin.seen("/late").is_empty() {
            tokio::task::yield_now().await;
        }
        let address = gateway.program.address();
        join_all(beginnings.map(|sent| hung_up_on(address, sent))).await;
        go.notify_one();
    };
    let (answer, ()) = tokio::join!(gateway.get("/late", &[]), silent);
    assert_eq!((answer.status, answer.text().as_str()), (200, "late"));
}

#[tokio::test]
async fn an_http_2_client_that_is_gone_without_a_word_is_noticed() {
    let gateway = Gateway::start(&[]).await;
    let mut client = Frames::post(gateway.program.address(), "/up", &[], b"").await;
    client.end().await;
    // It never answers a ping. Twenty seconds are enough, and a hundred are for ever.
    let end = tokio::time::timeout(Duration::from_secs(100), client.until_hung_up()).await;
    assert!(end.is_ok(), "the connection is held for ever");
}
