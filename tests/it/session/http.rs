//! What travels: cookies, bearer tokens, caching fields, refusals, and nothing at all.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::routing::get;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use parking_lot::Mutex;
use tower::{ServiceBuilder, ServiceExt, service_fn};
use tower_keep::core::{CacheOutside, Personal};
use tower_keep::session::{
    RequireLayer, Session, SessionCookie, SessionErrorKind, SessionEventKind, SessionLayer,
    SessionRejection, Signal,
};

use super::app::{App, Probe, clock, memory};
use crate::rate_limit::telemetry::Logged;

async fn whole(app: Router, request: Request<Body>) -> (String, Vec<u8>) {
    let (parts, body) = app.oneshot(request).await.unwrap().into_parts();
    let fields = format!("{} {:?} {:?}", parts.status, parts.version, parts.headers);
    (fields, body.collect().await.unwrap().to_bytes().to_vec())
}

#[tokio::test]
async fn an_untouched_request_costs_no_store_call_and_its_response_leaves_as_it_came() {
    let store = Probe::new(memory(&clock()));
    let routes = || {
        Router::new().route(
            "/",
            get(async || ([("x-own", "1"), ("vary", "accept")], "body")),
        )
    };
    let with = routes().layer(SessionLayer::new(store.clone()));
    for cookie in ["", "__Host-id=nonsense", "a=1; b=2; c=3; d=4; e=5"] {
        let request = || {
            Request::get("/")
                .header("cookie", cookie)
                .body(Body::empty())
                .unwrap()
        };
        assert_eq!(
            whole(with.clone(), request()).await,
            whole(routes(), request()).await
        );
    }
    let app = App::new(SessionLayer::new(store.clone()));
    let browser = app.browser();
    browser.get("/set/a/1").await;
    store.calls();
    let reply = browser.get("/none").await;
    assert_eq!(store.calls(), 0);
    let names: Vec<_> = reply.headers.keys().map(http::HeaderName::as_str).collect();
    assert_eq!(names, ["content-type", "content-length"]);
}

#[tokio::test]
async fn each_path_costs_the_calls_it_should() {
    let store = Probe::new(memory(&clock()));
    let app = App::new(SessionLayer::new(store.clone()));
    let browser = app.browser();
    let cases = [
        ("/get/a", 0),
        ("/remove/a", 0),
        ("/set/a/1", 1),
        ("/get/a", 1),
        ("/set/a/2", 1),
        ("/me", 1),
        ("/login/u1?role=admin", 1),
        ("/role/admin", 1),
        ("/rotate", 1),
        ("/list", 1),
        ("/revoke_others", 1),
        ("/revoke_all", 1),
        ("/logout", 0),
    ];
    for (path, calls) in cases {
        store.calls();
        let reply = browser.get(path).await;
        assert!(reply.status.is_success(), "{path}: {reply:?}");
        assert_eq!(store.calls(), calls, "{path}");
    }
}

#[tokio::test]
async fn a_touched_answer_is_private_and_one_with_a_token_is_not_stored() {
    let app = App::new(SessionLayer::new(memory(&clock())));
    let browser = app.browser();
    let first = browser.get("/set/a/1").await;
    assert_eq!(first.field("cache-control"), "no-store");
    assert!(
        first
            .field("set-cookie")
            .ends_with("; Path=/; Secure; HttpOnly; SameSite=Lax")
    );
    let second = browser.get("/get/a").await;
    assert_eq!(
        (
            second.field("cache-control").as_str(),
            second.field("vary").as_str()
        ),
        ("private", "cookie")
    );
    assert_eq!(second.field("set-cookie"), "", "a read renews no cookie");
    let request = Request::get("/get/a").header("cookie", browser.cookie().unwrap());
    let request = request.extension(CacheOutside::default());
    let response = app
        .router()
        .oneshot(request.body(Body::empty()).unwrap())
        .await
        .unwrap();
    assert!(response.extensions().get::<Personal>().is_some());
    assert!(browser.get("/logout").await.removes_cookie());
}

#[tokio::test]
async fn malformed_and_unknown_cookies_are_never_a_fault() {
    let store = Probe::new(memory(&clock()));
    let signals = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&signals);
    let layer = SessionLayer::new(store.clone()).on_event(move |event| {
        if let SessionEventKind::Signal(signal) = event.kind {
            seen.lock().push(signal);
        }
    });
    let app = App::new(layer);
    let unknown = "A".repeat(54);
    let long = "A".repeat(5_000);
    let almost = "A".repeat(53) + "B";
    for (value, calls) in [
        ("", 0),
        ("x", 0),
        (&*long, 0),
        ("%00%ff", 0),
        (&*almost, 0),
        ("{}", 0),
        (&*unknown, 1),
    ] {
        let browser = app.browser();
        browser.plant(&format!("__Host-id={value}"));
        store.calls();
        let reply = browser.get("/me").await;
        assert_eq!(
            (reply.status.as_u16(), reply.body.as_str()),
            (200, "nobody")
        );
        assert!(reply.removes_cookie(), "{value}");
        assert_eq!(store.calls(), calls, "{value}");
    }
    assert_eq!(
        signals.lock()[5..],
        [Signal::MalformedToken, Signal::UnknownSession]
    );
}

