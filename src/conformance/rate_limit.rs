//! What every store of rate limits promises, and a random history that all of them must tell alike.

mod history;
mod oracle;
mod parallel;
mod random;

use std::sync::Arc;
use std::time::Duration;

use crate::core::{Clock, ManualClock};
use crate::rate_limit::store::{
    Bucket, Charge, Mode, Outcome, Receipt, Refunded, Scope, Tag, Verdict,
};
use crate::rate_limit::{PartitionKey, Quota, RateLimitStore};

pub use history::{Told, history};
pub use parallel::admitted_of;
pub use random::{ALGORITHMS, histories};

const SECOND: Duration = Duration::from_secs(1);

/// Runs the whole suite. `store` must be empty and tell the time of `clock`.
///
/// # Panics
/// When the store breaks a promise of [`RateLimitStore`].
pub async fn rate_limit(store: Arc<dyn RateLimitStore>, clock: &ManualClock) {
    let suite = Suite {
        store,
        clock: clock.clone(),
    };
    for quota in quotas() {
        suite.admits_up_to_the_limit_and_not_one_more(quota).await;
        suite.says_when_to_come_back(quota).await;
        suite
            .a_cost_of_nothing_is_admitted_and_charges_nothing(quota)
            .await;
        suite
            .a_cost_above_the_limit_is_refused_for_good(quota)
            .await;
        suite.a_check_writes_nothing(quota).await;
        suite
            .a_record_never_refuses_and_never_overfills(quota)
            .await;
        suite
            .a_refund_counts_once_and_only_while_its_units_do(quota)
            .await;
        suite.a_receipt_does_nothing_after_a_reset(quota).await;
        suite.a_block_refuses_every_cost_until_it_ends(quota).await;
        suite.a_lower_limit_sees_what_was_consumed(quota).await;
        suite.fifty_at_once_get_no_more_than_the_limit(quota).await;
    }
    for quota in &quotas()[..3] {
        suite
            .what_is_over_stays_over_after_a_refund_and_a_clock_that_went_back(*quota)
            .await;
    }
    for quota in &quotas()[..4] {
        suite
            .a_clock_that_went_back_locks_out_for_one_window(*quota)
            .await;
    }
    suite
        .one_refusal_leaves_all_untouched_and_names_all_violated()
        .await;
    suite
        .a_shadow_policy_never_refuses_and_is_charged_when_it_would_admit()
        .await;
    suite.policies_keys_and_groups_do_not_share_state().await;
}

/// One quota per algorithm.
fn quotas() -> [Quota; 5] {
    [
        Quota::new(5, Duration::from_secs(10)),
        Quota::new(2_000, Duration::from_secs(64)),
        Quota::new(7, Duration::from_secs(10)).gcra(5),
        Quota::new(5, Duration::from_secs(10)).fixed(),
        Quota::per_month(5),
    ]
}

struct Suite {
    store: Arc<dyn RateLimitStore>,
    clock: ManualClock,
}

/// A key of its own for each promise.
struct Subject {
    scope: Scope,
    key: PartitionKey,
}

impl Subject {
    fn new(group: &str, quota: Quota) -> Self {
        Self {
            scope: Scope::new(group, Tag::Key, "policy", quota),
            key: PartitionKey::from("somebody"),
        }
    }

    fn bucket(&self) -> Bucket<'_> {
        Bucket {
            scope: &self.scope,
            key: &self.key,
        }
    }

    fn charge(&self, cost: u32) -> Charge<'_> {
        Charge {
            bucket: self.bucket(),
            limit: self.whole(),
            cost,
            mode: Mode::Enforced,
        }
    }

    fn whole(&self) -> u32 {
        self.scope.quota().capacity()
    }
}

#[allow(clippy::unwrap_used)]
impl Suite {
    async fn take(&self, charge: Charge<'_>) -> Verdict {
        self.store.check_and_record(&[charge]).await.unwrap()
    }

    async fn used(&self, subject: &Subject) -> u32 {
        let verdict = self.store.check(&[subject.charge(0)]).await.unwrap();
        verdict.states[0].used
    }

