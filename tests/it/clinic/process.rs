//! What a process leaves behind: a log without secrets, and a database that the next one goes on with.

use std::fs::{self, File};
use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use serde_json::json;
use sqlx::Row;

use super::people::signed_in;
use super::{Guest, alone, hooked, payment_locks, slot, tell, text, wish};
use crate::support::{Browser, PostgresServer, Program, RedisServer};

#[tokio::test]
async fn no_log_names_a_person_a_cookie_a_key_a_token_or_a_password() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("log");
    let mut clinic = Program::start_logging("clinic", &hooked(&[]), File::create(&file).unwrap());
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
    // What a newcomer sees first is no warning.
    let begun = log.lines().find(|line| line.contains("one scope for all"));
    assert_eq!(begun, None);
    for secret in secrets {
        let line = log.lines().find(|line| line.contains(&secret));
        assert_eq!(line, None, "{secret}");
    }
}

#[tokio::test]
async fn users_holds_and_bookings_survive_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let db = format!("sqlite:{}", folder.path().join("clinic.db").display());
    let options = hooked(&["--secret", "s", "--db", &db]);
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

#[tokio::test]
async fn an_event_whose_process_is_killed_half_way_leaves_neither_a_claim_nor_a_booking() {
    let (redis, postgres) = tokio::join!(RedisServer::start(), PostgresServer::start());
    let (store, db) = (redis.tcp_url(), postgres.database().await);
    let options = hooked(&["--secret", "s", "--store", &store, "--db", &db]);
    let (first, second) = (
        Program::start("clinic", &options),
        Program::start("clinic", &options),
    );
    let guest = Guest::new(&first, 1).await;
    let held = guest.pay("k", &wish("e1", "s60", "10:00")).await.json();
    let payment = text(&held, "payment_id");
    // Somebody else has the payment's lock: the event has its claim, and waits.
    let payments = payment_locks(&store).await;
    let turn = payments.try_acquire(&payment).await.unwrap();
    let half_way = {
        let (browser, payment) = (guest.browser.clone(), payment.clone());
        tokio::spawn(async move {
            // The process dies over it: there may be no answer.
            tokio::spawn(async move { tell(&browser, "evt", "succeeded", &payment, 0).await }).await
        })
    };
    let until = Instant::now() + Duration::from_secs(30);
    let begun = async || {
        let counters = guest.browser.get("/_test/counters").await.json();
        counters["handlers"]["webhook"] == 1
    };
    while !begun().await {
        assert!(Instant::now() < until, "the event never came");
    }
    drop(first);
    drop(half_way.await);
    turn.release().await.unwrap();
    let there = guest.browser.at(second.address());
    assert_eq!(slot(&there, "e1", "s60", "10:00").await, "held");
    // No lease has to end first: time stands still here.
    let redelivered = loop {
        let reply = tell(&there, "evt", "succeeded", &payment, 0).await;
        if reply.status == StatusCode::OK {
            break reply.json();
        }
        // Until the database has seen that the other is gone.
        assert_eq!(reply.code(), "IDEMPOTENCY_IN_PROGRESS");
        assert!(Instant::now() < until, "the claim has stayed");
    };
    assert_eq!(redelivered, json!({ "received": true, "duplicate": false }));
    assert_eq!(slot(&there, "e1", "s60", "10:00").await, "booked");
    let again = tell(&there, "evt", "succeeded", &payment, 0).await;
    assert_eq!(again.json(), json!({ "received": true, "duplicate": true }));
    // What is kept of the event and the booking were written by one transaction.
    let pool = sqlx::PgPool::connect(&db).await.unwrap();
    let sql = "select cast(xmin as text) from clinic_payment where booking_id is not null \
               union all select cast(xmin as text) from keep_idempotency";
    let writers = sqlx::query(sql).fetch_all(&pool).await.unwrap();
    let writers: Vec<String> = writers.iter().map(|row| row.get(0)).collect();
    assert_eq!(writers.len(), 2);
    assert_eq!(writers[0], writers[1]);
}

#[tokio::test]
async fn what_is_measured_is_put_away_by_itself_where_nobody_asks_for_it() {
    let clinic = alone();
    let browser = Browser::new(clinic.address());
    let until = Instant::now() + Duration::from_secs(120);
    loop {
        let metrics = browser.get("/metrics").await;
        let line = metrics
            .text()
            .lines()
            .find_map(|line| line.strip_prefix("clinic_upkeeps_total "));
        // The first is at the start: the second is one that comes again and again.
        if line.is_some_and(|count| count.parse::<u64>().unwrap() >= 2) {
            break;
        }
        assert!(Instant::now() < until, "never: {line:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
