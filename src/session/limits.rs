//! How long sessions last and how many a user may have.

use std::time::Duration;

use crate::core::ttl::{HOUR, MINUTE};

/// The two times that end a session: after its last activity, and after its login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetimes {
    pub(super) idle: Duration,
    pub(super) absolute: Duration,
}

impl Lifetimes {
    /// 15 minutes idle, 24 hours in all.
    pub const DEFAULT: Self = Self::new(Duration::from_secs(15 * 60), Duration::from_secs(86_400));
    /// 5 minutes idle, 4 hours in all: high-value applications (OWASP).
    pub const HIGH_VALUE: Self =
        Self::new(Duration::from_secs(5 * 60), Duration::from_secs(4 * 3_600));
    /// 30 minutes idle, 8 hours in all: an office day (OWASP).
    pub const OFFICE_DAY: Self =
        Self::new(Duration::from_secs(30 * 60), Duration::from_secs(8 * 3_600));
    /// 30 minutes idle, 12 hours in all (NIST SP 800-63B, AAL2).
    pub const AAL2: Self = Self::new(
        Duration::from_secs(30 * 60),
        Duration::from_secs(12 * 3_600),
    );
    /// 15 minutes idle, 12 hours in all (NIST SP 800-63B, AAL3).
    pub const AAL3: Self = Self::new(
        Duration::from_secs(15 * 60),
        Duration::from_secs(12 * 3_600),
    );

    /// Takes an idle and an absolute time, whole milliseconds.
    ///
    /// # Panics
    /// Either is shorter than a millisecond, or longer than 400 days.
    #[must_use]
    pub const fn new(idle: Duration, absolute: Duration) -> Self {
        check(idle);
        check(absolute);
        Self { idle, absolute }
    }

    /// Returns the time after the last activity.
    #[must_use]
    pub const fn idle(&self) -> Duration {
        self.idle
    }

    /// Returns the time after the login, or after the set-up without one.
    #[must_use]
    pub const fn absolute(&self) -> Duration {
        self.absolute
    }
}

/// The longest time that browsers keep a cookie (RFC 6265bis), and so the longest of ours.
pub(super) const LONGEST: Duration = Duration::from_secs(400 * 86_400);

pub(super) const fn check(lifetime: Duration) {
    assert!(
        lifetime.as_millis() > 0 && lifetime.as_millis() <= LONGEST.as_millis(),
        "a session's lifetime is at least a millisecond and at most 400 days"
    );
}

/// How many live sessions a user may have, and what gives way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionLimit {
    pub(super) most: u16,
    pub(super) rule: LimitRule,
}

/// What happens at the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitRule {
    /// The login is refused.
    Reject,
    /// The session that was set up first ends; of several the one whose id, as text, comes first.
    EvictOldest,
    /// The session whose last activity is longest ago ends; of several the one whose id, as text, comes first.
    EvictLongestIdle,
}

impl SessionLimit {
    /// Refuses a login beyond `most`: 409.
    ///
    /// # Panics
    /// `most` is not between 1 and 1,000.
    #[must_use]
    pub const fn reject(most: u16) -> Self {
        Self::new(most, LimitRule::Reject)
    }

    /// Ends the session that was set up first.
    ///
    /// # Panics
    /// `most` is not between 1 and 1,000.
    #[must_use]
    pub const fn evict_oldest(most: u16) -> Self {
        Self::new(most, LimitRule::EvictOldest)
    }

    /// Ends the session whose last activity is longest ago.
    ///
    /// # Panics
    /// `most` is not between 1 and 1,000.
    #[must_use]
    pub const fn evict_longest_idle(most: u16) -> Self {
        Self::new(most, LimitRule::EvictLongestIdle)
    }

    /// Returns how many live sessions a user may have.
    #[must_use]
    pub const fn most(&self) -> u16 {
        self.most
    }

    /// Returns what happens at the limit.
    #[must_use]
    pub const fn rule(&self) -> LimitRule {
        self.rule
    }

    const fn new(most: u16, rule: LimitRule) -> Self {
        assert!(
            most >= 1 && most <= 1_000,
            "a user may have 1 to 1,000 sessions"
        );
        Self { most, rule }
    }
}

/// Data lasts this long after its last use.
pub(super) const EXTENDED: Duration = HOUR;
/// Activity is recorded no more often than this.
pub(super) const LONGEST_INTERVAL: Duration = MINUTE;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_presets_are_what_owasp_and_nist_say() {
        let minutes = |lifetimes: Lifetimes| {
            (
                lifetimes.idle().as_secs() / 60,
                lifetimes.absolute().as_secs() / 60,
            )
        };
        assert_eq!(minutes(Lifetimes::DEFAULT), (15, 24 * 60));
        assert_eq!(minutes(Lifetimes::HIGH_VALUE), (5, 4 * 60));
        assert_eq!(minutes(Lifetimes::OFFICE_DAY), (30, 8 * 60));
        assert_eq!(minutes(Lifetimes::AAL2), (30, 12 * 60));
        assert_eq!(minutes(Lifetimes::AAL3), (15, 12 * 60));
    }

    #[test]
    fn what_is_out_of_its_bounds_is_refused_where_it_is_written() {
        let day = Duration::from_secs(86_400);
        for (idle, absolute) in [
            (Duration::ZERO, day),
            (Duration::from_micros(999), day),
            (day, 400 * day + Duration::from_millis(1)),
        ] {
            let made = std::panic::catch_unwind(|| Lifetimes::new(idle, absolute));
            assert!(made.is_err(), "{idle:?}, {absolute:?}");
        }
        assert_eq!(Lifetimes::new(day, 400 * day).absolute(), 400 * day);
        for most in [0, 1_001] {
            for limit in [
                SessionLimit::reject,
                SessionLimit::evict_oldest,
                SessionLimit::evict_longest_idle,
            ] {
                assert!(std::panic::catch_unwind(|| limit(most)).is_err(), "{most}");
            }
        }
        assert_eq!(SessionLimit::reject(1_000).most(), 1_000);
    }
}
