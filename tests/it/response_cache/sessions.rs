//! The real session layer inside and outside of the cache: an answer whose session was touched is for one.

use axum::Router;
use axum::body::{Body, Bytes};
use axum::routing::get;
use http::{Request, StatusCode, header};
use http_body_util::BodyExt;
use tower::ServiceExt;
use tower_keep::MINUTE;
use tower_keep::backend::memory::MemoryStore;
use tower_keep::core::Principal;
use tower_keep::response_cache::ResponseCacheLayer;
use tower_keep::session::{Session, SessionCookie, SessionLayer};

async fn login(session: Session) -> StatusCode {
    session.login(Principal::new("anna")).await.unwrap();
    StatusCode::NO_CONTENT
}

async fn name(session: &Session) -> String {
    let who = session.principal().await.unwrap();
    who.map_or_else(|| "nobody".into(), |who| who.id().to_owned())
}

async fn early(session: Session) -> String {
    name(&session).await
}

async fn extracted(who: Result<Principal, tower_keep::core::PrincipalRejection>) -> String {
    who.map_or_else(|_| "nobody".into(), |who| who.id().to_owned())
}

/// The session is asked only when the head has long left.
async fn late(session: Session) -> Body {
    let frames = futures_util::stream::unfold(Some(session), |session| async {
        tokio::task::yield_now().await;
        let name = name(&session?).await;
        Some((Ok::<_, std::convert::Infallible>(Bytes::from(name)), None))
    });
    Body::from_stream(frames)
}

async fn untouched(_: Session) -> &'static str {
    "the same for all"
}

/// `layer` puts session and cache around the routes, one way or the other.
async fn nothing_personal_is_stored(
    layer: impl FnOnce(Router, SessionLayer, ResponseCacheLayer) -> Router,
) {
    let store = MemoryStore::new();
    let sessions = SessionLayer::new(store.clone()).cookie(SessionCookie::insecure("id"));
    let cache = ResponseCacheLayer::new(store).ttl(MINUTE);
    let routes = Router::new()
        .route("/login", axum::routing::post(login))
        .route("/early", get(early))
        .route("/extracted", get(extracted))
        .route("/late", get(late))
        .route("/untouched", get(untouched));
    let app = layer(routes, sessions, cache);
    let send = async |method: &str, path: &str, cookie: &str| {
        let request = Request::builder().method(method).uri(path);
        let request = request.header(header::COOKIE, cookie).body(Body::empty());
        app.clone().oneshot(request.unwrap()).await.unwrap()
    };
    let cookie = send("POST", "/login", "").await.headers()[header::SET_COOKIE].clone();
    let anna = cookie
        .to_str()
        .unwrap()
        .split(';')
        .next()
        .unwrap()
        .to_owned();
    for path in ["/early", "/extracted", "/late"] {
        for (cookie, expected) in [(&anna[..], "anna"), ("", "nobody"), (&anna[..], "anna")] {
            let response = send("GET", path, cookie).await;
            assert!(!response.headers().contains_key(header::AGE), "{path}");
            let body = response.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(body, expected, "{path}");
        }
    }
    send("GET", "/untouched", &anna).await;
    assert!(
        send("GET", "/untouched", "")
            .await
            .headers()
            .contains_key(header::AGE)
    );
}

#[tokio::test]
async fn a_session_layer_outside_keeps_touched_answers_out() {
    nothing_personal_is_stored(|routes, sessions, cache| routes.layer(cache).layer(sessions)).await;
}

#[tokio::test]
async fn a_session_layer_inside_keeps_touched_answers_out() {
    nothing_personal_is_stored(|routes, sessions, cache| routes.layer(sessions).layer(cache)).await;
}
