//! Sessions on a real server: commands, contents, outages.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::routing::get;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::Request;
use tower::ServiceExt;
use tower_keep::backend::fallback::Fallback;
use tower_keep::backend::redis::RedisStore;
use tower_keep::core::{ManualClock, Timestamp};
use tower_keep::session::store::{
    AuthStamp, Establish, Established, Identity, Loaded, LoginIdentity, Operation, Otherwise, Part,
    Patch, Read, Roles, SessionRef, Sighting, UserId, Value, Verifier,
};
use tower_keep::session::{
    Lifetimes, Session, SessionId, SessionLayer, SessionLimit, SessionStore,
};

use super::app::{App, Browser, clock, memory};
use crate::rate_limit::metered::Metered;
use crate::support::{Proxy, RedisServer};

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
async fn a_read_starts_a_script_only_where_activity_is_due() {
    let server = RedisServer::start().await;
    let clock = clock();
    let store = server.store(&clock).await;
    let app = App::new(SessionLayer::new(store.clone()));
    let (browser, mut raw) = (app.browser(), server.raw().await);
    browser.get("/set/a/1").await;
    clock.advance(Duration::from_secs(61));
    // Teaches the server the script.
    browser.get("/get/a").await;
    let (scripts, sent) = (server.scripts().await, store.commands());
    for _ in 0..5 {
        assert_eq!(browser.body("/get/a").await, "1");
        clock.advance(Duration::from_secs(12));
    }
    assert_eq!(server.scripts().await, scripts);
    assert_eq!(store.commands() - sent, 5);
    // A minute has passed, to the millisecond; then it is over.
    assert_eq!(browser.body("/get/a").await, "1");
    assert_eq!(store.commands() - sent, 6);
    clock.advance(Duration::from_millis(1));
    for _ in 0..3 {
        assert_eq!(browser.body("/get/a").await, "1");
    }
    // Looked at, recorded; and looked at twice.
    assert_eq!(store.commands() - sent, 6 + 2 + 2);
    // One that is not there costs no script either.
    let _: () = redis::cmd("FLUSHDB").query_async(&mut raw).await.unwrap();
    let (scripts, sent) = (server.scripts().await, store.commands());
    assert_eq!(browser.body("/get/a").await, "null");
    assert_eq!(server.scripts().await, scripts);
    assert_eq!(store.commands() - sent, 1);
}

