//! The rules, one by one: on memory, by a clock that stands still until it is moved.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::StatusCode;
use tower_keep::core::{IdempotencyOutcome, ResponseCacheOutcome};
use tower_keep::response_cache::{CachePolicy, KeyRules, ResponseCacheRejection, TRACKING, Target};

use super::origin::{App, Broken, Origin, clock, full, gated, layer, memory, request, said, secs};

fn counted(fields: &'static [(&'static str, &'static str)]) -> Origin {
    Origin::of(move |_, call| said(fields, format!("run {call}")))
}

#[tokio::test]
async fn a_fresh_answer_is_given_again_with_its_age_and_validators() {
    let clock = clock();
    let origin = counted(&[
        ("cache-control", "max-age=60"),
        ("etag", "\"1\""),
        ("x-own", "a"),
    ]);
    let app = App::new(&layer(&clock), &origin);
    let first = app.get("/a").await;
    assert_eq!(
        first.cache_status(),
        "tower-keep;fwd=uri-miss;stored;ttl=60"
    );
    assert!(!first.fields.contains_key("age"));
    clock.advance(secs(59));
    let second = app.get("/a").await;
    assert_eq!((second.status, second.body.as_str()), (200, "run 0"));
    assert_eq!(second.cache_status(), "tower-keep;hit;ttl=1");
    assert_eq!(
        (
            second.field("age"),
            second.field("etag"),
            second.field("x-own")
        ),
        ("59", "\"1\"", "a")
    );
    assert_eq!(second.field("date"), "Tue, 01 Jan 2030 00:00:00 GMT");
    clock.advance(secs(1));
    assert_eq!(
        app.get("/a").await.body,
        "run 1",
        "at exactly its lifetime it is stale"
    );
}

#[tokio::test]
async fn the_age_of_an_inner_cache_counts() {
    let clock = clock();
    let origin = counted(&[("cache-control", "max-age=60"), ("age", "50")]);
    let app = App::new(&layer(&clock), &origin);
    app.get("/a").await;
    clock.advance(secs(9));
    assert_eq!(app.get("/a").await.field("age"), "59");
    clock.advance(secs(1));
    assert_eq!(app.get("/a").await.body, "run 1");
}

/// Rows of the table of R22.
#[tokio::test]
async fn the_response_decides_the_route_fills_and_restrictions_hold() {
    struct Row {
        response: &'static [(&'static str, &'static str)],
        route: CachePolicy,
        fresh: Option<u64>,
    }
    let ttl = || CachePolicy::new().ttl(secs(60));
    let row = |response, route, fresh| Row {
        response,
        route,
        fresh,
    };
    let rows = [
        row(&[], ttl(), Some(60)),
        row(&[("cache-control", "max-age=10")], ttl(), Some(10)),
        row(&[("cache-control", "no-store")], ttl(), None),
        row(&[("cache-control", "private")], ttl(), None),
        row(&[("cache-control", "no-cache")], ttl(), None),
        row(&[("cache-control", "must-revalidate")], ttl(), Some(60)),
        row(&[("cache-control", "max-age=0")], ttl(), None),
        row(&[("expires", "0")], ttl(), None),
        row(&[("pragma", "no-cache")], ttl(), Some(60)),
        row(&[("vary", "*")], ttl(), None),
        row(&[("content-type", "text/event-stream")], ttl(), None),
        row(&[("set-cookie", "id=1")], ttl(), None),
        row(&[], CachePolicy::new(), None),
        row(&[("cache-control", "public")], ttl(), Some(60)),
        row(
            &[("cache-control", "s-maxage=20, max-age=10")],
            ttl(),
            Some(20),
        ),
        row(
            &[("expires", "Tue, 01 Jan 2030 00:00:30 GMT")],
            ttl(),
            Some(30),
        ),
    ];
    for Row {
        response,
        route,
        fresh,
    } in rows
    {
        let clock = clock();
        let origin = counted(response);
        let mut layer = layer(&clock);
        if route == ttl() {
            layer = layer.ttl(secs(60));
        }
        let app = App::new(&layer, &origin);
        app.get("/a").await;
        if let Some(seconds) = fresh {
            clock.advance(secs(seconds - 1));
            assert!(
                app.get("/a").await.is_hit(),
                "{response:?} is fresh for {seconds} s"
            );
            clock.advance(secs(1));
        }
        assert!(
            !app.get("/a").await.is_hit(),
            "{response:?} is not fresh after {fresh:?}"
        );
        assert_eq!(origin.calls(), 2, "{response:?}");
    }
}

#[tokio::test]
async fn a_handlers_policy_fills_before_the_routes_and_adds_its_tags() {
    let clock = clock();
    let origin = Origin::of(|_, call| {
        let mut response = said(&[], format!("run {call}"));
        response
            .extensions_mut()
            .insert(CachePolicy::new().ttl(secs(10)).tag("own"));
        response
    });
    let layer = layer(&clock).ttl(secs(60)).tag("route");
    let app = App::new(&layer, &origin);
    app.get("/a").await;
    for tag in ["own", "route"] {
        assert!(app.get("/a").await.is_hit());
        layer.handle().invalidate([Target::tag(tag)]).await;
        assert!(!app.get("/a").await.is_hit(), "{tag}");
    }
    clock.advance(secs(10));
    assert!(!app.get("/a").await.is_hit());
}

#[tokio::test]
async fn statuses_are_stored_as_they_may_be() {
    for status in (200..=999).filter(|status| *status != 206 && *status != 304) {
        let clock = clock();
        let explicit = Origin::of(move |_, _| {
            let mut response = said(&[("cache-control", "max-age=9")], "");
            *response.status_mut() = StatusCode::from_u16(status).unwrap();
            response
        });
        let app = App::new(&layer(&clock), &explicit);
        app.get("/a").await;
        let hit = app.get("/a").await;
        assert_eq!((hit.is_hit(), hit.status), (true, status));
        let silent = Origin::of(move |_, _| {
            let mut response = said(&[], "");
            *response.status_mut() = StatusCode::from_u16(status).unwrap();
            response
        });
        let app = App::new(
            &layer(&clock)
                .ttl(secs(60))
                .ttl_for(StatusCode::NOT_FOUND, secs(5)),
            &silent,
        );
        app.get("/a").await;
        let plain = [200, 203, 204, 300, 301, 308, 404].contains(&status);
        assert_eq!(app.get("/a").await.is_hit(), plain, "{status}");
    }
    for status in [206, 304] {
        let origin = Origin::of(move |_, _| {
            let mut response = said(&[("cache-control", "max-age=9")], "");
            *response.status_mut() = StatusCode::from_u16(status).unwrap();
            response
        });
        let app = App::new(&layer(&clock()), &origin);
        app.get("/a").await;
        assert!(!app.get("/a").await.is_hit(), "{status}");
    }
}

