//! Fixed windows: multiples of the window since the Unix epoch, or calendar months of UTC.

use super::super::quota::{Algorithm, Quota};
use super::super::store::Entry;
use super::Usage;

const DAY: u64 = 86_400_000_000;

/// What was used in the window that begins at `start`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fixed {
    start: u64,
    used: u32,
    /// The first charge after being empty.
    born: u64,
}

impl Fixed {
    pub(super) fn empty(quota: &Quota, now: u64) -> Self {
        Self {
            start: window_of(quota, now).0,
            used: 0,
            born: now,
        }
    }

    pub(super) fn is_ahead(&self, quota: &Quota, now: u64) -> bool {
        self.start > now && self.start > window_of(quota, now).0
    }

    pub(super) fn repair(&mut self, quota: &Quota, now: u64) {
        if self.is_ahead(quota, now) {
            self.start = window_of(quota, now).0;
        }
    }

    pub(super) fn usage(&self, quota: &Quota, now: u64, limit: u32) -> Usage {
        let (used, end) = self.live(quota, now);
        Usage {
            used,
            more_in: (used > 0 && limit > 0).then(|| end - now),
        }
    }

    pub(super) fn wait(&self, quota: &Quota, now: u64, limit: u32, cost: u32) -> u64 {
        let (used, end) = self.live(quota, now);
        if used > limit - cost { end - now } else { 0 }
    }

    pub(super) fn charge(&mut self, quota: &Quota, now: u64, cost: u32) -> Option<Entry> {
        let (used, _) = self.live(quota, now);
        if used == 0 {
            (self.start, self.born) = (window_of(quota, now).0, now);
        }
        let after = used.saturating_add(cost).min(quota.limit()).max(used);
        self.used = after;
        Entry::new(self.start, self.born, 0, u64::from(after - used))
    }

    pub(super) fn refund(&mut self, quota: &Quota, now: u64, entry: &Entry) -> bool {
        let (used, _) = self.live(quota, now);
        let taken = used.min(entry.amount.get() as u32);
        if (entry.a, entry.b) != (self.start, self.born) || taken == 0 {
            return false;
        }
        self.used -= taken;
        true
    }

    pub(super) fn expires_at(&self, quota: &Quota) -> u64 {
        if self.used == 0 {
            return 0;
        }
        window_of(quota, self.start).1
    }

    fn live(&self, quota: &Quota, now: u64) -> (u32, u64) {
        let (start, end) = window_of(quota, now);
        (if self.start == start { self.used } else { 0 }, end)
    }
}

/// The window that holds `now`: its start, and the start of the next.
pub(crate) fn window_of(quota: &Quota, now: u64) -> (u64, u64) {
    if matches!(quota.algorithm(), Algorithm::Month) {
        return month_of(now);
    }
    let window = quota.window_micros();
    let start = now - now % window;
    (start, start + window)
}

/// The calendar month of UTC, by the proleptic Gregorian calendar counted in eras of 400 years from March.
fn month_of(now: u64) -> (u64, u64) {
    let days = now / DAY;
    let (year, month) = year_and_month(days);
    let next = if month == 12 {
        (year + 1, 1)
    } else {
        (year, month + 1)
    };
    (
        first_day(year, month) * DAY,
        first_day(next.0, next.1) * DAY,
    )
}

fn year_and_month(days: u64) -> (u64, u64) {
    let from_march = days + 719_468;
    let (era, day) = (from_march / 146_097, from_march % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let year = era * 400 + year;
    if month < 10 {
        (year, month + 3)
    } else {
        (year + 1, month - 9)
    }
}

fn first_day(year: u64, month: u64) -> u64 {
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let (era, year) = (year / 400, year % 400);
    let day_of_year = (153 * month + 2) / 5;
    era * 146_097 + year * 365 + year / 4 - year / 100 + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::Timestamp;

    #[test]
    fn months_begin_on_the_first_at_midnight_utc_also_in_leap_years() {
        let quota = Quota::per_month(1);
        for (moment, from, to) in [
            (
                "1970-01-01T00:00:00Z",
                "1970-01-01T00:00:00Z",
                "1970-02-01T00:00:00Z",
            ),
            (
                "2024-02-29T23:59:59Z",
                "2024-02-01T00:00:00Z",
                "2024-03-01T00:00:00Z",
            ),
            (
                "2100-02-28T12:00:00Z",
                "2100-02-01T00:00:00Z",
                "2100-03-01T00:00:00Z",
            ),
            (
                "2030-12-31T23:59:59Z",
                "2030-12-01T00:00:00Z",
                "2031-01-01T00:00:00Z",
            ),
            (
                "2031-01-01T00:00:00Z",
                "2031-01-01T00:00:00Z",
                "2031-02-01T00:00:00Z",
            ),
        ] {
            let micros = |text: &str| text.parse::<Timestamp>().unwrap().as_micros();
            assert_eq!(
                window_of(&quota, micros(moment)),
                (micros(from), micros(to)),
                "{moment}"
            );
        }
    }
}
