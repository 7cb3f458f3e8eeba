//! Sessions on a real server: commands, contents, outages.

use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tower_keep::backend::fallback::Fallback;
use tower_keep::session::SessionLayer;

use super::app::{App, clock, memory};
use crate::support::RedisServer;

#[tokio::test]
async fn each_path_sends_the_commands_it_should() {
    let server = RedisServer::start().await;
    let clock = clock();
    let store = server.store(&clock).await;
    let app = App::new(SessionLayer::new(store.clone()));
    let browser = app.browser();
    let paths = [
        ("/none", 0),
        ("/get/a", 0),
        ("/set/a/1", 1),
        ("/none", 0),
        ("/get/a", 1),
        ("/set/a/2", 1),
        ("/add/b/1", 1),
        ("/login/u1?role=admin", 1),
        ("/role/admin", 1),
        ("/rotate", 1),
        ("/list", 1),
        ("/revoke_others", 1),
        ("/revoke_all", 1),
    ];
    // The first round teaches the server the scripts.
    for round in 0..2 {
        for (path, commands) in paths {
            let before = store.commands();
            let reply = browser.get(path).await;
            assert!(reply.status.is_success(), "{path}: {reply:?}");
            if round == 1 {
                assert_eq!(store.commands() - before, commands, "{path}");
            }
        }
        browser.get("/logout").await;
        // The revocation overtakes no login that begins later.
        clock.advance(Duration::from_secs(5));
    }
}

#[tokio::test]
async fn nothing_in_the_store_opens_a_session() {
    let server = RedisServer::start().await;
    let app = App::new(SessionLayer::new(server.store(&clock()).await));
    let browser = app.browser();
    let mut tokens = Vec::new();
    for path in [
        "/set/cart/1",
        "/login/u1?stamp=hash",
        "/rotate",
        "/login/u1",
        "/set/a/2",
    ] {
        browser.get(path).await;
        tokens.push(browser.token());
    }
    let mut raw = server.raw().await;
    let keys: Vec<Vec<u8>> = redis::cmd("KEYS")
        .arg("*")
        .query_async(&mut raw)
        .await
        .unwrap();
    let mut strings = keys.clone();
    for key in &keys {
        let kind: String = redis::cmd("TYPE")
            .arg(key)
            .query_async(&mut raw)
            .await
            .unwrap();
        let mut read = match kind.as_str() {
            "hash" => redis::cmd("HGETALL"),
            "zset" => redis::cmd("ZRANGE"),
            _ => redis::cmd("GET"),
        };
        read.arg(key);
        if kind == "zset" {
            read.arg(0).arg(-1);
        }
        let values: Vec<Vec<u8>> = match kind.as_str() {
            "string" => vec![read.query_async(&mut raw).await.unwrap()],
            _ => read.query_async(&mut raw).await.unwrap(),
        };
        strings.extend(values);
    }
    assert!(strings.len() > 10, "the dump holds the session");
    let whole = URL_SAFE_NO_PAD.decode(browser.token()).unwrap();
    let (id, mut tries) = (&whole[..16], 0);
    for string in &strings {
        for token in &tokens {
            let secret = &token.as_bytes()[22..];
            assert!(
                !string.windows(secret.len()).any(|part| part == secret),
                "a secret is in the store"
            );
        }
        // Whatever 24 or 40 bytes of it were a secret or a token, in raw form or in text.
        let mut candidates: Vec<String> = Vec::new();
        for part in string.windows(24).take(200) {
            let forged = [id, part].concat();
            candidates.push(tower_keep::core::base64url(&forged));
        }
        for part in string.windows(40).chain(string.windows(54)).take(200) {
            candidates.push(tower_keep::core::base64url(part));
            candidates.push(String::from_utf8_lossy(part).into_owned());
        }
        for candidate in candidates
            .into_iter()
            .filter(|text| text.is_ascii() && !text.contains(|c: char| c.is_control()))
        {
            let thief = app.browser();
            thief.plant(&format!("__Host-id={candidate}"));
            assert_eq!(thief.body("/maybe").await, "nobody");
            tries += 1;
        }
    }
    assert!(tries > 100);
    assert_eq!(browser.body("/me").await, "u1");
}

#[tokio::test]
async fn a_dead_server_is_503_with_a_time_to_come_back_and_never_a_new_visitor() {
    let mut server = RedisServer::start().await;
    let clock = clock();
    let store = Fallback::new(server.store(&clock).await, memory(&clock));
    let app = App::new(SessionLayer::new(store));
    let browser = app.browser();
    browser.get("/login/u1").await;
    let cookie = browser.cookie();
    server.kill();
    for _ in 0..8 {
        let reply = browser.get("/me").await;
        assert_eq!(
            (reply.status.as_u16(), reply.code().as_str()),
            (503, "STORE_UNAVAILABLE")
        );
        let after: u64 = reply.field("retry-after").parse().unwrap();
        assert!((1..=30).contains(&after));
        assert_eq!(browser.cookie(), cookie);
    }
    assert_eq!(browser.status("/none").await, 200);
    assert_eq!(app.browser().body("/me").await, "nobody");
    let begun = Instant::now();
    assert_eq!(browser.status("/me").await, 503);
    assert!(
        begun.elapsed() < Duration::from_millis(200),
        "behind the open breaker nothing waits"
    );
    server.restart();
    let mut reply = browser.get("/me").await;
    let begun = Instant::now();
    while reply.status == 503 && begun.elapsed() < Duration::from_secs(20) {
        tokio::task::yield_now().await;
        reply = browser.get("/me").await;
    }
    assert_eq!(
        reply.body, "nobody",
        "the store was emptied: signed out, no error"
    );
}

#[tokio::test]
async fn a_record_of_a_newer_version_is_left_alone_and_a_damaged_one_is_ended() {
    let server = RedisServer::start().await;
    let store = server.store(&clock()).await;
    let app = App::new(SessionLayer::new(store));
    let mut raw = server.raw().await;
    let hash = async |browser: &super::app::Browser,
                      raw: &mut redis::aio::MultiplexedConnection|
           -> Vec<u8> {
        // The last character of an id in text belongs to the secret in a token.
        let id = browser.token()[..21].to_owned();
        let keys: Vec<Vec<u8>> = redis::cmd("KEYS")
            .arg(format!("*:{id}?"))
            .query_async(raw)
            .await
            .unwrap();
        keys[0].clone()
    };
    for (field, at, byte, status) in [
        ("h", 0, 2, 503),
        ("c", 0, 2, 503),
        ("h", 0, 0, 200),
        ("c", 0, 0, 200),
    ] {
        let browser = app.browser();
        browser.get("/login/u1").await;
        let key = hash(&browser, &mut raw).await;
        let mut value: Vec<u8> = redis::cmd("HGET")
            .arg(&key)
            .arg(field)
            .query_async(&mut raw)
            .await
            .unwrap();
        value[at] = byte;
        let _: i64 = redis::cmd("HSET")
            .arg(&key)
            .arg(field)
            .arg(&value)
            .query_async(&mut raw)
            .await
            .unwrap();
        assert_eq!(browser.status("/me").await, status, "{field} {byte}");
        let left: i64 = redis::cmd("EXISTS")
            .arg(&key)
            .query_async(&mut raw)
            .await
            .unwrap();
        assert_eq!(left, i64::from(status == 503));
    }
}
