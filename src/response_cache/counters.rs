//! What became of requests: counted by outcome and by reason since the start, and looked back on for the last thousand.

use std::collections::VecDeque;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::core::{ResponseCacheOutcome, Stripes, telemetry};

use super::ready;
use super::status::Reason;
use super::store::Place;

/// A look back is taken at every so many requests of one outcome on one stripe, so that hits pay nothing for it.
const LOOK_EVERY: u64 = 128;
/// Looks back lie at least so many requests apart, and so many are kept.
const LOOKS_APART: u64 = 100;
const MOST_LOOKS: usize = 32;
/// The hit rate of late is one of so many requests, or a few more.
const RECENT: u64 = 1_000;

#[derive(Debug, Default)]
pub(super) struct Counters {
    stripes: Stripes<[AtomicU64; 9]>,
    refused: [AtomicU64; Reason::ALL.len()],
    pub(super) store_errors: AtomicU64,
    looks: Mutex<VecDeque<Shares>>,
    name: OnceLock<&'static str>,
    shared: bool,
    #[cfg(feature = "metrics")]
    evicted: AtomicU64,
}

/// How many requests there were, and how many of them needed no run of the inner service.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Shares {
    pub(super) hits: u64,
    pub(super) all: u64,
}

/// Where an answer came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    /// This process, without asking anybody.
    Local,
    /// A shared store, or the inner service.
    Shared,
}

const fn index(outcome: ResponseCacheOutcome) -> usize {
    match outcome {
        ResponseCacheOutcome::Hit => 0,
        ResponseCacheOutcome::StaleHit => 1,
        ResponseCacheOutcome::Validated => 2,
        ResponseCacheOutcome::Stored => 3,
        ResponseCacheOutcome::Collapsed => 4,
        ResponseCacheOutcome::StandIn => 5,
        ResponseCacheOutcome::Uncacheable => 6,
        ResponseCacheOutcome::Bypass => 7,
        ResponseCacheOutcome::Refused => 8,
    }
}

const LABELS: [&str; 9] = [
    "hit",
    "stale_hit",
    "validated",
    "stored",
    "collapsed",
    "stand_in",
    "uncacheable",
    "bypass",
    "refused",
];

/// The outcome as labels and spans have it.
#[cfg(feature = "tracing")]
pub(super) const fn label(outcome: ResponseCacheOutcome) -> &'static str {
    LABELS[index(outcome)]
}

impl Counters {
    pub(super) fn new(place: Place) -> Self {
        Self {
            shared: place == Place::Shared,
            ..Self::default()
        }
    }

    /// Names the cache in labels, once.
    pub(super) fn be_named(&self, name: &'static str) {
        let _ = self.name.set(name);
    }

    pub(super) fn given_name(&self) -> Option<&'static str> {
        self.name.get().copied()
    }

    pub(super) fn name(&self) -> &'static str {
        self.given_name().unwrap_or(ready::NAME)
    }

    pub(super) fn count(&self, outcome: ResponseCacheOutcome) {
        let level = if self.shared {
            Level::Shared
        } else {
            Level::Local
        };
        self.count_at(outcome, level);
    }

    pub(super) fn count_at(&self, outcome: ResponseCacheOutcome, level: Level) {
        let at = index(outcome);
        let before = self.stripes.own()[at].fetch_add(1, Ordering::Relaxed);
        if before % LOOK_EVERY == LOOK_EVERY - 1 {
            self.look_back();
        }
        let level = match level {
            Level::Local => "local",
            Level::Shared => "shared",
        };
        telemetry::count!("keep_response_cache_requests_total", 1, "name" => self.name(), "outcome" => LABELS[at], "level" => level);
    }

    pub(super) fn of(&self, outcome: ResponseCacheOutcome) -> u64 {
        let stripes = self.stripes.iter();
        stripes
            .map(|stripe| stripe[index(outcome)].load(Ordering::Relaxed))
            .sum()
    }

    /// Considered requests so far; a miss is never a hit.
    pub(super) fn shares(&self) -> Shares {
        use ResponseCacheOutcome as To;
        let sum = |outcomes: &[To]| {
            outcomes
                .iter()
                .map(|outcome| self.of(*outcome))
                .sum::<u64>()
        };
        let hits = sum(&[To::Hit, To::StaleHit, To::Collapsed, To::StandIn]);
        let all = hits + sum(&[To::Validated, To::Stored, To::Uncacheable]);
        Shares { hits, all }
    }

    fn look_back(&self) {
        let (now, mut looks) = (self.shares(), self.looks.lock());
        let last = looks.back().map_or(0, |look| look.all);
        if now.all < last + LOOKS_APART {
            return;
        }
        if looks.len() == MOST_LOOKS {
            looks.pop_front();
        }
        looks.push_back(now);
    }

    /// The last thousand considered requests, or a few more; all of them while there were no more.
    pub(super) fn recent(&self) -> Shares {
        let (now, looks) = (self.shares(), self.looks.lock());
        let before = looks
            .iter()
            .rev()
            .find(|look| now.all.saturating_sub(look.all) >= RECENT);
        let before = before.copied().unwrap_or_default();
        Shares {
            hits: now.hits.saturating_sub(before.hits),
            all: now.all.saturating_sub(before.all),
        }
    }

    pub(super) fn refused(&self, reason: Reason) {
        self.refused[reason as usize].fetch_add(1, Ordering::Relaxed);
        telemetry::debug!(reason = reason.as_str(), "response cache: not stored");
        telemetry::count!("keep_response_cache_refusals_total", 1, "reason" => reason.as_str());
    }

    /// How often an answer was not stored, by reason.
    pub(super) fn refusals(&self) -> [(&'static str, u64); Reason::ALL.len()] {
        Reason::ALL.map(|reason| {
            let count = self.refused[reason as usize].load(Ordering::Relaxed);
            (reason.as_str(), count)
        })
    }

    /// How many more were evicted since this was last asked.
    #[cfg(feature = "metrics")]
    pub(super) fn newly_evicted(&self, all: u64) -> u64 {
        all.saturating_sub(self.evicted.fetch_max(all, Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hit_rate_of_late_is_of_the_last_thousand_or_a_few_more() {
        let counters = Counters::new(Place::Process);
        let count = |outcome, times: usize| (0..times).for_each(|_| counters.count(outcome));
        count(ResponseCacheOutcome::Stored, 700);
        let shares = counters.recent();
        assert_eq!(
            (shares.hits, shares.all),
            (0, 700),
            "all, while they are few"
        );
        count(ResponseCacheOutcome::Hit, 5_000);
        // Passed requests were not considered.
        count(ResponseCacheOutcome::Bypass, 5_000);
        let shares = counters.recent();
        assert_eq!(shares.hits, shares.all);
        assert!(
            (RECENT..RECENT + 2 * LOOK_EVERY).contains(&shares.all),
            "{shares:?}"
        );
        assert_eq!(counters.shares().all, 5_700);
    }

    #[test]
    fn refusals_are_told_by_their_reason() {
        let counters = Counters::new(Place::Process);
        counters.refused(Reason::Vary);
        counters.refused(Reason::Vary);
        let refusals = counters.refusals();
        let told = |name| {
            refusals
                .iter()
                .find(|(own, _)| *own == name)
                .map(|(_, count)| *count)
        };
        assert_eq!((told("vary"), told("bounds")), (Some(2), Some(0)));
        assert_eq!(refusals.iter().map(|(_, count)| count).sum::<u64>(), 2);
    }
}
