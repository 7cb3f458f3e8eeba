//! Decisions on what was found, on values alone.

use super::report::{HealthReason, HealthStatus};
use super::thresholds::Thresholds;
use super::window::Window;
use crate::backend::health::{Probed, StoreMode};
use crate::data::check::Vitals;

/// What was found of one part.
pub(super) struct Found<'a> {
    /// `None` where it did not answer, or said that it is down.
    pub(super) probed: Option<Probed>,
    pub(super) vitals: &'a Vitals,
    pub(super) window: &'a Window,
}

/// Returns what is wrong with a part.
pub(super) fn reasons(
    found: &Found<'_>,
    thresholds: &Thresholds,
    expected: Option<StoreMode>,
) -> Vec<HealthReason> {
    let Found {
        probed,
        vitals,
        window,
    } = found;
    let share = |part: u64, whole: u64| part as f64 / whole.max(1) as f64;
    let is_cold = window.before_reads(vitals).is_some_and(|then| {
        let grown = |count: fn(&Vitals) -> u64| count(vitals).saturating_sub(count(then));
        share(grown(|all| all.hits), grown(|all| all.reads)) < thresholds.hit_rate
    });
    let calls = window.before_calls(vitals);
    let of_calls = |count: fn(&Vitals) -> u64| {
        let grown = |then: &Vitals, of: fn(&Vitals) -> u64| of(vitals).saturating_sub(of(then));
        calls.map(|then| share(grown(then, count), grown(then, |all| all.calls)))
    };
    let slow = calls.and_then(|then| vitals.latency.since(&then.latency).p99());
    let memory = probed.and_then(|probed| probed.memory);
    let all = [
        (HealthReason::Down, probed.is_none()),
        (HealthReason::BreakerOpen, vitals.breaker_open),
        (
            HealthReason::Mode,
            expected.is_some_and(|mode| vitals.mode.is_some_and(|own| own != mode)),
        ),
        (
            HealthReason::MayEvict,
            probed.is_some_and(|probed| probed.may_evict),
        ),
        (HealthReason::HitRate, is_cold),
        (
            HealthReason::Fallbacks,
            of_calls(|all| all.fallbacks).is_some_and(|share| share > thresholds.fallbacks),
        ),
        (
            HealthReason::Errors,
            of_calls(|all| all.errors).is_some_and(|share| share > thresholds.errors),
        ),
        (
            HealthReason::Slow,
            slow.is_some_and(|p99| p99 > thresholds.p99),
        ),
        (
            HealthReason::Memory,
            memory.is_some_and(|share| share > thresholds.memory),
        ),
    ];
    let broken = all.into_iter().filter(|(_, is_so)| *is_so);
    broken.map(|(reason, _)| reason).collect()
}

/// Returns how a part is.
pub(super) fn status(reasons: &[HealthReason]) -> HealthStatus {
    if reasons.contains(&HealthReason::Down) {
        HealthStatus::Down
    } else if reasons.is_empty() {
        HealthStatus::Healthy
    } else {
        HealthStatus::Degraded
    }
}

