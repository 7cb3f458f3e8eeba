//! What answers to unsafe methods change, and when they are kept for GET.

use futures_util::FutureExt;
use http::Method;
use tower_keep::response_cache::{KeyRules, TRACKING, Target};

use super::origin::{App, Origin, clock, gated, layer, request, said};

/// Answers GET by the call's number, all else with these fields.
fn origin(changed: &'static [(&'static str, &'static str)]) -> Origin {
    Origin::of(move |seen, call| {
        if seen.method() == Method::GET {
            return said(&[("cache-control", "max-age=60")], format!("run {call}"));
        }
        said(changed, format!("changed {call}"))
    })
}

#[tokio::test]
async fn what_an_answer_names_is_found_in_whatever_order_it_names_it() {
    for name in ["location", "content-location"] {
        for named in [
            "/list?sort=name&page=1",
            "/list?gclid=7&sort=name&page=1",
            "//a.test/list?sort=name&page=1",
            "list?sort=name&page=1#top",
        ] {
            let origin = Origin::of(move |seen, call| match *seen.method() {
                Method::GET => said(&[("cache-control", "max-age=60")], format!("run {call}")),
                _ => said(&[(name, named)], ""),
            });
            let rules = KeyRules::new().sort_query().ignore_query(TRACKING);
            let app = App::new(&layer(&clock()).key(rules), &origin);
            let host = [("host", "a.test")];
            app.get_with("/list?page=1&sort=name", &host).await;
            app.send(request("PUT", "/item", &host)).await;
            let got = app.get_with("/list?page=1&sort=name", &host).await;
            assert!(!got.is_hit(), "{name}: {named}");
        }
    }
}

#[tokio::test]
async fn every_line_of_what_an_answer_names_counts_and_any_text_that_a_target_may_hold() {
    let named = &[
        ("location", "/b"),
        ("location", "/c"),
        ("content-location", "/d"),
        ("content-location", "/\u{e4}?\u{f6}"),
    ];
    let app = App::new(&layer(&clock()), &origin(named));
    let paths = ["/b", "/c", "/d", "/\u{e4}?\u{f6}"];
    for path in paths {
        app.get(path).await;
    }
    app.method("PUT", "/a").await;
    for path in paths {
        assert!(!app.get(path).await.is_hit(), "{path}");
    }
}

#[tokio::test]
async fn an_answer_to_post_that_repeats_its_own_target_is_kept_for_get() {
    let rules = KeyRules::new().sort_query().ignore_query(TRACKING);
    let changed = &[
        ("cache-control", "max-age=60"),
        ("content-location", "/a?b=1&a=2&gclid=7"),
    ];
    let origin = origin(changed);
    let app = App::new(&layer(&clock()).key(rules), &origin);
    let posted = app.method("POST", "/a?b=1&a=2&gclid=7").await;
    assert!(posted.cache_status().contains("stored"), "{posted:?}");
    for target in ["/a?a=2&b=1", "/a?b=1&a=2"] {
        let got = app.get(target).await;
        assert_eq!((got.is_hit(), got.body.as_str()), (true, "changed 0"));
    }
}

#[tokio::test]
async fn a_request_with_a_long_key_changes_what_it_changes_all_the_same() {
    let long = "x".repeat(9_000);
    let cookie = format!("c={long}");
    let rows = [
        ("/a", vec![("cookie", cookie.as_str())]),
        ("/a", vec![("x-key", long.as_str())]),
        ("/elsewhere", vec![("cookie", cookie.as_str())]),
    ];
    for (target, fields) in rows {
        let rules = KeyRules::new().cookie("c");
        let rules = rules.header(http::HeaderName::from_static("x-key"));
        let app = App::new(
            &layer(&clock()).key(rules),
            &origin(&[("location", "/a"), ("content-location", "/a")]),
        );
        app.get("/a").await;
        app.send(request("PUT", target, &fields)).await;
        assert!(!app.get("/a").await.is_hit(), "{target}");
    }
    // A target that no look-up would take may still name one.
    let app = App::new(&layer(&clock()), &origin(&[("location", "/a")]));
    app.get("/a").await;
    app.method("PUT", &format!("/{long}")).await;
    assert!(!app.get("/a").await.is_hit());
}

#[tokio::test]
async fn an_answer_to_post_under_a_long_key_is_kept_for_nobody() {
    let changed = &[("cache-control", "max-age=60"), ("content-location", "/a")];
    let origin = origin(changed);
    let app = App::new(&layer(&clock()).key(KeyRules::new().cookie("c")), &origin);
    let cookie = format!("c={}", "x".repeat(9_000));
    app.send(request("POST", "/a", &[("cookie", &cookie)]))
        .await;
    assert_eq!(app.get("/a").await.body, "run 1");
    app.send(request("POST", "/a", &[("cookie", "c=1")])).await;
    assert_eq!(app.get("/a").await.body, "run 3");
    let own = app.get_with("/a", &[("cookie", "c=1")]).await;
    assert_eq!((own.is_hit(), own.body.as_str()), (true, "changed 2"));
}

#[tokio::test]
async fn an_answer_to_post_that_others_have_overtaken_is_not_kept() {
    for target in [Target::url("/a"), Target::tag("t"), Target::everything()] {
        let (origin, gate) = gated(|_, call| {
            let fields = [
                ("cache-control", "max-age=60"),
                ("content-location", "/a"),
                ("cache-tag", "t"),
            ];
            said(&fields, format!("run {call}"))
        });
        let layer = layer(&clock());
        let app = App::new(&layer, &origin);
        let mut posted = Box::pin(app.method("POST", "/a"));
        assert!((&mut posted).now_or_never().is_none());
        layer.handle().invalidate([target]).await;
        gate.add_permits(2);
        let posted = posted.await;
        assert_eq!(posted.cache_status(), "tower-keep;fwd=method");
        assert_eq!(app.get("/a").await.body, "run 1", "{target:?}");
    }
}

#[tokio::test]
async fn an_answer_to_post_for_what_varies_is_not_kept_and_says_so() {
    let origin = Origin::of(|seen, call| {
        let varies = [("cache-control", "max-age=60"), ("vary", "accept")];
        let plain = [("cache-control", "max-age=60"), ("content-location", "/a")];
        let is_get = seen.method() == Method::GET;
        said(if is_get { &varies } else { &plain }, format!("run {call}"))
    });
    let app = App::new(&layer(&clock()), &origin);
    let html = [("accept", "text/html")];
    app.get_with("/a", &html).await;
    let posted = app.method("POST", "/a").await;
    assert_eq!(posted.cache_status(), "tower-keep;fwd=method;detail=vary");
    assert_eq!(app.get("/a").await.body, "run 2");
    assert_eq!(app.get_with("/a", &html).await.body, "run 3");
    assert!(app.get("/a").await.is_hit());
}