#[tokio::test]
async fn a_304_from_inside_renews_the_stored_answer() {
    let clock = clock();
    let origin = Origin::of(|seen, call| match seen.headers().get("if-none-match") {
        Some(tag) => {
            assert_eq!(tag, "\"1\"");
            let mut response = said(&[("cache-control", "max-age=60"), ("x-run", "2")], "");
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            response
        }
        None => said(
            &[
                ("cache-control", "max-age=60"),
                ("etag", "\"1\""),
                ("x-run", "1"),
            ],
            format!("run {call}"),
        ),
    });
    let app = App::new(&layer(&clock), &origin);
    app.get("/a").await;
    clock.advance(secs(60));
    let renewed = app.get("/a").await;
    assert_eq!(
        (
            renewed.status,
            renewed.body.as_str(),
            renewed.field("x-run")
        ),
        (200, "run 0", "2")
    );
    assert_eq!(
        renewed.cache_status(),
        "tower-keep;fwd=stale;fwd-status=304;stored;ttl=60"
    );
    clock.advance(secs(59));
    let hit = app.get("/a").await;
    assert_eq!((hit.body.as_str(), hit.field("age")), ("run 0", "59"));
    assert_eq!(origin.calls(), 2);
}

#[tokio::test]
async fn a_304_for_another_date_is_fetched_once_more_without_conditions() {
    type Field = (&'static str, &'static str);
    const TAG: Field = ("etag", "\"1\"");
    const WEAK: Field = ("etag", "W/\"1\"");
    const OLD: Field = ("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT");
    const NEW: Field = ("last-modified", "Sun, 06 Nov 1994 08:49:38 GMT");
    const SAME: Field = ("last-modified", "Sunday, 06-Nov-94 08:49:37 GMT");
    const ODD: Field = ("last-modified", "yesterday");
    let rows: [(&'static [Field], &'static [Field], &str); 12] = [
        (&[OLD], &[NEW], "run 2"),
        (&[OLD], &[OLD], "run 0"),
        (&[OLD], &[SAME], "run 0"),
        (&[OLD], &[], "run 0"),
        (&[OLD], &[WEAK, NEW], "run 2"),
        (&[OLD], &[WEAK, OLD], "run 0"),
        (&[TAG, OLD], &[NEW], "run 2"),
        (&[TAG, OLD], &[OLD], "run 0"),
        (&[TAG], &[OLD], "run 2"),
        (&[TAG, ODD], &[OLD], "run 2"),
        (&[TAG, ODD], &[ODD], "run 0"),
        // A tag says more than a date.
        (&[TAG, OLD], &[TAG, NEW], "run 0"),
    ];
    for (stored, confirmed, body) in rows {
        let clock = clock();
        let origin = Origin::of(move |seen, call| {
            let asked = ["if-none-match", "if-modified-since"];
            if asked.iter().any(|name| seen.headers().contains_key(*name)) {
                let mut response = said(confirmed, "");
                *response.status_mut() = StatusCode::NOT_MODIFIED;
                return response;
            }
            let fields = [stored, &[("cache-control", "max-age=60")]].concat();
            said(&fields, format!("run {call}"))
        });
        let app = App::new(&layer(&clock), &origin);
        app.get("/a").await;
        clock.advance(secs(60));
        let got = app.get("/a").await;
        assert_eq!(got.body, body, "{stored:?} {confirmed:?}");
    }
}

#[tokio::test]
async fn a_304_for_another_tag_is_fetched_once_more_without_conditions() {
    for (stored, confirmed, body) in [
        ("\"1\"", "\"2\"", "run 2"),
        ("\"1\"", "W/\"2\"", "run 2"),
        ("W/\"1\"", "W/\"2\"", "run 2"),
        ("W/\"1\"", "\"1\"", "run 2"),
        ("\"1\"", "W/\"1\"", "run 0"),
        ("W/\"1\"", "W/\"1\"", "run 0"),
    ] {
        let clock = clock();
        let origin = Origin::of(move |seen, call| {
            if seen.headers().contains_key("if-none-match") {
                let mut response = said(&[("etag", confirmed)], "");
                *response.status_mut() = StatusCode::NOT_MODIFIED;
                return response;
            }
            said(
                &[("cache-control", "max-age=60"), ("etag", stored)],
                format!("run {call}"),
            )
        });
        let app = App::new(&layer(&clock), &origin);
        app.get("/a").await;
        clock.advance(secs(60));
        assert_eq!(app.get("/a").await.body, body, "{stored} {confirmed}");
    }
}

#[tokio::test]
async fn no_cache_is_validated_on_each_use() {
    let clock = clock();
    let origin = Origin::of(|seen, call| {
        if seen.headers().contains_key("if-none-match") {
            let mut response = said(&[("cache-control", "no-cache")], "");
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            return response;
        }
        said(
            &[("cache-control", "no-cache"), ("etag", "\"1\"")],
            format!("run {call}"),
        )
    });
    let app = App::new(&layer(&clock).ttl(secs(60)), &origin);
    for call in 1..=3 {
        assert_eq!(app.get("/a").await.body, "run 0");
        assert_eq!(origin.calls(), call);
    }
}

