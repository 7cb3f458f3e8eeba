//! What the application is told, and values that nobody can read.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::routing::get;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{Request, Response, StatusCode};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tower::{ServiceBuilder, ServiceExt, service_fn};
use tower_keep::core::{ClientIp, StoreFailure};
use tower_keep::session::{
    EndCause, LoggedIn, Session, SessionError, SessionEvent, SessionEventKind, SessionId,
    SessionKey, SessionLayer, SessionLimit, SessionRejection, SessionStore, Signal,
};

use super::app::{App, Browser, Probe, clock, memory};
use crate::support::redis::shared;

type Told = Arc<Mutex<Vec<SessionEvent>>>;

fn listening(store: impl SessionStore) -> (SessionLayer, Told) {
    let told = Told::default();
    let tell = Arc::clone(&told);
    let layer = SessionLayer::new(store).on_event(move |event| tell.lock().push(event.clone()));
    (layer, told)
}

#[tokio::test]
async fn a_session_that_ends_during_its_request_is_no_signal() {
    let clock = clock();
    let (layer, told) = listening(memory(&clock));
    let browser = App::new(layer.clone()).browser();
    browser.get("/set/a/1").await;
    told.lock().clear();
    let time = clock.clone();
    let handler = get(async move |session: Session| {
        assert_eq!(session.get::<u8>("a").await.unwrap(), Some(1));
        time.advance(Duration::from_secs(900));
        session.insert("a", &2).unwrap();
    });
    let router = Router::new().route("/", handler).layer(layer);
    let request = Request::get("/").header("cookie", browser.cookie().unwrap());
    let sent = router.oneshot(request.body(Body::empty()).unwrap());
    let response = sent.await.unwrap();
    let cookie = response.headers()["set-cookie"].to_str().unwrap();
    assert!(cookie.starts_with("__Host-id=;"), "removed: {cookie}");
    let kinds: Vec<_> = told.lock().iter().map(|event| event.kind).collect();
    assert_eq!(kinds, [SessionEventKind::WriteDropped]);
}

#[tokio::test]
async fn who_is_told_may_use_the_handle_it_is_told_about() {
    let kept: Arc<Mutex<Option<Session>>> = Arc::default();
    let (keep, heard) = (Arc::clone(&kept), Arc::new(Mutex::new(Vec::new())));
    let hear = Arc::clone(&heard);
    let layer = SessionLayer::new(memory(&clock())).on_event(move |event| {
        let session = keep.lock().clone();
        let answer = session.map(|session| session.remove("a").is_ok());
        hear.lock().push((event.kind, answer));
    });
    let routes = Router::new().route(
        "/",
        get(async move |session: Session| {
            *kept.lock() = Some(session.clone());
            session.principal().await.unwrap();
            session.insert("n", &1).unwrap();
            session.commit().await.unwrap();
        }),
    );
    let unknown = format!("__Host-id={}", "A".repeat(54));
    let request = Request::get("/").header("cookie", unknown);
    let sent = routes
        .layer(layer)
        .oneshot(request.body(Body::empty()).unwrap());
    let response = tokio::time::timeout(Duration::from_secs(20), sent).await;
    assert_eq!(response.unwrap().unwrap().status(), StatusCode::OK);
    let signal = SessionEventKind::Signal(Signal::UnknownSession);
    assert_eq!(
        *heard.lock(),
        [
            (signal, Some(true)),
            (SessionEventKind::Created, Some(true))
        ]
    );
}

async fn tells_of_another_device_and_network(
    store: impl SessionStore,
    clock: &tower_keep::core::ManualClock,
) {
    let (layer, told) = listening(store);
    let app = App::new(layer);
    let browser = app.browser();
    let seen = |path: &str, agent: &str, ip: &str| {
        let request = Request::get(path).header("user-agent", agent);
        request.extension(ClientIp(ip.parse().unwrap()))
    };
    let firefox = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0";
    browser.send(seen("/login/u1", firefox, "192.0.2.1")).await;
    let renewal = async |path: &str, agent: &str, ip: &str| {
        clock.advance(Duration::from_secs(61));
        told.lock().clear();
        browser.send(seen(path, agent, ip)).await;
        let signals: Vec<_> = told
            .lock()
            .iter()
            .map(|event| {
                assert!(event.session.is_some());
                (
                    event.kind,
                    event.user.as_ref().map(|user| user.as_str().to_owned()),
                )
            })
            .collect();
        signals
    };
    let kinds = [Signal::DeviceChanged, Signal::NetworkChanged].map(SessionEventKind::Signal);
    let user = Some("u1".to_owned());
    assert_eq!(renewal("/me", firefox, "192.0.2.99").await, []);
    assert_eq!(
        renewal("/me", "curl/8", "198.51.100.1").await,
        kinds.map(|kind| (kind, user.clone()))
    );
    // A blind write renews as well, and knows no user.
    assert_eq!(
        renewal("/set/a/1", firefox, "198.51.100.1").await,
        [(kinds[0], None)]
    );
    assert_eq!(
        renewal("/update/b", firefox, "192.0.2.1").await,
        [(kinds[1], user)]
    );
    // Within the interval nothing is recorded, and nothing told.
    told.lock().clear();
    browser.send(seen("/me", "curl/8", "203.0.113.1")).await;
    assert_eq!(*told.lock(), []);
}

