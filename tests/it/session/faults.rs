//! A store that fails, clients that go away.

use std::future::Future;
use std::task::Poll;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::routing::get;
use http::Request;
use tower::ServiceExt;
use tower_keep::backend::memory::MemoryStore;
use tower_keep::core::{Principal, StoreFailure};
use tower_keep::session::{Session, SessionErrorKind, SessionLayer};

use super::app::{App, Browser, Probe, clock, memory};

#[tokio::test]
async fn after_a_failed_read_no_call_asks_the_store_again_but_those_that_end_sessions() {
    let store = Probe::new(memory(&clock()));
    let layer = SessionLayer::new(store.clone());
    let browser = App::new(layer.clone()).browser();
    browser.get("/login/u1").await;
    let probe = store.clone();
    let handler = get(async move |session: Session| {
        probe.fail(true);
        assert!(session.get::<u8>("a").await.is_err());
        // The store is back, and nobody knows what the read would have told.
        probe.fail(false);
        probe.calls();
        let login = session.login(Principal::new("u1")).await;
        let rejected = [
            session.list().await.map(drop),
            login,
            session.require_role("admin").await,
            session.require_fresh(Duration::from_secs(60)).await,
            session.check_auth_stamp("x").await,
        ];
        for rejected in rejected {
            let status = rejected.map_err(|rejection| rejection.status().as_u16());
            assert_eq!(status, Err(503));
        }
        session.insert("a", &1).unwrap();
        let failed = [
            session.commit().await,
            session.rotate().await,
            session.update("a", |n: &mut u8| *n += 1).await,
            session.get::<u8>("b").await.map(drop),
            session.principal().await.map(drop),
            session.expires_in().await.map(drop),
            session.is_live().await.map(drop),
        ];
        for failed in failed {
            let kind = failed.map_err(|error| error.kind());
            assert_eq!(kind, Err(SessionErrorKind::Unavailable));
        }
        assert_eq!(probe.calls(), 0);
        session.revoke_others().await.unwrap();
        session.logout().await.unwrap();
        assert_eq!(probe.calls(), 2);
    });
    let router = Router::new().route("/", handler).layer(layer);
    let request = Request::get("/").header("cookie", browser.cookie().unwrap());
    let answer = router.oneshot(request.body(Body::empty()).unwrap()).await;
    assert_eq!(answer.unwrap().status(), 200);
}

#[tokio::test]
async fn after_a_failed_read_nothing_is_written() {
    let store = Probe::new(memory(&clock()));
    let app = App::new(SessionLayer::new(store.clone()));
    let browser = app.browser();
    browser.get("/set/n/41").await;
    store.fail(true);
    store.calls();
    let failed = browser.get("/read_then_write").await;
    assert_eq!(
        (
            failed.status.as_u16(),
            failed.code().as_str(),
            failed.field("retry-after").as_str()
        ),
        (503, "STORE_UNAVAILABLE", "7")
    );
    assert_eq!(store.calls(), 1, "the store is not asked again");
    assert!(failed.field("set-cookie").is_empty());
    store.fail(false);
    assert_eq!(browser.body("/get/n").await, "41");
}

#[tokio::test]
async fn an_outage_is_503_for_whatever_needs_the_session_and_for_nothing_else() {
    let store = Probe::new(memory(&clock()));
    let app = App::new(SessionLayer::new(store.clone()));
    let browser = app.browser();
    browser.get("/login/u1").await;
    let cookie = browser.cookie();
    store.fail(true);
    for path in [
        "/me",
        "/user",
        "/maybe",
        "/role/admin",
        "/get/a",
        "/set/a/1",
        "/update/a",
        "/login/u1",
        "/rotate",
        "/list",
        "/revoke_all",
        "/fresh/9",
    ] {
        let reply = browser.get(path).await;
        assert_eq!(
            (reply.status.as_u16(), reply.code().as_str()),
            (503, "STORE_UNAVAILABLE"),
            "{path}"
        );
        assert_eq!(browser.cookie(), cookie, "{path}");
    }
    assert_eq!(browser.status("/none").await, 200);
    assert_eq!(
        app.browser().body("/me").await,
        "nobody",
        "no cookie, no question"
    );
    let logout = browser.get("/logout").await;
    assert_eq!(
        (logout.status.as_u16(), logout.removes_cookie()),
        (503, true)
    );
}

