//! An idempotency store that goes wrong on demand: a memory store with something else to do before and after its steps.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tower_keep::backend::memory::MemoryStore;
use tower_keep::core::{StoreError, StoreErrorKind, StoreFuture};
use tower_keep::idempotency::{
    Answer, Begin, Claim, Cursor, Fence, IdempotencyStore, LeaseEnd, Nonce, Owned, Purged, Record,
    RecordId, Resolution, Resolved, ScopeTag,
};

/// Which step of the store it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Begin,
    Renew,
    Complete(RecordId),
    Release,
    Peek,
    Resolve,
    Purge,
}

type Doing = Pin<Box<dyn Future<Output = Result<(), StoreError>> + Send>>;
type Way = Arc<dyn Fn(Step) -> Doing + Send + Sync>;

/// Does what it is told around each step. What fails before a step leaves it undone; after it, its reply is lost.
#[derive(Clone)]
pub struct Wayward {
    store: MemoryStore,
    before: Option<Way>,
    after: Option<Way>,
}

/// The error of a store that cannot be reached.
pub fn away() -> Result<(), StoreError> {
    Err(StoreError::new(StoreErrorKind::Unavailable))
}

fn way<F>(of: impl Fn(Step) -> F + Send + Sync + 'static) -> Option<Way>
where
    F: Future<Output = Result<(), StoreError>> + Send + 'static,
{
    Some(Arc::new(move |step| Box::pin(of(step)) as Doing))
}

impl Wayward {
    pub fn new(store: MemoryStore) -> Self {
        Self {
            store,
            before: None,
            after: None,
        }
    }

    pub fn before<F>(mut self, does: impl Fn(Step) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<(), StoreError>> + Send + 'static,
    {
        self.before = way(does);
        self
    }

    pub fn after<F>(mut self, does: impl Fn(Step) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<(), StoreError>> + Send + 'static,
    {
        self.after = way(does);
        self
    }

    /// Waits once before each step and once after it: a drop can fall on either side.
    pub fn yielding(store: MemoryStore) -> Self {
        let turn = |_| async {
            tokio::task::yield_now().await;
            Ok(())
        };
        Self::new(store).before(turn).after(turn)
    }

    fn step<T: Send + 'static>(
        &self,
        step: Step,
        does: impl FnOnce(MemoryStore) -> StoreFuture<T> + Send + 'static,
    ) -> StoreFuture<T> {
        let own = self.clone();
        StoreFuture::boxed(async move {
            if let Some(before) = &own.before {
                before(step).await?;
            }
            let answer = does(own.store).await;
            if let Some(after) = &own.after {
                after(step).await?;
            }
            answer
        })
    }
}

impl fmt::Debug for Wayward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wayward")
    }
}

impl IdempotencyStore for Wayward {
    fn begin(&self, key: &RecordId, claim: &Claim) -> StoreFuture<Begin> {
        let (key, claim) = (*key, *claim);
        self.step(Step::Begin, move |store| store.begin(&key, &claim))
    }

    fn renew(
        &self,
        key: &RecordId,
        nonce: Nonce,
        lease: Duration,
        end: LeaseEnd,
    ) -> StoreFuture<Owned> {
        let key = *key;
        self.step(Step::Renew, move |store| {
            store.renew(&key, nonce, lease, end)
        })
    }

    fn complete(
        &self,
        key: &RecordId,
        nonce: Nonce,
        answer: Answer,
        ttl: Duration,
    ) -> StoreFuture<Owned> {
        let key = *key;
        self.step(Step::Complete(key), move |store| {
            store.complete(&key, nonce, answer, ttl)
        })
    }

    fn release(&self, key: &RecordId, nonce: Nonce) -> StoreFuture<Owned> {
        let key = *key;
        self.step(Step::Release, move |store| store.release(&key, nonce))
    }

    fn peek(&self, key: &RecordId) -> StoreFuture<Option<Record>> {
        let key = *key;
        self.step(Step::Peek, move |store| store.peek(&key))
    }

    fn resolve(&self, key: &RecordId, fence: Fence, to: Resolution) -> StoreFuture<Resolved> {
        let key = *key;
        self.step(Step::Resolve, move |store| store.resolve(&key, fence, to))
    }

    fn purge(&self, scope: ScopeTag, page: Option<Cursor>) -> StoreFuture<Purged> {
        self.step(Step::Purge, move |store| store.purge(scope, page))
    }
}