    async fn admits_up_to_the_limit_and_not_one_more(&self, quota: Quota) {
        let subject = Subject::new("up-to", quota);
        let part = subject.whole() / 5;
        for round in 1..=5 {
            let verdict = self.take(subject.charge(part)).await;
            let state = &verdict.states[0];
            assert!(verdict.admitted, "{quota:?} refuses within its limit");
            assert_eq!(
                (state.used, state.remaining),
                (round * part, (5 - round) * part)
            );
            assert_eq!(verdict.now, self.clock.now_micros());
        }
        let verdict = self.take(subject.charge(1)).await;
        assert!(!verdict.admitted, "{quota:?} admits more than its limit");
        assert_eq!(verdict.states[0].outcome, Outcome::Denied);
        assert_eq!(verdict.states[0].remaining, 0);
        assert!(
            verdict.states[0].entry.is_none(),
            "a refusal charges nothing"
        );
    }

    async fn says_when_to_come_back(&self, quota: Quota) {
        let subject = Subject::new("come-back", quota);
        self.take(subject.charge(subject.whole())).await;
        let verdict = self.take(subject.charge(2)).await;
        let wait = verdict.states[0].retry_in().unwrap();
        assert!(verdict.states[0].more_in().unwrap() <= wait);
        self.clock.advance(wait - Duration::from_micros(1));
        assert!(
            !self.take(subject.charge(2)).await.admitted,
            "{quota:?} too early"
        );
        self.clock.advance(Duration::from_micros(1));
        let verdict = self.take(subject.charge(2)).await;
        assert!(verdict.admitted, "{quota:?} too late: {verdict:?}");
    }

    async fn a_cost_of_nothing_is_admitted_and_charges_nothing(&self, quota: Quota) {
        let subject = Subject::new("nothing", quota);
        let verdict = self.take(subject.charge(0)).await;
        assert!(verdict.admitted && verdict.states[0].entry.is_none());
        assert_eq!(
            (verdict.states[0].used, verdict.states[0].more_in()),
            (0, None)
        );
        self.take(subject.charge(subject.whole())).await;
        assert!(
            self.take(subject.charge(0)).await.admitted,
            "also when full"
        );
    }

    async fn a_cost_above_the_limit_is_refused_for_good(&self, quota: Quota) {
        let subject = Subject::new("above", quota);
        let verdict = self.take(subject.charge(subject.whole() + 1)).await;
        assert!(!verdict.admitted);
        assert_eq!(verdict.states[0].outcome, Outcome::Never);
        assert_eq!(verdict.states[0].retry_in(), None);
        assert_eq!(self.used(&subject).await, 0);
    }

    async fn a_check_writes_nothing(&self, quota: Quota) {
        let subject = Subject::new("check", quota);
        for _ in 0..3 {
            let verdict = self.store.check(&[subject.charge(1)]).await.unwrap();
            assert!(verdict.admitted && verdict.states[0].entry.is_none());
        }
        assert_eq!(self.used(&subject).await, 0);
    }

    async fn a_record_never_refuses_and_never_overfills(&self, quota: Quota) {
        let (subject, whole) = (Subject::new("record", quota), quota.capacity());
        for used in [whole - 1, whole, whole] {
            let cost = if used < whole { used } else { 3 };
            let verdict = self.store.record(&[subject.charge(cost)]).await.unwrap();
            assert!(verdict.admitted);
            assert_eq!(verdict.states[0].used, used, "{quota:?}");
        }
        assert!(!self.take(subject.charge(1)).await.admitted);
    }

