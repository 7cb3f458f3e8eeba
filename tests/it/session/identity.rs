//! Login, rotation, devices, rights, times.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::Path;
use axum::routing::get;
use http::Request;
use parking_lot::Mutex;
use serde_json::Value;
use tower::ServiceExt;
use tower_keep::backend::memory::MemoryStore;
use tower_keep::session::{
    EndCause, LoggedIn, Session, SessionEventKind, SessionLayer, SessionLimit, SessionStore,
};

use super::app::{App, clock, memory};
use crate::support::redis::shared;

const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[tokio::test]
async fn a_login_never_adopts_what_the_client_brought() {
    let app = App::new(SessionLayer::new(memory(&clock())));
    let foreign = app.browser();
    foreign.get("/login/victim").await;
    let dead = app.browser();
    dead.get("/login/u1").await;
    let dead_cookie = dead.cookie().unwrap();
    dead.get("/logout").await;
    let own_secret = "A".repeat(32);
    let foreign_id = &foreign.token()[..22];
    for planted in [
        format!("__Host-id={}", "A".repeat(54)),
        dead_cookie,
        format!("__Host-id={foreign_id}{own_secret}"),
    ] {
        let browser = app.browser();
        browser.plant(&planted);
        assert_eq!(browser.status("/login/u1").await, 200);
        assert_ne!(browser.cookie().unwrap(), planted);
        assert_ne!(
            browser.token()[..22],
            planted["__Host-id=".len()..][..22],
            "a new id"
        );
        assert_eq!(browser.body("/me").await, "u1");
        let attacker = app.browser();
        attacker.plant(&planted);
        assert_eq!(attacker.body("/me").await, "nobody");
    }
    assert_eq!(
        foreign.body("/me").await,
        "victim",
        "a wrong secret ends nothing"
    );
}

#[tokio::test]
async fn a_login_is_as_old_as_its_request_whenever_the_session_was_first_asked() {
    let layer = SessionLayer::new(MemoryStore::default());
    let (app, directory) = (App::new(layer.clone()), layer.directory());
    let (browser, door) = (app.browser(), Arc::clone(&app.door));
    let late = tokio::spawn(async move { browser.status("/slow_login/u1").await });
    while door.waiting.load(Ordering::SeqCst) == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    directory.revoke_all("u1").await.unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    door.open();
    assert_eq!(late.await.unwrap(), 401);
}

#[tokio::test]
async fn at_the_limit_the_oldest_or_the_longest_idle_session_gives_way() {
    for (limit, gone) in [
        (SessionLimit::evict_oldest(3), 0),
        (SessionLimit::evict_longest_idle(3), 1),
    ] {
        let clock = clock();
        let redis = shared().await.store(&clock).await;
        let stores: [Arc<dyn SessionStore>; 2] = [Arc::new(memory(&clock)), Arc::new(redis)];
        for store in stores {
            let app = App::new(SessionLayer::new(store).limit(limit));
            let browsers = [(); 4].map(|()| app.browser());
            for browser in &browsers[..3] {
                browser.get("/login/u1").await;
                clock.advance(seconds(10));
            }
            clock.advance(seconds(60));
            // The first and the third are used again.
            for at in [2, 0] {
                assert_eq!(browsers[at].body("/me").await, "u1");
                clock.advance(seconds(1));
            }
            browsers[3].get("/login/u1").await;
            for (at, browser) in browsers.iter().enumerate() {
                let expected = if at == gone { "nobody" } else { "u1" };
                assert_eq!(browser.body("/me").await, expected, "{limit:?}: {at}");
            }
        }
    }
}

