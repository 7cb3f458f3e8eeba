//! What every store of one-time values promises, and random histories against a model of one line per key.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;

use crate::core::ttl::Ttl;
use crate::core::{Clock, IntoKey, ManualClock, Timestamp};
use crate::data::once::store::{Expect, Keep, OnceKey, OnceStore, PutOutcome, SaveOutcome};

const TTL: Ttl = Ttl::secs(900);
const INSTANT: Duration = Duration::from_millis(1);

/// Runs the whole suite. `store` must be empty and tell the time of `clock`.
///
/// # Panics
/// When the store breaks a promise of [`OnceStore`].
pub async fn once(store: Arc<dyn OnceStore>, clock: &ManualClock) {
    let suite = Suite {
        store,
        clock: clock.clone(),
    };
    suite.a_value_is_there_until_exactly_its_end().await;
    suite.a_put_never_overwrites().await;
    suite.a_save_is_decided_by_version().await;
    suite.progress_ends_with_its_greatest_age().await;
    suite.what_was_removed_is_not_revived_by_a_save().await;
    assert_eq!(
        takers_of(20, &[Arc::clone(&suite.store)], "twenty").await,
        1
    );
    for seed in 0..6 {
        suite.histories_follow_from_the_facts(seed).await;
    }
}

struct Suite {
    store: Arc<dyn OnceStore>,
    clock: ManualClock,
}

fn key(of: &str) -> OnceKey {
    OnceKey {
        name: Arc::from("suite"),
        key: of.into_key(),
    }
}

fn value(of: &str) -> Bytes {
    Bytes::copy_from_slice(of.as_bytes())
}

fn keep(ttl: Ttl, max_age: Ttl) -> Keep {
    Keep { ttl, max_age }
}

#[allow(clippy::panic, clippy::unwrap_used)]
impl Suite {
    async fn put(&self, key: &OnceKey, of: &str) -> PutOutcome {
        self.store.put(key, value(of), TTL).await.unwrap()
    }

    async fn a_value_is_there_until_exactly_its_end(&self) {
        let (a, b) = (key("end a"), key("end b"));
        for key in [&a, &b] {
            assert_eq!(self.put(key, "1 2 3 4 spaced").await, PutOutcome::Stored);
        }
        self.clock.advance(TTL.as_duration() - INSTANT);
        let kept = self.store.peek(&a).await.unwrap().unwrap();
        assert_eq!(kept.value, value("1 2 3 4 spaced"));
        assert_eq!(kept.expires_at, Timestamp::of(&self.clock) + INSTANT);
        assert_eq!(self.store.take(&a).await.unwrap().unwrap(), kept);
        assert_eq!(self.store.take(&a).await.unwrap(), None);
        self.clock.advance(INSTANT);
        assert_eq!(self.store.peek(&b).await.unwrap(), None);
        assert_eq!(self.store.take(&b).await.unwrap(), None);
    }

    async fn a_put_never_overwrites(&self) {
        let key = key("put");
        assert_eq!(self.put(&key, "first").await, PutOutcome::Stored);
        assert_eq!(self.put(&key, "second").await, PutOutcome::Exists);
        let kept = self.store.take(&key).await.unwrap().unwrap();
        assert_eq!(kept.value, value("first"));
        assert_eq!(self.put(&key, "second").await, PutOutcome::Stored);
        self.clock.advance(TTL.as_duration());
        assert_eq!(self.put(&key, "third").await, PutOutcome::Stored);
    }

    async fn a_save_is_decided_by_version(&self) {
        let (key, keep) = (key("versions"), keep(TTL, Ttl::days(7)));
        let save = |of: &str, expect| self.store.save(&key, value(of), expect, keep);
        let saved = |version| SaveOutcome::Saved { version };
        let conflict = |version| SaveOutcome::Conflict { version };
        assert_eq!(save("x", Expect::Version(0)).await.unwrap(), conflict(0));
        assert_eq!(save("x", Expect::Version(1)).await.unwrap(), conflict(0));
        assert_eq!(save("a", Expect::Absent).await.unwrap(), saved(1));
        assert_eq!(save("x", Expect::Absent).await.unwrap(), conflict(1));
        // Two tabs that saw the same version.
        assert_eq!(save("b", Expect::Version(1)).await.unwrap(), saved(2));
        assert_eq!(save("x", Expect::Version(1)).await.unwrap(), conflict(2));
        assert_eq!(save("c", Expect::Any).await.unwrap(), saved(3));
        let kept = self.store.take(&key).await.unwrap().unwrap();
        assert_eq!((kept.value, kept.version), (value("c"), 3));
        assert_eq!(save("x", Expect::Version(3)).await.unwrap(), conflict(0));
    }

