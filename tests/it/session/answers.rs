//! What an answer says: faults, caching fields, removal of everything, tokens for clients without cookies.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Path;
use axum::middleware::map_response;
use axum::response::Response;
use axum::routing::get;
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode};
use http_body_util::BodyExt;
use serde::{Serialize, Serializer};
use tower::ServiceExt;
use tower_keep::backend::memory::MemoryStore;
use tower_keep::core::{Principal, StoreFailure, StoreFuture};
use tower_keep::idempotency::{IdempotencyLayer, Scope};
use tower_keep::response_cache::ResponseCacheLayer;
use tower_keep::session::store::{
    Establish, Established, Listed, Loaded, Patch, Patched, Read, Revoked, Roles, SessionRef,
    Target, UserId, Whose,
};
use tower_keep::session::{
    RequireLayer, Session, SessionErrorKind, SessionEventKind, SessionLayer, SessionLimit,
    SessionRejection, SessionStore, Signal,
};

use super::app::{App, Probe, clock, memory};
use super::leaks::Log;
use crate::rate_limit::metered::Metered;
use crate::support::http::{Answer, request, send};

async fn ask(app: &Router, path: &str, fields: &[(&str, &str)]) -> Answer {
    send(app, request(http::Method::GET, path, fields, "")).await
}

/// Others are always faster: no value is ever what it was when it was read.
#[derive(Clone, Debug)]
struct Contended(MemoryStore);

impl SessionStore for Contended {
    fn load(&self, at: SessionRef, read: Read) -> StoreFuture<Loaded> {
        SessionStore::load(&self.0, at, read)
    }

    fn patch(&self, _: SessionRef, _: &Patch) -> StoreFuture<Patched> {
        StoreFuture::ok(Patched::Conflict(Vec::new()))
    }

    fn establish(&self, order: Establish) -> StoreFuture<Established> {
        self.0.establish(order)
    }

    fn list(&self, of: Whose) -> StoreFuture<Listed> {
        SessionStore::list(&self.0, of)
    }

    fn assign_roles(&self, user: UserId, roles: Roles) -> StoreFuture<u64> {
        self.0.assign_roles(user, roles)
    }

    fn revoke(&self, target: Target) -> StoreFuture<Revoked> {
        SessionStore::revoke(&self.0, target)
    }
}

#[tokio::test(start_paused = true)]
async fn who_is_overtaken_sixty_four_times_is_told_to_come_again() {
    let (metered, runs) = (Metered::start(), Arc::new(AtomicU32::new(0)));
    let count = Arc::clone(&runs);
    let routes = Router::new()
        .route(
            "/login",
            get(async |session: Session| session.login(Principal::new("u1")).await),
        )
        .route(
            "/",
            get(async move |session: Session| {
                let add = |n: &mut u64| {
                    count.fetch_add(1, Ordering::SeqCst);
                    *n += 1;
                };
                session.update("n", add).await
            }),
        );
    let app = routes.layer(SessionLayer::new(Contended(memory(&clock()))));
    let login = ask(&app, "/login", &[]).await;
    let cookie = login.header("set-cookie").split(';').next().unwrap();
    let busy = ask(&app, "/", &[("cookie", cookie)]).await;
    assert_eq!(
        (
            busy.status.as_u16(),
            busy.code().as_str(),
            busy.header("retry-after")
        ),
        (503, "SESSION_BUSY", "1")
    );
    assert_eq!(runs.load(Ordering::SeqCst), 64);
    assert_eq!(metered.counter("keep_session_update_retries_total"), 64);
}

/// Says why it cannot be written, with something that is nobody's business.
struct Unwritable;

impl Serialize for Unwritable {
    fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("the card 4711 cannot be written"))
    }
}

