//! How much is allowed in how long, and by which algorithm it is counted.

use std::fmt;
use std::time::Duration;

const MICROS: u64 = 1_000_000;
/// The longest window, in seconds: 366 days.
const LONGEST: u64 = 366 * 86_400;
/// The largest limit, and the largest burst.
const MOST: u32 = (1 << 31) - 1;
/// Above this many units a sliding window counts in 64 sub-buckets instead of one stamp per unit.
const MOST_STAMPS: u32 = 1_024;
/// What a full GCRA bucket may weigh in its own units, so that all sums stay below 2^53 (Lua's whole numbers).
const GCRA_ROOM: u64 = 1 << 52;

/// A limit, a window, and the algorithm that counts.
///
/// Sliding unless said otherwise: never more than the limit in *any* trailing window. Up to 1,024 units are
/// kept as an exact log; above that in 64 sub-buckets, which never admit more either and hold a unit for at
/// most 1/64 of the window too long.
///
/// Every constructor is a `const fn` that panics on numbers which make no quota, so a quota in a `const` is
/// checked by the compiler. For numbers from configuration there is [`Quota::try_new`].
///
/// ```
/// use tower_keep::MINUTE;
/// use tower_keep::rate_limit::Quota;
///
/// const PAYMENTS: Quota = Quota::new(5, MINUTE);
/// assert_eq!(PAYMENTS, Quota::per_minute(5));
/// assert!(Quota::try_new(0, MINUTE).is_err());
/// ```
///
/// ```compile_fail
/// # use tower_keep::MINUTE;
/// # use tower_keep::rate_limit::Quota;
/// const NOTHING: Quota = Quota::new(0, MINUTE); // an error of the compiler
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Quota {
    limit: u32,
    /// Seconds; 0 for a calendar month.
    window: u64,
    algorithm: Algorithm,
}

/// How a quota is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Algorithm {
    /// One stamp per unit: exact in any trailing window.
    Log,
    /// 64 sub-buckets: never above the limit in any trailing window.
    Buckets,
    /// The generic cell rate algorithm (ITU-T I.371), a token bucket of capacity `burst`.
    Gcra {
        /// The units that a rested key may spend at once.
        burst: u32,
        /// The emission interval is `num / den` microseconds, in lowest terms.
        num: u64,
        /// See `num`.
        den: u64,
    },
    /// Windows that start at multiples of the window since the Unix epoch.
    Fixed,
    /// Calendar months in UTC.
    Month,
}

impl Quota {
    /// Allows `limit` in each second, sliding.
    ///
    /// # Panics
    /// See [`Quota::new`].
    #[must_use]
    pub const fn per_second(limit: u32) -> Self {
        Self::new(limit, Duration::from_secs(1))
    }

    /// Allows `limit` in each minute, sliding.
    ///
    /// # Panics
    /// See [`Quota::new`].
    #[must_use]
    pub const fn per_minute(limit: u32) -> Self {
        Self::new(limit, Duration::from_secs(60))
    }

    /// Allows `limit` in each hour, sliding.
    ///
    /// # Panics
    /// See [`Quota::new`].
    #[must_use]
    pub const fn per_hour(limit: u32) -> Self {
        Self::new(limit, Duration::from_secs(3_600))
    }

    /// Allows `limit` in each 24 hours, sliding.
    ///
    /// # Panics
    /// See [`Quota::new`].
    #[must_use]
    pub const fn per_day(limit: u32) -> Self {
        Self::new(limit, Duration::from_secs(86_400))
    }

    /// Allows `limit` in each calendar month of UTC, all of it free again on the first.
    ///
    /// # Panics
    /// If `limit` is not within 1 and 2^31 - 1.
    #[must_use]
    #[allow(clippy::panic)]
    pub const fn per_month(limit: u32) -> Self {
        if limit == 0 || limit > MOST {
            panic!("{}", QuotaError::Limit.text());
        }
        Self {
            limit,
            window: 0,
            algorithm: Algorithm::Month,
        }
    }

    /// Allows `limit` in every trailing `window`.
    ///
    /// # Panics
    /// If `limit` is not within 1 and 2^31 - 1, or `window` not in whole seconds within 1 second and 366 days.
    /// In a `const` that is an error of the compiler.
    #[must_use]
    #[allow(clippy::panic)]
    pub const fn new(limit: u32, window: Duration) -> Self {
        match Self::try_new(limit, window) {
            Ok(quota) => quota,
            Err(error) => panic!("{}", error.text()),
        }
    }

