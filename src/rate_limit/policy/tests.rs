//! The algorithms against oracles that are written another way.

use std::time::Duration;

use proptest::prelude::*;

use super::*;

const START: u64 = 1_900_000_000_000_000;

/// One key under test: decides and charges like a store.
struct Key {
    quota: Quota,
    state: Option<State>,
}

impl Key {
    fn new(quota: Quota) -> Self {
        Self { quota, state: None }
    }

    fn check(&mut self, now: u64, limit: u32, cost: u32) -> PolicyState {
        if let Some(state) = &mut self.state
            && state.is_ahead(&self.quota, now)
        {
            state.repair(&self.quota, now);
        }
        let live = self.state.take();
        self.state = live.filter(|state| state.expires_at(&self.quota) > now);
        let mut decided = decide(self.state.as_ref(), &self.quota, now, limit, cost, None);
        if let Some(state) = &self.state {
            measure(&mut decided, state, &self.quota, now);
        }
        decided
    }

    fn charge(&mut self, now: u64, cost: u32) -> Option<Entry> {
        let quota = self.quota;
        let state = self.state.get_or_insert_with(|| State::empty(&quota, now));
        state.charge(&quota, now, cost)
    }

    fn take(&mut self, now: u64, limit: u32, cost: u32) -> PolicyState {
        let mut decided = self.check(now, limit, cost);
        if decided.outcome == Outcome::Admitted && cost > 0 {
            decided.entry = self.charge(now, cost);
            if let Some(state) = &self.state {
                measure(&mut decided, state, &self.quota, now);
            }
        }
        decided
    }
}

/// Requests as (pause before it in microseconds, cost, limit in thousandths of the declared one).
fn requests() -> impl Strategy<Value = Vec<(u64, u32, u32)>> {
    let pause = prop_oneof![
        3 => Just(0_u64),
        3 => 0..200_000_u64,
        2 => 0..3_000_000_u64,
        1 => 9_000_000..11_000_000_u64,
    ];
    prop::collection::vec(
        (
            pause,
            0..6_u32,
            prop_oneof![3 => Just(1_000_u32), 1 => 0..1_000_u32],
        ),
        1..120,
    )
}

fn sliding() -> impl Strategy<Value = Quota> {
    prop_oneof![
        (1..12_u32).prop_map(|limit| Quota::new(limit, Duration::from_secs(10))),
        (1..40_u32).prop_map(|limit| Quota::new(limit, Duration::from_secs(1))),
        Just(Quota::new(1_030, Duration::from_secs(10))),
    ]
}

fn gcra() -> impl Strategy<Value = Quota> {
    (
        1..50_u32,
        1..20_u32,
        prop_oneof![Just(1_u64), Just(7), Just(60)],
    )
        .prop_map(|(limit, burst, secs)| Quota::new(limit, Duration::from_secs(secs)).gcra(burst))
}

fn any_quota() -> impl Strategy<Value = Quota> {
    prop_oneof![
        sliding(),
        gcra(),
        (1..12_u32).prop_map(|limit| Quota::new(limit, Duration::from_secs(10)).fixed()),
        (1..12_u32).prop_map(Quota::per_month),
    ]
}

/// Large costs, so that buckets of more than 1,024 units fill up.
fn scaled(cost: u32, quota: &Quota) -> u32 {
    if quota.limit() > 1_024 {
        cost * 150
    } else {
        cost
    }
}

/// The units admitted in the fullest window `(t - window, t]`: two pointers over all admissions.
fn fullest(admissions: &[(u64, u32)], window: u64) -> u32 {
    let (mut first, mut sum, mut most) = (0, 0, 0);
    for (at, units) in admissions {
        sum += units;
        while admissions[first].0 + window <= *at {
            sum -= admissions[first].1;
            first += 1;
        }
        most = most.max(sum);
    }
    most
}

