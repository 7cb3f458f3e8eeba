//! The application's hand on a cache: invalidation and numbers.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::core::{ResponseCacheOutcome, telemetry};

use super::cache::Cache;
use super::stamps::{Change, ChangeKind};
use super::store::Place;
use super::target::Target;

/// Invalidates and observes one cache; cheap to clone, for application state, jobs and admin routes.
#[derive(Clone, Debug)]
pub struct ResponseCacheHandle {
    cache: Arc<Cache>,
}

/// What became of an invalidation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidateOutcome {
    /// The store has it: this process obeys at once, every other one within a second.
    Done,
    /// The store is away: this process obeys at once, and tells the store before it believes it again.
    Queued,
}

impl ResponseCacheHandle {
    pub(super) const fn new(cache: Arc<Cache>) -> Self {
        Self { cache }
    }

    /// Drops every stored answer that one of `targets` hits, in constant time. Also what is being fetched
    /// now is not used for requests that come after this.
    pub async fn invalidate(&self, targets: impl IntoIterator<Item = Target>) -> InvalidateOutcome {
        self.change(targets, ChangeKind::Gone).await
    }

    /// Makes every stored answer that one of `targets` hits stale, so that stale windows still apply.
    pub async fn expire(&self, targets: impl IntoIterator<Item = Target>) -> InvalidateOutcome {
        self.change(targets, ChangeKind::Stale).await
    }

    async fn change(
        &self,
        targets: impl IntoIterator<Item = Target>,
        kind: ChangeKind,
    ) -> InvalidateOutcome {
        let changes: Vec<Change> = targets
            .into_iter()
            .map(|target| Change { target, kind })
            .collect();
        telemetry::info!(
            targets = changes.len(),
            ?kind,
            "response cache: invalidating"
        );
        let label = if kind == ChangeKind::Gone {
            "invalidate"
        } else {
            "expire"
        };
        telemetry::count!("keep_response_cache_invalidations_total", 1, "kind" => label);
        self.cache.invalidate(changes).await
    }

    /// Returns the numbers since this cache was made.
    #[must_use]
    pub fn stats(&self) -> ResponseCacheStats {
        let (cache, counters) = (&self.cache, &self.cache.counters);
        let of = |outcome| counters.of(outcome);
        let recent = counters.recent();
        cache.show();
        ResponseCacheStats {
            hits: of(ResponseCacheOutcome::Hit),
            stale_hits: of(ResponseCacheOutcome::StaleHit),
            validations: of(ResponseCacheOutcome::Validated),
            misses: of(ResponseCacheOutcome::Stored),
            collapsed: of(ResponseCacheOutcome::Collapsed),
            stand_ins: of(ResponseCacheOutcome::StandIn),
            uncacheable: of(ResponseCacheOutcome::Uncacheable),
            passed: of(ResponseCacheOutcome::Bypass),
            refused: of(ResponseCacheOutcome::Refused),
            store_errors: counters.store_errors.load(Ordering::Relaxed),
            refusals: counters.refusals(),
            recent_requests: recent.all,
            recent_hits: recent.hits,
            shared: cache.place == Place::Shared,
            reachable: !cache.stamps.is_away(),
            local_entries: cache.local.entries(),
            local_bytes: cache.local.bytes(),
            flights: cache.flights.len(),
            waiters: cache.flights.waiters(),
            refreshes: cache.refreshes(),
            unfinished_bytes: cache.unfinished.bytes(),
            queued_invalidations: cache.stamps.queued().len(),
        }
    }
}

/// Numbers of one cache in this process since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ResponseCacheStats {
    /// Fresh stored answers.
    pub hits: u64,
    /// Stale stored answers, within their windows.
    pub stale_hits: u64,
    /// Stored answers that the inner service confirmed.
    pub validations: u64,
    /// Fetched answers that were stored.
    pub misses: u64,
    /// Answers of somebody else's fetch.
    pub collapsed: u64,
    /// Stale answers in place of an error.
    pub stand_ins: u64,
    /// Fetched answers that may not be stored.
    pub uncacheable: u64,
    /// Requests that were not looked up.
    pub passed: u64,
    /// Requests refused with 504.
    pub refused: u64,
    /// Store calls that failed.
    pub store_errors: u64,
    /// Answers that were not stored, by reason: as `Cache-Status` names it in `detail`.
    pub refusals: [(&'static str, u64); 13],
    /// The last thousand considered requests, or a few more; all of them while there were no more.
    pub recent_requests: u64,
    /// Those of them that needed no run of the inner service.
    pub recent_hits: u64,
    /// The store is shared with other processes.
    pub shared: bool,
    /// The store answered when it was last asked; one of this process always does.
    pub reachable: bool,
    /// Keys known to the local level.
    pub local_entries: usize,
    /// Bytes of the local level.
    pub local_bytes: usize,
    /// Fetches under way that others may join.
    pub flights: usize,
    /// Requests that wait for one of them.
    pub waiters: usize,
    /// Refreshes under way behind answers.
    pub refreshes: usize,
    /// Bytes of bodies that are being gathered.
    pub unfinished_bytes: usize,
    /// Invalidations that the store has not heard yet.
    pub queued_invalidations: usize,
}

impl ResponseCacheStats {
    /// Returns the share of answers that needed no run of the inner service; 0 before the first. A miss is never a hit.
    #[must_use]
    pub fn hit_rate(&self) -> f64 {
        let hits = self.hits + self.stale_hits + self.collapsed + self.stand_ins;
        share(
            hits,
            hits + self.validations + self.misses + self.uncacheable,
        )
    }

    /// The same share of the last thousand considered requests: what an alarm looks at.
    #[must_use]
    pub fn recent_hit_rate(&self) -> f64 {
        share(self.recent_hits, self.recent_requests)
    }
}

fn share(hits: u64, all: u64) -> f64 {
    if all == 0 {
        0.0
    } else {
        hits as f64 / all as f64
    }
}
