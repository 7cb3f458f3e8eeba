//! Fields with bytes that nobody meant: whatever they say, nobody gets what is another's, and nothing panics.

use http::header::{
    ACCEPT_ENCODING, ACCEPT_LANGUAGE, AGE, AUTHORIZATION, CACHE_CONTROL, CONTENT_ENCODING,
    CONTENT_LANGUAGE, CONTENT_LOCATION, CONTENT_RANGE, COOKIE, DATE, ETAG, EXPIRES, FORWARDED,
    HOST, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, LAST_MODIFIED,
    LINK, ORIGIN, PRAGMA, RANGE, SET_COOKIE, VARY,
};
use http::{HeaderName, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Empty};

use super::origin::{App, Origin, clock, layer, request, said};

/// Cases of each test; they are the same in each run.
const CASES: u64 = 3_000;

struct Dice(u64);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end
    }

    /// A value of some of these parts, one after another, and of bytes that no part has.
    fn value(&mut self, parts: &[&str]) -> HeaderValue {
        loop {
            let mut bytes = Vec::new();
            for _ in 0..self.below(9) {
                match self.below(8) {
                    0 => bytes.push(self.below(256) as u8),
                    _ => bytes.extend(parts[self.below(parts.len())].as_bytes()),
                }
            }
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                return value;
            }
        }
    }
}

/// What a client got, its body as it came.
struct Came {
    status: u16,
    fields: http::HeaderMap,
    body: Vec<u8>,
}

async fn send(app: &App, request: Request<Empty<bytes::Bytes>>) -> Came {
    let (parts, body) = app.try_call(request).await.unwrap().into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Came {
        status: parts.status.as_u16(),
        fields: parts.headers,
        body: body.to_vec(),
    }
}

async fn get(app: &App) -> Came {
    send(app, request("GET", "/a", &[])).await
}

/// The members of a list, read one character after another; of an open quote also those inside it.
fn members(line: &[u8]) -> Vec<Vec<u8>> {
    let (mut all, mut quoted, mut escaped) = (vec![Vec::new()], false, false);
    let mut since_quote = Vec::new();
    for byte in line {
        if quoted {
            since_quote.push(*byte);
        }
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => {
                quoted = !quoted;
                since_quote.clear();
            }
            b',' if !quoted => {
                all.push(Vec::new());
                continue;
            }
            _ => {}
        }
        all.last_mut().unwrap().push(*byte);
    }
    if quoted {
        all.extend(since_quote.split(|byte| *byte == b',').map(<[u8]>::to_vec));
    }
    let trim = |member: Vec<u8>| member.trim_ascii().to_ascii_lowercase();
    all.into_iter().map(trim).collect()
}

fn origin_saying(fields: &[(HeaderName, HeaderValue)]) -> Origin {
    let fields = fields.to_vec();
    Origin::of(move |_, call| {
        let mut response: Response<String> = said(&[], format!("run {call} abcdefghij"));
        for (name, value) in &fields {
            response.headers_mut().append(name, value.clone());
        }
        response
    })
}

const DIRECTIVES: [&str; 24] = [
    "private",
    "no-store",
    "PRIVATE",
    "No-Store",
    "max-age=60",
    "s-maxage=60",
    "public",
    "max-age",
    "no-cache",
    "private=\"x-a\"",
    "must-revalidate",
    "stale-while-revalidate=9",
    "\"",
    "\\",
    ",",
    ",",
    ", ",
    ";",
    " ",
    "=",
    "x",
    "\t",
    "'",
    "ext=\"",
];

#[tokio::test]
async fn what_a_plain_reader_of_cache_control_takes_for_one_clients_is_given_to_no_other() {
    let (mut dice, mut shared, mut kept) = (Dice(1), 0, 0);
    for case in 0..CASES {
        let mut lines = vec![HeaderValue::from_static("max-age=60")];
        lines.extend((0..=dice.below(2)).map(|_| dice.value(&DIRECTIVES)));
        let fields: Vec<_> = lines
            .iter()
            .map(|line| (CACHE_CONTROL, line.clone()))
            .collect();
        let (clock, origin) = (clock(), origin_saying(&fields));
        let app = App::new(&layer(&clock), &origin);
        let (first, second) = (get(&app).await, get(&app).await);
        assert_eq!(
            (first.status, second.status),
            (200, 200),
            "{case}: {lines:?}"
        );
        let said = lines.iter().flat_map(|line| members(line.as_bytes()));
        let is_ones = said
            .into_iter()
            .any(|member| member == b"private" || member == b"no-store");
        if is_ones {
            kept += 1;
            assert_ne!(first.body, second.body, "{case}: {lines:?}");
        } else if first.body == second.body {
            shared += 1;
        }
    }
    // Both kinds were there.
    assert!(shared > CASES / 20 && kept > CASES / 20, "{shared}, {kept}");
}