/// Whoever may send requests may not fill the log: what no session is in is said once a minute, and counted.
#[tokio::test]
async fn a_flood_of_cookies_that_are_none_writes_few_lines() {
    let logged = Logged::start();
    let app = App::new(SessionLayer::new(memory(&clock())));
    for _ in 0..50 {
        for value in ["malformed", &"A".repeat(54)] {
            let browser = app.browser();
            browser.plant(&format!("__Host-id={value}"));
            assert_eq!(browser.status("/me").await, 200);
        }
    }
    for signal in ["malformed_token", "unknown_session"] {
        assert_eq!(logged.lines_with(&["WARN", signal]), 1, "{signal}");
    }
}

#[tokio::test]
async fn a_bearer_token_wins_over_the_cookie_and_gets_no_cookie() {
    let layer = SessionLayer::new(memory(&clock())).accept_bearer();
    let app = App::new(layer);
    let browser = app.browser();
    browser.get("/login/cookie-user").await;
    // The first token for a client without cookies comes from a cookie login of its own here.
    let other = app.browser();
    other.get("/login/u1").await;
    let bearer = |token: &str, path: &str| {
        Request::get(path).header("authorization", format!("Bearer {token}"))
    };
    let token = other.token();
    assert_eq!(browser.send(bearer(&token, "/me")).await.body, "u1");
    let again = browser.send(bearer(&token, "/login/u1")).await;
    assert_eq!(
        (again.field("set-cookie").as_str(), again.body.len()),
        ("", 54)
    );
    assert_eq!(again.field("cache-control"), "no-store");
    assert_eq!(browser.send(bearer(&again.body, "/me")).await.body, "u1");
    let old = browser.send(bearer(&token, "/user")).await;
    assert_eq!(
        (old.status.as_u16(), old.field("www-authenticate").as_str()),
        (401, "Bearer error=\"invalid_token\"")
    );
    assert_eq!(
        browser.send(bearer("no-token", "/me")).await.body,
        "cookie-user",
        "not ours"
    );
    // One that opens nothing says nothing of the cookie beside it.
    let unknown = browser.send(bearer(&"A".repeat(54), "/me")).await;
    assert_eq!(
        (unknown.body.as_str(), unknown.field("set-cookie").as_str()),
        ("nobody", "")
    );
    let forged = Request::get("/me")
        .header("x-session-data", "u9")
        .header("x-user-id", "u9");
    assert_eq!(app.browser().send(forged).await.body, "nobody");
}

#[tokio::test]
async fn refusals_have_their_codes_and_challenges() {
    let clock = clock();
    let app = App::new(SessionLayer::new(memory(&clock)));
    let browser = app.browser();
    for path in ["/user", "/role/admin", "/fresh/60", "/list", "/stamp/x"] {
        let reply = browser.get(path).await;
        assert_eq!(
            (reply.status.as_u16(), reply.code().as_str()),
            (401, "SESSION_REQUIRED"),
            "{path}"
        );
        assert_eq!(reply.field("www-authenticate"), "Session");
    }
    browser.get("/login/u1?role=expert").await;
    let reply = browser.get("/role/admin").await;
    assert_eq!(
        (reply.status.as_u16(), reply.code().as_str()),
        (403, "ROLE_REQUIRED")
    );
    clock.advance(Duration::from_millis(59_999));
    assert_eq!(browser.status("/fresh/60").await, 204);
    clock.advance(Duration::from_millis(1));
    let reply = browser.get("/fresh/60").await;
    assert_eq!(
        (reply.status.as_u16(), reply.code().as_str()),
        (401, "REAUTHENTICATION_REQUIRED")
    );
    assert_eq!(
        reply.field("www-authenticate"),
        "Session error=\"insufficient_user_authentication\", max_age=60"
    );
}

#[tokio::test]
async fn the_hook_changes_every_refusal_whoever_returned_it() {
    let layer = SessionLayer::new(memory(&clock())).on_rejection(|why, response| {
        assert!(matches!(why, SessionRejection::LoginRequired));
        response
            .headers_mut()
            .insert("x-hook", http::HeaderValue::from_static("1"));
    });
    let router = App::new(layer.clone()).router().merge(
        Router::new()
            .route("/guarded", get(async || "in"))
            .layer(RequireLayer::login())
            .layer(layer),
    );
    for path in ["/user", "/role/admin", "/guarded"] {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = router.clone().oneshot(request).await.unwrap();
        assert_eq!(
            (
                response.status().as_u16(),
                response.headers().contains_key("x-hook")
            ),
            (401, true),
            "{path}"
        );
    }
}

