//! GCRA in whole numbers: the theoretical arrival time, and a remainder that no division loses.

use super::super::quota::{Algorithm, Quota};
use super::super::store::Entry;
use super::Usage;

/// The debt of a key in time. It is worked with in parts of `1 / den` microseconds, where one unit weighs `num`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Gcra {
    /// The theoretical arrival time: when all debt is paid, in whole microseconds...
    tat: u64,
    /// ...and parts of `1 / den` microseconds, below `den`.
    rest: u32,
    /// The first charge after being empty.
    born: u64,
}

impl Gcra {
    pub(super) const fn empty(now: u64) -> Self {
        Self {
            tat: now,
            rest: 0,
            born: now,
        }
    }

    pub(super) fn is_ahead(&self, quota: &Quota, now: u64) -> bool {
        let interval = Interval::of(quota);
        // By a product instead of a quotient: this is asked before every decision.
        self.debt(interval.den, now) > interval.burst * interval.num
    }

    pub(super) fn repair(&mut self, quota: &Quota, now: u64) {
        if self.is_ahead(quota, now) {
            let interval = Interval::of(quota);
            self.owe(interval.burst * interval.num, interval.den, now);
        }
    }

    pub(super) fn usage(&self, quota: &Quota, now: u64, limit: u32) -> Usage {
        let interval = Interval::of(quota);
        let debt = self.debt(interval.den, now);
        let used = u32::try_from(debt.div_ceil(interval.num)).unwrap_or(u32::MAX);
        if used == 0 || limit == 0 {
            return Usage {
                used,
                more_in: None,
            };
        }
        let next = u64::from(used.min(limit) - 1) * interval.num;
        Usage {
            used,
            more_in: Some((debt - next).div_ceil(interval.den)),
        }
    }

    pub(super) fn wait(&self, quota: &Quota, now: u64, limit: u32, cost: u32) -> u64 {
        let interval = Interval::of(quota);
        let room = u64::from(limit - cost) * interval.num;
        match self.debt(interval.den, now).saturating_sub(room) {
            0 => 0,
            excess => excess.div_ceil(interval.den),
        }
    }

    pub(super) fn charge(&mut self, quota: &Quota, now: u64, cost: u32) -> Option<Entry> {
        let interval = Interval::of(quota);
        let before = self.debt(interval.den, now);
        if before == 0 {
            self.born = now;
        }
        let (full, wish) = (
            interval.burst * interval.num,
            u64::from(cost).min(interval.burst),
        );
        let after = (before + wish * interval.num).min(full).max(before);
        self.owe(after, interval.den, now);
        Entry::new(self.tat, u64::from(self.rest), self.born, after - before)
    }

    /// A charge occupies the stretch that ends at its own arrival time; what time has paid of it stays paid.
    pub(super) fn refund(&mut self, now: u64, entry: &Entry, quota: &Quota) -> bool {
        let den = Interval::of(quota).den;
        if entry.c != self.born || entry.a < now {
            return false;
        }
        let debt = self.debt(den, now);
        let stretch = (entry.a - now).saturating_mul(den).saturating_add(entry.b);
        let unpaid = stretch.min(entry.amount.get()).min(debt);
        if unpaid > 0 {
            self.owe(debt - unpaid, den, now);
        }
        unpaid > 0
    }

    pub(super) const fn expires_at(&self) -> u64 {
        self.tat + (self.rest > 0) as u64
    }

    fn debt(&self, den: u64, now: u64) -> u64 {
        match self.tat.checked_sub(now) {
            // Saturates only where the clock went back and nobody has repaired the state yet.
            Some(ahead) => ahead
                .saturating_mul(den)
                .saturating_add(u64::from(self.rest)),
            None => 0,
        }
    }

    fn owe(&mut self, debt: u64, den: u64, now: u64) {
        self.tat = now + debt / den;
        self.rest = (debt % den) as u32;
    }
}

struct Interval {
    burst: u64,
    num: u64,
    den: u64,
}

impl Interval {
    const fn of(quota: &Quota) -> Self {
        match quota.algorithm() {
            Algorithm::Gcra { burst, num, den } => Self {
                burst: burst as u64,
                num,
                den,
            },
            // Never met: a state of this kind is made for GCRA quotas only.
            _ => Self {
                burst: 1,
                num: 1,
                den: 1,
            },
        }
    }
}
