//! Nothing that a client sent is logged, measured, shown or named, and no two things share a name.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use http::{Method, Request, Response};
use http_body_util::Full;
use metrics_exporter_prometheus::PrometheusBuilder;
use parking_lot::Mutex;
use proptest::prelude::*;
use tower_keep::backend::memory::MemoryStore;
use tower_keep::backend::sql::SqlStore;
use tower_keep::conformance::idempotency::{claim, fresh_nonce, print};
use tower_keep::core::{ManualClock, Principal};
use tower_keep::idempotency::{
    DerivedKey, Directive, IdempotencyLayer, IdempotencyStore, RecordId, Scope, ScopeId, Twins,
};
use tower_keep::{MINUTE, SECOND};
use tracing_subscriber::util::SubscriberInitExt;

use super::{App, clock, layer, memory, post};

/// What was logged, in memory.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// Listens to events and to the ends of spans in this thread, as long as the guard lives.
    pub fn listen(&self) -> impl Sized + use<> {
        let writer = self.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing_subscriber::filter::LevelFilter::DEBUG)
            .with_span_events(tracing_subscriber::fmt::format::FmtSpan::CLOSE)
            .with_ansi(false)
            .with_writer(move || writer.clone());
        subscriber.finish().set_default()
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

#[tokio::test]
async fn keys_bodies_cookies_and_callers_are_in_no_log_metric_or_debug_text() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
        .with_span_events(tracing_subscriber::fmt::format::FmtSpan::FULL)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let _logging = subscriber.set_default();
    let recorder = Box::leak(Box::new(PrometheusBuilder::new().build_recorder()));
    let measured = recorder.handle();
    let _measuring = metrics::set_default_local_recorder(recorder);

    let clock = clock();
    let named = IdempotencyLayer::new(memory(&clock), Scope::principal())
        .namespace("shop")
        .secret([0x5A; 32])
        .twins(Twins::Attach(SECOND));
    let answering = App::with(named.clone(), |_, run| async move {
        let answer = Response::builder().header("set-cookie", "sid=hidden-cookie");
        let mut response = answer.body(Full::from("hidden-answer")).unwrap();
        if run == 2 {
            response.extensions_mut().insert(Directive::Unknown);
        }
        response
    });
    let mut shown = format!("{named:?}");
    let sent = |key: &str, body: &'static str| {
        let mut request: Request<_> = post("/hidden-path", key, body);
        let cookie = "sid=hidden-cookie".parse().unwrap();
        request.headers_mut().insert("cookie", cookie);
        request
            .extensions_mut()
            .insert(Principal::new("hidden-user"));
        request
    };
    for (key, body) in [
        ("hidden-key", "hidden-body"),
        ("hidden-key", "hidden-body"),
        ("hidden-key", "hidden-other"),
        ("hidden-unknown", "hidden-body"),
        ("hidden-unknown", "hidden-body"),
        ("hidden key", "hidden-body"),
    ] {
        let answer = answering.send(sent(key, body)).await;
        shown += &format!("{:?}", answer.extensions);
        if !answer.status.is_success() {
            shown += &format!("{:?} {:?}", answer.headers, answer.problem());
        }
    }
    let nobody = answering.post("hidden-key", "hidden-body").await;
    assert_eq!(nobody.status, 403);
    shown += &format!("{:?} {:?}", nobody.headers, nobody.body);
    let derived = layer(memory(&clock)).derive(DerivedKey::fields("book").email("mail"));
    let forms = App::new(derived.clone());
    forms.post("-", "{\"mail\":\"hidden@example.test\"}").await;
    let wrong = forms.post("-", "{\"mail\":[\"hidden\"]}").await;
    wrong.check_refused(400, "IDEMPOTENCY_FIELDS_INVALID");
    shown += &format!("{derived:?} {:?} {:?}", wrong.headers, wrong.body);
    let id = named
        .admin()
        .id(&ScopeId::principal("hidden-user"), "hidden-key");
    let info = named.admin().get(&id).await.unwrap().unwrap();
    shown += &format!("{id:?} {info:?}");

    let log = String::from_utf8(log.0.lock().clone()).unwrap();
    let measured = measured.render();
    assert!(log.contains("operator"), "the log tells of the resolution");
    for word in [
        "keep_idempotency_requests_total",
        "keep_idempotency_run_seconds_count",
        "namespace=\"shop\"",
    ] {
        assert!(measured.contains(word), "{word}: {measured}");
    }
    for (place, text) in [("log", &log), ("metrics", &measured), ("debug", &shown)] {
        let lower = text.to_lowercase();
        for secret in ["hidden", "example.test", "5a5a", "90, 90"] {
            assert!(!lower.contains(secret), "{secret} in {place}: {text}");
        }
    }
}

