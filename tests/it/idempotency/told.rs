//! What operators are told: an audit of their own calls, what is set wrongly, and what each counter counts.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderName, HeaderValue, Response};
use http_body_util::Full;
use tokio::sync::Notify;
use tower::Layer;
use tower_keep::core::{IdempotencyOutcome, Principal};
use tower_keep::idempotency::{
    DerivedKey, Directive, FingerprintRule, IdempotencyLayer, Scope, ScopeId, Twins,
};
use tower_keep::{MINUTE, SECOND};

use super::leaving::TimerClock;
use super::transactional::Place;
use super::{App, clock, layer, memory, post};
use crate::rate_limit::metered::Metered;
use crate::rate_limit::telemetry::Logged;
use crate::support::Wayward;
use crate::support::wayward::{Step, away};

fn counter(metered: &Metered, name: &str) -> u64 {
    metered.counter(&format!("keep_idempotency_{name}"))
}

#[tokio::test]
async fn each_call_of_an_operator_is_told_with_the_id_and_so_is_what_nobody_knows() {
    let logged = Logged::start();
    let layer = IdempotencyLayer::new(memory(&clock()), Scope::principal());
    let admin = layer.admin();
    let app = App::with(layer, |_, _| async {
        let mut response = Response::new(Full::default());
        response.extensions_mut().insert(Directive::Unknown);
        response
    });
    let send = |key: &str| {
        let mut request = post("/pay", key, "{}");
        let extensions = request.extensions_mut();
        extensions.insert(Principal::new("u1"));
        app.send(request)
    };
    let scope = ScopeId::principal("u1");
    for key in ["a", "b"] {
        let id = admin.id(&scope, key);
        send(key).await;
        let unknown = ["ERROR", "did not report its end", &id.to_string()];
        assert_eq!(logged.lines_with(&unknown), 0);
        let again = send(key).await;
        again.check_refused(409, "IDEMPOTENCY_OUTCOME_UNKNOWN");
        assert_eq!(logged.lines_with(&unknown), 1);
        let info = admin.get(&id).await.unwrap().unwrap();
        let told = |what: &str| logged.lines_with(&["INFO", what, &id.to_string()]);
        let (looked, resolved) = ("an operator looked at", "an operator resolves");
        assert_eq!((told(looked), told(resolved)), (1, 0), "{key}");
        if key == "a" {
            admin.release(&info).await.unwrap();
        } else {
            let answer = Response::new(Bytes::from_static(b"by hand"));
            admin.complete(&info, answer).await.unwrap();
        }
        assert_eq!((told(looked), told(resolved)), (1, 1), "{key}");
    }
    assert_eq!(admin.purge(&scope).await.unwrap(), 1);
    // The caller's half of an id.
    let id = admin.id(&scope, "a").to_string();
    let scope = format!("scope={}", &id[..22]);
    for what in ["removes the answers", "removed=1"] {
        assert_eq!(logged.lines_with(&["INFO", what, &scope]), 1, "{what}");
    }
}

/// Each of them is said once in a process: and so each has a test of its own.
#[tokio::test]
async fn a_request_without_a_scope_is_said_once() {
    let logged = Logged::start();
    let app = App::new(IdempotencyLayer::new(memory(&clock()), Scope::principal()));
    for _ in 0..3 {
        app.post("k", "{}")
            .await
            .check_refused(403, "IDEMPOTENCY_SCOPE_MISSING");
        assert_eq!(logged.lines_with(&["WARN", "had no scope"]), 1);
    }
}

#[test]
fn derived_keys_without_a_secret_are_said_once() {
    let logged = Logged::start();
    let said = || logged.lines_with(&["WARN", "derived keys without a secret"]);
    let derived = || layer(memory(&clock())).derive(DerivedKey::fields("book").text("a"));
    drop(layer(memory(&clock())).layer(()));
    drop(derived().secret([1; 32]).layer(()));
    assert_eq!(said(), 0);
    for _ in 0..3 {
        drop(derived().layer(()));
        assert_eq!(said(), 1);
    }
}