#[tokio::test]
async fn without_the_layer_the_handle_is_a_fault_of_the_service() {
    let logged = Logged::start();
    let app = Router::new().route("/", get(async |_: Session| "in"));
    for _ in 0..3 {
        let response = app
            .clone()
            .oneshot(Request::get("/").body(Body::empty()).unwrap())
            .await
            .unwrap();
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let said = ["ERROR", "its route has no SessionLayer"];
        assert_eq!(logged.lines_with(&said), 1, "said once");
    }
}

#[tokio::test]
async fn a_guard_works_on_a_plain_service_without_axum() {
    let clock = clock();
    let layer = SessionLayer::new(memory(&clock)).cookie(SessionCookie::insecure("sid"));
    let login = ServiceBuilder::new()
        .layer(layer.clone())
        .service(service_fn(async |request: Request<String>| {
            let session = Session::of(request.extensions()).unwrap();
            session
                .login(tower_keep::core::Principal::new("u1").roles(["expert"]))
                .await
                .unwrap();
            Ok::<_, std::io::Error>(Response::new(String::new()))
        }));
    let response = login.oneshot(Request::new(String::new())).await.unwrap();
    let cookie = response.headers()["set-cookie"]
        .to_str()
        .unwrap()
        .split(';')
        .next()
        .unwrap()
        .to_owned();
    let ask = async |guard: RequireLayer, cookie: &str| {
        let inner = service_fn(async |_: Request<String>| {
            Ok::<_, std::io::Error>(Response::new("in".to_owned()))
        });
        let service = ServiceBuilder::new()
            .layer(layer.clone())
            .layer(guard)
            .service(inner);
        let request = Request::get("/")
            .header("cookie", cookie)
            .body(String::new())
            .unwrap();
        let response = service.oneshot(request).await.unwrap();
        let fields = response.headers();
        // Whom it lets in depends on the visitor, and so does the answer.
        let kept = match response.status().as_u16() {
            200 => "private",
            _ => "no-store",
        };
        assert_eq!(fields["vary"], "cookie");
        assert_eq!(fields["cache-control"], kept);
        let challenge = fields
            .get("www-authenticate")
            .map(|value| value.to_str().unwrap().to_owned());
        (response.status().as_u16(), challenge)
    };
    assert_eq!(
        ask(RequireLayer::role("expert"), &cookie).await,
        (200, None)
    );
    assert_eq!(ask(RequireLayer::role("admin"), &cookie).await, (403, None));
    assert_eq!(
        ask(RequireLayer::login(), "").await,
        (401, Some("Session".to_owned()))
    );
    clock.advance(Duration::from_secs(60));
    let stale = ask(RequireLayer::fresh(Duration::from_secs(60)), &cookie).await;
    assert_eq!(stale.0, 401);
    assert!(stale.1.unwrap().contains("max_age=60"));
}

#[tokio::test]
async fn two_layers_of_one_cookie_are_one() {
    let logged = Logged::start();
    let layer = SessionLayer::new(memory(&clock()));
    let inner = App::new(layer.clone()).router().layer(layer);
    for _ in 0..3 {
        let request = Request::get("/set/a/1").body(Body::empty()).unwrap();
        let response = inner.clone().oneshot(request).await.unwrap();
        assert_eq!(response.headers().get_all("set-cookie").iter().count(), 1);
        let said = ["WARN", "two session layers with one cookie"];
        assert_eq!(logged.lines_with(&said), 1, "said once");
    }
}

#[tokio::test]
async fn a_handle_that_outlives_its_response_is_sealed_but_reads_on() {
    let kept = Arc::new(Mutex::new(None));
    let keep = Arc::clone(&kept);
    let routes = Router::new().route(
        "/",
        get(async move |session: Session| {
            session.insert("a", &1).unwrap();
            *keep.lock() = Some(session);
        }),
    );
    let app = routes.layer(SessionLayer::new(memory(&clock())));
    app.oneshot(Request::get("/").body(Body::empty()).unwrap())
        .await
        .unwrap();
    let session: Session = kept.lock().take().unwrap();
    let kind = |error: tower_keep::session::SessionError| error.kind();
    assert_eq!(
        session.insert("a", &2).map_err(kind),
        Err(SessionErrorKind::Sealed)
    );
    assert_eq!(
        session.rotate().await.map_err(kind),
        Err(SessionErrorKind::Sealed)
    );
    assert_eq!(session.get::<u64>("a").await.unwrap(), Some(1));
    assert_eq!(
        session
            .update("a", |n: &mut u64| {
                *n += 1;
                *n
            })
            .await
            .unwrap(),
        2
    );
    assert!(session.is_live().await.unwrap());
    session.logout().await.unwrap();
    assert!(!session.is_live().await.unwrap());
}
