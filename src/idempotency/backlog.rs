//! What could not be written while the store was away: kept in bounds, tried again until it is stored or past.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use super::policy::LeaseEnd;
use super::record::{Answer, AnswerContent, Fingerprint, Nonce, RecordId};
use super::run::{Ended, poll_caught};
use super::running::jitter;
use super::seats::Found;
use super::store::IdempotencyStore;
use crate::core::telemetry::{count, error, shift};
use crate::core::{Clock, StoreError, StoreErrorKind, SystemClock, Timestamp};

/// The most whole answers and their bytes; more are kept as tombstones.
const ANSWERS: usize = 1_024;
const ANSWER_BYTES: usize = 64 * 1_024 * 1_024;
/// The most items; then the oldest goes.
const ITEMS: usize = 16_384;

/// The backlog of one layer; its task lives only while there is something to do.
#[derive(Default)]
pub(super) struct Backlog {
    state: Mutex<State>,
    len: AtomicUsize,
    changed: Notify,
}

#[derive(Default)]
struct State {
    items: HashMap<RecordId, Item>,
    order: VecDeque<RecordId>,
    answers: usize,
    bytes: usize,
    works: bool,
}

#[derive(Clone)]
struct Item {
    nonce: Nonce,
    job: Job,
    /// After this there is no point any more; UTC microseconds of this process.
    until: u64,
}

#[derive(Clone)]
enum Job {
    Complete(Answer, Duration),
    Release,
    /// The outcome is not known: nobody runs until an operator says what happened.
    Undecided(Fingerprint),
}

/// What the backlog knows of a run whose end is still to be written.
pub(super) enum Waiting {
    Answer(Found),
    Undecided,
}

impl Job {
    /// The bytes of a whole answer.
    fn bytes(&self) -> Option<usize> {
        match self {
            Self::Complete(answer, _) if matches!(answer.content, AnswerContent::Full(_)) => {
                Some(answer.content.weight())
            }
            _ => None,
        }
    }

    /// Keeps less of an answer; says whether that was possible.
    fn shrink(&mut self) -> bool {
        if let Self::Complete(answer, _) = self
            && let Some(less) = answer.content.shrunk()
        {
            answer.content = less;
            return true;
        }
        false
    }
}

impl fmt::Debug for Backlog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backlog")
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}

impl Drop for Backlog {
    /// What waited with it waits no longer.
    fn drop(&mut self) {
        self.note(0);
    }
}

impl Backlog {
    /// Returns how many items wait.
    pub(super) fn len(&self) -> usize {
        self.len.load(Ordering::Acquire)
    }

    /// Notes how many wait, under the lock.
    fn note(&self, now: usize) {
        let before = self.len.swap(now, Ordering::AcqRel);
        shift!("keep_idempotency_backlog", now as f64 - before as f64);
    }

    /// Resolves at the next change.
    pub(super) fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// Returns how the run ended whose end waits to be stored under `id`, and whose payload it is.
    pub(super) fn end(&self, id: &RecordId) -> Option<(Fingerprint, Waiting)> {
        if self.len() == 0 {
            return None;
        }
        let state = self.state.lock();
        let item = state.items.get(id)?;
        if item.until <= SystemClock.now_micros() {
            return None;
        }
        let answer = match &item.job {
            Job::Complete(answer, _) => answer,
            Job::Undecided(fingerprint) => return Some((*fingerprint, Waiting::Undecided)),
            Job::Release => return None,
        };
        let content = answer.content.clone().into();
        let expires_at = Timestamp::from_millis(item.until / 1_000);
        let found = Found {
            content,
            expires_at,
        };
        Some((answer.fingerprint, Waiting::Answer(found)))
    }

    /// Goes on writing an answer until its `ttl` is over.
    pub(super) fn complete(
        self: &Arc<Self>,
        store: &Arc<dyn IdempotencyStore>,
        id: RecordId,
        nonce: Nonce,
        answer: Answer,
        ttl: Duration,
    ) {
        self.push(store, id, nonce, Job::Complete(answer, ttl), ttl);
    }

    /// Goes on releasing a claim until its lease is over.
    pub(super) fn release(
        self: &Arc<Self>,
        store: &Arc<dyn IdempotencyStore>,
        id: RecordId,
        nonce: Nonce,
        lease: Duration,
    ) {
        self.push(store, id, nonce, Job::Release, lease);
    }

    /// Goes on saying that an outcome is not known, for as long as the claim's record is kept.
    pub(super) fn leave_undecided(
        self: &Arc<Self>,
        store: &Arc<dyn IdempotencyStore>,
        id: RecordId,
        nonce: Nonce,
        fingerprint: Fingerprint,
        keep: Duration,
    ) {
        self.push(store, id, nonce, Job::Undecided(fingerprint), keep);
    }

