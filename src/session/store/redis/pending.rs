//! Revocations that failed: sent again before any other call for the same sessions gets through.
//!
//! Each is owed to one home, everyone's end on a Cluster to each of them. Whoever comes for a home sends what is owed to it
//! first, and nobody waits for another home.

use std::collections::{HashSet, VecDeque};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::super::{EndedSession, NotLive, Revoked, Target, Whose};
use super::holders::Holders;
use super::{HOMES, MadeUp, cut_off, send_revoke};
use crate::backend::redis::RedisStore;
use crate::core::telemetry::{count, error, gauge, info, seldom, warn};
use crate::core::{Raised, StoreError, StoreErrorKind, StoreFuture, Timestamp, monotonic};

/// The most that are remembered; then the oldest goes, first of those of whom nobody knows whether they ever were.
const MOST: usize = 10_000;

/// What one handle and its clones still have to send.
#[derive(Debug, Default)]
pub(super) struct Pending {
    queue: Mutex<Queue>,
    len: AtomicUsize,
    is_working: Arc<AtomicBool>,
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
    /// Where all lies that it is to end; `None` is everywhere, on a single server.
    home: Option<u16>,
    /// What is meant where the session that asked is over.
    without_asking: Option<Target>,
    /// Who asked is believed if it was live when it asked first; what began after it asked last is left alone.
    first: Asked,
    last: Asked,
    /// One at a time sends what is owed to this home.
    turn: Arc<tokio::sync::Mutex<()>>,
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
        let ago = || {
            Some(MadeUp {
                last: self.last.ago(store),
                first: self.first.ago(store),
            })
        };
        let done = match (&self.target, self.home) {
            (Target::Everyone, Some(home)) => cut_off(store, home..home + 1, ago()),
            (target, _) => send_revoke(store, target.clone(), ago()),
        };
        let done = done.await?;
        match (done.answer, &self.without_asking) {
            (Some(Revoked::Done(ended)), _) => made_up_for(&ended),
            // It was done, and nobody had heard of it.
            (Some(Revoked::NotLive(NotLive::Ended(_))), None) => {}
            _ if done.is_unproven => {
                warn!("a revocation is not made up for: whoever asked for it was over by then");
            }
            // Nothing says that it had the right secret.
            (None, _) => {
                warn!("a revocation is not made up for: a newer version wrote the session");
            }
            (_, Some(target)) => {
                let done = send_revoke(store, target.clone(), ago()).await?;
                if let Some(Revoked::Done(ended)) = done.answer {
                    made_up_for(&ended);
                }
            }
            (Some(_), None) => {
                warn!("a revocation is not made up for: nobody knows whose session asked for it");
            }
        }
        Ok(())
    }
}

/// Says whether a session asks of which nothing is known here.
const fn nobody_knows(target: &Target, without_asking: Option<&Target>) -> bool {
    let asks = match target {
        Target::Own(..) | Target::Others(_) => true,
        Target::One(whose, _) | Target::All(whose) => matches!(whose, Whose::Session(_)),
        Target::Everyone => false,
    };
    asks && without_asking.is_none()
}

/// Nobody waits for it any more: it is counted and logged.
fn made_up_for(ended: &[EndedSession]) {
    for EndedSession { id, user, cause } in ended {
        count!("keep_session_ended_total", 1, "cause" => cause.as_str());
        info!(session = ?id, ?user, cause = cause.as_str(), "ended after an outage");
        let _ = (id, user, cause);
    }
}

