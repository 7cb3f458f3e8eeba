//! What a process leaves behind: a log without secrets, and a database that the next one goes on with.

use std::fs::{self, File};

use http::{Method, StatusCode};
use serde_json::json;

use super::people::signed_in;
use super::{Guest, slot, text, wish};
use crate::support::{Browser, Program};

#[tokio::test]
async fn no_log_names_a_person_a_cookie_a_key_a_token_or_a_password() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("log");
    let options = [
        "--listen",
        "127.0.0.1:0",
        "--test-hooks",
        "--trusted-hops",
        "1",
    ];
    let mut clinic = Program::start_logging("clinic", &options, File::create(&file).unwrap());
    let guest = Guest::new(&clinic, 1).await;
    let pat = signed_in(&clinic, "pat").await;
    let credentials = json!({ "email": "pat@clinic.test", "password": "hunter2-hunter2" });
    Browser::new(clinic.address())
        .post("/api/login", &[], &credentials)
        .await;
    let held = guest
        .pay("a-key-of-ones-own", &wish("e1", "s60", "10:00"))
        .await
        .json();
    guest.settle(&text(&held, "payment_id"), "succeeded").await;
    guest
        .pay("a-key-of-ones-own", &wish("e1", "s60", "12:00"))
        .await;
    pat.post("/api/verify-email/send", &[], &json!({})).await;
    let mail = pat.get("/_test/mail").await.json();
    let token = text(mail.as_array().unwrap().last().unwrap(), "token");
    pat.post("/api/verify-email", &[], &json!({ "token": token }))
        .await;
    let begun = guest.browser.get("/oauth/start").await;
    let state = begun
        .header("location")
        .rsplit('=')
        .next()
        .unwrap()
        .to_owned();
    // What goes wrong is told at length, and without them too.
    let cut = json!({ "store": "down", "fail": { "webhook": 1 } });
    pat.post("/_test/fault", &[], &cut).await;
    guest
        .pay("a-key-of-ones-own", &wish("e1", "s60", "13:00"))
        .await;
    pat.get("/api/user/me").await;
    let secrets = [
        "example.org".to_owned(),
        "@clinic.test".to_owned(),
        "hunter2".to_owned(),
        "a-key-of-ones-own".to_owned(),
        "whsec_test".to_owned(),
        pat.cookie("id").unwrap(),
        guest.browser.cookie("guest").unwrap(),
        token,
        state,
    ];
    clinic.signal("TERM");
    assert!(clinic.wait().success());
    let log = fs::read_to_string(&file).unwrap();
    assert!(!log.is_empty());
    for secret in secrets {
        let line = log.lines().find(|line| line.contains(&secret));
        assert_eq!(line, None, "{secret}");
    }
}

#[tokio::test]
async fn users_holds_and_bookings_survive_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let db = format!("sqlite:{}", folder.path().join("clinic.db").display());
    let options = [
        "--listen",
        "127.0.0.1:0",
        "--test-hooks",
        "--trusted-hops",
        "1",
    ];
    let options: Vec<&str> = options
        .into_iter()
        .chain(["--secret", "s", "--db", &db])
        .collect();
    let mut clinic = Program::start("clinic", &options);
    let guest = Guest::new(&clinic, 1).await;
    let paid = guest.pay("a", &wish("e1", "s60", "10:00")).await.json();
    guest.settle(&text(&paid, "payment_id"), "succeeded").await;
    let held = guest.pay("b", &wish("e1", "s60", "12:00")).await;
    assert_eq!(held.status, StatusCode::CREATED);
    let ana = signed_in(&clinic, "ana").await;
    let profile = Some(json!({ "name": "Dr Ana" }).to_string());
    ana.send(Method::PUT, "/api/user/profile", &[], profile)
        .await;
    clinic.signal("TERM");
    assert!(clinic.wait().success());
    let clinic = Program::start("clinic", &options);
    let browser = guest.browser.at(clinic.address());
    assert_eq!(slot(&browser, "e1", "s60", "10:00").await, "booked");
    assert_eq!(slot(&browser, "e1", "s60", "12:00").await, "held");
    let mine = browser.get(held.header("location")).await.json();
    assert_eq!(mine["state"], "held");
    assert_eq!(
        browser.get("/api/experts").await.json()[0]["name"],
        "Dr Ana"
    );
}
