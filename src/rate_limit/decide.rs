//! From a store's answer, good or bad, to what becomes of the request; shared by layer and limiter.

use super::config::Config;
use super::meters::Decider;
use super::rejection::RateLimitRejection;
use super::rule::Asks;
use super::status::{PolicyStatus, Statuses};
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

/// A verdict, with what each policy said that was asked.
#[derive(Debug)]
pub(super) struct Decided {
    pub(super) admitted: bool,
    pub(super) source: Source,
    pub(super) own: Statuses,
}

impl Decided {
    #[inline]
    pub(super) fn of(config: &Config, asks: &mut Asks, verdict: &Verdict) -> Self {
        let (source, mut own) = (verdict.source, Statuses::new());
        if source == Source::DenyCache {
            config.meters.deny_cache_hits.add_one();
        }
        if asks.len() > 1 {
            own.reserve_exact(asks.len());
        }
        for (ask, state) in asks.drain(..).zip(&verdict.states) {
            let rule = &config.rules[ask.rule];
            if state.outcome == Outcome::NotAsked {
                continue;
            }
            rule.meters.decided(state, rule.policy.mode);
            own.push(PolicyStatus {
                scope: rule.scope_of(source).clone(),
                key: ask.key,
                state: *state,
                mode: rule.policy.mode,
                rule: ask.rule,
                declared: source != Source::Local || config.settings.processes == 1,
                now: verdict.now,
            });
        }
        Self {
            admitted: verdict.admitted,
            source,
            own,
        }
    }
}

/// Makes the refusal of what the policies said.
#[inline]
pub(super) fn rejection(config: &Config, own: Statuses) -> RateLimitRejection {
    let rejection = RateLimitRejection::limited(own);
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
