//! Random histories of one or several policies, each answer held against an oracle.

use std::time::Duration;

use super::history::Dice;
use super::oracle::{Answer, Oracle, Paid, Wish};
use crate::core::{Clock, ManualClock};
use crate::rate_limit::store::{
    Bucket, Charge, Mode, Outcome, Receipt, Refunded, Scope, Source, Tag, Verdict,
};
use crate::rate_limit::{PartitionKey, Quota, RateLimitStore};

/// The algorithms, as [`histories`] knows them.
pub const ALGORITHMS: [&str; 5] = ["log", "buckets", "gcra", "fixed", "month"];

/// Runs a random history for each of `seeds` on policies of `algorithm` (and some beside it), and compares every answer
/// with an oracle that counts in another way: costs, limits per request, shadow policies, refunds, resets, blocks, and
/// clocks that jump. Returns the number of steps.
///
/// `clock` must be the store's; each history begins at a time of its own.
///
/// # Panics
/// When the store fails, or when it and the oracle disagree.
pub async fn histories(
    store: &dyn RateLimitStore,
    clock: &ManualClock,
    algorithm: &str,
    seeds: std::ops::Range<u64>,
) -> usize {
    let algorithm = ALGORITHMS.iter().position(|name| *name == algorithm);
    let mut steps = 0;
    for seed in seeds {
        // Anywhere in the ten years from 2030 on.
        clock.set_micros(1_893_456_000_000_000 + seed * 0x9e37_79b9 % 315_000_000 * 1_000_000);
        let mut history = History::new(store, clock, algorithm.unwrap_or(0), seed);
        for _ in 0..3 + history.dice.roll(8) {
            history.step().await;
            steps += 1;
        }
    }
    steps
}

struct History<'a> {
    store: &'a dyn RateLimitStore,
    clock: &'a ManualClock,
    seed: u64,
    dice: Dice,
    scopes: Vec<Scope>,
    keys: [PartitionKey; 2],
    oracle: Oracle,
    receipts: Vec<(Receipt, Vec<Paid>)>,
}

