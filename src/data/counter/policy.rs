//! Decisions about counts and buckets, on values and `now`.

use std::ops::{Range, RangeInclusive};

use super::bucket::Bucket;

/// The most buckets of one answer.
pub(super) const MOST_POINTS: u64 = 1_000;

/// Returns the value after a change, `None` where it would overflow or leave its bounds.
pub(super) fn changed(value: i64, by: i64, within: &RangeInclusive<i64>) -> Option<i64> {
    value.checked_add(by).filter(|next| within.contains(next))
}

/// Returns the numbers of the buckets that `from..to` touches, at most the last 1,000.
pub(super) fn numbers(bucket: Bucket, from_ms: u64, to_ms: u64) -> Range<u64> {
    let width = bucket.width_millis();
    let end = to_ms.div_ceil(width);
    let start = (from_ms / width).max(end.saturating_sub(MOST_POINTS));
    if from_ms >= to_ms { 0..0 } else { start..end }
}

/// Returns the oldest bucket that is still there.
pub(super) fn oldest(bucket: Bucket, now_ms: u64) -> u64 {
    (now_ms / bucket.width_millis()).saturating_sub(bucket.kept())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_half_open_and_widened_to_whole_buckets() {
        let day = 86_400_000;
        assert_eq!(numbers(Bucket::DAY, day, 3 * day), 1..3);
        assert_eq!(numbers(Bucket::DAY, day + 5, 3 * day + 1), 1..4);
        assert!(numbers(Bucket::DAY, day, day).is_empty());
        assert_eq!(numbers(Bucket::MINUTE, 0, 60_000 * 5_000), 4_000..5_000);
    }

    #[test]
    fn a_bucket_is_kept_for_its_keep_after_its_end() {
        let bucket = Bucket::HOUR.keep(2);
        let hour = 3_600_000;
        // Bucket 5 ends at hour 6 and lives two hours more.
        assert_eq!(oldest(bucket, 8 * hour - 1), 5);
        assert_eq!(oldest(bucket, 8 * hour), 6);
    }
}
