//! A random history that all stores must tell alike.

use std::sync::Arc;
use std::time::Duration;

use super::quotas;
use crate::core::ManualClock;
use crate::rate_limit::store::{
    Bucket, Charge, Mode, Outcome, Receipt, Refunded, Scope, Source, Tag, Verdict,
};
use crate::rate_limit::{PartitionKey, RateLimitStore};

/// One step of a history and what the store answered.
#[derive(Clone, Debug)]
pub struct Told {
    /// What was asked.
    pub asked: &'static str,
    /// The decision, for the three methods that decide.
    pub verdict: Option<Verdict>,
    /// What became of a refund.
    pub refunded: Option<Refunded>,
}

impl Told {
    /// Says whether two stores told the same. A refusal that one knew without asking tells less: it must be a refusal by
    /// the same policies, and name no longer wait.
    #[must_use]
    pub fn agrees_with(&self, other: &Self) -> bool {
        if (self.asked, self.refunded) != (other.asked, other.refunded) {
            return false;
        }
        match (&self.verdict, &other.verdict) {
            (Some(one), Some(two)) if one.source == Source::DenyCache => known(one, two),
            (Some(one), Some(two)) if two.source == Source::DenyCache => known(two, one),
            (Some(one), Some(two)) => {
                (one.admitted, one.now, &one.states) == (two.admitted, two.now, &two.states)
            }
            (one, two) => one.is_none() && two.is_none(),
        }
    }
}

/// Holds what was known against what a store said that was asked.
fn known(known: &Verdict, asked: &Verdict) -> bool {
    let pairs = known.states.iter().zip(&asked.states);
    !known.admitted
        && !asked.admitted
        && pairs
            .filter(|(known, _)| known.outcome != Outcome::NotAsked)
            .all(|(known, asked)| {
                let never = std::time::Duration::MAX;
                // A block that came later is not told; the refusal stands.
                asked.outcome != Outcome::Admitted
                    && known.limit == asked.limit
                    && known.retry_in().unwrap_or(never) <= asked.retry_in().unwrap_or(never)
            })
}

/// Runs `steps` random steps on one store and tells what it answered. Two stores that start at the same
/// time of their clocks must agree on every step.
///
/// # Panics
/// When the store fails.
pub async fn history(
    store: Arc<dyn RateLimitStore>,
    clock: &ManualClock,
    seed: u64,
    steps: usize,
) -> Vec<Told> {
    let names = ["log", "buckets", "gcra", "fixed", "month"];
    let scopes: Vec<Scope> = quotas()
        .iter()
        .zip(names)
        .map(|(quota, name)| Scope::new(&format!("history{seed}"), Tag::Group, name, *quota))
        .collect();
    let keys = ["a", "b"].map(PartitionKey::from);
    let (mut dice, mut receipts, mut told) = (Dice(seed), Vec::new(), Vec::new());
    for _ in 0..steps {
        let charges = dice.charges(&scopes, &keys);
        if charges.is_empty() {
            continue;
        }
        told.push(step(&*store, &charges, &mut receipts, &mut dice).await);
        // Never back: what has expired may be forgotten, so a clock that went back tells engines apart.
        match dice.roll(60) {
            0..9 => clock.advance(Duration::from_micros(dice.roll(4_000_000) as u64)),
            9..40 => clock.advance(Duration::from_micros(dice.roll(300_000) as u64)),
            _ => {}
        }
    }
    told
}

#[allow(clippy::unwrap_used)]
async fn step(
    store: &dyn RateLimitStore,
    charges: &[Charge<'_>],
    receipts: &mut Vec<Receipt>,
    dice: &mut Dice,
) -> Told {
    let bucket = charges[0].bucket;
    let (mut verdict, mut refunded) = (None, None);
    let asked = match dice.roll(16) {
        0 => {
            verdict = Some(store.check(charges).await.unwrap());
            "check"
        }
        1 => {
            verdict = Some(store.record(charges).await.unwrap());
            "record"
        }
        2 => {
            store.reset(&[bucket]).await.unwrap();
            "reset"
        }
        3 => {
            store.block(&bucket, Duration::from_secs(1)).await.unwrap();
            "block"
        }
        4 | 5 if !receipts.is_empty() => {
            let receipt = receipts.swap_remove(dice.roll(receipts.len()));
            refunded = Some(store.refund(&receipt).await.unwrap());
            "refund"
        }
        _ => {
            let decided = store.check_and_record(charges).await.unwrap();
            receipts.push(Receipt::new(charges, &decided.states));
            verdict = Some(decided);
            "check_and_record"
        }
    };
    Told {
        asked,
        verdict,
        refunded,
    }
}

/// A small generator: tests have to be repeatable, not random.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn roll(&mut self, sides: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % sides as u64) as usize
    }

    /// Costs, limits and modes of all kinds, for a third of the scopes.
    fn charges<'a>(&mut self, scopes: &'a [Scope], keys: &'a [PartitionKey]) -> Vec<Charge<'a>> {
        let mut charges = Vec::new();
        for scope in scopes {
            if self.roll(3) > 0 {
                continue;
            }
            let whole = scope.quota().capacity();
            let key = &keys[self.roll(keys.len())];
            charges.push(Charge {
                bucket: Bucket { scope, key },
                limit: match self.roll(4) {
                    0 => self.roll(whole as usize + 1) as u32,
                    _ => whole,
                },
                cost: self.roll(5) as u32 * if whole > 1_000 { 300 } else { 1 },
                mode: match self.roll(6) {
                    0 => Mode::Shadow,
                    _ => Mode::Enforced,
                },
            });
        }
        charges
    }
}