#[tokio::test]
async fn a_mistake_of_the_service_is_500_and_its_reason_stays_in_the_log() {
    let (log, _logging) = Log::start();
    let routes = Router::new()
        .route(
            "/name",
            get(async |session: Session| session.insert("n".repeat(129), &1)),
        )
        .route("/no-name", get(async |session: Session| session.remove("")))
        .route(
            "/value",
            get(async |session: Session| session.insert("card", &Unwritable)),
        )
        .route(
            "/number",
            get(async |session: Session| {
                session.insert("card", &"4711")?;
                session.increment("card", 1)
            }),
        )
        .route(
            "/user",
            get(async |session: Session| session.login(Principal::new("u".repeat(129))).await),
        )
        .route(
            "/nobody",
            get(async |session: Session| session.login(Principal::new("")).await),
        );
    let with_roles = |roles: Vec<String>| {
        get(async move |session: Session| session.login(Principal::new("u1").roles(&roles)).await)
    };
    let routes = routes
        .route(
            "/roles/33",
            with_roles((0..33).map(|n| n.to_string()).collect()),
        )
        .route("/roles/65-bytes", with_roles(vec!["r".repeat(65)]))
        .route("/roles/1025-bytes", with_roles(vec!["r".repeat(41); 25]))
        .route("/roles/most", with_roles(vec!["r".repeat(32); 32]));
    let app = routes.layer(SessionLayer::new(memory(&clock())));
    for path in [
        "/name",
        "/no-name",
        "/value",
        "/number",
        "/user",
        "/nobody",
        "/roles/33",
        "/roles/65-bytes",
        "/roles/1025-bytes",
    ] {
        let answer = ask(&app, path, &[]).await;
        assert_eq!(
            (answer.status.as_u16(), answer.code().as_str()),
            (500, "SESSION_MISUSE"),
            "{path}"
        );
        assert!(!answer.text().contains("4711"), "{path}: {}", answer.text());
        assert_eq!(answer.header("set-cookie"), "", "{path}");
    }
    assert!(log.text().contains("a handler misused its session"));
    assert_eq!(ask(&app, "/roles/most", &[]).await.status, 200);
}

#[tokio::test]
async fn what_is_out_of_its_bounds_is_no_order_of_an_administrator_either() {
    let directory = SessionLayer::new(memory(&clock())).directory();
    let kind = |error: tower_keep::session::SessionError| error.kind();
    let long = "u".repeat(129);
    let roles = directory.assign_roles(&long, ["a"]).await.map_err(kind);
    assert_eq!(roles, Err(SessionErrorKind::Key));
    let roles = directory.assign_roles("u1", [""]).await.map_err(kind);
    assert_eq!(roles, Err(SessionErrorKind::Key));
    assert_eq!(
        directory.revoke_all("").await.map_err(kind),
        Err(SessionErrorKind::Key)
    );
    assert!(directory.list("u1").await.unwrap().is_empty());
}

#[tokio::test]
async fn a_session_holds_sixty_four_keys_and_no_more() {
    let app = App::new(SessionLayer::new(memory(&clock())));
    let browser = app.browser();
    for n in 0..64 {
        assert_eq!(browser.status(&format!("/set/k{n}/1")).await, 204, "{n}");
    }
    let one_more = browser.get("/set/k64/1").await;
    assert_eq!(
        (one_more.status.as_u16(), one_more.code().as_str()),
        (413, "SESSION_DATA_TOO_LARGE")
    );
    assert_eq!(
        browser.status("/set/k63/2").await,
        204,
        "what is there may change"
    );
    browser.get("/remove/k0").await;
    assert_eq!(browser.status("/set/k64/1").await, 204, "and give room");
    assert_eq!(browser.body("/get/k63").await, "2");
}

#[tokio::test]
async fn vary_grows_by_what_is_missing_and_a_handlers_cache_control_stands() {
    let answer = |fields: &'static [(&'static str, &'static str)]| {
        get(async move |session: Session| {
            session.principal().await?;
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                headers.append(*name, value.parse().unwrap());
            }
            Ok::<_, SessionRejection>(headers)
        })
    };
    let routes = Router::new()
        .route("/none", answer(&[]))
        .route("/other", answer(&[("vary", "accept-encoding")]))
        .route("/lines", answer(&[("vary", "a, b"), ("vary", "x,COOKIE")]))
        .route("/all", answer(&[("vary", "*")]))
        .route(
            "/public",
            answer(&[("cache-control", "public, max-age=60")]),
        )
        .route("/similar", answer(&[("vary", "x-cookie, cookie2")]));
    let layer = SessionLayer::new(memory(&clock()));
    let plain = routes.clone().layer(layer.clone());
    let bearer = routes.layer(layer.accept_bearer());
    let lines = |answer: &Answer| -> Vec<String> {
        let lines = answer.headers.get_all("vary").iter();
        lines
            .map(|line| line.to_str().unwrap().to_owned())
            .collect()
    };
    for (path, ours, with_bearer) in [
        ("/none", vec!["cookie"], vec!["cookie", "authorization"]),
        (
            "/other",
            vec!["accept-encoding", "cookie"],
            vec!["accept-encoding", "cookie", "authorization"],
        ),
        (
            "/lines",
            vec!["a, b", "x,COOKIE"],
            vec!["a, b", "x,COOKIE", "authorization"],
        ),
        ("/all", vec!["*"], vec!["*"]),
        (
            "/similar",
            vec!["x-cookie, cookie2", "cookie"],
            vec!["x-cookie, cookie2", "cookie", "authorization"],
        ),
    ] {
        let answer = ask(&plain, path, &[]).await;
        assert_eq!(lines(&answer), ours, "{path}");
        assert_eq!(answer.header("cache-control"), "private", "{path}");
        assert_eq!(lines(&ask(&bearer, path, &[]).await), with_bearer, "{path}");
    }
    let public = ask(&plain, "/public", &[]).await;
    assert_eq!(
        public.header("cache-control"),
        "public, max-age=60",
        "the handler's word"
    );
    // But for one that removes or sets a cookie.
    let removing = ask(&plain, "/public", &[("cookie", "__Host-id=malformed")]).await;
    assert_eq!(removing.header("cache-control"), "no-store");
    assert!(removing.header("set-cookie").contains("Max-Age=0"));
}

