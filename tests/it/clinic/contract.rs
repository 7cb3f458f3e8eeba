//! Sentences of the contract that no story tells: windows to the second, bodies, cookies, addresses, hang-ups.

use http::{Method, StatusCode};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::people::{refused, told};
use super::{Guest, advance, alone, slot, soon, text, wish};
use crate::support::{Browser, Program};

#[tokio::test]
async fn a_window_slides_to_the_second_and_a_replay_takes_nothing_from_it() {
    let clinic = alone();
    let guest = Guest::new(&clinic, 1).await;
    let unknown = wish("e9", "s60", "10:00");
    advance(&guest.browser, 890).await;
    for number in 0..5 {
        let reply = guest.pay(&format!("k{number}"), &unknown).await;
        assert_eq!(told(&reply), refused(404, "NOT_FOUND"));
        let left = format!("\"user\";r={};", 4 - number);
        assert!(reply.header("ratelimit").contains(&left), "{reply:?}");
        // The same again is no further request of this subject.
        let again = guest.pay(&format!("k{number}"), &unknown).await;
        assert_eq!(again.header("idempotency-replayed"), "true");
    }
    advance(&guest.browser, 11).await;
    assert_eq!(
        told(&guest.pay("901", &unknown).await),
        refused(429, "user")
    );
    advance(&guest.browser, 888).await;
    let late = guest.pay("1789", &unknown).await;
    assert_eq!(
        (told(&late), late.header("retry-after")),
        (refused(429, "user"), "1")
    );
    let reset = late.json()["reset_time"].as_u64().unwrap();
    assert_eq!(reset, 1_893_456_000_000 + 1_790_000);
    advance(&guest.browser, 1).await;
    assert_eq!(
        told(&guest.pay("1790", &unknown).await),
        refused(404, "NOT_FOUND")
    );
}

#[tokio::test]
async fn without_trusted_hops_nobody_chooses_an_address() {
    let clinic = Program::start("clinic", &["--listen", "127.0.0.1:0", "--test-hooks"]);
    let unknown = wish("e9", "s60", "10:00");
    for number in 0..21 {
        // Each a guest of its own, at an address of its own if one believes it.
        let guest = Guest::new(&clinic, number).await;
        let reply = guest.pay("k", &unknown).await;
        let promised = match number {
            20 => refused(429, "ip"),
            _ => refused(404, "NOT_FOUND"),
        };
        assert_eq!(told(&reply), promised, "{number}");
    }
}

#[tokio::test]
async fn a_session_tells_the_whole_address_of_its_client_and_a_mapped_one_as_ipv4() {
    let clinic = alone();
    let credentials = json!({ "email": "pat@clinic.test", "password": "test" });
    for (address, shown) in [
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("[2001:DB8:0:1::1]:443", "2001:db8:0:1::1"),
    ] {
        let browser = Browser::new(clinic.address());
        let from = [("x-forwarded-for", address)];
        browser.post("/api/login", &from, &credentials).await;
        let list = browser.get("/api/user/sessions").await.json();
        let mut sessions = list.as_array().unwrap().iter();
        let own = sessions.find(|one| one["current"] == true).unwrap();
        assert_eq!(own["ip"], shown);
    }
}