impl Queue {
    fn owe(&mut self, home: Option<u16>, asking: Asking) {
        let mut same_home = self.owed.iter().filter(|owed| owed.home == home);
        let turn = same_home.next().map(|owed| Arc::clone(&owed.turn));
        // Asked again, it is meant for what began in between, too; and the one that is being sent is not the last word.
        let same = |owed: &Owed| owed.home == home && owed.target == asking.target;
        let known = self.owed.iter().position(same);
        let before = known.and_then(|at| self.owed.remove(at));
        if self.owed.len() == MOST {
            // Anybody can ask under tokens that never were: those go first, and displace nobody.
            let is_stranger =
                |owed: &Owed| nobody_knows(&owed.target, owed.without_asking.as_ref());
            let stranger = self.owed.iter().position(is_stranger);
            let is_kept = match stranger {
                Some(at) => self.owed.remove(at).is_some(),
                None if nobody_knows(&asking.target, asking.without_asking.as_ref()) => false,
                None => self.owed.pop_front().is_some(),
            };
            count!("keep_session_pending_revocations_dropped_total", 1);
            error!("too many revocations wait for the store, one is given up");
            if !is_kept {
                return;
            }
        }
        let first = before.as_ref().map_or(asking.at, |before| before.first);
        let number = self.next;
        self.next += 1;
        self.owed.push_back(Owed {
            number,
            home,
            target: asking.target,
            without_asking: asking.without_asking.or_else(|| before?.without_asking),
            first,
            last: asking.at,
            turn: turn.unwrap_or_default(),
        });
    }
}

impl Pending {
    fn of(store: &RedisStore) -> Arc<Self> {
        store.beside(Self::default)
    }

    fn remember(&self, is_cluster: bool, asking: Asking) {
        let mut queue = self.queue.lock();
        match home_of(&asking.target) {
            None if is_cluster => {
                for home in 0..HOMES {
                    queue.owe(Some(home), asking.clone());
                }
            }
            home => queue.owe(home, asking),
        }
        self.counted(&queue);
    }

