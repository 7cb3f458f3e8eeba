//! What time it is: one reading in UTC microseconds that never goes back, and the one place that asks.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Tells the time in whole microseconds since the Unix epoch (UTC).
///
/// # Behaviour
/// - A reading is never smaller than one that happened before it, on any thread.
///   ([`ManualClock`] may be set back: tests of clock jumps need it.)
/// - A passed clock decides every expiry, window, age and schedule; never timeouts or the breaker.
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// Returns the time now in microseconds since the Unix epoch.
    fn now_micros(&self) -> u64;

    /// Says whether this is the [`SystemClock`]: one reading of it serves for all that follow it.
    fn is_system(&self) -> bool {
        false
    }
}

impl<C: Clock + ?Sized> Clock for Arc<C> {
    fn now_micros(&self) -> u64 {
        (**self).now_micros()
    }

    fn is_system(&self) -> bool {
        (**self).is_system()
    }
}

/// Follows the machine's clock, but never goes back.
///
/// A reading costs one monotonic read. The wall clock is asked once a second; where it ran ahead
/// (a step, a resumed machine) we follow. Where it was set back we do not: until it is restarted the process stays
/// ahead by that much. Windows, leases and ages last as long as ever; only moments that are named to the world
/// (`reset_time`, the start of a calendar month) come early by it. What Redis decides goes by the server's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl SystemClock {
    /// Returns the one system clock of this process.
    #[must_use]
    pub fn new() -> Self {
        Self
    }
}

/// Reads the monotonic clock, for deadlines of our own: a lease that we hold, a wait that we promised.
#[must_use]
pub(crate) fn monotonic() -> tokio::time::Instant {
    tokio::time::Instant::now()
}

struct Anchor {
    started: Instant,
    /// Microseconds to add to the monotonic time since `started`; only ever grows.
    offset: AtomicU64,
    /// Monotonic microseconds at which the wall clock was last compared.
    compared: AtomicU64,
}

static ANCHOR: std::sync::LazyLock<Anchor> = std::sync::LazyLock::new(|| Anchor::new(wall_micros));

const COMPARE_EVERY_MICROS: u64 = 1_000_000;

impl Clock for SystemClock {
    fn now_micros(&self) -> u64 {
        let anchor = &*ANCHOR;
        let elapsed = anchor.elapsed();
        let compared = anchor.compared.load(Ordering::Relaxed);
        if elapsed.saturating_sub(compared) > COMPARE_EVERY_MICROS {
            anchor.compared.store(elapsed, Ordering::Relaxed);
            anchor.compare(wall_micros);
        }
        anchor
            .offset
            .load(Ordering::Relaxed)
            .saturating_add(elapsed)
    }

    fn is_system(&self) -> bool {
        true
    }
}

impl Anchor {
    fn new(wall_micros: impl FnOnce() -> u64) -> Self {
        // The wall first, the monotonic clock after it: a thread that is held up in between makes the offset
        // too small, which the next comparison mends. Too large it would stay for ever.
        let wall = wall_micros();
        Self {
            started: Instant::now(),
            offset: AtomicU64::new(wall),
            compared: AtomicU64::new(0),
        }
    }

    fn compare(&self, wall_micros: impl FnOnce() -> u64) {
        let wall = wall_micros();
        let offset = wall.saturating_sub(self.elapsed());
        self.offset.fetch_max(offset, Ordering::Relaxed);
    }

    fn elapsed(&self) -> u64 {
        let elapsed = self.started.elapsed();
        // In 64 bits: half a million years.
        elapsed.as_secs() * 1_000_000 + u64::from(elapsed.subsec_micros())
    }
}

fn wall_micros() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// Stands still until it is moved by hand; for tests and simulations.
///
/// ```
/// use std::time::Duration;
/// use tower_keep::core::{Clock, ManualClock, Timestamp};
///
/// let clock = ManualClock::at("2030-01-01T00:00:00Z".parse().unwrap());
/// clock.advance(Duration::from_secs(90));
/// assert_eq!(Timestamp::of(&clock).to_string(), "2030-01-01T00:01:30Z");
/// ```
#[derive(Clone, Debug)]
pub struct ManualClock {
    micros: Arc<AtomicU64>,
}

impl ManualClock {
    /// Makes a clock that shows `start`.
    #[must_use]
    pub fn at(start: Timestamp) -> Self {
        Self {
            micros: Arc::new(AtomicU64::new(start.as_micros())),
        }
    }