#[tokio::test]
async fn an_open_layer_reads_as_if_there_were_no_session_and_grants_nothing() {
    let store = Probe::new(memory(&clock()));
    let app = App::new(SessionLayer::new(store.clone()).on_store_failure(StoreFailure::Open));
    let browser = app.browser();
    browser.get("/login/u1?role=admin").await;
    let cookie = browser.cookie();
    store.fail(true);
    for (path, status) in [
        ("/me", 200),
        ("/get/a", 200),
        ("/set/a/1", 204),
        ("/role/admin", 401),
        ("/update/a", 503),
        ("/login/u1", 503),
        ("/rotate", 503),
        ("/list", 503),
    ] {
        assert_eq!(browser.status(path).await, status, "{path}");
        assert_eq!(browser.cookie(), cookie, "{path}");
    }
    assert_eq!(browser.body("/me").await, "nobody");
    store.fail(false);
    assert_eq!(
        (browser.body("/me").await, browser.body("/get/a").await),
        ("u1".into(), "null".into())
    );
}

#[tokio::test]
#[should_panic(expected = "sessions have no local mode")]
async fn there_is_no_local_mode() {
    let _ = SessionLayer::new(memory(&clock())).on_store_failure(StoreFailure::Local);
}

#[tokio::test]
async fn a_client_that_goes_away_loses_its_buffer_and_keeps_what_was_committed() {
    let routes = Router::new()
        .route(
            "/buffered",
            get(async |session: Session| {
                session.insert("a", &1).unwrap();
                std::future::pending::<()>().await;
            }),
        )
        .route(
            "/committed",
            get(async |session: Session| {
                session.insert("b", &2).unwrap();
                session.commit().await.unwrap();
                std::future::pending::<()>().await;
            }),
        )
        .route(
            "/rotated",
            get(async |session: Session| {
                session.rotate().await.unwrap();
                std::future::pending::<()>().await;
            }),
        );
    let layer = SessionLayer::new(memory(&clock()));
    let app = App::new(layer.clone());
    let hanging = routes.layer(layer);
    let browser = app.browser();
    browser.get("/login/u1").await;
    let drop_at_first_wait = async |path: &str| {
        let request = Request::get(path).header("cookie", browser.cookie().unwrap());
        let mut answer = Box::pin(
            hanging
                .clone()
                .oneshot(request.body(Body::empty()).unwrap()),
        );
        std::future::poll_fn(|cx| {
            assert!(answer.as_mut().poll(cx).is_pending());
            Poll::Ready(())
        })
        .await;
    };
    drop_at_first_wait("/buffered").await;
    drop_at_first_wait("/committed").await;
    assert_eq!(
        (browser.body("/get/a").await, browser.body("/get/b").await),
        ("null".into(), "2".into())
    );
    drop_at_first_wait("/rotated").await;
    assert_eq!(
        browser.body("/maybe").await,
        "nobody",
        "the client holds the old secret"
    );
    assert_eq!(browser.status("/login/u1").await, 200);
}

#[tokio::test]
async fn a_first_question_that_is_dropped_lets_the_next_one_ask() {
    let server = crate::support::redis::shared().await;
    let layer = SessionLayer::new(server.store(&clock()).await);
    let app = App::new(layer.clone());
    let browser = app.browser();
    browser.get("/login/u1").await;
    let routes = Router::new().route(
        "/",
        get(async |session: Session| {
            {
                let mut first = Box::pin(session.principal());
                std::future::poll_fn(|cx| Poll::Ready(first.as_mut().poll(cx).is_pending())).await;
            }
            let (one, two, three) = tokio::join!(
                session.principal(),
                session.principal(),
                session.get::<u64>("a")
            );
            assert_eq!((one.unwrap(), three.unwrap()), (two.unwrap(), None));
            session.principal().await.unwrap().unwrap().id().to_owned()
        }),
    );
    let request = Request::get("/").header("cookie", browser.cookie().unwrap());
    let response = routes
        .layer(layer)
        .oneshot(request.body(Body::empty()).unwrap())
        .await
        .unwrap();
    assert_eq!(response.status(), 200);
}