    async fn a_refund_counts_once_and_only_while_its_units_do(&self, quota: Quota) {
        let subject = Subject::new("refund", quota);
        let charge = [subject.charge(3)];
        let verdict = self.store.check_and_record(&charge).await.unwrap();
        self.take(subject.charge(1)).await;
        let receipt = Receipt::new(&charge, &verdict.states);
        assert_eq!(
            self.store.refund(&receipt).await.unwrap(),
            Refunded::Applied
        );
        assert_eq!(self.used(&subject).await, 1);
        assert_eq!(
            self.store.refund(&receipt).await.unwrap(),
            Refunded::AlreadySpent
        );
        assert_eq!(self.used(&subject).await, 1);

        let verdict = self.store.check_and_record(&charge).await.unwrap();
        let late = Receipt::new(&charge, &verdict.states);
        self.clock.advance(Duration::from_secs(32 * 86_400));
        assert_eq!(self.store.refund(&late).await.unwrap(), Refunded::TooLate);
        assert_eq!(self.used(&subject).await, 0);
    }

    /// The refund leaves nothing that counts, so nothing is left that could count again.
    async fn what_is_over_stays_over_after_a_refund_and_a_clock_that_went_back(
        &self,
        quota: Quota,
    ) {
        let subject = Subject::new("over", quota);
        let first = self.take(subject.charge(1)).await;
        let window = first.states[0].more_in().unwrap();
        self.clock.advance(window.mul_f64(0.6));
        let second = subject.charge(1);
        let verdict = self.take(second).await;
        let receipt = Receipt::new(&[second], &verdict.states);
        self.clock.advance(window.mul_f64(0.6));
        let over = self.clock.now_micros();
        self.store.refund(&receipt).await.unwrap();
        self.clock
            .set_micros(over - (window.as_micros() as u64) / 2);
        assert_eq!(self.used(&subject).await, 0, "{quota:?}");
        self.clock.set_micros(over);
    }

    async fn a_receipt_does_nothing_after_a_reset(&self, quota: Quota) {
        let subject = Subject::new("reset", quota);
        let charge = [subject.charge(2)];
        let verdict = self.store.check_and_record(&charge).await.unwrap();
        let receipt = Receipt::new(&charge, &verdict.states);
        self.store.reset(&[subject.bucket()]).await.unwrap();
        assert_eq!(self.used(&subject).await, 0);
        self.clock.advance(Duration::from_micros(1));
        self.take(subject.charge(2)).await;
        assert_eq!(
            self.store.refund(&receipt).await.unwrap(),
            Refunded::TooLate
        );
        assert_eq!(self.used(&subject).await, 2, "{quota:?}");
    }

    async fn a_block_refuses_every_cost_until_it_ends(&self, quota: Quota) {
        let subject = Subject::new("block", quota);
        let block = async |duration| self.store.block(&subject.bucket(), duration).await.unwrap();
        block(5 * SECOND).await;
        block(2 * SECOND).await;
        for cost in [0, 1] {
            let verdict = self.take(subject.charge(cost)).await;
            assert!(!verdict.admitted);
            assert_eq!(verdict.states[0].outcome, Outcome::Blocked);
            assert_eq!(verdict.states[0].retry_in(), Some(5 * SECOND));
        }
        self.clock.advance(5 * SECOND);
        assert!(
            self.take(subject.charge(0)).await.admitted,
            "at its end it is over"
        );
        block(SECOND).await;
        self.store.reset(&[subject.bucket()]).await.unwrap();
        assert!(
            self.take(subject.charge(1)).await.admitted,
            "a reset lifts it"
        );
    }

    async fn a_lower_limit_sees_what_was_consumed(&self, quota: Quota) {
        let subject = Subject::new("lower", quota);
        self.take(subject.charge(3)).await;
        let at = |limit, cost| Charge {
            limit,
            ..subject.charge(cost)
        };
        let verdict = self.take(at(3, 1)).await;
        assert!(!verdict.admitted);
        assert_eq!(
            (verdict.states[0].limit, verdict.states[0].remaining),
            (3, 0)
        );
        assert!(self.take(at(4, 1)).await.admitted);
        assert_eq!(self.take(at(0, 1)).await.states[0].outcome, Outcome::Never);
    }

