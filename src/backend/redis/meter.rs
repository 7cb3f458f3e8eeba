//! What a handle has done so far: counted where it is done, by all its clones and nodes.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use crate::core::telemetry::count;
use crate::core::{Latency, StoreErrorKind};

const ORDER: Ordering = Ordering::Relaxed;
const GOOD: u8 = 0;
const KINDS: [StoreErrorKind; 6] = [
    StoreErrorKind::Unavailable,
    StoreErrorKind::TimedOut,
    StoreErrorKind::Full,
    StoreErrorKind::TooLarge,
    StoreErrorKind::Contention,
    StoreErrorKind::Failed,
];

#[derive(Debug)]
pub(super) struct Meter {
    commands: AtomicU64,
    errors: AtomicU64,
    timeouts: AtomicU64,
    refused: AtomicU64,
    /// How the last call ended: 0, or one more than the place in `KINDS`.
    last: AtomicU8,
    latency: [AtomicU64; Latency::BUCKETS],
}

impl Default for Meter {
    fn default() -> Self {
        Self {
            commands: AtomicU64::default(),
            errors: AtomicU64::default(),
            timeouts: AtomicU64::default(),
            refused: AtomicU64::default(),
            last: AtomicU8::default(),
            latency: [const { AtomicU64::new(0) }; Latency::BUCKETS],
        }
    }
}

impl Meter {
    pub(super) fn sent(&self) {
        self.commands.fetch_add(1, ORDER);
    }

    /// Counts a call that was not sent, since the breaker is open.
    pub(super) fn refused(&self) {
        self.refused.fetch_add(1, ORDER);
        count!("keep_store_fallback_total", 1);
    }

    /// Counts how a call ended that was sent.
    pub(super) fn ended(&self, took: Duration, error: Option<StoreErrorKind>) {
        self.latency[Latency::bucket(took)].fetch_add(1, ORDER);
        let Some(kind) = error else {
            return self.last.store(GOOD, ORDER);
        };
        self.errors.fetch_add(1, ORDER);
        count!("keep_store_errors_total", 1);
        if kind == StoreErrorKind::TimedOut {
            self.timeouts.fetch_add(1, ORDER);
        }
        let place = KINDS.iter().position(|own| *own == kind).unwrap_or(0);
        self.last.store(place as u8 + 1, ORDER);
    }

    pub(super) fn commands(&self) -> u64 {
        self.commands.load(ORDER)
    }

    pub(super) fn errors(&self) -> u64 {
        self.errors.load(ORDER)
    }

    pub(super) fn timeouts(&self) -> u64 {
        self.timeouts.load(ORDER)
    }

    pub(super) fn refusals(&self) -> u64 {
        self.refused.load(ORDER)
    }

    /// Returns why the last call failed; `None` if it did not.
    pub(super) fn last_error(&self) -> Option<StoreErrorKind> {
        let place = self.last.load(ORDER).checked_sub(1)?;
        KINDS.get(usize::from(place)).copied()
    }

    pub(super) fn latency(&self) -> Latency {
        Latency::of(self.latency.iter().map(|count| count.load(ORDER)))
    }
}
