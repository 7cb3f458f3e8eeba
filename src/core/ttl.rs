//! Lengths of time: words for durations, how long a kept value lives, and presets by kind of data.

use std::fmt;
use std::time::Duration;

/// One millisecond.
pub const MILLIS: Duration = Duration::from_millis(1);
/// One second.
pub const SECOND: Duration = Duration::from_secs(1);
/// One minute.
pub const MINUTE: Duration = Duration::from_secs(60);
/// One hour.
pub const HOUR: Duration = Duration::from_secs(3_600);
/// The longest time that a data service is set to: 366 days.
pub(crate) const LONGEST: Duration = Duration::from_secs(366 * 86_400);

/// One day of 24 hours.
pub const DAY: Duration = Duration::from_secs(86_400);

const LONGEST_MILLIS: u64 = 366 * 86_400_000;

/// How long a value lives: whole milliseconds, from one to 366 days. Nothing is kept without one.
///
/// In doubt the shorter: profiles 1 to 2 h, analytics 30 min to 2 h, temporary data 10 min to 7 days; 24 h never for
/// what changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ttl(u64);

/// A time that is no [`Ttl`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotATtl;

impl Ttl {
    /// Makes one of milliseconds.
    ///
    /// # Panics
    /// Outside of 1 ms to 366 days; in a constant, the compiler says so.
    #[must_use]
    pub const fn millis(millis: u64) -> Self {
        assert!(
            1 <= millis && millis <= LONGEST_MILLIS,
            "a ttl is 1 ms to 366 days"
        );
        Self(millis)
    }

    /// Makes one of seconds.
    ///
    /// # Panics
    /// See [`Ttl::millis`].
    #[must_use]
    pub const fn secs(secs: u64) -> Self {
        Self::millis(secs.saturating_mul(1_000))
    }

    /// Makes one of minutes.
    ///
    /// # Panics
    /// See [`Ttl::millis`].
    #[must_use]
    pub const fn minutes(minutes: u64) -> Self {
        Self::millis(minutes.saturating_mul(60_000))
    }

    /// Makes one of hours.
    ///
    /// # Panics
    /// See [`Ttl::millis`].
    #[must_use]
    pub const fn hours(hours: u64) -> Self {
        Self::millis(hours.saturating_mul(3_600_000))
    }

    /// Makes one of days of 24 hours.
    ///
    /// # Panics
    /// See [`Ttl::millis`].
    #[must_use]
    pub const fn days(days: u64) -> Self {
        Self::millis(days.saturating_mul(86_400_000))
    }

    /// Returns the milliseconds.
    #[must_use]
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// Returns the duration.
    #[must_use]
    pub const fn as_duration(self) -> Duration {
        Duration::from_millis(self.0)
    }
}

impl TryFrom<Duration> for Ttl {
    type Error = NotATtl;

    /// Takes whole milliseconds; the rest is cut off.
    fn try_from(duration: Duration) -> Result<Self, NotATtl> {
        match u64::try_from(duration.as_millis()) {
            Ok(millis @ 1..=LONGEST_MILLIS) => Ok(Self(millis)),
            _ => Err(NotATtl),
        }
    }
}

impl From<Ttl> for Duration {
    fn from(ttl: Ttl) -> Self {
        ttl.as_duration()
    }
}

impl fmt::Display for NotATtl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a ttl is 1 ms to 366 days")
    }
}

impl std::error::Error for NotATtl {}

/// How a cached value ages: when it may be refreshed, when it is stale, how long a stale one may still stand in.
///
/// ```
/// use std::time::Duration;
///
/// use tower_keep::MINUTE;
/// use tower_keep::ttl::{Lifetime, Ttl};
///
/// const FEED: Lifetime = Lifetime::new(Ttl::minutes(30))
///     .refresh_after(Duration::from_secs(20 * 60))
///     .stale_for(Ttl::hours(1));
/// assert_eq!(FEED.ttl().as_duration(), 30 * MINUTE);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    ttl: Ttl,
    refresh_millis: u64,
    stale_millis: u64,
    jitter_percent: u8,
}

impl Lifetime {
    /// Makes a lifetime of `ttl`, shortened by up to 10 % at random from 60 s up, never refreshed early nor served stale.
    #[must_use]
    pub const fn new(ttl: Ttl) -> Self {
        Self {
            ttl,
            refresh_millis: ttl.0,
            stale_millis: 0,
            jitter_percent: if ttl.0 >= 60_000 { 10 } else { 0 },
        }
    }

    /// Refreshes in the background from this age on, in whole milliseconds.
    ///
    /// # Panics
    /// If it is longer than the shortest ttl that the jitter leaves, or zero.
    #[must_use]
    pub const fn refresh_after(mut self, age: Duration) -> Self {
        let millis = age.as_millis();
        self.refresh_millis = if millis > u64::MAX as u128 {
            u64::MAX
        } else {
            millis as u64
        };
        self.check();
        self
    }

    /// Lets a value that is this much older than its ttl stand in while the loader is slow or fails.
    #[must_use]
    pub const fn stale_for(mut self, time: Ttl) -> Self {
        self.stale_millis = time.0;
        self
    }

    /// Shortens each record's ttl by up to this many percent at random.
    ///
    /// # Panics
    /// Over 50, or if `refresh_after` is longer than what is left.
    #[must_use]
    pub const fn jitter(mut self, percent: u8) -> Self {
        assert!(percent <= 50, "jitter is at most 50 percent");
        self.jitter_percent = percent;
        self.check();
        self
    }

