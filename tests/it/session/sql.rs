//! Sessions on SQLite and Postgres: races over two handles, contents, sweeping, outages.

use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tower_keep::backend::sql::{Postgres, SqlStore, Sqlite};
use tower_keep::core::ManualClock;
use tower_keep::session::SessionLayer;

use super::app::{App, clock};
use super::races::{loses_no_write, revives_nothing, rotates_once_and_for_all};
use crate::rate_limit::metered::Metered;
use crate::support::postgres::{PostgresServer, shared};
use crate::support::sql::{execute, number};

/// A handle that waits for its turn longer than a busy machine keeps it waiting.
async fn open(url: &str, clock: &ManualClock) -> SqlStore {
    let patience = Duration::from_secs(60);
    let builder = SqlStore::builder(url)
        .lock_timeout(patience)
        .acquire_timeout(patience);
    builder.clock(clock.clone()).open().await.unwrap()
}

/// A database of either engine, and the folder that one of them lives in.
async fn databases() -> (tempfile::TempDir, [String; 2]) {
    let folder = tempfile::tempdir().unwrap();
    let file = format!("sqlite:{}", folder.path().join("keep.db").display());
    (folder, [file, shared().await.database().await])
}

#[tokio::test(flavor = "multi_thread")]
async fn sql_loses_no_write_of_parallel_requests() {
    let (_folder, urls) = databases().await;
    for url in urls {
        loses_no_write(open(&url, &clock()).await, 10).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sql_revives_nothing_over_two_handles() {
    let (_folder, urls) = databases().await;
    for url in urls {
        let clock = clock();
        let layers = [open(&url, &clock).await, open(&url, &clock).await];
        revives_nothing(layers.map(SessionLayer::new), &clock, 4).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sql_keeps_one_good_cookie_whatever_becomes_of_a_rotation() {
    let (_folder, urls) = databases().await;
    for url in urls {
        let clock = clock();
        rotates_once_and_for_all(open(&url, &clock).await, &clock).await;
    }
}

/// All bytes of all rows.
async fn dump(db: &SqlStore) -> Vec<Vec<u8>> {
    const EACH: &str = "SELECT id, user_id, core, roles, data FROM keep_session";
    type Row = (
        Vec<u8>,
        Option<Vec<u8>>,
        Vec<u8>,
        Option<Vec<u8>>,
        Option<Vec<u8>>,
    );
    let rows: Vec<Row> = if let Some(pool) = db.pool::<Sqlite>() {
        sqlx::query_as(EACH).fetch_all(pool).await.unwrap()
    } else {
        let pool = db.pool::<Postgres>().unwrap();
        sqlx::query_as(EACH).fetch_all(pool).await.unwrap()
    };
    rows.into_iter()
        .flat_map(|(id, user, core, roles, data)| [Some(id), user, Some(core), roles, data])
        .flatten()
        .collect()
}

#[tokio::test]
async fn nothing_in_a_database_opens_a_session() {
    let (_folder, urls) = databases().await;
    for url in urls {
        let db = open(&url, &clock()).await;
        let app = App::new(SessionLayer::new(db.clone()));
        let browser = app.browser();
        let mut tokens = Vec::new();
        for path in ["/set/cart/1", "/login/u1?stamp=hash", "/rotate", "/set/a/2"] {
            browser.get(path).await;
            tokens.push(browser.token());
        }
        let strings = dump(&db).await;
        assert!(strings.len() >= 5, "the dump holds the session");
        let whole = URL_SAFE_NO_PAD.decode(browser.token()).unwrap();
        let mut tries = 0;
        for string in &strings {
            for token in &tokens {
                let raw = URL_SAFE_NO_PAD.decode(token).unwrap();
                for secret in [&token.as_bytes()[22..], &raw[16..]] {
                    let mut parts = string.windows(secret.len());
                    assert!(!parts.any(|part| part == secret), "a secret is stored");
                }
            }
            for part in string.windows(24) {
                let forged = tower_keep::core::base64url(&[&whole[..16], part].concat());
                let thief = app.browser();
                thief.plant(&format!("__Host-id={forged}"));
                assert_eq!(thief.body("/maybe").await, "nobody");
                tries += 1;
            }
        }
        assert!(tries > 100);
        assert_eq!(browser.body("/me").await, "u1");
    }
}

#[tokio::test]
async fn a_row_of_a_newer_version_is_left_alone_and_a_damaged_one_is_ended() {
    let (metered, mut told) = (Metered::start(), 0);
    let (_folder, urls) = databases().await;
    for url in urls {
        let db = open(&url, &clock()).await;
        let app = App::new(SessionLayer::new(db.clone()));
        let damage = |core: &str| match db.pool::<Sqlite>() {
            Some(_) => format!("UPDATE keep_session SET core = x'{core}'"),
            None => format!("UPDATE keep_session SET core = decode('{core}', 'hex')"),
        };
        let other = app.browser();
        for (core, status, left) in [("0200", 503, 1), ("0100ff", 200, 0), ("", 200, 0)] {
            let browser = app.browser();
            for each in [&browser, &other] {
                assert_eq!(each.status("/login/u1").await, 200);
            }
            execute(&db, &damage(core)).await;
            assert_eq!(browser.status("/maybe").await, status, "{core}");
            assert_eq!(other.status("/maybe").await, status, "{core}");
            let rows = number(&db, "SELECT count(*) FROM keep_session").await;
            assert_eq!(rows, 2 * left, "{core}");
            let unread = metered.counter("keep_session_undecodable_total{part=core}");
            assert_eq!(unread > told, status == 200, "{core}: {unread}");
            told = unread;
            execute(&db, "DELETE FROM keep_session").await;
        }
        // A newer row of the same user ends with the others.
        other.get("/login/u1").await;
        execute(&db, &damage("0200")).await;
        let browser = app.browser();
        browser.get("/login/u1").await;
        assert_eq!(browser.body("/list").await.matches("\"id\"").count(), 1);
        assert_eq!(browser.status("/revoke_all").await, 200);
        let live = "SELECT count(*) FROM keep_session WHERE user_id IS NOT NULL";
        assert_eq!(number(&db, live).await, 0);
        assert_eq!(other.body("/maybe").await, "nobody");
    }
}

#[tokio::test]
async fn what_is_over_is_swept_by_those_who_come_later() {
    let (_folder, urls) = databases().await;
    for url in urls {
        let clock = clock();
        let db = open(&url, &clock).await;
        let app = App::new(SessionLayer::new(db.clone()));
        for _ in 0..5 {
            app.browser().get("/set/a/1").await;
            let ended = app.browser();
            ended.get("/login/u1").await;
            ended.get("/revoke_all").await;
            clock.advance(Duration::from_secs(1));
        }
        clock.advance(Duration::from_secs(3 * 86_400));
        let begun = Instant::now();
        loop {
            app.browser().get("/set/a/1").await;
            let over = "SELECT (SELECT count(*) FROM keep_session WHERE expires_at < (SELECT max(expires_at) FROM keep_session)) \
                        + (SELECT count(*) FROM keep_session_mark)";
            if number(&db, over).await == 0 {
                break;
            }
            assert!(
                begun.elapsed() < Duration::from_secs(120),
                "nothing is swept"
            );
        }
        db.close(Duration::from_secs(10)).await;
    }
}

#[tokio::test]
async fn a_killed_postgres_is_503_and_forgets_nobody() {
    let mut server = PostgresServer::start_durable().await;
    let url = server.database().await;
    let patience = Duration::from_secs(1);
    let db = SqlStore::builder(&url)
        .acquire_timeout(patience)
        .open()
        .await;
    let app = App::new(SessionLayer::new(db.unwrap()));
    let browser = app.browser();
    browser.get("/login/u1").await;
    let cookie = browser.cookie();
    server.kill();
    for path in ["/me", "/set/a/1", "/revoke_all"] {
        let reply = browser.get(path).await;
        assert_eq!(reply.status, 503, "{path}");
        let after: u64 = reply.field("retry-after").parse().unwrap();
        assert!((1..=30).contains(&after), "{path}");
        assert_eq!(browser.cookie(), cookie, "{path}");
    }
    assert_eq!(browser.status("/none").await, 200);
    server.restart();
    let begun = Instant::now();
    while browser.status("/me").await == 503 {
        assert!(begun.elapsed() < Duration::from_secs(120));
        tokio::task::yield_now().await;
    }
    assert_eq!(browser.body("/me").await, "u1");
}

#[tokio::test]
async fn damaged_data_is_counted_and_hinders_nothing() {
    let metered = Metered::start();
    let (_folder, urls) = databases().await;
    for (n, url) in (1..).zip(urls) {
        let db = open(&url, &clock()).await;
        let browser = App::new(SessionLayer::new(db.clone())).browser();
        for path in ["/login/u1", "/set/a/1"] {
            assert!(browser.get(path).await.status.is_success(), "{path}");
        }
        let damage = match db.pool::<Sqlite>() {
            Some(_) => "UPDATE keep_session SET data = x'05'",
            None => "UPDATE keep_session SET data = decode('05', 'hex')",
        };
        execute(&db, damage).await;
        assert_eq!(browser.body("/get/a").await, "null");
        let unread = metered.counter("keep_session_undecodable_total{part=entry}");
        assert_eq!(unread, n);
        assert_eq!(browser.body("/me").await, "u1");
    }
}
