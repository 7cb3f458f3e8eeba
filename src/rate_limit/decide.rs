//! From a store's answer, good or bad, to what becomes of the request; shared by layer and limiter.

use super::config::Config;
use super::headers::RateLimitFields;
use super::meters::Decider;
use super::rejection::RateLimitRejection;
use super::rule::Asks;
use super::status::{PolicyStatus, RateLimitStatus};
use super::store::{Outcome, Source, Verdict};
use crate::core::telemetry::{debug, warn};
use crate::core::{StoreError, StoreFailure};

/// What a store's failure means.
#[derive(Debug)]
pub(super) enum Failed {
    /// Ask the store inside this process.
    AskLocal,
    /// The layer is open.
    Unguarded,
    /// The layer is closed.
    Refuse(StoreError),
}

/// Applies the failure mode to the answer of `source`.
pub(super) fn answered(
    config: &Config,
    answer: Result<Verdict, StoreError>,
    source: Source,
) -> Result<Verdict, Failed> {
    let fault = match answer {
        Ok(mut verdict) => {
            if source == Source::Local {
                verdict.source = source;
            }
            let decider = match source {
                Source::Local => Decider::Local,
                Source::Store | Source::DenyCache => Decider::Store,
            };
            config.meters.decides(&config.settings.group, decider);
            return Ok(verdict);
        }
        Err(fault) => fault,
    };
    if config.source_changed.first() {
        warn!(
            group = &*config.settings.group,
            error = %fault,
            "the rate limit's store cannot answer: the failure mode decides"
        );
    }
    let (failed, decider) = match (config.failure(), source) {
        (StoreFailure::Local, Source::Store) => return Err(Failed::AskLocal),
        (StoreFailure::Open, _) => (Failed::Unguarded, Decider::Open),
        // Nor does a layer that only counts refuse where the store inside this process has no room left.
        _ if config.only_shadow => (Failed::Unguarded, Decider::Open),
        _ => (Failed::Refuse(fault), Decider::Closed),
    };
    config.meters.decides(&config.settings.group, decider);
    Err(failed)
}

/// A verdict, added to the status of the request.
#[derive(Debug)]
pub(super) struct Decided {
    pub(super) admitted: bool,
    pub(super) source: Source,
    /// All layers so far.
    pub(super) status: RateLimitStatus,
    /// Where this layer's part of it begins.
    pub(super) own: usize,
}

impl Decided {
    pub(super) fn of(
        config: &Config,
        asks: &mut Asks,
        verdict: &Verdict,
        mut status: RateLimitStatus,
    ) -> Self {
        let own = status.len();
        status.reserve(asks.len());
        if verdict.source == Source::DenyCache {
            config.meters.deny_cache_hits.add_one();
        }
        for (ask, state) in asks.drain(..).zip(&verdict.states) {
            let rule = &config.rules[ask.rule];
            if state.outcome == Outcome::NotAsked {
                continue;
            }
            rule.meters.decided(state, rule.policy.mode);
            status.push(PolicyStatus {
                scope: rule.scope_of(verdict.source).clone(),
                key: ask.key,
                state: *state,
                mode: rule.policy.mode,
                declared: verdict.source != Source::Local || config.settings.processes == 1,
                now: verdict.now,
            });
        }
        Self {
            admitted: verdict.admitted,
            source: verdict.source,
            status,
            own,
        }
    }

    /// This layer's part.
    pub(super) fn own(&self) -> &[PolicyStatus] {
        self.status.since(self.own)
    }

    pub(super) fn fields(&self, config: &Config) -> RateLimitFields {
        RateLimitFields::render(config, &self.status, self.own())
    }

    pub(super) fn rejection(&self, config: &Config) -> RateLimitRejection {
        let rejection = RateLimitRejection::limited(self.own());
        debug!(
            group = &*config.settings.group,
            policy = rejection.code(),
            key = ?rejection.binding().map(|binding| binding.key.digest()),
            retry_after = ?rejection.retry_after(),
            "refused"
        );
        #[cfg(not(feature = "tracing"))]
        let _ = config;
        rejection
    }
}
