//! Lengths of time as words.

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
