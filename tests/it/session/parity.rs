//! What people know from elsewhere, over loopback: the thirteen route cases of tower-sessions' published suite, and
//! Django's session contract. Where we differ on purpose a test says how; the list stands in the session docs.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::json;
use tower_keep::core::ManualClock;
use tower_keep::session::{SameSite, SessionCookie, SessionEventKind, SessionLayer};

use super::app::{App, Probe, clock, memory};
use super::judges::listen;
use crate::support::browser::{Browser, Reply};

/// A `Set-Cookie` line, taken apart.
#[derive(Debug)]
struct Cookie {
    name: String,
    value: String,
    attributes: BTreeMap<String, String>,
}

impl Cookie {
    fn of(reply: &Reply) -> Option<Self> {
        let mut lines = reply.headers.get_all("set-cookie").iter();
        let line = lines.next()?.to_str().unwrap();
        assert!(lines.next().is_none(), "one cookie, one line");
        let mut parts = line.split("; ");
        let (name, value) = parts.next().unwrap().split_once('=').unwrap();
        let attributes = parts.map(|part| part.split_once('=').unwrap_or((part, "")));
        Some(Self {
            name: name.to_owned(),
            value: value.to_owned(),
            attributes: attributes
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
        })
    }

    fn has(&self, name: &str) -> Option<&str> {
        self.attributes.get(name).map(String::as_str)
    }
}

/// An application over loopback, and what moves its time.
struct Site {
    app: App,
    server: SocketAddr,
    browser: Browser,
    clock: ManualClock,
    store: Probe,
    told: Arc<Mutex<Vec<SessionEventKind>>>,
}

const NAME: &str = "__Host-id";

impl Site {
    async fn new() -> Self {
        Self::with(|layer| layer).await
    }

    async fn with(set: impl FnOnce(SessionLayer) -> SessionLayer) -> Self {
        let (clock, told) = (clock(), Arc::<Mutex<Vec<_>>>::default());
        let (store, tell) = (Probe::new(memory(&clock)), Arc::clone(&told));
        let layer = SessionLayer::new(store.clone());
        let app = App::new(set(
            layer.on_event(move |event| tell.lock().push(event.kind))
        ));
        let server = listen(app.router()).await;
        Self {
            app,
            server,
            browser: Browser::new(server),
            clock,
            store,
            told,
        }
    }

    async fn text(&self, path: &str) -> String {
        text(&self.browser, path).await
    }

    /// Another browser that holds this token.
    fn holding(&self, token: &str) -> Browser {
        let other = Browser::new(self.server);
        other.plant(NAME, token);
        other
    }
}

async fn text(browser: &Browser, path: &str) -> String {
    let reply = browser.get(path).await;
    assert!(reply.status.is_success(), "{path}: {reply:?}");
    reply.text().to_owned()
}

// The thirteen route cases of tower-sessions, in its order.

#[tokio::test]
async fn a_route_that_sets_nothing_sends_no_cookie() {
    let site = Site::new().await;
    for path in ["/none", "/get/foo", "/me"] {
        assert!(
            Cookie::of(&site.browser.get(path).await).is_none(),
            "{path}"
        );
    }
}

#[tokio::test]
async fn a_bogus_cookie_is_replaced_by_one_made_here_when_something_is_written() {
    let site = Site::new().await;
    let bogus = "A".repeat(54);
    site.browser.plant(NAME, &bogus);
    let reply = site.browser.get("/set/foo/42").await;
    assert_eq!(reply.status, 204);
    let cookie = Cookie::of(&reply).unwrap();
    assert_ne!(
        cookie.value[..22],
        bogus[..22],
        "not even the id is taken over"
    );
    assert_eq!(site.text("/get/foo").await, "42");
}

#[tokio::test]
async fn a_malformed_cookie_is_removed_by_the_first_route_that_asks_and_not_before() {
    let site = Site::new().await;
    site.browser.plant(NAME, "malformed");
    let untouched = site.browser.get("/none").await;
    assert_eq!(
        (untouched.status.as_u16(), Cookie::of(&untouched).is_none()),
        (200, true)
    );
    let asked = site.browser.get("/get/foo").await;
    let cookie = Cookie::of(&asked).unwrap();
    assert_eq!((asked.status.as_u16(), cookie.value.as_str()), (200, ""));
    assert_eq!(site.store.calls(), 0);
}

