//! The rules of HTTP caching, row by row, each with the section that says it, through the gateway as it runs.
//!
//! Nothing sleeps: answers are made old by `Age` and `Date`. `@n` is the date n seconds from now.

use crate::gateway::wire::{Gateway, Got, Reply, response};

type Fields = &'static [(&'static str, &'static str)];

/// What the second request gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    /// The stored answer.
    Hit,
    /// 304 out of the store.
    NotModified,
    /// Another answer from the origin, asked without conditions of ours.
    Fetched,
    /// The stored answer, after the origin was asked with its ETag.
    ByTag,
    /// The stored answer, after the origin was asked with its Last-Modified.
    ByDate,
}
use Then::{ByDate, ByTag, Fetched, Hit, NotModified};

/// Rule; fields of the first request; status and fields of its answer; fields of the second request; what that gets.
type Row = (&'static str, Fields, u16, Fields, Fields, Then);

const FRESH: (&str, &str) = ("Cache-Control", "max-age=60");

#[rustfmt::skip]
const FRESHNESS: &[Row] = &[
    ("9111 §3 nothing said, nothing stored", &[], 200, &[], &[], Fetched),
    ("9111 §4.2.1 max-age", &[], 200, &[FRESH], &[], Hit),
    ("9111 §4.2.1 max-age 0", &[], 200, &[("Cache-Control", "max-age=0")], &[], Fetched),
    ("9111 §4.2.1 s-maxage before max-age", &[], 200, &[("Cache-Control", "max-age=0, s-maxage=60")], &[], Hit),
    ("9111 §4.2.1 a short s-maxage before a long max-age", &[], 200, &[("Cache-Control", "max-age=60, s-maxage=0")], &[], Fetched),
    ("9111 §5.3 Expires", &[], 200, &[("Expires", "@60"), ("Date", "@0")], &[], Hit),
    ("9111 §5.3 Expires in the past", &[], 200, &[("Expires", "@-60"), ("Date", "@0")], &[], Fetched),
    ("9111 §5.3 Expires at Date", &[], 200, &[("Expires", "@0"), ("Date", "@0")], &[], Fetched),
    ("9111 §5.3 max-age before Expires", &[], 200, &[FRESH, ("Expires", "@-60")], &[], Hit),
    ("9111 §5.3 max-age 0 before Expires", &[], 200, &[("Cache-Control", "max-age=0"), ("Expires", "@60")], &[], Fetched),
    ("9111 §5.3 an invalid Expires is the past", &[], 200, &[("Expires", "0"), ("Last-Modified", "@-90000")], &[], ByDate),
    ("9111 §5.3 a zone that is not GMT", &[], 200, &[("Expires", "Thu, 01 Jan 2099 00:00:00 EST")], &[], Fetched),
    ("9110 §5.6.7 RFC 850 form", &[], 200, &[("Expires", "Thursday, 18-Aug-50 02:01:18 GMT")], &[], Hit),
    ("9110 §5.6.7 asctime form", &[], 200, &[("Expires", "Thu Aug 18 02:01:18 2050")], &[], Hit),
    ("9110 §5.6.7 letters of any case", &[], 200, &[("Expires", "THU, 18 AUG 2050 02:01:18 gmt")], &[], Hit),
    ("9111 §4.2.3 Age counts", &[], 200, &[FRESH, ("Age", "60")], &[], Fetched),
    ("9111 §4.2.3 Age below the lifetime", &[], 200, &[FRESH, ("Age", "30")], &[], Hit),
    ("9111 §4.2.3 an old Date counts", &[], 200, &[FRESH, ("Date", "@-90")], &[], Fetched),
    ("9111 §4.2.3 Age against Expires", &[], 200, &[("Expires", "@60"), ("Date", "@0"), ("Age", "90")], &[], Fetched),
    ("9111 §4.2.3 a Date ahead is no age", &[], 200, &[FRESH, ("Date", "@5000")], &[], Hit),
    ("9111 §5.1 an Age that is no number is ignored", &[], 200, &[FRESH, ("Age", "abc")], &[], Hit),
    ("9111 §5.1 a negative Age is ignored", &[], 200, &[FRESH, ("Age", "-7200")], &[], Hit),
    ("9111 §5.1 an Age with a fraction is ignored", &[], 200, &[FRESH, ("Age", "7200.0")], &[], Hit),
    ("9111 §5.1 the first member of Age", &[], 200, &[FRESH, ("Age", "0, 7200")], &[], Hit),
    ("9111 §5.1 the first line of Age", &[], 200, &[FRESH, ("Age", "7200"), ("Age", "0")], &[], Fetched),
    ("9111 §1.2.2 a huge Age saturates", &[], 200, &[FRESH, ("Age", "2147483649")], &[], Fetched),
    ("9111 §1.2.2 a huge max-age saturates", &[], 200, &[("Cache-Control", "max-age=99999999999")], &[], Hit),
    ("9111 §4.2.2 a tenth of the time since the last change", &[], 200, &[("Last-Modified", "@-100000")], &[], Hit),
    ("9111 §4.2.2 not for a status that is not for it", &[], 201, &[("Last-Modified", "@-100000")], &[], Fetched),
    ("9111 §4.2.2 but with public", &[], 599, &[("Last-Modified", "@-100000"), ("Cache-Control", "public")], &[], Hit),
    ("9111 §4.2.2 a request with a cookie is not guessed for", &[("Cookie", "a=b")], 200, &[("Last-Modified", "@-100000")], &[], Fetched),
    ("9111 §5.4 Pragma of a response says nothing", &[], 200, &[FRESH, ("Pragma", "no-cache")], &[], Hit),
];

#[rustfmt::skip]
const PARSING: &[Row] = &[
    ("9111 §5.2 any letter case", &[], 200, &[("Cache-Control", "MaX-aGe=60")], &[], Hit),
    ("9111 §5.2 over several lines", &[], 200, &[("Cache-Control", "x"), FRESH], &[], Hit),
    ("9111 §5.2 a quoted number", &[], 200, &[("Cache-Control", "max-age=\"60\"")], &[], Hit),
    ("9111 §5.2 leading zeros", &[], 200, &[("Cache-Control", "max-age=0060")], &[], Hit),
    ("9111 §4.2.1 a number in single quotes is stale", &[], 200, &[("Cache-Control", "max-age='60'")], &[], Fetched),
    ("9111 §4.2.1 a negative number is stale", &[], 200, &[("Cache-Control", "max-age=-60")], &[], Fetched),
    ("9111 §4.2.1 of two lifetimes the shorter", &[], 200, &[("Cache-Control", "max-age=60, max-age=0")], &[], Fetched),
    ("9111 §5.2 space before = is another name", &[], 200, &[("Cache-Control", "max-age =60")], &[], Fetched),
    ("9111 §5.2 space after = is another name", &[], 200, &[("Cache-Control", "max-age= 60")], &[], Fetched),
    ("9111 §5.2.3 unknown directives change nothing", &[], 200, &[("Cache-Control", "foo, bar=\"1,2\", max-age=60")], &[], Hit),
    ("9111 §5.2 a quoted string hides what is in it", &[], 200, &[("Cache-Control", "max-age=60, x=\"no-store\"")], &[], Hit),
    ("9111 §5.2 a quoted string with a comma makes nothing fresh", &[], 200, &[("Cache-Control", "x=\"a, max-age=60\"")], &[], Fetched),
    ("9111 §5.2 a quote without end hides no restriction", &[], 200, &[("Cache-Control", "max-age=60, x=\"a, no-store")], &[], Fetched),
];

#[rustfmt::skip]
const STORING: &[Row] = &[
    ("9111 §5.2.2.5 no-store", &[], 200, &[("Cache-Control", "max-age=60, no-store")], &[], Fetched),
    ("9111 §5.2.2.5 no-store of any case", &[], 200, &[("Cache-Control", "max-age=60, No-StOrE")], &[], Fetched),
    ("9111 §5.2.2.7 private", &[], 200, &[("Cache-Control", "max-age=60, private")], &[], Fetched),
    ("9111 §5.2.2.4 no-cache without validator", &[], 200, &[("Cache-Control", "max-age=60, no-cache")], &[], Fetched),
    ("9111 §5.2.2.4 no-cache is validated", &[], 200, &[("Cache-Control", "max-age=60, no-cache"), ("ETag", "\"a\"")], &[], ByTag),
    ("9111 §5.2.2.3 must-understand overrules no-store", &[], 200, &[("Cache-Control", "max-age=60, no-store, must-understand")], &[], Hit),
    ("9111 §5.2.2.3 must-understand with an unknown status", &[], 299, &[("Cache-Control", "max-age=60, must-understand")], &[], Fetched),
    ("9111 §3 an unknown status with a lifetime", &[], 599, &[FRESH], &[], Hit),
    ("9111 §3 302 with a lifetime", &[], 302, &[FRESH, ("Location", "/x")], &[], Hit),
    ("9111 §3 404 with a lifetime", &[], 404, &[FRESH], &[], Hit),
    ("9111 §3 500 with a lifetime", &[], 500, &[FRESH], &[], Hit),
    ("9111 §3 204 with a lifetime", &[], 204, &[FRESH], &[], Hit),
    ("9111 §3.5 a request with Authorization", &[("Authorization", "x")], 200, &[FRESH], &[], Fetched),
    ("9111 §3.5 with public", &[("Authorization", "x")], 200, &[("Cache-Control", "max-age=60, public")], &[], Hit),
    ("9111 §3.5 with must-revalidate", &[("Authorization", "x")], 200, &[("Cache-Control", "max-age=60, must-revalidate")], &[], Hit),
    ("9111 §3.5 with s-maxage", &[("Authorization", "x")], 200, &[("Cache-Control", "s-maxage=60")], &[], Hit),
    ("9111 §3.5 the other way round", &[], 200, &[FRESH], &[("Authorization", "x")], Fetched),
    ("9111 §7.3 Set-Cookie is not for others", &[], 200, &[FRESH, ("Set-Cookie", "a=b")], &[], Fetched),
    ("9111 §7.3 but the answer may be, said public", &[], 200, &[("Cache-Control", "max-age=60, public"), ("Set-Cookie", "a=b")], &[], Hit),
    ("9111 §5.2.1.5 no-store of a request", &[("Cache-Control", "no-store")], 200, &[FRESH], &[], Fetched),
];

#[rustfmt::skip]
const VARYING: &[Row] = &[
    ("9111 §4.1 the same selecting field", &[("Foo", "1")], 200, &[FRESH, ("Vary", "Foo")], &[("Foo", "1")], Hit),
    ("9111 §4.1 another", &[("Foo", "1")], 200, &[FRESH, ("Vary", "Foo")], &[("Foo", "2")], Fetched),
    ("9111 §4.1 absent", &[("Foo", "1")], 200, &[FRESH, ("Vary", "Foo")], &[], Fetched),
    ("9111 §4.1 absent both times", &[], 200, &[FRESH, ("Vary", "Foo")], &[], Hit),
    ("9111 §4.1 *", &[], 200, &[FRESH, ("Vary", "*")], &[], Fetched),
    ("9111 §4.1 * among others", &[("Foo", "1")], 200, &[FRESH, ("Vary", "Foo, *")], &[("Foo", "1")], Fetched),
    ("9111 §4.1 * on a line of its own", &[], 200, &[FRESH, ("Vary", "Foo"), ("Vary", "*")], &[], Fetched),
    ("9111 §4.1 an empty member then *", &[], 200, &[FRESH, ("Vary", ", *")], &[], Fetched),
    ("9111 §4.1 two names, both the same", &[("A", "1"), ("B", "2")], 200, &[FRESH, ("Vary", "A, B")], &[("A", "1"), ("B", "2")], Hit),
    ("9111 §4.1 two names, one other", &[("A", "1"), ("B", "2")], 200, &[FRESH, ("Vary", "A, B")], &[("A", "1"), ("B", "3")], Fetched),
    ("9111 §4.1 names on two lines", &[("A", "1"), ("B", "2")], 200, &[FRESH, ("Vary", "A"), ("Vary", "B")], &[("A", "1"), ("B", "3")], Fetched),
    ("9111 §4.1 lines joined", &[("A", "1"), ("A", "2")], 200, &[FRESH, ("Vary", "A")], &[("A", "1,2")], Hit),
    ("9111 §4.1 space around commas", &[("A", "1,2")], 200, &[FRESH, ("Vary", "A")], &[("A", "1 , 2")], Hit),
    ("9111 §4.1 the order of languages", &[("Accept-Language", "en, de")], 200, &[FRESH, ("Vary", "Accept-Language")], &[("Accept-Language", "de, en")], Hit),
    ("9111 §4.1 the case of languages", &[("Accept-Language", "en, de")], 200, &[FRESH, ("Vary", "Accept-Language")], &[("Accept-Language", "eN, De")], Hit),
    ("9111 §4.1 the weights of languages", &[("Accept-Language", "en, de;q=0.5")], 200, &[FRESH, ("Vary", "Accept-Language")], &[("Accept-Language", "de;q=0.5, en;q=1.0")], Hit),
    ("9111 §4.1 other weights", &[("Accept-Language", "en, de;q=0.5")], 200, &[FRESH, ("Vary", "Accept-Language")], &[("Accept-Language", "de, en;q=0.5")], Fetched),
];

#[rustfmt::skip]
const CONDITIONS: &[Row] = &[
    ("9111 §4.3.2 If-None-Match", &[], 200, &[FRESH, ("ETag", "\"a\"")], &[("If-None-Match", "\"a\"")], NotModified),
    ("9111 §4.3.2 another tag", &[], 200, &[FRESH, ("ETag", "\"a\"")], &[("If-None-Match", "\"b\"")], Hit),
    ("9110 §13.1.2 one of a list", &[], 200, &[FRESH, ("ETag", "\"a\"")], &[("If-None-Match", "\"x,y\", \"a\"")], NotModified),
    ("9110 §13.1.2 a weak tag", &[], 200, &[FRESH, ("ETag", "W/\"a\"")], &[("If-None-Match", "\"a\"")], NotModified),
    ("9110 §13.1.2 *", &[], 200, &[FRESH, ("ETag", "\"a\"")], &[("If-None-Match", "*")], NotModified),
    ("9110 §13.2.2 If-None-Match first", &[], 200, &[FRESH, ("ETag", "\"a\""), ("Last-Modified", "@-60")], &[("If-None-Match", "\"b\""), ("If-Modified-Since", "@0")], Hit),
    ("9111 §4.3.2 If-Modified-Since", &[], 200, &[FRESH, ("Last-Modified", "@-3000")], &[("If-Modified-Since", "@-2000")], NotModified),
    ("9111 §4.3.2 changed since", &[], 200, &[FRESH, ("Last-Modified", "@-2000")], &[("If-Modified-Since", "@-3000")], Hit),
    ("9111 §4.3.2 Date where no Last-Modified is", &[], 200, &[FRESH, ("Date", "@0")], &[("If-Modified-Since", "@10")], NotModified),
    ("9110 §5.6.7 a two-digit year", &[], 200, &[FRESH, ("Last-Modified", "Sun, 06 Nov 1994 08:49:37 GMT")], &[("If-Modified-Since", "Sunday, 06-Nov-94 08:49:37 GMT")], NotModified),
    ("9110 §5.6.7 a two-digit year of this century", &[], 200, &[FRESH, ("Last-Modified", "Sun, 06 Nov 1994 08:49:37 GMT")], &[("If-Modified-Since", "Sunday, 06-Nov-22 08:49:37 GMT")], NotModified),
    ("9111 §4.3.1 a stale answer by its tag", &[], 200, &[FRESH, ("Age", "90"), ("ETag", "\"a\"")], &[], ByTag),
    ("9111 §4.3.1 by a weak tag", &[], 200, &[FRESH, ("Age", "90"), ("ETag", "W/\"a\"")], &[], ByTag),
    ("9111 §4.3.1 by its date", &[], 200, &[FRESH, ("Age", "90"), ("Last-Modified", "@-5000")], &[], ByDate),
];

#[rustfmt::skip]
const DEMANDS: &[Row] = &[
    ("9111 §5.2.1.2 max-stale", &[], 200, &[FRESH, ("Age", "90"), ("ETag", "\"a\"")], &[("Cache-Control", "max-stale=100")], Hit),
    ("9111 §5.2.1.2 staler than that", &[], 200, &[FRESH, ("Age", "200"), ("ETag", "\"a\"")], &[("Cache-Control", "max-stale=100")], ByTag),
    ("9111 §5.2.2.2 never with must-revalidate", &[], 200, &[("Cache-Control", "max-age=60, must-revalidate"), ("Age", "90"), ("ETag", "\"a\"")], &[("Cache-Control", "max-stale")], ByTag),
    ("9111 §5.2.2.8 never with proxy-revalidate", &[], 200, &[("Cache-Control", "max-age=60, proxy-revalidate"), ("Age", "90"), ("ETag", "\"a\"")], &[("Cache-Control", "max-stale")], ByTag),
    ("9111 §5.2.2.10 never with s-maxage", &[], 200, &[("Cache-Control", "s-maxage=60"), ("Age", "90"), ("ETag", "\"a\"")], &[("Cache-Control", "max-stale")], ByTag),
    ("9111 §5.2.1.7 only-if-cached", &[], 200, &[FRESH], &[("Cache-Control", "only-if-cached")], Hit),
    ("5861 §3 stale-while-revalidate", &[], 200, &[("Cache-Control", "max-age=60, stale-while-revalidate=60"), ("Age", "90")], &[], Fetched),
    ("5861 §3 with a validator", &[], 200, &[("Cache-Control", "max-age=60, stale-while-revalidate=60"), ("Age", "90"), ("ETag", "\"a\"")], &[], Hit),
    ("5861 §3 after the window", &[], 200, &[("Cache-Control", "max-age=60, stale-while-revalidate=60"), ("Age", "190"), ("ETag", "\"a\"")], &[], ByTag),
];

const CDN: &str = "CDN-Cache-Control";
#[rustfmt::skip]
const TARGETED: &[Row] = &[
    ("9213 §2.2 its max-age", &[], 200, &[(CDN, "max-age=60")], &[], Hit),
    ("9213 §2.2 a huge one", &[], 200, &[(CDN, "max-age=99999999999")], &[], Hit),
    ("9213 §2.2 max-age 0 before Expires", &[], 200, &[(CDN, "max-age=0"), ("Expires", "@60")], &[], Fetched),
    ("9213 §2.2 before a past Expires", &[], 200, &[(CDN, "max-age=60"), ("Expires", "@-60")], &[], Hit),
    ("9213 §2.2 before Cache-Control", &[], 200, &[(CDN, "max-age=60"), ("Cache-Control", "max-age=0")], &[], Hit),
    ("9213 §2.2 shorter than Cache-Control", &[], 200, &[(CDN, "max-age=0"), FRESH], &[], Fetched),
    ("9213 §2.2 before no-store", &[], 200, &[(CDN, "max-age=60"), ("Cache-Control", "no-store")], &[], Hit),
    ("9213 §2.2 its no-store", &[], 200, &[(CDN, "no-store"), FRESH], &[], Fetched),
    ("9213 §2.2 its private", &[], 200, &[(CDN, "private"), FRESH], &[], Fetched),
    ("9213 §2.2 its no-cache", &[], 200, &[(CDN, "no-cache"), FRESH], &[], Fetched),
    ("9213 §2.2 Age counts", &[], 200, &[(CDN, "max-age=60"), ("Age", "90")], &[], Fetched),
    ("9213 §2.2 unknown members", &[], 200, &[(CDN, "foobar, max-age=60")], &[], Hit),
    ("9213 §2.1 no Dictionary is no field", &[], 200, &[(CDN, "max-age=60, &&&"), ("Cache-Control", "no-store")], &[], Fetched),
    ("9213 §2.1 a String is no number", &[], 200, &[(CDN, "max-age=\"60\""), ("Cache-Control", "no-store")], &[], Fetched),
    ("9213 §2.1 an empty field is none", &[], 200, &[(CDN, ""), FRESH], &[], Hit),
];

#[tokio::test]
async fn each_rule_of_freshness_storing_varying_conditions_and_targeting_holds() {
    let gateway = Gateway::start(&["--cache"]).await;
    let tables = [
        FRESHNESS, PARSING, STORING, VARYING, CONDITIONS, DEMANDS, TARGETED,
    ];
    let mut wrong = Vec::new();
    for (number, row) in tables.iter().flat_map(|table| table.iter()).enumerate() {
        let path = format!("/row/{number}");
        if let Err(why) = check(&gateway, &path, row).await {
            wrong.push(format!("RFC {}: {why}", row.0));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

async fn check(gateway: &Gateway, path: &str, row: &Row) -> Result<(), String> {
    let (_, first, status, said, second, then) = *row;
    let confirmed = matches!(then, ByTag | ByDate);
    let other = if confirmed {
        response(304, &[], "")
    } else {
        response(200, &[], "other")
    };
    gateway
        .origin
        .says(path, [response(status, said, "stored"), other]);
    let one = gateway.get(path, first).await;
    if one.status != status {
        return Err(format!("first: {}", one.head));
    }
    let two = gateway.get(path, second).await;
    let seen = gateway.origin.seen(path);
    let asked = seen
        .get(1)
        .map(|text| text.to_ascii_lowercase())
        .unwrap_or_default();
    let stored = two.status == status && (two.text() == "stored" || status == 204);
    let right = match then {
        Hit => two.is_hit() && stored && !two.field("age").is_empty(),
        NotModified => two.is_hit() && two.status == 304 && two.body.is_empty() && seen.len() == 1,
        Fetched => seen.len() == 2 && two.text() == "other" && !asked.contains("if-"),
        ByTag => seen.len() == 2 && stored && asked.contains("\r\nif-none-match: "),
        ByDate => seen.len() == 2 && stored && asked.contains("\r\nif-modified-since: "),
    };
    if right {
        Ok(())
    } else {
        Err(format!(
            "wants {then:?}, got {}\norigin was asked {asked}",
            two.head
        ))
    }
}

#[tokio::test]
async fn a_304_updates_what_is_stored_but_not_what_describes_the_body() {
    // RFC 9111 §3.2.
    let gateway = Gateway::start(&["--cache"]).await;
    let old = [
        FRESH,
        ("Age", "90"),
        ("ETag", "\"a\""),
        ("X-A", "1"),
        ("X-B", "1"),
        ("Content-Type", "text/plain"),
    ];
    let new = [
        FRESH,
        ("ETag", "\"a\""),
        ("X-A", "2"),
        ("Content-Type", "text/html"),
        ("Content-Length", "99"),
    ];
    gateway
        .origin
        .says("/u", [response(200, &old, "body"), response(304, &new, "")]);
    gateway.get("/u", &[]).await;
    for kind in ["validated", "stored"] {
        let got = gateway.get("/u", &[]).await;
        let fields = ["x-a", "x-b", "content-type", "content-length"].map(|name| got.field(name));
        assert_eq!(
            (fields, &got.text()[..]),
            (["2", "1", "text/plain", "4"], "body"),
            "{kind}"
        );
    }
    assert_eq!(gateway.origin.seen("/u").len(), 2);
}

#[tokio::test]
async fn unsafe_methods_invalidate_what_they_name_when_they_succeed() {
    // RFC 9111 §4.4.
    let gateway = Gateway::start(&["--cache"]).await;
    for (number, (method, status, gone)) in [
        ("POST", 200, true),
        ("PUT", 204, true),
        ("DELETE", 303, true),
        ("M-SEARCH", 200, true),
        ("POST", 404, false),
        ("POST", 500, false),
        ("OPTIONS", 200, false),
    ]
    .into_iter()
    .enumerate()
    {
        let (own, other) = (format!("/i/{number}"), format!("/o/{number}"));
        for path in [&own, &other] {
            gateway.origin.says(path, [response(200, &[FRESH], "old")]);
            gateway.get(path, &[]).await;
        }
        let named = [("Content-Location", &other[..]), ("Connection", "close")];
        gateway.origin.says(&own, [response(status, &named, "")]);
        assert_eq!(gateway.send(method, &own, &[], "x").await.status, status);
        for path in [&own, &other] {
            assert_eq!(
                gateway.get(path, &[]).await.is_hit(),
                !gone,
                "{method} {status} {path}"
            );
        }
    }
}

#[tokio::test]
async fn an_answer_to_post_that_names_its_target_is_stored_for_get() {
    // RFC 9110 §9.3.3.
    let gateway = Gateway::start(&["--cache"]).await;
    for (path, fields, kept) in [
        ("/p/1", &[FRESH, ("Content-Location", "/p/1")][..], true),
        (
            "/p/2",
            &[
                ("Expires", "@60"),
                ("Content-Location", "http://origin.test/p/2"),
            ],
            true,
        ),
        ("/p/3", &[FRESH], false),
        ("/p/4", &[FRESH, ("Content-Location", "/p/1")], false),
        (
            "/p/5",
            &[("Content-Location", "/p/5"), ("Last-Modified", "@-90000")],
            false,
        ),
        (
            "/p/6",
            &[
                ("Cache-Control", "max-age=60, no-store"),
                ("Content-Location", "/p/6"),
            ],
            false,
        ),
        (
            "/p/7",
            &[FRESH, ("Content-Location", "http://other.test/p/7")],
            false,
        ),
    ] {
        gateway.origin.says(
            path,
            [response(200, fields, "posted"), response(200, &[], "got")],
        );
        // The POST's own condition is no condition on what is stored.
        let posted = gateway
            .send("POST", path, &[("If-None-Match", "*")], "x")
            .await;
        assert_eq!(
            (posted.status, &posted.text()[..]),
            (200, "posted"),
            "{path}"
        );
        let got = gateway.get(path, &[]).await;
        assert_eq!(
            (got.is_hit(), got.text() == "posted"),
            (kept, kept),
            "{path} {}",
            posted.head
        );
    }
}

#[tokio::test]
async fn one_range_is_cut_from_a_stored_whole() {
    // RFC 9110 §14.
    let gateway = Gateway::start(&["--cache"]).await;
    let fields = [
        FRESH,
        ("ETag", "\"a\""),
        ("Last-Modified", "Sun, 06 Nov 1994 08:49:37 GMT"),
    ];
    gateway
        .origin
        .says("/r", [response(200, &fields, "0123456789")]);
    gateway.get("/r", &[]).await;
    let ask = async |range: &'static str, condition: Option<&'static str>| -> Got {
        let mut fields = vec![("Range", range)];
        fields.extend(condition.map(|value| ("If-Range", value)));
        gateway.get("/r", &fields).await
    };
    for (range, condition, status, body, named) in [
        ("bytes=0-1", None, 206, "01", "bytes 0-1/10"),
        ("bytes=8-", None, 206, "89", "bytes 8-9/10"),
        ("bytes=-3", None, 206, "789", "bytes 7-9/10"),
        ("bytes=5-99", None, 206, "56789", "bytes 5-9/10"),
        ("bytes=10-", None, 416, "", "bytes */10"),
        ("bytes=0-1,3-4", None, 200, "0123456789", ""),
        ("lines=0-1", None, 200, "0123456789", ""),
        ("bytes=0-1", Some("\"a\""), 206, "01", "bytes 0-1/10"),
        ("bytes=0-1", Some("\"b\""), 200, "0123456789", ""),
        (
            "bytes=0-1",
            Some("Sunday, 06-Nov-94 08:49:37 GMT"),
            206,
            "01",
            "bytes 0-1/10",
        ),
    ] {
        let got = ask(range, condition).await;
        let seen = (got.status, &got.text()[..], got.field("content-range"));
        assert_eq!(
            seen,
            (status, body, named),
            "{range} {condition:?}: {}",
            got.head
        );
        assert!(got.is_hit());
    }
    assert_eq!(gateway.origin.seen("/r").len(), 1);
}

#[tokio::test]
async fn head_is_answered_from_a_stored_get_with_its_length_if_it_has_one() {
    // RFC 9110 §8.6, §9.3.2.
    let gateway = Gateway::start(&["--cache"]).await;
    for (path, status, length) in [("/h/200", 200, "6"), ("/h/204", 204, "")] {
        gateway
            .origin
            .says(path, [response(status, &[FRESH], "stored")]);
        gateway.get(path, &[]).await;
        let head = gateway.send("HEAD", path, &[], "").await;
        assert!(head.is_hit() && head.body.is_empty(), "{}", head.head);
        assert_eq!(
            (head.status, head.field("content-length")),
            (status, length)
        );
    }
    gateway.origin.says(
        "/h/alone",
        [response(200, &[FRESH], ""), response(200, &[], "got")],
    );
    gateway.send("HEAD", "/h/alone", &[], "").await;
    assert_eq!(gateway.get("/h/alone", &[]).await.text(), "got");
}

#[tokio::test]
async fn a_stale_answer_stands_in_for_an_error_where_it_may() {
    // RFC 5861 §4, RFC 9111 §4.2.4.
    let gateway = Gateway::start(&["--cache"]).await;
    for (number, (said, error, stands)) in [
        ("max-age=60", Some(503), true),
        ("max-age=60", None, true),
        ("max-age=60", Some(500), false),
        ("max-age=60, stale-if-error=100", Some(500), true),
        ("max-age=60, stale-if-error=10", Some(503), false),
        ("max-age=60, must-revalidate", None, false),
        ("max-age=60, proxy-revalidate", None, false),
        ("s-maxage=60", Some(503), false),
        ("max-age=60, no-cache", Some(503), false),
    ]
    .into_iter()
    .enumerate()
    {
        let path = format!("/e/{number}");
        let failed = error.map_or(Reply::Cut, |status| response(status, &[], "failed"));
        let fields = [("Cache-Control", said), ("Age", "90"), ("ETag", "\"a\"")];
        gateway
            .origin
            .says(&path, [response(200, &fields, "old"), failed]);
        gateway.get(&path, &[]).await;
        let got = gateway.get(&path, &[]).await;
        let expected = if stands { 200 } else { error.unwrap_or(502) };
        assert_eq!(got.status, expected, "{said} {error:?}: {}", got.head);
        assert_eq!(
            got.field("cache-status").contains("detail=stale-if-error"),
            stands,
            "{said}"
        );
    }
}

#[tokio::test]
async fn cache_status_says_what_was_done_after_what_inner_caches_said() {
    // RFC 9211 §2.
    let gateway = Gateway::start(&["--cache"]).await;
    let said = [FRESH, ("Cache-Status", "inner;hit")];
    gateway
        .origin
        .says("/s", [response(200, &said, "a"), response(200, &[], "b")]);
    let first = gateway.get("/s", &[]).await.all("cache-status").join(", ");
    assert!(
        first.starts_with("inner;hit, tower-keep;fwd=uri-miss;stored;ttl="),
        "{first}"
    );
    let second = gateway.get("/s", &[]).await.all("cache-status").join(", ");
    assert!(second.starts_with("tower-keep;hit;ttl="), "{second}");
    let refused = gateway
        .get("/none", &[("Cache-Control", "only-if-cached")])
        .await;
    assert_eq!(
        (refused.status, refused.all("cache-status").len()),
        (504, 0)
    );
    let posted = gateway.send("POST", "/s", &[], "x").await;
    assert_eq!(posted.field("cache-status"), "tower-keep;fwd=method");
}

#[tokio::test]
async fn groups_are_invalidated_together_on_their_own_origin() {
    // RFC 9875 §2, §3.
    let gateway = Gateway::start(&["--cache"]).await;
    for (path, groups) in [
        ("/g/1", "\"a\", \"b\""),
        ("/g/2", "\"b\""),
        ("/g/3", "\"c\""),
    ] {
        let fields = [FRESH, ("Cache-Groups", groups)];
        gateway.origin.says(
            path,
            [response(200, &fields, "old"), response(200, &[], "new")],
        );
        gateway.get(path, &[]).await;
    }
    let safe = [("Cache-Group-Invalidation", "\"c\"")];
    gateway.origin.says("/safe", [response(200, &safe, "")]);
    gateway.get("/safe", &[]).await;
    gateway.origin.says(
        "/change",
        [response(
            200,
            &[("Cache-Group-Invalidation", "\"b\";x, \"x\"")],
            "",
        )],
    );
    gateway.send("POST", "/change", &[], "x").await;
    let hits = ["/g/1", "/g/2", "/g/3"].map(async |path| gateway.get(path, &[]).await.is_hit());
    let [one, two, three] = hits;
    assert_eq!([one.await, two.await, three.await], [false, false, true]);
}

#[tokio::test]
async fn an_interim_answer_is_neither_stored_nor_taken_for_the_final_one() {
    // RFC 9110 §15.2. That it is not handed on is a limit of hyper's server.
    let gateway = Gateway::start(&["--cache"]).await;
    let said = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nX-Early: 1\r\n\r\n\
                HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";
    gateway
        .origin
        .says("/early", [Reply::Bytes(said.as_bytes().to_vec())]);
    for hit in [false, true] {
        let got = gateway.get("/early", &[]).await;
        assert_eq!(
            (got.status, got.is_hit(), got.field("x-early")),
            (200, hit, ""),
            "{}",
            got.head
        );
    }
}
