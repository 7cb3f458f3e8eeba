//! A store that refuses one kind of step, or answers late: nothing runs twice, and nobody is refused wrongly.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http_body_util::Full;
use tokio::sync::Notify;
use tower_keep::SECOND;
use tower_keep::backend::memory::MemoryStore;
use tower_keep::core::{IdempotencyOutcome, StoreError, StoreErrorKind, StoreFuture};
use tower_keep::idempotency::{
    Answer, Begin, Claim, Cursor, Directive, Fence, IdempotencyStore, LeaseEnd, Nonce, Owned,
    Purged, Record, RecordId, Resolution, Resolved, ScopeTag, Twins,
};

use super::{App, clock, layer, memory, post};

/// A memory store whose steps fail, or whose claims wait, while told to.
#[derive(Clone, Debug)]
struct Moody {
    store: MemoryStore,
    /// Renewals cannot be made.
    no_renewal: Arc<AtomicBool>,
    /// Completions cannot be made.
    no_completion: Arc<AtomicBool>,
    /// The record that no step can complete.
    cursed: Arc<parking_lot::Mutex<Option<RecordId>>>,
    /// Claims wait for `go`.
    slow_claims: Arc<AtomicBool>,
    entered: Arc<Notify>,
    go: Arc<Notify>,
}

impl Moody {
    fn new(store: MemoryStore) -> Self {
        Self {
            store,
            no_renewal: Arc::default(),
            no_completion: Arc::default(),
            cursed: Arc::default(),
            slow_claims: Arc::default(),
            entered: Arc::default(),
            go: Arc::default(),
        }
    }
}

fn away<T>() -> StoreFuture<T> {
    StoreFuture::ready(Err(StoreError::new(StoreErrorKind::Unavailable)))
}

impl IdempotencyStore for Moody {
    fn begin(&self, key: &RecordId, claim: &Claim) -> StoreFuture<Begin> {
        if !self.slow_claims.load(Ordering::SeqCst) {
            return self.store.begin(key, claim);
        }
        let (key, claim, this) = (*key, *claim, self.clone());
        StoreFuture::boxed(async move {
            this.entered.notify_one();
            this.go.notified().await;
            this.store.begin(&key, &claim).await
        })
    }

    fn renew(
        &self,
        key: &RecordId,
        nonce: Nonce,
        lease: Duration,
        end: LeaseEnd,
    ) -> StoreFuture<Owned> {
        if self.no_renewal.load(Ordering::SeqCst) {
            return away();
        }
        self.store.renew(key, nonce, lease, end)
    }

    fn complete(
        &self,
        key: &RecordId,
        nonce: Nonce,
        answer: Answer,
        ttl: Duration,
    ) -> StoreFuture<Owned> {
        if self.no_completion.load(Ordering::SeqCst) {
            return away();
        }
        let mut cursed = self.cursed.lock();
        if *cursed.get_or_insert(*key) == *key {
            return StoreFuture::ready(Err(StoreError::new(StoreErrorKind::Failed)));
        }
        self.store.complete(key, nonce, answer, ttl)
    }

    fn release(&self, key: &RecordId, nonce: Nonce) -> StoreFuture<Owned> {
        self.store.release(key, nonce)
    }

    fn peek(&self, key: &RecordId) -> StoreFuture<Option<Record>> {
        self.store.peek(key)
    }

    fn resolve(&self, key: &RecordId, fence: Fence, to: Resolution) -> StoreFuture<Resolved> {
        self.store.resolve(key, fence, to)
    }

    fn purge(&self, scope: ScopeTag, page: Option<Cursor>) -> StoreFuture<Purged> {
        self.store.purge(scope, page)
    }
}

fn blessed(store: MemoryStore) -> Moody {
    let moody = Moody::new(store);
    *moody.cursed.lock() = Some(RecordId::from_bytes([0; 32]));
    moody
}