#[tokio::test]
async fn a_look_and_the_script_behind_it_wait_no_longer_together_than_one_call() {
    const TIMEOUT: Duration = Duration::from_secs(2);
    let server = RedisServer::start().await;
    let (clock, proxy) = (clock(), Proxy::before(server.address()).await);
    let builder = RedisStore::builder(&format!("redis://{}/", proxy.address()));
    let builder = builder.clock(clock.clone()).timeout(TIMEOUT);
    let store = builder.open().await.unwrap();
    let app = App::new(SessionLayer::new(store.clone()));
    let browser = app.browser();
    browser.get("/set/a/1").await;
    assert_eq!(browser.body("/get/a").await, "1");
    // Activity is due: the look, which takes half of the time, leads to the script, which is never answered.
    clock.advance(Duration::from_secs(61));
    proxy.delay(TIMEOUT / 2);
    let asked = proxy.requests();
    let silence = async {
        while proxy.requests() == asked {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        tokio::time::sleep(TIMEOUT / 4).await;
        proxy.delay(Duration::from_secs(60));
        // On one runtime: whatever holds up the answer's timer holds up this one, too.
        tokio::time::sleep(TIMEOUT).await;
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        biased;
        reply = browser.get("/get/a") => assert!(reply.status == 503 || reply.status == 200),
        () = silence => panic!("the script has waited a whole timeout of its own"),
    }
}

#[tokio::test]
async fn a_server_that_was_demoted_is_not_believed() {
    let server = RedisServer::start().await;
    let clock = clock();
    let store = server.store(&clock).await;
    let app = App::new(SessionLayer::new(store.clone()));
    let (browser, mut raw) = (app.browser(), server.raw().await);
    browser.get("/set/a/1").await;
    assert_eq!(browser.body("/get/a").await, "1");
    let replicate = |of: [&'static str; 2]| redis::cmd("REPLICAOF").arg(&of).to_owned();
    let _: () = replicate(["127.0.0.1", "1"])
        .query_async(&mut raw)
        .await
        .unwrap();
    assert_eq!(browser.status("/get/a").await, 503);
    let _: () = replicate(["NO", "ONE"])
        .query_async(&mut raw)
        .await
        .unwrap();
    let began = Instant::now();
    while browser.status("/get/a").await != 200 {
        assert!(began.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(browser.body("/get/a").await, "1");
}

#[tokio::test]
async fn a_server_that_takes_no_writes_still_tells_of_sessions() {
    let server = RedisServer::start().await;
    let clock = clock();
    let store = server.store(&clock).await;
    let app = App::new(SessionLayer::new(store.clone()));
    let (browser, mut raw) = (app.browser(), server.raw().await);
    browser.get("/set/a/1").await;
    // More replicas are asked for than there are: NOREPLICAS.
    let set = redis::cmd("CONFIG")
        .arg(&["SET", "min-replicas-to-write", "1"])
        .to_owned();
    let _: () = set.query_async(&mut raw).await.unwrap();
    assert_eq!(browser.body("/get/a").await, "1");
    assert_eq!(browser.status("/set/a/2").await, 503);
    assert_eq!(browser.body("/get/a").await, "1");
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
        let listed: serde_json::Value = serde_json::from_str(&browser.body("/list").await).unwrap();
        let own = listed.as_array().unwrap().iter();
        let own = own.clone().find(|one| one["current"] == true).unwrap();
        let id = own["id"].as_str().unwrap().to_owned();
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
        if status == 503 {
            // Whose it is cannot be read: it is neither ended nor denied.
            let other = app.browser();
            other.get("/login/u1").await;
            assert_eq!(other.status(&format!("/revoke/{id}")).await, 503);
            let left: i64 = redis::cmd("EXISTS")
                .arg(&key)
                .query_async(&mut raw)
                .await
                .unwrap();
            assert_eq!(left, 1);
            // Nor is its end owed, which would hold up all others of its home.
            assert_eq!(browser.status("/logout").await, 503);
            assert_eq!(app.browser().status("/login/u1").await, 200);
        }
    }
}

#[tokio::test]
async fn a_damaged_tombstone_ends_its_session_and_hinders_no_revocation() {
    let server = RedisServer::start().await;
    let app = App::new(SessionLayer::new(server.store(&clock()).await));
    let mut raw = server.raw().await;
    let (browser, other) = (app.browser(), app.browser());
    for at in [&browser, &other] {
        assert_eq!(at.status("/login/u1").await, 200);
    }
    let key = key_of(&browser, &mut raw).await;
    let damage = async |raw: &mut redis::aio::MultiplexedConnection| {
        let mut set = redis::cmd("HSET");
        set.arg(&key).arg("t").arg("x");
        set.exec_async(raw).await.unwrap();
    };
    damage(&mut raw).await;
    assert_eq!(other.status("/revoke_others").await, 200);
    damage(&mut raw).await;
    let reply = browser.get("/me").await;
    assert_eq!((reply.status.as_u16(), &*reply.body), (200, "nobody"));
    assert_eq!(other.body("/me").await, "u1");
}

/// What version 0.1 writes: whoever changes these bytes ends all sessions, or takes the next format.
#[tokio::test]
async fn the_first_format_is_written_and_read_as_ever() {
    let server = RedisServer::start().await;
    let clock = clock();
    let store = server.store(&clock).await;
    let login = LoginIdentity {
        user: UserId::try_new("u1").unwrap(),
        roles: Roles::try_new(["admin"]).unwrap(),
        stamp: Some(AuthStamp::from_bytes([4; 16])),
        remembered: true,
        revoke_others: false,
    };
    let value = Value {
        format: 3,
        json: "[1,2]".into(),
    };
    let at = SessionRef {
        id: SessionId::from_bytes([9; 16]),
        verifier: Verifier::from_bytes([1; 32]),
    };
    let order = Establish {
        current: None,
        fresh: at.id,
        verifier: at.verifier,
        identity: Identity::Set(Box::new(login)),
        otherwise: Otherwise::Create,
        lifetimes: Lifetimes::DEFAULT,
        extended: Duration::from_secs(3_600),
        limit: SessionLimit::reject(1),
        patch: Patch {
            clear: false,
            operations: [("cart".into(), Operation::Set(value))]
                .into_iter()
                .collect(),
            limit: 100,
            sighting: Sighting::new(None, "192.0.2.7".parse().ok()),
        },
        age: Duration::ZERO,
    };
    let Established::Done(done) = store.establish(order).await.unwrap() else {
        panic!("it is established");
    };
    let mut raw = server.raw().await;
    let keys: Vec<String> = redis::cmd("KEYS")
        .arg(format!("*:{}", at.id))
        .query_async(&mut raw)
        .await
        .unwrap();
    let mut fields: BTreeMap<String, Vec<u8>> = redis::cmd("HGETALL")
        .arg(&keys[0])
        .query_async(&mut raw)
        .await
        .unwrap();
    let now = Timestamp::of(&clock).as_millis();
    let numbers = [
        0,
        0,
        now,
        now,
        now,
        now + 86_400_000,
        900_000,
        3_600_000,
        now,
        1,
        1,
        9,
    ];
    let header = [
        &[1][..],
        &[1; 32],
        &[0; 32],
        &numbers.map(u64::to_be_bytes).concat(),
    ]
    .concat();
    let seen = [&[0, 0, 0, 4, 192, 0, 2, 7][..], &[0; 12]].concat();
    let core = [&[1][..], &seen, &[1], &[4; 16], &[1]].concat();
    let cart = [&1_u64.to_be_bytes()[..], &[3], b"[1,2]"].concat();
    let index = fields.remove("i").unwrap();
    let written: Vec<(&str, &[u8])> = fields.iter().map(|(k, v)| (&**k, &**v)).collect();
    let expected: [(&str, &[u8]); 5] = [
        ("c", &core),
        ("d:cart", &cart),
        ("h", &header),
        ("r", b"[\"admin\"]"),
        ("u", b"u1"),
    ];
    assert_eq!(written, expected);
    let score: u64 = redis::cmd("ZSCORE")
        .arg(&index)
        .arg(&keys[0])
        .query_async(&mut raw)
        .await
        .unwrap();
    assert_eq!(score, now + 86_400_000);
    let read = Read {
        part: Part::Whole,
        renew: None,
    };
    let Loaded::Live(live) = SessionStore::load(&store, at, read).await.unwrap() else {
        panic!("it is live");
    };
    assert_eq!(live.record, done.record);
    assert_eq!(live.data.unwrap().entries()[0].value.json, "[1,2]");
}

/// The key of a browser's session.
pub async fn key_of(browser: &Browser, raw: &mut redis::aio::MultiplexedConnection) -> Vec<u8> {
    // The last character of an id in text belongs to the secret in a token.
    let id = browser.token()[..21].to_owned();
    let mut keys: Vec<Vec<u8>> = redis::cmd("KEYS")
        .arg(format!("*:{id}?"))
        .query_async(raw)
        .await
        .unwrap();
    keys.remove(0)
}

#[tokio::test]
async fn a_damaged_value_is_none_and_hinders_nothing() {
    let server = RedisServer::start().await;
    let app = App::new(SessionLayer::new(server.store(&clock()).await));
    let browser = app.browser();
    browser.get("/set/a/1").await;
    browser.get("/set/b/2").await;
    browser.get("/login/u1").await;
    let mut raw = server.raw().await;
    let key = key_of(&browser, &mut raw).await;
    let damage = async |field: &[u8], raw: &mut redis::aio::MultiplexedConnection| {
        let _: i64 = redis::cmd("HSET")
            .arg(&key)
            .arg(field)
            .arg(b"xy")
            .query_async(raw)
            .await
            .unwrap();
    };
    let metered = Metered::start();
    let unread = || metered.counter("keep_session_undecodable_total{part=entry}");
    damage(b"d:a", &mut raw).await;
    damage(b"d:\xff", &mut raw).await;
    assert_eq!(browser.body("/get/a").await, "null");
    assert_eq!(unread(), 2);
    // A cut-off that is no time cuts nothing off.
    let home = key.iter().position(|byte| *byte == b'}').unwrap();
    let _: () = redis::cmd("SET")
        .arg([&key[..=home], b":cutoff"].concat())
        .arg("x")
        .query_async(&mut raw)
        .await
        .unwrap();
    assert_eq!(browser.body("/get/a").await, "null");
    assert_eq!(browser.body("/get/b").await, "2");
    for path in ["/update/a", "/add/a/1", "/set/a/7"] {
        damage(b"d:a", &mut raw).await;
        assert!(browser.get(path).await.status.is_success(), "{path}");
        assert_ne!(browser.body("/get/a").await, "null", "{path}");
    }
    damage(b"d:a", &mut raw).await;
    assert_eq!(browser.status("/remove/a").await, 204);
    assert_eq!(browser.status("/clear").await, 204);
    let fields: Vec<Vec<u8>> = redis::cmd("HKEYS")
        .arg(&key)
        .query_async(&mut raw)
        .await
        .unwrap();
    assert!(!fields.iter().any(|field| field.starts_with(b"d:")));
    // Roles that are no list: nobody's session, and it hides no other one.
    let other = app.browser();
    other.get("/login/u1").await;
    damage(b"r", &mut raw).await;
    let reply = browser.get("/me").await;
    assert_eq!((reply.status.as_u16(), &*reply.body), (200, "nobody"));
    assert!(reply.removes_cookie());
    let list: Vec<serde_json::Value> = serde_json::from_str(&other.body("/list").await).unwrap();
    assert_eq!(list.len(), 1);
}

#[tokio::test]
async fn a_patch_of_more_keys_than_lua_unpacks_at_once_is_one_step() {
    let server = RedisServer::start().await;
    // A step as large as this takes its time where the machine is busy.
    let builder = server.builder("large").clock(clock());
    let store = builder.timeout(Duration::from_secs(20)).open().await;
    let layer = SessionLayer::new(store.unwrap());
    let app = App::new(layer.clone());
    let routes = Router::new()
        .route(
            "/remove",
            get(async |session: Session| {
                for n in 0..8_500 {
                    session.remove(format!("k{n}")).unwrap();
                }
                session.insert("b", &2).unwrap();
            }),
        )
        .layer(layer);
    let browser = app.browser();
    browser.get("/set/k8499/1").await;
    let request = Request::get("/remove").header("cookie", browser.cookie().unwrap());
    let sent = routes.oneshot(request.body(Body::empty()).unwrap());
    assert_eq!(sent.await.unwrap().status(), 200);
    let (gone, there) = (
        browser.body("/get/k8499").await,
        browser.body("/get/b").await,
    );
    assert_eq!((gone.as_str(), there.as_str()), ("null", "2"));
}

/// A server that is asked through a proxy, and the handles of two processes.
pub async fn two_nodes(
    server: &RedisServer,
    proxy: &Proxy,
    clock: &ManualClock,
) -> [RedisStore; 2] {
    let prefix = crate::support::redis::fresh_prefix();
    let urls = [format!("redis://{}/", proxy.address()), server.url()];
    let mut stores = Vec::new();
    for url in urls {
        let builder = RedisStore::builder(&url).prefix(&prefix);
        let builder = builder
            .clock(clock.clone())
            .timeout(Duration::from_millis(200));
        stores.push(builder.open().await.unwrap());
    }
    stores.try_into().unwrap()
}

#[tokio::test]
async fn a_revocation_that_failed_goes_before_any_other_call_once_the_store_is_back() {
    let server = RedisServer::start().await;
    let proxy = Proxy::before(server.address()).await;
    let clock = clock();
    let [store, _] = two_nodes(&server, &proxy, &clock).await;
    let app = App::new(SessionLayer::new(store));
    let (phone, laptop, other) = (app.browser(), app.browser(), app.browser());
    for (browser, user) in [(&phone, "u1"), (&laptop, "u1"), (&other, "u2")] {
        assert_eq!(browser.status(&format!("/login/{user}")).await, 200);
    }
    let thief = laptop.copy();
    proxy.refuse(true);
    assert_eq!(phone.status("/revoke_others").await, 503);
    let logout = other.get("/logout").await;
    assert_eq!(
        (logout.status.as_u16(), logout.removes_cookie()),
        (503, true)
    );
    proxy.refuse(false);
    let begun = Instant::now();
    // The first answer that is none of 503 already comes after the revocation.
    let mut reply = thief.get("/me").await;
    while reply.status == 503 && begun.elapsed() < Duration::from_secs(30) {
        reply = thief.get("/me").await;
    }
    assert_eq!((reply.status.as_u16(), &*reply.body), (200, "nobody"));
    assert_eq!(phone.body("/me").await, "u1");
}

#[tokio::test]
async fn a_revocation_that_is_refused_for_a_while_is_not_forgotten() {
    let server = RedisServer::start().await;
    let proxy = Proxy::before(server.address()).await;
    let clock = clock();
    let [store, _] = two_nodes(&server, &proxy, &clock).await;
    let app = App::new(SessionLayer::new(store));
    let (browser, other) = (app.browser(), app.browser());
    browser.get("/login/u1").await;
    other.get("/login/u2").await;
    let thief = browser.copy();
    proxy.refuse(true);
    assert_eq!(browser.status("/logout").await, 503);
    let mut raw = server.raw().await;
    let rights = async |raw: &mut redis::aio::MultiplexedConnection, rights: &str| {
        let mut set = redis::cmd("ACL");
        set.arg(&["SETUSER", "default", rights]);
        set.exec_async(raw).await.unwrap();
    };
    rights(&mut raw, "-@write").await;
    proxy.refuse(false);
    let begun = Instant::now();
    let refusals = async |raw: &mut redis::aio::MultiplexedConnection| {
        let mut log = redis::cmd("ACL");
        let log: Vec<redis::Value> = log.arg("LOG").query_async(raw).await.unwrap();
        log.len()
    };
    while refusals(&mut raw).await == 0 {
        assert!(begun.elapsed() < Duration::from_secs(30), "it was sent");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for _ in 0..3 {
        assert_eq!(thief.status("/me").await, 503, "it still has to end");
    }
    rights(&mut raw, "+@all").await;
    let mut reply = thief.get("/me").await;
    while reply.status == 503 && begun.elapsed() < Duration::from_secs(30) {
        reply = thief.get("/me").await;
    }
    assert_eq!((reply.status.as_u16(), &*reply.body), (200, "nobody"));
    assert_eq!(other.body("/me").await, "u2");
}

#[tokio::test]
async fn a_revocation_that_failed_is_sent_again_also_where_nobody_asks() {
    let server = RedisServer::start().await;
    let proxy = Proxy::before(server.address()).await;
    let clock = clock();
    let [store, elsewhere] = two_nodes(&server, &proxy, &clock).await;
    let (app, node) = (
        App::new(SessionLayer::new(store)),
        App::new(SessionLayer::new(elsewhere)),
    );
    let browser = app.browser();
    browser.get("/login/u1").await;
    let stolen = browser.copy().at(&node);
    // It goes out, and its answer is lost.
    proxy.swallow_replies(true);
    proxy.refuse(true);
    assert_eq!(browser.status("/logout").await, 503);
    assert_eq!(stolen.body("/me").await, "u1", "another node still sees it");
    proxy.swallow_replies(false);
    proxy.refuse(false);
    let begun = Instant::now();
    while stolen.body("/maybe").await == "u1" {
        assert!(
            begun.elapsed() < Duration::from_secs(30),
            "it was never sent again"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn first_questions_at_once_share_one_load() {
    let server = RedisServer::start().await;
    let store = server.store(&clock()).await;
    let layer = SessionLayer::new(store.clone());
    let routes = Router::new().route(
        "/all",
        get(async |session: Session| {
            let (user, left, again) = tokio::join!(
                session.principal(),
                session.expires_in(),
                session.principal()
            );
            assert!(left.unwrap().is_some());
            assert_eq!(user.unwrap(), again.unwrap());
        }),
    );
    let (app, routes) = (App::new(layer.clone()), routes.layer(layer));
    let browser = app.browser();
    browser.get("/login/u1").await;
    for _ in 0..2 {
        let before = store.commands();
        let request = Request::get("/all").header("cookie", browser.cookie().unwrap());
        let sent = routes.clone().oneshot(request.body(Body::empty()).unwrap());
        assert_eq!(sent.await.unwrap().status(), 200);
        assert_eq!(store.commands() - before, 1);
    }
}

#[tokio::test]
async fn a_session_and_what_belongs_to_it_take_no_more_than_1_kib() {
    let server = RedisServer::start().await;
    let app = App::new(SessionLayer::new(server.store(&clock()).await));
    let browser = app.browser();
    assert_eq!(browser.status("/login/u1?role=admin&stamp=x").await, 200);
    let mut raw = server.raw().await;
    let keys: Vec<Vec<u8>> = redis::cmd("KEYS")
        .arg("*")
        .query_async(&mut raw)
        .await
        .unwrap();
    assert!(!keys.is_empty());
    let mut sum = 0;
    for key in &keys {
        let mut usage = redis::cmd("MEMORY");
        usage.arg("USAGE").arg(key);
        sum += usage.query_async::<u64>(&mut raw).await.unwrap();
    }
    assert!(sum <= 1_024, "{sum} bytes in {} keys", keys.len());
}
