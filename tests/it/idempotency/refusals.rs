//! Who is refused, in which order, and what it is told.

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body_util::Full;
use tower_keep::core::{ClientIp, Principal};
use tower_keep::idempotency::{
    DerivedKey, FingerprintRule, IdempotencyLayer, KeyFormat, Scope, ScopeId,
};

use super::{App, clock, layer, memory, post};

fn user(name: &str, key: &str, body: &'static str) -> Request<Full<Bytes>> {
    let mut request = post("/pay", key, body);
    request.extensions_mut().insert(Principal::new(name));
    request
}

#[tokio::test]
async fn keys_are_read_and_refused_as_the_format_says() {
    let long: &'static str = "k".repeat(256).leak();
    let app = App::new(layer(memory(&clock())).require_key());
    let none = Request::post("/pay").body(Full::default()).unwrap();
    app.send(none)
        .await
        .check_refused(400, "IDEMPOTENCY_KEY_MISSING");
    for bad in ["", long, "a,b", "a b", "\"a", "a\"", "\"\"", "\"a\\b\""] {
        app.post(bad, "{}")
            .await
            .check_refused(400, "IDEMPOTENCY_KEY_INVALID");
    }
    let mut twice = post("/pay", "k", "{}");
    twice
        .headers_mut()
        .append("idempotency-key", "k".parse().unwrap());
    app.send(twice)
        .await
        .check_refused(400, "IDEMPOTENCY_KEY_INVALID");
    assert_eq!(app.runs(), 0);
    app.post("k", "{}").await;
    assert!(
        app.post("\"k\"", "{}").await.is_replay(),
        "quoted or bare is one key"
    );
    assert!(!app.post("K", "{}").await.is_replay());
    let app = App::new(layer(memory(&clock())).key_format(KeyFormat::uuid()));
    app.post("8e03978e-40d5-43dd-bc93-6894a57f9324", "{}").await;
    assert!(
        app.post("\"8E03978E-40D5-43DD-BC93-6894A57F9324\"", "{}")
            .await
            .is_replay()
    );
    app.post("8e03978e40d543ddbc936894a57f9324", "{}")
        .await
        .check_refused(400, "IDEMPOTENCY_KEY_INVALID");
}

#[tokio::test]
async fn the_key_reaches_the_handler_unchanged_and_marked_sensitive() {
    let app = App::with(layer(memory(&clock())), |request, _| async move {
        let key = &request.headers()["idempotency-key"];
        assert!(key.is_sensitive());
        Response::new(Full::from(key.to_str().unwrap().to_owned()))
    });
    assert_eq!(app.post("\"k\"", "{}").await.body, "\"k\"");
}

#[tokio::test]
async fn another_caller_never_gets_the_answer_and_nobody_is_403() {
    let layer = IdempotencyLayer::new(memory(&clock()), Scope::principal());
    let app = App::new(layer);
    assert_eq!(app.send(user("ana", "k", "{}")).await.body, "run 1");
    assert_eq!(app.send(user("ben", "k", "{}")).await.body, "run 2");
    assert_eq!(app.send(user("ana", "k", "{}")).await.body, "run 1");
    app.post("k", "{}")
        .await
        .check_refused(403, "IDEMPOTENCY_SCOPE_MISSING");
    let scope = Scope::principal().or_client_ip();
    let app = App::new(IdempotencyLayer::new(memory(&clock()), scope));
    let from = |ip: &str| {
        let mut request = post("/pay", "k", "{}");
        request
            .extensions_mut()
            .insert(ClientIp(ip.parse().unwrap()));
        request
    };
    assert_eq!(app.send(from("192.0.2.1")).await.body, "run 1");
    assert_eq!(app.send(from("192.0.2.2")).await.body, "run 2");
    assert_eq!(app.send(user("192.0.2.1", "k", "{}")).await.body, "run 3");
    assert_eq!(app.send(from("::ffff:192.0.2.1")).await.body, "run 1");
    let scope = Scope::by(|parts| {
        parts
            .headers
            .get("x-tenant")
            .map(|own| ScopeId::new(own.as_bytes()))
    });
    let app = App::new(IdempotencyLayer::new(memory(&clock()), scope));
    app.post("k", "{}")
        .await
        .check_refused(403, "IDEMPOTENCY_SCOPE_MISSING");
}