static ANSWERED: [(HeaderName, &[&str]); 12] = [
    (
        VARY,
        &[
            "*",
            ",",
            " ",
            "cookie",
            "Cookie",
            "x-user",
            "accept-language",
            "\t",
            "a b",
            "\u{e9}",
        ],
    ),
    (
        EXPIRES,
        &[
            "Sun, 06 Nov 2094 08:49:37 GMT",
            "0",
            "-1",
            "GMT",
            " ",
            ",",
            "Sunday, 06-Nov-94 08:49:37 GMT",
        ],
    ),
    (
        DATE,
        &[
            "Tue, 01 Jan 2030 00:00:00 GMT",
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "99999",
            " ",
            "x",
        ],
    ),
    (
        AGE,
        &["0", "9", "99999999999999999999", "-", ",", " ", "x", "1.5"],
    ),
    (ETAG, &["\"", "W/", "w/", "a", "*", ",", " ", "\\"]),
    (
        LAST_MODIFIED,
        &[
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
            "9",
            " ",
        ],
    ),
    (CONTENT_ENCODING, &["gzip", "br", ",", " ", "identity", "x"]),
    (CONTENT_LANGUAGE, &["de", "en", ",", " ", "*", "-"]),
    (SET_COOKIE, &["sid=1", ";", " ", "=", "Path=/", ","]),
    (
        CONTENT_LOCATION,
        &["/a", "/b", "//", "..", "?", "#", "http://", "%", "\u{e9}"],
    ),
    (
        CONTENT_RANGE,
        &["bytes ", "0-3/9", "*", "/", "-", "99999999999999999999"],
    ),
    (
        LINK,
        &["<", ">", ";", "/a", "rel=\"invalidates\"", ",", "\""],
    ),
];

#[tokio::test]
async fn whatever_fields_of_an_answer_say_a_second_client_gets_it_whole_or_one_of_its_own() {
    let (mut dice, mut hits) = (Dice(2), 0);
    for case in 0..CASES {
        let (name, parts) = &ANSWERED[dice.below(ANSWERED.len())];
        let values: Vec<_> = (0..=dice.below(2)).map(|_| dice.value(parts)).collect();
        let mut fields = vec![(CACHE_CONTROL, HeaderValue::from_static("max-age=60"))];
        fields.extend(values.iter().map(|value| (name.clone(), value.clone())));
        let (clock, origin) = (clock(), origin_saying(&fields));
        let app = App::new(&layer(&clock), &origin);
        let asked = |user: &str| {
            let fields = [
                ("cookie", user),
                ("x-user", user),
                ("accept-language", user),
            ];
            request("GET", "/a", &fields)
        };
        let why = format!("{case}: {name} {values:?}");
        let first = send(&app, asked("u1")).await;
        let second = send(&app, asked("u2")).await;
        assert_eq!((first.status, second.status), (200, 200), "{why}");
        assert_eq!(first.body, b"run 0 abcdefghij", "{why}");
        let is_hit = second.body == first.body;
        assert!(is_hit || second.body == b"run 1 abcdefghij", "{why}");
        assert_eq!(is_hit, origin.calls() == 1, "{why}");
        hits += u64::from(is_hit);
        if !is_hit {
            continue;
        }
        assert!(!second.fields.contains_key(SET_COOKIE), "{why}");
        let said = values
            .iter()
            .flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
        let mut said = said.map(|member| member.trim_ascii().to_ascii_lowercase());
        let selects = |member: Vec<u8>| {
            let differ: [&[u8]; 3] = [b"cookie", b"x-user", b"accept-language"];
            member.contains(&b'*') || differ.contains(&&member[..])
        };
        assert!(*name != VARY || !said.any(selects), "{why}");
    }
    assert!(hits > CASES / 4 && hits < CASES, "{hits}");
}

