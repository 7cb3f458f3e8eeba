//! The exact log: one stamp per unit, oldest first. At most the limit in every window `(t - window, t]`.

use std::collections::VecDeque;

use super::super::quota::Quota;
use super::super::store::Entry;
use super::{LEAD, Usage};

/// The stamps of all units that may still count, in microseconds. A charge's units share one stamp, and no two charges do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Log {
    stamps: VecDeque<u64>,
}

impl Log {
    pub(super) fn is_ahead(&self, now: u64) -> bool {
        self.stamps
            .back()
            .is_some_and(|newest| *newest > now + LEAD)
    }

    pub(super) fn repair(&mut self, now: u64) {
        if self.is_ahead(now) {
            for stamp in self.stamps.iter_mut().rev() {
                if *stamp <= now {
                    break;
                }
                *stamp = now;
            }
        }
    }

    pub(super) fn usage(&self, quota: &Quota, now: u64, limit: u32) -> Usage {
        let live = self.live_from(quota, now);
        let used = (self.stamps.len() - live) as u32;
        if used == 0 || limit == 0 {
            return Usage {
                used,
                more_in: None,
            };
        }
        let first_that_matters = live + used.saturating_sub(limit) as usize;
        Usage {
            used,
            more_in: Some(self.free_in(first_that_matters, quota, now)),
        }
    }

    pub(super) fn wait(&self, quota: &Quota, now: u64, limit: u32, cost: u32) -> u64 {
        let (units, room) = (self.stamps.len(), (limit - cost) as usize);
        // The unit that has to go first: with it and all younger ones there is one too many.
        match units.checked_sub(room + 1) {
            Some(index) => self.free_in(index, quota, now),
            None => 0,
        }
    }

    pub(super) fn charge(&mut self, quota: &Quota, now: u64, cost: u32) -> Option<Entry> {
        let stamp = self.stamps.back().map_or(now, |newest| now.max(newest + 1));
        let (most, cost) = (quota.limit() as usize, cost.min(quota.limit()) as usize);
        self.stamps.drain(..self.leaving(quota, now, cost));
        let capacity = self.capacity_for(self.stamps.len() + cost, most);
        self.stamps.reserve_exact(capacity - self.stamps.len());
        self.stamps.extend(std::iter::repeat_n(stamp, cost));
        Entry::new(stamp, 0, 0, cost as u64)
    }

    pub(super) fn growth(&self, quota: &Quota, now: u64, cost: u32) -> usize {
        let (most, cost) = (quota.limit() as usize, cost.min(quota.limit()) as usize);
        let (units, capacity) = (self.stamps.len(), self.stamps.capacity());
        if units + cost <= capacity {
            return 0;
        }
        let wanted = units - self.leaving(quota, now, cost) + cost;
        (self.capacity_for(wanted, most) - capacity) * size_of::<u64>()
    }

    pub(super) fn refund(&mut self, quota: &Quota, now: u64, entry: &Entry) -> bool {
        if entry.a + quota.window_micros() <= now {
            return false;
        }
        let first = self.stamps.partition_point(|stamp| *stamp < entry.a);
        let last = self.stamps.partition_point(|stamp| *stamp <= entry.a);
        let last = last.min(first + entry.amount.get() as usize);
        self.stamps.drain(first..last);
        first < last
    }

    pub(super) fn expires_at(&self, quota: &Quota) -> u64 {
        self.stamps
            .back()
            .map_or(0, |newest| newest + quota.window_micros())
    }

    pub(crate) fn heap_bytes(&self) -> usize {
        self.stamps.capacity() * size_of::<u64>()
    }

    /// The index of the first stamp that still counts.
    fn live_from(&self, quota: &Quota, now: u64) -> usize {
        let window = quota.window_micros();
        match self.stamps.front() {
            Some(oldest) if oldest + window <= now => {
                self.stamps.partition_point(|stamp| stamp + window <= now)
            }
            _ => 0,
        }
    }

    fn free_in(&self, index: usize, quota: &Quota, now: u64) -> u64 {
        (self.stamps[index] + quota.window_micros()).saturating_sub(now)
    }

    /// The number of stamps that a charge pushes out: expired ones, and the oldest where there would be too many.
    fn leaving(&self, quota: &Quota, now: u64, cost: usize) -> usize {
        let expired = self.live_from(quota, now);
        let kept = self.stamps.len() - expired + cost;
        expired + kept.saturating_sub(quota.limit() as usize)
    }

    /// Doubles, but never beyond the limit.
    fn capacity_for(&self, wanted: usize, most: usize) -> usize {
        let capacity = self.stamps.capacity();
        if wanted <= capacity {
            return capacity;
        }
        wanted.max(capacity * 2).min(most.max(wanted))
    }
}