#[tokio::test]
async fn a_body_that_stops_half_way_is_answered_and_holds_nothing() {
    let clinic = alone();
    let guest = Guest::new(&clinic, 1).await;
    let half = async |path: &str| {
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\nconnection: close\r\n\
             idempotency-key: k\r\ncookie: guest={}\r\ncontent-length: 100\r\n\r\n{{",
            clinic.address(),
            guest.browser.cookie("guest").unwrap(),
        );
        let mut window = tokio::net::TcpStream::connect(clinic.address())
            .await
            .unwrap();
        window.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        soon(window.read_to_string(&mut answer)).await.unwrap();
        let is_refused =
            answer.starts_with("HTTP/1.1 408 ") && answer.contains("\"REQUEST_TIMEOUT\"");
        assert!(is_refused, "{path}: {answer}");
        assert!(answer.contains("connection: close\r\n"), "{answer}");
        assert_eq!(answer.matches("content-type:").count(), 1, "{answer}");
        let is_limited = answer.contains("ratelimit-policy: ") && answer.contains("ratelimit: ");
        assert_eq!(is_limited, !path.contains("webhooks"), "{path}: {answer}");
    };
    tokio::join!(
        half("/api/create-payment-intent"),
        half("/api/login"),
        half("/api/webhooks/payments"),
    );
    // Nothing was claimed under its key.
    let paid = guest.pay("k", &wish("e1", "s60", "10:00")).await;
    assert_eq!(paid.status, StatusCode::CREATED);
}

#[tokio::test]
async fn a_client_that_hangs_up_and_asks_again_has_one_reservation() {
    let clinic = alone();
    let guest = Guest::new(&clinic, 1).await;
    let slow = json!({ "provider_delay_ms": 500 });
    guest.browser.post("/_test/fault", &[], &slow).await;
    let wished = wish("e1", "s60", "10:00");
    let body = wished.to_string();
    let request = format!(
        "POST /api/create-payment-intent HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\n\
         idempotency-key: k\r\ncookie: guest={}\r\ncontent-length: {}\r\n\r\n{body}",
        clinic.address(),
        guest.browser.cookie("guest").unwrap(),
        body.len()
    );
    let mut window = tokio::net::TcpStream::connect(clinic.address())
        .await
        .unwrap();
    window.write_all(request.as_bytes()).await.unwrap();
    soon(async {
        while slot(&guest.browser, "e1", "s60", "10:00").await != "held" {
            tokio::task::yield_now().await;
        }
    })
    .await;
    drop(window);
    let opened = async || {
        let counters = guest.browser.get("/_test/counters").await.json();
        counters["provider"]["session_create"] == 1
    };
    soon(async {
        while !opened().await {
            tokio::task::yield_now().await;
        }
    })
    .await;
    // Nearly done; and whoever asks too often is told so by the limit of his address.
    let answer = soon(async {
        loop {
            let reply = guest.pay("k", &wished).await;
            if reply.status != StatusCode::CONFLICT {
                return reply;
            }
            assert_eq!(reply.code(), "IDEMPOTENCY_IN_PROGRESS");
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        }
    })
    .await;
    assert_eq!(answer.status, StatusCode::CREATED, "{:?}", answer.body);
    let counters = guest.browser.get("/_test/counters").await.json();
    assert_eq!(counters["handlers"]["create_payment_intent"], 1);
    assert_eq!(counters["provider"]["session_create"], 1);
}

#[tokio::test]
async fn bodies_are_json_of_a_size_and_a_time_may_have_an_offset() {
    let clinic = alone();
    let guest = Guest::new(&clinic, 1).await;
    let path = "/api/login";
    for (kind, body) in [
        ("application/json", "{"),
        ("application/json", "[]"),
        ("application/json", "{\"email\":\"a\"}"),
        ("application/json", "{\"email\":7,\"password\":\"p\"}"),
        ("text/plain", "{\"email\":\"a\",\"password\":\"p\"}"),
    ] {
        let headers = [("content-type", kind)];
        let body = Some(body.to_owned());
        let reply = guest.browser.send(Method::POST, path, &headers, body).await;
        assert_eq!(told(&reply), refused(400, "VALIDATION"), "{reply:?}");
    }
    let long = json!({ "email": "x".repeat(70_000), "password": "p" });
    let reply = guest.browser.post(path, &[], &long).await;
    assert_eq!(told(&reply), refused(413, "BODY_TOO_LARGE"));
    // Two hours east of Greenwich it is noon; and what nobody asked for is no fault.
    let mut wished = wish("e1", "s60", "10:00");
    wished["start"] = json!("2030-01-02T12:00:00+02:00");
    wished["colour"] = json!("green");
    let held = guest.pay("k", &wished).await;
    assert_eq!(held.status, StatusCode::CREATED, "{:?}", held.body);
    let reservation = guest.browser.get(held.header("location")).await.json();
    assert_eq!(text(&reservation, "start"), "2030-01-02T10:00:00Z");
}

#[tokio::test]
async fn cookies_are_ours_alone_and_a_login_ends_the_session_that_came_along() {
    let shipped = Program::start("clinic", &["--listen", "127.0.0.1:0"]);
    let credentials = json!({ "email": "pat@clinic.test", "password": "test" });
    let named = |line: &str, value: &str, rest: &[&str]| {
        let mut parts: Vec<&str> = line.split("; ").skip(1).collect();
        parts.sort_unstable();
        assert_eq!(parts, rest, "{value}: {line}");
    };
    let browser = Browser::new(shipped.address());
    let reading = browser.get("/").await;
    assert_eq!(reading.header("set-cookie"), "");
    let first = browser.post("/api/login", &[], &credentials).await;
    assert!(first.header("set-cookie").starts_with("__Host-id="));
    let lax = ["HttpOnly", "Path=/", "SameSite=Lax", "Secure"];
    named(first.header("set-cookie"), "session", &lax);
    let guest = Browser::new(shipped.address()).get("/api/guest").await;
    assert!(guest.header("set-cookie").starts_with("__Host-guest="));
    let year = [
        "HttpOnly",
        "Max-Age=31536000",
        "Path=/",
        "SameSite=Lax",
        "Secure",
    ];
    named(guest.header("set-cookie"), "guest", &year);

    let clinic = alone();
    let browser = Browser::new(clinic.address());
    browser.plant("id", "made-up-by-somebody-else");
    browser.post("/api/login", &[], &credentials).await;
    let old = browser.cookie("id").unwrap();
    assert_ne!(old, "made-up-by-somebody-else");
    browser.post("/api/login", &[], &credentials).await;
    assert_ne!(browser.cookie("id").unwrap(), old);
    let thief = Browser::new(clinic.address());
    thief.plant("id", &old);
    assert_eq!(
        told(&thief.get("/api/user/me").await),
        refused(401, "UNAUTHENTICATED")
    );
    let left = browser.post("/api/logout", &[], &json!({})).await;
    assert_eq!(left.status, StatusCode::NO_CONTENT);
    named(
        left.header("set-cookie"),
        "removal",
        &[
            "Expires=Thu, 01 Jan 1970 00:00:00 GMT",
            "HttpOnly",
            "Max-Age=0",
            "Path=/",
            "SameSite=Lax",
        ],
    );
    // A forged guest counts as none: a new one is made.
    let forger = Browser::new(clinic.address());
    forger.plant("guest", "0123456789abcdef0123456789abcdef.AAAA");
    let welcomed = forger.get("/api/guest").await;
    assert!(welcomed.header("set-cookie").starts_with("guest="));
}
