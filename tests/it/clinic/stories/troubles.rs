//! Stories 10 to 12: an outage, what may be used once, and what is told to whom.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use http::StatusCode;
use serde_json::json;

use super::super::{text, wish};
use super::{SetUp, is, login, told};
use crate::support::Browser;

pub(super) async fn store_outage(set: &SetUp) {
    let (pat, guest) = (login(set, "pat", 1).await, set.guest(2).await);
    let ended = login(set, "pat", 3).await;
    ended.post("/api/logout", &[], &json!({})).await;
    let leaving = login(set, "ben", 5).await;
    let token = leaving.cookie("id").unwrap();
    let normal = guest.browser.get("/api/health").await.json()["mode"].clone();
    set.order("/_test/fault", &json!({ "store": "down" })).await;
    let wished = wish("e1", "s60", "10:00");
    for number in 0..6 {
        let refused = guest.pay(&format!("k{number}"), &wished).await;
        assert_eq!(told(&refused), is(503, "STORE_UNAVAILABLE"));
        let wait: u32 = refused.header("retry-after").parse().unwrap();
        assert!((1..=30).contains(&wait));
        assert_eq!(refused.json()["retry_after"], wait);
    }
    let anybody = Browser::new(set.at(2).address());
    for path in [
        "/",
        "/expert/e1",
        "/api/experts",
        "/api/experts/e1",
        "/api/health",
    ] {
        assert_eq!(anybody.get(path).await.status, StatusCode::OK, "{path}");
    }
    for _ in 0..5 {
        // Nobody is signed out: nobody knows.
        let me = pat.get("/api/user/me").await;
        assert_eq!(told(&me), is(503, "STORE_UNAVAILABLE"));
        assert_eq!(me.header("set-cookie"), "");
    }
    for (password, status) in [("no", 401), ("test", 503)] {
        let credentials = json!({ "email": "ana@clinic.test", "password": password });
        let reply = anybody.post("/api/login", &[], &credentials).await;
        assert_eq!(reply.status.as_u16(), status, "{:?}", reply.body);
    }
    // Who leaves in an outage gets no promise, and has left all the same.
    let left = leaving.post("/api/logout", &[], &json!({})).await;
    assert_eq!(told(&left), is(503, "STORE_UNAVAILABLE"));
    assert_eq!(leaving.cookie("id"), None);
    reads(&anybody, "status", &json!("degraded")).await;
    reads(&anybody, "mode", &json!("fallback")).await;
    let metrics = anybody.get("/metrics").await;
    assert!(metrics.text().contains("clinic_fallback 1"));
    set.order("/_test/fault", &json!({ "store": "up" })).await;
    back(set, &normal).await;
    // Every fall-back was counted, for machines and for admins.
    let metrics = anybody.get("/metrics").await;
    let counted = metrics
        .text()
        .lines()
        .find_map(|line| line.strip_prefix("clinic_fallbacks_total "));
    assert!(counted.unwrap().parse::<u64>().unwrap() > 0);
    let root = login(set, "root", 2).await;
    let stats = root.get("/api/admin/cache/stats").await.json();
    assert!(stats["fallback"].as_u64().unwrap() > 0, "{stats}");
    assert_eq!(pat.get("/api/user/me").await.status, StatusCode::OK);
    leaving.plant("id", &token);
    for gone in [&ended, &leaving] {
        let reply = gone.get("/api/user/me").await;
        assert_eq!(told(&reply), is(401, "UNAUTHENTICATED"));
    }
    assert_eq!(guest.pay("k", &wished).await.status, StatusCode::CREATED);
    // Slow to the point of silence is as good as down, and soon answered as fast.
    set.order("/_test/fault", &json!({ "delay_ms": 5_000 }))
        .await;
    for _ in 0..6 {
        assert_eq!(
            told(&pat.get("/api/user/me").await),
            is(503, "STORE_UNAVAILABLE")
        );
    }
    assert_eq!(anybody.get("/api/experts").await.status, StatusCode::OK);
    set.order("/_test/fault", &json!({ "delay_ms": 0 })).await;
    back(set, &normal).await;
}

/// Waits until every process uses its store again.
async fn back(set: &SetUp, mode: &serde_json::Value) {
    for hook in set.hooks() {
        reads(&hook, "mode", mode).await;
    }
}