#[tokio::test]
async fn who_ends_sessions_and_logs_in_again_in_one_request_is_not_overtaken_by_that() {
    let redis = shared().await.store_with("renewed").await;
    let stores: [Arc<dyn SessionStore>; 2] = [Arc::new(MemoryStore::default()), Arc::new(redis)];
    for store in stores {
        let app = App::new(SessionLayer::new(store));
        let (browser, elsewhere) = (app.browser(), app.browser());
        for round in 0..10 {
            for browser in [&browser, &elsewhere] {
                // A login of before is overtaken for as long as the moment lasts.
                let began = Instant::now();
                while browser.status("/login/u1").await != 200 {
                    assert!(began.elapsed() < seconds(20));
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
            let what = if round % 2 == 0 { "others" } else { "all" };
            let reply = browser.get(&format!("/login/u1?after={what}")).await;
            assert_eq!(reply.status, 200, "{round}");
            assert_eq!(browser.body("/me").await, "u1");
            assert_eq!(elsewhere.body("/me").await, "nobody");
        }
    }
}

#[tokio::test]
async fn the_anonymous_token_opens_nothing_after_a_login_and_the_cart_goes_along() {
    let app = App::new(SessionLayer::new(memory(&clock())));
    let browser = app.browser();
    browser.get("/set/cart/7").await;
    let before = browser.copy();
    browser.get("/login/u1").await;
    assert_eq!(browser.body("/get/cart").await, "7");
    let old = before.get("/get/cart").await;
    assert_eq!(old.body, "null");
    assert!(
        !old.removes_cookie(),
        "the browser may already hold the newer cookie"
    );
    browser.get("/login/u1").await;
    assert_eq!(
        browser.body("/get/cart").await,
        "7",
        "the same user's data stays"
    );
    browser.get("/login/u2").await;
    assert_eq!(
        browser.body("/get/cart").await,
        "null",
        "another user's does not"
    );
    assert_eq!(browser.body("/me").await, "u2");
}

#[tokio::test]
async fn the_list_shows_devices_without_credentials_and_ends_one() {
    let app = App::new(SessionLayer::new(memory(&clock())));
    let (laptop, phone, stranger) = (app.browser(), app.browser(), app.browser());
    let agent = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0";
    laptop
        .send(http::Request::get("/login/u1").header("user-agent", agent))
        .await;
    phone.get("/login/u1").await;
    stranger.get("/login/u2").await;
    let text = laptop.body("/list").await;
    let list: Vec<Value> = serde_json::from_str(&text).unwrap();
    assert_eq!(list.len(), 2);
    let current: Vec<&Value> = list.iter().filter(|one| one["current"] == true).collect();
    assert_eq!(current.len(), 1);
    assert_eq!(current[0]["device"], "Firefox on Linux");
    for browser in [&laptop, &phone] {
        assert!(
            !text.contains(&browser.token()[22..]),
            "no secret in the list"
        );
    }
    let other = list.iter().find(|one| one["current"] == false).unwrap()["id"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(
        stranger.status(&format!("/revoke/{other}")).await,
        404,
        "not theirs"
    );
    assert_eq!(phone.body("/me").await, "u1");
    assert_eq!(laptop.status(&format!("/revoke/{other}")).await, 204);
    assert_eq!(phone.status("/user").await, 401);
    assert_eq!(laptop.status(&format!("/revoke/{other}")).await, 404);
    let own = current[0]["id"].as_str().unwrap();
    let end = laptop.get(&format!("/revoke/{own}")).await;
    assert!(end.status.is_success() && end.removes_cookie());
    assert_eq!(laptop.status("/user").await, 401);
}

#[tokio::test]
async fn a_password_change_ends_all_others_in_the_same_step() {
    let app = App::new(SessionLayer::new(memory(&clock())));
    let (own, other) = (app.browser(), app.browser());
    own.get("/login/u1").await;
    other.get("/login/u1").await;
    let stolen = own.copy();
    assert_eq!(own.status("/login/u1?others=1&stamp=new").await, 200);
    assert_eq!(
        (
            own.status("/user").await,
            other.status("/user").await,
            stolen.status("/user").await
        ),
        (200, 401, 401)
    );
    assert_eq!(own.status("/stamp/new").await, 204);
    let changed = own.get("/stamp/newer").await;
    assert!(changed.removes_cookie());
    assert_eq!(
        (changed.status.as_u16(), own.status("/user").await),
        (401, 401)
    );
}

#[tokio::test]
async fn a_login_that_began_before_a_revocation_is_refused() {
    let clock = clock();
    let layer = SessionLayer::new(memory(&clock));
    let (directory, app) = (layer.directory(), App::new(layer));
    let late = app.browser();
    let waiting = tokio::spawn(async move { (late.get("/slow_login/u1").await, late) });
    while app.door.waiting.load(std::sync::atomic::Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    directory.revoke_all("u1").await.unwrap();
    app.door.open();
    let (refused, late) = waiting.await.unwrap();
    assert_eq!(
        (refused.status.as_u16(), refused.code().as_str()),
        (401, "SESSION_REQUIRED")
    );
    assert_eq!(late.cookie(), None);
    assert!(
        directory.list("u1").await.unwrap().is_empty(),
        "no row is left"
    );
    clock.advance(seconds(5));
    assert_eq!(late.status("/login/u1").await, 200);
}

#[tokio::test]
async fn rights_that_are_taken_away_are_gone_with_the_next_request_of_every_session() {
    let clock = clock();
    let layer = SessionLayer::new(memory(&clock));
    let (directory, app) = (layer.directory(), App::new(layer.clone()));
    let node = App::new(layer);
    let browser = app.browser();
    browser.get("/login/u1?role=admin").await;
    assert_eq!(browser.at(&node).status("/role/admin").await, 204);
    assert_eq!(directory.assign_roles("u1", ["guest"]).await.unwrap(), 1);
    assert_eq!(browser.at(&node).status("/role/admin").await, 403);
    assert_eq!(browser.status("/role/guest").await, 204);
    directory.revoke_everyone().await.unwrap();
    assert_eq!(browser.status("/user").await, 401);
}

#[tokio::test]
async fn a_rejecting_limit_answers_409_and_a_login_again_is_not_counted_twice() {
    let clock = clock();
    let app = App::new(SessionLayer::new(memory(&clock)).limit(SessionLimit::reject(2)));
    let (a, b, c) = (app.browser(), app.browser(), app.browser());
    for browser in [&a, &b, &a] {
        assert_eq!(browser.status("/login/u1").await, 200);
    }
    let refused = c.get("/login/u1").await;
    assert_eq!(
        (refused.status.as_u16(), refused.code().as_str()),
        (409, "SESSION_LIMIT")
    );
    b.get("/logout").await;
    assert_eq!(c.status("/login/u1").await, 200);
}

#[tokio::test]
async fn times_are_exact_and_polling_keeps_nothing_alive() {
    let clock = clock();
    let layer = SessionLayer::new(memory(&clock)).passive(|parts| parts.uri.path() == "/expires");
    let app = App::new(layer);
    let (poller, visitor, remembered) = (app.browser(), app.browser(), app.browser());
    poller.get("/login/u1").await;
    visitor.get("/login/u2").await;
    let reply = remembered.get("/login/u3?remember=2592000").await;
    assert!(reply.field("set-cookie").ends_with("Max-Age=2592000"));
    for _ in 0..14 {
        clock.advance(seconds(60));
        assert_ne!(poller.body("/expires").await, "null");
    }
    assert_eq!(visitor.body("/me").await, "u2");
    clock.advance(Duration::from_millis(59_999));
    assert_eq!(
        poller.body("/expires").await,
        "1",
        "one millisecond is left"
    );
    clock.advance(Duration::from_millis(1));
    assert_eq!(
        poller.body("/expires").await,
        "null",
        "over at exactly 900 s"
    );
    assert_eq!(visitor.body("/me").await, "u2");
    clock.advance(seconds(29 * 86_400));
    assert_eq!(visitor.status("/user").await, 401);
    assert_eq!(remembered.body("/me").await, "u3");
    let rotated = remembered.get("/rotate").await;
    let left = 2_592_000 - 900 - 29 * 86_400;
    assert!(
        rotated
            .field("set-cookie")
            .ends_with(&format!("Max-Age={left}")),
        "{rotated:?}"
    );
}

#[tokio::test]
async fn the_life_of_a_session_is_told_after_it_happened() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = Arc::clone(&told);
    let layer =
        SessionLayer::new(memory(&clock())).on_event(move |event| tell.lock().push(event.kind));
    let app = App::new(layer);
    let browser = app.browser();
    for path in [
        "/set/a/1",
        "/login/u1",
        "/login/u1",
        "/rotate",
        "/login/u2",
        "/logout",
    ] {
        browser.get(path).await;
    }
    use SessionEventKind as Kind;
    let expected = [
        Kind::Created,
        Kind::LoggedIn(LoggedIn::First),
        Kind::LoggedIn(LoggedIn::Again),
        Kind::Rotated,
        Kind::LoggedIn(LoggedIn::Switched),
        Kind::Ended(EndCause::Logout),
    ];
    assert_eq!(*told.lock(), expected);
}

#[tokio::test]
async fn data_is_bounded_and_a_refused_write_changes_nothing() {
    let app = App::new(SessionLayer::new(memory(&clock())).data_limit(20));
    let browser = app.browser();
    assert_eq!(browser.status("/set/a/1").await, 204);
    let large = browser.get(&format!("/set/b/{}", "1".repeat(30))).await;
    assert_eq!(
        (large.status.as_u16(), large.code().as_str()),
        (413, "SESSION_DATA_TOO_LARGE")
    );
    assert_eq!(
        browser.status(&format!("/set/c/{}", "1".repeat(15))).await,
        204
    );
    assert_eq!(
        browser.status("/set/d/1111").await,
        413,
        "at the end of the request"
    );
    assert_eq!(browser.body("/get/d").await, "null");
    assert_eq!(browser.status("/set/a/%7B%7D").await, 204);
    assert_eq!(browser.status("/add/a/1").await, 500, "no integer");
    assert_eq!(browser.body("/get/a").await, "{}");
}

#[tokio::test]
async fn without_a_word_data_lasts_an_hour_and_64_kib_and_a_user_has_100_sessions() {
    let clock = clock();
    let layer = SessionLayer::new(memory(&clock)).idle_timeout(seconds(3 * 3_600));
    let app = App::new(layer.clone());
    let fill = Router::new().route(
        "/{bytes}",
        get(async |session: Session, Path(bytes): Path<usize>| {
            // A value counts with its name, and a text with its quotes.
            session.insert("a", &"x".repeat(bytes - 3))
        }),
    );
    let fill = fill.layer(layer);
    for (bytes, status) in [(65_536, 200), (65_537, 413)] {
        let request = Request::get(format!("/{bytes}"))
            .body(Body::empty())
            .unwrap();
        let sent = fill.clone().oneshot(request).await.unwrap();
        assert_eq!(sent.status(), status, "{bytes} bytes");
    }
    let browsers = [(); 101].map(|()| app.browser());
    let first = &browsers[0];
    first.get("/login/u1").await;
    first.get("/set/a/1").await;
    // Each question is a use: two sessions, one for each.
    let other = app.browser();
    other.get("/login/u2").await;
    other.get("/set/a/1").await;
    clock.advance(Duration::from_millis(3_599_999));
    assert_eq!(other.body("/get/a").await, "1", "it is used until here");
    clock.advance(Duration::from_millis(1));
    assert_eq!(
        first.body("/get/a").await,
        "null",
        "over at exactly 3,600 s"
    );
    assert_eq!(first.body("/me").await, "u1");

    for browser in &browsers[1..100] {
        clock.advance(seconds(1));
        browser.get("/login/u1").await;
    }
    assert_eq!(first.body("/me").await, "u1", "the hundredth ends none");
    clock.advance(seconds(61));
    for browser in &browsers[1..] {
        browser.get("/me").await;
    }
    browsers[100].get("/login/u1").await;
    let mut live = 0;
    for browser in &browsers {
        live += u32::from(browser.body("/me").await == "u1");
    }
    assert_eq!((live, first.body("/me").await.as_str()), (100, "nobody"));
}
