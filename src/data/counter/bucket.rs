//! Buckets of UTC, and what they hold.

use crate::core::Timestamp;

/// The width of a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Granularity {
    /// A minute.
    Minute,
    /// An hour.
    Hour,
    /// A day of UTC.
    Day,
}

/// Buckets of one width, of which the last ones are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Bucket {
    granularity: Granularity,
    keep: u16,
}

impl Bucket {
    /// Minutes; 120 are kept.
    pub const MINUTE: Self = Self::of(Granularity::Minute, 120);
    /// Hours; 48 are kept.
    pub const HOUR: Self = Self::of(Granularity::Hour, 48);
    /// Days of UTC; 400 are kept.
    pub const DAY: Self = Self::of(Granularity::Day, 400);

    const fn of(granularity: Granularity, keep: u16) -> Self {
        Self { granularity, keep }
    }

    /// Keeps each bucket for this many widths after its end.
    ///
    /// # Panics
    /// Outside of 1 to 1,000; in a constant, the compiler says so.
    #[must_use]
    pub const fn keep(self, keep: u16) -> Self {
        assert!(1 <= keep && keep <= 1_000, "a series keeps 1 to 1,000");
        Self::of(self.granularity, keep)
    }

    /// Returns the granularity.
    #[must_use]
    pub const fn granularity(self) -> Granularity {
        self.granularity
    }

    /// Returns how many widths after its end a bucket is kept.
    #[must_use]
    pub const fn kept(self) -> u64 {
        self.keep as u64
    }

    /// Returns the width in milliseconds.
    #[must_use]
    pub const fn width_millis(self) -> u64 {
        match self.granularity {
            Granularity::Minute => 60_000,
            Granularity::Hour => 3_600_000,
            Granularity::Day => 86_400_000,
        }
    }

    /// Returns a letter for keys.
    #[must_use]
    pub const fn letter(self) -> char {
        match self.granularity {
            Granularity::Minute => 'm',
            Granularity::Hour => 'h',
            Granularity::Day => 'd',
        }
    }
}

/// One bucket of a series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    /// When the bucket begins.
    pub start: Timestamp,
    /// How many.
    pub count: i64,
    /// The sum of the measured values.
    pub sum: i64,
    /// The largest measured value, if one was measured.
    pub max: Option<i64>,
}

impl Point {
    /// Returns the sum by the count, `None` for an empty bucket.
    #[must_use]
    pub fn mean(&self) -> Option<f64> {
        (self.count != 0).then(|| self.sum as f64 / self.count as f64)
    }
}
