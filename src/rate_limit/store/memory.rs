//! Limits inside this process: each method is one closure under the locks of all its buckets.

mod kept;
mod keys;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kept::Kept;
use keys::{Blocks, Keys, block_key, state_key};
use smallvec::SmallVec;

use super::super::policy::{self, State};
use super::super::quota::Quota;
use super::groups::Groups;
use super::{
    Bucket, Charge, Mode, Outcome, PolicyState, RateLimitStore, Receipt, Refunded, Source, Tag,
    Verdict,
};
use crate::backend::memory::{EntryKey, MemoryStore, Slots};
use crate::core::telemetry::count;
use crate::core::{StoreError, StoreErrorKind, StoreFuture};

/// Blocks end within a hundred years, so that no sum overflows.
const LONGEST_BLOCK: u64 = 100 * 366 * 86_400 * 1_000_000;

/// Entries of the store that goes on where this one is full.
const LOCAL_ENTRIES: usize = 100_000;

impl RateLimitStore for MemoryStore {
    fn check_and_record(&self, charges: &[Charge<'_>]) -> StoreFuture<Verdict> {
        if let [charge] = charges
            && !Blocks::are_live(self)
            && let Some(verdict) = in_place(self, charge)
        {
            return StoreFuture::ok(verdict);
        }
        let keys = Keys::of(self, charges);
        StoreFuture::ready(charging(self, keys, charges, check_and_charge))
    }

    fn check(&self, charges: &[Charge<'_>]) -> StoreFuture<Verdict> {
        let keys = Keys::of(self, charges);
        StoreFuture::ok(step(self, &keys.all, |slots, now| {
            let mut verdict = decide_all(slots, &keys, charges, now);
            measure_all(slots, &keys, charges, &mut verdict);
            verdict
        }))
    }

    fn record(&self, charges: &[Charge<'_>]) -> StoreFuture<Verdict> {
        let keys = Keys::of(self, charges);
        StoreFuture::ready(charging(self, keys, charges, charge_always))
    }

    fn refund(&self, receipt: &Receipt) -> StoreFuture<Refunded> {
        let Some(parts) = receipt.spend() else {
            return StoreFuture::ok(Refunded::AlreadySpent);
        };
        let keys: SmallVec<[EntryKey; 4]> = parts
            .iter()
            .map(|part| state_key(self, &part.bucket()))
            .collect();
        let applied = step(self, &keys, |slots, now| {
            let mut applied = false;
            for (index, part) in parts.iter().enumerate() {
                let quota = part.bucket().scope.quota();
                repair(slots, index, quota, now);
                if let Some(Kept::State { state, .. }) = slots.get_mut(index) {
                    applied |= state.refund(quota, now, part.entry());
                    settle(slots, index, quota, now);
                }
            }
            applied
        });
        StoreFuture::ok(if applied {
            Refunded::Applied
        } else {
            Refunded::TooLate
        })
    }

    fn reset(&self, buckets: &[Bucket<'_>]) -> StoreFuture<()> {
        let keys: SmallVec<[EntryKey; 4]> = buckets
            .iter()
            .flat_map(|bucket| [state_key(self, bucket), block_key(self, bucket)])
            .collect();
        step(self, &keys, |slots, _| {
            (0..slots.len()).for_each(|index| drop(slots.remove(index)));
        });
        StoreFuture::ok(())
    }

    fn block(&self, bucket: &Bucket<'_>, duration: Duration) -> StoreFuture<()> {
        let now = self.now_micros();
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let until = now + micros.min(LONGEST_BLOCK);
        self.part::<Blocks>()
            .until
            .fetch_max(until, Ordering::SeqCst);
        let key = block_key(self, bucket);
        let blocked = self.table::<Kept>().update_one(key, now, |slot| {
            let until = slot.expires_at().map_or(until, |end| end.max(until));
            slot.set(Kept::Block, until)
        });
        StoreFuture::ready(blocked.map_err(StoreError::from))
    }

    fn splits(&self, group: &str, tag: Tag) -> bool {
        self.part::<Groups>().splits(group, tag)
    }

    /// Where this store is full, another goes on by the same clock.
    fn local(&self) -> Option<Arc<dyn RateLimitStore>> {
        let builder = Self::builder().max_entries(LOCAL_ENTRIES);
        Some(Arc::new(builder.clock(self.clock()).build()))
    }
}

/// The same decision where one policy has a state that is there and need not grow: the usual case, by the shortest way.
/// `None`, and nothing changed, where it is not that simple.
fn in_place(store: &MemoryStore, charge: &Charge<'_>) -> Option<Verdict> {
    let key = state_key(store, &charge.bucket);
    let (quota, table) = (charge.bucket.scope.quota(), store.table::<Kept>());
    let clock = || store.now_micros();
    table.change_one(key, clock, |row, now| {
        let Kept::State { state, .. } = row.value else {
            return None;
        };
        if state.is_ahead(quota, now) || state.growth(quota, now, charge.cost) > 0 {
            return None;
        }
        // What has expired is empty by now: it begins anew where it is.
        let counted = row.is_live.then_some(&*state);
        let mut decided = policy::decide(counted, quota, now, charge.limit, charge.cost, None);
        let admits = decided.outcome == Outcome::Admitted;
        let charges = admits && charge.cost > 0;
        if charges {
            decided.entry = state.charge(quota, now, charge.cost);
            *row.expires_at = state.expires_at(quota);
        }
        if charges || row.is_live {
            policy::measure(&mut decided, state, quota, now);
        }
        Some(Verdict {
            admitted: admits || charge.mode == Mode::Shadow,
            states: SmallVec::from_buf([decided]),
            now,
            source: Source::Store,
        })
    })?
}

/// What a charging method does under the locks.
type Charging = fn(&mut Slots<'_, Kept>, &Keys, &[Charge<'_>], u64) -> Result<Verdict, StoreError>;

/// Charges; where there is no room for a new key it shares an entry with others of its policy.
fn charging(
    store: &MemoryStore,
    keys: Keys,
    charges: &[Charge<'_>],
    act: Charging,
) -> Result<Verdict, StoreError> {
    let answer = step(store, &keys.all, |slots, now| {
        act(slots, &keys, charges, now)
    });
    match answer {
        // Nothing was changed.
        Err(full) if full.kind() == StoreErrorKind::Full => {
            let keys = keys.with_overflow(store, charges);
            step(store, &keys.all, |slots, now| {
                act(slots, &keys, charges, now)
            })
        }
        answer => answer,
    }
}

fn check_and_charge(
    slots: &mut Slots<'_, Kept>,
    keys: &Keys,
    charges: &[Charge<'_>],
    now: u64,
) -> Result<Verdict, StoreError> {
    let mut verdict = decide_all(slots, keys, charges, now);
    if verdict.admitted {
        charge_all(slots, keys, charges, &mut verdict, |state| {
            state.outcome == Outcome::Admitted
        })?;
    } else {
        measure_all(slots, keys, charges, &mut verdict);
    }
    Ok(verdict)
}

fn charge_always(
    slots: &mut Slots<'_, Kept>,
    keys: &Keys,
    charges: &[Charge<'_>],
    now: u64,
) -> Result<Verdict, StoreError> {
    let mut verdict = decide_all(slots, keys, charges, now);
    charge_all(slots, keys, charges, &mut verdict, |_| true)?;
    verdict.admitted = true;
    Ok(verdict)
}

/// One step on the table. The clock is read under the locks: who read it before and came late would find
/// states ahead of it, and take their windows back.
fn step<R>(
    store: &MemoryStore,
    keys: &[EntryKey],
    change: impl FnOnce(&mut Slots<'_, Kept>, u64) -> R,
) -> R {
    let clock = || store.now_micros();
    store.table::<Kept>().update_timed(keys, clock, change)
}

fn decide_all(
    slots: &mut Slots<'_, Kept>,
    keys: &Keys,
    charges: &[Charge<'_>],
    now: u64,
) -> Verdict {
    let mut verdict = Verdict {
        admitted: true,
        states: SmallVec::with_capacity(charges.len()),
        now,
        source: Source::Store,
    };
    for (index, charge) in charges.iter().enumerate() {
        let quota = charge.bucket.scope.quota();
        let blocked = keys.blocked_until(slots, index);
        let decide = |state: Option<&State>| {
            policy::decide(state, quota, now, charge.limit, charge.cost, blocked)
        };
        let place = keys.place(slots, index);
        let decided = match state_at(slots, place) {
            // The clock went back.
            Some(state) if state.is_ahead(quota, now) => {
                repair(slots, place, quota, now);
                decide(state_at(slots, place))
            }
            state => decide(state),
        };
        verdict.admitted &= charge.mode == Mode::Shadow || decided.outcome == Outcome::Admitted;
        verdict.states.push(decided);
    }
    verdict
}

fn state_at<'a>(slots: &'a Slots<'_, Kept>, index: usize) -> Option<&'a State> {
    match slots.get(index) {
        Some(Kept::State { state, .. }) => Some(state),
        _ => None,
    }
}

fn measure_all(
    slots: &Slots<'_, Kept>,
    keys: &Keys,
    charges: &[Charge<'_>],
    verdict: &mut Verdict,
) {
    for (index, (charge, decided)) in charges.iter().zip(&mut verdict.states).enumerate() {
        if let Some(state) = state_at(slots, keys.place(slots, index)) {
            policy::measure(decided, state, charge.bucket.scope.quota(), verdict.now);
        }
    }
}

/// Charges what `wanted` says and measures the rest; if there is no room for one of them, none is charged.
fn charge_all(
    slots: &mut Slots<'_, Kept>,
    keys: &Keys,
    charges: &[Charge<'_>],
    verdict: &mut Verdict,
    wanted: impl Fn(&PolicyState) -> bool,
) -> Result<(), StoreError> {
    let now = verdict.now;
    for (index, charge) in charges.iter().enumerate() {
        let (place, decided) = (keys.place(slots, index), &mut verdict.states[index]);
        if charge.cost == 0 || !wanted(decided) {
            if let Some(state) = state_at(slots, place) {
                policy::measure(decided, state, charge.bucket.scope.quota(), now);
            }
        } else {
            // What all share, and the few entries for those without room, are there in any case.
            let in_any_case = place != index || charge.bucket.scope.is_pinned();
            if let Err(full) = charge_one(slots, place, charge, decided, now, in_any_case) {
                undo(slots, keys, &charges[..index], &verdict.states, now);
                return Err(full);
            }
            if place != index {
                report_overflow(charge);
            }
        }
    }
    Ok(())
}

fn report_overflow(charge: &Charge<'_>) {
    let scope = charge.bucket.scope;
    count!("keep_rate_limit_overflow_total", 1, "group" => scope.group().to_owned(), "policy" => scope.policy().to_owned());
}

fn charge_one(
    slots: &mut Slots<'_, Kept>,
    index: usize,
    charge: &Charge<'_>,
    decided: &mut PolicyState,
    now: u64,
    in_any_case: bool,
) -> Result<(), StoreError> {
    let quota = charge.bucket.scope.quota();
    let charged = |state: &mut State, decided: &mut PolicyState| {
        decided.entry = state.charge(quota, now, charge.cost);
        policy::measure(decided, state, quota, now);
        state.expires_at(quota)
    };
    match slots.get_mut(index) {
        Some(Kept::State { state, .. }) => {
            let growth = state.growth(quota, now, charge.cost);
            if growth > 0 && !in_any_case {
                slots.reserve(index, growth)?;
            }
            if let Some(Kept::State { state, .. }) = slots.get_mut(index) {
                let expires_at = charged(state, decided);
                slots.set_expiry(index, expires_at);
            }
        }
        _ => {
            // What has expired and still lies there is empty by now: it begins anew where it is.
            if let Some(Kept::State { state, .. }) = slots.expired_mut(index)
                && !state.is_ahead(quota, now)
                && state.growth(quota, now, charge.cost) == 0
            {
                let expires_at = charged(state, decided);
                slots.revive(index, expires_at);
                return Ok(());
            }
            let mut state = State::empty(quota, now);
            let expires_at = charged(&mut state, decided);
            let scope = charge.bucket.scope.clone();
            let kept = Kept::State { state, scope };
            if in_any_case {
                slots.set_beyond_bounds(index, kept, expires_at);
            } else {
                slots.set(index, kept, expires_at)?;
            }
        }
    }
    Ok(())
}

fn undo(
    slots: &mut Slots<'_, Kept>,
    keys: &Keys,
    charges: &[Charge<'_>],
    states: &[PolicyState],
    now: u64,
) {
    for (index, charge) in charges.iter().enumerate() {
        let (quota, place) = (charge.bucket.scope.quota(), keys.place(slots, index));
        if let (Some(entry), Some(Kept::State { state, .. })) =
            (states[index].entry, slots.get_mut(place))
        {
            state.refund(quota, now, &entry);
            settle(slots, place, quota, now);
        }
    }
}

fn repair(slots: &mut Slots<'_, Kept>, index: usize, quota: &Quota, now: u64) {
    let ahead =
        matches!(slots.get(index), Some(Kept::State { state, .. }) if state.is_ahead(quota, now));
    if ahead && let Some(Kept::State { state, .. }) = slots.get_mut(index) {
        state.repair(quota, now);
        settle(slots, index, quota, now);
    }
}

/// Sets the expiry anew after units were taken out; an empty state is removed, so that its next charge is a new birth.
fn settle(slots: &mut Slots<'_, Kept>, index: usize, quota: &Quota, now: u64) {
    let Some(Kept::State { state, .. }) = slots.get(index) else {
        return;
    };
    match state.expires_at(quota) {
        end if end <= now => drop(slots.remove(index)),
        end => slots.set_expiry(index, end),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::AtomicU64;

    use super::super::Scope;
    use super::*;
    use crate::core::Clock;
    use crate::rate_limit::PartitionKey;

    const HOUR: Duration = Duration::from_secs(3_600);

    /// Goes on by `1/100` s with each reading, and lets others go first with what it read.
    #[derive(Debug, Default)]
    struct Ticking(AtomicU64);

    impl Clock for Ticking {
        fn now_micros(&self) -> u64 {
            let now = self.0.fetch_add(10_000, Ordering::SeqCst);
            std::thread::yield_now();
            now
        }
    }

    fn charge<'a>(scope: &'a Scope, key: &'a PartitionKey) -> Charge<'a> {
        Charge {
            bucket: Bucket { scope, key },
            limit: scope.quota().capacity(),
            cost: 1,
            mode: Mode::Enforced,
        }
    }

    #[test]
    fn calls_that_meet_at_a_boundary_do_not_turn_time_back_for_each_other() {
        let store = MemoryStore::builder().clock(Ticking::default()).build();
        let scope = Scope::new("g", Tag::Group, "p", Quota::per_second(5).fixed());
        let admitted = Mutex::new(std::collections::HashMap::<u64, u32>::new());
        std::thread::scope(|threads| {
            for _ in 0..4 {
                threads.spawn(|| {
                    let key = PartitionKey::from("k");
                    for _ in 0..5_000 {
                        let verdict = store.check_and_record(&[charge(&scope, &key)]);
                        let verdict = verdict.try_now().unwrap().unwrap();
                        if verdict.admitted {
                            let window = verdict.now / 1_000_000;
                            *admitted.lock().unwrap().entry(window).or_default() += 1;
                        }
                    }
                });
            }
        });
        for (window, admitted) in admitted.into_inner().unwrap() {
            assert!(admitted <= 5, "{admitted} in second {window}");
        }
    }

    #[test]
    fn keys_that_grow_in_place_stay_within_the_bytes_of_the_table() {
        const MOST: usize = 64 * 1_024;
        let store = MemoryStore::builder().max_bytes(MOST).build();
        let scope = Scope::new("g", Tag::Group, "p", Quota::new(1_000, HOUR));
        let keys: Vec<_> = (0..100)
            .map(|n| PartitionKey::from(format!("{n}")))
            .collect();
        let mut admitted = 0;
        for _ in 0..600 {
            for key in &keys {
                let verdict = store
                    .check_and_record(&[charge(&scope, key)])
                    .try_now()
                    .unwrap();
                admitted += u32::from(verdict.is_ok_and(|verdict| verdict.admitted));
                let bytes = store.table::<Kept>().bytes();
                assert!(bytes <= MOST, "{bytes} bytes after {admitted} charges");
            }
        }
        assert!(admitted > 1_000);
    }
}
