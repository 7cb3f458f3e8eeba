//! Pure decisions: what a key's state says about a cost at a moment, and what a charge makes of it.
//!
//! No clock and no I/O. A state is repaired first (a clock that went back), then read without a change,
//! and changed only when every policy of the request admits.

pub(crate) mod buckets;
pub(crate) mod fixed;
pub(crate) mod gcra;
pub(crate) mod log;

use buckets::Buckets;
use fixed::Fixed;
use gcra::Gcra;
use log::Log;

use super::quota::{Algorithm, Quota};
use super::store::{Entry, Outcome, PolicyState};

/// A stamp this far ahead of the clock is believed (a burst within one microsecond); farther, the clock went back.
pub(crate) const LEAD: u64 = 1_000_000;

/// What is counted for one key under one quota.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Log(Log),
    Buckets(Box<Buckets>),
    Gcra(Gcra),
    Fixed(Fixed),
}

/// How much is in use, and when the first of it is free again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) used: u32,
    /// Microseconds until `limit - used` grows.
    pub(crate) more_in: Option<u64>,
}

impl State {
    /// Makes an empty state.
    pub(crate) fn empty(quota: &Quota, now: u64) -> Self {
        match quota.algorithm() {
            Algorithm::Log => Self::Log(Log::default()),
            Algorithm::Buckets => Self::Buckets(Box::new(Buckets::empty(quota, now))),
            Algorithm::Gcra { .. } => Self::Gcra(Gcra::empty(now)),
            Algorithm::Fixed | Algorithm::Month => Self::Fixed(Fixed::empty(quota, now)),
        }
    }

    /// Says whether the state lies so far ahead that the clock must have gone back.
    pub(crate) fn is_ahead(&self, quota: &Quota, now: u64) -> bool {
        match self {
            Self::Log(log) => log.is_ahead(now),
            Self::Buckets(buckets) => buckets.is_ahead(quota, now),
            Self::Gcra(gcra) => gcra.is_ahead(quota, now),
            Self::Fixed(fixed) => fixed.is_ahead(quota, now),
        }
    }

    /// Brings what lies ahead back to `now`.
    pub(crate) fn repair(&mut self, quota: &Quota, now: u64) {
        match self {
            Self::Log(log) => log.repair(now),
            Self::Buckets(buckets) => buckets.repair(quota, now),
            Self::Gcra(gcra) => gcra.repair(quota, now),
            Self::Fixed(fixed) => fixed.repair(quota, now),
        }
    }

    /// Returns what is in use, seen at `limit`.
    pub(crate) fn usage(&self, quota: &Quota, now: u64, limit: u32) -> Usage {
        match self {
            Self::Log(log) => log.usage(quota, now, limit),
            Self::Buckets(buckets) => buckets.usage(quota, now, limit),
            Self::Gcra(gcra) => gcra.usage(quota, now, limit),
            Self::Fixed(fixed) => fixed.usage(quota, now, limit),
        }
    }

    /// Returns the microseconds until `cost` is admitted at `limit`, 0 if it is now. `cost` must not exceed `limit`.
    pub(crate) fn wait(&self, quota: &Quota, now: u64, limit: u32, cost: u32) -> u64 {
        match self {
            Self::Log(log) => log.wait(quota, now, limit, cost),
            Self::Buckets(buckets) => buckets.wait(quota, now, limit, cost),
            Self::Gcra(gcra) => gcra.wait(quota, now, limit, cost),
            Self::Fixed(fixed) => fixed.wait(quota, now, limit, cost),
        }
    }

    /// Charges `cost`; beyond the declared limit the oldest units give way, or the state saturates.
    pub(crate) fn charge(&mut self, quota: &Quota, now: u64, cost: u32) -> Option<Entry> {
        match self {
            Self::Log(log) => log.charge(quota, now, cost),
            Self::Buckets(buckets) => buckets.charge(quota, now, cost),
            Self::Gcra(gcra) => gcra.charge(quota, now, cost),
            Self::Fixed(fixed) => fixed.charge(quota, now, cost),
        }
    }

    /// Returns the bytes by which that charge would grow the state.
    pub(crate) fn growth(&self, quota: &Quota, now: u64, cost: u32) -> usize {
        match self {
            Self::Log(log) => log.growth(quota, now, cost),
            Self::Buckets(_) | Self::Gcra(_) | Self::Fixed(_) => 0,
        }
    }

    /// Takes back what still counts of a charge; `false` if nothing does.
    pub(crate) fn refund(&mut self, quota: &Quota, now: u64, entry: &Entry) -> bool {
        match self {
            Self::Log(log) => log.refund(quota, now, entry),
            Self::Buckets(buckets) => buckets.refund(quota, now, entry),
            Self::Gcra(gcra) => gcra.refund(now, entry, quota),
            Self::Fixed(fixed) => fixed.refund(quota, now, entry),
        }
    }

    /// Returns the moment from which nothing counts any more.
    pub(crate) fn expires_at(&self, quota: &Quota) -> u64 {
        match self {
            Self::Log(log) => log.expires_at(quota),
            Self::Buckets(buckets) => buckets.expires_at(quota),
            Self::Gcra(gcra) => gcra.expires_at(),
            Self::Fixed(fixed) => fixed.expires_at(quota),
        }
    }
}

/// Decides one policy; `state` is `None` where nothing is counted, and repaired before. What is in use is measured later.
pub(crate) fn decide(
    state: Option<&State>,
    quota: &Quota,
    now: u64,
    limit: u32,
    cost: u32,
    blocked_until: Option<u64>,
) -> PolicyState {
    if cost > limit && blocked_until.is_none() {
        return PolicyState::decided(Outcome::Never, limit, u64::MAX);
    }
    let wait = match state {
        Some(state) if cost > 0 && cost <= limit => state.wait(quota, now, limit, cost),
        _ => 0,
    };
    match (blocked_until, wait) {
        // The end of a block lets nobody in whom the quota still keeps out.
        (Some(until), wait) => PolicyState::decided(Outcome::Blocked, limit, wait.max(until - now)),
        (None, 0) => PolicyState::decided(Outcome::Admitted, limit, 0),
        (None, wait) => PolicyState::decided(Outcome::Denied, limit, wait),
    }
}

/// Adds to a decision what is in use, after the charge if there is one.
pub(crate) fn measure(decided: &mut PolicyState, state: &State, quota: &Quota, now: u64) {
    let usage = state.usage(quota, now, decided.limit);
    decided.measured(usage.used, usage.more_in.unwrap_or(0));
}

#[cfg(test)]
mod tests;