    async fn fifty_at_once_get_no_more_than_the_limit(&self, quota: Quota) {
        let group = format!("fifty-{}", quota.capacity());
        let stores = [Arc::clone(&self.store)];
        let admitted = admitted_of(50, &stores, quota, &group).await;
        assert_eq!(admitted, 50.min(quota.capacity() as usize), "{quota:?}");
    }

    async fn a_clock_that_went_back_locks_out_for_one_window(&self, quota: Quota) {
        let subject = Subject::new("went-back", quota);
        self.take(subject.charge(subject.whole())).await;
        let before = self.clock.now_micros();
        self.clock.set_micros(before - 3_600_000_000);
        assert!(!self.take(subject.charge(1)).await.admitted, "{quota:?}");
        // A bucket counts to its end.
        let longest = quota.window_micros() / 64 * 65;
        self.clock.advance(Duration::from_micros(longest));
        let verdict = self.take(subject.charge(subject.whole())).await;
        assert!(verdict.admitted, "{quota:?}: {verdict:?}");
        self.clock.set_micros(before + 3_600_000_000);
    }

    async fn one_refusal_leaves_all_untouched_and_names_all_violated(&self) {
        let [log, buckets, gcra, fixed, _] = quotas();
        let scopes = [("a", log), ("b", buckets), ("c", gcra), ("d", fixed)]
            .map(|(name, quota)| Scope::new("atomic", Tag::Group, name, quota));
        let key = PartitionKey::from("somebody");
        let charges = scopes.each_ref().map(|scope| Charge {
            bucket: Bucket { scope, key: &key },
            limit: scope.quota().capacity(),
            cost: 3,
            mode: Mode::Enforced,
        });
        let first = self.store.check_and_record(&charges).await.unwrap();
        assert!(first.admitted && first.states.iter().all(|state| state.used == 3));
        let second = self.store.check_and_record(&charges).await.unwrap();
        let outcomes: Vec<_> = second.states.iter().map(|state| state.outcome).collect();
        let (no, yes) = (Outcome::Denied, Outcome::Admitted);
        assert!(!second.admitted);
        assert_eq!(outcomes, [no, yes, no, no]);
        assert!(
            second
                .states
                .iter()
                .all(|state| state.used == 3 && state.entry.is_none())
        );
    }

    async fn a_shadow_policy_never_refuses_and_is_charged_when_it_would_admit(&self) {
        let real = Subject::new("shadow", Quota::new(5, 10 * SECOND));
        let tried = Quota::new(1, 10 * SECOND);
        // A call never spans groups.
        let shadow = Subject {
            scope: Scope::new("shadow", Tag::Key, "tried", tried),
            ..Subject::new("shadow", tried)
        };
        for round in 1..=5 {
            let charges = [
                real.charge(1),
                Charge {
                    mode: Mode::Shadow,
                    ..shadow.charge(1)
                },
            ];
            let verdict = self.store.check_and_record(&charges).await.unwrap();
            assert!(verdict.admitted);
            assert_eq!((verdict.states[0].used, verdict.states[1].used), (round, 1));
            let expected = if round == 1 {
                Outcome::Admitted
            } else {
                Outcome::Denied
            };
            assert_eq!(verdict.states[1].outcome, expected);
        }
    }

    async fn policies_keys_and_groups_do_not_share_state(&self) {
        let quota = Quota::new(1, 10 * SECOND);
        let scopes = [
            Scope::new("apart", Tag::Key, "one", quota),
            Scope::new("apart", Tag::Key, "two", quota),
            Scope::new("apart-2", Tag::Key, "one", quota),
            Scope::new("apart", Tag::Group, "one", quota),
            Scope::new("apart", Tag::Key, "one", quota.fixed()),
        ];
        for scope in &scopes {
            for key in ["x", "y"].map(PartitionKey::from) {
                let charge = Charge {
                    bucket: Bucket { scope, key: &key },
                    limit: 1,
                    cost: 1,
                    mode: Mode::Enforced,
                };
                assert!(self.take(charge).await.admitted, "{scope:?}");
                assert!(!self.take(charge).await.admitted, "{scope:?}");
            }
        }
    }
}
