//! What a cache counts.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::core::Stripes;
use crate::core::telemetry::{Counter, Seldom};

/// Counts of a cache since it was made.
///
/// A read counts once for each of its keys, when it is answered and by what answered it, also where it joined a load that ran
/// already; a miss never counts as a hit. `put`, `remove`, `refresh`, `warm` and `verify` are no reads, nor is a load behind one.
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
    /// Reads that found nothing, or nothing fresh: loaded, or not answered.
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

/// What answered a read: its place in [`RESULTS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Served {
    Local,
    Shared,
    Absent,
    Stale,
    Bypass,
    Miss,
}

/// What a read of many keys will count as.
#[derive(Debug, Default)]
pub(super) struct Reads([u64; RESULTS.len()]);

impl Reads {
    pub(super) fn add(&mut self, served: Served) {
        self.add_many(served, 1);
    }

    pub(super) fn add_many(&mut self, served: Served, keys: usize) {
        self.0[served as usize] += keys as u64;
    }
}

#[derive(Debug)]
pub(super) struct Meter {
    here: Stripes<Here>,
    shared: AtomicU64,
    absent: AtomicU64,
    stale: AtomicU64,
    misses: AtomicU64,
    bypassed: AtomicU64,
    pub(super) loads: AtomicU64,
    pub(super) load_errors: AtomicU64,
    pub(super) load_failed: Seldom,
    pub(super) refused: AtomicU64,
    pub(super) undecodable: AtomicU64,
    /// The same for the world, in the order of [`RESULTS`].
    told: [Counter; RESULTS.len()],
}

/// Reads that this process answered.
#[derive(Debug, Default)]
struct Here {
    hits: AtomicU64,
    absent: AtomicU64,
}

const RESULTS: [&str; 6] = ["local", "shared", "absent", "stale", "bypass", "miss"];

impl Meter {
    pub(super) fn new(cache: &str) -> Self {
        let told = |result| {
            let labels = [("cache", cache), ("result", result)];
            Counter::new("keep_cache_reads_total", &labels)
        };
        Self {
            here: Stripes::default(),
            shared: AtomicU64::default(),
            absent: AtomicU64::default(),
            stale: AtomicU64::default(),
            misses: AtomicU64::default(),
            bypassed: AtomicU64::default(),
            loads: AtomicU64::default(),
            load_errors: AtomicU64::default(),
            load_failed: Seldom::new(),
            refused: AtomicU64::default(),
            undecodable: AtomicU64::default(),
            told: RESULTS.map(told),
        }
    }

    /// Counts a read that this process answered: with a value, or by a remembered absence.
    pub(super) fn hit_here(&self, is_value: bool) {
        let own = self.here.own();
        let (counter, told) = match is_value {
            true => (&own.hits, &self.told[0]),
            false => (&own.absent, &self.told[2]),
        };
        counter.fetch_add(1, Ordering::Relaxed);
        told.add(1);
    }

    /// Counts a read of one key.
    pub(super) fn read(&self, served: Served) {
        let mut reads = Reads::default();
        reads.add(served);
        self.reads(&reads);
    }

    /// Counts a read of many keys.
    pub(super) fn reads(&self, reads: &Reads) {
        let counters = [
            &self.here.own().hits,
            &self.shared,
            &self.absent,
            &self.stale,
            &self.bypassed,
            &self.misses,
        ];
        for ((counter, told), count) in counters.into_iter().zip(&self.told).zip(reads.0) {
            if count > 0 {
                counter.fetch_add(count, Ordering::Relaxed);
                told.add(count);
            }
        }
    }

    pub(super) fn hits_and_reads(&self) -> (u64, u64) {
        let stats = self.stats((0, 0));
        let hits = stats.hits();
        (hits, hits + stats.misses + stats.bypassed)
    }

    pub(super) fn stats(&self, (entries, bytes): (usize, usize)) -> CacheStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        CacheStats {
            local_hits: self.here.iter().map(|here| read(&here.hits)).sum(),
            shared_hits: read(&self.shared),
            absent: read(&self.absent)
                + self.here.iter().map(|here| read(&here.absent)).sum::<u64>(),
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
