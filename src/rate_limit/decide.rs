//! From a store's answer, good or bad, to what becomes of the request; shared by layer and limiter.

use std::sync::atomic::Ordering;

use super::config::Config;
use super::meters::Decider;
use super::rejection::RateLimitRejection;
use super::status::{PolicyStatus, Statuses};
use super::store::{Outcome, Source, Verdict};
use crate::core::telemetry::{debug, warn};
use crate::core::{FAILURES_TO_OPEN, StoreError, StoreFailure};

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

/// Notes that `asked` has answered; returns who decided.
#[inline]
pub(super) fn answered(config: &Config, verdict: &Verdict, asked: Source) -> Source {
    let (decider, source) = match asked {
        Source::Local => (Decider::Local, asked),
        Source::Store | Source::DenyCache => (Decider::Store, verdict.source),
    };
    config.meters.decides(&config.settings.group, decider);
    // What this process knows by itself is no sign that the store is back.
    if source == Source::Store && config.failures.load(Ordering::Relaxed) > 0 {
        tell_back(config);
    }
    source
}

/// Applies the failure mode where `asked` could not answer.
#[cold]
pub(super) fn failed(config: &Config, fault: StoreError, asked: Source) -> Failed {
    if asked == Source::Store || !fault.is_unknown() {
        tell_away(config, &fault);
    }
    let (failed, decider) = match (config.failure(), asked) {
        (StoreFailure::Local, Source::Store) => return Failed::AskLocal,
        (StoreFailure::Open, _) => (Failed::Unguarded, Decider::Open),
        // Nor does a layer that only counts refuse where the store inside this process has no room left.
        _ if config.only_shadow => (Failed::Unguarded, Decider::Open),
        _ => (Failed::Refuse(fault), Decider::Closed),
    };
    config.meters.decides(&config.settings.group, decider);
    failed
}

/// Says that an outage begins, once for each: when the breaker opens. What fails for another reason is said once.
#[cold]
fn tell_away(config: &Config, fault: &StoreError) {
    let is_told = if fault.is_unknown() {
        config.failures.fetch_add(1, Ordering::Relaxed) + 1 == FAILURES_TO_OPEN
    } else {
        config.refused_by_store.first()
    };
    if is_told {
        warn!(
            group = &*config.settings.group,
            error = %fault,
            "the rate limit's store cannot answer: the failure mode decides"
        );
    }
}

/// Says that it is over.
#[cold]
fn tell_back(config: &Config) {
    if config.failures.swap(0, Ordering::Relaxed) >= FAILURES_TO_OPEN {
        warn!(
            group = &*config.settings.group,
            "the rate limit's store answers again"
        );
    }
}

/// A verdict, with what each policy said that was asked.
#[derive(Debug)]
pub(super) struct Decided {
    pub(super) admitted: bool,
    pub(super) source: Source,
    pub(super) own: Statuses,
}

/// Writes down what each policy said that was asked.
#[inline]
pub(super) fn note(config: &Config, own: &mut Statuses, verdict: &Verdict, source: Source) {
    if source == Source::DenyCache {
        config.meters.deny_cache_hits.add_one();
    }
    for (entry, state) in own.iter_mut().zip(&verdict.states) {
        let rule = &config.rules[entry.rule];
        rule.meters.decided(state, entry.mode);
        if source == Source::Local {
            entry.scope = rule.local.clone();
            entry.declared = config.settings.processes == 1;
        }
        (entry.state, entry.now) = (*state, verdict.now);
    }
    let is_known = |entry: &PolicyStatus| entry.state.outcome != Outcome::NotAsked;
    if !own.iter().all(is_known) {
        own.retain(|entry| is_known(entry));
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
