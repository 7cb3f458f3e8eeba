//! What was counted lately: earlier readings, so that a rate is of the last thousand and not of a lifetime.

use std::collections::VecDeque;

use crate::data::check::Vitals;

/// Reads or calls that a rate is made of, at least.
pub(super) const ENOUGH: u64 = 1_000;
const MOST: usize = 120;

/// Earlier readings, oldest first.
#[derive(Debug, Default)]
pub(super) struct Window(VecDeque<Vitals>);

impl Window {
    /// Returns the newest reading that `count` has grown by a thousand since.
    pub(super) fn base(&self, now: &Vitals, count: fn(&Vitals) -> u64) -> Option<&Vitals> {
        let long_ago = |then: &&Vitals| count(now).saturating_sub(count(then)) >= ENOUGH;
        self.0.iter().rev().find(long_ago)
    }

    pub(super) fn push(&mut self, now: Vitals) {
        if self.0.len() >= MOST {
            // The oldest stay: where little is counted they are the base.
            self.0.pop_back();
        }
        self.0.push_back(now);
        while self.0.len() > 1 && self.is_outlived() {
            self.0.pop_front();
        }
    }

    /// The second reading is base enough for everything that the first one is.
    fn is_outlived(&self) -> bool {
        let (Some(second), Some(last)) = (self.0.get(1), self.0.back()) else {
            return false;
        };
        let is_base = |count: fn(&Vitals) -> u64| {
            let grown = self
                .0
                .front()
                .map_or(0, |first| count(last).saturating_sub(count(first)));
            grown == 0 || count(last).saturating_sub(count(second)) >= ENOUGH
        };
        is_base(|vitals| vitals.reads) && is_base(|vitals| vitals.calls)
    }
}
