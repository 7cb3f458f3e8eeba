//! What every store of locks promises, and random histories against a model of one line per key.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::core::{Clock, IntoKey, ManualClock};
use crate::data::lock::store::{Acquired, Asking, Fence, LockKey, LockStore, Owned, Owner};

const LEASE: Duration = Duration::from_secs(30);
const INSTANT: Duration = Duration::from_millis(1);

/// Runs the whole suite. `store` must be empty and tell the time of `clock`.
///
/// # Panics
/// When the store breaks a promise of [`LockStore`].
pub async fn lock(store: Arc<dyn LockStore>, clock: &ManualClock) {
    let suite = Suite {
        store,
        clock: clock.clone(),
    };
    suite.one_holder_at_a_time_until_exactly_its_end().await;
    suite.a_stranger_neither_extends_nor_releases().await;
    suite.fences_rise_over_release_and_expiry().await;
    suite.a_repeat_by_the_same_owner_is_harmless().await;
    suite.a_late_owner_changes_nothing().await;
    suite.keys_and_names_are_apart().await;
    suite.a_release_is_told_to_those_who_wait().await;
    suite.of_a_hundred_at_once_one_gets_it().await;
    for seed in 0..6 {
        suite.histories_follow_from_the_facts(seed).await;
    }
}

struct Suite {
    store: Arc<dyn LockStore>,
    clock: ManualClock,
}

fn key(of: &str) -> LockKey {
    LockKey {
        name: Arc::from("suite"),
        key: of.into_key(),
    }
}

fn owner(of: u8) -> Owner {
    Owner([of; 16])
}

#[allow(clippy::panic, clippy::unwrap_used)]
impl Suite {
    async fn acquire(&self, key: &LockKey, owner: Owner) -> Acquired {
        let answer = self.store.acquire(key, owner, LEASE, Asking::Once);
        answer.await.unwrap()
    }

    #[track_caller]
    fn fence(answer: Acquired) -> Fence {
        match answer {
            Acquired::Granted(fence) => fence,
            busy => panic!("not granted: {busy:?}"),
        }
    }

    async fn one_holder_at_a_time_until_exactly_its_end(&self) {
        let key = key("one");
        assert_eq!(self.store.inspect(&key).await.unwrap(), None);
        let first = Self::fence(self.acquire(&key, owner(1)).await);
        let busy = Acquired::Busy { left: LEASE };
        assert_eq!(self.acquire(&key, owner(2)).await, busy);
        self.clock.advance(LEASE - INSTANT);
        let busy = Acquired::Busy { left: INSTANT };
        assert_eq!(self.acquire(&key, owner(2)).await, busy);
        let held = self.store.inspect(&key).await.unwrap().unwrap();
        assert_eq!((held.fence, held.left), (first, INSTANT));
        self.clock.advance(INSTANT);
        assert_eq!(self.store.inspect(&key).await.unwrap(), None);
        assert!(Self::fence(self.acquire(&key, owner(2)).await) > first);
    }

    async fn a_stranger_neither_extends_nor_releases(&self) {
        let key = key("stranger");
        Self::fence(self.acquire(&key, owner(1)).await);
        let store = &self.store;
        assert_eq!(
            store.extend(&key, owner(2), LEASE).await.unwrap(),
            Owned::Lost
        );
        assert_eq!(store.release(&key, owner(2)).await.unwrap(), Owned::Lost);
        let busy = Acquired::Busy { left: LEASE };
        assert_eq!(self.acquire(&key, owner(3)).await, busy);
    }

    async fn fences_rise_over_release_and_expiry(&self) {
        let (key, mut last) = (key("fences"), Fence(0));
        for turn in 0..8 {
            let fence = Self::fence(self.acquire(&key, owner(turn)).await);
            assert!(fence > last, "{fence:?} after {last:?}");
            last = fence;
            if turn % 2 == 0 {
                let released = self.store.release(&key, owner(turn)).await.unwrap();
                assert_eq!(released, Owned::Yes);
            } else {
                self.clock.advance(LEASE);
            }
        }
    }

    async fn a_repeat_by_the_same_owner_is_harmless(&self) {
        let (key, store) = (key("repeat"), &self.store);
        let fence = Self::fence(self.acquire(&key, owner(1)).await);
        self.clock.advance(LEASE / 2);
        assert_eq!(self.acquire(&key, owner(1)).await, Acquired::Granted(fence));
        assert_eq!(store.inspect(&key).await.unwrap().unwrap().left, LEASE);
        for _ in 0..2 {
            assert_eq!(
                store.extend(&key, owner(1), LEASE).await.unwrap(),
                Owned::Yes
            );
        }
        assert_eq!(store.release(&key, owner(1)).await.unwrap(), Owned::Yes);
        let next = Self::fence(self.acquire(&key, owner(2)).await);
        assert!(next > fence);
        assert_eq!(store.release(&key, owner(1)).await.unwrap(), Owned::Lost);
        assert_eq!(store.inspect(&key).await.unwrap().unwrap().fence, next);
    }

