//! 304 from inside: what it does to the stored answer, and what the client is told.

use http::header::IF_NONE_MATCH;
use http::{HeaderValue, Response, StatusCode};
use tower_keep::core::Principal;

use super::origin::{App, Origin, clock, layer, request, said, secs};

/// Answers a condition by a 304 with these fields, all else by an answer with a tag; the body says the call.
fn confirming(fields: &'static [(&'static str, &'static str)]) -> Origin {
    Origin::of(move |seen, call| {
        if seen.headers().contains_key(IF_NONE_MATCH) {
            return not_modified(fields);
        }
        let fields = [("cache-control", "max-age=60"), ("etag", "\"1\"")];
        said(&fields, format!("run {call}"))
    })
}

fn not_modified(fields: &[(&str, &str)]) -> Response<String> {
    let mut response = said(fields, "");
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    response
}

#[tokio::test]
async fn a_304_that_adds_to_vary_is_stored_under_the_new_name() {
    let clock = clock();
    let origin = confirming(&[("cache-control", "max-age=60"), ("vary", "accept")]);
    let app = App::new(&layer(&clock), &origin);
    app.get_with("/a", &[("accept", "a/b")]).await;
    clock.advance(secs(60));
    let renewed = app.get_with("/a", &[("accept", "a/b")]).await;
    assert_eq!(
        renewed.cache_status(),
        "tower-keep;fwd=stale;fwd-status=304;stored;ttl=60"
    );
    let hit = app.get_with("/a", &[("accept", "a/b")]).await;
    assert_eq!((hit.is_hit(), hit.body.as_str()), (true, "run 0"));
    assert_eq!((hit.field("vary"), origin.calls()), ("accept", 2));
    let other = app.get_with("/a", &[("accept", "c/d")]).await;
    assert_eq!(other.body, "run 2");
    assert!(app.get_with("/a", &[("accept", "a/b")]).await.is_hit());
}

#[tokio::test]
async fn what_an_inner_cache_says_of_a_304_stays() {
    let clock = clock();
    let said_so = &[
        ("cache-control", "max-age=60"),
        ("cache-status", "inner;hit"),
    ];
    let origin = confirming(said_so);
    let app = App::new(&layer(&clock), &origin);
    app.get("/a").await;
    clock.advance(secs(60));
    let renewed = app.get("/a").await;
    let said: Vec<_> = renewed.fields.get_all("cache-status").iter().collect();
    assert_eq!(
        said,
        [
            "inner;hit",
            "tower-keep;fwd=stale;fwd-status=304;stored;ttl=60"
        ]
    );
    let hit = app.get("/a").await;
    let said: Vec<_> = hit.fields.get_all("cache-status").iter().collect();
    assert_eq!(said, ["tower-keep;hit;ttl=60"]);
}

#[tokio::test]
async fn a_304_that_may_not_be_stored_says_so_and_ends_the_stored_answer() {
    let clock = clock();
    let origin = confirming(&[("cache-control", "no-store"), ("cache-status", "inner;hit")]);
    let app = App::new(&layer(&clock), &origin);
    app.get("/a").await;
    clock.advance(secs(60));
    let refused = app.get("/a").await;
    assert_eq!((refused.status, refused.body.as_str()), (200, "run 0"));
    let said: Vec<_> = refused.fields.get_all("cache-status").iter().collect();
    assert_eq!(
        said,
        [
            "inner;hit",
            "tower-keep;fwd=stale;fwd-status=304;detail=no-store"
        ]
    );
    assert_eq!(
        app.get("/a").await.body,
        "run 2",
        "asked without conditions"
    );
    let hidden = App::new(&layer(&clock).hide_status(), &origin);
    hidden.get("/a").await;
    clock.advance(secs(60));
    let refused = hidden.get("/a").await;
    let said: Vec<_> = refused.fields.get_all("cache-status").iter().collect();
    assert_eq!(said, ["inner;hit"]);
}

#[tokio::test]
async fn a_304_that_may_not_be_stored_tells_caches_outside_what_its_route_does() {
    let clock = clock();
    let origin = Origin::of(|seen, call| {
        if seen.headers().contains_key(IF_NONE_MATCH) {
            return not_modified(&[("vary", "*")]);
        }
        said(&[("etag", "\"1\"")], format!("run {call}"))
    });
    let kept = || layer(&clock).ttl(secs(60)).stale_if_error(secs(60));
    let own = HeaderValue::from_static("max-age=5");
    for (layer, told) in [
        (kept(), &["no-cache"][..]),
        (kept().downstream(own), &["max-age=5"]),
        (kept().private(), &["no-cache", "private"]),
    ] {
        let app = App::new(&layer, &origin);
        let get = async || {
            let mut request = request("GET", "/a", &[]);
            request.extensions_mut().insert(Principal::new("alice"));
            app.send(request).await
        };
        get().await;
        clock.advance(secs(60));
        let refused = get().await;
        assert_eq!(
            refused.cache_status(),
            "tower-keep;fwd=stale;fwd-status=304;detail=vary"
        );
        let lines: Vec<_> = refused.fields.get_all("cache-control").iter().collect();
        assert_eq!(lines, told);
    }
}
