//! Each layer of the gateway where its option is given, and none where it is not.

use std::sync::Arc;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::Notify;

use crate::gateway::wire::{Gateway, Got, Origin, Reply, response};
use crate::support::launch::{Port, wait_until};
use crate::support::{Program, RedisServer};

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

fn code(got: &Got) -> String {
    let problem: serde_json::Value = serde_json::from_str(&got.text()).unwrap();
    problem["code"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_payment_that_may_have_happened_is_not_sent_again_though_the_gateway_itself_answered() {
    let payments = [
        "--idempotency",
        "payments",
        "--upstream-timeout",
        "0.5",
        "--store-timeout",
        "20",
    ];
    let gateway = Gateway::start(&payments).await;
    for (path, reply, status) in [("/late", Reply::Hang, 504), ("/cut", Reply::Cut, 502)] {
        gateway
            .origin
            .says(path, [reply, response(201, &[], "twice")]);
        let key = [("Idempotency-Key", path)];
        let pay = || gateway.send("POST", path, &key, "{}");
        let (first, again) = (pay().await, pay().await);
        assert_eq!((first.status, again.status), (status, 409), "{path}");
        assert_eq!(code(&again), "IDEMPOTENCY_OUTCOME_UNKNOWN", "{path}");
        assert_eq!(gateway.origin.seen(path).len(), 1, "{path}");
    }
    let on = ["--idempotency-on", "504=store:60"];
    let gateway = Gateway::start(&[&payments[..], &on].concat()).await;
    gateway
        .origin
        .says("/late", [Reply::Hang, response(201, &[], "twice")]);
    let pay = || gateway.send("POST", "/late", &[("Idempotency-Key", "k")], "{}");
    let (first, again) = (pay().await, pay().await);
    assert_eq!((first.status, again.status), (504, 504));
    assert_eq!(
        (&first.body, again.field("idempotency-replayed")),
        (&again.body, "true")
    );
}

#[tokio::test]
async fn a_payment_that_never_reached_the_origin_may_be_sent_again() {
    let port = Port::claim();
    let upstream = format!("http://127.0.0.1:{}", port.number);
    let gateway = Gateway::start(&["--idempotency", "payments", "--upstream", &upstream]).await;
    let pay = || gateway.send("POST", "/pay", &[("Idempotency-Key", "k")], "{}");
    assert_eq!(pay().await.status, 502);
    let origin = Origin::start_at(port.number).await;
    origin.says("/pay", [response(201, &[], "paid")]);
    assert_eq!(pay().await.status, 201);
}

#[tokio::test]
async fn an_orderly_stop_waits_for_a_run_whose_client_has_left() {
    let (redis, origin) = (RedisServer::start().await, Origin::start().await);
    let (store, upstream) = (redis.tcp_url(), origin.url());
    let start = || {
        let options = [
            "--listen",
            "127.0.0.1:0",
            "--upstream",
            &upstream,
            "--store",
            &store,
            "--store-timeout",
            "20",
            "--idempotency",
            "api",
        ];
        Program::start("gateway", &options)
    };
    let answers = Arc::new(Notify::new());
    let Reply::Bytes(paid) = response(201, &[], "paid") else {
        unreachable!()
    };
    let later = Reply::Later(Arc::clone(&answers), paid);
    origin.says("/pay", [later, response(201, &[], "twice")]);
    let mut first = start();
    let address = first.address();
    let mut client = TcpStream::connect(address).await.unwrap();
    let request =
        "POST /pay HTTP/1.1\r\nHost: o\r\nIdempotency-Key: k\r\nContent-Length: 0\r\n\r\n";
    client.write_all(request.as_bytes()).await.unwrap();
    while origin.seen("/pay").is_empty() {
        tokio::task::yield_now().await;
    }
    drop(client);
    first.signal("TERM");
    // It listens no more: it has heard.
    tokio::task::spawn_blocking(move || {
        wait_until("the gateway stops", || {
            std::net::TcpStream::connect(address).is_err()
        });
    })
    .await
    .unwrap();
    answers.notify_one();
    let ended = tokio::task::spawn_blocking(move || first.wait().code());
    assert_eq!(ended.await.unwrap(), Some(0));
    let second = Gateway {
        origin: origin.clone(),
        program: start(),
    };
    let again = second
        .send("POST", "/pay", &[("Idempotency-Key", "k")], "")
        .await;
    assert_eq!((again.status, &again.text()[..]), (201, "paid"));
    assert_eq!(origin.seen("/pay").len(), 1);
}