#[tokio::test]
async fn a_first_write_sends_a_cookie_with_every_attribute_that_keeps_it_safe() {
    let site = Site::with(|layer| {
        layer
            .idle_timeout(Duration::from_secs(3_600))
            .cookie(SessionCookie::host("id").same_site(SameSite::Strict))
    });
    let site = site.await;
    let cookie = Cookie::of(&site.browser.get("/set/foo/42").await).unwrap();
    assert_eq!(cookie.name, NAME);
    let expected = [
        ("HttpOnly", ""),
        ("Path", "/"),
        ("SameSite", "Strict"),
        ("Secure", ""),
    ];
    let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
    // The server decides how long: an hour of inactivity is no Max-Age, and no cookie has to be sent again for it.
    assert_eq!(cookie.attributes, BTreeMap::from(expected));
}

#[tokio::test]
async fn without_a_remembered_login_the_cookie_ends_with_the_browser() {
    let site = Site::new().await;
    for path in ["/set/foo/42", "/login/u1", "/rotate"] {
        let cookie = Cookie::of(&site.browser.get(path).await).unwrap();
        assert_eq!(
            (cookie.has("Max-Age"), cookie.has("Expires")),
            (None, None),
            "{path}"
        );
        assert_eq!(cookie.has("SameSite"), Some("Lax"), "the default");
    }
}

#[tokio::test]
async fn what_one_request_wrote_the_next_one_reads() {
    let site = Site::new().await;
    site.browser.get("/set/foo/42").await;
    assert_eq!(site.text("/get/foo").await, "42");
}

#[tokio::test]
async fn a_value_that_nobody_wrote_is_none() {
    let site = Site::new().await;
    assert_eq!(site.text("/get/foo").await, "null");
    site.browser.get("/set/bar/1").await;
    assert_eq!(site.text("/get/foo").await, "null");
}

#[tokio::test]
async fn the_last_value_can_be_removed_and_the_session_lives_on() {
    let site = Site::new().await;
    site.browser.get("/set/foo/42").await;
    let removal = site.browser.get("/remove/foo").await;
    assert_eq!(
        (removal.status.as_u16(), Cookie::of(&removal).is_none()),
        (204, true)
    );
    assert_eq!(site.text("/get/foo").await, "null");
    assert_eq!(site.text("/expires").await, "900000");
}

#[tokio::test]
async fn a_rotation_changes_the_token_and_keeps_the_data() {
    let site = Site::new().await;
    site.browser.get("/set/foo/42").await;
    let first = site.browser.cookie(NAME).unwrap();
    let second = Cookie::of(&site.browser.get("/rotate").await)
        .unwrap()
        .value;
    assert_ne!(first, second);
    assert_eq!(first[..21], second[..21], "the id is public and stays");
    assert_eq!(site.text("/get/foo").await, "42");
    let old = site.holding(&first);
    assert_eq!(
        text(&old, "/get/foo").await,
        "null",
        "the token before opens nothing"
    );
}

#[tokio::test]
async fn an_ended_session_takes_its_cookie_along() {
    let site = Site::new().await;
    site.browser.get("/set/foo/42").await;
    let token = site.browser.cookie(NAME).unwrap();
    let cookie = Cookie::of(&site.browser.get("/logout").await).unwrap();
    assert_eq!(
        (
            cookie.value.as_str(),
            cookie.has("Max-Age"),
            cookie.has("Path")
        ),
        ("", Some("0"), Some("/"))
    );
    let thief = site.holding(&token);
    assert_eq!(text(&thief, "/get/foo").await, "null", "and its data");
}

#[tokio::test]
async fn a_removal_repeats_the_domain() {
    let wide = SessionCookie::domain("id", "localhost").partitioned();
    let site = Site::with(|layer| layer.cookie(wide)).await;
    let set = Cookie::of(&site.browser.get("/set/foo/42").await).unwrap();
    let removal = Cookie::of(&site.browser.get("/logout").await).unwrap();
    assert_eq!(
        (set.name.as_str(), removal.name.as_str()),
        ("__Secure-id", "__Secure-id")
    );
    assert_eq!(
        (removal.value.as_str(), removal.has("Max-Age")),
        ("", Some("0"))
    );
    let mut repeated = removal.attributes;
    repeated.retain(|name, _| !["Max-Age", "Expires"].contains(&name.as_str()));
    assert_eq!(repeated, set.attributes);
    assert_eq!(repeated["Domain"], "localhost");
}

