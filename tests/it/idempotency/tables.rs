//! The tables of the documentation, row by row: presets, the words that tell an outcome, the draft's documents.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use tower_keep::idempotency::{
    DerivedKey, Directive, IdempotencyLayer, LeaseEnd, Preset, Scope, Twins,
};
use tower_keep::{DAY, HOUR, MINUTE, SECOND};

use super::{App, clock, layer, memory, post};

const MS: Duration = Duration::from_millis(1);

/// Answers with the status that the path says.
fn app(layer: IdempotencyLayer) -> App {
    App::with(layer, |request, run| async move {
        let status: u16 = request.uri().path()[1..].parse().unwrap();
        let answer = Response::builder().status(status);
        answer.body(Full::from(format!("run {run}"))).unwrap()
    })
}

/// What a second request gets, once this much time has passed.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Again {
    Replay,
    Runs,
    Unknown,
}

/// A status, how much later it comes again, and what it gets then.
type Row = (u16, Duration, Again);

fn send(app: &App, status: u16, key: &str) -> impl Future<Output = super::Answer> + use<> {
    let body = format!("{{\"id\":\"{key}\"}}");
    let request = Request::post(format!("/{status}")).header("idempotency-key", key);
    let request = request.header("content-type", "application/json");
    app.future(request.body(Full::from(body)).unwrap())
}

#[tokio::test]
async fn presets_keep_what_their_table_says_for_as_long_as_it_says() {
    use Again::{Replay, Runs, Unknown};
    let rows: [(Preset, &[Row]); 4] = [
        (
            Preset::Payments,
            &[
                (201, 24 * HOUR - MS, Replay),
                (201, 24 * HOUR, Runs),
                (404, Duration::ZERO, Replay),
                (429, Duration::ZERO, Runs),
                (500, Duration::ZERO, Unknown),
                (599, 7 * DAY - MS, Unknown),
            ],
        ),
        (
            Preset::Api,
            &[
                (201, 10 * MINUTE - MS, Replay),
                (201, 10 * MINUTE, Runs),
                (422, Duration::ZERO, Replay),
                (500, Duration::ZERO, Runs),
            ],
        ),
        (
            Preset::Form,
            &[
                (303, 5 * MINUTE - MS, Replay),
                (303, 5 * MINUTE, Runs),
                (409, 10 * SECOND - MS, Replay),
                (409, 10 * SECOND, Runs),
                (422, Duration::ZERO, Runs),
                (500, Duration::ZERO, Runs),
            ],
        ),
        (
            Preset::Webhook,
            &[
                (204, 72 * HOUR - MS, Replay),
                (204, 72 * HOUR, Runs),
                (302, Duration::ZERO, Runs),
                (422, Duration::ZERO, Runs),
                (500, Duration::ZERO, Runs),
            ],
        ),
    ];
    for (preset, rows) in rows {
        for (status, later, expected) in rows {
            let clock = clock();
            let mut layer = layer(memory(&clock)).preset(preset);
            if preset == Preset::Form {
                layer = layer.derive(DerivedKey::fields("form").text("id"));
            }
            let app = app(layer);
            assert_eq!(send(&app, *status, "k").await.status.as_u16(), *status);
            clock.advance(*later);
            let again = send(&app, *status, "k").await;
            let found = match (again.is_replay(), app.runs()) {
                (true, 1) => Replay,
                (false, 2) => Runs,
                (false, 1) => {
                    again.check_refused(409, "IDEMPOTENCY_OUTCOME_UNKNOWN");
                    Unknown
                }
                other => panic!("{preset:?} {status}: {other:?}"),
            };
            assert_eq!(found, *expected, "{preset:?} {status} {later:?}");
        }
    }
}