#[tokio::test]
async fn a_logout_clears_the_site_where_that_was_asked_for_and_nothing_else_does() {
    let field = "clear-site-data";
    let everything = "\"cache\", \"cookies\", \"storage\"";
    let layer = SessionLayer::new(memory(&clock()));
    let app = App::new(layer.clone().clear_site_data());
    let browser = app.browser();
    for path in ["/login/u1", "/rotate", "/me", "/revoke_others"] {
        assert_eq!(browser.get(path).await.field(field), "", "{path}");
    }
    assert_eq!(browser.get("/logout").await.field(field), everything);
    assert_eq!(
        browser.get("/logout").await.field(field),
        everything,
        "safe to repeat"
    );
    let plain = App::new(layer.clone()).browser();
    plain.get("/login/u1").await;
    assert_eq!(plain.get("/logout").await.field(field), "");
    // Whoever logs in after the logout, in the same request, keeps the new cookie.
    let again = get(async |session: Session| {
        session.logout().await?;
        session.login(Principal::new("u2")).await
    });
    let again = Router::new()
        .route("/", again)
        .layer(layer.clear_site_data());
    let answer = ask(&again, "/", &[]).await;
    assert_eq!((answer.header(field), answer.status.as_u16()), ("", 200));
    assert!(!answer.header("set-cookie").contains("Max-Age=0"));
}

#[tokio::test]
async fn what_is_written_after_a_logout_begins_a_session_of_nobody() {
    let layer = SessionLayer::new(memory(&clock()));
    let (app, directory) = (App::new(layer.clone()), layer.directory());
    let farewell = async |session: Session, Path((end, write)): Path<(String, String)>| {
        session.insert("before", &1)?;
        match end.as_str() {
            "logout" => session.logout().await?,
            "stamp" => drop(session.check_auth_stamp("another").await),
            _ => drop(session.revoke_all().await?),
        }
        match write.as_str() {
            "insert" => session.insert("notice", &"you have left")?,
            _ => {
                session
                    .update("notice", |text| *text = "you have left".to_owned())
                    .await?
            }
        }
        Ok::<_, SessionRejection>(())
    };
    let router = Router::new().route("/{end}/{write}", get(farewell));
    let router = router.layer(layer);
    for end in ["logout", "stamp", "all"] {
        for write in ["insert", "update"] {
            let (browser, user) = (app.browser(), format!("{end}-{write}"));
            browser.get(&format!("/login/{user}?stamp=one")).await;
            browser.get("/set/old/1").await;
            let cookie = browser.cookie().unwrap();
            let answer = ask(&router, &format!("/{end}/{write}"), &[("cookie", &cookie)]).await;
            assert_eq!(answer.status, 200, "{user}");
            let fresh = answer.header("set-cookie").split(';').next().unwrap();
            assert!(!fresh.starts_with(&cookie[..31]), "a new id");
            browser.plant(fresh);
            for (path, expected) in [
                ("/maybe", "nobody"),
                ("/get/notice", "\"you have left\""),
                ("/get/before", "null"),
                ("/get/old", "null"),
            ] {
                assert_eq!(browser.body(path).await, expected, "{user}: {path}");
            }
            assert!(directory.list(&user).await.unwrap().is_empty());
        }
    }
}