impl<'a> History<'a> {
    fn new(
        store: &'a dyn RateLimitStore,
        clock: &'a ManualClock,
        algorithm: usize,
        seed: u64,
    ) -> Self {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d);
        let mut quotas = vec![quota(algorithm, &mut dice)];
        for _ in 0..[0, 0, 1, 2][dice.roll(4)] {
            let other = dice.roll(ALGORITHMS.len());
            quotas.push(quota(other, &mut dice));
        }
        let scopes = quotas.into_iter().enumerate().map(|(index, quota)| {
            Scope::new("oracle", Tag::Group, &format!("p{index}"), quota).varied()
        });
        Self {
            scopes: scopes.collect(),
            keys: ["a", "b"].map(|key| PartitionKey::from(format!("{algorithm}-{seed}-{key}"))),
            oracle: Oracle::default(),
            receipts: Vec::new(),
            store,
            clock,
            seed,
            dice,
        }
    }

    async fn step(&mut self) {
        self.pass_time();
        let now = self.clock.now_micros();
        let wishes = self.wishes();
        let charges = charges(&self.scopes, &self.keys, &wishes);
        let (first, bucket) = (wishes[0], charges[0].bucket);
        match self.dice.roll(20) {
            0 => {
                let (admitted, expected) = self.oracle.check(&wishes, now);
                let told = self.store.check(&charges).await;
                self.hold("check", &told.expect("an answer"), admitted, &expected);
            }
            1 | 2 => {
                let (expected, paid) = self.oracle.record(&wishes, now);
                let told = self.store.record(&charges).await.expect("an answer");
                self.hold("record", &told, true, &expected);
                let receipt = Receipt::new(&charges, &told.states);
                self.receipts.push((receipt, paid));
            }
            3 => {
                self.oracle.reset(first.policy, first.key);
                self.store.reset(&[bucket]).await.expect("an answer");
            }
            4 => {
                let duration = self.dice.roll(4_000_000) as u64;
                self.oracle.block(first.policy, first.key, now + duration);
                let duration = Duration::from_micros(duration);
                let done = self.store.block(&bucket, duration).await;
                done.expect("an answer");
            }
            5..9 if !self.receipts.is_empty() => {
                let pick = self.dice.roll(self.receipts.len());
                let (receipt, paid) = self.receipts.swap_remove(pick);
                let told = self.store.refund(&receipt).await.expect("an answer");
                let expected = match self.oracle.refund(&paid, now) {
                    true => Refunded::Applied,
                    false => Refunded::TooLate,
                };
                assert_eq!(told, expected, "refund in history {}", self.seed);
                let again = self.store.refund(&receipt).await.expect("an answer");
                assert_eq!(again, Refunded::AlreadySpent);
            }
            _ => {
                let before = self.oracle.clone();
                let (admitted, expected, paid) = self.oracle.check_and_record(&wishes, now);
                let told = self.store.check_and_record(&charges).await;
                let told = told.expect("an answer");
                if told.source == Source::DenyCache {
                    // Nothing was asked, so nothing was mended after a clock that went back.
                    self.oracle = before;
                }
                self.hold("check_and_record", &told, admitted, &expected);
                let receipt = Receipt::new(&charges, &told.states);
                self.receipts.push((receipt, paid));
            }
        }
    }

    fn hold(&self, asked: &str, told: &Verdict, admitted: bool, expected: &[Answer]) {
        let agree = |(state, answer): (_, &Answer)| Answer::of(state) == *answer;
        let fits = match told.source {
            // Known without asking: nothing but refusals that the oracle makes, too.
            Source::DenyCache => {
                let mut pairs = told.states.iter().zip(expected);
                pairs.all(|(known, answer)| {
                    known.outcome == Outcome::NotAsked || answer.covers(known)
                })
            }
            _ => told.states.iter().zip(expected).all(agree),
        };
        assert!(
            fits && told.admitted == admitted,
            "{asked} in history {}: {told:?} instead of {admitted} {expected:?}",
            self.seed
        );
    }

    /// Mostly a little, sometimes a window; sometimes back, but never to before something that is over by now.
    fn pass_time(&mut self) {
        let jump = match self.dice.roll(20) {
            0..6 => 0,
            6..12 => self.dice.roll(400_000),
            12..16 => self.dice.roll(5_000_000),
            16 => self.dice.roll(25_000_000),
            17 => self.dice.roll(40) * 86_400_000_000,
            _ => return self.go_back(),
        };
        self.clock.advance(Duration::from_micros(jump as u64));
    }

    fn go_back(&mut self) {
        let now = self.clock.now_micros();
        let far = [2_000_000, 30_000_000, 3_600_000_000][self.dice.roll(3)];
        let earlier = now - self.dice.roll(far) as u64;
        let quotas: Vec<_> = self.scopes.iter().map(|scope| *scope.quota()).collect();
        if !self.oracle.ends_between(earlier, now, &quotas) {
            self.clock.set_micros(earlier);
        }
    }

    fn wishes(&mut self) -> Vec<Wish> {
        let mut wishes = Vec::new();
        for policy in 0..self.scopes.len() {
            if policy > 0 && self.dice.roll(4) == 0 {
                continue;
            }
            let quota = *self.scopes[policy].quota();
            let whole = quota.capacity();
            let limit = match self.dice.roll(4) {
                0 => self.dice.roll(whole as usize + 1) as u32,
                _ => whole,
            };
            let cost = [0, 1, 1, 1, 2, 3, whole / 2, whole, whole + 1][self.dice.roll(9)];
            wishes.push(Wish {
                policy,
                key: usize::from(self.dice.roll(4) == 0),
                quota,
                limit,
                cost,
                enforced: self.dice.roll(6) > 0,
            });
        }
        wishes
    }
}

fn charges<'a>(scopes: &'a [Scope], keys: &'a [PartitionKey], wishes: &[Wish]) -> Vec<Charge<'a>> {
    let charges = wishes.iter().map(|wish| Charge {
        bucket: Bucket {
            scope: &scopes[wish.policy],
            key: &keys[wish.key],
        },
        limit: wish.limit,
        cost: wish.cost,
        mode: match wish.enforced {
            true => Mode::Enforced,
            false => Mode::Shadow,
        },
    });
    charges.collect()
}

fn quota(algorithm: usize, dice: &mut Dice) -> Quota {
    let few = 1 + dice.roll(7) as u32;
    let window = Duration::from_secs([1, 7, 10][dice.roll(3)]);
    match algorithm {
        0 => Quota::new(few, window),
        1 => Quota::new(1_025 + 200 * few, window),
        2 => Quota::new(few, window).gcra(1 + dice.roll(9) as u32),
        3 => Quota::new(few, window).fixed(),
        _ => Quota::per_month(few),
    }
}
