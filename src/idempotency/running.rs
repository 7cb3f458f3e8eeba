//! What this process knows of its own runs: how many, how long, and what is still to be stored.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::backlog::{Backlog, no_room};
use super::layer::Drained;
use super::policy::{LeaseEnd, ewma};
use super::record::{Answer, AnswerContent, Nonce, RecordId};
use super::run_state::RunState;
use super::seats::Table;
use super::store::{IdempotencyStore, Owned};
use super::together::succeeded;
#[cfg(feature = "metrics")]
use crate::core::telemetry::seconds;
use crate::core::telemetry::shift;
use crate::core::{StoreError, StoreFuture};

/// Renewals that a drain sends together.
const GIVEN_UP_AT_ONCE: usize = 64;
/// Background releases of claims whose reply was lost.
const RELEASES: usize = 256;

/// A run that takes its time, what the end of its lease means, and where it is told.
type OwnRun = (RecordId, LeaseEnd, Arc<RunState>);

/// All runs of one layer.
#[derive(Debug)]
pub(super) struct Runs {
    pub(super) table: Table,
    pub(super) backlog: Arc<Backlog>,
    mean_micros: AtomicU64,
    active: AtomicUsize,
    ended: AtomicUsize,
    quiet: Notify,
    releasing: AtomicUsize,
    /// How often a drain has given up what was left; moves under the lock of `listed`.
    given_up: AtomicU64,
    listed: Mutex<HashMap<[u8; 16], OwnRun>>,
}

impl Default for Runs {
    fn default() -> Self {
        Self {
            table: Table::default(),
            backlog: Arc::default(),
            mean_micros: AtomicU64::new(1_000_000),
            active: AtomicUsize::new(0),
            ended: AtomicUsize::new(0),
            quiet: Notify::new(),
            releasing: AtomicUsize::new(0),
            given_up: AtomicU64::new(0),
            listed: Mutex::default(),
        }
    }
}

/// What became of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    Yes,
    /// Another owns the key.
    Lost,
    /// The backlog goes on trying.
    Later,
}

impl Runs {
    /// Counts a run until its end.
    pub(super) fn enter(self: &Arc<Self>) -> Active {
        self.active.fetch_add(1, Ordering::Relaxed);
        shift!("keep_idempotency_running", 1.0);
        Active(Arc::clone(self))
    }

    pub(super) fn measured(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let mean = self.mean_micros.load(Ordering::Relaxed);
        self.mean_micros
            .store(ewma(mean, micros), Ordering::Relaxed);
    }

    pub(super) fn mean_run(&self) -> Duration {
        Duration::from_micros(self.mean_micros.load(Ordering::Relaxed))
    }

    /// Makes the state of a request that came now.
    pub(super) fn came(&self) -> RunState {
        RunState::of(self.given_up.load(Ordering::Acquire))
    }

    /// Says whether a drain has given up, since it came, whatever was left: it may start no run any more.
    pub(super) fn has_given_up(&self, state: &RunState) -> bool {
        self.given_up.load(Ordering::Acquire) != state.came()
    }