/// Returns how the whole is: each part with whether it is required.
pub(super) fn whole(parts: impl Iterator<Item = (bool, HealthStatus)>) -> HealthStatus {
    parts.fold(HealthStatus::Healthy, |whole, part| {
        let weight = match part {
            (_, HealthStatus::Healthy) => HealthStatus::Healthy,
            (true, HealthStatus::Down) => HealthStatus::Down,
            _ => HealthStatus::Degraded,
        };
        whole.max(weight)
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::core::Latency;

    fn judge(window: &Window, vitals: &Vitals) -> Vec<HealthReason> {
        let found = Found {
            probed: Some(Probed::default()),
            vitals,
            window,
        };
        reasons(&found, &Thresholds::default(), None)
    }

    fn cache(reads: u64, hits: u64) -> Vitals {
        Vitals {
            reads,
            hits,
            ..Vitals::default()
        }
    }

    const SPAN: Duration = Duration::from_secs(60);

    /// What was read, once a second.
    fn push(window: &mut Window, second: u64, vitals: Vitals) {
        window.forget(second * 1_000_000, SPAN);
        window.push(vitals, second * 1_000_000, SPAN);
    }

    #[test]
    fn a_hit_rate_is_of_the_last_thousand_reads_and_of_no_fewer() {
        let mut window = Window::default();
        push(&mut window, 0, cache(0, 0));
        assert_eq!(judge(&window, &cache(999, 0)), []);
        assert_eq!(judge(&window, &cache(1_000, 0)), [HealthReason::HitRate]);
        assert_eq!(judge(&window, &cache(1_000, 800)), []);
        assert_eq!(judge(&window, &cache(1_000, 799)), [HealthReason::HitRate]);
        // A cold start is forgotten.
        push(&mut window, 1, cache(1_000, 0));
        assert_eq!(judge(&window, &cache(2_000, 1_000)), []);
        push(&mut window, 2, cache(2_000, 1_000));
        assert_eq!(
            judge(&window, &cache(3_000, 1_100)),
            [HealthReason::HitRate]
        );
    }

    #[test]
    fn where_little_is_read_a_thousand_reads_may_take_days() {
        let mut window = Window::default();
        for minute in 0..10_000 {
            push(&mut window, minute * 60, cache(minute, 0));
            let reasons = judge(&window, &cache(minute, 0));
            assert_eq!(reasons.is_empty(), minute < 1_000, "{minute}");
        }
        assert!(window.len() <= 102, "{}", window.len());
        // 1,010 hits later no miss is among the last thousand reads.
        assert_eq!(judge(&window, &cache(11_010, 1_010)), []);
    }

    fn calls(calls: u64, errors: u64, fallbacks: u64) -> Vitals {
        Vitals {
            calls,
            errors,
            fallbacks,
            ..Vitals::default()
        }
    }

    #[test]
    fn shares_of_calls_are_judged_beyond_their_bounds() {
        let mut window = Window::default();
        push(&mut window, 0, Vitals::default());
        assert_eq!(judge(&window, &calls(10_000, 10, 500)), []);
        let both = [HealthReason::Fallbacks, HealthReason::Errors];
        assert_eq!(judge(&window, &calls(10_000, 11, 501)), both);
    }

    /// So many calls that took so long each.
    fn took(calls: u64, millis: u64) -> Latency {
        let own = Latency::bucket(Duration::from_millis(millis));
        Latency::of((0..Latency::BUCKETS).map(|bucket| if bucket == own { calls } else { 0 }))
    }

    #[test]
    fn a_store_is_slow_whose_calls_take_more_than_ten_milliseconds() {
        for (millis, expected) in [(9, &[][..]), (11, &[HealthReason::Slow])] {
            let mut window = Window::default();
            push(&mut window, 0, Vitals::default());
            let vitals = Vitals {
                calls: 1_000,
                latency: took(1_000, millis),
                ..Vitals::default()
            };
            assert_eq!(judge(&window, &vitals), expected, "{millis} ms");
        }
    }

    #[test]
    fn a_store_is_full_of_which_more_than_four_fifths_are_in_use() {
        for (memory, expected) in [(0.79, &[][..]), (0.8, &[]), (0.81, &[HealthReason::Memory])] {
            let (window, vitals) = (Window::default(), Vitals::default());
            let found = Found {
                probed: Some(Probed {
                    memory: Some(memory),
                    may_evict: false,
                }),
                vitals: &vitals,
                window: &window,
            };
            let found = reasons(&found, &Thresholds::default(), None);
            assert_eq!(found, expected, "{memory}");
        }
    }

    #[test]
    fn what_went_wrong_is_told_for_its_span_and_no_longer_where_little_is_asked_afterwards() {
        let mut window = Window::default();
        push(&mut window, 0, Vitals::default());
        push(&mut window, 1, calls(5_000, 100, 0));
        for second in 2..1_000 {
            // Nobody asks but for health itself.
            let now = calls(5_000 + second, 100, 0);
            window.forget(second * 1_000_000, SPAN);
            let expected: &[_] = if second <= 60 {
                &[HealthReason::Errors]
            } else {
                &[]
            };
            assert_eq!(judge(&window, &now), expected, "{second}");
            push(&mut window, second, now);
        }
        assert!(window.len() <= 62, "{}", window.len());
    }

    #[test]
    fn who_asks_once_an_hour_hears_of_the_hour() {
        let mut window = Window::default();
        push(&mut window, 0, Vitals::default());
        window.forget(3_600_000_000, SPAN);
        let wrong = calls(2_000, 50, 0);
        assert_eq!(judge(&window, &wrong), [HealthReason::Errors]);
        push(&mut window, 3_600, wrong);
        window.forget(7_200_000_000, SPAN);
        assert_eq!(judge(&window, &calls(4_000, 50, 0)), []);
    }

    #[test]
    fn only_what_is_required_takes_the_whole_down() {
        use HealthStatus::{Degraded, Down, Healthy};
        let whole = |parts: &[(bool, HealthStatus)]| whole(parts.iter().copied());
        assert_eq!(whole(&[]), Healthy);
        assert_eq!(whole(&[(true, Healthy), (false, Down)]), Degraded);
        assert_eq!(whole(&[(true, Degraded), (false, Healthy)]), Degraded);
        assert_eq!(whole(&[(false, Healthy), (true, Down)]), Down);
    }
}