#[tokio::test]
async fn why_an_answer_is_not_kept_and_why_a_request_is_refused_is_counted() {
    let metered = Metered::start();
    let count = |name: &str| counter(&metered, name);
    let app = App::with(
        layer(memory(&clock())).max_response_body(3),
        |request, _| {
            let path = request.uri().path().to_owned();
            async move {
                let mut response =
                    Response::new(Full::from(if path == "/large" { "four" } else { "" }));
                match path.as_str() {
                    "/events" => {
                        let kind = HeaderValue::from_static("text/event-stream");
                        response.headers_mut().insert(CONTENT_TYPE, kind);
                    }
                    "/pay" => {
                        response.extensions_mut().insert(Directive::NoStore);
                    }
                    _ => {}
                }
                response
            }
        },
    );
    let reasons = [
        ("/large", "too_large"),
        ("/pay", "no_store"),
        ("/events", "streamed"),
    ];
    for (path, reason) in reasons {
        for _ in 0..2 {
            app.send(post(path, reason, "{}")).await;
        }
        assert_eq!(count(&format!("tombstones_total{{reason={reason}}}")), 1);
    }
    app.post("no_store", "other").await;
    app.post("two words", "{}").await;
    for (code, times) in [("NOT_REPLAYABLE", 3), ("KEY_REUSED", 1), ("KEY_INVALID", 1)] {
        let name = format!("refusals_total{{code=IDEMPOTENCY_{code}}}");
        assert_eq!(count(&name), times, "{code}");
    }
}

#[tokio::test]
async fn a_record_under_another_rule_and_one_that_cannot_be_read_are_counted() {
    let metered = Metered::start();
    let count = |name: &str| counter(&metered, name);
    let place = Place::sqlite().await;
    let layer = IdempotencyLayer::new(place.db.clone(), Scope::global());
    let app = App::new(layer.clone());
    app.post("k", "{}").await;
    app.post("k", "{}").await;
    assert_eq!(count("rule_skipped_total"), 0);
    let field = HeaderName::from_static("content-type");
    let other = App::new(layer.fingerprint(FingerprintRule::bytes().header(field)));
    assert!(other.post("k", "{}").await.is_replay());
    assert_eq!(count("rule_skipped_total"), 1);
    let damage = "update keep_idempotency set version = 2";
    crate::support::sql::execute(&place.db, damage).await;
    assert_eq!(count("unreadable_total"), 0);
    let refused = app.post("k", "{}").await;
    refused.check_refused(409, "IDEMPOTENCY_NOT_REPLAYABLE");
    assert_eq!(count("unreadable_total"), 1);
}

