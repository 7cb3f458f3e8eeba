//! Revocations that failed: sent again before any other call for the same sessions gets through.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::super::{Revoked, Target};
use super::holders::Holders;
use super::send_revoke;
use crate::backend::redis::RedisStore;
use crate::core::telemetry::{count, error, gauge, warn};
use crate::core::{StoreError, StoreErrorKind, StoreFuture, Timestamp, monotonic};

/// The most that are remembered; then the oldest goes.
const MOST: usize = 10_000;

/// What one handle and its clones still have to send. All sessions that a target can end lie in its home, so only
/// calls for that home have to wait for it.
#[derive(Debug, Default)]
pub(super) struct Pending {
    queue: Mutex<Queue>,
    len: AtomicUsize,
    /// One at a time sends what is pending.
    turn: tokio::sync::Mutex<()>,
    is_working: AtomicBool,
}

#[derive(Debug, Default)]
struct Queue {
    next: u64,
    owed: VecDeque<Owed>,
}

/// A revocation that failed.
#[derive(Clone, Debug)]
struct Owed {
    number: u64,
    target: Target,
    /// Where all lies that it can end.
    home: Option<u16>,
    /// What is meant where the session that asked is over.
    without_asking: Option<Target>,
    asked: Asked,
}

/// When it was asked for, by the clock that the store goes by.
#[derive(Clone, Copy, Debug)]
struct Asked {
    clock: Option<Timestamp>,
    began: tokio::time::Instant,
}

impl Asked {
    fn now(store: &RedisStore) -> Self {
        Self {
            clock: store.clock().map(|clock| Timestamp::of(&*clock)),
            began: monotonic(),
        }
    }

    fn ago(self, store: &RedisStore) -> Duration {
        match (self.clock, store.clock()) {
            (Some(asked), Some(clock)) => Timestamp::of(&*clock).since(asked),
            _ => self.began.elapsed(),
        }
    }
}

impl Owed {
    /// Makes up for it: what began since is left alone, and nobody who had ended before it asked is believed.
    async fn send(self, store: &RedisStore) -> Result<(), StoreError> {
        let ago = self.asked.ago(store);
        let done = send_revoke(store, self.target, Some(ago)).await?;
        match (done.answer, self.without_asking) {
            (Some(Revoked::Done(_)), _) | (_, None) => {}
            _ if done.is_unproven => {
                warn!("a revocation is not made up for: whoever asked for it was over by then");
            }
            (_, Some(target)) => {
                let ago = self.asked.ago(store);
                send_revoke(store, target, Some(ago)).await?;
            }
        }
        Ok(())
    }
}

impl Pending {
    fn of(store: &RedisStore) -> Arc<Self> {
        store.beside(Self::default)
    }

    fn remember(&self, target: Target, without_asking: Option<Target>, asked: Asked) {
        let mut queue = self.queue.lock();
        // Asked again, it is meant for what began in between, too; and the one that is being sent is not the last word.
        let same = |owed: &Owed| owed.target == target;
        let known = queue.owed.iter().position(same);
        let before = known.and_then(|at| queue.owed.remove(at)?.without_asking);
        if queue.owed.len() == MOST {
            queue.owed.pop_front();
            count!("keep_session_pending_revocations_dropped_total", 1);
            error!("too many revocations wait for the store, the oldest is given up");
        }
        let number = queue.next;
        queue.next += 1;
        queue.owed.push_back(Owed {
            number,
            home: home_of(&target),
            target,
            without_asking: without_asking.or(before),
            asked,
        });
        self.counted(&queue);
    }

    fn forget(&self, number: u64) {
        let mut queue = self.queue.lock();
        queue.owed.retain(|owed| owed.number != number);
        self.counted(&queue);
    }

    fn counted(&self, queue: &Queue) {
        self.len.store(queue.owed.len(), Ordering::SeqCst);
        gauge!("keep_session_pending_revocations", queue.owed.len() as f64);
    }

    fn is_empty(&self) -> bool {
        self.len.load(Ordering::SeqCst) == 0
    }

    /// The oldest one from `from` on that one of `homes` has to wait for; `None` for all.
    fn first(&self, from: u64, homes: Option<[u16; 2]>) -> Option<Owed> {
        let concerns = |owed: &&Owed| match (homes, owed.home) {
            (Some(homes), Some(home)) => homes.contains(&home),
            _ => true,
        };
        let queue = self.queue.lock();
        let mut later = queue.owed.iter().filter(|owed| owed.number >= from);
        later.find(concerns).cloned()
    }

    /// Says whether nobody of `homes` has to wait, so that they wait for no turn either: others may be long at theirs.
    fn owes_nothing_to(&self, homes: Option<[u16; 2]>) -> bool {
        self.is_empty() || self.first(0, homes).is_none()
    }

    /// Sends what is pending for `homes`, in order.
    ///
    /// What the store refuses stays, since refusals pass (no memory, no disk, no right): nobody who was logged out
    /// comes back meanwhile. Dropping it: what was confirmed is forgotten, the rest stays.
    async fn send(&self, store: &RedisStore, homes: Option<[u16; 2]>) -> Result<(), StoreError> {
        let _turn = self.turn.lock().await;
        let (mut from, mut refused) = (0, None);
        while let Some(owed) = self.first(from, homes) {
            let number = owed.number;
            match owed.send(store).await {
                Ok(()) => self.forget(number),
                Err(error) if error.is_unknown() => return Err(error),
                Err(error) => refused = Some(error),
            }
            from = number + 1;
        }
        refused.map_or(Ok(()), Err)
    }