    fn owes(&self, number: u64) -> bool {
        let queue = self.queue.lock();
        queue.owed.iter().any(|owed| owed.number == number)
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

    /// The oldest one from `from` on that one of these homes has to wait for.
    fn first(&self, from: u64, is_meant: impl Fn(u16) -> bool) -> Option<Owed> {
        let queue = self.queue.lock();
        let mut later = queue.owed.iter().filter(|owed| owed.number >= from);
        later.find(|owed| owed.home.is_none_or(&is_meant)).cloned()
    }

    /// Says whether nobody of `homes` has to wait, so that they wait for no turn either: others may be long at theirs.
    fn owes_nothing_to(&self, homes: Option<[u16; 2]>) -> bool {
        self.is_empty() || self.first(0, |home| concerns(homes, home)).is_none()
    }

    /// Sends what is pending for `homes`, of each in order; one that does not answer holds up no other.
    ///
    /// What the store refuses stays, since refusals pass (no memory, no disk, no right): nobody who was logged out
    /// comes back meanwhile. Dropping it: what was confirmed is forgotten, the rest stays.
    async fn send(&self, store: &RedisStore, homes: Option<[u16; 2]>) -> Result<(), StoreError> {
        let (mut from, mut silent, mut failed) = (0, HashSet::new(), None);
        let is_meant = |home, silent: &HashSet<_>| concerns(homes, home) && !silent.contains(&home);
        while let Some(owed) = self.first(from, |home| is_meant(home, &silent)) {
            let (number, home) = (owed.number, owed.home);
            from = number + 1;
            let turn = Arc::clone(&owed.turn);
            let _turn = turn.lock().await;
            if !self.owes(number) {
                // Somebody else has sent it.
                continue;
            }
            match owed.send(store).await {
                Ok(()) => self.forget(number),
                // All homes are this server's.
                Err(error) if error.is_unknown() && !store.is_cluster() => return Err(error),
                Err(error) => {
                    if error.is_unknown() {
                        silent.extend(home);
                    }
                    failed.get_or_insert(error);
                }
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Sends what is pending as soon as the store is back, also where nobody asks for sessions.
    fn work(self: &Arc<Self>, store: &RedisStore) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        let Some(working) = Raised::raise(&self.is_working) else {
            return;
        };
        let (me, store) = (Arc::clone(self), store.clone());
        runtime.spawn(async move {
            while let Err(error) = me.send(&store, None).await {
                if !error.is_unknown() {
                    seldom!(
                        error,
                        "the store refuses a revocation that is pending: {error}"
                    );
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

fn concerns(homes: Option<[u16; 2]>, home: u16) -> bool {
    homes.is_none_or(|homes| homes.contains(&home))
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
    let pending = Pending::of(store);
    let asking = Asking {
        // Now: by the time it has failed somebody else's secret may be known here.
        without_asking: Holders::of(store).without_asking(&target),
        target: target.clone(),
        at: Asked::now(store),
    };
    let store = store.clone();
    StoreFuture::boxed(async move {
        let mut unsure = Unsure {
            pending,
            store,
            asking: Some(asking),
        };
        let (store, pending) = (&unsure.store, &unsure.pending);
        let homes = home_of(&target).map(|home| [home, home]);
        if !pending.owes_nothing_to(homes) {
            in_time(store, pending.send(store, homes)).await?;
        }
        let answer = send_revoke(store, target, None).await?.answer;
        // What was refused is owed, too: no memory, no disk and no right are states that pass.
        unsure.asking = None;
        answer.ok_or_else(|| {
            let why = "a newer version wrote this session";
            StoreError::with_source(StoreErrorKind::Failed, why)
        })
    })
}

/// A revocation as it was asked for.
#[derive(Clone)]
struct Asking {
    target: Target,
    without_asking: Option<Target>,
    at: Asked,
}

/// Remembers it on drop, unless it was done.
struct Unsure {
    pending: Arc<Pending>,
    store: RedisStore,
    asking: Option<Asking>,
}

impl Drop for Unsure {
    fn drop(&mut self) {
        if let Some(asking) = self.asking.take() {
            self.pending.remember(self.store.is_cluster(), asking);
            self.pending.work(&self.store);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::store::{EndCause, SessionId, SessionRef, UserId, Verifier};

    #[test]
    fn only_so_many_are_remembered_and_then_the_oldest_goes() {
        let (pending, user) = (Pending::default(), UserId::try_new("u").unwrap());
        let asking = |target: &Target| Asking {
            target: target.clone(),
            without_asking: None,
            at: Asked {
                clock: None,
                began: monotonic(),
            },
        };
        let one = |_| Target::One(Whose::User(user.clone()), SessionId::draw(None).unwrap());
        let targets: Vec<_> = (0..MOST + 2).map(one).collect();
        for target in &targets {
            pending.remember(false, asking(target));
        }
        let first = pending.first(0, |_| true).unwrap();
        assert_eq!(first.target, targets[2]);
        // One that is owed already counts once, as it was asked last; its earlier sending settles nothing.
        pending.remember(false, asking(&targets[2]));
        pending.forget(first.number);
        assert_eq!(pending.len.load(Ordering::SeqCst), MOST);
        assert_eq!(pending.first(0, |_| true).unwrap().target, targets[3]);
        let last = pending.queue.lock().owed.back().cloned().unwrap();
        assert_eq!(last.target, targets[2]);
    }

    #[test]
    fn askers_whom_nobody_knows_displace_nobody() {
        let (pending, user) = (Pending::default(), UserId::try_new("u").unwrap());
        let remember = |target: Target| {
            let at = Asked {
                clock: None,
                began: monotonic(),
            };
            let asking = Asking {
                target,
                without_asking: None,
                at,
            };
            pending.remember(false, asking);
        };
        let all = Target::All(Whose::User(user.clone()));
        let stranger = || {
            let at = SessionRef {
                id: SessionId::draw(None).unwrap(),
                verifier: Verifier::from_bytes([7; 32]),
            };
            Target::Own(at, EndCause::Logout)
        };
        remember(all.clone());
        for _ in 0..MOST + 9 {
            remember(stranger());
        }
        let first = pending.first(0, |_| true).unwrap();
        assert_eq!(
            (first.target, pending.len.load(Ordering::SeqCst)),
            (all, MOST)
        );
        for _ in 0..MOST {
            let id = SessionId::draw(None).unwrap();
            remember(Target::One(Whose::User(user.clone()), id));
        }
        let last = stranger();
        remember(last.clone());
        let queue = pending.queue.lock();
        assert!(queue.owed.iter().all(|owed| owed.target != last));
        assert_eq!(queue.owed.len(), MOST);
    }
}