#[tokio::test]
async fn clients_conditions_are_answered_from_the_store_and_from_a_fetch() {
    let clock = clock();
    let origin = Origin::of(|seen, call| {
        assert!(
            !seen.headers().contains_key("if-none-match"),
            "the whole answer is fetched"
        );
        said(
            &[
                ("cache-control", "max-age=60"),
                ("etag", "\"1\""),
                ("content-type", "a/b"),
            ],
            format!("run {call}"),
        )
    });
    let app = App::new(&layer(&clock), &origin);
    for is_hit in [false, true] {
        let got = app.get_with("/a", &[("if-none-match", "W/\"1\"")]).await;
        assert_eq!(
            (got.status, got.body.as_str(), got.is_hit()),
            (304, "", is_hit)
        );
        assert_eq!(
            (got.field("etag"), got.fields.contains_key("content-type")),
            ("\"1\"", false)
        );
    }
    assert_eq!(
        app.get_with("/a", &[("if-none-match", "\"2\"")]).await.body,
        "run 0"
    );
    assert_eq!(app.get("/a").await.status, 200);
    assert_eq!(origin.calls(), 1);
}

#[tokio::test]
async fn one_byte_range_is_cut_from_a_complete_answer() {
    let clock = clock();
    let origin = counted(&[
        ("cache-control", "max-age=60"),
        ("content-digest", "x"),
        ("content-md5", "x"),
    ]);
    let app = App::new(&layer(&clock), &origin);
    let whole = app.get_with("/a", &[("range", "bytes=0-")]).await;
    assert_eq!(
        (
            whole.status,
            whole.body.as_str(),
            whole.field("content-range")
        ),
        (206, "run 0", "bytes 0-4/5")
    );
    let part = app.get_with("/a", &[("range", "bytes=1-2")]).await;
    assert_eq!(
        (part.status, part.body.as_str(), part.field("content-range")),
        (206, "un", "bytes 1-2/5")
    );
    assert_eq!(
        (part.field("content-length"), part.field("content-digest")),
        ("2", "")
    );
    assert_eq!(app.get_with("/a", &[("range", "bytes=-1")]).await.body, "0");
    let beyond = app.get_with("/a", &[("range", "bytes=9-")]).await;
    assert_eq!(
        (beyond.status, beyond.field("content-range")),
        (416, "bytes */5")
    );
    // They are of the whole body, and this answer has none.
    for digest in ["content-digest", "content-md5"] {
        assert!(!beyond.fields.contains_key(digest), "{digest}");
        assert!(!part.fields.contains_key(digest), "{digest}");
    }
    assert_eq!(
        app.get_with("/a", &[("range", "bytes=0-0,2-3")])
            .await
            .status,
        200
    );
    assert_eq!(origin.calls(), 1);
}

#[tokio::test]
async fn a_range_of_what_is_not_stored_goes_inwards_as_it_is() {
    let clock = clock();
    let origin = Origin::of(|seen, _| {
        assert_eq!(seen.headers()["range"], "bytes=1-2");
        let mut response = said(
            &[
                ("cache-control", "max-age=60"),
                ("content-range", "bytes 1-2/5"),
            ],
            "un",
        );
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        response
    });
    let app = App::new(&layer(&clock), &origin);
    for _ in 0..2 {
        let got = app.get_with("/a", &[("range", "bytes=1-2")]).await;
        assert_eq!((got.status, got.body.as_str()), (206, "un"));
    }
    assert_eq!(origin.calls(), 2);
}

#[tokio::test]
async fn head_is_answered_from_a_stored_get_and_never_fills_one() {
    let clock = clock();
    let origin = Origin::of(|seen, call| {
        let head = seen.method() == http::Method::HEAD;
        said(
            &[("cache-control", "max-age=60")],
            if head {
                String::new()
            } else {
                format!("run {call}")
            },
        )
    });
    let app = App::new(&layer(&clock), &origin);
    assert_eq!(
        app.method("HEAD", "/a").await.cache_status(),
        "tower-keep;fwd=method"
    );
    assert_eq!(app.get("/a").await.body, "run 1");
    let head = app.method("HEAD", "/a").await;
    assert!(head.is_hit());
    assert_eq!(
        (head.body.as_str(), head.field("content-length")),
        ("", "5")
    );
    assert_eq!(origin.calls(), 2);
}

#[tokio::test]
async fn variants_are_selected_by_the_fields_that_vary_names() {
    let clock = clock();
    let origin = Origin::of(|seen, call| {
        let language = seen
            .headers()
            .get("accept-language")
            .map_or("-", |value| value.to_str().unwrap());
        said(
            &[("cache-control", "max-age=60"), ("vary", "Accept-Language")],
            format!("{language} {call}"),
        )
    });
    let app = App::new(&layer(&clock), &origin);
    let get = async |language: &str| {
        app.get_with("/a", &[("accept-language", language)])
            .await
            .body
    };
    assert_eq!(get("de").await, "de 0");
    assert_eq!(get("en").await, "en 1");
    assert_eq!(get("de").await, "de 0");
    assert_eq!(app.get("/a").await.body, "- 2");
    assert_eq!(
        get("EN;q=1.0").await,
        "en 1",
        "one form of the same preference"
    );
    assert_eq!(get("").await, " 3", "empty is not absent");
    assert_eq!(origin.calls(), 4);
}

/// Answers in German whatever is asked, and says so where the path does.
fn german() -> Origin {
    Origin::of(|seen, call| {
        let mut fields = vec![
            ("cache-control", "max-age=60"),
            ("vary", "Accept-Language, X-A"),
        ];
        match seen.uri().path() {
            "/silent" => {}
            "/both" => fields.push(("content-language", "de, en")),
            _ => fields.push(("content-language", "de")),
        }
        said(&fields, format!("run {call}"))
    })
}