#[tokio::test]
async fn what_was_buffered_before_a_login_that_is_refused_is_written_all_the_same() {
    let layer = SessionLayer::new(memory(&clock())).limit(SessionLimit::reject(1));
    let app = App::new(layer.clone());
    app.browser().get("/login/u1").await;
    let handler = async |session: Session| {
        session.insert("cart", &7)?;
        session.increment("tries", 2)?;
        let refused = session.login(Principal::new("u1")).await;
        assert!(matches!(refused, Err(SessionRejection::Limit)));
        assert_eq!(session.get::<u8>("cart").await?, Some(7));
        session.increment("tries", 1)
    };
    let router = Router::new().route("/", get(handler)).layer(layer);
    let answer = ask(&router, "/", &[]).await;
    let browser = app.browser();
    browser.plant(answer.header("set-cookie").split(';').next().unwrap());
    for (path, expected) in [
        ("/get/cart", "7"),
        ("/get/tries", "3"),
        ("/maybe", "nobody"),
    ] {
        assert_eq!(browser.body(path).await, expected, "{path}");
    }
}

#[tokio::test]
async fn a_value_that_is_too_large_by_itself_is_refused_at_once() {
    let store = Probe::new(memory(&clock()));
    let layer = SessionLayer::new(store.clone()).data_limit(10);
    let handler = async |session: Session| {
        // Quotes count, and so does the name.
        let kinds = ["1234567", "12345678"].map(|text| {
            let inserted = session.insert("a", &text);
            inserted.map_err(|error| error.kind())
        });
        assert_eq!(kinds, [Ok(()), Err(SessionErrorKind::TooLarge)]);
    };
    let router = Router::new().route("/", get(handler)).layer(layer);
    assert_eq!(ask(&router, "/", &[]).await.status, 200);
    assert_eq!(store.calls(), 1, "what fits was written");
}

#[tokio::test]
async fn asking_whether_a_session_is_live_keeps_nobody_logged_in() {
    let clock = clock();
    let layer = SessionLayer::new(memory(&clock));
    let app = App::new(layer.clone());
    let handler = async |session: Session| session.is_live().await.map(|is| is.to_string());
    let router = Router::new().route("/", get(handler)).layer(layer);
    let browser = app.browser();
    browser.get("/login/u1").await;
    let cookie = browser.cookie().unwrap();
    for (after, is_live) in [(600, "true"), (299, "true"), (1, "false")] {
        clock.advance(Duration::from_secs(after));
        let answer = ask(&router, "/", &[("cookie", &cookie)]).await;
        assert_eq!(answer.body, is_live, "{after}");
    }
}

#[tokio::test]
async fn a_blind_write_costs_one_call_and_two_after_a_dead_cookie() {
    let store = Probe::new(memory(&clock()));
    let app = App::new(SessionLayer::new(store.clone()));
    let browser = app.browser();
    let calls = async |path: &str| {
        store.calls();
        assert!(browser.get(path).await.status.is_success());
        store.calls()
    };
    assert_eq!(calls("/set/a/1").await, 1, "a new session");
    assert_eq!(calls("/set/a/2").await, 1, "a live one");
    browser.plant(&format!("__Host-id={}", "A".repeat(54)));
    assert_eq!(calls("/set/a/3").await, 2, "an unknown one, then a new one");
    assert_eq!(browser.body("/get/a").await, "3");
    browser.plant("__Host-id=malformed");
    assert_eq!(
        calls("/set/a/4").await,
        1,
        "a malformed one is never asked for"
    );
    // A login needs no second call: its secret fits a session that is live and one that is not.
    browser.plant(&format!("__Host-id={}", "A".repeat(54)));
    assert_eq!(calls("/login/u1").await, 1);
}

