//! Who may go to a server: a breaker for all calls, and one that concerns only those who wait less than the handle.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::core::telemetry::{count, info, warn};
use crate::core::{Admission, Breaker};

/// The most failures that are told at once: more say no more.
const MOST_OWED: u32 = 8;

/// What a server's silence means depends on how long it was listened to. Only an answer that does not come within the
/// handle's timeout is a failure for all. A call that waits less and runs out is one for the hasty alone: five in a row,
/// and calls like it are refused, while the patient go on.
pub(super) struct Gate {
    started: Instant,
    /// The handle's timeout.
    patience: Duration,
    breakers: Mutex<Breakers>,
}

#[derive(Default)]
struct Breakers {
    all: Breaker,
    hasty: Breaker,
    /// How long a hasty call waited last in vain.
    in_vain: Duration,
    owed: Owed,
}

/// Calls whose callers left before it was known whether the server answers.
#[derive(Default)]
struct Owed {
    calls: u32,
    is_probe: bool,
}

/// What a call was let in with, and has to bring back.
#[derive(Clone, Copy)]
pub(super) struct Ticket {
    all: Admission,
    /// Of a call that waits less than the handle.
    hasty: Option<Admission>,
}

/// What is to be done after a failure.
pub(super) struct Verdict {
    /// The time until the server is asked again.
    pub(super) until_probe: Duration,
    /// The breaker has opened, or stays open: the connection may be cut silently.
    pub(super) is_cut_off: bool,
}

impl Gate {
    pub(super) fn new(patience: Duration) -> Self {
        Self {
            started: Instant::now(),
            patience,
            breakers: Mutex::default(),
        }
    }

    /// Returns how long the handle waits.
    pub(super) fn patience(&self) -> Duration {
        self.patience
    }

    /// Says whether a wait tells something of the server's health; what a call needs before it is sent is left out.
    pub(super) fn is_patient(&self, wait: Duration) -> bool {
        wait >= self.patience - self.patience / 10
    }

    /// Lets a call in that will wait that long, or returns the time until the next probe.
    pub(super) fn admit(&self, wait: Duration) -> Result<Ticket, Duration> {
        let now = self.started.elapsed();
        let is_hasty = !self.is_patient(wait);
        let mut breakers = self.breakers.lock();
        let all = breakers.all.admit(now);
        let hasty = match all {
            Admission::Refused(until_probe) => return Err(until_probe),
            // Whoever probes for all is not held up.
            Admission::Probe => Admission::Pass,
            Admission::Pass if is_hasty => breakers.hasty.admit(now),
            Admission::Pass => Admission::Pass,
        };
        if let Admission::Refused(until_probe) = hasty {
            return Err(until_probe);
        }
        let hasty = is_hasty.then_some(hasty);
        Ok(Ticket { all, hasty })
    }

    /// The server answered that call.
    pub(super) fn answered(&self, ticket: Ticket, took: Duration) {
        let mut breakers = self.breakers.lock();
        breakers.close();
        if ticket.hasty.is_some() || took <= breakers.in_vain {
            breakers.hasty.succeeded();
        }
    }

    /// The server is away, or was silent for the handle's timeout.
    pub(super) fn failed(&self, ticket: Ticket) -> Verdict {
        let now = self.started.elapsed();
        let mut breakers = self.breakers.lock();
        // An outage concerns all, and opens nothing for the hasty alone: nobody might ask in a hurry to close it again.
        if let Some(admission) = ticket.hasty
            && breakers.hasty.is_open()
        {
            breakers.hasty.failed(admission, now);
        }
        let is_opening = breakers.fail(ticket.all, now);
        Verdict {
            until_probe: breakers.all.until_probe(now),
            is_cut_off: is_opening || ticket.is_probe(),
        }
    }

    /// A call has waited `wait`, less than the handle does, in vain. Returns the time until one like it is let in.
    pub(super) fn was_hasty(&self, ticket: Ticket, wait: Duration) -> Duration {
        let now = self.started.elapsed();
        let mut breakers = self.breakers.lock();
        if let Some(admission) = ticket.hasty {
            let was_open = breakers.hasty.is_open();
            breakers.in_vain = wait;
            breakers.hasty.failed(admission, now);
            if breakers.hasty.is_open() && !was_open {
                warn!(
                    "redis is too slow for calls that wait less than the handle, they are refused"
                );
                count!("keep_redis_breaker_opened_total", 1);
            }
        }
        breakers
            .hasty
            .until_probe(now)
            .max(breakers.all.until_probe(now))
    }

    /// Somebody else will learn, for a call whose caller has left, whether the server answers.
    pub(super) fn owe(&self, ticket: Ticket) {
        let owed = &mut self.breakers.lock().owed;
        owed.calls = (owed.calls + 1).min(MOST_OWED);
        owed.is_probe |= ticket.is_probe();
    }

    /// The server answers: nothing is owed any more.
    pub(super) fn settle_answered(&self) {
        let mut breakers = self.breakers.lock();
        breakers.owed = Owed::default();
        breakers.close();
    }

    /// The server was silent for the handle's timeout: that is what all those calls would have met.
    pub(super) fn settle_failed(&self) -> Verdict {
        let now = self.started.elapsed();
        let mut breakers = self.breakers.lock();
        let owed = std::mem::take(&mut breakers.owed);
        let mut is_opening = false;
        for call in 0..owed.calls {
            let admission = if owed.is_probe && call == 0 {
                Admission::Probe
            } else {
                Admission::Pass
            };
            is_opening |= breakers.fail(admission, now);
        }
        Verdict {
            until_probe: breakers.all.until_probe(now),
            is_cut_off: is_opening || owed.is_probe,
        }
    }

