//! HEAD requests that go inwards: what their answers do to the stored GET (RFC 9111 §4.3.5).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::Method;
use http::Response;
use tower_keep::response_cache::Target;

use super::origin::{App, Origin, clock, layer, request, said, secs};

const STORED: &[(&str, &str)] = &[
    ("cache-control", "max-age=10"),
    ("etag", "\"1\""),
    ("last-modified", "Tue, 01 Jan 2030 00:00:00 GMT"),
    ("x-was", "old"),
];

fn without_body(fields: &[(&str, &str)]) -> Response<String> {
    said(fields, "")
}

/// Answers GET by `STORED`, 304 to a condition that holds, and HEAD by `head`; counts the whole answers.
fn origin(
    head: &'static [(&'static str, &'static str)],
    status: u16,
) -> (Origin, Arc<AtomicUsize>) {
    let whole = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&whole);
    let origin = Origin::of(move |seen, _| {
        if seen.method() == Method::HEAD {
            let mut response = without_body(head);
            *response.status_mut() = status.try_into().unwrap();
            return response;
        }
        count.fetch_add(1, Ordering::SeqCst);
        said(STORED, "body")
    });
    (origin, whole)
}

#[tokio::test]
async fn head_with_the_same_validators_renews_the_stored_answer() {
    let (origin, whole) = origin(
        &[
            ("cache-control", "max-age=60"),
            ("etag", "\"1\""),
            ("content-length", "4"),
            ("x-was", "new"),
        ],
        200,
    );
    let clock = clock();
    let app = App::new(&layer(&clock), &origin);
    app.get("/a").await;
    clock.advance(secs(11));
    assert_eq!(
        app.method("HEAD", "/a").await.cache_status(),
        "tower-keep;fwd=method"
    );
    let got = app.get("/a").await;
    assert_eq!((got.body.as_str(), got.field("x-was")), ("body", "new"));
    assert_eq!(got.cache_status(), "tower-keep;hit;ttl=60");
    assert_eq!(got.field("last-modified"), STORED[2].1);
    assert_eq!(whole.load(Ordering::SeqCst), 1);
    clock.advance(secs(59));
    assert!(app.get("/a").await.is_hit());
    clock.advance(secs(1));
    assert!(!app.get("/a").await.is_hit());
}

#[tokio::test]
async fn head_of_another_answer_ends_what_may_stand_in() {
    for (head, status, ends) in [
        (&[("etag", "\"2\"")][..], 200, true),
        (&[("content-length", "5")], 200, true),
        (
            &[("last-modified", "Tue, 01 Jan 2030 00:00:01 GMT")],
            200,
            true,
        ),
        (
            &[("etag", "\"1\""), ("cache-control", "no-store")],
            200,
            true,
        ),
        (&[("etag", "\"2\"")], 503, false),
        (&[("etag", "\"2\"")], 404, false),
    ] {
        let (origin, whole) = origin(head, status);
        let clock = clock();
        // Stale from its eleventh second on, and standing by until its twentieth.
        let app = App::new(&layer(&clock).stale_while_revalidate(secs(10)), &origin);
        app.get("/a").await;
        clock.advance(secs(21));
        let taken = [("cache-control", "only-if-cached, max-stale=15")];
        assert_eq!(app.get_with("/a", &taken).await.status, 200);
        app.method("HEAD", "/a").await;
        let got = app.get_with("/a", &taken).await;
        assert_eq!(
            got.status,
            if ends { 504 } else { 200 },
            "{head:?} {status}"
        );
        assert_eq!(whole.load(Ordering::SeqCst), 1);
    }
}

#[tokio::test]
async fn head_that_proves_nothing_renews_nothing() {
    let silent: [&[(&str, &str)]; 2] = [
        &[("cache-control", "max-age=60")],
        &[("cache-control", "max-age=60"), ("content-length", "4")],
    ];
    for (head, expired) in [(0, false), (1, false), (0, true), (1, true)] {
        let head = silent[head];
        let origin = Origin::of(move |seen, call| {
            if seen.method() == Method::HEAD {
                return without_body(head);
            }
            // As long as every other one, and without a validator.
            said(&[("cache-control", "max-age=10")], format!("v {call:02}"))
        });
        let clock = clock();
        let layer = layer(&clock);
        let app = App::new(&layer, &origin);
        app.get("/a").await;
        if expired {
            layer.handle().expire([Target::url("/a")]).await;
        } else {
            clock.advance(secs(11));
        }
        app.method("HEAD", "/a").await;
        let got = app.get("/a").await;
        assert!(!got.is_hit(), "{head:?}, expired: {expired}");
        assert_eq!(got.body, "v 02", "{head:?}, expired: {expired}");
    }
}

#[tokio::test]
async fn head_under_credentials_ends_nothing_that_others_have() {
    let (origin, whole) = origin(&[("etag", "\"2\"")], 200);
    let clock = clock();
    let layer = layer(&clock).public().stale_while_revalidate(secs(10));
    let app = App::new(&layer, &origin);
    app.get("/a").await;
    clock.advance(secs(21));
    let taken = [("cache-control", "only-if-cached, max-stale=15")];
    let forged = [("authorization", "Basic a")];
    let head = app.send(request("HEAD", "/a", &forged)).await;
    assert_eq!(head.field("etag"), "\"2\"");
    assert_eq!(app.get_with("/a", &taken).await.status, 200);
    app.method("HEAD", "/a").await;
    assert_eq!(app.get_with("/a", &taken).await.status, 504);
    assert_eq!(whole.load(Ordering::SeqCst), 1);
}
