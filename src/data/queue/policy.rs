//! When a job comes, when it is tried again, and when it is dead: on values and `now`, in UTC milliseconds.

use std::time::Duration;

/// Ready jobs of one priority lie within one band of scores.
const BAND: u64 = 100_000_000_000_000;

/// An id whose time is over while its job is there is looked at again this much later.
pub(super) const IDS_LOOKED_AT_EVERY: Duration = Duration::from_secs(3_600);

/// Returns the place of a ready job among all: lower comes first; equal ones by their number.
pub(super) fn score(rank: u8, due: u64, aging: u64) -> u64 {
    let step = if aging == 0 { BAND } else { aging };
    (due.min(BAND - 1)).saturating_add(u64::from(rank).saturating_mul(step))
}

/// Whole milliseconds, short enough that every sum of times stays exact on every engine.
pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis())
        .unwrap_or(u64::MAX)
        .min(BAND)
}

/// Says whether a job that was due then is dead by now.
pub(super) fn is_expired(expires: u64, now: u64) -> bool {
    now >= expires
}

/// How long retries wait: random, up to `base`, doubling to `cap`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
}

impl Backoff {
    /// Waits a random time up to `base` after the first try, up to twice that after the second, and so on to `cap`
    /// (full jitter: a thousand jobs that failed together do not come back together).
    #[must_use]
    pub const fn exponential(base: Duration, cap: Duration) -> Self {
        Self { base, cap }
    }

    /// Returns the longest wait after try `attempt`, from 1.
    #[must_use]
    pub fn longest(&self, attempt: u32) -> Duration {
        let doubled = 2_u32.saturating_pow(attempt.saturating_sub(1));
        self.base.saturating_mul(doubled).min(self.cap)
    }

    /// Draws the wait after try `attempt`; `random` is any. A millisecond at least, the store's unit, unless none is
    /// wanted: nothing is tried again in the very step that failed.
    pub(super) fn draw(&self, attempt: u32, random: u32) -> Duration {
        let longest = self.longest(attempt);
        let drawn = longest.mul_f64(f64::from(random) / f64::from(u32::MAX));
        drawn.max(longest.min(Duration::from_millis(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn retries_wait_at_most_ten_twenty_forty_and_eighty_seconds() {
        let backoff = Backoff::exponential(Duration::from_secs(10), Duration::from_secs(600));
        let longest = |attempt| backoff.longest(attempt).as_secs();
        assert_eq!([1, 2, 3, 4].map(longest), [10, 20, 40, 80]);
        assert_eq!((longest(7), longest(u32::MAX)), (600, 600));
    }

    proptest! {
        #[test]
        fn a_drawn_wait_is_within_its_bound(attempt in 1_u32..40, random: u32) {
            let backoff = Backoff::exponential(Duration::from_secs(10), Duration::from_secs(600));
            let drawn = backoff.draw(attempt, random);
            prop_assert!(drawn <= backoff.longest(attempt) && drawn >= Duration::from_millis(1));
            prop_assert_eq!(Backoff::exponential(Duration::ZERO, Duration::ZERO).draw(attempt, random), Duration::ZERO);
        }

        #[test]
        fn without_aging_priority_goes_before_time(a in 0..=2_u8, b in 0..=2_u8, due_a in 0..BAND, due_b in 0..BAND) {
            prop_assert_eq!(score(a, due_a, 0) < score(b, due_b, 0), (a, due_a) < (b, due_b));
        }

        #[test]
        fn with_aging_a_job_overtakes_the_next_priority_after_that_much_longer(due in 0..BAND / 4, aging in 1..BAND / 4) {
            prop_assert!(score(1, due, aging) == score(0, due + aging, aging));
        }
    }
}
