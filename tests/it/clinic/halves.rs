//! Nothing half: a client that leaves or a process that ends between a change and what follows it, a database that
//! fails in between, money that comes back before it came, heads and providers of which nothing more is heard.

use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::SqlitePool;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::people::{refused, signed_in, told};
use super::{Guest, advance, alone, hooked, slot, soon, tell, text, wish};
use crate::support::serving::hung_up_on;
use crate::support::{Browser, Program, RedisServer};

async fn fault(browser: &Browser, order: Value) {
    let taken = browser.post("/_test/fault", &[], &order).await;
    assert_eq!(taken.status, StatusCode::NO_CONTENT);
}

/// A clinic whose database others can look into.
async fn open_clinic(folder: &tempfile::TempDir, more: &[&str]) -> (Program, SqlitePool) {
    let db = format!("sqlite:{}", folder.path().join("clinic.db").display());
    let options = hooked(&[&["--secret", "s", "--db", &db][..], more].concat());
    let clinic = Program::start("clinic", &options);
    (clinic, SqlitePool::connect(&db).await.unwrap())
}

/// Sends a request, and hangs up once `done` says that it has come so far.
async fn leave_once(
    browser: &Browser,
    (method, path, body): (Method, &'static str, Value),
    done: impl AsyncFn() -> bool,
) {
    // A connection of its own: nobody else's is cut.
    let own = Browser::new(browser.server());
    own.plant("id", &browser.cookie("id").unwrap());
    let headers = [("idempotency-key", "k")];
    let asking = tokio::spawn(async move {
        own.try_send(method, path, &headers, Some(body.to_string()))
            .await
    });
    soon(async {
        while !done().await {
            tokio::task::yield_now().await;
        }
    })
    .await;
    asking.abort();
    // On a busy machine it may have had its answer.
    drop(asking.await);
}

#[tokio::test]
async fn who_hangs_up_in_the_middle_of_a_change_leaves_it_whole() {
    let folder = tempfile::tempdir().unwrap();
    let (clinic, db) = open_clinic(&folder, &[]).await;
    let (sup, adm2, ana) = (
        signed_in(&clinic, "sup").await,
        signed_in(&clinic, "adm2").await,
        signed_in(&clinic, "ana").await,
    );
    let says = async |user: &str, what: &str| {
        let sql = "select body from clinic_user where id = $1";
        let body: String = sqlx::query_scalar(sql)
            .bind(user)
            .fetch_one(&db)
            .await
            .unwrap();
        body.contains(what)
    };
    let listed = async || ana.get("/api/experts").await.json()[0].clone();
    assert_eq!(listed().await["name"], "Ana");
    assert_eq!(adm2.get("/api/admin/cache/stats").await.status, 200);
    // What follows the change takes its time.
    fault(&sup, json!({ "delay_ms": 300 })).await;
    let roles = json!({ "roles": ["patient"] });
    let change = (Method::POST, "/api/users/adm2/roles", roles);
    leave_once(&sup, change, async || says("adm2", "[\"patient\"]").await).await;
    let profile = json!({ "name": "Dr Ana" });
    let change = (Method::PUT, "/api/user/profile", profile);
    leave_once(&ana, change, async || says("ana", "Dr Ana").await).await;
    fault(&sup, json!({ "delay_ms": 0 })).await;
    soon(async {
        while adm2.get("/api/admin/cache/stats").await.status != StatusCode::FORBIDDEN {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        while listed().await["name"] != "Dr Ana" {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    // Of two steps that follow a change the second is not begun yet when its client leaves.
    let mut seen = ana.open("/api/events?topic=expert:e1:status").await;
    seen.until(":").await;
    fault(&sup, json!({ "delay_ms": 300 })).await;
    let status = json!({ "status": "busy" });
    let change = (Method::POST, "/api/experts/me/status", status);
    leave_once(&ana, change, async || says("ana", "busy").await).await;
    fault(&sup, json!({ "delay_ms": 0 })).await;
    soon(async {
        while listed().await["status"] != "busy" {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    seen.until("\"busy\"").await;
}

#[tokio::test]
async fn an_approval_whose_client_has_left_is_kept_before_the_process_ends() {
    let (redis, folder) = (RedisServer::start().await, tempfile::tempdir().unwrap());
    let store = ["--store", &redis.tcp_url()];
    let (mut clinic, db) = open_clinic(&folder, &store).await;
    let root = signed_in(&clinic, "root").await;
    fault(&root, json!({ "delay_ms": 300 })).await;
    let path = "/api/admin/payment-transfers/approve";
    let wish = json!({ "transfer_id": "tr1" });
    leave_once(&root, (Method::POST, path, wish.clone()), async || {
        let sql = "select state from clinic_transfer where id = 'tr1'";
        let state: String = sqlx::query_scalar(sql).fetch_one(&db).await.unwrap();
        state == "APPROVED"
    })
    .await;
    clinic.signal("TERM");
    let ended = tokio::task::spawn_blocking(move || clinic.wait().code());
    assert_eq!(ended.await.unwrap(), Some(0));
    let (clinic, _) = open_clinic(&folder, &store).await;
    let root = root.at(clinic.address());
    let again = root.post(path, &[("idempotency-key", "k")], &wish).await;
    assert_eq!(told(&again), refused(200, ""), "{}", again.text());
    assert_eq!(again.header("idempotency-replayed"), "true");
}

#[tokio::test]
async fn a_release_whose_client_has_left_is_told_before_the_process_ends() {
    let (redis, folder) = (RedisServer::start().await, tempfile::tempdir().unwrap());
    let store = ["--store", &redis.tcp_url()];
    let (mut clinic, db) = open_clinic(&folder, &store).await;
    let (next, _) = open_clinic(&folder, &store).await;
    let pat = signed_in(&clinic, "pat").await;
    let headers = [("idempotency-key", "b")];
    let wished = wish("e1", "s60", "10:00");
    let held = pat
        .post("/api/create-payment-intent", &headers, &wished)
        .await;
    assert_eq!(held.status, StatusCode::CREATED, "{:?}", held.body);
    let looking = Browser::new(next.address());
    let mut seen = looking.open("/api/events?topic=slots:e1").await;
    seen.until(":").await;
    assert_eq!(slot(&looking, "e1", "s60", "10:00").await, "held");
    fault(&pat, json!({ "delay_ms": 300 })).await;
    let path = format!("/api/reservations/{}", text(&held.json(), "reservation_id"));
    let change = (Method::DELETE, &*path.leak(), Value::Null);
    leave_once(&pat, change, async || {
        let sql = "select count(*) from keep_hold where state <> 1";
        let over: i64 = sqlx::query_scalar(sql).fetch_one(&db).await.unwrap();
        over > 0
    })
    .await;
    clinic.signal("TERM");
    let ended = tokio::task::spawn_blocking(move || clinic.wait().code());
    assert_eq!(ended.await.unwrap(), Some(0));
    soon(seen.until("\"free\"")).await;
    assert_eq!(slot(&looking, "e1", "s60", "10:00").await, "free");
}

#[tokio::test]
async fn money_that_goes_back_after_the_hold_is_over_is_told() {
    let clinic = alone();
    let guest = Guest::new(&clinic, 1).await;
    let held = guest.pay("k", &wish("e1", "s60", "10:00")).await.json();
    let reservation = text(&held, "reservation_id");
    let topic = format!("/api/events?topic=appointment:{reservation}");
    let mut seen = guest.browser.open(&topic).await;
    seen.until(":").await;
    advance(&guest.browser, 3_600).await;
    let payment = text(&held, "payment_id");
    let event = tell(&guest.browser, "1", "refunded", &payment, 3_600).await;
    assert_eq!(event.status, StatusCode::OK, "{:?}", event.body);
    soon(seen.until("\"refunded\"")).await;
}

#[tokio::test]
async fn money_that_is_told_to_be_back_before_it_is_told_to_have_come_books_nothing() {
    let clinic = alone();
    let guest = Guest::new(&clinic, 1).await;
    let held = guest.pay("k", &wish("e1", "s60", "10:00")).await.json();
    let payment = text(&held, "payment_id");
    for (id, kind) in [("1", "refunded"), ("2", "succeeded")] {
        let event = tell(&guest.browser, id, kind, &payment, 0).await;
        assert_eq!(event.status, StatusCode::OK, "{kind}: {:?}", event.body);
        let path = format!("/api/reservations/{}", text(&held, "reservation_id"));
        let mine = guest.browser.get(&path).await.json();
        assert_eq!(mine["state"], "refunded", "{kind}");
        let free = slot(&guest.browser, "e1", "s60", "10:00").await;
        assert_eq!(free, "free", "{kind}");
    }
    let counters = guest.browser.get("/_test/counters").await.json();
    assert_eq!(counters["provider"]["refund"], 0);
}

#[tokio::test]
async fn a_mailed_token_is_good_for_another_try_where_the_database_fails() {
    let folder = tempfile::tempdir().unwrap();
    let (clinic, db) = open_clinic(&folder, &[]).await;
    let pat = signed_in(&clinic, "pat").await;
    pat.post("/api/verify-email/send", &[], &Value::Null).await;
    let mail = pat.get("/_test/mail").await.json();
    let token = text(mail.as_array().unwrap().last().unwrap(), "token");
    let bring = async || {
        let body = json!({ "token": token });
        pat.post("/api/verify-email", &[], &body).await
    };
    let rename = async |sql: &'static str| {
        sqlx::query(sql).execute(&db).await.unwrap();
    };
    rename("alter table clinic_user rename to away").await;
    assert!(bring().await.status.is_server_error());
    rename("alter table away rename to clinic_user").await;
    assert_eq!(told(&bring().await), refused(200, ""));
    assert_eq!(told(&bring().await), refused(400, "TOKEN_INVALID"));
}

#[tokio::test]
async fn a_refusal_that_is_kept_is_given_again_byte_for_byte() {
    let clinic = alone();
    let guest = Guest::new(&clinic, 1).await;
    let late = wish("e1", "s60", "16:30");
    let (first, again) = (guest.pay("k", &late).await, guest.pay("k", &late).await);
    assert_eq!(told(&first), refused(422, "SLOT_NOT_OFFERED"));
    assert_eq!(again.header("idempotency-replayed"), "true");
    assert_eq!((again.status, &again.body), (first.status, &first.body));
    assert_eq!(first.json()["request_id"], first.header("x-request-id"));
    assert_ne!(first.header("x-request-id"), again.header("x-request-id"));
    let root = signed_in(&clinic, "root").await;
    let path = "/api/admin/payment-transfers/approve";
    let key = [("idempotency-key", "k")];
    let wish = json!({ "transfer_id": "tr9" });
    let (first, again) = (
        root.post(path, &key, &wish).await,
        root.post(path, &key, &wish).await,
    );
    assert_eq!(told(&first), refused(404, "NOT_FOUND"));
    assert_eq!(again.header("idempotency-replayed"), "true");
    assert_eq!((again.status, &again.body), (first.status, &first.body));
}

#[tokio::test]
async fn a_provider_that_says_nothing_is_a_502_and_the_slot_is_free() {
    let clinic = Program::start("clinic", &hooked(&["--provider-seconds", "1"]));
    let guest = Guest::new(&clinic, 1).await;
    fault(&guest.browser, json!({ "provider_delay_ms": 3_600_000 })).await;
    let wished = wish("e1", "s60", "10:00");
    let silent = soon(guest.pay("k", &wished)).await;
    assert_eq!(told(&silent), refused(502, "PAYMENT_PROVIDER"));
    assert_eq!(slot(&guest.browser, "e1", "s60", "10:00").await, "free");
    fault(&guest.browser, json!({ "provider_delay_ms": 0 })).await;
    assert_eq!(guest.pay("k", &wished).await.status, StatusCode::CREATED);
}

#[tokio::test]
async fn half_a_head_is_not_waited_for_without_an_end() {
    let clinic = alone();
    let halves = [
        "GET / HTTP/1.1\r\nHost: c\r\n",
        "",
        "P",
        "PRI * H",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ];
    let waiting = halves.map(|half| hung_up_on(clinic.address(), half));
    futures_util::future::join_all(waiting).await;
}

#[tokio::test]
async fn whatever_is_503_is_of_the_type_of_all_503() {
    let folder = tempfile::tempdir().unwrap();
    let (clinic, db) = open_clinic(&folder, &[]).await;
    let guest = Guest::new(&clinic, 1).await;
    // Somebody else writes into the database, for longer than anybody waits for his turn.
    let mut other = db.acquire().await.unwrap();
    sqlx::query("begin immediate")
        .execute(&mut *other)
        .await
        .unwrap();
    let busy = soon(guest.pay("k", &wish("e1", "s60", "10:00"))).await;
    assert_eq!(told(&busy), refused(503, "CONTENTION"));
    let capacity = "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity";
    assert_eq!(text(&busy.json(), "type"), capacity);
}

#[tokio::test]
async fn a_start_that_is_a_breath_beside_the_grid_is_not_offered() {
    let clinic = alone();
    let guest = Guest::new(&clinic, 1).await;
    let mut wished = wish("e1", "s60", "10:00");
    wished["start"] = json!("2030-01-02T10:00:00.0004Z");
    let beside = guest.pay("k", &wished).await;
    assert_eq!(told(&beside), refused(422, "SLOT_NOT_OFFERED"));
    wished["start"] = json!("2030-01-02T10:00:00.000000Z");
    assert_eq!(guest.pay("k2", &wished).await.status, StatusCode::CREATED);
}

#[tokio::test]
async fn no_process_tells_the_store_what_time_it_is() {
    let (redis, folder) = (RedisServer::start().await, tempfile::tempdir().unwrap());
    let db = format!("sqlite:{}", folder.path().join("clinic.db").display());
    let (store, listen) = (redis.tcp_url(), "127.0.0.1:0");
    let options = ["--listen", listen, "--store", &store, "--db", &db];
    let clinic = Program::start("clinic", &options);
    let mut monitor = TcpStream::connect(redis.address()).await.unwrap();
    monitor.write_all(b"MONITOR\r\n").await.unwrap();
    let mut seen = BufReader::new(monitor).lines();
    assert_eq!(seen.next_line().await.unwrap().unwrap(), "+OK");
    let browser = Browser::new(clinic.address());
    let credentials = json!({ "email": "pat@clinic.test", "password": "test" });
    let login = browser.post("/api/login", &[], &credentials).await;
    assert_eq!(login.status, StatusCode::OK);
    let mut raw = redis.raw().await;
    let asked: String = redis::cmd("ECHO")
        .arg("over")
        .query_async(&mut raw)
        .await
        .unwrap();
    assert_eq!(asked, "over");
    let mut scripts = 0;
    while let Some(line) = seen.next_line().await.unwrap() {
        if line.contains("\"ECHO\"") {
            break;
        }
        if !line.contains("EVALSHA") {
            continue;
        }
        scripts += 1;
        // Microseconds since 1970 have sixteen digits until the year 2286.
        let told = line
            .split('"')
            .find(|word| word.len() == 16 && word.bytes().all(|byte| byte.is_ascii_digit()));
        assert_eq!(told, None, "{line}");
    }
    assert!(scripts > 0);
}

#[tokio::test]
async fn a_clock_that_is_moved_beyond_the_end_of_time_stays_there() {
    let clinic = alone();
    let browser = Browser::new(clinic.address());
    for step in [u64::MAX / 2 + 1, 1] {
        let order = json!({ "advance_ms": step });
        let moved = browser.post("/_test/clock", &[], &order).await.json();
        assert_eq!(text(&moved, "now"), "9999-12-31T23:59:59.999Z", "{step}");
    }
}