#[tokio::test]
async fn another_payload_is_422_whatever_differs() {
    let app = App::new(layer(memory(&clock())));
    app.send(post("/pay?b=1&a=2", "k", "{}")).await;
    assert!(
        app.send(post("/pay?a=2&b=1", "k", "{}")).await.is_replay(),
        "order of names"
    );
    let mut other_type = post("/pay?b=1&a=2", "k", "{}");
    other_type
        .headers_mut()
        .insert("content-type", "text/plain".parse().unwrap());
    let mut other_method = post("/pay?b=1&a=2", "k", "{}");
    *other_method.method_mut() = http::Method::PATCH;
    for other in [
        post("/pay?b=1&a=2", "k", "{} "),
        post("/pay?b=1", "k", "{}"),
        post("/pay?b=1&a=3", "k", "{}"),
        post("/refund?b=1&a=2", "k", "{}"),
        other_type,
        other_method,
    ] {
        app.send(other)
            .await
            .check_refused(422, "IDEMPOTENCY_KEY_REUSED");
    }
    assert_eq!(app.runs(), 1);
}

#[tokio::test]
async fn endpoints_and_namespaces_can_have_keys_of_their_own() {
    let store = memory(&clock());
    let app = App::new(layer(store.clone()).per_endpoint());
    assert_eq!(app.send(post("/pay", "k", "{}")).await.body, "run 1");
    assert_eq!(app.send(post("/refund", "k", "{}")).await.body, "run 2");
    let other = App::new(layer(store).namespace("other"));
    assert_eq!(other.send(post("/pay", "k", "{}")).await.body, "run 1");
}