#[tokio::test]
async fn memory_tells_of_another_device_and_network_at_a_renewal() {
    let clock = clock();
    tells_of_another_device_and_network(memory(&clock), &clock).await;
}

#[tokio::test]
async fn redis_tells_of_another_device_and_network_at_a_renewal() {
    let clock = clock();
    let store = shared().await.store(&clock).await;
    tells_of_another_device_and_network(store, &clock).await;
}

#[tokio::test]
async fn every_end_is_told_with_its_cause_its_session_and_its_user() {
    let clock = clock();
    let store = Probe::new(memory(&clock));
    let (layer, told) = listening(store.clone());
    let layer = layer.limit(SessionLimit::evict_longest_idle(2));
    let directory = layer.directory();
    let app = App::new(layer.clone());
    let browsers: [_; 5] = std::array::from_fn(|_| app.browser());
    let [a, b, c, d, e] = &browsers;
    // What was told since, each of one of these sessions or of none, and of this user or of nobody.
    let heard = || -> Vec<(SessionEventKind, Option<usize>, bool)> {
        let whose = |event: &SessionEvent| {
            let id = event.session?.to_string();
            let of = |browser: &Browser| {
                let token = browser.cookie()?;
                let token = token.strip_prefix("__Host-id=")?.as_bytes();
                let own: SessionId = SessionId::from_bytes(
                    URL_SAFE_NO_PAD.decode(token).ok()?[..16].try_into().ok()?,
                );
                Some(own.to_string() == id)
            };
            browsers
                .iter()
                .position(|browser| of(browser) == Some(true))
        };
        let events = std::mem::take(&mut *told.lock());
        let told_of = |event: &SessionEvent| event.user.as_ref().map(|user| user.as_str() == "u1");
        let each = |event: &SessionEvent| (event.kind, whose(event), told_of(event) == Some(true));
        events.iter().map(each).collect()
    };
    use EndCause as Cause;
    use LoggedIn::{Again, First};
    use SessionEventKind as Kind;
    for browser in [a, b] {
        clock.advance(Duration::from_secs(1));
        browser.get("/login/u1").await;
    }
    heard();
    clock.advance(Duration::from_secs(1));
    c.get("/login/u1").await;
    assert_eq!(
        heard(),
        [
            (Kind::LoggedIn(First), Some(2), true),
            (Kind::Ended(Cause::Evicted), Some(0), true)
        ]
    );
    c.get("/login/u1?others&stamp=new").await;
    assert_eq!(
        heard(),
        [
            (Kind::LoggedIn(Again), Some(2), true),
            (Kind::Ended(Cause::CredentialChange), Some(1), true)
        ]
    );
    assert_eq!(c.copy().status("/stamp/newer").await, 401);
    assert_eq!(heard(), [(Kind::Ended(Cause::AuthStamp), Some(2), true)]);
    clock.advance(Duration::from_secs(1));
    for browser in [d, e] {
        browser.get("/login/u1").await;
    }
    heard();
    d.get("/revoke_others").await;
    assert_eq!(heard(), [(Kind::Ended(Cause::Revoked), Some(4), true)]);
    directory.assign_roles("u1", ["guest"]).await.unwrap();
    assert_eq!(heard(), [(Kind::RolesAssigned, None, true)]);
    // Once for a request, however often it asks.
    store.fail(true);
    assert_eq!(d.status("/read_then_write").await, 503);
    assert_eq!(heard(), [(Kind::StoreFailed, Some(3), false)]);
    let open = App::new(layer.on_store_failure(StoreFailure::Open));
    assert_eq!(d.at(&open).status("/read_then_write").await, 204);
    assert_eq!(
        heard(),
        [
            (Kind::StoreFailed, Some(3), false),
            (Kind::WriteDropped, Some(3), false)
        ]
    );
    store.fail(false);
    directory.revoke_everyone().await.unwrap();
    assert_eq!(heard(), [(Kind::EveryoneEnded, None, false)]);
    assert_eq!(d.copy().body("/maybe").await, "nobody");
    assert_eq!(heard(), []);
}

