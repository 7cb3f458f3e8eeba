//! The gateway's other language towards clients: cleartext HTTP/2.

use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;

use crate::gateway::wire::{Gateway, response};
use crate::support::Program;
use crate::support::http2::{Frames, connect, send};

#[tokio::test]
async fn a_cookie_that_http_2_cut_up_is_one_for_every_layer() {
    let gateway = Gateway::start(&["--cache"]).await;
    let fields = [("cache-control", "max-age=60"), ("vary", "cookie")];
    gateway.origin.says("/", [response(200, &fields, "kept")]);
    let connection = connect(gateway.program.address()).await;
    let crumbs = [("host", "host.test"), ("cookie", "a=1"), ("cookie", "b=2")];
    let first = send(&connection, "GET", "/", &crumbs, "").await;
    assert_eq!(&first.body()[..], b"kept");
    let whole = [("host", "host.test"), ("cookie", "a=1; b=2")];
    let again = send(&connection, "GET", "/", &whole, "").await;
    assert_eq!(&again.body()[..], b"kept");
    let seen = gateway.origin.seen("/");
    assert_eq!(seen.len(), 1);
    assert!(seen[0].contains("cookie: a=1; b=2\r\n"), "{seen:?}");
}

#[tokio::test]
async fn a_request_that_its_client_took_back_half_way_is_not_handed_on_as_whole() {
    let origin = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = format!("http://{}", origin.local_addr().unwrap());
    let options = ["--listen", "127.0.0.1:0", "--upstream", &upstream];
    let gateway = Program::start("gateway", &options);
    let mut client = Frames::post(gateway.address(), "/up", &[], b"half of").await;
    let (mut stream, _) = origin.accept().await.unwrap();
    let mut came = Vec::new();
    while !came.ends_with(b"half of\r\n") {
        assert_ne!(stream.read_buf(&mut came).await.unwrap(), 0);
    }
    client.reset_without_error().await;
    // Cut, or ended as whole: the gateway waits for no answer to what it broke off.
    while !came.ends_with(b"0\r\n\r\n") && stream.read_buf(&mut came).await.unwrap_or(0) > 0 {}
    assert!(!came.ends_with(b"\r\n0\r\n\r\n"));
}
