//! A random history that all stores must tell alike.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use super::quotas;
use crate::core::ManualClock;
use crate::rate_limit::store::{Bucket, Charge, Mode, Receipt, Scope, Tag};
use crate::rate_limit::{PartitionKey, RateLimitStore};

/// Runs `steps` random steps on one store and tells what it answered. Two stores that start at the same
/// time of their clocks must tell the same.
///
/// # Panics
/// When the store fails.
pub async fn history(
    store: Arc<dyn RateLimitStore>,
    clock: &ManualClock,
    seed: u64,
    steps: usize,
) -> String {
    let names = ["log", "buckets", "gcra", "fixed", "month"];
    let scopes: Vec<Scope> = quotas()
        .iter()
        .zip(names)
        .map(|(quota, name)| Scope::new(&format!("history{seed}"), Tag::Group, name, *quota))
        .collect();
    let keys = ["a", "b"].map(PartitionKey::from);
    let (mut dice, mut receipts, mut told) = (Dice(seed), Vec::new(), String::new());
    for _ in 0..steps {
        let charges = dice.charges(&scopes, &keys);
        if charges.is_empty() {
            continue;
        }
        let line = step(&*store, &charges, &mut receipts, &mut dice).await;
        assert!(!line.starts_with("Err"), "the store failed: {line}");
        // Writing to a `String` cannot fail.
        let _ = writeln!(told, "{line}");
        // Never back: what has expired may be forgotten, so a clock that went back tells engines apart.
        match dice.roll(60) {
            0..9 => clock.advance(Duration::from_micros(dice.roll(4_000_000) as u64)),
            9..40 => clock.advance(Duration::from_micros(dice.roll(300_000) as u64)),
            _ => {}
        }
    }
    told
}

async fn step(
    store: &dyn RateLimitStore,
    charges: &[Charge<'_>],
    receipts: &mut Vec<Receipt>,
    dice: &mut Dice,
) -> String {
    let bucket = charges[0].bucket;
    match dice.roll(16) {
        0 => format!("{:?}", store.check(charges).await),
        1 => format!("{:?}", store.record(charges).await),
        2 => format!("{:?}", store.reset(&[bucket]).await),
        3 => format!("{:?}", store.block(&bucket, Duration::from_secs(1)).await),
        4 | 5 if !receipts.is_empty() => {
            let receipt = receipts.swap_remove(dice.roll(receipts.len()));
            format!("{:?}", store.refund(&receipt).await)
        }
        _ => {
            let verdict = store.check_and_record(charges).await;
            if let Ok(verdict) = &verdict {
                receipts.push(Receipt::new(charges, &verdict.states));
            }
            format!("{verdict:?}")
        }
    }
}

/// A small generator: tests have to be repeatable, not random.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
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