#[tokio::test]
async fn of_several_cookies_of_our_name_the_first_good_one_counts_and_the_others_are_told_of() {
    let told = Arc::<parking_lot::Mutex<Vec<SessionEventKind>>>::default();
    let tell = Arc::clone(&told);
    let layer =
        SessionLayer::new(memory(&clock())).on_event(move |event| tell.lock().push(event.kind));
    let app = App::new(layer);
    let (one, two) = (app.browser(), app.browser());
    one.get("/login/u1").await;
    two.get("/login/u2").await;
    let (one, two) = (one.cookie().unwrap(), two.cookie().unwrap());
    let asked = async |lines: &[&str]| {
        told.lock().clear();
        let mut request = Request::get("/me");
        for line in lines {
            request = request.header("cookie", *line);
        }
        let sent = app.router().oneshot(request.body(Body::empty()).unwrap());
        let body = sent.await.unwrap().into_body();
        let body = axum::body::to_bytes(body, 1_024).await.unwrap();
        (
            String::from_utf8(body.to_vec()).unwrap(),
            told.lock().clone(),
        )
    };
    let twice = vec![SessionEventKind::Signal(Signal::DuplicateCookie)];
    let pair = format!("a=1; {one}; b=2; {two}");
    assert_eq!(asked(&[&pair]).await, ("u1".to_owned(), twice.clone()));
    assert_eq!(asked(&[&two, &one]).await, ("u2".to_owned(), twice));
    let same = format!("__Host-id=short; {one}; {one}");
    assert_eq!(asked(&[&same]).await, ("u1".to_owned(), vec![]));
}

#[tokio::test]
async fn a_refusal_that_is_made_again_says_nothing_of_the_body_before_it() {
    let layer = SessionLayer::new(memory(&clock())).on_rejection(|_, response| {
        response
            .headers_mut()
            .insert("x-hook", HeaderValue::from_static("1"));
    });
    // As a layer that compresses, between the handler and the sessions.
    let compressed = async |mut response: Response| {
        let fields = [
            ("content-encoding", "gzip"),
            ("content-range", "bytes 0-1/2"),
            ("accept-ranges", "bytes"),
            ("etag", "\"zipped\""),
            ("last-modified", "Tue, 01 Jan 2030 00:00:00 GMT"),
            ("content-digest", "sha-256=:AAAA:"),
            ("transfer-encoding", "chunked"),
            ("vary", "accept-encoding"),
            ("x-own", "kept"),
        ];
        for (name, value) in fields {
            let value = HeaderValue::from_static(value);
            response.headers_mut().insert(name, value);
        }
        response
    };
    let router = Router::new()
        .route("/user", get(async |user: Principal| user.id().to_owned()))
        .layer(map_response(compressed))
        .layer(layer);
    let request = Request::get("/user").body(Body::empty()).unwrap();
    let (head, body) = router.oneshot(request).await.unwrap().into_parts();
    assert_eq!(head.status, 401);
    let mut names: Vec<_> = head.headers.keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    let own = [
        "cache-control",
        "content-length",
        "content-type",
        "vary",
        "www-authenticate",
        "x-hook",
        "x-own",
    ];
    assert_eq!(names, own);
    let body = body.collect().await.unwrap().to_bytes();
    assert_eq!(head.headers["content-length"], body.len().to_string());
    let problem: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(problem["code"], "SESSION_REQUIRED");
}

#[tokio::test]
async fn a_token_that_nobody_took_is_said_once_and_is_in_no_answer() {
    let (log, _logging) = Log::start();
    let layer = SessionLayer::new(memory(&clock())).accept_bearer();
    let app = App::new(layer);
    let browser = app.browser();
    browser.get("/login/u1").await;
    let field = format!("bearer {}", browser.token());
    let client = app.browser();
    // Rotated, and the handler does not hand the new token out.
    let rotated = client.send(Request::get("/rotate").header("authorization", &field));
    let rotated = rotated.await;
    assert_eq!(
        (
            rotated.status.as_u16(),
            rotated.field("set-cookie"),
            rotated.field("cache-control")
        ),
        (204, String::new(), "no-store".to_owned())
    );
    // The next writes begin sessions that nobody can hold either.
    let dead = format!("Bearer {}", "A".repeat(54));
    for _ in 0..2 {
        let written = client
            .send(Request::get("/set/a/1").header("authorization", &dead))
            .await;
        assert_eq!(
            (
                written.status.as_u16(),
                written.field("set-cookie").as_str()
            ),
            (204, "")
        );
    }
    let words = "its handler did not take";
    assert_eq!(log.text().matches(words).count(), 1, "{}", log.text());
    let refused = client
        .send(Request::get("/user").header("authorization", "Basic dTpw"))
        .await;
    assert_eq!(refused.field("www-authenticate"), "Bearer", "not ours");
}