    async fn a_late_owner_changes_nothing(&self) {
        let (key, store) = (key("late"), &self.store);
        Self::fence(self.acquire(&key, owner(1)).await);
        self.clock.advance(LEASE);
        assert_eq!(
            store.extend(&key, owner(1), LEASE).await.unwrap(),
            Owned::Lost
        );
        assert_eq!(store.release(&key, owner(1)).await.unwrap(), Owned::Lost);
        let fence = Self::fence(self.acquire(&key, owner(2)).await);
        assert_eq!(
            store.extend(&key, owner(1), LEASE).await.unwrap(),
            Owned::Lost
        );
        assert_eq!(store.release(&key, owner(1)).await.unwrap(), Owned::Lost);
        assert_eq!(store.inspect(&key).await.unwrap().unwrap().fence, fence);
    }

    async fn keys_and_names_are_apart(&self) {
        let other = LockKey {
            name: Arc::from("other"),
            key: "apart".into_key(),
        };
        for key in [key("apart"), key("apart2"), other] {
            Self::fence(self.acquire(&key, owner(1)).await);
        }
    }

    async fn a_release_is_told_to_those_who_wait(&self) {
        let (key, store) = (key("told"), &self.store);
        Self::fence(self.acquire(&key, owner(1)).await);
        let told = Arc::new(tokio::sync::Semaphore::new(0));
        let listening = store.subscribe(&key, super::bell(&told)).await.unwrap();
        let waiting = store.acquire(&key, owner(2), LEASE, Asking::Waiting);
        assert_eq!(waiting.await.unwrap(), Acquired::Busy { left: LEASE });
        assert_eq!(store.release(&key, owner(1)).await.unwrap(), Owned::Yes);
        let heard = tokio::time::timeout(Duration::from_secs(10), told.acquire());
        assert!(heard.await.is_ok(), "nobody told");
        drop(listening);
    }

    async fn of_a_hundred_at_once_one_gets_it(&self) {
        assert_eq!(
            winners_of(100, &[Arc::clone(&self.store)], "hundred").await,
            1
        );
    }

    /// Random steps of three owners on two keys, against a table of who holds what until when.
    async fn histories_follow_from_the_facts(&self, seed: u64) {
        let mut dice = super::Dice::new(seed);
        let mut held: HashMap<u64, (u8, u64, Fence)> = HashMap::new();
        let mut last: HashMap<u64, Fence> = HashMap::new();
        for step in 0..300 {
            let (place, who) = (dice.below(2), dice.below(3) as u8);
            let key = key(&format!("history {seed} {place}"));
            let lease = Duration::from_millis(1 + dice.below(2_000));
            let now = self.clock.now_micros() / 1_000;
            let end = now + lease.as_millis() as u64;
            let holder = held.get(&place).copied().filter(|(_, end, _)| now < *end);
            let mine = holder.filter(|(holder, ..)| *holder == who);
            match dice.below(5) {
                0 | 1 => {
                    let answer = self.store.acquire(&key, owner(who), lease, Asking::Once);
                    match (answer.await.unwrap(), holder) {
                        (Acquired::Granted(fence), None) => {
                            let last = last.insert(place, fence);
                            assert!(last.is_none_or(|last| last < fence), "step {step}");
                            held.insert(place, (who, end, fence));
                        }
                        (Acquired::Granted(fence), Some((holder, _, same))) => {
                            assert_eq!((holder, same), (who, fence), "step {step}");
                            held.insert(place, (who, end, fence));
                        }
                        (Acquired::Busy { left }, Some((holder, end, _))) => {
                            assert_ne!(holder, who, "step {step}");
                            assert_eq!(left.as_millis() as u64, end - now, "step {step}");
                        }
                        (busy, None) => panic!("step {step}: {busy:?} though free"),
                    }
                }
                2 => {
                    let extended = self.store.extend(&key, owner(who), lease).await.unwrap();
                    assert_eq!(extended == Owned::Yes, mine.is_some(), "step {step}");
                    if let Some((who, _, fence)) = mine {
                        held.insert(place, (who, end, fence));
                    }
                }
                3 if mine.is_some() || holder.is_some() => {
                    let released = self.store.release(&key, owner(who)).await.unwrap();
                    assert_eq!(released == Owned::Yes, mine.is_some(), "step {step}");
                    if mine.is_some() {
                        held.remove(&place);
                    }
                }
                _ => self.clock.advance(Duration::from_millis(dice.below(1_500))),
            }
        }
    }
}

/// Lets `parallel` owners ask for one fresh lock over all `stores` at once; returns how many got it.
///
/// # Panics
/// When a store fails.
pub async fn winners_of(parallel: usize, stores: &[Arc<dyn LockStore>], of: &str) -> usize {
    let won = Arc::new(AtomicUsize::new(0));
    let mut calls = tokio::task::JoinSet::new();
    for index in 0..parallel {
        let (store, won) = (Arc::clone(&stores[index % stores.len()]), Arc::clone(&won));
        let (key, owner) = (key(of), Owner((index as u128).to_be_bytes()));
        calls.spawn(async move {
            let answer = store.acquire(&key, owner, LEASE, Asking::Once).await;
            if let Ok(Acquired::Granted(_)) = answer {
                won.fetch_add(1, Ordering::SeqCst);
            }
        });
    }
    while calls.join_next().await.is_some() {}
    won.load(Ordering::SeqCst)
}