#[tokio::test]
async fn a_login_can_be_remembered_for_a_day() {
    let site = Site::new().await;
    let cookie = Cookie::of(&site.browser.get("/login/u1?remember=86400").await).unwrap();
    assert_eq!(cookie.has("Max-Age"), Some("86400"));
    site.clock.advance(Duration::from_millis(86_399_999));
    assert_eq!(
        site.text("/expires").await,
        "1",
        "idle or not, and by the server's clock"
    );
    site.clock.advance(Duration::from_millis(1));
    assert_eq!(site.text("/me").await, "nobody");
}

#[tokio::test]
async fn how_long_a_login_lasts_changes_with_the_next_login() {
    let site = Site::new().await;
    for (path, max_age) in [
        ("/login/u1", None),
        ("/login/u1?remember=86400", Some("86400")),
        ("/login/u1?remember=3600", Some("3600")),
        ("/login/u1", None),
    ] {
        let cookie = Cookie::of(&site.browser.get(path).await).unwrap();
        assert_eq!(cookie.has("Max-Age"), max_age, "{path}");
    }
    assert_eq!(
        site.text("/expires").await,
        "900000",
        "the layer's own again"
    );
}

// Django's session contract, rule by rule.

#[tokio::test]
async fn only_what_asked_the_session_varies_with_the_cookie() {
    let site = Site::new().await;
    site.browser.get("/set/foo/42").await;
    let untouched = site.browser.get("/none").await;
    assert_eq!(
        (untouched.header("vary"), untouched.header("cache-control")),
        ("", "")
    );
    let read = site.browser.get("/get/foo").await;
    // Django leaves Cache-Control alone.
    assert_eq!(
        (read.header("vary"), read.header("cache-control")),
        ("cookie", "private")
    );
}

#[tokio::test]
async fn only_what_changed_is_written_and_no_cookie_is_renewed() {
    let site = Site::new().await;
    site.browser.get("/set/foo/42").await;
    site.store.calls();
    // Django sends its cookie again, with a new end, whenever something was saved.
    for (path, calls) in [("/none", 0), ("/get/foo", 1), ("/set/foo/43", 1)] {
        let reply = site.browser.get(path).await;
        assert_eq!(
            (site.store.calls(), Cookie::of(&reply).is_none()),
            (calls, true),
            "{path}"
        );
    }
}

#[tokio::test]
async fn a_5xx_saves_nothing_and_sends_no_cookie_but_takes_back_no_login() {
    let site = Site::new().await;
    let failed = site.browser.get("/fail/write").await;
    assert_eq!(
        (failed.status.as_u16(), Cookie::of(&failed).is_none()),
        (500, true)
    );
    site.browser.get("/set/foo/42").await;
    assert_eq!(site.browser.get("/fail/write").await.status, 500);
    assert_eq!(site.text("/get/lost").await, "null");
    // Django would save the login neither: then the client holds a key that is gone.
    let login = site.browser.get("/fail/login").await;
    assert_eq!(
        (login.status.as_u16(), Cookie::of(&login).is_some()),
        (500, true)
    );
    assert_eq!(site.text("/me").await, "u1");
}

#[tokio::test]
async fn a_session_without_data_is_still_a_session() {
    let site = Site::new().await;
    site.browser.get("/login/u1").await;
    site.browser.get("/set/foo/42").await;
    // Django removes the cookie of an emptied session, and with it the login.
    assert!(Cookie::of(&site.browser.get("/clear").await).is_none());
    assert_eq!(
        (site.text("/get/foo").await, site.text("/me").await),
        ("null".into(), "u1".into())
    );
}

#[tokio::test]
async fn ending_what_never_began_sends_no_cookie_and_makes_no_session() {
    let site = Site::new().await;
    for path in ["/logout", "/clear", "/remove/foo"] {
        let reply = site.browser.get(path).await;
        assert_eq!(
            (reply.status.as_u16(), Cookie::of(&reply).is_none()),
            (204, true),
            "{path}"
        );
        assert_eq!(reply.header("vary"), "cookie", "{path}");
    }
    assert_eq!(site.store.calls(), 0);
}

#[tokio::test]
async fn a_login_keeps_what_the_visitor_had_and_drops_what_another_user_had() {
    let site = Site::new().await;
    site.browser.get("/set/cart/7").await;
    let anonymous = site.browser.cookie(NAME).unwrap();
    site.browser.get("/login/u1").await;
    assert_ne!(site.browser.cookie(NAME).unwrap(), anonymous, "a new key");
    assert_eq!(site.text("/get/cart").await, "7");
    site.browser.get("/login/u1").await;
    assert_eq!(site.text("/get/cart").await, "7", "the same user");
    site.browser.get("/login/u2").await;
    assert_eq!(site.text("/get/cart").await, "null", "another one");
    let planted = site.holding(&anonymous);
    assert_eq!(
        text(&planted, "/me").await,
        "nobody",
        "whoever planted it holds nothing"
    );
}

