//! The same limits as a handle, for code without a request.

use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use super::attempt::{Attempt, Decision, Denial, Grant, RateLimitError, Status};
use super::config::{Config, Policy, Settings, Shared};
use super::decide::{self, Decided, Failed};
use super::partition::{Partition, PartitionKey};
use super::quota::Quota;
use super::status::{PolicyStatus, Statuses};
use super::store::{Charge, Outcome, RateLimitStore, Receipt, Refunded, Source, Verdict};
use crate::core::{StoreFailure, StoreFuture, Timestamp};

/// Limits without tower: one store call per method.
///
/// `check` and `check_and_record` apply the failure mode; the others return the store's error.
#[derive(Clone, Debug)]
#[must_use]
pub struct RateLimiter {
    shared: Arc<Shared>,
}

type Call = fn(&dyn RateLimitStore, &[Charge<'_>]) -> StoreFuture<Verdict>;

impl RateLimiter {
    /// Makes a limiter that counts in `store`.
    pub fn new(store: impl RateLimitStore) -> Self {
        Self::of(Shared::new(Settings::new(store)))
    }

    pub(super) fn of(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    fn set(self, change: impl FnOnce(&mut Settings)) -> Self {
        Self::of(self.shared.set(change))
    }

    /// Adds a policy that is named by its partition.
    ///
    /// # Panics
    /// See [`RateLimiter::policy`].
    pub fn limit(self, quota: Quota, partition: Partition) -> Self {
        let name = partition.name().to_owned();
        self.policy(Policy::new(name, quota, partition))
    }

    /// Adds a policy. What it reads from a request (`limit_by`, `cost`, `refund_when`) plays no part here.
    ///
    /// # Panics
    /// If there is a policy of that name, or 16 policies.
    pub fn policy(self, policy: Policy) -> Self {
        self.set(|settings| settings.add(policy))
    }

    /// Names the group, `default` unless set.
    ///
    /// # Panics
    /// If the name is not 1 to 64 characters of `a-z 0-9 . _ -`.
    pub fn group(self, name: impl AsRef<str>) -> Self {
        self.set(|settings| settings.set_group(name.as_ref()))
    }

    /// Sets who decides while the store cannot answer, [`StoreFailure::Local`] unless set.
    pub fn on_store_failure(self, mode: StoreFailure) -> Self {
        self.set(|settings| settings.failure = mode)
    }

    /// Sets how many processes share the store, 1 unless set: each gets its share of a limit while the store is away.
    ///
    /// # Panics
    /// If `processes` is 0.
    pub fn processes(self, processes: u32) -> Self {
        self.set(|settings| settings.set_processes(processes))
    }

    /// Sets how long a store call may take, 50 ms unless set.
    ///
    /// # Panics
    /// If `timeout` is not within 1 ms and 5 s.
    pub fn timeout(self, timeout: Duration) -> Self {
        self.set(|settings| settings.set_timeout(timeout))
    }

    /// Decides about an attempt without charging it.
    ///
    /// # Errors
    /// An unknown policy; the store's error under [`StoreFailure::Closed`].
    pub async fn check(&self, attempt: Attempt) -> Result<Decision, RateLimitError> {
        self.decide(attempt, |store, charges| store.check(charges))
            .await
    }

    /// Decides about an attempt and charges it if every policy admits, in one step.
    ///
    /// # Errors
    /// An unknown policy; the store's error under [`StoreFailure::Closed`].
    pub async fn check_and_record(&self, attempt: Attempt) -> Result<Decision, RateLimitError> {
        self.decide(attempt, |store, charges| store.check_and_record(charges))
            .await
    }

    /// Charges an attempt whatever the policies say: for what has already happened.
    ///
    /// # Errors
    /// An unknown policy; the store's error.
    pub async fn record(&self, attempt: Attempt) -> Result<Grant, RateLimitError> {
        let config = self.shared.config();
        let asks = asks(config, attempt)?;
        if asks.is_empty() {
            return Ok(Grant { decided: None });
        }
        let answer = config.store.record(&config.charges(&asks, Source::Store));
        let verdict = answer.await?;
        Ok(Grant {
            decided: Some(decided(config, asks, &verdict, verdict.source)),
        })
    }

    /// Gives back what still counts of a grant.
    ///
    /// # Errors
    /// The store's; at worst the units age out.
    pub async fn refund(&self, grant: Grant) -> Result<Refunded, RateLimitError> {
        let Some(decided) = grant.decided else {
            return Ok(Refunded::TooLate);
        };
        let config = self.shared.config();
        let receipt = {
            let own = &decided.own;
            let charges: SmallVec<[Charge<'_>; 4]> = own.iter().map(PolicyStatus::charge).collect();
            let states: SmallVec<[_; 4]> = own.iter().map(|entry| entry.state).collect();
            Receipt::new(&charges, &states)
        };
        let refunded = config.store_of(decided.source).refund(&receipt).await;
        config.meters.refund(refunded.as_ref().ok().copied());
        Ok(refunded?)
    }

    /// Returns what `policy` says about `key`.
    ///
    /// # Errors
    /// An unknown policy; the store's error.
    pub async fn peek(
        &self,
        policy: &str,
        key: impl Into<PartitionKey>,
    ) -> Result<Status, RateLimitError> {
        let config = self.shared.config();
        let asks = asks(config, Attempt::new().on(policy, key))?;
        let answer = config.store.check(&config.charges(&asks, Source::Store));
        let verdict = answer.await?;
        verdict
            .states
            .first()
            .map(|state| {
                let reset = verdict.now.saturating_add(state.more_in_micros());
                Status {
                    limit: state.limit,
                    attempts: state.used,
                    remaining: state.remaining,
                    reset_time: Timestamp::from_millis(reset.div_ceil(1_000)),
                    retry_after: state.retry_in().filter(|wait| !wait.is_zero()),
                    blocked: state.outcome == Outcome::Blocked,
                }
            })
            .ok_or_else(RateLimitError::unknown_policy)
    }

    /// Forgets what is counted for `key` and lifts its block.
    ///
    /// # Errors
    /// An unknown policy; the store's error.
    pub async fn reset(
        &self,
        policy: &str,
        key: impl Into<PartitionKey>,
    ) -> Result<(), RateLimitError> {
        let config = self.shared.config();
        let asks = asks(config, Attempt::new().on(policy, key))?;
        let charges = config.charges(&asks, Source::Store);
        let buckets: SmallVec<[_; 1]> = charges.iter().map(|charge| charge.bucket).collect();
        let answer = config.store.reset(&buckets);
        Ok(answer.await?)
    }

    /// Refuses every attempt of `key` for `duration`, whatever it costs.
    ///
    /// # Errors
    /// An unknown policy; the store's error.
    pub async fn block(
        &self,
        policy: &str,
        key: impl Into<PartitionKey>,
        duration: Duration,
    ) -> Result<(), RateLimitError> {
        let config = self.shared.config();
        let asks = asks(config, Attempt::new().on(policy, key))?;
        let answer = {
            let charges = config.charges(&asks, Source::Store);
            config.store.block(&charges[0].bucket, duration)
        };
        Ok(answer.await?)
    }

    async fn decide(&self, attempt: Attempt, call: Call) -> Result<Decision, RateLimitError> {
        let config = self.shared.config();
        let asks = asks(config, attempt)?;
        if asks.is_empty() {
            return Ok(Decision::Allowed(Grant { decided: None }));
        }
        let mut source = Source::Store;
        loop {
            let answer = call(config.store_of(source), &config.charges(&asks, source));
            let fault = match answer.await {
                Ok(verdict) => {
                    let source = decide::answered(config, &verdict, source);
                    return Ok(decision(config, decided(config, asks, &verdict, source)));
                }
                Err(fault) => fault,
            };
            match decide::failed(config, fault, source) {
                Failed::AskLocal => source = Source::Local,
                Failed::Unguarded => return Ok(Decision::Allowed(Grant { decided: None })),
                Failed::Refuse(fault) => return Err(fault.into()),
            }
        }
    }
}

fn asks(config: &Config, attempt: Attempt) -> Result<Statuses, RateLimitError> {
    let mut asks = Statuses::new();
    for (name, key) in attempt.keys {
        let mut rules = config.rules.iter().enumerate();
        let (index, rule) = rules
            .find(|(_, rule)| *rule.policy.name == *name)
            .ok_or_else(RateLimitError::unknown_policy)?;
        let key = rule.policy.partition.normalize(key);
        asks.push(PolicyStatus {
            key,
            cost: attempt.cost,
            ..PolicyStatus::asked(index, rule)
        });
    }
    let charges = config.charges(&asks, Source::Store);
    let mut pairs = charges.windows(2);
    if pairs.all(|pair| pair[0].bucket.shares_tag(&pair[1].bucket)) {
        drop(charges);
        return Ok(asks);
    }
    Err(RateLimitError::keys_differ())
}

fn decided(config: &Config, mut own: Statuses, verdict: &Verdict, source: Source) -> Decided {
    decide::note(config, &mut own, verdict, source);
    Decided {
        admitted: verdict.admitted,
        source,
        own,
    }
}

fn decision(config: &Config, decided: Decided) -> Decision {
    if decided.admitted {
        return Decision::Allowed(Grant {
            decided: Some(decided),
        });
    }
    let rejection = decide::rejection(config, decided.own.clone());
    Decision::Denied(Denial { decided, rejection })
}
