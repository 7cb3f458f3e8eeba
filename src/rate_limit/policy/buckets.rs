//! 64 sub-buckets per window: never above the limit in any trailing window, whatever the limit.

use super::super::quota::Quota;
use super::super::store::Entry;
use super::Usage;

/// Parts of a window. Bucket `b` counts whole until `(b + 1) * g + window`, so one more than these can be live.
const PARTS: u64 = 64;
const LIVE: usize = PARTS as usize + 1;

/// Counts per sub-bucket, as a ring: bucket `b` lies at `b % 65`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Buckets {
    /// The first charge after being empty.
    born: u64,
    /// The newest bucket that the ring holds; older ones reach back 64.
    last: u64,
    counts: [u32; LIVE],
}

impl Buckets {
    pub(super) fn empty(quota: &Quota, now: u64) -> Self {
        Self {
            born: now,
            last: now / grain(quota),
            counts: [0; LIVE],
        }
    }

    pub(super) fn is_ahead(&self, quota: &Quota, now: u64) -> bool {
        self.last > now / grain(quota)
    }

    pub(super) fn repair(&mut self, quota: &Quota, now: u64) {
        let current = now / grain(quota);
        if self.last <= current {
            return;
        }
        let mut counts = [0_u32; LIVE];
        for (bucket, count) in self.held() {
            let bucket = bucket.min(current);
            if bucket + PARTS >= current {
                counts[ring(bucket)] += count;
            }
        }
        (self.last, self.counts) = (current, counts);
    }

    pub(super) fn usage(&self, quota: &Quota, now: u64, limit: u32) -> Usage {
        let used = self.total(quota, now);
        if used == 0 || limit == 0 {
            return Usage {
                used,
                more_in: None,
            };
        }
        let first_that_matters = used.saturating_sub(limit) + 1;
        Usage {
            used,
            more_in: Some(self.freed_in(first_that_matters, quota, now)),
        }
    }

    pub(super) fn wait(&self, quota: &Quota, now: u64, limit: u32, cost: u32) -> u64 {
        let (used, room) = (self.total(quota, now), limit - cost);
        match used.checked_sub(room) {
            None | Some(0) => 0,
            Some(excess) => self.freed_in(excess, quota, now),
        }
    }

    pub(super) fn charge(&mut self, quota: &Quota, now: u64, cost: u32) -> Option<Entry> {
        let current = now / grain(quota);
        if self.total(quota, now) == 0 {
            self.born = now;
        }
        self.advance(current);
        let cost = cost.min(quota.limit());
        let mut displaced = (self.total(quota, now) + cost).saturating_sub(quota.limit());
        let oldest = current.saturating_sub(PARTS);
        for bucket in oldest..=current {
            let taken = displaced.min(self.counts[ring(bucket)]);
            self.counts[ring(bucket)] -= taken;
            displaced -= taken;
        }
        self.counts[ring(current)] += cost;
        Entry::new(current, self.born, 0, u64::from(cost))
    }

    pub(super) fn refund(&mut self, quota: &Quota, now: u64, entry: &Entry) -> bool {
        let counts_still = (entry.a + 1) * grain(quota) + quota.window_micros() > now;
        if !counts_still || entry.a > self.last || entry.b != self.born {
            return false;
        }
        let count = &mut self.counts[ring(entry.a)];
        let taken = (*count).min(entry.amount.get() as u32);
        *count -= taken;
        taken > 0
    }

    pub(super) fn expires_at(&self, quota: &Quota) -> u64 {
        let newest = self.held().filter(|(_, count)| *count > 0).last();
        newest.map_or(0, |(bucket, _)| {
            (bucket + 1) * grain(quota) + quota.window_micros()
        })
    }

    /// All buckets that the ring holds, oldest first.
    fn held(&self) -> impl Iterator<Item = (u64, u32)> {
        let oldest = self.last.saturating_sub(PARTS);
        (oldest..=self.last).map(|bucket| (bucket, self.counts[ring(bucket)]))
    }

    fn live(&self, quota: &Quota, now: u64) -> impl Iterator<Item = (u64, u32)> {
        let oldest = (now / grain(quota)).saturating_sub(PARTS);
        self.held().filter(move |(bucket, _)| *bucket >= oldest)
    }

    fn total(&self, quota: &Quota, now: u64) -> u32 {
        self.live(quota, now).map(|(_, count)| count).sum()
    }

    /// Microseconds until `units` of those in use are free.
    fn freed_in(&self, units: u32, quota: &Quota, now: u64) -> u64 {
        let mut freed = 0;
        for (bucket, count) in self.live(quota, now) {
            freed += count;
            if freed >= units {
                return (bucket + 1) * grain(quota) + quota.window_micros() - now;
            }
        }
        quota.window_micros()
    }

    fn advance(&mut self, current: u64) {
        if current > self.last {
            let steps = (current - self.last).min(LIVE as u64);
            for bucket in current + 1 - steps..=current {
                self.counts[ring(bucket)] = 0;
            }
            self.last = current;
        }
    }
}

/// The width of a sub-bucket in microseconds; whole, since windows are whole seconds.
const fn grain(quota: &Quota) -> u64 {
    quota.window_micros() / PARTS
}

const fn ring(bucket: u64) -> usize {
    (bucket % LIVE as u64) as usize
}
