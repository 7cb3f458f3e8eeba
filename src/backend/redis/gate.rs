//! Who may go to a server: a breaker for all calls, and one that concerns only those who wait less than the handle.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::server::Generation;
use crate::core::telemetry::{count, info, warn};
use crate::core::{Admission, Breaker};

/// The most failures that are told at once: more say no more.
const MOST_OWED: u32 = 8;

/// Calls that wait as long count together, as long but for a factor of two: from 1 ms to half a minute and more.
const KINDS_OF_HASTE: usize = 16;

/// What a server's silence means depends on how long it was listened to. Only an answer that does not come within the
/// handle's timeout is a failure for all. A call that waits less and runs out is one for those alone who wait about as
/// long: five in a row, and calls like it are refused, while all others go on.
///
/// What ends a connection is one failure, however many calls were under way on it, and what befalls a call on a connection
/// that has a successor says nothing of that one.
pub(super) struct Gate {
    started: Instant,
    /// The handle's timeout.
    patience: Duration,
    breakers: Mutex<Breakers>,
}

#[derive(Default)]
struct Breakers {
    all: Breaker,
    hasty: [Hasty; KINDS_OF_HASTE],
    /// The longest that a hasty call waited in vain, of those that still count.
    in_vain: Duration,
    owed: Owed,
    /// The last connection whose end was counted.
    ended: Generation,
}

/// Calls that wait about as long, and less than the handle.
#[derive(Clone, Copy, Default)]
struct Hasty {
    breaker: Breaker,
    /// How long one of them waited last in vain.
    in_vain: Duration,
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
    /// Of a call that waits less than the handle: how long, and what those like it let it in with.
    hasty: Option<(usize, Admission)>,
}

/// What a failure says of the server.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// It is away, or was silent.
    OfServer,
    /// Its connection has ended, and so have all calls that were under way on it.
    OfConnection(Generation),
    /// Nothing: there has been another connection since.
    Past,
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
        let kind = (!self.is_patient(wait)).then(|| kind_of(wait));
        let mut breakers = self.breakers.lock();
        let all = breakers.all.admit(now);
        let hasty = match (all, kind) {
            (Admission::Refused(until_probe), _) => return Err(until_probe),
            (_, None) => None,
            // Whoever probes for all is not held up.
            (Admission::Probe, Some(kind)) => Some((kind, Admission::Pass)),
            (Admission::Pass, Some(kind)) => match breakers.hasty[kind].breaker.admit(now) {
                Admission::Refused(until_probe) => return Err(until_probe),
                let_in => Some((kind, let_in)),
            },
        };
        Ok(Ticket { all, hasty })
    }

    /// The server answered that call.
    pub(super) fn answered(&self, ticket: Ticket, took: Duration) {
        let mut breakers = self.breakers.lock();
        breakers.close();
        let own = ticket.hasty.map(|(kind, _)| kind);
        let is_counted = |kind: usize| !breakers.hasty[kind].in_vain.is_zero();
        if took <= breakers.in_vain || own.is_some_and(is_counted) {
            breakers.was_soon_enough(own, took);
        }
    }

    /// The server is away, or was silent for the handle's timeout. A probe's failure always counts.
    pub(super) fn failed(&self, ticket: Ticket, failure: Failure) -> Verdict {
        let now = self.started.elapsed();
        let mut breakers = self.breakers.lock();
        if !breakers.counts(failure) && !ticket.is_probe() {
            return Verdict {
                until_probe: breakers.all.until_probe(now),
                is_cut_off: false,
            };
        }
        // An outage concerns all, and opens nothing for the hasty alone: nobody might ask in a hurry to close it again.
        if let Some((kind, admission)) = ticket.hasty {
            let hasty = &mut breakers.hasty[kind].breaker;
            if hasty.is_open() {
                hasty.failed(admission, now);
            }
        }
        let is_opening = breakers.fail(ticket.all, now);
        Verdict {
            until_probe: breakers.all.until_probe(now),
            is_cut_off: is_opening || ticket.is_probe(),
        }
    }

    /// A call has waited `wait`, less than the handle does, in vain. Returns the time until one like it is let in.
    pub(super) fn was_hasty(&self, ticket: Ticket, wait: Duration, failure: Failure) -> Duration {
        let now = self.started.elapsed();
        let mut breakers = self.breakers.lock();
        let until_probe = breakers.all.until_probe(now);
        let Some((kind, admission)) = ticket.hasty else {
            return until_probe;
        };
        let hasty = &mut breakers.hasty[kind];
        if failure != Failure::Past {
            let was_open = hasty.breaker.is_open();
            hasty.in_vain = wait.max(Duration::from_nanos(1));
            hasty.breaker.failed(admission, now);
            if hasty.breaker.is_open() && !was_open {
                warn!(wait = ?wait, "redis is too slow for calls that wait less than the handle, those are refused");
                count!("keep_redis_breaker_opened_total", 1);
            }
        }
        let until_probe = until_probe.max(hasty.breaker.until_probe(now));
        if failure != Failure::Past {
            breakers.in_vain = breakers.in_vain.max(wait);
        }
        until_probe
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
        let is_refused = |hasty: &Hasty| hasty.breaker.until_probe(now) > Duration::ZERO;
        breakers.all.is_open() || breakers.hasty.iter().any(is_refused)
    }
}

