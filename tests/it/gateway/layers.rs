//! Each layer of the gateway where its option is given, and none where it is not.

use crate::gateway::wire::{Gateway, response};

#[tokio::test]
async fn a_retry_of_a_payment_reaches_the_origin_once() {
    let gateway = Gateway::start(&[
        "--idempotency",
        "payments",
        "--idempotency-replay-header",
        "X-Again",
    ])
    .await;
    gateway.origin.says(
        "/pay",
        [response(201, &[], "paid"), response(201, &[], "twice")],
    );
    let pay = || gateway.send("POST", "/pay", &[("Idempotency-Key", "k-1")], "{}");
    let (first, again) = (pay().await, pay().await);
    assert_eq!(
        (first.status, &first.text()[..], first.field("x-again")),
        (201, "paid", "")
    );
    assert_eq!(
        (again.status, &again.text()[..], again.field("x-again")),
        (201, "paid", "true")
    );
    assert_eq!(gateway.origin.seen("/pay").len(), 1);
    assert_eq!(gateway.send("POST", "/pay", &[], "{}").await.status, 400);
}

#[tokio::test]
async fn every_option_of_idempotency_is_understood() {
    let gateway = Gateway::start(&[
        "--idempotency",
        "api",
        "--idempotency-scope",
        "global",
        "--idempotency-require-key",
        "--idempotency-header",
        "X-Key",
        "--idempotency-key-format",
        "lenient:4",
        "--idempotency-namespace",
        "shop",
        "--idempotency-per-endpoint",
        "--idempotency-secret",
        &"0f".repeat(32),
        "--idempotency-methods",
        "unsafe",
        "--idempotency-fingerprint",
        "json,header=X-Tenant,exclude=/at,digests",
        "--idempotency-ttl",
        "60",
        "--idempotency-lease",
        "5",
        "--idempotency-run-limit",
        "30",
        "--idempotency-at-lease-end",
        "indeterminate",
        "--idempotency-twins",
        "attach=2",
        "--idempotency-statuses",
        "success-only",
        "--idempotency-on",
        "409=store:10",
        "--idempotency-max-request-body",
        "1000",
        "--idempotency-max-response-body",
        "1000",
        "--idempotency-tee-up-to",
        "4000",
        "--idempotency-replay-only",
        "x-kept,x-drop",
        "--idempotency-sanitize",
        "x-drop",
        "--idempotency-report-status",
        "--idempotency-on-store-failure",
        "closed",
        "--idempotency-documentation",
        "https://example.com/keys",
        "--idempotency-on-rejection",
        "IDEMPOTENCY_KEY_INVALID=422",
    ])
    .await;
    let said = [("X-Kept", "1"), ("X-Drop", "2"), ("X-Other", "3")];
    gateway.origin.says("/p", [response(409, &said, "no")]);
    let put = |body: &'static str| {
        gateway.send(
            "PUT",
            "/p",
            &[("X-Key", "key1"), ("Content-Type", "application/json")],
            body,
        )
    };
    let first = put(r#"{"a":1,"at":1}"#).await;
    let again = put(r#"{"at":2,"a":1.0}"#).await;
    assert_eq!((first.status, again.status), (409, 409), "{}", again.head);
    assert_eq!(
        (
            again.field("x-kept"),
            again.field("x-drop"),
            again.field("x-other")
        ),
        ("1", "", "")
    );
    assert_eq!(again.field("idempotency-replayed"), "true");
    let short = gateway.send("PUT", "/p", &[("X-Key", "abc")], "").await;
    assert_eq!(short.status, 422);
    let problem: serde_json::Value = serde_json::from_str(&short.text()).unwrap();
    assert_eq!(
        (&problem["status"], &problem["code"]),
        (&422.into(), &"IDEMPOTENCY_KEY_INVALID".into())
    );
    assert_eq!(
        short.field("link"),
        "<https://example.com/keys>; rel=\"describedby\""
    );
    assert_eq!(gateway.origin.seen("/p").len(), 1);
}

#[tokio::test]
async fn a_client_over_its_limit_is_refused_before_the_origin() {
    let gateway = Gateway::start(&["--rate-limit", "2/1h", "--cache"]).await;
    gateway.origin.says(
        "/",
        [response(200, &[("Cache-Control", "max-age=60")], "a")],
    );
    assert_eq!(gateway.get("/", &[]).await.status, 200);
    assert!(gateway.get("/", &[]).await.is_hit());
    let refused = gateway.get("/", &[]).await;
    assert_eq!(
        (refused.status, refused.field("retry-after").is_empty()),
        (429, false)
    );
}

#[tokio::test]
async fn options_of_the_cache_do_what_their_setters_do() {
    let gateway = Gateway::start(&[
        "--cache",
        "--name",
        "edge",
        "--ttl",
        "60",
        "--ttl-for",
        "404=5",
        "--downstream",
        "max-age=1",
        "--ignore-query",
        "TRACKING,x",
        "--sort-query",
        "--key-cookie",
        "lang",
        "--targeted",
        "Own-Cache-Control",
        "--replay-set-cookie",
        "--max-body",
        "1000",
        "--lease",
        "2",
        "--tag",
        "all",
        "--no-heuristics",
    ])
    .await;
    let says = |path: &str, fields: &[(&str, &str)]| {
        gateway.origin.says(
            path,
            [response(200, fields, "a"), response(200, fields, "b")],
        );
    };
    says("/q?a=1&b=2", &[]);
    let first = gateway.get("/q?b=2&utm_source=s&x=1&a=1", &[]).await;
    assert!(
        first
            .field("cache-status")
            .starts_with("edge;fwd=uri-miss;stored"),
        "{}",
        first.head
    );
    let again = gateway.get("/q?a=1&b=2", &[]).await;
    assert!(again.is_hit());
    assert_eq!(again.field("cache-control"), "max-age=1");
    assert!(
        !gateway
            .get("/q?a=1&b=2", &[("Cookie", "lang=de")])
            .await
            .is_hit()
    );
    says(
        "/own",
        &[
            ("Cache-Control", "max-age=60"),
            ("Own-Cache-Control", "no-store"),
        ],
    );
    gateway.get("/own", &[]).await;
    assert!(!gateway.get("/own", &[]).await.is_hit());
    says("/cookie", &[("Set-Cookie", "a=b")]);
    gateway.get("/cookie", &[]).await;
    let replayed = gateway.get("/cookie", &[]).await;
    assert_eq!(
        (replayed.is_hit(), replayed.field("set-cookie")),
        (true, "a=b")
    );
}

#[tokio::test]
async fn a_named_principal_gets_the_own_copy_only() {
    let gateway = Gateway::start(&[
        "--cache",
        "--ttl",
        "60",
        "--private",
        "--principal-header",
        "X-User",
    ])
    .await;
    gateway
        .origin
        .says("/me", ["a", "b", "c"].map(|body| response(200, &[], body)));
    let ask = async |user: &str| gateway.get("/me", &[("X-User", user)]).await.text();
    assert_eq!(
        [ask("ann").await, ask("ann").await, ask("bob").await],
        ["a", "a", "b"]
    );
    assert_eq!(gateway.get("/me", &[]).await.text(), "c");
}