    /// Moves the clock forward, to the end of time at most.
    pub fn advance(&self, by: Duration) {
        let by = u64::try_from(by.as_micros()).unwrap_or(u64::MAX);
        let later = |now: u64| Some(now.saturating_add(by));
        // It always has a value to store.
        let _ = self
            .micros
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, later);
    }

    /// Sets the clock to `to`, which may lie in the past.
    pub fn set(&self, to: Timestamp) {
        self.micros.store(to.as_micros(), Ordering::SeqCst);
    }

    /// Sets the clock to `micros` microseconds since the Unix epoch, which may lie in the past.
    pub fn set_micros(&self, micros: u64) {
        self.micros.store(micros, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now_micros(&self) -> u64 {
        self.micros.load(Ordering::SeqCst)
    }
}

/// A moment: whole milliseconds since the Unix epoch (UTC), RFC 3339 in text and JSON.
///
/// Years 1970 to 9999. Offsets are accepted when read and mean the same instant; written with `Z`,
/// without a fraction where the milliseconds are zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u64);

const LAST_MILLIS: u64 = 253_402_300_799_999;

impl Timestamp {
    /// The earliest moment, 1970-01-01T00:00:00Z.
    pub const EPOCH: Self = Self(0);
    /// The latest moment, 9999-12-31T23:59:59.999Z.
    pub const MAX: Self = Self(LAST_MILLIS);

    /// Makes a moment from milliseconds since the Unix epoch; later than the year 9999 is cut to [`Timestamp::MAX`].
    #[must_use]
    pub const fn from_millis(millis: u64) -> Self {
        Self(if millis > LAST_MILLIS {
            LAST_MILLIS
        } else {
            millis
        })
    }

    /// Reads `clock`.
    #[must_use]
    pub fn of(clock: &(impl Clock + ?Sized)) -> Self {
        Self::from_millis(clock.now_micros() / 1_000)
    }

    /// Returns the milliseconds since the Unix epoch.
    #[must_use]
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// Returns the microseconds since the Unix epoch.
    #[must_use]
    pub const fn as_micros(self) -> u64 {
        self.0 * 1_000
    }

    /// Returns the time from `earlier` to `self`, zero if `earlier` is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// Adds `by`, whole milliseconds, up to [`Timestamp::MAX`].
    #[must_use]
    pub fn plus(self, by: Duration) -> Self {
        let by = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        Self::from_millis(self.0.saturating_add(by))
    }

    /// Takes `by` away, whole milliseconds, down to [`Timestamp::EPOCH`].
    #[must_use]
    pub fn minus(self, by: Duration) -> Self {
        let by = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        Self(self.0.saturating_sub(by))
    }
}

impl std::ops::Add<Duration> for Timestamp {
    type Output = Self;

    fn add(self, by: Duration) -> Self {
        self.plus(by)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = i128::from(self.0) * 1_000_000;
        let moment = OffsetDateTime::from_unix_timestamp_nanos(nanos).map_err(|_| fmt::Error)?;
        f.write_str(&moment.format(&Rfc3339).map_err(|_| fmt::Error)?)
    }
}

/// A text that is no RFC 3339 moment between the years 1970 and 9999.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotATimestamp;

impl fmt::Display for NotATimestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("expected an RFC 3339 time such as 2030-01-01T10:00:00Z, from 1970 to 9999")
    }
}

impl std::error::Error for NotATimestamp {}

impl std::str::FromStr for Timestamp {
    type Err = NotATimestamp;

    fn from_str(text: &str) -> Result<Self, NotATimestamp> {
        let moment = OffsetDateTime::parse(text, &Rfc3339).map_err(|_| NotATimestamp)?;
        let millis = moment.unix_timestamp_nanos().div_euclid(1_000_000);
        let millis = u64::try_from(millis).map_err(|_| NotATimestamp)?;
        if millis > LAST_MILLIS {
            Err(NotATimestamp)
        } else {
            Ok(Self(millis))
        }
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_clock_never_goes_back() {
        let mut last = 0;
        for _ in 0..10_000 {
            let now = SystemClock.now_micros();
            assert!(now >= last);
            last = now;
        }
    }

    #[test]
    fn a_thread_that_is_held_up_while_it_asks_the_wall_does_not_set_the_clock_ahead() {
        let held_up = || {
            std::thread::sleep(Duration::from_millis(30));
            wall_micros()
        };
        let anchor = Anchor::new(held_up);
        anchor.compare(held_up);
        let reading = anchor.offset.load(Ordering::Relaxed) + anchor.elapsed();
        // Both are cut to whole microseconds.
        assert!(reading <= wall_micros() + 2);
    }

    #[test]
    fn a_wall_clock_that_was_set_back_stretches_no_window_and_one_that_ran_ahead_is_followed() {
        let anchor = Anchor::new(|| 10_000_000_000);
        anchor.compare(|| 6_400_000_000);
        assert_eq!(anchor.offset.load(Ordering::Relaxed), 10_000_000_000);
        anchor.compare(|| 13_600_000_000);
        let behind = 13_600_000_000 - anchor.offset.load(Ordering::Relaxed);
        assert!(behind <= anchor.elapsed(), "{behind}");
    }

    #[test]
    fn timestamps_read_offsets_and_write_utc() {
        let noon: Timestamp = "2030-01-02T12:00:00+02:00".parse().unwrap();
        assert_eq!(noon.to_string(), "2030-01-02T10:00:00Z");
        assert_eq!(
            serde_json::to_string(&Timestamp::from_millis(1)).unwrap(),
            "\"1970-01-01T00:00:00.001Z\""
        );
        assert!("1969-12-31T23:59:59Z".parse::<Timestamp>().is_err());
        assert!("2030-01-02".parse::<Timestamp>().is_err());
        assert_eq!(Timestamp::MAX.to_string(), "9999-12-31T23:59:59.999Z");
    }
}
