//! Bounds, and a store that panics.

use std::sync::atomic::AtomicBool;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};

use super::*;
use crate::backend::memory::MemoryStore;
use crate::core::StoreFuture;
use crate::idempotency::record::{Content, Fence, Record, ScopeTag, StoredAnswer};
use crate::idempotency::store::{Begin, Claim, Cursor, Owned, Purged, Resolution, Resolved};

const DAY: Duration = Duration::from_secs(86_400);

/// A memory that panics at one record, once, or cannot be reached.
#[derive(Debug, Default)]
struct Flaky {
    store: MemoryStore,
    panics_at: Option<RecordId>,
    away: AtomicBool,
}

impl IdempotencyStore for Flaky {
    fn begin(&self, key: &RecordId, claim: &Claim) -> StoreFuture<Begin> {
        self.store.begin(key, claim)
    }

    fn renew(&self, key: &RecordId, nonce: Nonce, l: Duration, e: LeaseEnd) -> StoreFuture<Owned> {
        self.store.renew(key, nonce, l, e)
    }

    fn complete(
        &self,
        key: &RecordId,
        nonce: Nonce,
        answer: Answer,
        ttl: Duration,
    ) -> StoreFuture<Owned> {
        if self.away.load(Ordering::SeqCst) {
            return StoreFuture::ready(Err(StoreErrorKind::Unavailable.into()));
        }
        assert!(self.panics_at != Some(*key), "a store that panics");
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

fn id(n: usize) -> RecordId {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&n.to_be_bytes());
    RecordId::from_bytes(bytes)
}

fn answer(bytes: usize) -> Answer {
    let stored = StoredAnswer {
        status: StatusCode::CREATED,
        fields: HeaderMap::new(),
        body: Bytes::from(vec![b'x'; bytes]),
        trailers: None,
    };
    Answer {
        fingerprint: Fingerprint {
            rule: 1,
            hash: [1; 32],
        },
        content: AnswerContent::Full(Arc::new(stored)),
    }
}

fn push(backlog: &Arc<Backlog>, store: &Arc<dyn IdempotencyStore>, n: usize, bytes: usize) {
    backlog.complete(store, id(n), Nonce([1; 16]), answer(bytes), DAY);
}

fn is_whole(backlog: &Backlog, n: usize) -> Option<bool> {
    match backlog.end(&id(n))?.1 {
        Waiting::Answer(found) => Some(matches!(found.content, Content::Full(_))),
        Waiting::Undecided => None,
    }
}

async fn emptied(backlog: &Backlog) {
    while backlog.len() > 0 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_at_one_answer_does_not_stop_the_others() {
    let flaky = Arc::new(Flaky {
        panics_at: Some(id(0)),
        ..Flaky::default()
    });
    let (backlog, store) = (Arc::new(Backlog::default()), Arc::clone(&flaky) as _);
    for n in 0..3 {
        push(&backlog, &store, n, 10);
    }
    for n in [1, 2] {
        while flaky.store.peek(&id(n)).await.unwrap().is_none() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    push(&backlog, &store, 3, 10);
    while flaky.store.peek(&id(3)).await.unwrap().is_none() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(
        backlog.len(),
        1,
        "the one that panics is kept and tried again"
    );
}

#[test]
fn a_runtime_that_ends_does_not_end_the_backlog() {
    let flaky = Arc::new(Flaky::default());
    let (backlog, store) = (Arc::new(Backlog::default()), Arc::clone(&flaky) as _);
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().start_paused(true).build().unwrap()
    };
    runtime().block_on(async {
        push(&backlog, &store, 1, 10);
        tokio::task::yield_now().await;
    });
    assert_eq!(backlog.len(), 1);
    runtime().block_on(async {
        push(&backlog, &store, 2, 10);
        emptied(&backlog).await;
        assert!(flaky.store.peek(&id(1)).await.unwrap().is_some());
    });
}

#[tokio::test(start_paused = true)]
async fn a_full_backlog_keeps_tombstones_and_at_last_loses_the_oldest() {
    #[cfg(feature = "metrics")]
    let (recorder, lost) = {
        let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
        (recorder, "keep_idempotency_backlog_dropped_total 1")
    };
    #[cfg(feature = "metrics")]
    let _measuring = metrics::set_default_local_recorder(&recorder);
    let flaky = Arc::new(Flaky::default());
    flaky.away.store(true, Ordering::SeqCst);
    let (backlog, store) = (Arc::new(Backlog::default()), Arc::clone(&flaky) as _);
    for n in 0..ITEMS {
        push(&backlog, &store, n, 10);
    }
    assert_eq!(backlog.len(), ITEMS);
    assert_eq!(is_whole(&backlog, ANSWERS - 1), Some(true));
    assert_eq!(is_whole(&backlog, ANSWERS), Some(false), "a tombstone");
    assert_eq!(is_whole(&backlog, 0), Some(true));
    push(&backlog, &store, ITEMS, 10);
    assert_eq!(backlog.len(), ITEMS);
    #[cfg(feature = "metrics")]
    assert!(recorder.handle().render().contains(lost), "it is counted");
    assert_eq!(is_whole(&backlog, 0), None, "the oldest is gone");
    assert_eq!(is_whole(&backlog, 1), Some(true));
    flaky.away.store(false, Ordering::SeqCst);
    emptied(&backlog).await;
    let kept = flaky.store.peek(&id(1)).await.unwrap().unwrap();
    assert!(matches!(kept.content, Content::Full(_)));
    let left = flaky.store.peek(&id(ITEMS)).await.unwrap().unwrap();
    assert!(matches!(left.content, Content::Tombstone(_)));
    assert!(flaky.store.peek(&id(0)).await.unwrap().is_none());
    let state = backlog.state.lock();
    assert_eq!((state.answers, state.bytes, state.order.len()), (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn answers_beyond_the_bytes_become_tombstones_and_the_bytes_come_back() {
    let flaky = Arc::new(Flaky::default());
    flaky.away.store(true, Ordering::SeqCst);
    let (backlog, store) = (Arc::new(Backlog::default()), Arc::clone(&flaky) as _);
    for n in 0..3 {
        push(&backlog, &store, n, ANSWER_BYTES / 2);
    }
    let whole = [0, 1, 2].map(|n| is_whole(&backlog, n));
    assert_eq!(whole, [Some(true), Some(true), Some(false)]);
    // The same record again takes the room of its own first.
    push(&backlog, &store, 1, ANSWER_BYTES / 2);
    assert_eq!(is_whole(&backlog, 1), Some(true));
    flaky.away.store(false, Ordering::SeqCst);
    emptied(&backlog).await;
    assert_eq!(backlog.state.lock().bytes, 0);
}