#[tokio::test]
async fn what_failed_before_in_a_request_keeps_no_session_alive_that_is_to_end() {
    let store = Probe::new(memory(&clock()));
    let layer = SessionLayer::new(store.clone());
    let app = App::new(layer.clone());
    // A read fails, and only then is something ended: the store has to hear of it, if only to remember it.
    let ending = async |what: &'static str| {
        let (own, other) = (app.browser(), app.browser());
        for browser in [&own, &other] {
            // A user each: in the instant of a revocation nobody can log in again.
            browser.get(&format!("/login/{what}")).await;
        }
        let probe = store.clone();
        let routes = Router::new().route(
            "/",
            get(async move |session: Session| {
                let others = session.list().await.unwrap();
                let other = others.iter().find(|one| !one.current).unwrap().id;
                probe.fail(true);
                session.get::<u64>("a").await.unwrap_err();
                probe.fail(false);
                match what {
                    "own" => session.logout().await.unwrap(),
                    "one" => assert!(session.revoke(other).await.unwrap()),
                    "others" => drop(session.revoke_others().await.unwrap()),
                    _ => drop(session.revoke_all().await.unwrap()),
                }
            }),
        );
        let request = Request::get("/").header("cookie", own.cookie().unwrap());
        let request = request.body(Body::empty()).unwrap();
        routes.layer(layer.clone()).oneshot(request).await.unwrap();
        let dead = async |browser: &Browser| browser.body("/maybe").await == "nobody";
        (dead(&own).await, dead(&other).await)
    };
    assert_eq!(ending("own").await, (true, false));
    assert_eq!(ending("one").await, (false, true));
    assert_eq!(ending("others").await, (false, true));
    assert_eq!(ending("all").await, (true, true));
}

#[tokio::test]
async fn who_wrote_in_vain_is_told_by_commit() {
    let layer = SessionLayer::new(memory(&clock()));
    let (directory, app) = (layer.directory(), App::new(layer.clone()));
    let browser = app.browser();
    browser.get("/login/u1").await;
    let routes = Router::new().route(
        "/",
        get(async move |session: Session| {
            assert_eq!(
                session.principal().await.unwrap(),
                Some(Principal::new("u1"))
            );
            directory.revoke_all("u1").await.unwrap();
            session.insert("a", &1).unwrap();
            let told = session.commit().await.unwrap_err().kind();
            let update = session
                .update("a", |n: &mut u64| *n += 1)
                .await
                .unwrap_err()
                .kind();
            assert_eq!(
                (told, update),
                (SessionErrorKind::Ended, SessionErrorKind::Ended)
            );
        }),
    );
    let request = Request::get("/").header("cookie", browser.cookie().unwrap());
    let response = routes
        .layer(layer)
        .oneshot(request.body(Body::empty()).unwrap())
        .await
        .unwrap();
    assert_eq!(response.status(), 200);
    assert!(
        response.headers()["set-cookie"]
            .to_str()
            .unwrap()
            .contains("Max-Age=0")
    );
}

#[tokio::test]
async fn a_full_table_refuses_a_new_session_and_ends_no_live_one() {
    const ROOM: usize = 24;
    let clock = clock();
    let builder = MemoryStore::builder().clock(clock.clone());
    let app = App::new(SessionLayer::new(builder.max_entries(ROOM).build()));
    let mut live = Vec::new();
    // A login takes an entry for its session and one for its user.
    let late = loop {
        let browser = app.browser();
        let n = live.len();
        let answer = browser.get(&format!("/login/u{n}")).await;
        if answer.status != 200 {
            assert_eq!(browser.cookie(), None);
            break answer;
        }
        live.push(browser);
        assert!(n < ROOM, "it never is full");
    };
    let answer = (late.status.as_u16(), late.code());
    assert_eq!(answer, (503, "STORE_UNAVAILABLE".to_owned()));
    assert!(live.len() >= ROOM / 4, "{}", live.len());
    for (n, browser) in live.iter().enumerate() {
        assert_eq!(browser.body("/me").await, format!("u{n}"));
    }
}