#[tokio::test]
async fn a_session_that_ended_meanwhile_is_not_saved_again_and_the_answer_stands() {
    let site = Site::new().await;
    site.browser.get("/login/u1").await;
    let late = site.browser.clone();
    let late = tokio::spawn(async move { late.get("/slow_write/foo").await });
    while site.app.door.waiting.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    let token = site.browser.cookie(NAME).unwrap();
    assert_eq!(site.browser.get("/logout").await.status, 204);
    site.told.lock().clear();
    site.app.door.open();
    let late = late.await.unwrap();
    // Django answers 400 here; whoever must know calls `commit`.
    assert_eq!(
        (late.status.as_u16(), Cookie::of(&late).is_none()),
        (204, true)
    );
    assert_eq!(*site.told.lock(), [SessionEventKind::WriteDropped]);
    let thief = site.holding(&token);
    assert_eq!(text(&thief, "/maybe").await, "nobody");
    assert_eq!(text(&thief, "/get/foo").await, "null");
}

#[tokio::test]
async fn parallel_requests_keep_each_others_changes() {
    let site = Site::new().await;
    site.browser.get("/set/start/1").await;
    let write = |path: &'static str| {
        let browser = site.browser.clone();
        async move { browser.get(path).await.status.as_u16() }
    };
    // Django saves the whole session, so that one of the two is lost.
    let (one, two) = tokio::join!(write("/slow_write/a"), async {
        while site.app.door.waiting.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        let status = write("/set/b/2").await;
        site.app.door.open();
        status
    });
    assert_eq!((one, two), (204, 204));
    assert_eq!(
        (site.text("/get/a").await, site.text("/get/b").await),
        ("1".into(), "2".into())
    );
}

#[tokio::test]
async fn a_session_ends_after_its_time_without_a_request_and_its_age_can_be_asked() {
    let site = Site::with(|layer| layer.idle_timeout(Duration::from_secs(300))).await;
    site.browser.get("/login/u1").await;
    assert_eq!(site.text("/expires").await, "300000");
    site.clock.advance(Duration::from_millis(299_999));
    // Django counts from the last change unless it saves every request; here a read is activity as well.
    assert_eq!(site.text("/me").await, "u1");
    site.clock.advance(Duration::from_millis(299_999));
    assert_eq!(site.text("/me").await, "u1");
    site.clock.advance(Duration::from_secs(300));
    let over = site.browser.get("/get/foo").await;
    assert_eq!(
        (
            over.status.as_u16(),
            Cookie::of(&over).unwrap().value.as_str()
        ),
        (200, "")
    );
    assert_eq!(site.text("/expires").await, "null");
}

#[tokio::test]
async fn a_password_that_changed_elsewhere_ends_the_session_where_it_is_asked() {
    let site = Site::new().await;
    site.browser.get("/login/u1?stamp=old").await;
    assert_eq!(site.browser.get("/stamp/old").await.status, 204);
    let refused = site.browser.get("/stamp/new").await;
    assert_eq!(
        (refused.status.as_u16(), refused.code().as_str()),
        (401, "SESSION_REQUIRED")
    );
    assert_eq!(Cookie::of(&refused).unwrap().value, "");
    // Changed here, the session goes on: Django's update_session_auth_hash.
    site.browser.get("/login/u1?stamp=old").await;
    site.browser.get("/login/u1?stamp=new&others=1").await;
    assert_eq!(site.browser.get("/stamp/new").await.status, 204);
}

#[tokio::test]
async fn what_is_put_in_comes_out_the_same() {
    let site = Site::new().await;
    for value in [
        json!({"a": [1, 2.5, null, true, "ü"], "1": {"deep": []}}),
        json!(-9_007_199_254_740_991_i64),
        json!("a \"quoted\" text; with = signs\n"),
    ] {
        let text: String = form_urlencoded::byte_serialize(value.to_string().as_bytes()).collect();
        let text = text.replace('+', "%20");
        assert_eq!(
            site.browser.get(&format!("/set/foo/{text}")).await.status,
            204
        );
        assert_eq!(site.browser.get("/get/foo").await.json(), value);
    }
}
