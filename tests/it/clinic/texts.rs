//! Texts that nobody can read: each is refused by the name of its field, by the API and by the forms, and nothing is done.

use serde_json::{Value, json};

use super::pages::{filled, form};
use super::people::{refused, signed_in, told};
use super::{Guest, alone, slot, wish};
use crate::support::{Browser, Reply};

#[track_caller]
fn refuses(reply: &Reply, field: &str, text: &str) {
    assert_eq!(
        told(reply),
        refused(422, "INVALID_VALUE"),
        "{field}: {text:?}"
    );
    let document = reply.json();
    assert_eq!(document["field"], field, "{document}");
    let detail = document["detail"].as_str().unwrap();
    assert!(detail.starts_with(field), "{detail}");
}

/// What no line may be, `longest` being too long.
fn unreadable(longest: &str) -> [&str; 6] {
    ["", "  \u{a0}", "a\0b", "a\u{1b}[2Jb", "a\u{85}b", longest]
}

#[tokio::test]
async fn a_text_that_nobody_can_read_is_refused_by_the_name_of_its_field() {
    let clinic = alone();
    let (root, ana) = (
        signed_in(&clinic, "root").await,
        signed_in(&clinic, "ana").await,
    );
    let notice =
        json!({ "user_id": "pat", "type": "t", "title": "t", "message": "m", "priority": "low" });
    let with = |body: &Value, field: &str, text: &str| {
        let mut body = body.clone();
        body[field] = text.into();
        body
    };
    for (field, most) in [("type", 64), ("title", 200), ("message", 2_000)] {
        for text in unreadable(&"x".repeat(most + 1)) {
            let body = with(&notice, field, text);
            let reply = root.post("/api/admin/notifications", &[], &body).await;
            refuses(&reply, field, text);
        }
    }
    for (field, text) in [("priority", "urgent"), ("scheduled_for", "soon")] {
        let body = with(&notice, field, text);
        let reply = root.post("/api/admin/notifications", &[], &body).await;
        refuses(&reply, field, text);
    }
    let told_long = with(&notice, "message", "one\n\ttwo");
    let reply = root.post("/api/admin/notifications", &[], &told_long).await;
    assert_eq!(told(&reply).0, 202);
    for text in unreadable(&"x".repeat(501)) {
        let body = json!({ "user_id": "pat", "reason": text });
        let reply = root.post("/api/internal/force-verification", &[], &body);
        refuses(&reply.await, "reason", text);
    }
    let profile = json!({ "name": "Ana", "phone": "1", "bio": "one\ntwo" });
    let put = async |body: &Value| {
        ana.send(
            http::Method::PUT,
            "/api/user/profile",
            &[("content-type", "application/json")],
            Some(body.to_string()),
        )
        .await
    };
    for text in unreadable(&"x".repeat(101)) {
        refuses(&put(&with(&profile, "name", text)).await, "name", text);
    }
    for text in ["1\n2", "\0"] {
        refuses(&put(&with(&profile, "phone", text)).await, "phone", text);
    }
    refuses(&put(&with(&profile, "bio", "a\0b")).await, "bio", "a\0b");
    assert_eq!(put(&with(&profile, "phone", "")).await.status, 200);
}

#[tokio::test]
async fn a_guest_has_a_name_and_an_address_that_can_be_read() {
    let clinic = alone();
    let mut number = 0;
    for (member, most) in [("name", 100), ("email", 254)] {
        for text in unreadable(&"x".repeat(most + 1)) {
            number += 1;
            let guest = Guest::new(&clinic, number).await;
            let mut wished = wish("e1", "s60", "10:00");
            wished["guest"][member] = text.into();
            let reply = guest.pay("k", &wished).await;
            refuses(&reply, &format!("guest.{member}"), text);
        }
    }
    let browser = Browser::new(clinic.address());
    let (_, fields) = form(&browser).await;
    let mut fields = filled(&fields);
    for (name, value) in &mut fields {
        if *name == "guest_name" {
            *value = " ";
        }
    }
    let reply = browser.submit("/book", &fields).await;
    assert_eq!(reply.status, 422, "{}", reply.text());
    assert!(reply.text().contains("guest.name must not be empty"));
    assert_eq!(slot(&browser, "e1", "s60", "10:00").await, "free");
    let counters = browser.get("/_test/counters").await.json();
    assert_eq!(counters["provider"]["session_create"], 0);
}