#[tokio::test]
async fn an_answer_in_the_language_liked_best_will_do_where_no_variant_matches() {
    // RFC 9111 §4.1.
    let (clock, origin) = (clock(), german());
    let layer = layer(&clock);
    let app = App::new(&layer, &origin);
    let get = async |path: &str, language: &str| {
        let got = app.get_with(path, &[("accept-language", language)]).await;
        (got.is_hit(), got.body)
    };
    let hit = |run: usize| (true, format!("run {run}"));
    let miss = |run: usize| (false, format!("run {run}"));
    assert_eq!(get("/a", "en, de").await, miss(0));
    for language in ["fr;q=0.5, de;q=1.0", "DE", "de, *;q=0.1"] {
        assert_eq!(get("/a", language).await, hit(0), "{language}");
    }
    // Liked as much as another one, or less, is not liked best.
    for (run, language) in ["fr, de", "fr, de;q=0.5", "de-at", "*"].iter().enumerate() {
        assert_eq!(get("/a", language).await, miss(run + 1), "{language}");
    }
    // The latest in that language.
    assert_eq!(get("/a", "de").await, hit(4));
    // All else that selects must be the same.
    let other = app
        .get_with("/a", &[("accept-language", "de"), ("x-a", "1")])
        .await;
    assert_eq!((other.is_hit(), &other.body[..]), (false, "run 5"));
    // Its own variant comes first.
    assert_eq!(get("/a", "de").await, hit(4));
    for path in ["/silent", "/both"] {
        assert!(!get(path, "en, de").await.0);
        assert!(!get(path, "de").await.0, "{path}");
    }
    // It is no longer than any other answer.
    layer.handle().invalidate([Target::url("/a")]).await;
    assert!(!get("/a", "de;q=0.9").await.0);
    assert_eq!(get("/a", "de;q=0.8").await, (true, "run 10".into()));
    clock.advance(secs(60));
    assert_eq!(get("/a", "de;q=0.7").await, miss(11));
}

#[tokio::test]
async fn names_of_all_answers_count_together() {
    let clock = clock();
    let origin = Origin::of(|seen, call| {
        let vary = if seen.headers().contains_key("x-b") {
            "x-b"
        } else {
            "x-a"
        };
        said(
            &[("cache-control", "max-age=60"), ("vary", vary)],
            format!("run {call}"),
        )
    });
    let app = App::new(&layer(&clock), &origin);
    app.get_with("/a", &[("x-a", "1")]).await;
    app.get_with("/a", &[("x-a", "2"), ("x-b", "1")]).await;
    // Under both names now: nothing stored under one alone may answer.
    assert_eq!(app.get_with("/a", &[("x-a", "2")]).await.body, "run 2");
    assert_eq!(
        app.get_with("/a", &[("x-a", "2"), ("x-b", "1")]).await.body,
        "run 1"
    );
}

#[tokio::test]
async fn only_if_cached_is_refused_without_running_anything() {
    let clock = clock();
    let origin = counted(&[("cache-control", "max-age=60")]);
    let hooked = layer(&clock).on_rejection(|why, response| {
        assert_eq!(*why, ResponseCacheRejection::NotStored);
        response
            .headers_mut()
            .insert("x-hook", "1".parse().unwrap());
    });
    let app = App::new(&hooked, &origin);
    let ask = || request("GET", "/a", &[("cache-control", "only-if-cached")]);
    let refused = app.try_call(ask()).await.unwrap();
    assert_eq!(
        (
            refused.status().as_u16(),
            refused.headers()["x-hook"].to_str().unwrap()
        ),
        (504, "1")
    );
    assert_eq!(
        refused.extensions().get(),
        Some(&ResponseCacheOutcome::Refused)
    );
    assert_eq!(
        refused.extensions().get(),
        Some(&ResponseCacheRejection::NotStored)
    );
    assert!(refused.extensions().get::<IdempotencyOutcome>().is_none());
    assert!(!refused.headers().contains_key("cache-status"));
    let refused = super::origin::read(refused).await;
    assert_eq!(refused.field("content-type"), "application/problem+json");
    let problem: serde_json::Value = serde_json::from_str(&refused.body).unwrap();
    assert_eq!(problem["code"], "NOT_STORED");
    assert_eq!(origin.calls(), 0);
    app.get("/a").await;
    assert!(app.send(ask()).await.is_hit());
}

#[tokio::test]
async fn requests_may_demand_a_fresh_answer_only_where_they_are_allowed_to() {
    for (allowed, calls) in [(false, 1), (true, 2)] {
        for demand in ["no-cache", "max-age=0", "min-fresh=100"] {
            let clock = clock();
            let origin = counted(&[("cache-control", "max-age=60")]);
            let layer = layer(&clock);
            let app = App::new(&if allowed { layer.allow_reload() } else { layer }, &origin);
            app.get("/a").await;
            clock.advance(secs(1));
            app.get_with("/a", &[("cache-control", demand)]).await;
            assert_eq!(origin.calls(), calls, "{demand}");
        }
    }
    let clock = clock();
    let origin = counted(&[("cache-control", "max-age=60")]);
    let app = App::new(&layer(&clock).allow_reload(), &origin);
    app.get("/a").await;
    assert_eq!(
        app.get_with("/a", &[("pragma", "no-cache")]).await.body,
        "run 1"
    );
    assert_eq!(
        app.get("/a").await.body,
        "run 1",
        "what it brought is stored"
    );
}

#[tokio::test]
async fn a_request_may_keep_its_answer_out_and_take_a_stale_one() {
    let clock = clock();
    let origin = counted(&[("cache-control", "max-age=60")]);
    let app = App::new(&layer(&clock), &origin);
    app.get_with("/a", &[("cache-control", "no-store")]).await;
    assert_eq!(app.get("/a").await.body, "run 1");
    assert_eq!(
        app.get_with("/a", &[("cache-control", "no-store")])
            .await
            .body,
        "run 1"
    );
    clock.advance(secs(70));
    let stale = app
        .get_with("/a", &[("cache-control", "max-stale=10")])
        .await;
    assert_eq!(
        (stale.body.as_str(), stale.cache_status()),
        ("run 1", "tower-keep;hit;ttl=-10")
    );
    assert_eq!(
        app.get_with("/a", &[("cache-control", "max-stale=9")])
            .await
            .body,
        "run 2"
    );
}