    /// Allows `limit` in every trailing `window`, for numbers that are known at run time only.
    ///
    /// # Errors
    /// Where [`Quota::new`] panics.
    pub const fn try_new(limit: u32, window: Duration) -> Result<Self, QuotaError> {
        if limit == 0 || limit > MOST {
            return Err(QuotaError::Limit);
        }
        let secs = window.as_secs();
        if window.subsec_nanos() != 0 || secs == 0 || secs > LONGEST {
            return Err(QuotaError::Window);
        }
        Ok(Self {
            limit,
            window: secs,
            algorithm: sliding(limit),
        })
    }

    /// Counts by GCRA: units come back evenly, `limit` per window, and a rested key may spend `burst` at once.
    ///
    /// A window can hold up to `burst + limit` units. It is the cheapest algorithm per key.
    ///
    /// # Panics
    /// If `burst` is not within 1 and 2^31 - 1, if burst times interval is not exact below 2^52, or on a quota per month.
    #[must_use]
    #[allow(clippy::panic)]
    pub const fn gcra(self, burst: u32) -> Self {
        match self.try_gcra(burst) {
            Ok(quota) => quota,
            Err(error) => panic!("{}", error.text()),
        }
    }

    /// Counts by GCRA, for a burst that is known at run time only.
    ///
    /// # Errors
    /// Where [`Quota::gcra`] panics.
    pub const fn try_gcra(self, burst: u32) -> Result<Self, QuotaError> {
        let (num, den) = match self.algorithm {
            Algorithm::Month => return Err(QuotaError::Month),
            _ => lowest_terms(self.window * MICROS, self.limit as u64),
        };
        if burst == 0 || burst > MOST {
            return Err(QuotaError::Limit);
        }
        match num.checked_mul(burst as u64) {
            Some(room) if room < GCRA_ROOM => Ok(Self {
                algorithm: Algorithm::Gcra { burst, num, den },
                ..self
            }),
            _ => Err(QuotaError::Burst),
        }
    }

    /// Admits up to twice the limit around a window's boundary: counts in fixed windows.
    ///
    /// Windows start at multiples of the window since the Unix epoch. Use it for billing periods only.
    #[must_use]
    pub const fn fixed(self) -> Self {
        let algorithm = match self.algorithm {
            Algorithm::Month => Algorithm::Month,
            _ => Algorithm::Fixed,
        };
        Self { algorithm, ..self }
    }

    /// Returns the declared limit: units per window.
    #[must_use]
    pub const fn limit(&self) -> u32 {
        self.limit
    }

    /// Returns the algorithm.
    #[must_use]
    pub const fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Returns the units that can be in use at once: the limit, for GCRA the burst.
    #[must_use]
    pub const fn capacity(&self) -> u32 {
        match self.algorithm {
            Algorithm::Gcra { burst, .. } => burst,
            _ => self.limit,
        }
    }

    /// Returns the capacity at a lower limit than the declared one: for GCRA the burst shrinks in proportion, rounded up.
    #[must_use]
    pub const fn capacity_at(&self, limit: u32) -> u32 {
        let limit = if limit > self.limit {
            self.limit
        } else {
            limit
        };
        match self.algorithm {
            Algorithm::Gcra { burst, .. } => {
                (burst as u64 * limit as u64).div_ceil(self.limit as u64) as u32
            }
            _ => limit,
        }
    }

    /// Returns the length of the window in microseconds; 0 for calendar months.
    #[must_use]
    pub const fn window_micros(&self) -> u64 {
        self.window * MICROS
    }

    /// Returns what the fields call `w`: whole seconds until a full key is empty; `None` for months.
    #[must_use]
    pub const fn field_window(&self) -> Option<u64> {
        match self.algorithm {
            Algorithm::Gcra { burst, num, den } => {
                Some((burst as u64 * num).div_ceil(den).div_ceil(MICROS))
            }
            Algorithm::Month => None,
            _ => Some(self.window),
        }
    }

    /// Divides the quota among `processes`, at least 1 for each.
    #[must_use]
    pub(crate) const fn share_of(&self, processes: u32) -> Self {
        let limit = share(self.limit, processes);
        match self.algorithm {
            Algorithm::Gcra { burst, .. } => {
                let (num, den) = lowest_terms(self.window * MICROS, limit as u64);
                let (wish, most) = (share(burst, processes), (GCRA_ROOM - 1) / num);
                let burst = if (wish as u64) < most {
                    wish
                } else {
                    most as u32
                };
                Self {
                    limit,
                    window: self.window,
                    algorithm: Algorithm::Gcra { burst, num, den },
                }
            }
            Algorithm::Log | Algorithm::Buckets => Self {
                limit,
                window: self.window,
                algorithm: sliding(limit),
            },
            algorithm => Self {
                limit,
                window: self.window,
                algorithm,
            },
        }
    }