    async fn progress_ends_with_its_greatest_age(&self) {
        let (key, keep) = (key("age"), keep(Ttl::secs(10), Ttl::secs(25)));
        let first = Timestamp::of(&self.clock);
        for _ in 0..3 {
            let save = self.store.save(&key, value("v"), Expect::Any, keep);
            save.await.unwrap();
            self.clock.advance(Duration::from_secs(9));
        }
        let kept = self.store.peek(&key).await.unwrap();
        assert_eq!(kept, None, "27 s after the first save");
        let save = self.store.save(&key, value("v"), Expect::Absent, keep);
        assert_eq!(save.await.unwrap(), SaveOutcome::Saved { version: 1 });
        let kept = self.store.peek(&key).await.unwrap().unwrap();
        assert!(kept.created_at > first);
    }

    async fn what_was_removed_is_not_revived_by_a_save(&self) {
        let (key, keep) = (key("revive"), keep(TTL, TTL));
        let save = |expect| self.store.save(&key, value("v"), expect, keep);
        save(Expect::Absent).await.unwrap();
        assert!(self.store.remove(&key).await.unwrap());
        assert!(!self.store.remove(&key).await.unwrap());
        let late = save(Expect::Version(1)).await.unwrap();
        assert_eq!(late, SaveOutcome::Conflict { version: 0 });
        assert_eq!(self.store.peek(&key).await.unwrap(), None);
    }

    async fn histories_follow_from_the_facts(&self, seed: u64) {
        let mut dice = super::Dice::new(seed);
        // Value, version, end in ms.
        let mut model: HashMap<u64, (Bytes, u64, u64)> = HashMap::new();
        for step in 0..300 {
            let place = dice.below(3);
            let key = key(&format!("history {seed} {place}"));
            let now = self.clock.now_micros() / 1_000;
            let there = model.get(&place).filter(|line| now < line.2).cloned();
            let ttl = Ttl::millis(1 + dice.below(2_000));
            let new = value(&format!("{step}"));
            match dice.below(6) {
                0 => {
                    let put = self.store.put(&key, new.clone(), ttl).await.unwrap();
                    assert_eq!(put == PutOutcome::Stored, there.is_none(), "step {step}");
                    if there.is_none() {
                        model.insert(place, (new, 1, now + ttl.as_millis()));
                    }
                }
                1 => {
                    let taken = self.store.take(&key).await.unwrap();
                    let taken = taken.map(|kept| (kept.value, kept.version));
                    assert_eq!(taken, there.map(|line| (line.0, line.1)), "step {step}");
                    model.remove(&place);
                }
                2 => {
                    let kept = self.store.peek(&key).await.unwrap();
                    let kept = kept.map(|kept| (kept.value, kept.version, kept.expires_at));
                    let there = there.map(|line| (line.0, line.1, Timestamp::from_millis(line.2)));
                    assert_eq!(kept, there, "step {step}");
                }
                3 => {
                    let version = there.as_ref().map_or(0, |line| line.1);
                    let wanted = version.saturating_sub(dice.below(2));
                    let expect = Expect::Version(wanted);
                    let keep = keep(ttl, Ttl::days(1));
                    let save = self.store.save(&key, new.clone(), expect, keep).await;
                    let saved = version != 0 && wanted == version;
                    let expected = if saved {
                        model.insert(place, (new, version + 1, now + ttl.as_millis()));
                        SaveOutcome::Saved {
                            version: version + 1,
                        }
                    } else {
                        SaveOutcome::Conflict { version }
                    };
                    assert_eq!(save.unwrap(), expected, "step {step}");
                }
                4 => {
                    let removed = self.store.remove(&key).await.unwrap();
                    assert_eq!(removed, there.is_some(), "step {step}");
                    model.remove(&place);
                }
                _ => self.clock.advance(Duration::from_millis(dice.below(1_500))),
            }
        }
    }
}

/// Puts one value and lets `parallel` callers take it over all `stores` at once; returns how many got it.
///
/// # Panics
/// When a store fails.
#[allow(clippy::unwrap_used)]
pub async fn takers_of(parallel: usize, stores: &[Arc<dyn OnceStore>], of: &str) -> usize {
    let put = stores[0].put(&key(of), value("one"), TTL).await.unwrap();
    assert_eq!(put, PutOutcome::Stored);
    let got = Arc::new(AtomicUsize::new(0));
    let mut calls = tokio::task::JoinSet::new();
    for index in 0..parallel {
        let (store, got) = (Arc::clone(&stores[index % stores.len()]), Arc::clone(&got));
        let key = key(of);
        calls.spawn(async move {
            if store.take(&key).await.unwrap().is_some() {
                got.fetch_add(1, Ordering::SeqCst);
            }
        });
    }
    while let Some(call) = calls.join_next().await {
        call.unwrap();
    }
    got.load(Ordering::SeqCst)
}