#[tokio::test]
async fn a_stale_answer_is_given_while_one_refresh_runs_behind_it() {
    let clock = clock();
    let origin = counted(&[("cache-control", "max-age=10, stale-while-revalidate=30")]);
    let layer = layer(&clock);
    let app = App::new(&layer, &origin);
    app.get("/a").await;
    clock.advance(secs(10));
    let stale = app.get("/a").await;
    assert_eq!(
        (stale.body.as_str(), stale.cache_status()),
        ("run 0", "tower-keep;hit;ttl=0")
    );
    super::origin::until("refreshed", || {
        layer.handle().stats().refreshes == 0 && origin.calls() == 2
    })
    .await;
    let fresh = app.get("/a").await;
    assert_eq!(
        (fresh.body.as_str(), fresh.cache_status()),
        ("run 1", "tower-keep;hit;ttl=10")
    );
    clock.advance(secs(39));
    assert_eq!(app.get("/a").await.body, "run 1");
    super::origin::until("refreshed", || {
        layer.handle().stats().refreshes == 0 && origin.calls() == 3
    })
    .await;
    clock.advance(secs(40));
    assert_eq!(
        app.get("/a").await.body,
        "run 3",
        "beyond the window nothing stale is given"
    );
}

/// However many are due, the inner service never has more than 256 refreshes at once; the others answer as they are.
#[tokio::test]
async fn no_more_than_256_refreshes_run_behind_answers() {
    let clock = clock();
    let fields = [("cache-control", "max-age=10, stale-while-revalidate=30")];
    let (origin, gate) = gated(move |_, call| said(&fields, format!("run {call}")));
    let layer = layer(&clock);
    let app = App::new(&layer, &origin);
    gate.add_permits(300);
    for path in 0..300 {
        app.get(&format!("/{path}")).await;
    }
    assert_eq!(origin.calls(), 300);
    clock.advance(secs(10));
    for _ in 0..2 {
        for path in 0..300 {
            let stale = app.get(&format!("/{path}")).await;
            assert_eq!(stale.body, format!("run {path}"));
        }
        super::origin::until("256 run", || origin.calls() == 300 + 256).await;
        assert_eq!(layer.handle().stats().refreshes, 256);
    }
    gate.add_permits(256);
    super::origin::until("all ended", || layer.handle().stats().refreshes == 0).await;
    assert_eq!(origin.calls(), 300 + 256);
    // There is room again: those that had none are due still.
    gate.add_permits(44);
    for path in 0..300 {
        app.get(&format!("/{path}")).await;
    }
    super::origin::until("the rest", || origin.calls() == 600).await;
}

#[tokio::test]
async fn a_due_answer_is_given_at_once_and_refreshed_behind() {
    let clock = clock();
    let origin = counted(&[]);
    let layer = layer(&clock).ttl(secs(1_800)).refresh_after(secs(1_200));
    let app = App::new(&layer, &origin);
    app.get("/a").await;
    clock.advance(secs(1_199));
    let hit = app.get("/a").await;
    assert_eq!((hit.field("age"), origin.calls()), ("1199", 1));
    clock.advance(secs(2));
    assert_eq!(app.get("/a").await.body, "run 0");
    super::origin::until("refreshed", || {
        layer.handle().stats().refreshes == 0 && origin.calls() == 2
    })
    .await;
    assert_eq!(app.get("/a").await.body, "run 1");
    clock.advance(secs(1_800));
    assert_eq!(app.get("/a").await.body, "run 2");
}

#[tokio::test]
async fn a_stale_answer_stands_in_for_an_error_where_that_is_allowed() {
    let failing = |status: Option<u16>, fields: &'static [(&'static str, &'static str)]| {
        let fails = Arc::new(AtomicUsize::new(0));
        let own = Arc::clone(&fails);
        let origin = Origin::new(move |_, call| {
            let answer = match (own.load(Ordering::SeqCst), status) {
                (0, _) => Ok(said(fields, format!("run {call}"))),
                (_, None) => Err(Broken),
                (_, Some(status)) => {
                    let mut response = said(&[], "sorry");
                    *response.status_mut() = StatusCode::from_u16(status).unwrap();
                    Ok(response)
                }
            };
            Box::pin(async move { answer.map(|response| response.map(|text| full(text.into()))) })
        });
        (origin, fails)
    };
    let plain: &[(&str, &str)] = &[("cache-control", "max-age=10")];
    let windowed: &[(&str, &str)] = &[("cache-control", "max-age=10, stale-if-error=100")];
    let strict: &[(&str, &str)] = &[(
        "cache-control",
        "max-age=10, must-revalidate, stale-if-error=100",
    )];
    let rows = [
        (None, plain, 10, true),
        (Some(503), plain, 3_609, true),
        (Some(503), plain, 3_610, false),
        (Some(500), plain, 10, false),
        (Some(500), windowed, 109, true),
        (Some(502), windowed, 110, false),
        (Some(504), strict, 10, false),
        (Some(404), windowed, 10, false),
    ];
    for (status, fields, after, stands_in) in rows {
        let clock = clock();
        let (origin, fails) = failing(status, fields);
        let app = App::new(&layer(&clock), &origin);
        app.get("/a").await;
        fails.store(1, Ordering::SeqCst);
        clock.advance(secs(after));
        let case = format!("{status:?} {fields:?} after {after}");
        match app.try_call(request("GET", "/a", &[])).await {
            Ok(response) => {
                let got = super::origin::read(response).await;
                assert_eq!(got.body == "run 0", stands_in, "{case}");
                assert_eq!(
                    got.cache_status().ends_with("detail=stale-if-error"),
                    stands_in,
                    "{case}"
                );
            }
            Err(Broken) => assert!(!stands_in, "{case}"),
        }
        if stands_in {
            assert_eq!(app.get("/a").await.body, "run 0");
            assert_eq!(
                origin.calls(),
                2,
                "while standing in it asks once a second: {case}"
            );
        }
    }
}