#[tokio::test(start_paused = true)]
async fn what_a_handler_calls_unknown_never_runs_again_though_the_store_was_away_just_then() {
    let clock = clock();
    let store = blessed(memory(&clock));
    let no_renewal = Arc::clone(&store.no_renewal);
    let layer = layer(store.clone());
    let app = App::with(layer.clone(), |_, _| async {
        let mut response = Response::new(Full::from("perhaps"));
        response.extensions_mut().insert(Directive::Unknown);
        response
    });
    no_renewal.store(true, Ordering::SeqCst);
    let first = app.post("k", "{}").await;
    assert_eq!(first.outcome(), IdempotencyOutcome::Unrecorded);
    let again = app.post("k", "{}").await;
    again.check_refused(409, "IDEMPOTENCY_OUTCOME_UNKNOWN");
    app.post("k", "other")
        .await
        .check_refused(422, "IDEMPOTENCY_KEY_REUSED");
    no_renewal.store(false, Ordering::SeqCst);
    assert_eq!(layer.drain(20 * SECOND).await.abandoned, 0);
    clock.advance(60 * SECOND);
    let elsewhere = App::new(super::layer(store));
    let again = elsewhere.post("k", "{}").await;
    again.check_refused(409, "IDEMPOTENCY_OUTCOME_UNKNOWN");
    assert_eq!((app.runs(), elsewhere.runs()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_full_store_keeps_that_it_ran_even_where_the_location_has_no_room() {
    let clock = clock();
    let store = MemoryStore::builder().clock(clock.clone()).max_bytes(1_000);
    let layer = layer(store.build());
    let app = App::with(layer.clone(), |_, run| async move {
        let place = format!("/{}", "x".repeat(4_000));
        let answer = Response::builder().status(201).header("location", place);
        answer.body(Full::from(format!("run {run}"))).unwrap()
    });
    let first = app.post("k", "{}").await;
    assert_eq!(
        (first.status.as_u16(), first.outcome()),
        (201, IdempotencyOutcome::First)
    );
    clock.advance(60 * SECOND);
    let again = app.post("k", "{}").await;
    again.check_refused(409, "IDEMPOTENCY_NOT_REPLAYABLE");
    assert_eq!(app.runs(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_the_store_never_takes_does_not_hold_up_the_others() {
    let clock = clock();
    let store = Moody::new(memory(&clock));
    let layer = layer(store.clone());
    let app = App::new(layer.clone());
    app.post("cursed", "{}").await;
    store.no_completion.store(true, Ordering::SeqCst);
    app.post("k", "{}").await;
    store.no_completion.store(false, Ordering::SeqCst);
    layer.drain(20 * SECOND).await;
    let elsewhere = App::new(super::layer(store));
    let replay = elsewhere.post("k", "{}").await;
    assert_eq!((replay.is_replay(), elsewhere.runs()), (true, 0));
}

#[tokio::test]
async fn a_right_retry_is_not_refused_for_a_wrong_one_that_only_asks() {
    let store = blessed(memory(&clock()));
    let layer = layer(store.clone()).twins(Twins::Attach(10 * SECOND));
    let app = App::new(layer);
    let first = app.post("k", "right").await;
    store.slow_claims.store(true, Ordering::SeqCst);
    let wrong = tokio::spawn(app.future(post("/pay", "k", "wrong")));
    store.entered.notified().await;
    let right = tokio::spawn(app.future(post("/pay", "k", "right")));
    tokio::task::yield_now().await;
    store.slow_claims.store(false, Ordering::SeqCst);
    store.go.notify_one();
    wrong
        .await
        .unwrap()
        .check_refused(422, "IDEMPOTENCY_KEY_REUSED");
    let right = right.await.unwrap();
    assert_eq!((right.is_replay(), right.body), (true, first.body));
    assert_eq!(app.runs(), 1);
}

#[tokio::test]
async fn an_operator_finds_a_uuid_as_the_client_spelled_it() {
    let layer = layer(memory(&clock())).key_format(tower_keep::idempotency::KeyFormat::uuid());
    let key = "0A1B2C3D-0000-4000-8000-ABCDEFABCDEF";
    App::new(layer.clone()).post(key, "{}").await;
    let admin = layer.admin();
    let id = admin.id(&tower_keep::idempotency::ScopeId::global(), key);
    assert!(admin.get(&id).await.unwrap().is_some());
}

#[tokio::test]
async fn an_answer_that_is_kept_for_no_time_at_all_is_no_fault() {
    let server = crate::support::redis::shared().await;
    let prefix = crate::support::redis::fresh_prefix();
    let store = server.store_with(&prefix);
    let app = App::with(layer(store.await), |_, run| async move {
        let mut response = Response::new(Full::<Bytes>::from(format!("run {run}")));
        let directive = Directive::StoreFor(Duration::ZERO);
        response.extensions_mut().insert(directive);
        response
    });
    for run in ["run 1", "run 2"] {
        let answer = app.post("k", "{}").await;
        assert_eq!(
            (&answer.body[..], answer.outcome()),
            (run.as_bytes(), IdempotencyOutcome::First)
        );
    }
}