/// Health is told anew every second.
async fn reads(browser: &Browser, member: &str, value: &serde_json::Value) {
    let started = Instant::now();
    while &browser.get("/api/health").await.json()[member] != value {
        assert!(started.elapsed() < Duration::from_secs(60), "never {value}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

pub(super) async fn one_time_data(set: &SetUp) {
    // The same user in another browser is another browser.
    let (own, other) = (login(set, "pat", 1).await, login(set, "pat", 2).await);
    let begun = own.get("/oauth/start").await;
    assert_eq!(begun.status, StatusCode::FOUND);
    let state = begun
        .header("location")
        .rsplit('=')
        .next()
        .unwrap()
        .to_owned();
    let callback = format!("/oauth/callback?state={state}&code=c");
    assert_eq!(told(&other.get(&callback).await), is(400, "STATE_INVALID"));
    let twenty = join_all((0..20).map(|_| own.get(&callback))).await;
    assert_eq!(super::statuses(&twenty, 302), 1);
    own.post("/api/verify-email/send", &[], &json!({})).await;
    let mail = own.get("/_test/mail").await.json();
    let token = text(mail.as_array().unwrap().last().unwrap(), "token");
    let body = json!({ "token": token });
    let twenty = join_all((0..20).map(|_| other.post("/api/verify-email", &[], &body))).await;
    assert_eq!(super::statuses(&twenty, 200), 1);
    let path = "/api/forms/intake/progress";
    let saved = Some(json!({ "page": 2 }).to_string());
    own.send(http::Method::PUT, path, &[], saved).await;
    assert_eq!(other.get(path).await.json()["data"], json!({ "page": 2 }));
    let ana = login(set, "ana", 3).await;
    assert_eq!(told(&ana.get(path).await), is(404, "NOT_FOUND"));
}

pub(super) async fn live_and_notices(set: &SetUp) {
    let (guest, other) = (set.guest(1).await, set.guest(2).await);
    let mut seen = other.browser.open("/api/events?topic=slots:e1").await;
    seen.until(":").await;
    let held = guest.pay("k", &wish("e1", "s60", "10:00")).await.json();
    seen.until("\"held\"").await;
    guest.settle(&text(&held, "payment_id"), "succeeded").await;
    let text_so_far = seen.until("\"booked\"").await;
    assert!(!text_so_far.contains("example.org"));
    let topic = format!(
        "/api/events?topic=appointment:{}",
        text(&held, "reservation_id")
    );
    assert_eq!(told(&other.browser.get(&topic).await), is(403, "FORBIDDEN"));
    let (root, pat) = (login(set, "root", 1).await, login(set, "pat", 2).await);
    set.order("/_test/fault", &json!({ "fail": { "notification": 1 } }))
        .await;
    for (title, priority, at) in [
        ("c", "low", None),
        ("a", "high", None),
        ("b", "normal", None),
        ("d", "high", Some("2030-01-01T01:00:00Z")),
    ] {
        let notice = json!({
            "user_id": "pat", "type": "news", "title": title, "message": "m", "priority": priority,
            "scheduled_for": at,
        });
        let sent = root.post("/api/admin/notifications", &[], &notice).await;
        assert_eq!(sent.status, StatusCode::ACCEPTED, "{:?}", sent.body);
    }
    set.work().await;
    let listed = async || {
        let list = pat.get("/api/notifications").await.json();
        let titles = list["notifications"].as_array().unwrap().iter();
        let titles: Vec<String> = titles.map(|notice| text(notice, "title")).collect();
        (titles.join(""), list["pending"].as_u64().unwrap())
    };
    // Each process failed once at what it took first: the others were not held up, and nothing is lost.
    let (titles, pending) = listed().await;
    assert_eq!(titles.len() as u64 + pending, 4, "{titles}");
    assert!(pending >= 1 && !titles.contains('d'));
    set.order("/_test/fault", &json!({ "fail": { "notification": 0 } }))
        .await;
    set.advance(80).await;
    set.work().await;
    let (mut titles, pending) = listed().await;
    titles = {
        let mut sorted: Vec<char> = titles.chars().collect();
        sorted.sort_unstable();
        sorted.into_iter().collect()
    };
    assert_eq!((titles.as_str(), pending), ("abc", 1));
}