#[tokio::test]
async fn a_failing_service_is_asked_once_a_second_while_a_stale_answer_stands_in() {
    let clock = clock();
    let origin = Origin::of(|_, call| {
        let mut response = said(&[("cache-control", "max-age=10")], format!("run {call}"));
        if (1..=2).contains(&call) {
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            response.headers_mut().clear();
        }
        response
    });
    let layer = layer(&clock).real_clock(0, clock.clone());
    let app = App::new(&layer, &origin);
    app.get("/a").await;
    clock.advance(secs(10));
    let asked = async |after: u64, calls: usize| {
        clock.advance(Duration::from_millis(after));
        let got = app.get("/a").await;
        assert_eq!(origin.calls(), calls);
        got
    };
    for (after, calls) in [(0, 2), (999, 2), (1, 3), (999, 3)] {
        let got = asked(after, calls).await;
        assert_eq!((got.status, got.body.as_str()), (200, "run 0"));
        assert!(got.cache_status().ends_with("detail=stale-if-error"));
    }
    let recovered = asked(1, 4).await;
    assert_eq!((recovered.status, recovered.body.as_str()), (200, "run 3"));
    assert!(asked(0, 4).await.is_hit());
}

#[tokio::test]
async fn a_stored_error_stands_in_for_no_other() {
    for window in ["", ", stale-if-error=100"] {
        let clock = clock();
        let control = format!("max-age=10{window}");
        let origin = Origin::of(move |_, call| {
            let fields = [("cache-control", control.as_str()), ("etag", "\"1\"")];
            let mut response = said(if call == 0 { &fields } else { &[] }, format!("run {call}"));
            *response.status_mut() = match call {
                0 => StatusCode::SERVICE_UNAVAILABLE,
                _ => StatusCode::BAD_GATEWAY,
            };
            response
        });
        let app = App::new(&layer(&clock), &origin);
        app.get("/a").await;
        let hit = app.get("/a").await;
        assert!(hit.is_hit() && hit.status == 503);
        clock.advance(secs(11));
        let got = app.get("/a").await;
        assert_eq!((got.status, got.body.as_str()), (502, "run 1"), "{window}");
        assert!(!got.cache_status().contains("stale-if-error"), "{window}");
    }
}

#[tokio::test]
async fn unsafe_methods_invalidate_their_url_and_those_their_answer_names() {
    let clock = clock();
    let origin = Origin::of(|seen, call| match seen.method().as_str() {
        "GET" => said(
            &[("cache-control", "max-age=60"), ("cache-groups", "\"g\"")],
            format!("run {call}"),
        ),
        "PUT" => said(
            &[
                ("location", "/b"),
                ("content-location", "http://other.test/c"),
            ],
            "",
        ),
        "POST" => said(&[("cache-group-invalidation", "\"g\"")], ""),
        "PATCH" => said(&[("location", "./c#top")], ""),
        _ => {
            let mut response = said(&[], "");
            *response.status_mut() = StatusCode::BAD_REQUEST;
            response
        }
    });
    let app = App::new(&layer(&clock), &origin);
    for path in ["/a", "/b", "/c"] {
        app.get(path).await;
    }
    assert_eq!(app.method("DELETE", "/a").await.status, 400);
    assert!(
        app.get("/a").await.is_hit(),
        "a refused change changes nothing"
    );
    app.method("PUT", "/a").await;
    assert!(!app.get("/a").await.is_hit());
    assert!(!app.get("/b").await.is_hit());
    assert!(app.get("/c").await.is_hit());
    app.method("PATCH", "/d").await;
    assert!(!app.get("/c").await.is_hit(), "a reference is resolved");
    app.method("POST", "/elsewhere").await;
    for path in ["/a", "/b", "/c"] {
        assert!(!app.get(path).await.is_hit(), "{path}");
    }
}

#[tokio::test]
async fn targets_hit_what_they_name_and_nothing_else() {
    let rows: [(Target, [bool; 5]); 8] = [
        (Target::everything(), [true; 5]),
        (Target::tag("t"), [true; 5]),
        (Target::tag("other"), [false; 5]),
        (Target::prefix("/a/b"), [false, true, true, true, false]),
        (Target::prefix("/"), [true; 5]),
        (Target::url("/a/b?x"), [false, false, true, false, false]),
        (
            Target::url("http://h.test/a/b"),
            [false, true, false, false, false],
        ),
        (Target::url("http://other.test/a/b"), [false; 5]),
    ];
    for (target, gone) in rows {
        let clock = clock();
        let origin = counted(&[]);
        let layer = layer(&clock).ttl(secs(60)).tag("t");
        let app = App::new(&layer, &origin);
        let paths = ["/a", "/a/b", "/a/b?x", "/a/b/c", "/a/bc"];
        for path in paths {
            app.get_with(path, &[("host", "h.test")]).await;
        }
        layer.handle().invalidate([target]).await;
        for (path, gone) in paths.into_iter().zip(gone) {
            assert_eq!(
                app.get_with(path, &[("host", "h.test")]).await.is_hit(),
                !gone,
                "{target:?} {path}"
            );
        }
    }
}

#[tokio::test]
async fn prefixes_are_known_16_segments_deep() {
    let path = |depth: usize| (1..=depth).map(|n| format!("/{n}")).collect::<String>();
    for (prefix, of, is_hit) in [(16, 16, false), (16, 20, false), (17, 20, true)] {
        let layer = layer(&clock()).ttl(secs(60));
        let app = App::new(&layer, &counted(&[]));
        app.get(&path(of)).await;
        assert!(app.get(&path(of)).await.is_hit());
        let target = Target::prefix(path(prefix));
        layer.handle().invalidate([target]).await;
        let got = app.get(&path(of)).await;
        assert_eq!(got.is_hit(), is_hit, "{prefix} of {of}");
    }
}

#[tokio::test]
async fn what_is_expired_is_stale_within_its_windows() {
    let clock = clock();
    let origin = counted(&[]);
    let layer = layer(&clock)
        .ttl(secs(60))
        .stale_while_revalidate(secs(60))
        .tag("t");
    let app = App::new(&layer, &origin);
    app.get("/a").await;
    layer.handle().expire([Target::tag("t")]).await;
    let got = app.get("/a").await;
    assert_eq!(
        (got.body.as_str(), got.cache_status()),
        ("run 0", "tower-keep;hit;ttl=-1")
    );
    assert_eq!(layer.handle().stats().stale_hits, 1);
    super::origin::until("refreshed", || {
        layer.handle().stats().refreshes == 0 && origin.calls() == 2
    })
    .await;
    let got = app.get("/a").await;
    assert_eq!((got.body.as_str(), got.is_hit()), ("run 1", true));
}