#[tokio::test]
async fn presets_want_the_key_that_their_table_says() {
    let none = || Request::post("/200").body(Full::default()).unwrap();
    for (preset, code) in [
        (Preset::Payments, Some("IDEMPOTENCY_KEY_MISSING")),
        (Preset::Api, None),
        (Preset::Webhook, Some("IDEMPOTENCY_FIELDS_INVALID")),
    ] {
        let app = app(layer(memory(&clock())).preset(preset));
        let answer = app.send(none()).await;
        match code {
            Some(code) => answer.check_refused(400, code),
            None => assert_eq!((answer.status.as_u16(), app.runs()), (200, 1)),
        }
    }
}

/// A handler that is entered, and never answers.
fn stuck(layer: IdempotencyLayer) -> App {
    App::with(layer, |_, _| std::future::pending())
}

#[tokio::test]
async fn each_outcome_is_told_by_its_word_and_until_when_it_is_kept() {
    let clock = clock();
    let told = layer(memory(&clock)).report_status();
    let app = App::with(told.clone(), |request, _| async move {
        let mut answer = Response::new(Full::<Bytes>::default());
        let directive = match request.uri().path() {
            "/unknown" => Some(Directive::Unknown),
            "/gone" => Some(Directive::NoStore),
            _ => None,
        };
        if let Some(directive) = directive {
            answer.extensions_mut().insert(directive);
        }
        answer
    });
    let running = stuck(told.clone());
    let mut held = running.future(post("/held", "held", "{}"));
    let polled = std::future::poll_fn(|cx| std::task::Poll::Ready(held.as_mut().poll(cx)));
    assert!(polled.await.is_pending());
    for (path, key, body, word, expires) in [
        ("/kept", "kept", "{}", "first", true),
        ("/kept", "kept", "{}", "replayed", true),
        ("/kept", "kept", "{ }", "reused", false),
        ("/held", "held", "{}", "in-progress", false),
        ("/gone", "gone", "{}", "first", true),
        ("/gone", "gone", "{}", "not-replayable", false),
        ("/unknown", "unknown", "{}", "first", false),
        ("/unknown", "unknown", "{}", "unknown", false),
    ] {
        let answer = app.send(post(path, key, body)).await;
        let at = format!("{path} {word}");
        assert_eq!(answer.headers["idempotency-status"], word, "{at}");
        let until = answer.headers.get("idempotency-expires");
        assert_eq!(until.is_some(), expires, "{at}");
        if let Some(until) = until {
            let until = until.to_str().unwrap();
            assert!(until.starts_with("Wed, 02 Jan 2030 00:0"), "{at}: {until}");
        }
    }
    drop(held);
}

#[tokio::test]
async fn of_many_that_wait_for_one_answer_no_more_than_a_bound_are_let_wait() {
    let app = stuck(layer(memory(&clock())).twins(Twins::Attach(HOUR)));
    let mut waiting = Vec::new();
    let poll = async |sent: &mut super::Sent| {
        std::future::poll_fn(|cx| std::task::Poll::Ready(sent.as_mut().poll(cx))).await
    };
    // 128 behind each of 32 owners are 4,096 in all.
    for key in 0..33 {
        let key = key.to_string();
        for twin in 0..=128 {
            if key == "32" && twin > 0 {
                break;
            }
            let mut sent = app.future(post("/pay", &key, "{}"));
            assert!(poll(&mut sent).await.is_pending(), "{key} {twin}");
            waiting.push(sent);
        }
        let one_more = app.post(&key, "{}").await;
        one_more.check_refused(409, "IDEMPOTENCY_IN_PROGRESS");
    }
    assert_eq!(app.runs(), 33);
    // Who leaves makes room.
    drop(waiting.swap_remove(1));
    let mut next = app.future(post("/pay", "0", "{}"));
    assert!(poll(&mut next).await.is_pending());
}