    /// Writes what names this quota in a key: plain ASCII without a separator.
    pub(crate) fn key_text(&self) -> String {
        let Self { limit, window, .. } = self;
        match self.algorithm {
            Algorithm::Log | Algorithm::Buckets => format!("{limit}-{window}"),
            Algorithm::Gcra { burst, .. } => format!("{limit}-{window}-g{burst}"),
            Algorithm::Fixed => format!("{limit}-{window}-f"),
            Algorithm::Month => format!("{limit}-month"),
        }
    }
}

impl Default for Quota {
    /// 100 per hour.
    fn default() -> Self {
        Self::per_hour(100)
    }
}

impl fmt::Debug for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Quota({})", self.key_text())
    }
}

const fn sliding(limit: u32) -> Algorithm {
    if limit <= MOST_STAMPS {
        Algorithm::Log
    } else {
        Algorithm::Buckets
    }
}

const fn share(whole: u32, processes: u32) -> u32 {
    let processes = if processes == 0 { 1 } else { processes };
    if whole / processes == 0 {
        1
    } else {
        whole / processes
    }
}

const fn lowest_terms(num: u64, den: u64) -> (u64, u64) {
    let (mut a, mut b) = (num, den);
    while b != 0 {
        (a, b) = (b, a % b);
    }
    (num / a, den / a)
}

/// Why numbers make no quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum QuotaError {
    /// The limit or burst is 0 or above 2^31 - 1.
    Limit,
    /// The window is not in whole seconds, or not within 1 second and 366 days.
    Window,
    /// Burst times interval is too long to be counted exactly.
    Burst,
    /// A calendar month has no even interval.
    Month,
}

impl QuotaError {
    const fn text(self) -> &'static str {
        match self {
            Self::Limit => "a limit must lie within 1 and 2147483647",
            Self::Window => "a window must be whole seconds within 1 second and 366 days",
            Self::Burst => {
                "burst times interval is too long: choose a smaller burst or a shorter window"
            }
            Self::Month => "a quota per month cannot be counted by GCRA: give it a window",
        }
    }
}

impl fmt::Display for QuotaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl std::error::Error for QuotaError {}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);

    #[test]
    fn only_numbers_that_can_be_counted_exactly_make_a_quota() {
        assert_eq!(Quota::try_new(0, HOUR), Err(QuotaError::Limit));
        assert_eq!(Quota::try_new(1 << 31, HOUR), Err(QuotaError::Limit));
        for window in [
            Duration::ZERO,
            Duration::from_millis(1_500),
            Duration::from_secs(LONGEST + 1),
        ] {
            assert_eq!(Quota::try_new(1, window), Err(QuotaError::Window));
        }
        assert_eq!(Quota::new(1, HOUR).try_gcra(MOST), Err(QuotaError::Burst));
        assert_eq!(Quota::per_month(5).try_gcra(1), Err(QuotaError::Month));
    }

    #[test]
    fn up_to_1024_units_are_logged_and_more_are_bucketed() {
        assert_eq!(Quota::per_hour(1_024).algorithm(), Algorithm::Log);
        assert_eq!(Quota::per_hour(1_025).algorithm(), Algorithm::Buckets);
    }

    #[test]
    fn gcra_tells_its_burst_and_the_time_to_empty_it() {
        let quota = Quota::per_minute(7).gcra(3);
        assert_eq!(
            quota.algorithm(),
            Algorithm::Gcra {
                burst: 3,
                num: 60_000_000,
                den: 7
            }
        );
        assert_eq!((quota.capacity(), quota.field_window()), (3, Some(26)));
        assert_eq!(
            [0, 1, 3, 7, 9].map(|limit| quota.capacity_at(limit)),
            [0, 1, 2, 3, 3]
        );
    }

    #[test]
    fn a_share_is_never_nothing_and_never_inexact() {
        assert_eq!(Quota::per_minute(10).share_of(4).limit(), 2);
        assert_eq!(Quota::per_minute(3).share_of(4).limit(), 1);
        assert_eq!(
            Quota::per_day(4_000).share_of(4).algorithm(),
            Algorithm::Log
        );
        let wide = Quota::per_second(MOST).gcra(MOST).share_of(1_000);
        assert!(wide.try_gcra(wide.capacity()).is_ok());
    }
}