#[tokio::test(start_paused = true)]
async fn renewals_lost_leases_and_a_stale_answer_are_counted() {
    let metered = Metered::start();
    let count = |name: &str| counter(&metered, name);
    let renewals = |result: &str| count(&format!("renewals_total{{result={result}}}"));
    let timer = TimerClock(tokio::time::Instant::now());
    let store = tower_keep::backend::memory::MemoryStore::builder().clock(timer);
    let away_now = Arc::new(AtomicBool::new(false));
    let is_away = Arc::clone(&away_now);
    let store = Wayward::new(store.build()).before(move |step| {
        let fails = step == Step::Renew && is_away.load(Ordering::SeqCst);
        async move { if fails { away() } else { Ok(()) } }
    });
    let app = App::with(layer(store), |_, run| async move {
        if run <= 2 {
            tokio::time::sleep(95 * SECOND).await;
        }
        Response::new(Full::default())
    });
    // At each third of a lease of half a minute.
    let whole = app.post("whole", "{}").await;
    assert_eq!(whole.outcome(), IdempotencyOutcome::First);
    assert_eq!((renewals("renewed"), count("leases_lost_total")), (9, 0));
    let zombie = tokio::spawn(app.future(post("/pay", "k", "{}")));
    tokio::time::sleep(SECOND).await;
    // It cannot renew until another has taken over.
    away_now.store(true, Ordering::SeqCst);
    tokio::time::sleep(40 * SECOND).await;
    app.post("k", "{}").await;
    away_now.store(false, Ordering::SeqCst);
    zombie.await.unwrap();
    assert!(renewals("failed") > 0);
    assert_eq!(count("leases_lost_total"), 1);
    assert_eq!(count("stale_writes_total{op=complete}"), 1);
    assert_eq!(count("unrecorded_total"), 1, "{}", metered.scrape());
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_finds_another_owner_is_counted_as_lost() {
    let metered = Metered::start();
    let clock = clock();
    let app = App::with(layer(memory(&clock)), |_, run| async move {
        if run == 1 {
            tokio::time::sleep(20 * SECOND).await;
        }
        Response::new(Full::default())
    });
    let zombie = tokio::spawn(app.future(post("/pay", "k", "{}")));
    tokio::task::yield_now().await;
    clock.advance(MINUTE);
    app.post("k", "{}").await;
    zombie.await.unwrap();
    let lost = counter(&metered, "renewals_total{result=lost}");
    assert_eq!((lost, counter(&metered, "leases_lost_total")), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_release_of_what_another_owns_is_counted_and_takes_nothing_from_it() {
    let metered = Metered::start();
    let clock = clock();
    let app = App::with(layer(memory(&clock)), |_, run| async move {
        let mut response = Response::new(Full::from(format!("run {run}")));
        if run == 1 {
            // Less than a third of the lease: it has asked for nothing since.
            tokio::time::sleep(SECOND).await;
            response.extensions_mut().insert(Directive::Release);
        }
        response
    });
    let stale = |op: &str| counter(&metered, &format!("stale_writes_total{{op={op}}}"));
    let zombie = tokio::spawn(app.future(post("/pay", "k", "{}")));
    tokio::task::yield_now().await;
    clock.advance(MINUTE);
    app.post("k", "{}").await;
    assert_eq!(stale("release"), 0);
    zombie.await.unwrap();
    assert_eq!((stale("release"), stale("complete")), (1, 0));
    let again = app.post("k", "{}").await;
    assert_eq!((again.is_replay(), &again.body[..]), (true, &b"run 2"[..]));
}

#[tokio::test]
async fn those_who_wait_are_shown_for_as_long_as_they_do() {
    let metered = Metered::start();
    let waiters = || metered.value("keep_idempotency_waiters").unwrap_or(0.0);
    let go = Arc::new(Notify::new());
    let stay = Arc::clone(&go);
    let layer = layer(memory(&clock())).twins(Twins::Attach(MINUTE));
    let app = App::with(layer, move |_, _| {
        let stay = Arc::clone(&stay);
        async move {
            stay.notified().await;
            Response::new(Full::default())
        }
    });
    let send = || tokio::spawn(app.future(post("/pay", "k", "{}")));
    let sent = [send(), send(), send()];
    while waiters() < 2.0 {
        tokio::task::yield_now().await;
    }
    go.notify_one();
    for answer in sent {
        assert_eq!(answer.await.unwrap().status, 200);
    }
    assert_eq!(waiters(), 0.0);
}

#[tokio::test(start_paused = true)]
async fn what_is_still_to_be_stored_is_shown_until_it_is() {
    let metered = Metered::start();
    let backlog = || metered.value("keep_idempotency_backlog").unwrap_or(0.0);
    let is_away = Arc::new(AtomicBool::new(true));
    let own = Arc::clone(&is_away);
    let store = Wayward::new(memory(&clock())).before(move |step| {
        let fails = matches!(step, Step::Complete(_)) && own.load(Ordering::SeqCst);
        async move { if fails { away() } else { Ok(()) } }
    });
    let app = App::new(layer(store));
    for (key, waiting) in [("a", 1.0), ("b", 2.0)] {
        let answer = app.post(key, "{}").await;
        assert_eq!(answer.outcome(), IdempotencyOutcome::Unrecorded);
        assert_eq!(backlog(), waiting);
    }
    assert_eq!(counter(&metered, "unrecorded_total"), 2);
    is_away.store(false, Ordering::SeqCst);
    app.layer.drain(10 * MINUTE).await;
    assert_eq!(backlog(), 0.0);
}
