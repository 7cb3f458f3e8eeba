//! How long calls took: counts by duration, four steps to each doubling.

use std::time::Duration;

/// Calls by how long they took, since the beginning. Two readings tell of the time between them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Latency(Box<[u64]>);

// Redis counts by them.
#[cfg_attr(not(any(test, feature = "redis")), allow(dead_code))]
impl Latency {
    /// The steps: up to a microsecond, then four to each doubling, up to some 30 s.
    #[cfg_attr(not(feature = "redis"), allow(dead_code))]
    pub(crate) const BUCKETS: usize = 104;

    pub(crate) fn of(counts: impl Iterator<Item = u64>) -> Self {
        Self(counts.collect())
    }

    #[cfg_attr(not(feature = "redis"), allow(dead_code))]
    pub(crate) fn bucket(took: Duration) -> usize {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = if micros < 4 {
            micros
        } else {
            let doublings = u64::from(micros.ilog2());
            4 * (doublings - 1) + ((micros >> (doublings - 2)) & 3)
        };
        (bucket as usize).min(Self::BUCKETS - 1)
    }

    /// The shortest duration of a step, in microseconds.
    const fn floor(bucket: usize) -> u64 {
        let bucket = bucket as u64;
        if bucket < 4 {
            return bucket;
        }
        let doublings = bucket / 4 + 1;
        (4 + bucket % 4) << (doublings - 2)
    }

    /// Returns how many calls there were.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Returns what this reading has more than an `earlier` one.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let before = |at: usize| earlier.0.get(at).copied().unwrap_or(0);
        let counts = self.0.iter().enumerate();
        Self::of(counts.map(|(at, count)| count.saturating_sub(before(at))))
    }

    /// Returns what all but one in a hundred calls took at most, rounded down by a fifth at most; `None` without calls.
    #[must_use]
    pub fn p99(&self) -> Option<Duration> {
        let mut over = self.calls() / 100;
        for (bucket, count) in self.0.iter().enumerate().rev() {
            if *count > over {
                return Some(Duration::from_micros(Self::floor(bucket)));
            }
            over -= count;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_begins_where_the_last_one_ends() {
        for bucket in 0..Latency::BUCKETS - 1 {
            let (floor, next) = (Latency::floor(bucket), Latency::floor(bucket + 1));
            assert!(floor < next, "{bucket}");
            assert_eq!(Latency::bucket(Duration::from_micros(floor)), bucket);
            assert_eq!(Latency::bucket(Duration::from_micros(next - 1)), bucket);
        }
        assert_eq!(Latency::bucket(Duration::MAX), Latency::BUCKETS - 1);
    }

    #[test]
    fn one_slow_call_in_a_hundred_is_left_out_and_two_are_not() {
        let latency = |slow: u64| {
            let mut counts = [0; Latency::BUCKETS];
            counts[Latency::bucket(Duration::from_millis(1))] = 200 - slow;
            counts[Latency::bucket(Duration::from_millis(50))] = slow;
            Latency::of(counts.into_iter())
        };
        assert!(latency(2).p99().unwrap() <= Duration::from_millis(1));
        let slow = latency(3).p99().unwrap();
        assert!((40..=50).contains(&slow.as_millis()));
        assert_eq!(latency(3).since(&latency(2)).calls(), 1);
        assert_eq!(Latency::default().p99(), None);
    }
}
