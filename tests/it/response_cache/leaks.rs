//! Nothing personal reaches anybody else.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use http_body_util::{BodyExt, StreamBody};
use tower_keep::core::{AskVisitor, Personal, Principal, StoreFuture, Visitor};
use tower_keep::response_cache::{CachePolicy, ResponseCacheLayer, Target};

use super::origin::{App, Origin, clock, layer, request, said, secs};

/// Answers with what only this client should see.
fn echo(fields: &'static [(&'static str, &'static str)]) -> Origin {
    Origin::of(move |seen, call| {
        let of = |name: &str| {
            seen.headers()
                .get(name)
                .map_or("-", |value| value.to_str().unwrap())
                .to_owned()
        };
        said(
            fields,
            format!(
                "{} {} {} {call}",
                of("authorization"),
                of("cookie"),
                of("host")
            ),
        )
    })
}

async fn both(
    layer: &ResponseCacheLayer,
    origin: &Origin,
    a: &[(&str, &str)],
    b: &[(&str, &str)],
) -> bool {
    let app = App::new(layer, origin);
    let (first, second) = (app.get_with("/a", a).await, app.get_with("/a", b).await);
    first.body == second.body
}

#[tokio::test]
async fn an_authorized_answer_is_for_one_unless_it_says_otherwise() {
    let (alice, bob): (&[_], &[_]) = (&[("authorization", "alice")], &[("authorization", "bob")]);
    let rows: [(&'static [(&'static str, &'static str)], bool); 6] = [
        (&[("cache-control", "max-age=60")], false),
        (&[("expires", "Tue, 01 Jan 2030 00:01:00 GMT")], false),
        (&[], false),
        (&[("cache-control", "max-age=60, public")], true),
        (&[("cache-control", "max-age=60, must-revalidate")], true),
        (&[("cache-control", "s-maxage=60")], true),
    ];
    for (fields, shared) in rows {
        for (a, b) in [(alice, bob), (alice, &[][..]), (&[][..], bob)] {
            let layer = layer(&clock()).ttl(secs(60));
            assert_eq!(
                both(&layer, &echo(fields), a, b).await,
                shared,
                "{fields:?} {a:?} {b:?}"
            );
        }
    }
    let public = layer(&clock()).ttl(secs(60)).public();
    assert!(both(&public, &echo(&[]), alice, bob).await);
}

#[tokio::test]
async fn private_and_set_cookie_answers_are_for_one() {
    for fields in [
        &[("cache-control", "private, max-age=60")][..],
        &[("cache-control", "max-age=60"), ("set-cookie", "id=1")],
        &[("cache-control", "max-age=60"), ("vary", "cookie")],
        &[("cache-control", "public, max-age=60"), ("vary", "cookie")],
        &[
            ("expires", "Tue, 01 Jan 2030 00:01:00 GMT"),
            ("vary", "x-other"),
            ("vary", "Cookie"),
        ],
        &[("cache-control", "max-age=60"), ("vary", "accept, *")],
    ] {
        let layer = layer(&clock()).ttl(secs(60));
        let same = both(
            &layer,
            &echo(fields),
            &[("cookie", "id=1")],
            &[("cookie", "id=2")],
        )
        .await;
        assert!(!same, "{fields:?}");
    }
}

#[tokio::test]
async fn a_public_answer_with_set_cookie_is_stored_without_it() {
    let layer = layer(&clock());
    let app = App::new(
        &layer,
        &echo(&[
            ("cache-control", "public, max-age=60"),
            ("set-cookie", "id=1"),
        ]),
    );
    assert_eq!(app.get("/a").await.field("set-cookie"), "id=1");
    let hit = app.get("/a").await;
    assert!(hit.is_hit() && !hit.fields.contains_key("set-cookie"));
}

#[tokio::test]
async fn fields_that_a_directive_names_are_left_out_of_the_shared_copy() {
    let layer = layer(&clock());
    let fields = &[
        (
            "cache-control",
            "max-age=60, private=\"x-request-id\", no-cache=\"x-own\"",
        ),
        ("x-request-id", "7"),
        ("x-own", "1"),
    ];
    let app = App::new(&layer, &echo(fields));
    assert_eq!(app.get("/a").await.field("x-request-id"), "7");
    let hit = app.get("/a").await;
    assert!(
        hit.is_hit()
            && !hit.fields.contains_key("x-request-id")
            && !hit.fields.contains_key("x-own")
    );
}

#[tokio::test]
async fn hosts_and_poison_fields_are_kept_apart() {
    let layer = layer(&clock()).ttl(secs(60));
    assert!(
        !both(
            &layer,
            &echo(&[]),
            &[("host", "a.test")],
            &[("host", "b.test")]
        )
        .await
    );
    for (name, value) in [
        ("x-forwarded-host", "evil"),
        ("x-forwarded-proto", "evil"),
        ("x-forwarded-scheme", "evil"),
        ("x-forwarded-port", "evil"),
        ("x-forwarded-prefix", "evil"),
        ("x-host", "evil"),
        ("x-original-host", "evil"),
        ("x-original-url", "evil"),
        ("x-rewrite-url", "evil"),
        ("forwarded", "host=evil"),
        ("forwarded", "proto=evil"),
    ] {
        let layer = super::origin::layer(&clock()).ttl(secs(60));
        assert!(
            !both(&layer, &echo(&[]), &[(name, value)], &[]).await,
            "{name}: {value}"
        );
        let forger = [(name, value)];
        assert!(
            both(&layer, &echo(&[]), &forger, &forger).await,
            "{name}: {value} makes one entry"
        );
    }
    for name in [
        "x-http-method-override",
        "x-http-method",
        "x-method-override",
        "upgrade",
    ] {
        let layer = super::origin::layer(&clock()).ttl(secs(60));
        assert!(
            !both(&layer, &echo(&[]), &[(name, "DELETE")], &[]).await,
            "{name}"
        );
    }
}

#[tokio::test]
async fn no_path_makes_a_dynamic_answer_storable() {
    for path in [
        "/account/x.css",
        "/account;x.js",
        "/account%2fx.css",
        "//account",
        "/account/.",
        "/account?x=.css",
    ] {
        let app = App::new(&layer(&clock()), &echo(&[]));
        app.get(path).await;
        assert!(!app.get(path).await.is_hit(), "{path}");
    }
}

#[tokio::test]
async fn posts_are_neither_stored_nor_answered() {
    let app = App::new(
        &layer(&clock()).ttl(secs(60)),
        &echo(&[("cache-control", "max-age=60")]),
    );
    app.method("POST", "/a").await;
    assert!(!app.get("/a").await.is_hit());
    assert!(!app.method("POST", "/a").await.is_hit());
}

#[tokio::test]
async fn a_repeated_origin_and_an_encoding_select_though_vary_forgot_them() {
    let origin = Origin::of(|seen, call| {
        let from = seen
            .headers()
            .get("origin")
            .map_or("*", |value| value.to_str().unwrap())
            .to_owned();
        said(
            &[
                ("cache-control", "max-age=60"),
                ("access-control-allow-origin", &from),
            ],
            format!("{from} {call}"),
        )
    });
    let layer = layer(&clock());
    assert!(
        !both(
            &layer,
            &origin,
            &[("origin", "https://a")],
            &[("origin", "https://b")]
        )
        .await
    );
    let layer = super::origin::layer(&clock());
    let gzip = echo(&[
        ("cache-control", "max-age=60"),
        ("content-encoding", "gzip"),
    ]);
    assert!(
        !both(
            &layer,
            &gzip,
            &[("accept-encoding", "gzip")],
            &[("accept-encoding", "identity")]
        )
        .await
    );
}

/// A session that a handler may touch.
#[derive(Debug, Default)]
pub(super) struct FakeSession {
    who: Option<Principal>,
    touched: AtomicBool,
}

impl AskVisitor for FakeSession {
    fn principal(self: Arc<Self>) -> StoreFuture<Option<Principal>> {
        StoreFuture::ok(self.who.clone())
    }

    fn mark_personal(&self) {
        self.touched.store(true, Ordering::SeqCst);
    }

    fn is_personal(&self) -> bool {
        self.touched.load(Ordering::SeqCst)
    }
}

async fn with_session(app: &App, session: &Arc<FakeSession>) -> super::origin::Got {
    let mut request = request("GET", "/a", &[]);
    let ask: Arc<dyn AskVisitor> = Arc::clone(session) as _;
    request.extensions_mut().insert(Visitor::new(ask));
    app.send(request).await
}

#[tokio::test]
async fn an_answer_whose_handler_touched_the_session_is_for_one() {
    let origin = Origin::of(|seen, call| {
        if let Some(visitor) = seen.extensions().get::<Visitor>() {
            visitor.mark_personal();
        }
        said(&[("cache-control", "max-age=60")], format!("run {call}"))
    });
    let app = App::new(&layer(&clock()), &origin);
    let got = with_session(&app, &Arc::default()).await;
    assert_eq!(
        got.cache_status(),
        "tower-keep;fwd=uri-miss;detail=personal"
    );
    assert!(!app.get("/a").await.is_hit());
    assert!(
        app.get("/a").await.is_hit(),
        "an answer that touched nothing is stored after all"
    );
}

#[tokio::test]
async fn a_session_touched_while_the_body_streams_keeps_it_out() {
    let origin = Origin::new(|seen, _| {
        let visitor = seen.extensions().get::<Visitor>().cloned();
        Box::pin(async move {
            let frames = futures_util::stream::unfold(0, move |step| {
                let visitor = visitor.clone();
                async move {
                    tokio::task::yield_now().await;
                    if let (1, Some(visitor)) = (step, &visitor) {
                        visitor.mark_personal();
                    }
                    (step < 2).then(|| {
                        (
                            Ok(http_body::Frame::data(Bytes::from_static(b"x"))),
                            step + 1,
                        )
                    })
                }
            });
            Ok(said(&[("cache-control", "max-age=60")], "")
                .map(|_| StreamBody::new(frames).boxed_unsync()))
        })
    });
    let app = App::new(&layer(&clock()), &origin);
    assert_eq!(with_session(&app, &Arc::default()).await.body, "xx");
    assert!(!app.get("/a").await.is_hit());
    assert!(app.get("/a").await.is_hit());
}

#[tokio::test]
async fn an_answer_marked_personal_is_for_one() {
    let origin = Origin::of(|_, call| {
        let mut response = said(&[("cache-control", "max-age=60")], format!("run {call}"));
        response.extensions_mut().insert(Personal);
        response
    });
    assert!(!both(&layer(&clock()), &origin, &[], &[]).await);
    let private = Origin::of(|_, call| {
        let mut response = said(&[("cache-control", "max-age=60")], format!("run {call}"));
        response
            .extensions_mut()
            .insert(CachePolicy::new().private());
        response
    });
    assert!(!both(&layer(&clock()), &private, &[], &[]).await);
}

#[tokio::test]
async fn a_private_route_keeps_one_copy_per_principal() {
    let clock = clock();
    let origin = Origin::of(|seen, call| {
        let who = seen
            .extensions()
            .get::<Principal>()
            .map_or("-", Principal::id)
            .to_owned();
        said(&[("set-cookie", "s=1")], format!("{who} {call}"))
    });
    let layer = layer(&clock).ttl(secs(60)).private();
    let app = App::new(&layer, &origin);
    let get = async |who: &str| {
        let mut request = request("GET", "/a", &[("authorization", who)]);
        request.extensions_mut().insert(Principal::new(who));
        app.send(request).await
    };
    assert_eq!(get("alice").await.body, "alice 0");
    assert_eq!(get("bob").await.body, "bob 1");
    let again = get("alice").await;
    assert_eq!(
        (
            again.body.as_str(),
            again.is_hit(),
            again.field("set-cookie")
        ),
        ("alice 0", true, "")
    );
    assert_eq!(
        again
            .fields
            .get_all("cache-control")
            .iter()
            .collect::<Vec<_>>(),
        ["no-cache", "private"]
    );
    assert_eq!(
        app.get("/a").await.cache_status(),
        "tower-keep;fwd=bypass;detail=principal"
    );
    layer
        .handle()
        .invalidate([Target::principal("alice")])
        .await;
    assert_eq!(
        (
            get("alice").await.body.as_str(),
            get("bob").await.body.as_str()
        ),
        ("alice 3", "bob 1")
    );
}

#[tokio::test]
async fn a_private_route_asks_the_session_who_is_there_and_marks_it() {
    let origin = Origin::of(|_, call| said(&[], format!("run {call}")));
    let app = App::new(&layer(&clock()).ttl(secs(60)).private(), &origin);
    let session = |who: Option<&str>| {
        Arc::new(FakeSession {
            who: who.map(Principal::new),
            touched: AtomicBool::new(false),
        })
    };
    let (alice, bob, nobody) = (session(Some("alice")), session(Some("bob")), session(None));
    assert_eq!(with_session(&app, &alice).await.body, "run 0");
    assert_eq!(with_session(&app, &bob).await.body, "run 1");
    assert_eq!(with_session(&app, &nobody).await.body, "run 2");
    let hits = session(Some("alice"));
    assert_eq!(with_session(&app, &hits).await.body, "run 0");
    assert!(alice.is_personal() && hits.is_personal() && !nobody.is_personal());
}

#[tokio::test]
async fn nested_routers_that_cut_their_prefix_are_kept_apart() {
    use axum::{Router, body::Body, routing::get};
    use tower::ServiceExt;

    let cache = layer(&clock()).ttl(secs(60));
    let list = |text: &'static str| {
        Router::new().route(
            "/list",
            get(move || async move { text }).layer(cache.clone()),
        )
    };
    let app = Router::new().nest("/a", list("a")).nest("/b", list("b"));
    for (path, text) in [("/a/list", "a"), ("/b/list", "b"), ("/a/list", "a")] {
        let response = app
            .clone()
            .oneshot(http::Request::get(path).body(Body::empty()).unwrap())
            .await
            .unwrap();
        assert_eq!(
            response.into_body().collect().await.unwrap().to_bytes(),
            text
        );
    }
    cache.handle().invalidate([Target::url("/a/list")]).await;
    let response = app
        .oneshot(http::Request::get("/a/list").body(Body::empty()).unwrap())
        .await
        .unwrap();
    assert_eq!(
        response.headers()["cache-status"],
        "tower-keep;fwd=uri-miss;stored;ttl=60"
    );
}