proptest! {
    #[test]
    fn no_trailing_window_holds_more_than_the_limit(quota in sliding(), requests in requests()) {
        let (mut key, mut now, mut admissions) = (Key::new(quota), START, Vec::new());
        for (pause, cost, share) in requests {
            now += pause;
            let (cost, limit) = (scaled(cost, &quota), quota.limit() * share / 1_000);
            if key.take(now, limit, cost).outcome == Outcome::Admitted {
                admissions.push((now, cost));
            }
        }
        let most = fullest(&admissions, quota.window_micros());
        prop_assert!(most <= quota.limit(), "{most} of {}", quota.limit());
    }

    #[test]
    fn the_exact_log_refuses_only_when_it_must(quota in sliding(), requests in requests()) {
        prop_assume!(quota.algorithm() == Algorithm::Log);
        let (mut key, mut now, mut admissions) = (Key::new(quota), START, Vec::<(u64, u32)>::new());
        for (pause, cost, share) in requests {
            // Distinct moments: stamps are then the moments themselves.
            now += pause + 1;
            let limit = quota.limit() * share / 1_000;
            let live: u32 = admissions
                .iter()
                .filter(|(at, _)| at + quota.window_micros() > now)
                .map(|(_, units)| units)
                .sum();
            let decided = key.take(now, limit, cost);
            let fits = cost == 0 || (cost <= limit && live + cost <= limit);
            prop_assert_eq!(decided.outcome == Outcome::Admitted, fits);
            let charged = if fits { cost } else { 0 };
            prop_assert_eq!(decided.used, live + charged);
            if charged > 0 {
                admissions.push((now, cost));
            }
        }
    }

    #[test]
    fn buckets_hold_a_unit_for_a_64th_of_the_window_too_long_at_most(requests in requests()) {
        let quota = Quota::new(1_030, Duration::from_secs(10));
        let grain = quota.window_micros() / 64;
        let (mut key, mut now, mut admissions) = (Key::new(quota), START, Vec::<(u64, u32)>::new());
        for (pause, cost, _) in requests {
            now += pause;
            let cost = scaled(cost, &quota);
            let counted = |longer: u64| -> u32 {
                admissions.iter().filter(|(at, _)| at + quota.window_micros() + longer > now).map(|(_, units)| units).sum()
            };
            let (least, most) = (counted(0), counted(grain));
            let before = key.check(now, quota.limit(), cost);
            prop_assert!((least..=most).contains(&before.used), "{} not in {least}..={most}", before.used);
            if key.take(now, quota.limit(), cost).outcome == Outcome::Admitted {
                admissions.push((now, cost));
            }
        }
    }

    #[test]
    fn a_retry_is_refused_a_microsecond_before_its_time_and_admitted_at_it(quota in any_quota(), requests in requests()) {
        let (mut key, mut now) = (Key::new(quota), START);
        for (pause, cost, share) in requests {
            now += pause;
            let (cost, limit) = (scaled(cost, &quota), quota.capacity_at(quota.limit() * share / 1_000));
            let decided = key.take(now, limit, cost);
            match decided.outcome {
                Outcome::Denied => {
                    let wait = decided.retry_in().unwrap().as_micros() as u64;
                    let mut copy = Key { quota, state: key.state.clone() };
                    prop_assert_eq!(copy.check(now + wait - 1, limit, cost).outcome, Outcome::Denied);
                    prop_assert_eq!(copy.check(now + wait, limit, cost).outcome, Outcome::Admitted);
                    prop_assert!(decided.retry_in() >= decided.more_in());
                }
                Outcome::Never => prop_assert!(cost > limit && decided.retry_in().is_none()),
                _ => {}
            }
            if let Some(more_in) = decided.more_in() {
                let mut copy = Key { quota, state: key.state.clone() };
                let at = now + more_in.as_micros() as u64;
                prop_assert_eq!(copy.check(at - 1, limit, 0).remaining, decided.remaining);
                prop_assert!(copy.check(at, limit, 0).remaining > decided.remaining);
            } else {
                prop_assert!(decided.used == 0 || limit == 0);
            }
        }
    }

    #[test]
    fn gcra_agrees_with_exact_rationals(quota in gcra(), requests in requests()) {
        let Algorithm::Gcra { burst, .. } = quota.algorithm() else { unreachable!() };
        // The oracle keeps a token bucket in parts of 1 / (limit * window) and never divides.
        let (limit, window) = (u128::from(quota.limit()), u128::from(quota.window_micros()));
        let (mut tokens, mut now) = (u128::from(burst) * window, START);
        let mut key = Key::new(quota);
        for (pause, cost, share) in requests {
            now += pause;
            tokens = (tokens + u128::from(pause) * limit).min(u128::from(burst) * window);
            let capacity = quota.capacity_at(quota.limit() * share / 1_000);
            let kept_back = u128::from(burst - capacity) * window;
            let fits = cost == 0 || (cost <= capacity && tokens >= kept_back + u128::from(cost) * window);
            let decided = key.take(now, capacity, cost);
            prop_assert_eq!(decided.outcome == Outcome::Admitted, fits);
            if fits {
                tokens -= u128::from(cost) * window;
            }
            prop_assert_eq!(u128::from(decided.remaining), tokens.saturating_sub(kept_back) / window);
        }
    }

    #[test]
    fn a_refusal_changes_nothing(quota in any_quota(), requests in requests()) {
        let (mut key, mut now) = (Key::new(quota), START);
        for (pause, cost, share) in requests {
            now += pause;
            let limit = quota.capacity_at(quota.limit() * share / 1_000);
            key.check(now, limit, 0);
            let before = key.state.clone();
            if key.take(now, limit, scaled(cost, &quota)).outcome != Outcome::Admitted {
                prop_assert_eq!(&before, &key.state);
            }
        }
    }

    #[test]
    fn refunds_never_go_below_nothing_or_above_the_charge(quota in any_quota(), requests in requests(), order in prop::collection::vec(any::<(u8, bool)>(), 1..60)) {
        let (mut key, mut now, mut receipts) = (Key::new(quota), START, Vec::new());
        let mut order = order.into_iter();
        for (pause, cost, _) in requests {
            now += pause;
            let decided = key.take(now, quota.capacity(), scaled(cost, &quota));
            receipts.extend(decided.entry.map(|entry| (entry, scaled(cost, &quota))));
            let Some((pick, true)) = order.next() else { continue };
            if receipts.is_empty() { continue }
            let (entry, cost) = receipts.remove(pick as usize % receipts.len());
            let before = key.check(now, quota.capacity(), 0).used;
            if let Some(state) = &mut key.state {
                state.refund(&quota, now, &entry);
            }
            let after = key.check(now, quota.capacity(), 0).used;
            prop_assert!(after <= before && before - after <= cost, "{before} -> {after} for {cost}");
        }
    }

    #[test]
    fn a_clock_that_jumps_locks_out_for_one_window_at_most(quota in sliding(), requests in requests(), jump in 0..3_600_000_000_u64) {
        let (mut key, mut now) = (Key::new(quota), START);
        for (pause, cost, _) in requests {
            now += pause;
            key.take(now, quota.limit(), scaled(cost, &quota));
        }
        let now = now - jump;
        key.check(now, quota.limit(), 1);
        // A second of lead is believed, a bucket counts to its end.
        let latest = now + quota.window_micros() + LEAD + quota.window_micros() / 64;
        prop_assert_eq!(key.check(latest, quota.limit(), quota.limit()).outcome, Outcome::Admitted);
    }

    #[test]
    fn a_record_beyond_the_limit_leaves_the_key_full_and_no_more(quota in any_quota(), pauses in prop::collection::vec(0..2_000_000_u64, 1..60)) {
        let (mut key, mut now) = (Key::new(quota), START);
        for pause in pauses {
            now += pause;
            key.check(now, quota.capacity(), 0);
            key.charge(now, scaled(3, &quota));
            let used = key.check(now, quota.capacity(), 0).used;
            prop_assert!(used <= quota.capacity());
            prop_assert!(used >= scaled(3, &quota).min(quota.capacity()));
        }
    }
}