#[tokio::test]
async fn ignored_parameters_do_not_reach_the_handler() {
    let clock = clock();
    let origin =
        Origin::of(|seen, _| said(&[("cache-control", "max-age=60")], seen.uri().to_string()));
    let layer = layer(&clock).key(KeyRules::new().sort_query().ignore_query(TRACKING));
    let app = App::new(&layer, &origin);
    assert_eq!(app.get("/a?b=1&utm_source=x&a=2").await.body, "/a?a=2&b=1");
    assert_eq!(app.get("/a?a=2&b=1&gclid=7").await.body, "/a?a=2&b=1");
    assert_eq!(origin.calls(), 1);
    let changed = app.method("POST", "/a?b=1&gclid=7&a=2").await;
    assert_eq!(
        changed.body, "/a?b=1&gclid=7&a=2",
        "what changes things gets what was sent"
    );
    assert!(
        !app.get("/a?a=2&b=1").await.is_hit(),
        "and invalidates what the key names"
    );
}

#[tokio::test]
async fn answers_stored_by_policy_alone_tell_clients_to_ask_again() {
    let clock = clock();
    let origin = counted(&[]);
    let app = App::new(&layer(&clock).ttl(secs(60)), &origin);
    let (miss, hit) = (app.get("/a").await, app.get("/a").await);
    assert_eq!(
        (miss.field("cache-control"), hit.field("cache-control")),
        ("no-cache", "no-cache")
    );
    assert!(miss.field("etag").starts_with('"') && miss.field("etag") == hit.field("etag"));
    let same = app
        .get_with("/a", &[("if-none-match", hit.field("etag"))])
        .await;
    assert_eq!((same.status, origin.calls()), (304, 1));
    clock.advance(secs(60));
    assert!(!app.get("/a").await.is_hit());
}

#[tokio::test]
async fn the_own_tag_is_never_sent_inwards() {
    let clock = clock();
    let origin = Origin::of(|seen, call| {
        assert!(!seen.headers().contains_key("if-none-match"));
        said(&[], format!("run {call}"))
    });
    let app = App::new(
        &layer(&clock).ttl(secs(60)).stale_if_error(secs(60)),
        &origin,
    );
    app.get("/a").await;
    clock.advance(secs(60));
    assert_eq!(app.get("/a").await.body, "run 1");
}

#[tokio::test]
async fn fields_of_one_exchange_are_not_replayed_and_all_others_are() {
    let clock = clock();
    let origin = Origin::of(|_, _| {
        let mut response = said(
            &[
                ("cache-control", "max-age=60"),
                ("connection", "x-hop"),
                ("x-hop", "1"),
                ("keep-alive", "1"),
                ("ratelimit", "\"a\";r=1"),
                ("x-ratelimit-remaining", "1"),
                ("idempotency-key", "1"),
                ("cache-status", "inner;hit"),
                ("set-cookie2", "a=b"),
                ("x-two", "1"),
                ("x-two", "2"),
            ],
            "x",
        );
        response
            .headers_mut()
            .insert("x-bytes", http::HeaderValue::from_bytes(b"\xfe").unwrap());
        response
    });
    let app = App::new(&layer(&clock), &origin);
    let miss = app.get("/a").await;
    assert_eq!(miss.cache_status(), "inner;hit");
    assert_eq!(miss.fields.get_all("cache-status").iter().count(), 2);
    let hit = app.get("/a").await;
    assert_eq!(hit.cache_status(), "tower-keep;hit;ttl=60");
    for gone in [
        "connection",
        "x-hop",
        "keep-alive",
        "ratelimit",
        "x-ratelimit-remaining",
        "idempotency-key",
    ] {
        assert!(!hit.fields.contains_key(gone), "{gone}");
    }
    assert_eq!(
        hit.fields.get_all("x-two").iter().collect::<Vec<_>>(),
        ["1", "2"]
    );
    assert_eq!(hit.fields["x-bytes"].as_bytes(), b"\xfe");
    assert!(hit.fields.contains_key("set-cookie2"));
}

#[tokio::test]
async fn heuristics_guess_a_tenth_unless_they_are_off() {
    let changed: &[(&str, &str)] = &[("last-modified", "Mon, 31 Dec 2029 23:43:20 GMT")];
    for (off, fresh) in [(false, true), (true, false)] {
        let clock = clock();
        let layer = layer(&clock);
        let app = App::new(
            &if off { layer.no_heuristics() } else { layer },
            &counted(changed),
        );
        app.get("/a").await;
        clock.advance(secs(99));
        assert_eq!(app.get("/a").await.is_hit(), fresh);
        clock.advance(secs(1));
        assert!(!app.get("/a").await.is_hit());
    }
}

#[tokio::test]
async fn a_lifetime_is_guessed_for_the_statuses_that_may_have_one() {
    let own = || CachePolicy::new().ttl(secs(60));
    let fresh = [200, 203, 204, 300, 301, 308, 404, 405, 410, 414, 501];
    for status in fresh.into_iter().chain([201, 302, 307, 400, 403, 500, 503]) {
        for by_policy in [false, true] {
            let origin = Origin::of(move |_, _| {
                let changed = [("last-modified", "Mon, 31 Dec 2029 00:00:00 GMT")];
                let mut response = said(if by_policy { &[] } else { &changed }, "");
                *response.status_mut() = StatusCode::from_u16(status).unwrap();
                if by_policy {
                    response.extensions_mut().insert(own());
                }
                response
            });
            let app = App::new(&layer(&clock()), &origin);
            app.get("/a").await;
            let is_hit = app.get("/a").await.is_hit();
            assert_eq!(is_hit, fresh.contains(&status), "{status} {by_policy}");
        }
    }
}