#[tokio::test]
async fn json_counts_by_value_when_asked_for() {
    let rule = FingerprintRule::json().exclude("/sent_at");
    let app = App::new(layer(memory(&clock())).fingerprint(rule));
    app.post("k", r#"{"a":1.0,"b":"x","sent_at":1}"#).await;
    assert!(
        app.post("k", r#"{ "b":"\u0078", "sent_at":2, "a":1 }"#)
            .await
            .is_replay()
    );
    app.post("k", r#"{"a":1.5,"b":"x"}"#)
        .await
        .check_refused(422, "IDEMPOTENCY_KEY_REUSED");
}

#[tokio::test]
async fn refusals_come_in_their_order() {
    let layer = IdempotencyLayer::new(memory(&clock()), Scope::principal())
        .derive(DerivedKey::fields("book").text("id"))
        .max_request_body(8);
    let app = App::new(layer.clone());
    // Neither scope, nor size, nor field is right.
    app.post("x", "{\"wrong\":1}")
        .await
        .check_refused(403, "IDEMPOTENCY_SCOPE_MISSING");
    app.send(user("ana", "x", "{\"wrong\":1}"))
        .await
        .check_refused(413, "BODY_TOO_LARGE");
    app.send(user("ana", "x", "{\"x\":1}"))
        .await
        .check_refused(400, "IDEMPOTENCY_FIELDS_INVALID");
    let by_field =
        App::new(IdempotencyLayer::new(memory(&clock()), Scope::principal()).max_request_body(1));
    by_field
        .post("a,b", "{}")
        .await
        .check_refused(400, "IDEMPOTENCY_KEY_INVALID");
    by_field
        .post("a", "{}")
        .await
        .check_refused(403, "IDEMPOTENCY_SCOPE_MISSING");
    by_field
        .send(user("ana", "a", "{}"))
        .await
        .check_refused(413, "BODY_TOO_LARGE");
    assert_eq!((app.runs(), by_field.runs()), (0, 0));
}

#[tokio::test]
async fn a_request_body_that_breaks_off_claims_nothing() {
    use tower::{Layer, ServiceExt, service_fn};
    let store = memory(&clock());
    let frames = vec![
        Ok(http_body::Frame::data(Bytes::from("ab"))),
        Err(std::io::Error::other("cut")),
    ];
    let body = http_body_util::StreamBody::new(futures_util::stream::iter(frames));
    let inner = service_fn(|_: Request<_>| async {
        Ok::<_, std::convert::Infallible>(Response::new(Full::<Bytes>::default()))
    });
    let request = Request::post("/pay")
        .header("idempotency-key", "k")
        .body(body)
        .unwrap();
    let response = layer(store.clone())
        .layer(inner)
        .oneshot(request)
        .await
        .unwrap();
    assert_eq!(response.status(), 400);
    assert_eq!(App::new(layer(store)).post("k", "other").await.status, 201);
}

#[tokio::test]
async fn a_problem_says_what_is_wrong_and_echoes_nothing_but_by_the_hook() {
    let layer = layer(memory(&clock()))
        .documentation(Uri::from_static("https://api.example/idempotency"))
        .on_rejection(|why, response| {
            assert!(!format!("{why:?}").contains("secret-key"));
            let key = why
                .client_key()
                .map(|key| key.as_bytes().to_vec())
                .unwrap_or_default();
            response
                .headers_mut()
                .insert("x-key", key.as_slice().try_into().unwrap());
            if why.status() == 422 {
                *response.status_mut() = http::StatusCode::BAD_REQUEST;
            }
        });
    let app = App::new(layer);
    app.post("secret-key", "{}").await;
    let refused = app.post("secret-key", "{\"x\":1}").await;
    assert_eq!(refused.status, 400);
    let problem = refused.problem();
    assert_eq!(problem["code"], "IDEMPOTENCY_KEY_REUSED");
    assert_eq!(problem["title"], "Idempotency-Key is already used");
    assert_eq!(problem["retryable"], false);
    assert!(
        problem["type"]
            .as_str()
            .unwrap()
            .ends_with("#IDEMPOTENCY_KEY_REUSED")
    );
    let instance = problem["instance"]
        .as_str()
        .unwrap()
        .strip_prefix("urn:uuid:")
        .unwrap();
    assert_eq!(instance.parse::<uuid::Uuid>().unwrap().get_version_num(), 4);
    assert!(!String::from_utf8_lossy(&refused.body).contains("secret-key"));
    assert_eq!(refused.headers["x-key"], "secret-key");
    assert_eq!(refused.headers["content-language"], "en");
    assert_eq!(refused.headers["cache-control"], "no-store");
    assert_eq!(
        refused.headers["link"],
        "<https://api.example/idempotency>; rel=\"describedby\""
    );
}

#[tokio::test]
async fn a_webhook_is_known_by_its_id_whatever_else_its_body_says() {
    use tower_keep::idempotency::Preset;
    let app = App::new(layer(memory(&clock())).preset(Preset::Webhook));
    assert_eq!(
        app.post("-", r#"{"id":"evt_1","attempt":1}"#).await.body,
        "run 1"
    );
    assert!(
        app.post("-", r#"{"id":"evt_1","attempt":2}"#)
            .await
            .is_replay()
    );
    app.post("-", r#"{"attempt":2}"#)
        .await
        .check_refused(400, "IDEMPOTENCY_FIELDS_INVALID");
    let app = App::new(
        layer(memory(&clock()))
            .preset(Preset::Webhook)
            .header("webhook-id".parse().unwrap())
            .require_key(),
    );
    let event = |id: &str| {
        let request = Request::post("/hook").header("webhook-id", id);
        request.body(Full::from("anything")).unwrap()
    };
    app.send(event("1")).await;
    assert!(app.send(event("1")).await.is_replay());
    assert!(!app.send(event("2")).await.is_replay());
}