    /// Says whether every call is refused because the server does not answer.
    pub(super) fn is_shut(&self) -> bool {
        self.breakers.lock().all.is_open()
    }

    /// Says whether some calls are refused because the server does not answer, or not soon enough for them. Where the
    /// pause of the hasty is over and none of them came to find out, none is refused.
    pub(super) fn refuses_some(&self) -> bool {
        let now = self.started.elapsed();
        let breakers = self.breakers.lock();
        breakers.all.is_open() || breakers.hasty.until_probe(now) > Duration::ZERO
    }
}

impl Breakers {
    fn close(&mut self) {
        if self.all.is_open() {
            info!("redis answers again");
        }
        self.all.succeeded();
    }

    /// Says whether this failure has opened the breaker for all.
    fn fail(&mut self, admission: Admission, now: Duration) -> bool {
        let was_open = self.all.is_open();
        self.all.failed(admission, now);
        let is_opening = self.all.is_open() && !was_open;
        if is_opening {
            warn!("redis does not answer, calls are refused until it does");
            count!("keep_redis_breaker_opened_total", 1);
        }
        is_opening
    }
}

impl Ticket {
    /// Says whether everybody else waits for what becomes of this call.
    pub(super) fn is_probe(self) -> bool {
        self.all == Admission::Probe
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_millis(500);
    const HASTE: Duration = Duration::from_millis(50);

    fn in_vain(gate: &Gate, calls: u32) {
        for _ in 0..calls {
            let ticket = gate.admit(HASTE).unwrap();
            gate.was_hasty(ticket, HASTE);
        }
    }

    #[test]
    fn the_hasty_shut_the_gate_for_themselves_only() {
        let gate = Gate::new(PATIENCE);
        in_vain(&gate, 5);
        assert!(gate.admit(HASTE).is_err());
        assert!(gate.admit(PATIENCE).is_ok());
        assert!(!gate.is_shut() && gate.refuses_some());
    }

    #[test]
    fn slow_answers_of_others_do_not_keep_the_gate_open_for_the_hasty_and_quick_ones_open_it() {
        let gate = Gate::new(PATIENCE);
        let answered = |took| gate.answered(gate.admit(PATIENCE).unwrap(), took);
        for _ in 0..5 {
            in_vain(&gate, 1);
            answered(HASTE * 2);
        }
        assert!(gate.admit(HASTE).is_err());
        answered(HASTE);
        assert!(gate.admit(HASTE).is_ok());
    }

    #[test]
    fn silence_that_lasts_is_told_once_for_each_who_left() {
        let gate = Gate::new(PATIENCE);
        for _ in 0..5 {
            gate.owe(gate.admit(PATIENCE).unwrap());
        }
        assert!(gate.settle_failed().is_cut_off);
        assert!(gate.is_shut());
        assert!(!gate.settle_failed().is_cut_off, "nothing is told twice");
    }

    #[test]
    fn an_answer_is_owed_to_nobody() {
        let gate = Gate::new(PATIENCE);
        for _ in 0..5 {
            gate.owe(gate.admit(PATIENCE).unwrap());
        }
        gate.settle_answered();
        gate.settle_failed();
        assert!(!gate.is_shut());
    }

    #[test]
    fn a_shut_gate_is_shut_for_the_hasty_too_and_one_of_them_may_probe_for_all() {
        let mut gate = Gate::new(PATIENCE);
        in_vain(&gate, 5);
        for _ in 0..5 {
            gate.failed(gate.admit(PATIENCE).unwrap());
        }
        assert!(gate.admit(HASTE).is_err() && gate.admit(PATIENCE).is_err());
        gate.started -= Duration::from_secs(2);
        let probe = gate.admit(HASTE).unwrap();
        assert!(probe.is_probe() && gate.admit(PATIENCE).is_err());
        gate.owe(probe);
        assert!(gate.settle_failed().until_probe > Duration::from_secs(1));
        gate.started -= Duration::from_secs(4);
        gate.answered(gate.admit(HASTE).unwrap(), HASTE);
        assert!(!gate.refuses_some());
    }

    #[test]
    fn after_an_outage_that_the_hasty_met_too_an_answer_to_anybody_opens_the_gate() {
        let mut gate = Gate::new(PATIENCE);
        for _ in 0..5 {
            gate.failed(gate.admit(HASTE).unwrap());
        }
        assert!(gate.is_shut());
        gate.started -= Duration::from_secs(2);
        gate.answered(gate.admit(PATIENCE).unwrap(), HASTE * 2);
        assert!(!gate.refuses_some());
    }

    #[test]
    fn a_gate_that_no_hasty_call_asks_at_any_more_does_not_count_as_shut_for_ever() {
        let mut gate = Gate::new(PATIENCE);
        in_vain(&gate, 5);
        // All others get answers, none as quickly.
        gate.answered(gate.admit(PATIENCE).unwrap(), HASTE * 2);
        assert!(gate.refuses_some());
        gate.started -= Duration::from_secs(1);
        assert!(!gate.refuses_some());
        // Who comes next finds out, and others like it are refused until it has.
        let first = gate.admit(HASTE).unwrap();
        assert!(gate.refuses_some() && gate.admit(HASTE).is_err());
        gate.was_hasty(first, HASTE);
        gate.started -= Duration::from_secs(1);
        assert!(gate.refuses_some());
    }

    #[test]
    fn what_a_call_needs_before_it_is_sent_does_not_make_it_hasty() {
        let gate = Gate::new(PATIENCE);
        assert!(gate.is_patient(PATIENCE - Duration::from_millis(1)));
        assert!(gate.is_patient(PATIENCE * 2) && !gate.is_patient(HASTE));
    }
}
