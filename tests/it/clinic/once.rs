//! What is there once, or only for a time: login states, mail tokens, half-done forms, identities, payment customers.

use futures_util::future::join_all;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tower_keep::core::Timestamp;

use super::people::{refused, signed_in, told};
use super::{Guest, advance, alone, text, wish};
use crate::support::{Browser, Reply};

async fn state_of(browser: &Browser) -> String {
    let begun = browser.get("/oauth/start").await;
    assert_eq!(begun.status, StatusCode::FOUND);
    let there = begun.header("location").to_owned();
    let page = browser.get(&there).await;
    let state = there.strip_prefix("/fakeauth?state=").unwrap();
    let back = format!("href=\"/oauth/callback?state={state}&amp;");
    assert!(page.text().contains(&back), "{}", page.text());
    state.to_owned()
}

async fn come_back(browser: &Browser, state: &str) -> Reply {
    let path = format!("/oauth/callback?state={state}&code=c");
    browser.get(&path).await
}

#[tokio::test]
async fn a_login_state_works_once_in_its_own_browser_for_a_quarter_of_an_hour() {
    let clinic = alone();
    let (own, other) = (
        Browser::new(clinic.address()),
        Browser::new(clinic.address()),
    );
    let state = state_of(&own).await;
    state_of(&other).await;
    let invalid = refused(400, "STATE_INVALID");
    assert_eq!(told(&come_back(&other, &state).await), invalid);
    let replies = join_all((0..20).map(|_| come_back(&own, &state))).await;
    let passed = replies
        .iter()
        .filter(|reply| reply.status == StatusCode::FOUND);
    let passed: Vec<_> = passed.map(|reply| reply.header("location")).collect();
    assert_eq!(passed, ["/me"]);
    for burnt in replies.iter().filter(|reply| reply.status != 302) {
        assert_eq!(told(burnt), invalid);
    }
    for state in ["", "short", "no-such-state-but-long-enough"] {
        assert_eq!(told(&come_back(&own, state).await), invalid);
    }
    let (late, soon) = (state_of(&own).await, state_of(&own).await);
    advance(&own, 899).await;
    assert_eq!(come_back(&own, &soon).await.status, StatusCode::FOUND);
    advance(&own, 1).await;
    assert_eq!(told(&come_back(&own, &late).await), invalid);
}

#[tokio::test]
async fn who_began_as_a_guest_and_logged_in_meanwhile_is_the_same_browser() {
    let clinic = alone();
    let browser = Browser::new(clinic.address());
    let state = state_of(&browser).await;
    let credentials = json!({ "email": "pat@clinic.test", "password": "test" });
    browser.post("/api/login", &[], &credentials).await;
    assert_eq!(come_back(&browser, &state).await.status, StatusCode::FOUND);
}

#[tokio::test]
async fn a_mailed_token_verifies_once_within_an_hour() {
    let clinic = alone();
    let pat = signed_in(&clinic, "pat").await;
    let anybody = Browser::new(clinic.address());
    let mailed = async || {
        let sent = pat.post("/api/verify-email/send", &[], &Value::Null).await;
        assert_eq!(sent.status, StatusCode::ACCEPTED);
        let mail = pat.get("/_test/mail").await.json();
        let newest = mail.as_array().unwrap().last().unwrap().clone();
        assert_eq!(
            (&newest["to"], &newest["type"]),
            (&json!("pat@clinic.test"), &json!("email_verification"))
        );
        text(&newest, "token")
    };
    let bring = async |token: &str| {
        let body = json!({ "token": token });
        anybody.post("/api/verify-email", &[], &body).await
    };
    let token = mailed().await;
    let answers = join_all((0..20).map(|_| bring(&token))).await;
    let good: Vec<Value> = answers
        .iter()
        .filter(|reply| reply.status == StatusCode::OK)
        .map(Reply::json)
        .collect();
    assert_eq!(
        good,
        [json!({ "email": "pat@clinic.test", "verified": true })]
    );
    let invalid = refused(400, "TOKEN_INVALID");
    assert_eq!(told(&bring(&token).await), invalid);
    let late = mailed().await;
    advance(&pat, 3_600).await;
    assert_eq!(told(&bring(&late).await), invalid);
    let nobody = anybody
        .post("/api/verify-email/send", &[], &Value::Null)
        .await;
    assert_eq!(told(&nobody), refused(401, "UNAUTHENTICATED"));
    assert_eq!(nobody.header("www-authenticate"), "Session");
}

#[tokio::test]
async fn progress_is_ones_own_and_lasts_from_the_last_save_on() {
    let clinic = alone();
    let mut pat = signed_in(&clinic, "pat").await;
    let (form, step) = ("/api/forms/intake-2/progress", "/api/setup/calendar");
    for (path, seconds) in [(step, 3_600), (form, 86_400)] {
        for (number, pause) in [(1, 600), (2, 0)] {
            let body = Some(json!({ "a": [number] }).to_string());
            let saved = pat.send(Method::PUT, path, &[], body).await;
            assert_eq!(saved.status, StatusCode::NO_CONTENT, "{path}");
            advance(&pat, pause).await;
        }
        let ana = signed_in(&clinic, "ana").await;
        let kept = pat.get(path).await.json();
        assert_eq!(kept["data"], json!({ "a": [2] }));
        let time = |name: &str| text(&kept, name).parse::<Timestamp>().unwrap();
        let rest = time("expires_at").since(time("updated_at"));
        assert_eq!(rest.as_secs(), seconds, "{path}");
        assert_eq!(told(&ana.get(path).await), refused(404, "NOT_FOUND"));
        advance(&pat, seconds - 1).await;
        let again = signed_in(&clinic, "pat").await;
        assert_eq!(again.get(path).await.json()["data"], json!({ "a": [2] }));
        advance(&pat, 1).await;
        assert_eq!(told(&again.get(path).await), refused(404, "NOT_FOUND"));
        pat = again;
    }
}