#[tokio::test]
async fn a_guard_of_an_open_layer_lets_nobody_in() {
    let store = Probe::new(memory(&clock()));
    let layer = SessionLayer::new(store.clone()).on_store_failure(StoreFailure::Open);
    let app = App::new(layer.clone());
    let browser = app.browser();
    browser.get("/login/u1?role=admin").await;
    let cookie = browser.cookie().unwrap();
    store.fail(true);
    let hour = Duration::from_secs(3_600);
    for guard in [
        RequireLayer::login(),
        RequireLayer::role("admin"),
        RequireLayer::fresh(hour),
    ] {
        let inner = Router::new().route("/", get(async || "in"));
        let router = inner.layer(guard.clone()).layer(layer.clone());
        let answer = ask(&router, "/", &[("cookie", &cookie)]).await;
        assert!(
            [401, 503].contains(&answer.status.as_u16()),
            "{guard:?}: {answer:?}"
        );
        assert_eq!(answer.header("set-cookie"), "");
    }
    for path in ["/user", "/maybe", "/logout", "/revoke_all", "/stamp/x"] {
        let reply = browser.get(path).await;
        assert!(
            [401, 503].contains(&reply.status.as_u16()),
            "{path}: {reply:?}"
        );
    }
}

#[tokio::test]
async fn a_switch_of_protocols_is_committed_before_and_its_socket_asks_on() {
    let kept = Arc::new(parking_lot::Mutex::new(None::<Session>));
    let keep = Arc::clone(&kept);
    let layer = SessionLayer::new(memory(&clock()));
    let (app, directory) = (App::new(layer.clone()), layer.directory());
    let browser = app.browser();
    browser.get("/login/u1").await;
    let upgrade = get(async move |session: Session| {
        session.insert("joined", &true)?;
        *keep.lock() = Some(session);
        Ok::<_, SessionRejection>(StatusCode::SWITCHING_PROTOCOLS)
    });
    let router = Router::new().route("/", upgrade).layer(layer);
    let cookie = browser.cookie().unwrap();
    assert_eq!(ask(&router, "/", &[("cookie", &cookie)]).await.status, 101);
    assert_eq!(browser.body("/get/joined").await, "true");
    let socket = kept.lock().take().unwrap();
    assert!(socket.is_live().await.unwrap());
    assert_eq!(
        socket.update("messages", |n: &mut u64| *n += 1).await.ok(),
        Some(())
    );
    assert_eq!(browser.body("/get/messages").await, "1");
    assert_eq!(
        socket.remove("joined").map_err(|error| error.kind()),
        Err(SessionErrorKind::Sealed)
    );
    directory.revoke_all("u1").await.unwrap();
    assert!(!socket.is_live().await.unwrap(), "between two messages");
    let late = socket.update("messages", |n: &mut u64| *n += 1).await;
    assert_eq!(
        late.map_err(|error| error.kind()),
        Err(SessionErrorKind::Ended)
    );
}

#[tokio::test]
async fn a_replay_and_a_stored_answer_carry_no_token() {
    let store = memory(&clock());
    let sessions = SessionLayer::new(store.clone());
    let once = || IdempotencyLayer::new(store.clone(), Scope::global()).require_key();
    let cache = || ResponseCacheLayer::new(store.clone()).ttl(Duration::from_secs(60));
    let login = async |session: Session| session.login(Principal::new("u1")).await;
    let login = Router::new().route("/", get(login).post(login));
    for (path, app) in [
        ("/?a", login.clone().layer(once()).layer(sessions.clone())),
        // The wrong way round, where the replay stands outside.
        ("/?b", login.clone().layer(sessions.clone()).layer(once())),
    ] {
        let fields = [("idempotency-key", &path[2..])];
        let post = || send(&app, request(http::Method::POST, path, &fields, ""));
        let (first, replay) = (post().await, post().await);
        assert_eq!(
            (first.status, replay.status),
            (StatusCode::OK, StatusCode::OK),
            "{path}"
        );
        assert!(
            first.header("set-cookie").starts_with("__Host-id="),
            "{path}"
        );
        assert_eq!(
            replay.header("idempotency-replayed"),
            "true",
            "{path}: {replay:?}"
        );
        assert_eq!(replay.header("set-cookie"), "", "{path}");
    }
    for (path, app) in [
        ("/?c", login.clone().layer(cache()).layer(sessions.clone())),
        ("/?d", login.clone().layer(sessions.clone()).layer(cache())),
    ] {
        let (first, second) = (ask(&app, path, &[]).await, ask(&app, path, &[]).await);
        let tokens = [first.header("set-cookie"), second.header("set-cookie")];
        assert!(
            tokens.iter().all(|token| token.starts_with("__Host-id=")),
            "{path}"
        );
        assert_ne!(tokens[0], tokens[1], "{path}: each visitor logs in");
    }
}