    /// Sends what is pending as soon as the store is back, also where nobody asks for sessions.
    fn work(self: &Arc<Self>, store: &RedisStore) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        if self.is_working.swap(true, Ordering::SeqCst) {
            return;
        }
        let (me, store) = (Arc::clone(self), store.clone());
        runtime.spawn(async move {
            let working = Working(Arc::clone(&me));
            while let Err(error) = me.send(&store, None).await {
                if !error.is_unknown() {
                    error!("the store refuses a revocation that is pending: {error}");
                }
                tokio::time::sleep(Duration::from_secs(error.retry_after_secs())).await;
            }
            drop(working);
            if !me.is_empty() {
                // Remembered after the last look: whoever did it found somebody at work.
                me.work(&store);
            }
        });
    }
}

/// Lets the next one work, also where the runtime drops the task.
struct Working(Arc<Pending>);

impl Drop for Working {
    fn drop(&mut self) {
        self.0.is_working.store(false, Ordering::SeqCst);
    }
}

/// Where the sessions lie that `target` ends; `None` is everywhere.
fn home_of(target: &Target) -> Option<u16> {
    match target {
        Target::Own(at, _) | Target::Others(at) => Some(at.id.home()),
        Target::One(whose, _) | Target::All(whose) => Some(super::home_of(whose)),
        Target::Everyone => None,
    }
}

/// Says whether anything is pending.
pub(super) fn has_any(store: &RedisStore) -> bool {
    !Pending::of(store).is_empty()
}

/// Lets `step` go when nothing is pending for its homes; makes way for that first otherwise.
pub(super) fn after_pending<T: Send + 'static>(
    store: &RedisStore,
    homes: [u16; 2],
    step: impl FnOnce(&RedisStore) -> StoreFuture<T> + Send + 'static,
) -> StoreFuture<T> {
    let pending = Pending::of(store);
    if pending.owes_nothing_to(Some(homes)) {
        return step(store);
    }
    let store = store.clone();
    StoreFuture::boxed(async move {
        let sent = pending.send(&store, Some(homes));
        in_time(&store, sent).await?;
        step(&store).await
    })
}

async fn in_time<T>(
    store: &RedisStore,
    sent: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let waited = tokio::time::timeout(store.timeout(), sent).await;
    waited.unwrap_or_else(|_elapsed| Err(StoreError::new(StoreErrorKind::TimedOut)))
}

/// Sends a revocation; where it fails it is remembered, also when the caller goes away.
pub(super) fn revoke(store: &RedisStore, target: Target) -> StoreFuture<Revoked> {
    let (pending, asked) = (Pending::of(store), Asked::now(store));
    let store = store.clone();
    StoreFuture::boxed(async move {
        let mut unsure = Unsure {
            pending,
            store,
            target: Some(target.clone()),
            asked,
        };
        let (store, pending) = (&unsure.store, &unsure.pending);
        let homes = home_of(&target).map(|home| [home, home]);
        if !pending.owes_nothing_to(homes) {
            in_time(store, pending.send(store, homes)).await?;
        }
        let answer = send_revoke(store, target, None).await?.answer;
        // What was refused is owed, too: no memory, no disk and no right are states that pass.
        unsure.target = None;
        answer.ok_or_else(|| {
            let why = "a newer version wrote this session";
            StoreError::with_source(StoreErrorKind::Failed, why)
        })
    })
}

/// Remembers its target on drop, unless it was done.
struct Unsure {
    pending: Arc<Pending>,
    store: RedisStore,
    target: Option<Target>,
    asked: Asked,
}

impl Drop for Unsure {
    fn drop(&mut self) {
        if let Some(target) = self.target.take() {
            let without_asking = Holders::of(&self.store).without_asking(&target);
            self.pending.remember(target, without_asking, self.asked);
            self.pending.work(&self.store);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::store::{SessionId, UserId, Whose};

    #[test]
    fn only_so_many_are_remembered_and_then_the_oldest_goes() {
        let (pending, user) = (Pending::default(), UserId::try_new("u").unwrap());
        let asked = Asked {
            clock: None,
            began: monotonic(),
        };
        let one = |_| Target::One(Whose::User(user.clone()), SessionId::draw(None).unwrap());
        let targets: Vec<_> = (0..MOST + 2).map(one).collect();
        for target in &targets {
            pending.remember(target.clone(), None, asked);
        }
        let first = pending.first(0, None).unwrap();
        assert_eq!(first.target, targets[2]);
        // One that is owed already counts once, as it was asked last; its earlier sending settles nothing.
        pending.remember(targets[2].clone(), None, asked);
        pending.forget(first.number);
        assert_eq!(pending.len.load(Ordering::SeqCst), MOST);
        assert_eq!(pending.first(0, None).unwrap().target, targets[3]);
        let last = pending.queue.lock().owed.back().cloned().unwrap();
        assert_eq!(last.target, targets[2]);
    }
}