#[tokio::test]
async fn progress_is_an_object_under_a_plain_name_and_can_be_dropped() {
    let clinic = alone();
    let pat = signed_in(&clinic, "pat").await;
    let put = async |path: &str, body: &str| {
        let body = Some(body.to_owned());
        told(&pat.send(Method::PUT, path, &[], body).await)
    };
    let path = "/api/setup/calendar";
    for wrong in ["[1]", "7", "{", "null"] {
        assert_eq!(
            put(path, wrong).await,
            refused(400, "VALIDATION"),
            "{wrong}"
        );
    }
    let long = format!("/api/setup/{}", "x".repeat(65));
    for name in [
        "/api/setup/Upper",
        "/api/setup/a%2Fb",
        "/api/setup/%00",
        &long,
    ] {
        assert_eq!(put(name, "{}").await, refused(404, "NOT_FOUND"), "{name}");
    }
    assert_eq!(put(path, "{}").await, (204, String::new()));
    assert_eq!(pat.delete(path).await.status, StatusCode::NO_CONTENT);
    assert_eq!(told(&pat.get(path).await), refused(404, "NOT_FOUND"));
    assert_eq!(pat.delete(path).await.status, StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn an_identity_is_asked_for_three_times_an_hour_and_refusals_cost_the_address_nothing() {
    let clinic = alone();
    let ask = async |browser: &Browser| {
        let path = "/api/identity/verification";
        browser.post(path, &[], &json!({})).await
    };
    let nobody = Browser::new(clinic.address());
    assert_eq!(told(&ask(&nobody).await), refused(401, "UNAUTHENTICATED"));
    let pat = signed_in(&clinic, "pat").await;
    let first = ask(&pat).await;
    assert_eq!(
        (first.status, &first.json()["status"]),
        (StatusCode::CREATED, &json!("open"))
    );
    assert_eq!(
        pat.get(&text(&first.json(), "url")).await.status,
        StatusCode::OK
    );
    for _ in 0..2 {
        let again = ask(&pat).await;
        assert_eq!((again.status, &again.body), (StatusCode::OK, &first.body));
    }
    for _ in 0..10 {
        assert_eq!(told(&ask(&pat).await), refused(429, "user"));
    }
    // Seven are left to the address, whoever asks.
    for user in ["ana", "ben"] {
        let browser = signed_in(&clinic, user).await;
        for _ in 0..3 {
            assert!(ask(&browser).await.status.is_success(), "{user}");
        }
    }
    let root = signed_in(&clinic, "root").await;
    assert!(ask(&root).await.status.is_success());
    assert_eq!(told(&ask(&root).await), refused(429, "ip"));
    for _ in 0..6 {
        advance(&pat, 600).await;
        assert_eq!(pat.get("/api/notifications").await.status, 200);
    }
    let next = ask(&pat).await;
    assert_eq!(next.status, StatusCode::CREATED, "{:?}", next.body);
    assert_ne!(
        next.json()["verification_id"],
        first.json()["verification_id"]
    );
}

#[tokio::test]
async fn a_user_is_one_customer_of_the_provider_however_often_he_pays() {
    let clinic = alone();
    let pat = signed_in(&clinic, "pat").await;
    let synced = async || pat.get("/api/user/check-kv-sync").await.json();
    assert_eq!(synced().await, json!({ "in_sync": true }));
    let guest = Guest {
        browser: pat.clone(),
        address: "203.0.113.1".to_owned(),
    };
    let wishes = ["09:00", "11:00", "13:00"].map(|time| wish("e1", "s60", time));
    let replies = join_all(
        wishes
            .iter()
            .zip(["a", "b", "c"])
            .map(|(wish, key)| guest.pay(key, wish)),
    );
    for reply in replies.await {
        assert_eq!(reply.status, StatusCode::CREATED, "{:?}", reply.body);
    }
    let counted = pat.get("/_test/counters").await.json();
    assert_eq!(
        (
            &counted["provider"]["customer_create"],
            &counted["provider"]["sessions_open"]
        ),
        (&json!(1), &json!(3))
    );
    assert_eq!(synced().await, json!({ "in_sync": true }));
    let rebuilt = pat.post("/api/user/rebuild-kv", &[], &Value::Null).await;
    assert_eq!(rebuilt.json(), json!({ "in_sync": true }));
    // A day later our copy is gone; the provider's is not.
    advance(&pat, 86_400).await;
    let again = signed_in(&clinic, "pat").await;
    let check = async || again.get("/api/user/check-kv-sync").await.json();
    assert_eq!(check().await, json!({ "in_sync": false }));
    again.post("/api/user/rebuild-kv", &[], &Value::Null).await;
    assert_eq!(check().await, json!({ "in_sync": true }));
}