#[test]
fn a_unit_expires_at_exactly_its_window() {
    let quota = Quota::new(1, Duration::from_secs(10));
    let mut key = Key::new(quota);
    assert_eq!(key.take(START, 1, 1).outcome, Outcome::Admitted);
    assert_eq!(key.take(START + 9_999_999, 1, 1).outcome, Outcome::Denied);
    assert_eq!(
        key.take(START + 10_000_000, 1, 1).outcome,
        Outcome::Admitted
    );
}

#[test]
fn charges_within_one_microsecond_have_stamps_of_their_own() {
    let mut key = Key::new(Quota::new(5, Duration::from_secs(10)));
    let first = key.take(START, 5, 2).entry.unwrap();
    let second = key.take(START, 5, 2).entry.unwrap();
    assert_ne!(first.a, second.a);
    assert_eq!((first.amount.get(), second.amount.get()), (2, 2));
}

#[test]
fn an_old_receipt_does_nothing_in_a_new_state() {
    for quota in [
        Quota::new(2_000, Duration::from_secs(64)),
        Quota::new(5, Duration::from_secs(10)).gcra(5),
        Quota::per_month(5),
    ] {
        let mut key = Key::new(quota);
        let old = key.take(START, 5, 1).entry.unwrap();
        key.state = None;
        key.take(START + 1, 5, 1);
        let state = key.state.as_mut().unwrap();
        assert!(!state.refund(&quota, START + 1, &old), "{quota:?}");
    }
}

#[test]
fn a_state_of_a_clock_that_went_far_back_is_measured_without_overflow() {
    let quota = Quota::per_second((1 << 31) - 1).gcra(1_000);
    let mut state = State::empty(&quota, START);
    state.charge(&quota, START, 1);
    assert!(state.is_ahead(&quota, 0));
    // Before its repair: a table asks each state how full it is.
    assert!(state.usage(&quota, 0, 1_000).used >= 1);
    state.repair(&quota, 0);
    assert_eq!(state.usage(&quota, 0, 1_000).used, 1_000);
}