static ASKED: [(HeaderName, &[&str]); 17] = [
    (
        CACHE_CONTROL,
        &[
            "no-cache",
            "no-store",
            "max-age=0",
            "max-stale",
            "min-fresh=9",
            "only-if-cached",
            ",",
            "\"",
            "=",
            " ",
        ],
    ),
    (PRAGMA, &["no-cache", ",", " ", "\""]),
    (
        IF_NONE_MATCH,
        &["\"v1\"", "W/", "*", ",", " ", "\"", "\\", "v1"],
    ),
    (
        IF_MODIFIED_SINCE,
        &[
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "Tue, 01 Jan 2030 00:00:00 GMT",
            " ",
            "9",
        ],
    ),
    (IF_MATCH, &["\"v1\"", "*", ",", "\"x\""]),
    (IF_UNMODIFIED_SINCE, &["Sun, 06 Nov 1994 08:49:37 GMT", "x"]),
    (
        IF_RANGE,
        &["\"v1\"", "W/", "Sun, 06 Nov 1994 08:49:37 GMT", " "],
    ),
    (
        RANGE,
        &[
            "bytes=",
            "0-",
            "-",
            "0-3",
            "-4",
            "4-2",
            "99999999999999999999",
            ",",
            " ",
            "items=",
        ],
    ),
    (
        ACCEPT_LANGUAGE,
        &["de", "en", ";q=", "0", "1", "0.5", ",", "*", " ", "9"],
    ),
    (
        ACCEPT_ENCODING,
        &["gzip", "br", ";q=", "0", "1", ",", "*", " "],
    ),
    (AUTHORIZATION, &["Bearer ", "x", " ", "Basic", "="]),
    (HOST, &["a.test", ":", "80", "[", "]", "::1", "@", "/", " "]),
    (COOKIE, &["sid=1", ";", " ", "=", "\""]),
    (FORWARDED, &["for=", "host=", "x", ";", ",", "\""]),
    (ORIGIN, &["https://", "a.test", "null", ":"]),
    (
        HeaderName::from_static("x-forwarded-host"),
        &["a.test", ",", ":", "/"],
    ),
    (
        HeaderName::from_static("x-http-method-override"),
        &["POST", "GET", " "],
    ),
];

/// Whether `body` is the part of `whole` that its Content-Range names.
fn is_part(came: &Came, whole: &[u8]) -> bool {
    let range = came
        .fields
        .get(CONTENT_RANGE)
        .and_then(|range| range.to_str().ok());
    let Some((first, last)) = range
        .and_then(|range| range.strip_prefix("bytes "))
        .and_then(|range| range.strip_suffix(&format!("/{}", whole.len())))
        .and_then(|range| range.split_once('-'))
    else {
        return false;
    };
    let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
    whole.get(first..=last) == Some(&came.body[..])
}

#[tokio::test]
async fn whatever_fields_of_a_request_say_its_answer_is_a_right_one_and_changes_none_of_the_others()
{
    let (mut dice, mut hits, mut runs) = (Dice(3), 0, 0);
    for case in 0..CASES {
        let fields = [
            (CACHE_CONTROL, HeaderValue::from_static("max-age=60")),
            (ETAG, HeaderValue::from_static("\"v1\"")),
            (
                LAST_MODIFIED,
                HeaderValue::from_static("Sun, 06 Nov 1994 08:49:37 GMT"),
            ),
        ];
        let (clock, origin) = (clock(), origin_saying(&fields));
        let app = App::new(&layer(&clock), &origin);
        let stored = get(&app).await.body;
        let mut asked = request("GET", "/a", &[]);
        let mut names = Vec::new();
        for _ in 0..=dice.below(2) {
            let (name, parts) = &ASKED[dice.below(ASKED.len())];
            asked.headers_mut().append(name, dice.value(parts));
            names.push(name);
        }
        let why = format!("{case}: {:?}", asked.headers());
        let has = |name: &HeaderName| names.contains(&name);
        let came = send(&app, asked).await;
        let ran = origin.calls() == 2;
        let whole = if ran {
            b"run 1 abcdefghij".to_vec()
        } else {
            stored.clone()
        };
        match came.status {
            200 => assert_eq!(came.body, whole, "{why}"),
            206 => assert!(has(&RANGE) && is_part(&came, &whole), "{why}"),
            304 => {
                assert!(has(&IF_NONE_MATCH) || has(&IF_MODIFIED_SINCE), "{why}");
                assert!(came.body.is_empty(), "{why}");
            }
            416 => assert!(has(&RANGE), "{why}"),
            504 => assert!(has(&CACHE_CONTROL) && !ran, "{why}"),
            status => panic!("{status}: {why}"),
        }
        if has(&AUTHORIZATION) {
            assert!(ran || came.status == 504, "{why}");
        }
        if ran {
            runs += 1;
        } else {
            hits += 1;
        }
        // Whoever asks plainly gets what was stored, whatever was asked in between.
        assert_eq!(get(&app).await.body, stored, "{why}");
    }
    assert!(hits > CASES / 10 && runs > CASES / 10, "{hits}, {runs}");
}
