//! No secret leaves by a log, a metric, a list, a document or a Debug text.

use std::io;
use std::sync::Arc;

use axum::Router;
use axum::routing::get;
use parking_lot::Mutex;
use tower_keep::core::{StoreFailure, Visitor};
use tower_keep::session::{Session, SessionLayer, SessionLimit};
use tracing_subscriber::util::SubscriberInitExt;

use super::app::{App, Browser, Probe, Reply, clock, memory};
use crate::rate_limit::metered::Metered;

/// What was logged, in memory.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// Keeps everything that this thread logs while the guard lives.
    pub fn start() -> (Self, impl Sized) {
        let log = Self::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
            .with_span_events(tracing_subscriber::fmt::format::FmtSpan::FULL)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        (log, subscriber.set_default())
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.0.lock().clone()).unwrap()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Follows a browser: each token it ever had, and whatever it was shown but for the token itself.
#[derive(Default)]
struct Seen {
    tokens: Vec<String>,
    shown: String,
}

impl Seen {
    async fn visit(&mut self, browser: &Browser, path: &str) -> Reply {
        let mut reply = browser.get(path).await;
        if browser.cookie().is_some() {
            self.tokens.push(browser.token());
        }
        reply.headers.remove("set-cookie");
        self.shown += &format!("{path} {reply:?}\n");
        reply
    }
}

#[tokio::test]
async fn no_secret_is_in_a_log_a_metric_a_list_a_document_or_a_debug_text() {
    let (log, _logging) = Log::start();
    let metered = Metered::start();
    let texts = Arc::new(Mutex::new(String::new()));
    let (tell, clock) = (Arc::clone(&texts), clock());
    let store = Probe::new(memory(&clock));
    let layer = SessionLayer::new(store.clone())
        .limit(SessionLimit::reject(2))
        .on_event(move |event| *tell.lock() += &format!("{event:?}"));
    let directory = layer.directory();
    let kept = Arc::clone(&texts);
    let handles = Router::new().route(
        "/handles",
        get(async move |request: axum::extract::Request| {
            let session = Session::of(request.extensions()).unwrap();
            session.principal().await.unwrap();
            let visitor = request.extensions().get::<Visitor>();
            *kept.lock() += &format!("{session:?} {visitor:?}");
        }),
    );
    let app = App::new(layer.clone());
    let (browser, thief, mut seen) = (app.browser(), app.browser(), Seen::default());
    for path in [
        "/set/cart/1",
        "/login/u1?stamp=hash&role=admin",
        "/get/cart",
        "/me",
        "/update/n",
        "/add/n/2",
        "/rotate",
        "/list",
        "/login/u1",
        "/login/u2?remember=9000",
        "/fail/rotate",
        "/fail/write",
        "/role/nobody",
        "/fresh/0",
        "/stamp/other",
        "/login/u1",
        "/revoke_others",
        "/expires",
        "/clear",
        "/remove/n",
    ] {
        seen.visit(&browser, path).await;
    }
    thief.plant(&format!("__Host-id={}", seen.tokens[0]));
    for path in ["/me", "/set/a/1", "/list"] {
        seen.visit(&thief, path).await;
    }
    // A login counts as begun before a revocation of the same moment.
    clock.advance(std::time::Duration::from_secs(5));
    let [second, third] = [app.browser(), app.browser()];
    seen.visit(&second, "/login/u1").await;
    assert_eq!(seen.visit(&third, "/login/u1").await.status, 409);
    let request = http::Request::get("/handles").header("cookie", browser.cookie().unwrap());
    let request = request.body(axum::body::Body::empty()).unwrap();
    let sent = tower::ServiceExt::oneshot(handles.layer(layer.clone()), request);
    assert_eq!(sent.await.unwrap().status(), 200);
    directory.assign_roles("u1", ["guest"]).await.unwrap();
    seen.shown += &format!("{:?}", directory.list("u1").await.unwrap());
    store.fail(true);
    for path in ["/me", "/logout", "/login/u1"] {
        assert_eq!(seen.visit(&second, path).await.status, 503);
    }
    let open = App::new(layer.clone().on_store_failure(StoreFailure::Open));
    seen.visit(&browser.at(&open), "/set/a/1").await;
    store.fail(false);
    directory.revoke_everyone().await.unwrap();
    seen.visit(&browser, "/me").await;
    seen.shown += &format!("{layer:?} {directory:?} {store:?} {}", texts.lock());

    let log = log.text();
    seen.shown += &metered.scrape();
    for word in [
        "session_store",
        "method",
        "answer=\"live\"",
        "does not answer",
        "answers again",
    ] {
        assert!(log.contains(word), "the log tells of {word}: {log}");
    }
    assert_eq!(
        log.matches("the session store does not answer").count(),
        1,
        "once per outage"
    );
    seen.tokens.sort();
    seen.tokens.dedup();
    assert!(seen.tokens.len() >= 8);
    for token in &seen.tokens {
        // The id is public; the secret is the rest, whose first character shares bits with the id.
        let secret = &token[22..];
        assert!(!log.contains(secret), "a secret is in the log");
        assert!(!seen.shown.contains(secret), "a secret was shown");
    }
}
