//! R70–R72: the gateway without layers changes nothing but what belongs to one connection.

use std::time::{Duration, Instant};

use crate::gateway::wire::{Gateway, Reply, response};
use crate::support::program::{run, run_unread};

fn bytes(text: &str) -> Reply {
    Reply::Bytes(text.as_bytes().to_vec())
}

#[tokio::test]
async fn a_request_reaches_the_origin_as_it_was_but_for_the_fields_of_its_connection() {
    let gateway = Gateway::start(&[]).await;
    let target = "/A%2fb/../c;d?x=1&&y=%20|'";
    gateway.origin.says(target, [response(200, &[], "ok")]);
    let fields = [
        ("Connection", "X-Own, Keep-Alive"),
        ("X-Own", "1"),
        ("Keep-Alive", "timeout=5"),
        ("Proxy-Authorization", "Basic eA=="),
        ("TE", "gzip, trailers"),
        ("X-CaSe", "Kept"),
        ("X-Twice", "1"),
        ("X-Twice", "2"),
        ("Cookie", "a=b"),
    ];
    let got = gateway.send("BREW", target, &fields, "body").await;
    assert_eq!((got.status, &got.text()[..]), (200, "ok"));
    let seen = &gateway.origin.seen(target)[0];
    let mut lines: Vec<&str> = seen.split("\r\n").collect();
    assert_eq!(lines.remove(0), format!("BREW {target} HTTP/1.1"));
    assert_eq!(lines.pop(), Some("body"));
    lines.retain(|line| !line.is_empty());
    lines.sort_unstable_by_key(|line| line.to_ascii_lowercase());
    assert_eq!(
        lines,
        [
            "Connection: te",
            "Content-Length: 4",
            "Cookie: a=b",
            "Host: origin.test",
            "TE: trailers",
            "X-CaSe: Kept",
            "X-Twice: 1",
            "X-Twice: 2",
        ]
    );
}

#[tokio::test]
async fn an_answer_reaches_the_client_as_it_was_but_for_the_fields_of_its_connection() {
    let gateway = Gateway::start(&[]).await;
    let mut said = b"HTTP/1.1 299 Quite Fine\r\nX-CaSe: Kept\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\nX-Raw: \xe9\xff\r\n".to_vec();
    said.extend(b"Set-Cookie: a=1\r\nSet-Cookie: b=2\r\nConnection: close, X-Own\r\nX-Own: 1\r\nContent-Length: 2\r\n\r\nok");
    gateway.origin.says("/", [Reply::Bytes(said)]);
    let got = gateway.get("/", &[]).await;
    assert!(
        got.head.starts_with("HTTP/1.1 299 Quite Fine\r\n"),
        "{}",
        got.head
    );
    assert!(got.head.contains("\r\nX-CaSe: Kept\r\n"), "{}", got.head);
    let raw = b"X-Raw: \xe9\xff\r\n";
    assert!(got.raw.windows(raw.len()).any(|part| part == raw));
    assert_eq!(got.all("set-cookie"), ["a=1", "b=2"]);
    assert_eq!(
        (got.all("x-own").len(), got.all("cache-status").len()),
        (0, 0)
    );
    assert_eq!(got.all("date"), ["Sun, 06 Nov 1994 08:49:37 GMT"]);
    assert_eq!(got.text(), "ok");
}

#[tokio::test]
async fn odd_statuses_and_bodiless_answers_pass() {
    let gateway = Gateway::start(&["--cache"]).await;
    for status in [201, 204, 226, 299, 304, 402, 418, 499, 511, 599, 600, 999] {
        let path = format!("/{status}");
        gateway.origin.says(&path, [response(status, &[], "x")]);
        let got = gateway.get(&path, &[]).await;
        let bodiless = matches!(status, 204 | 304);
        assert_eq!(
            (got.status, got.body.is_empty()),
            (status, bodiless),
            "{}",
            got.head
        );
    }
}

#[tokio::test]
async fn bodies_and_trailers_stream_both_ways() {
    let gateway = Gateway::start(&[]).await;
    let said = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\nConnection: close\r\n\r\n\
                2\r\nab\r\n1\r\nc\r\n0\r\nX-Sum: 3\r\n\r\n";
    gateway.origin.says("/t", [bytes(said)]);
    let asked = "POST /t HTTP/1.1\r\nHost: h\r\nTE: trailers\r\nConnection: te, close\r\nTrailer: X-In\r\n\
                 Transfer-Encoding: chunked\r\n\r\n3\r\nxyz\r\n0\r\nX-In: 7\r\n\r\n";
    let got = gateway.raw(asked.as_bytes()).await;
    let text = got.text().to_ascii_lowercase();
    assert!(
        text.contains("abc") || text.contains("2\r\nab\r\n1\r\nc\r\n"),
        "{text}"
    );
    assert!(text.ends_with("0\r\nx-sum: 3\r\n\r\n"), "{text}");
    let seen = gateway.origin.seen("/t")[0].to_ascii_lowercase();
    assert!(
        seen.contains("xyz") && seen.ends_with("x-in: 7\r\n\r\n"),
        "{seen}"
    );
}