    pub(crate) const fn stale_for_millis(mut self, millis: u64) -> Self {
        self.stale_millis = millis;
        self
    }

    const fn check(&self) {
        assert!(self.refresh_millis > 0, "refresh_after must not be zero");
        assert!(
            self.refresh_millis >= self.ttl.0 || self.refresh_millis <= self.shortest_millis(),
            "refresh_after must not exceed the ttl that jitter leaves"
        );
    }

    /// Returns the ttl before jitter.
    #[must_use]
    pub const fn ttl(self) -> Ttl {
        self.ttl
    }

    /// Returns the shortest ttl that jitter can draw, in milliseconds.
    #[must_use]
    pub const fn shortest_millis(self) -> u64 {
        self.ttl.0 - self.ttl.0 * self.jitter_percent as u64 / 100
    }

    /// Returns the age from which a value is refreshed, in milliseconds; at least the ttl is never.
    #[must_use]
    pub const fn refresh_millis(self) -> u64 {
        self.refresh_millis
    }

    /// Returns how long a stale value may stand in, in milliseconds.
    #[must_use]
    pub const fn stale_millis(self) -> u64 {
        self.stale_millis
    }
}

impl From<Ttl> for Lifetime {
    fn from(ttl: Ttl) -> Self {
        Self::new(ttl)
    }
}

/// A user's row.
pub const USER: Ttl = Ttl::secs(1_800);
/// An expert's public profile.
pub const PROFILE: Ttl = Ttl::secs(600);
/// What a dashboard shows.
pub const DASHBOARD: Ttl = Ttl::secs(900);
/// Analytics: 30 min, refreshed in the background from 20 min on.
pub const ANALYTICS: Lifetime =
    Lifetime::new(Ttl::secs(1_800)).refresh_after(Duration::from_secs(1_200));
/// A metric's counter.
pub const METRIC: Ttl = Ttl::secs(3_600);
/// A customer at a payment provider.
pub const CUSTOMER: Ttl = Ttl::secs(86_400);
/// A list of customers.
pub const CUSTOMER_LIST: Ttl = Ttl::secs(900);
/// The state of an OAuth flow.
pub const OAUTH_STATE: Ttl = Ttl::secs(900);
/// A verification token.
pub const VERIFICATION: Ttl = Ttl::secs(3_600);
/// A step of a setup.
pub const SETUP: Ttl = Ttl::secs(3_600);
/// A half-filled form.
pub const FORM_PROGRESS: Ttl = Ttl::secs(86_400);
/// A queued notification.
pub const NOTIFICATION: Ttl = Ttl::secs(3_600);
/// A batch of notifications.
pub const NOTIFICATION_BATCH: Ttl = Ttl::secs(1_800);
/// A lock's lease.
pub const LOCK: Ttl = Ttl::secs(30);
/// The lease of a lock around a payment.
pub const PAYMENT_LOCK: Ttl = Ttl::secs(60);
/// Whatever is read through, where nothing better is known.
pub const READ_THROUGH: Ttl = Ttl::secs(3_600);
/// An analytics event on its way.
pub const EVENT: Ttl = Ttl::secs(86_400);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ttl_is_1_ms_to_366_days() {
        assert_eq!(Ttl::try_from(Duration::ZERO), Err(NotATtl));
        assert_eq!(Ttl::try_from(Duration::from_micros(999)), Err(NotATtl));
        assert_eq!(Ttl::try_from(MILLIS), Ok(Ttl::millis(1)));
        assert_eq!(Ttl::try_from(366 * DAY), Ok(Ttl::days(366)));
        assert_eq!(Ttl::try_from(366 * DAY + MILLIS), Err(NotATtl));
        assert_eq!(Ttl::try_from(Duration::MAX), Err(NotATtl));
    }

    #[test]
    fn a_refresh_never_comes_after_the_shortest_ttl() {
        let refused = std::panic::catch_unwind(|| {
            Lifetime::new(Ttl::secs(100)).refresh_after(Duration::from_secs(91))
        });
        assert!(refused.is_err());
        assert_eq!(ANALYTICS.shortest_millis(), 1_620_000);
        assert_eq!(Lifetime::new(Ttl::secs(59)).shortest_millis(), 59_000);
    }

    #[test]
    fn presets_have_the_seconds_of_their_kind() {
        for (name, preset, seconds) in [
            ("USER", USER, 1_800),
            ("PROFILE", PROFILE, 600),
            ("DASHBOARD", DASHBOARD, 900),
            ("ANALYTICS", ANALYTICS.ttl(), 1_800),
            ("METRIC", METRIC, 3_600),
            ("CUSTOMER", CUSTOMER, 86_400),
            ("CUSTOMER_LIST", CUSTOMER_LIST, 900),
            ("OAUTH_STATE", OAUTH_STATE, 900),
            ("VERIFICATION", VERIFICATION, 3_600),
            ("SETUP", SETUP, 3_600),
            ("FORM_PROGRESS", FORM_PROGRESS, 86_400),
            ("NOTIFICATION", NOTIFICATION, 3_600),
            ("NOTIFICATION_BATCH", NOTIFICATION_BATCH, 1_800),
            ("LOCK", LOCK, 30),
            ("PAYMENT_LOCK", PAYMENT_LOCK, 60),
            ("READ_THROUGH", READ_THROUGH, 3_600),
            ("EVENT", EVENT, 86_400),
        ] {
            assert_eq!(preset.as_millis(), seconds * 1_000, "{name}");
        }
        assert_eq!(ANALYTICS.refresh_millis(), 1_200_000);
        assert_eq!(ANALYTICS.stale_millis(), 0);
    }
}