#[tokio::test]
async fn a_value_of_another_format_is_migrated_or_is_none() {
    #[derive(Debug, Default, PartialEq, Deserialize, Serialize)]
    struct Cart {
        items: Vec<String>,
    }
    /// Format 0 was one text, format 1 a list of texts.
    fn migrate(format: u8, json: &[u8]) -> Option<Cart> {
        match format {
            0 => Some(vec![serde_json::from_slice(json).ok()?]),
            1 => serde_json::from_slice(json).ok(),
            _ => None,
        }
        .map(|items| Cart { items })
    }
    const CART: SessionKey<Cart> = SessionKey::versioned("cart", 2, migrate);
    const NEXT: SessionKey<Cart> = SessionKey::versioned("cart", 3, |_, _| None);
    let (layer, told) = listening(memory(&clock()));
    let app = App::new(layer.clone());
    let routes = Router::new()
        .route(
            "/look",
            get(async |session: Session| {
                let cart = session.get(CART).await?;
                Ok::<_, SessionError>(cart.map_or("none".to_owned(), |cart| cart.items.join("+")))
            }),
        )
        .route(
            "/add",
            get(async |session: Session| {
                session
                    .update(CART, |cart| cart.items.push("tea".into()))
                    .await
            }),
        )
        .route(
            "/next",
            get(async |session: Session| session.insert(NEXT, &Cart::default())),
        )
        .layer(layer);
    let browser = app.browser();
    browser.get("/set/cart/%22cup%22").await;
    let ask = async |path: &str| {
        let request = Request::get(path).header("cookie", browser.cookie().unwrap());
        let sent = routes.clone().oneshot(request.body(Body::empty()).unwrap());
        let (parts, body) = sent.await.unwrap().into_parts();
        assert_eq!(parts.status, StatusCode::OK);
        let body = axum::body::to_bytes(body, 1_024).await.unwrap();
        String::from_utf8(body.to_vec()).unwrap()
    };
    assert_eq!(ask("/look").await, "cup");
    ask("/add").await;
    assert_eq!(ask("/look").await, "cup+tea");
    assert_eq!(
        told.lock()
            .iter()
            .filter(|event| event.kind == SessionEventKind::Undecodable)
            .count(),
        0
    );
    ask("/next").await;
    assert_eq!(ask("/look").await, "none", "written by a newer release");
    assert_eq!(
        told.lock().last().unwrap().kind,
        SessionEventKind::Undecodable
    );
}

#[tokio::test]
async fn what_cannot_be_decoded_is_none_and_the_next_patch_removes_it_unless_it_was_changed() {
    let (layer, told) = listening(memory(&clock()));
    let app = App::new(layer.clone());
    let other = app.browser();
    let browser = other.clone();
    let changing = other.clone();
    let routes = Router::new()
        .route(
            "/look",
            get(async |session: Session| {
                assert_eq!(session.get::<Vec<u8>>("a").await.unwrap(), None);
                assert_eq!(session.get::<Vec<u8>>("a").await.unwrap(), None);
            }),
        )
        .route(
            "/write",
            get(async |session: Session| {
                assert_eq!(session.get::<Vec<u8>>("a").await.unwrap(), None);
                session.insert("b", &2).unwrap();
            }),
        )
        .route(
            "/late",
            get(async move |session: Session| {
                assert_eq!(session.get::<Vec<u8>>("a").await.unwrap(), None);
                changing.get("/set/a/3").await;
                session.insert("c", &4).unwrap();
            }),
        )
        .layer(layer);
    let ask = async |path: &str| {
        let request = Request::get(path).header("cookie", other.cookie().unwrap());
        let sent = routes.clone().oneshot(request.body(Body::empty()).unwrap());
        assert_eq!(sent.await.unwrap().status(), StatusCode::OK);
    };
    browser.get("/set/a/%22text%22").await;
    told.lock().clear();
    ask("/look").await;
    let kinds: Vec<_> = told.lock().iter().map(|event| event.kind).collect();
    assert_eq!(kinds, [SessionEventKind::Undecodable]);
    assert!(told.lock()[0].session.is_some());
    assert_eq!(
        browser.body("/get/a").await,
        "\"text\"",
        "reading removes nothing"
    );
    ask("/write").await;
    assert_eq!(browser.body("/get/a").await, "null");
    assert_eq!(browser.body("/get/b").await, "2");
    browser.get("/set/a/%22text%22").await;
    ask("/late").await;
    assert_eq!(browser.body("/get/a").await, "3", "changed meanwhile");
    assert_eq!(browser.body("/get/c").await, "4", "and the write is kept");
}

#[tokio::test]
async fn the_hook_is_asked_about_a_refusal_of_a_handler_that_asked_nothing() {
    let layer = SessionLayer::new(memory(&clock())).on_rejection(|_, response| {
        response
            .headers_mut()
            .insert("x-hook", http::HeaderValue::from_static("1"));
    });
    let inner = service_fn(async |_: Request<String>| {
        let refusal = SessionRejection::RoleRequired.response();
        Ok::<_, std::convert::Infallible>(refusal.map(http_body_util::Full::new))
    });
    let service = ServiceBuilder::new().layer(layer).service(inner);
    let response: Response<_> = service.oneshot(Request::new(String::new())).await.unwrap();
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
    assert!(response.headers().contains_key("x-hook"));
    assert!(!response.headers().contains_key("vary"), "nobody was asked");
}