/// The place of a wait among those about as long.
fn kind_of(wait: Duration) -> usize {
    let place = wait.as_millis().max(1).ilog2() as usize;
    place.min(KINDS_OF_HASTE - 1)
}

impl Breakers {
    fn close(&mut self) {
        if self.all.is_open() {
            info!("redis answers again");
        }
        self.all.succeeded();
    }

    /// An answer came after that time, to a call of that kind: soon enough for those like it, and for all who wait as long.
    fn was_soon_enough(&mut self, own: Option<usize>, took: Duration) {
        self.in_vain = Duration::ZERO;
        for (kind, hasty) in self.hasty.iter_mut().enumerate() {
            if own == Some(kind) || took <= hasty.in_vain {
                *hasty = Hasty::default();
            }
            self.in_vain = self.in_vain.max(hasty.in_vain);
        }
    }

    /// Says whether this failure is one more. The end of a connection is, when it is met first.
    fn counts(&mut self, failure: Failure) -> bool {
        match failure {
            Failure::OfServer => true,
            Failure::OfConnection(generation) => {
                let is_new = generation > self.ended;
                self.ended = self.ended.max(generation);
                is_new
            }
            Failure::Past => false,
        }
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
            gate.was_hasty(ticket, HASTE, Failure::OfServer);
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
    fn whoever_waits_hardly_at_all_shuts_the_gate_for_nobody_who_waits_longer() {
        let gate = Gate::new(PATIENCE);
        let hardly = HASTE / 10;
        for _ in 0..5 {
            let ticket = gate.admit(hardly).unwrap();
            gate.was_hasty(ticket, hardly, Failure::OfServer);
        }
        assert!(gate.admit(hardly).is_err());
        // One that runs out costs those like it nothing, either.
        for _ in 0..2 {
            let longer = gate.admit(HASTE).unwrap();
            gate.was_hasty(longer, HASTE, Failure::OfServer);
        }
        let longer = gate.admit(HASTE).unwrap();
        gate.answered(longer, HASTE / 2);
        assert!(gate.admit(hardly).is_err(), "it was too slow for them");
        gate.answered(gate.admit(HASTE).unwrap(), hardly);
        assert!(gate.admit(hardly).is_ok());
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
            gate.failed(gate.admit(PATIENCE).unwrap(), Failure::OfServer);
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
            gate.failed(gate.admit(HASTE).unwrap(), Failure::OfServer);
        }
        assert!(gate.is_shut());
        gate.started -= Duration::from_secs(2);
        gate.answered(gate.admit(PATIENCE).unwrap(), HASTE * 2);
        assert!(!gate.refuses_some());
    }

    #[test]
    fn the_end_of_a_connection_is_one_failure_and_what_is_past_is_none() {
        let gate = Gate::new(PATIENCE);
        let ticket = || gate.admit(PATIENCE).unwrap();
        let tickets: Vec<Ticket> = (0..40).map(|_| ticket()).collect();
        for late in &tickets[..20] {
            gate.failed(*late, Failure::OfConnection(1));
            gate.failed(*late, Failure::Past);
            gate.was_hasty(gate.admit(HASTE).unwrap(), HASTE, Failure::Past);
        }
        for generation in 2..5 {
            gate.failed(ticket(), Failure::OfConnection(generation));
            gate.failed(ticket(), Failure::OfConnection(generation - 1));
        }
        assert!(!gate.refuses_some());
        assert!(gate.failed(ticket(), Failure::OfConnection(5)).is_cut_off);
        assert!(gate.is_shut());
    }

    #[test]
    fn a_probe_that_fails_is_a_failure_whatever_became_of_its_connection() {
        let mut gate = Gate::new(PATIENCE);
        for _ in 0..5 {
            gate.failed(gate.admit(PATIENCE).unwrap(), Failure::OfServer);
        }
        gate.started -= Duration::from_secs(1);
        let probe = gate.admit(PATIENCE).unwrap();
        assert!(gate.failed(probe, Failure::Past).until_probe > Duration::from_secs(1));
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
        gate.was_hasty(first, HASTE, Failure::OfServer);
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
