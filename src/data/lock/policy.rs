//! When a holder must believe its lock gone, when it renews, and when a waiter asks again.

use std::time::Duration;

/// Below this a lease is over before it can be used.
pub(super) const SHORTEST_LEASE: Duration = Duration::from_millis(10);
/// What a holder gives up of its lease: clocks run apart by less than 1 %, and the store counts whole milliseconds.
const SLACK: Duration = Duration::from_millis(2);

/// Returns how much of `lease`, counted from before the call was sent, the holder may use.
pub(super) fn usable(lease: Duration) -> Duration {
    lease.saturating_sub(lease / 100 + SLACK)
}

/// Returns when after its start a lease is renewed.
pub(super) fn renew_after(lease: Duration) -> Duration {
    lease / 3
}

/// Returns the pause before a failed renewal is tried again.
pub(super) fn retry_pause(lease: Duration) -> Duration {
    (lease / 20).clamp(Duration::from_millis(5), Duration::from_secs(1))
}

/// Returns the lease to ask for when `rest` of the longest hold is left; `None` once there is no more to ask for.
pub(super) fn next_lease(lease: Duration, rest: Duration) -> Option<Duration> {
    let next = lease.min(rest);
    (next > SHORTEST_LEASE).then_some(next)
}

/// Returns how long a waiter sleeps where no release wakes it: the holder's rest and up to 10 % more; `random` is any.
pub(super) fn ask_again_after(left: Duration, random: u32) -> Duration {
    left + left.mul_f64(0.1 * f64::from(random) / f64::from(u32::MAX)) + Duration::from_millis(1)
}

/// Returns whole seconds for a `Retry-After` field, at least 1.
pub(super) fn retry_after(left: Duration) -> u64 {
    u64::try_from(left.as_millis().div_ceil(1_000))
        .unwrap_or(u64::MAX)
        .max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_holder_believes_its_lock_gone_before_the_store_does(ms in 10_u64..100_000_000) {
            let lease = Duration::from_millis(ms);
            prop_assert!(usable(lease) < lease.mul_f64(0.9901));
            prop_assert!(usable(lease) > Duration::ZERO && renew_after(lease) < usable(lease));
        }

        #[test]
        fn a_waiter_asks_after_the_holders_end_and_within_a_tenth_of_its_rest(ms in 0_u64..100_000_000, random: u32) {
            let left = Duration::from_millis(ms);
            let pause = ask_again_after(left, random);
            prop_assert!(pause > left && pause <= left.mul_f64(1.1) + Duration::from_millis(2));
        }
    }

    #[test]
    fn renewals_end_with_the_longest_hold() {
        let (lease, second) = (Duration::from_secs(30), Duration::from_secs(1));
        assert_eq!(next_lease(lease, 600 * second), Some(lease));
        assert_eq!(next_lease(lease, 12 * second), Some(12 * second));
        assert_eq!(next_lease(lease, Duration::ZERO), None);
    }

    #[test]
    fn retry_after_is_whole_seconds_rounded_up() {
        let after = |ms| retry_after(Duration::from_millis(ms));
        assert_eq!((after(0), after(1_000), after(1_001)), (1, 1, 2));
    }
}
