//! When a failing store is asked again: a pure state machine, moved by outcomes and a monotonic `now`.

use std::time::Duration;

/// Failures in a row that open the breaker.
pub(crate) const FAILURES_TO_OPEN: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Counts failures in a row and says whether a call may go out.
///
/// Closed: every call goes out. Five failures in a row open it. Open: nothing goes out until a pause of
/// 1 s is over; then one real call probes. A failed probe doubles the pause, up to 30 s; one success closes.
/// `now` is any monotonic reading; a passed clock never rules here.
#[derive(Clone, Copy, Debug, Default)]
pub struct Breaker {
    failures: u32,
    open: Option<Open>,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    pause: Duration,
    probe_at: Duration,
    probing: bool,
}

/// What the breaker says to a call that wants to go out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Go.
    Pass,
    /// Go, and report back: everybody else waits for this outcome.
    Probe,
    /// Do not go; the next probe is that far away.
    Refused(Duration),
}

impl Breaker {
    /// Decides whether a call may go out at `now`.
    pub fn admit(&mut self, now: Duration) -> Admission {
        let Some(open) = &mut self.open else {
            return Admission::Pass;
        };
        if now >= open.probe_at {
            // A probe whose caller vanished counts as failed once another pause has gone by.
            open.probing = true;
            open.probe_at = now + open.pause;
            return Admission::Probe;
        }
        Admission::Refused(open.probe_at - now)
    }

    /// Records that a call succeeded, whenever it was let go.
    pub fn succeeded(&mut self) {
        *self = Self::default();
    }

    /// Records that a call failed at `now` that was let go by `admission`: only a probe's failure says that the store is
    /// away still. A call from before the breaker opened may fail late, while a probe is on its way.
    pub fn failed(&mut self, admission: Admission, now: Duration) {
        self.failures = self.failures.saturating_add(1);
        match &mut self.open {
            Some(open) if open.probing && admission == Admission::Probe => {
                open.pause = (open.pause * 2).min(LONGEST_PAUSE);
                open.probe_at = now + open.pause;
                open.probing = false;
            }
            Some(_) => {}
            None if self.failures >= FAILURES_TO_OPEN => {
                self.open = Some(Open {
                    pause: FIRST_PAUSE,
                    probe_at: now + FIRST_PAUSE,
                    probing: false,
                });
            }
            None => {}
        }
    }

    /// Says whether calls are being refused.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Returns the time from `now` to the next probe; zero while closed.
    #[must_use]
    pub fn until_probe(&self, now: Duration) -> Duration {
        self.open
            .map_or(Duration::ZERO, |open| open.probe_at.saturating_sub(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn five_failures_in_a_row_open_it_and_one_success_closes_it() {
        let mut breaker = Breaker::default();
        (0..4).for_each(|_| breaker.failed(Admission::Pass, at(0)));
        breaker.succeeded();
        (0..4).for_each(|_| breaker.failed(Admission::Pass, at(0)));
        assert_eq!(breaker.admit(at(0)), Admission::Pass);
        breaker.failed(Admission::Pass, at(0));
        assert_eq!(breaker.admit(at(400)), Admission::Refused(at(600)));
        assert_eq!(breaker.admit(at(1_000)), Admission::Probe);
        assert_eq!(breaker.admit(at(1_001)), Admission::Refused(at(999)));
        breaker.succeeded();
        assert_eq!(breaker.admit(at(1_002)), Admission::Pass);
    }

    #[test]
    fn failed_probes_double_the_pause_up_to_30_seconds() {
        let mut breaker = Breaker::default();
        (0..5).for_each(|_| breaker.failed(Admission::Pass, at(0)));
        let mut now = at(0);
        let mut pauses = Vec::new();
        for _ in 0..7 {
            let pause = breaker.until_probe(now);
            pauses.push(pause.as_secs());
            now += pause;
            assert_eq!(breaker.admit(now), Admission::Probe);
            breaker.failed(Admission::Probe, now);
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
    }

    #[test]
    fn a_probe_that_never_reports_does_not_stick_the_breaker() {
        let mut breaker = Breaker::default();
        (0..5).for_each(|_| breaker.failed(Admission::Pass, at(0)));
        assert_eq!(breaker.admit(at(1_000)), Admission::Probe);
        assert_eq!(breaker.admit(at(2_000)), Admission::Probe);
    }

    #[test]
    fn late_failures_of_calls_sent_before_it_opened_do_not_move_the_probe() {
        let mut breaker = Breaker::default();
        (0..5).for_each(|_| breaker.failed(Admission::Pass, at(0)));
        breaker.failed(Admission::Pass, at(900));
        assert_eq!(breaker.admit(at(1_000)), Admission::Probe);
    }

    #[test]
    fn a_late_failure_during_a_probe_leaves_the_pause_to_the_probe() {
        let mut breaker = Breaker::default();
        (0..5).for_each(|_| breaker.failed(Admission::Pass, at(0)));
        assert_eq!(breaker.admit(at(1_000)), Admission::Probe);
        breaker.failed(Admission::Pass, at(1_100));
        assert_eq!(breaker.until_probe(at(1_100)), at(900));
        breaker.failed(Admission::Probe, at(1_200));
        assert_eq!(breaker.until_probe(at(1_200)), at(2_000));
    }

    #[test]
    fn a_probe_of_an_earlier_outage_says_nothing_of_the_next_one() {
        let mut breaker = Breaker::default();
        (0..5).for_each(|_| breaker.failed(Admission::Pass, at(0)));
        assert_eq!(breaker.admit(at(1_000)), Admission::Probe);
        breaker.succeeded();
        (0..5).for_each(|_| breaker.failed(Admission::Pass, at(2_000)));
        breaker.failed(Admission::Probe, at(2_500));
        assert_eq!(breaker.until_probe(at(2_500)), at(500));
    }
}
