//! What a cache counts.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::core::telemetry::count;

/// Counts of a cache since it was made. A miss never counts as a hit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Reads answered in this process.
    pub local_hits: u64,
    /// Reads answered by the store.
    pub shared_hits: u64,
    /// Reads answered by a remembered absence, here or in the store.
    pub absent: u64,
    /// Reads answered past the ttl.
    pub stale: u64,
    /// Reads that found nothing.
    pub misses: u64,
    /// Reads that could not ask the store.
    pub bypassed: u64,
    /// Loaders run.
    pub loads: u64,
    /// Loaders that failed, hung or panicked.
    pub load_errors: u64,
    /// Fills that an invalidation overtook.
    pub fills_refused: u64,
    /// Records that could not be read.
    pub undecodable: u64,
    /// Values in this process, those that ended and were not met yet included.
    pub local_entries: u64,
    /// Their bytes, encoded.
    pub local_bytes: u64,
}

impl CacheStats {
    /// Returns hits by reads, `None` without a read.
    #[must_use]
    pub fn hit_rate(&self) -> Option<f64> {
        let hits = self.hits();
        let reads = hits + self.misses + self.bypassed;
        (reads > 0).then(|| hits as f64 / reads as f64)
    }

    const fn hits(&self) -> u64 {
        self.local_hits + self.shared_hits + self.absent + self.stale
    }
}

#[derive(Debug, Default)]
pub(super) struct Meter {
    pub(super) local: AtomicU64,
    pub(super) shared: AtomicU64,
    pub(super) absent: AtomicU64,
    pub(super) stale: AtomicU64,
    pub(super) misses: AtomicU64,
    pub(super) bypassed: AtomicU64,
    pub(super) loads: AtomicU64,
    pub(super) load_errors: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) undecodable: AtomicU64,
}

impl Meter {
    pub(super) fn read(&self, cache: &str, result: &'static str) {
        let _ = cache;
        let counter = match result {
            "local" => &self.local,
            "shared" => &self.shared,
            "absent" => &self.absent,
            "stale" => &self.stale,
            "bypass" => &self.bypassed,
            _ => &self.misses,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        count!("keep_cache_reads_total", 1, "cache" => cache.to_owned(), "result" => result);
    }

    pub(super) fn hits_and_reads(&self) -> (u64, u64) {
        let stats = self.stats((0, 0));
        let hits = stats.hits();
        (hits, hits + stats.misses + stats.bypassed)
    }

    pub(super) fn stats(&self, (entries, bytes): (usize, usize)) -> CacheStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        CacheStats {
            local_hits: read(&self.local),
            shared_hits: read(&self.shared),
            absent: read(&self.absent),
            stale: read(&self.stale),
            misses: read(&self.misses),
            bypassed: read(&self.bypassed),
            loads: read(&self.loads),
            load_errors: read(&self.load_errors),
            fills_refused: read(&self.refused),
            undecodable: read(&self.undecodable),
            local_entries: entries as u64,
            local_bytes: bytes as u64,
        }
    }
}