    /// Lists a run that takes its time, so that `drain` can give it up; one that began while it did so is given up here.
    pub(super) fn list(
        &self,
        (id, nonce): (RecordId, Nonce),
        end: LeaseEnd,
        state: &Arc<RunState>,
    ) -> Listed<'_> {
        let run = (id, end, Arc::clone(state));
        let mut listed = self.listed.lock();
        listed.insert(nonce.0, run);
        let is_late = self.has_given_up(state);
        drop(listed);
        if is_late {
            state.give_up();
        }
        Listed { runs: self, nonce }
    }

    /// Writes an answer: at once, again after 100 and 300 ms, then from the backlog. An answer too large becomes a tombstone.
    pub(super) async fn complete(
        &self,
        store: &Arc<dyn IdempotencyStore>,
        id: RecordId,
        nonce: Nonce,
        mut answer: Answer,
        ttl: Duration,
    ) -> (Written, AnswerContent) {
        let written = match self.write(store, id, nonce, &answer, ttl).await {
            Ok(owned) => Some(owned),
            // In a box: what succeeds at once pays for no room of what else there is to try.
            Err(error) => Box::pin(self.insist(store, id, nonce, (&mut answer, ttl), error)).await,
        };
        let written = match written {
            Some(Owned::Yes) => Written::Yes,
            Some(Owned::Lost) => Written::Lost,
            None => {
                self.backlog.complete(store, id, nonce, answer.clone(), ttl);
                Written::Later
            }
        };
        (written, answer.content)
    }

    /// After a failure: less, where there is no room; else again, twice, within a second.
    async fn insist(
        &self,
        store: &Arc<dyn IdempotencyStore>,
        id: RecordId,
        nonce: Nonce,
        (answer, ttl): (&mut Answer, Duration),
        error: StoreError,
    ) -> Option<Owned> {
        let first = shrink(store, id, nonce, (answer, ttl), Err(error)).await;
        if let Ok(owned) = first {
            return Some(owned);
        }
        let again = async {
            for pause in [100, 300] {
                tokio::time::sleep(Duration::from_millis(pause)).await;
                let written = self.write(store, id, nonce, answer, ttl).await;
                if let Ok(owned) = shrink(store, id, nonce, (answer, ttl), written).await {
                    return Some(owned);
                }
            }
            None
        };
        let again = tokio::time::timeout(Duration::from_millis(900), again).await;
        again.ok().flatten()
    }

    fn write(
        &self,
        store: &Arc<dyn IdempotencyStore>,
        id: RecordId,
        nonce: Nonce,
        answer: &Answer,
        ttl: Duration,
    ) -> Timed<Owned> {
        #[cfg(feature = "metrics")]
        seconds!(
            "keep_idempotency_answer_bytes",
            answer.content.weight() as f64
        );
        timed("complete", store.complete(&id, nonce, answer.clone(), ttl))
    }

    /// Releases a claim of which nobody knows whether it was won: up to three times, in the background.
    pub(super) fn release_later(
        self: &Arc<Self>,
        store: &Arc<dyn IdempotencyStore>,
        id: RecordId,
        nonce: Nonce,
    ) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        if self.releasing.fetch_add(1, Ordering::Relaxed) >= RELEASES {
            self.releasing.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        let (active, store) = (self.enter(), Arc::clone(store));
        runtime.spawn(async move {
            for pause in [50, 500, 2_000] {
                tokio::time::sleep(jitter(Duration::from_millis(pause))).await;
                if store.release(&id, nonce).await.is_ok() {
                    break;
                }
            }
            active.0.releasing.fetch_sub(1, Ordering::Relaxed);
        });
    }

    /// Gives up whatever runs, and whatever has come and does not run yet; returns the first.
    fn give_up(&self) -> Vec<([u8; 16], OwnRun)> {
        let listed = self.listed.lock();
        // What is not listed yet finds out by this.
        self.given_up.fetch_add(1, Ordering::AcqRel);
        let left = listed.iter().map(|(nonce, run)| (*nonce, run.clone()));
        let left: Vec<_> = left.collect();
        drop(listed);
        // All of them before a call to the store: their own next renewals must not undo it.
        for (_, (_, _, state)) in &left {
            state.give_up();
        }
        left
    }

    /// Waits until nothing runs and nothing is left to store; then gives the rest up.
    pub(super) async fn drain(&self, store: &dyn IdempotencyStore, limit: Duration) -> Drained {
        let before = self.ended.load(Ordering::Relaxed);
        let all_over = async {
            loop {
                let mut quiet = std::pin::pin!(self.quiet.notified());
                let mut stored = std::pin::pin!(self.backlog.changed());
                quiet.as_mut().enable();
                stored.as_mut().enable();
                if self.active.load(Ordering::Acquire) == 0 && self.backlog.len() == 0 {
                    return;
                }
                std::future::poll_fn(|cx| {
                    if quiet.as_mut().poll(cx).is_ready() {
                        return Poll::Ready(());
                    }
                    stored.as_mut().poll(cx)
                })
                .await;
            }
        };
        let in_time = tokio::time::timeout(limit, all_over).await.is_ok();
        let mut abandoned = 0;
        if !in_time {
            for some in self.give_up().chunks(GIVEN_UP_AT_ONCE) {
                let given = some.iter().map(|(nonce, (id, end, _))| {
                    Some(store.renew(id, Nonce(*nonce), Duration::ZERO, *end))
                });
                abandoned += succeeded(given.collect()).await;
            }
        }
        let finished = self.ended.load(Ordering::Relaxed).wrapping_sub(before);
        Drained {
            finished,
            abandoned,
        }
    }
}

/// Writes less and less of an answer for as long as it finds no room.
async fn shrink(
    store: &Arc<dyn IdempotencyStore>,
    id: RecordId,
    nonce: Nonce,
    (answer, ttl): (&mut Answer, Duration),
    mut written: Result<Owned, StoreError>,
) -> Result<Owned, StoreError> {
    while let Err(error) = &written
        && no_room(error)
        && let Some(less) = answer.content.shrunk()
    {
        answer.content = less;
        written = store.complete(&id, nonce, answer.clone(), ttl).await;
    }
    written
}

/// Measures a step of the store; without the feature it costs no look at a clock.
pub(super) fn timed<T>(op: &'static str, step: StoreFuture<T>) -> Timed<T> {
    Timed {
        step,
        op,
        #[cfg(feature = "metrics")]
        began: crate::core::monotonic(),
    }
}

/// A step that is measured.
pub(super) struct Timed<T> {
    step: StoreFuture<T>,
    op: &'static str,
    #[cfg(feature = "metrics")]
    began: tokio::time::Instant,
}

impl<T> Future for Timed<T> {
    type Output = Result<T, StoreError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = ready!(Pin::new(&mut self.step).poll(cx));
        #[cfg(feature = "metrics")]
        seconds!("keep_idempotency_store_seconds", self.began.elapsed(), "op" => self.op);
        #[cfg(not(feature = "metrics"))]
        let _ = self.op;
        Poll::Ready(answer)
    }
}

/// One run under way.
#[derive(Debug)]
pub(super) struct Active(Arc<Runs>);

impl Drop for Active {
    fn drop(&mut self) {
        shift!("keep_idempotency_running", -1.0);
        self.0.ended.fetch_add(1, Ordering::Relaxed);
        if self.0.active.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.quiet.notify_waiters();
        }
    }
}

/// One run on the list.
pub(super) struct Listed<'a> {
    runs: &'a Runs,
    nonce: Nonce,
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        self.runs.listed.lock().remove(&self.nonce.0);
    }
}

/// Moves `pause` by up to a fifth up or down, so that those who wait together do not ask together.
pub(super) fn jitter(pause: Duration) -> Duration {
    let share = getrandom::u32().map_or(0.5, |n| f64::from(n) / f64::from(u32::MAX));
    pause.mul_f64(0.8 + 0.4 * share)
}