/// The documents of draft-ietf-httpapi-idempotency-key-header-07, section 2.7.
#[tokio::test]
async fn the_drafts_documents_and_its_link_can_be_given_word_for_word() {
    const PAGE: &str = "https://developer.example.com/idempotency";
    let hooked = layer(memory(&clock())).require_key();
    let hooked = hooked.on_rejection(|why, response| {
        let (title, detail) = match why.status().as_u16() {
            400 => (
                "Idempotency-Key is missing",
                "This operation is idempotent and it requires correct usage of Idempotency Key.",
            ),
            422 => (
                "Idempotency-Key is already used",
                "This operation is idempotent and it requires correct usage of Idempotency Key. \
                 Idempotency Key MUST not be reused across different payloads of this operation.",
            ),
            _ => (
                "A request is outstanding for this Idempotency-Key",
                "A request with the same Idempotency-Key for the same operation is being processed \
                 or is outstanding.",
            ),
        };
        let document = format!(
            "{{\n  \"type\": \"{PAGE}\",\n  \"title\": \"{title}\",\n  \"detail\": \"{detail}\"\n}}"
        );
        *response.body_mut() = document.into();
        let link = format!("<{PAGE}>; rel=\"describedby\"; type=\"text/html\"");
        response
            .headers_mut()
            .insert("link", link.try_into().unwrap());
    });
    let app = app(hooked.clone());
    let running = stuck(hooked);
    let mut held = running.future(post("/200", "held", "{}"));
    let polled = std::future::poll_fn(|cx| std::task::Poll::Ready(held.as_mut().poll(cx)));
    assert!(polled.await.is_pending());
    app.send(post("/200", "used", "{}")).await;
    let none = Request::post("/200").body(Full::default()).unwrap();
    for (request, status, title) in [
        (none, 400, "Idempotency-Key is missing"),
        (
            post("/200", "used", "{ }"),
            422,
            "Idempotency-Key is already used",
        ),
        (
            post("/200", "held", "{}"),
            409,
            "A request is outstanding for this Idempotency-Key",
        ),
    ] {
        let answer = app.send(request).await;
        assert_eq!(answer.status, StatusCode::from_u16(status).unwrap());
        assert_eq!(answer.headers["content-type"], "application/problem+json");
        let text = std::str::from_utf8(&answer.body).unwrap();
        let first = format!("{{\n  \"type\": \"{PAGE}\",\n  \"title\": \"{title}\",\n");
        assert!(text.starts_with(&first), "{text}");
        assert!(text.ends_with(".\"\n}"), "{text}");
        assert_eq!(
            answer.headers["link"],
            "<https://developer.example.com/idempotency>; rel=\"describedby\"; type=\"text/html\""
        );
        assert!(answer.headers.contains_key("content-language"));
    }
    drop(held);
}

#[test]
fn what_has_no_meaning_cannot_be_set() {
    type Set = fn(IdempotencyLayer) -> IdempotencyLayer;
    let wrong: [(&str, Set); 4] = [
        ("a lease of no time", |layer| layer.lease(29 * MS)),
        ("a claim inside one process", |layer| {
            layer.on_store_failure(tower_keep::core::StoreFailure::Local)
        }),
        ("no field name", |layer| layer.replay_only(["a b"])),
        ("no status", |layer| {
            let statuses = tower_keep::idempotency::StatusPolicy::default();
            layer.statuses(statuses.on(99, Directive::Store))
        }),
    ];
    for (what, set) in wrong {
        let set = std::panic::catch_unwind(|| {
            set(IdempotencyLayer::new(memory(&clock()), Scope::global()))
        });
        assert!(set.is_err(), "{what}");
    }
}

#[tokio::test]
async fn the_longest_of_times_are_no_fault() {
    let longest = layer(memory(&clock()))
        .ttl(Duration::MAX)
        .lease(Duration::MAX)
        .run_limit(Duration::MAX)
        .at_lease_end(LeaseEnd::Indeterminate);
    let app = App::with(longest, |_, _| async {
        // Long enough for the lease to be looked after.
        tokio::task::yield_now().await;
        Response::new(Full::default())
    });
    assert_eq!(app.post("k", "{}").await.status, 200);
    assert!(app.post("k", "{}").await.is_replay());
}