#[tokio::test]
async fn an_absolute_target_names_the_host_and_a_star_stays_one() {
    let gateway = Gateway::start(&[]).await;
    gateway.origin.says("/p?q", [response(200, &[], "")]);
    gateway.origin.says("*", [response(204, &[], "")]);
    let absolute =
        "GET http://named.test:81/p?q HTTP/1.1\r\nHost: other\r\nConnection: close\r\n\r\n";
    assert_eq!(gateway.raw(absolute.as_bytes()).await.status, 200);
    let seen = gateway.origin.seen("/p?q")[0].to_ascii_lowercase();
    assert!(seen.contains("\r\nhost: named.test:81\r\n"), "{seen}");
    assert_eq!(gateway.send("OPTIONS", "*", &[], "").await.status, 204);
}

#[tokio::test]
async fn what_two_readers_could_take_for_two_requests_is_not_handed_on() {
    // RFC 9112 §3.2, §6.1, §6.3.
    let gateway = Gateway::start(&["--cache"]).await;
    let coded = |fields: &str| {
        format!("POST /in HTTP/1.1\r\nConnection: close\r\n{fields}\r\n3\r\nabc\r\n0\r\n\r\n")
    };
    for (fields, status) in [
        ("", 400),
        ("Host: a\r\nHost: b\r\n", 400),
        ("Host: a b\r\n", 400),
        ("Host: u@a\r\n", 400),
        ("Host: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n", 400),
        ("Host: a\r\nContent-Length: +1\r\n", 400),
        ("Host: a\r\nTransfer-Encoding: chunked, gzip\r\n", 400),
        ("Host: a\r\nTransfer-Encoding : chunked\r\n", 400),
        ("Host: a\r\nTransfer-Encoding: gzip, chunked\r\n", 501),
    ] {
        let got = gateway.raw(coded(fields).as_bytes()).await;
        assert_eq!(got.status, status, "{fields:?}: {}", got.head);
    }
    assert!(gateway.origin.seen("/in").is_empty());
    gateway.origin.says("/in", [response(200, &[], "ok")]);
    let both = "Host: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n";
    assert_eq!(gateway.raw(coded(both).as_bytes()).await.status, 200);
    let seen = gateway.origin.seen("/in")[0].to_ascii_lowercase();
    assert!(!seen.contains("content-length"), "{seen}");
}

#[tokio::test]
async fn an_answer_that_two_readers_could_cut_in_two_places_is_whole_or_none() {
    // RFC 9112 §6.1, §6.3; RFC 9110 §7.8.
    let gateway = Gateway::start(&["--cache"]).await;
    let chunks = "Cache-Control: max-age=60\r\nConnection: close\r\n\r\n5\r\nabcde\r\n0\r\n\r\n";
    let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n";
    gateway
        .origin
        .says("/both", [bytes(&format!("{head}{chunks}"))]);
    for hit in [false, true] {
        let got = gateway.get("/both", &[]).await;
        assert!(got.text().contains("abcde"), "{}", got.text());
        assert_ne!(got.field("content-length"), "3");
        assert_eq!((got.status, got.is_hit()), (200, hit), "{}", got.head);
    }
    let noise = "HTTP/1.1 200 OK\r\nTransfer-Encoding: noise\r\nConnection: close\r\n\r\nabcde";
    gateway.origin.says("/noise", [bytes(noise)]);
    let got = gateway.get("/noise", &[]).await;
    assert!(
        got.status == 200 && got.text().contains("abcde"),
        "{}",
        got.head
    );
    let coded = "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n";
    let switched =
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nabc";
    let lengths = "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab";
    for (path, said) in [
        ("/coded", &format!("{coded}{chunks}")[..]),
        ("/switched", switched),
        ("/lengths", lengths),
    ] {
        gateway.origin.says(path, [bytes(said)]);
        assert_eq!(gateway.get(path, &[]).await.status, 502, "{path}");
    }
}

#[tokio::test]
async fn older_versions_are_spoken_on_one_side_only() {
    // RFC 9112 §2.3, §3.2.
    let gateway = Gateway::start(&[]).await;
    gateway
        .origin
        .says("/old", [bytes("HTTP/1.0 200 OK\r\n\r\nold")]);
    let got = gateway.get("/old", &[]).await;
    assert!(got.head.starts_with("HTTP/1.1 200 OK\r\n"), "{}", got.head);
    gateway.origin.says("/client", [response(200, &[], "new")]);
    let got = gateway.raw(b"GET /client HTTP/1.0\r\n\r\n").await;
    assert!(got.head.starts_with("HTTP/1.0 200"), "{}", got.head);
    assert_eq!(got.text(), "new");
    let seen = gateway.origin.seen("/client")[0].to_ascii_lowercase();
    assert!(
        seen.contains("\r\nhost: \r\n") || seen.contains("\r\nhost:\r\n"),
        "{seen}"
    );
}

