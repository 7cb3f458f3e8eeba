//! What was counted lately: earlier readings, so that a rate is of what happens now and not of a lifetime.

use std::collections::VecDeque;
use std::time::Duration;

use crate::data::check::Vitals;

/// Reads or calls that a rate is made of, at least.
pub(super) const ENOUGH: u64 = 1_000;
/// Reads from one reading to the next, at least: so many make the thousand at most.
const READS_APART: u64 = 10;
/// Readings that a span of time is divided by, at most.
const STEPS: u64 = 60;

/// Earlier readings, oldest first.
#[derive(Debug, Default)]
pub(super) struct Window {
    /// The first of them is a thousand reads ago, or the very first.
    reads: VecDeque<Vitals>,
    /// With when they were taken, in microseconds: none but the newest is older than the span.
    calls: VecDeque<(u64, Vitals)>,
}

impl Window {
    /// Returns the newest reading that a thousand reads came after, however long ago that is.
    pub(super) fn before_reads(&self, now: &Vitals) -> Option<&Vitals> {
        let is_enough = |then: &&Vitals| now.reads.saturating_sub(then.reads) >= ENOUGH;
        self.reads.iter().rev().find(is_enough)
    }

    /// Returns the newest reading that a thousand calls came after. After [`forget`](Self::forget) it lies within the
    /// span, or is the one before this: where little is asked, what went wrong is not told for ever.
    pub(super) fn before_calls(&self, now: &Vitals) -> Option<&Vitals> {
        let readings = self.calls.iter().rev().map(|(_, vitals)| vitals);
        let is_enough = |then: &&Vitals| now.calls.saturating_sub(then.calls) >= ENOUGH;
        readings.into_iter().find(is_enough)
    }

    /// Drops what was counted longer than `span` ago.
    pub(super) fn forget(&mut self, now_micros: u64, span: Duration) {
        let oldest = now_micros.saturating_sub(micros(span));
        while self.calls.len() > 1 && self.calls.front().is_some_and(|(at, _)| *at < oldest) {
            self.calls.pop_front();
        }
    }

    pub(super) fn push(&mut self, vitals: Vitals, now_micros: u64, span: Duration) {
        let (last_reads, last_calls) = (self.reads.back(), self.calls.back());
        let grown = |last: &Vitals| vitals.reads.saturating_sub(last.reads);
        let is_due = |at: u64| now_micros.saturating_sub(at) >= micros(span) / STEPS;
        let is_read = last_reads.is_none_or(|last| grown(last) >= READS_APART);
        let is_called = last_calls.is_none_or(|(at, _)| is_due(*at));
        if is_read {
            let is_base = |first: &Vitals| grown(first) >= ENOUGH;
            while self.reads.get(1).is_some_and(is_base) {
                self.reads.pop_front();
            }
            self.reads.push_back(vitals.clone());
        }
        if is_called {
            self.calls.push_back((now_micros, vitals));
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.reads.len().max(self.calls.len())
    }
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}