#[tokio::test]
async fn two_layers_on_one_store_see_each_others_invalidations_at_once() {
    let clock = clock();
    let store = memory(&clock);
    let one = tower_keep::response_cache::ResponseCacheLayer::new(store.clone())
        .ttl(secs(60))
        .tag("t");
    let two = tower_keep::response_cache::ResponseCacheLayer::new(store).ttl(secs(60));
    let origin = counted(&[]);
    let (first, second) = (App::new(&one, &origin), App::new(&two, &origin));
    first.get("/a").await;
    assert!(second.get("/a").await.is_hit());
    two.handle().invalidate([Target::tag("t")]).await;
    assert!(!first.get("/a").await.is_hit());
}

#[tokio::test]
async fn a_hidden_status_is_hidden_everywhere() {
    let clock = clock();
    let app = App::new(&layer(&clock).ttl(secs(60)).hide_status(), &counted(&[]));
    for _ in 0..2 {
        assert!(!app.get("/a").await.fields.contains_key("cache-status"));
    }
    assert!(
        !app.method("POST", "/a")
            .await
            .fields
            .contains_key("cache-status")
    );
}

#[tokio::test]
async fn an_axum_handler_says_its_own_policy_as_a_part_of_its_answer() {
    use axum::routing::get;
    use axum::{Router, body::Body};
    use tower::ServiceExt;

    let runs = Arc::new(AtomicUsize::new(0));
    let own = Arc::clone(&runs);
    let handler = move || {
        let run = own.fetch_add(1, Ordering::SeqCst);
        async move {
            (
                CachePolicy::new().ttl(secs(60)).tag("own"),
                format!("run {run}"),
            )
        }
    };
    let cache = layer(&clock());
    let app = Router::new().route("/a", get(handler).layer(cache.clone()));
    let ask = || {
        app.clone()
            .oneshot(http::Request::get("/a").body(Body::empty()).unwrap())
    };
    for status in [
        "tower-keep;fwd=uri-miss;stored;ttl=60",
        "tower-keep;hit;ttl=60",
    ] {
        assert_eq!(ask().await.unwrap().headers()["cache-status"], status);
    }
    cache.handle().invalidate([Target::tag("own")]).await;
    ask().await.unwrap();
    assert_eq!(runs.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn numbers_tell_hits_from_misses() {
    let layer = layer(&clock()).ttl(secs(60));
    let app = App::new(&layer, &counted(&[]));
    for _ in 0..4 {
        app.get("/a").await;
    }
    app.method("POST", "/b").await;
    let stats = layer.handle().stats();
    assert_eq!((stats.hits, stats.misses, stats.passed), (3, 1, 1));
    assert!((stats.hit_rate() - 0.75).abs() < f64::EPSILON);
}

#[tokio::test]
async fn head_of_a_stored_answer_without_content_claims_no_length() {
    let origin = Origin::of(|_, _| {
        let mut response = said(&[("cache-control", "max-age=60")], "");
        *response.status_mut() = http::StatusCode::NO_CONTENT;
        response
    });
    let app = App::new(&layer(&clock()), &origin);
    app.get("/a").await;
    let head = app.method("HEAD", "/a").await;
    assert!(head.is_hit());
    assert_eq!((head.status, head.field("content-length")), (204, ""));
}

#[tokio::test]
async fn set_cookie_is_replayed_only_where_a_route_says_so() {
    let origin = Origin::of(|_, call| {
        let fields = [
            ("cache-control", "max-age=60"),
            ("set-cookie", "a=1"),
            ("set-cookie", "b=2"),
        ];
        said(&fields, format!("run {call}"))
    });
    let plain = App::new(&layer(&clock()), &origin);
    assert!(
        plain
            .get("/a")
            .await
            .cache_status()
            .ends_with("detail=set-cookie")
    );
    let replaying = App::new(&layer(&clock()).replay_set_cookie(), &origin);
    for _ in 0..2 {
        let got = replaying.get("/a").await;
        assert_eq!(got.body, "run 1");
        let cookies: Vec<_> = got.fields.get_all("set-cookie").iter().collect();
        assert_eq!(cookies, ["a=1", "b=2"]);
    }
}

/// The members of R68, each provoked; what is asked first fills the cache.
#[tokio::test]
async fn the_status_says_why_a_request_went_inwards() {
    type Asked<'a> = (&'a str, String, &'a [(&'a str, &'a str)]);
    let german: &[(&str, &str)] = &[("accept-language", "de")];
    let english: &[(&str, &str)] = &[("accept-language", "en")];
    let reload: &[(&str, &str)] = &[("accept-language", "de"), ("cache-control", "no-cache")];
    let get = |fields| ("GET", "/a".to_owned(), fields);
    let long = format!("/{}", "x".repeat(8_192));
    let rows: [(Option<Asked<'_>>, Asked<'_>, &str); 12] = [
        (None, get(german), "fwd=uri-miss;stored;ttl=60"),
        (
            Some(get(german)),
            get(english),
            "fwd=vary-miss;stored;ttl=60",
        ),
        (Some(get(german)), get(reload), "fwd=request;stored;ttl=60"),
        (None, get(&[("cache-control", "no-store")]), "fwd=request"),
        (None, get(&[("range", "bytes=1-2")]), "fwd=partial"),
        (None, ("HEAD", "/a".to_owned(), german), "fwd=method"),
        (None, ("POST", "/a".to_owned(), german), "fwd=method"),
        (
            None,
            get(&[("x-http-method-override", "PUT")]),
            "fwd=bypass;detail=override",
        ),
        (
            None,
            get(&[("upgrade", "websocket")]),
            "fwd=bypass;detail=upgrade",
        ),
        (
            None,
            get(&[("if-match", "*")]),
            "fwd=bypass;detail=precondition",
        ),
        (None, get(&[("host", "u@a")]), "fwd=bypass;detail=host"),
        (None, ("GET", long, german), "fwd=bypass;detail=length"),
    ];
    for (first, (method, path, fields), expected) in rows {
        let origin = counted(&[("cache-control", "max-age=60"), ("vary", "accept-language")]);
        let app = App::new(&layer(&clock()).allow_reload(), &origin);
        if let Some((method, path, fields)) = first {
            app.send(request(method, &path, fields)).await;
        }
        let got = app.send(request(method, &path, fields)).await;
        let expected = format!("tower-keep;{expected}");
        assert_eq!(got.cache_status(), expected, "{method} {fields:?}");
    }
}