    fn push(
        self: &Arc<Self>,
        store: &Arc<dyn IdempotencyStore>,
        id: RecordId,
        nonce: Nonce,
        job: Job,
        worth: Duration,
    ) {
        let worth = u64::try_from(worth.as_micros()).unwrap_or(u64::MAX);
        let until = SystemClock.now_micros().saturating_add(worth);
        let mut state = self.state.lock();
        state.remove(&id);
        state.insert(id, Item { nonce, job, until });
        let starts = !std::mem::replace(&mut state.works, true);
        self.note(state.items.len());
        drop(state);
        if !starts {
            return;
        }
        let (backlog, store) = (Arc::clone(self), Arc::clone(store));
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(async move { backlog.work(&*store).await })),
            Err(_) => self.state.lock().works = false,
        }
    }

    /// Tries the oldest first; while the store is away, all wait together, 1 to 30 s.
    async fn work(self: &Arc<Self>, store: &dyn IdempotencyStore) {
        let mut working = Working {
            backlog: self,
            rests: false,
        };
        let mut pause = Duration::from_secs(1);
        loop {
            tokio::time::sleep(jitter(pause)).await;
            pause = (pause * 2).min(Duration::from_secs(30));
            let mut refused = 0;
            while let Some((id, item)) = self.oldest() {
                if SystemClock.now_micros() < item.until {
                    match attempt_caught(store, &id, &item).await {
                        Ok(()) => {}
                        Err(error) if no_room(&error) && self.shrink(&id, item.nonce) => continue,
                        // The store is there, but not for this one: the others go first from now on.
                        Err(error) if !error.is_unknown() && refused < self.len() => {
                            refused += 1;
                            self.put_off(&id);
                            continue;
                        }
                        Err(_) => break,
                    }
                    pause = Duration::from_secs(1);
                }
                self.done(&id, item.nonce);
            }
            if self.rests() {
                working.rests = true;
                return;
            }
        }
    }

    fn oldest(&self) -> Option<(RecordId, Item)> {
        let state = self.state.lock();
        let id = *state.order.front()?;
        Some((id, state.items.get(&id)?.clone()))
    }

    fn shrink(&self, id: &RecordId, nonce: Nonce) -> bool {
        let mut state = self.state.lock();
        let item = state.items.get(id).filter(|item| item.nonce == nonce);
        let Some(mut item) = item.cloned() else {
            return false;
        };
        let shrinks = item.job.shrink();
        if shrinks {
            state.remove(id);
            state.order.push_front(*id);
            state.items.insert(*id, item);
        }
        shrinks
    }

    fn put_off(&self, id: &RecordId) {
        let mut state = self.state.lock();
        if state.order.front() == Some(id) {
            state.order.rotate_left(1);
        }
    }

    fn done(&self, id: &RecordId, nonce: Nonce) {
        let mut state = self.state.lock();
        if state.items.get(id).is_some_and(|item| item.nonce == nonce) {
            state.remove(id);
        }
        self.note(state.items.len());
        drop(state);
        self.changed.notify_waiters();
    }

    /// Ends the task where nothing is left.
    fn rests(&self) -> bool {
        let mut state = self.state.lock();
        state.works = !state.items.is_empty();
        !state.works
    }
}

/// The task at work. Gone in the middle (its runtime has ended), the next item starts another.
struct Working<'a> {
    backlog: &'a Backlog,
    rests: bool,
}

impl Drop for Working<'_> {
    fn drop(&mut self) {
        if !self.rests {
            self.backlog.state.lock().works = false;
        }
    }
}

impl State {
    fn insert(&mut self, id: RecordId, mut item: Item) {
        if let Some(bytes) = item.job.bytes() {
            if self.answers >= ANSWERS || self.bytes + bytes > ANSWER_BYTES {
                item.job.shrink();
            } else {
                self.answers += 1;
                self.bytes += bytes;
            }
        }
        if self.items.len() >= ITEMS
            && let Some(oldest) = self.order.front().copied()
        {
            self.remove(&oldest);
            count!("keep_idempotency_backlog_dropped_total", 1);
            error!(record = %oldest, "idempotency: the backlog is full, an unrecorded run was dropped");
        }
        self.order.push_back(id);
        self.items.insert(id, item);
    }

    fn remove(&mut self, id: &RecordId) {
        let Some(item) = self.items.remove(id) else {
            return;
        };
        if let Some(bytes) = item.job.bytes() {
            self.answers -= 1;
            self.bytes -= bytes;
        }
        if self.order.front() == Some(id) {
            self.order.pop_front();
        } else {
            self.order.retain(|own| own != id);
        }
    }
}

pub(super) fn no_room(error: &StoreError) -> bool {
    matches!(
        error.kind(),
        StoreErrorKind::TooLarge | StoreErrorKind::Full
    )
}

/// Tries once; a store that panics at one item has refused it, and the others go on.
async fn attempt_caught(
    store: &dyn IdempotencyStore,
    id: &RecordId,
    item: &Item,
) -> Result<(), StoreError> {
    let mut trying = pin!(attempt(store, id, item));
    match poll_fn(|cx| poll_caught(trying.as_mut(), cx)).await {
        Ended::Done(done) => done,
        Ended::Panicked(_) | Ended::OverLimit => {
            error!(record = %id, "idempotency: the store panicked");
            Err(StoreErrorKind::Failed.into())
        }
    }
}

/// Tries once; whoever owns the key by now, the matter is settled.
async fn attempt(
    store: &dyn IdempotencyStore,
    id: &RecordId,
    item: &Item,
) -> Result<(), StoreError> {
    match &item.job {
        Job::Complete(answer, ttl) => store
            .complete(id, item.nonce, answer.clone(), *ttl)
            .await
            .map(drop),
        Job::Release => store.release(id, item.nonce).await.map(drop),
        Job::Undecided(_) => store
            .renew(id, item.nonce, Duration::ZERO, LeaseEnd::Indeterminate)
            .await
            .map(drop),
    }
}

#[cfg(test)]
mod tests;