/// Leaves a claim behind whose owner has gone, and lets a request take over.
async fn taken_over(store: impl IdempotencyStore + Clone, clock: &ManualClock) {
    let app = App::new(layer(store.clone()));
    let id = app.layer.admin().id(&ScopeId::global(), "k");
    let left_behind = claim(fresh_nonce(), print(1));
    store.begin(&id, &left_behind).await.unwrap();
    clock.advance(MINUTE);
    assert_eq!(app.post("k", "{}").await.status, 201);
    assert!(app.post("k", "{}").await.is_replay());
}

#[tokio::test]
async fn takeovers_steps_and_sizes_are_measured_and_a_span_tells_of_each_request() {
    let log = Log::default();
    let _logging = log.listen();
    let recorder = Box::leak(Box::new(PrometheusBuilder::new().build_recorder()));
    let measured = recorder.handle();
    let _measuring = metrics::set_default_local_recorder(recorder);
    let clock = clock();
    taken_over(memory(&clock), &clock).await;
    let redis = crate::support::redis::shared().await;
    taken_over(redis.store(&clock).await, &clock).await;
    for place in super::transactional::Place::both().await {
        let own = SqlStore::builder(&place.url).acquire_timeout(20 * SECOND);
        taken_over(own.clock(clock.clone()).open().await.unwrap(), &clock).await;
    }
    let measured = measured.render();
    for line in [
        "keep_idempotency_takeovers_total 4",
        "keep_idempotency_running 0",
        "keep_idempotency_store_seconds_count{op=\"begin\"} 8",
        "keep_idempotency_store_seconds_count{op=\"complete\"} 4",
        "keep_idempotency_answer_bytes_count 4",
    ] {
        assert!(measured.contains(line), "{line}: {measured}");
    }
    let log = log.text();
    let spans: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("idempotency{") && line.contains("close"))
        .collect();
    for (outcome, fences) in [("first", 4), ("replayed", 0)] {
        let own = spans
            .iter()
            .filter(|span| span.contains(&format!("outcome=\"{outcome}\"")));
        assert_eq!(own.clone().count(), 4, "{outcome}: {log}");
        assert!(own.clone().all(|span| span.contains("key=\"")), "{log}");
        let fenced = own.filter(|span| span.contains("fence=")).count();
        assert_eq!(fenced, fences, "{outcome}: {log}");
    }
}

proptest! {
    /// Delimiters, case, percent-encoding: no replacement and no joint makes two things one.
    #[test]
    fn two_keys_namespaces_or_callers_never_share_a_record(
        ones in prop::collection::vec(("[ab:/]{0,2}", "[ab:%_.]{0,3}", "[aAbB.%_:6 1]{1,4}"), 2..12),
    ) {
        let store = MemoryStore::new();
        let mut seen: HashMap<RecordId, (u8, String, String, String)> = HashMap::new();
        for (namespace, caller, key) in ones {
            let layer = IdempotencyLayer::new(store.clone(), Scope::principal()).namespace(&namespace);
            let admin = layer.admin();
            let at = layer.clone().per_endpoint().admin();
            for (kind, id) in [
                (0, admin.id(&ScopeId::new(&caller), &key)),
                (1, admin.id(&ScopeId::principal(&caller), &key)),
                (2, at.id_at(&ScopeId::new(&caller), &key, &Method::POST, "/")),
                (3, at.id_at(&ScopeId::new(&caller), &key, &Method::POST, "/a")),
                (4, at.id_at(&ScopeId::new(&caller), &key, &Method::PUT, "/a")),
            ] {
                let what = (kind, namespace.clone(), caller.clone(), key.clone());
                let first = seen.entry(id).or_insert_with(|| what.clone());
                prop_assert_eq!(&*first, &what);
            }
        }
    }
}

#[test]
fn the_callers_half_of_an_id_is_the_same_for_all_keys_and_of_no_other_caller() {
    let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::principal());
    let admin = layer.admin();
    let half = |scope: ScopeId, key| admin.id(&scope, key).as_bytes()[..16].to_vec();
    let one = half(ScopeId::principal("u1"), "a");
    assert_eq!(one, half(ScopeId::principal("u1"), "b"));
    for other in [
        ScopeId::principal("u2"),
        ScopeId::new("u1"),
        ScopeId::global(),
        ScopeId::client_ip([117, 49, 0, 0].into()),
    ] {
        assert_ne!(one, half(other, "a"));
    }
    let secret = layer.secret([1; 32]).admin();
    let global = |admin: &tower_keep::idempotency::Admin| admin.id(&ScopeId::global(), "a");
    assert_ne!(global(&admin), global(&secret));
}

#[tokio::test]
async fn no_field_names_a_derived_key() {
    let store = MemoryStore::new();
    let derived = App::new(
        layer(store.clone())
            .derive(DerivedKey::by("n", |_, body| Some(body.to_vec())))
            .ttl(MINUTE),
    );
    let header = App::new(layer(store));
    derived.post("-", "k").await;
    assert!(!header.post("k", "k").await.is_replay());
    assert!(derived.post("other", "k").await.is_replay());
}