#[tokio::test]
async fn a_request_that_may_go_no_further_is_answered_here() {
    // RFC 9110 §7.6.2.
    let gateway = Gateway::start(&[]).await;
    gateway.origin.says("/m", [response(204, &[], "")]);
    let ask = async |method: &str, left: &str| {
        let fields = [("Max-Forwards", left)];
        gateway.send(method, "/m", &fields, "").await.status
    };
    assert_eq!(ask("OPTIONS", "0").await, 200);
    assert_eq!(ask("TRACE", "0").await, 501);
    assert!(gateway.origin.seen("/m").is_empty());
    assert_eq!(ask("OPTIONS", "3").await, 204);
    let seen = gateway.origin.seen("/m")[0].to_ascii_lowercase();
    assert!(seen.contains("\r\nmax-forwards: 2\r\n"), "{seen}");
}

#[tokio::test]
async fn no_tunnel_is_opened_and_an_unreachable_origin_is_a_502() {
    let gateway = Gateway::start(&["--cache"]).await;
    let got = gateway
        .raw(b"CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\nConnection: close\r\n\r\n")
        .await;
    assert_eq!(got.status, 501);
    gateway.origin.says("/cut", [Reply::Cut]);
    assert_eq!(gateway.get("/cut", &[]).await.status, 502);
    let half = "HTTP/1.1 200 OK\r\nConte";
    gateway.origin.says("/half", [bytes(half)]);
    assert_eq!(gateway.get("/half", &[]).await.status, 502);
}

#[tokio::test]
async fn no_head_in_time_is_a_504() {
    let gateway = Gateway::start(&["--upstream-timeout", "0.2"]).await;
    gateway.origin.says("/hang", [Reply::Hang]);
    let before = Instant::now();
    assert_eq!(gateway.get("/hang", &[]).await.status, 504);
    assert!(before.elapsed() < Duration::from_secs(20));
}

#[tokio::test]
async fn a_body_cut_by_the_origin_is_cut_for_the_client() {
    let gateway = Gateway::start(&["--cache"]).await;
    let said = "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n";
    gateway
        .origin
        .says("/cut", [bytes(said), response(200, &[], "whole")]);
    let got = gateway.get("/cut", &[]).await;
    assert!(!got.text().ends_with("0\r\n\r\n"), "{}", got.text());
    // Nothing of it is kept.
    assert_eq!(gateway.get("/cut", &[]).await.text(), "whole");
}

#[tokio::test]
async fn it_ends_when_it_is_told_to_and_says_what_it_cannot_understand() {
    let mut gateway = Gateway::start(&["--cache"]).await;
    gateway.program.signal("TERM");
    assert!(gateway.program.wait().success());
    for (arguments, said) in [
        (&["--cache"][..], "--upstream URL is missing"),
        (&["--upstream", "https://h"], "--upstream wants"),
        (
            &["--upstream", "http://h", "--ttl", "5"],
            "--ttl needs --cache",
        ),
        (
            &["--upstream", "http://h", "--cache", "--ttl", "x"],
            "--ttl wants seconds",
        ),
        (
            &["--upstream", "http://h", "--cache", "--name", "9"],
            "--name wants a letter",
        ),
        (
            &["--upstream", "http://h", "--idempotency", "x"],
            "--idempotency wants payments",
        ),
        (
            &["--upstream", "http://h", "--idempotency-ttl", "5"],
            "--idempotency-ttl needs",
        ),
        (
            &[
                "--upstream",
                "http://h",
                "--idempotency",
                "api",
                "--idempotency-on-rejection",
                "IDEMPOTENCY_KEY_INVALID=200",
            ],
            "--idempotency-on-rejection wants CODE=STATUS",
        ),
        (
            &[
                "--upstream",
                "http://h",
                "--idempotency",
                "api",
                "--idempotency-secret",
                "0badc0de",
            ],
            "--idempotency-secret wants 64 hex digits",
        ),
        (
            &["--upstream", "http://h", "--rate-limit", "5"],
            "--rate-limit wants",
        ),
        (&["--upstream", "http://h", "--wat"], "unknown option --wat"),
        (
            &["--upstream", "http://h", "--cache=yes"],
            "--cache takes no value",
        ),
    ] {
        let (code, _, error) = run("gateway", arguments);
        assert_eq!(code, Some(2), "{arguments:?}: {error}");
        assert!(error.contains(said), "{arguments:?}: {error}");
        assert!(!error.contains("0badc0de"), "a secret is not shown");
    }
    let (code, help, _) = run("gateway", &["--help"]);
    assert_eq!(code, Some(0));
    for name in [
        "--targeted",
        "--idempotency-twins",
        "--rate-limit",
        "--score",
    ] {
        assert!(help.contains(name), "{name}");
    }
    // As by `--help | head`: the rest is not wanted, and that is no fault.
    let unread = run_unread("gateway", &["--help"]);
    assert_eq!(unread, (Some(0), String::new()));
}
