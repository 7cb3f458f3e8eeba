//! From where on a part that answers counts as degraded.

use std::time::Duration;

/// Bounds; what lies beyond makes a report `degraded`.
#[derive(Clone, Copy, Debug, PartialEq)]
#[must_use]
pub struct Thresholds {
    pub(super) hit_rate: f64,
    pub(super) fallbacks: f64,
    pub(super) errors: f64,
    pub(super) p99: Duration,
    pub(super) memory: f64,
    pub(super) window: Duration,
}

impl Thresholds {
    /// Sets the least share of a cache's reads that are hits (0.8).
    pub const fn hit_rate(mut self, least: f64) -> Self {
        self.hit_rate = least;
        self
    }

    /// Sets the greatest share of a store's calls that are not sent since its breaker is open (0.05).
    pub const fn fallbacks(mut self, most: f64) -> Self {
        self.fallbacks = most;
        self
    }

    /// Sets the greatest share of a store's calls that fail (0.001).
    pub const fn errors(mut self, most: f64) -> Self {
        self.errors = most;
        self
    }

    /// Sets how long all but one in a hundred calls of a store may take (10 ms).
    pub const fn p99(mut self, longest: Duration) -> Self {
        self.p99 = longest;
        self
    }

    /// Sets how much of a store's memory may be in use (0.8); in this process, of a table whose entries are never evicted.
    pub const fn memory(mut self, most: f64) -> Self {
        self.memory = most;
        self
    }

    /// Sets the time whose calls are judged (1 min), or those since the report before, if that is longer ago. With fewer
    /// than a thousand calls nothing is: so what went wrong is told for that long at most, however little is asked after.
    /// A hit rate is of the last thousand reads, whenever they were.
    pub const fn window(mut self, span: Duration) -> Self {
        self.window = span;
        self
    }
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            hit_rate: 0.8,
            fallbacks: 0.05,
            errors: 0.001,
            p99: Duration::from_millis(10),
            memory: 0.8,
            window: Duration::from_secs(60),
        }
    }
}
