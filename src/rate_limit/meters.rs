//! What is counted about decisions. Counters are looked up once; without the feature `metrics` they are nothing.

use std::sync::atomic::{AtomicU8, Ordering};

use super::store::{Mode, Outcome, PolicyState, Refunded};
use crate::core::telemetry::{Counter, gauge};

/// Who decides at this moment, as the gauge shows it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Decider {
    Store = 0,
    Local = 1,
    Open = 2,
    Closed = 3,
}

/// The counters of a layer.
#[derive(Debug)]
pub(super) struct LayerMeters {
    pub(super) passed: Counter,
    pub(super) admitted: Counter,
    pub(super) limited: Counter,
    pub(super) listed: Counter,
    pub(super) unavailable: Counter,
    pub(super) unguarded: Counter,
    pub(super) deny_cache_hits: Counter,
    refund_applied: Counter,
    refund_too_late: Counter,
    refund_failed: Counter,
    /// The value that the gauge shows.
    source: AtomicU8,
}

impl LayerMeters {
    pub(super) fn new(group: &str) -> Self {
        let requests = |outcome| {
            Counter::new(
                "keep_rate_limit_requests_total",
                &[("group", group), ("outcome", outcome)],
            )
        };
        let refunds = |outcome| {
            Counter::new(
                "keep_rate_limit_refunds_total",
                &[("group", group), ("outcome", outcome)],
            )
        };
        Self {
            passed: requests("passed"),
            admitted: requests("admitted"),
            limited: requests("limited"),
            listed: requests("listed"),
            unavailable: requests("unavailable"),
            unguarded: requests("unguarded"),
            deny_cache_hits: Counter::new(
                "keep_rate_limit_deny_cache_hits_total",
                &[("group", group)],
            ),
            source: AtomicU8::new(u8::MAX),
            refund_applied: refunds("applied"),
            refund_too_late: refunds("too_late"),
            refund_failed: refunds("failed"),
        }
    }

    /// Shows who decides; told only when that changes.
    pub(super) fn decides(&self, group: &str, decider: Decider) {
        let decider = decider as u8;
        if self.source.load(Ordering::Relaxed) != decider
            && self.source.swap(decider, Ordering::Relaxed) != decider
        {
            gauge!("keep_rate_limit_source", f64::from(decider), "group" => group.to_owned());
        }
    }

    /// Counts what became of a refund; `None` is a failed store call.
    pub(super) fn refund(&self, refunded: Option<Refunded>) {
        match refunded {
            Some(Refunded::Applied) => self.refund_applied.add_one(),
            Some(Refunded::TooLate | Refunded::AlreadySpent) => self.refund_too_late.add_one(),
            None => self.refund_failed.add_one(),
        }
    }
}

/// The counters of a policy.
#[derive(Debug)]
pub(super) struct PolicyMeters {
    admitted: Counter,
    denied: Counter,
    blocked: Counter,
    never: Counter,
    shadow_denied: Counter,
    near: Counter,
    pub(super) unkeyed: Counter,
}

impl PolicyMeters {
    pub(super) fn new(group: &str, policy: &str) -> Self {
        let decisions = |outcome| {
            Counter::new(
                "keep_rate_limit_decisions_total",
                &[("group", group), ("policy", policy), ("outcome", outcome)],
            )
        };
        let labels = [("group", group), ("policy", policy)];
        Self {
            admitted: decisions("admitted"),
            denied: decisions("denied"),
            blocked: decisions("blocked"),
            never: decisions("never"),
            shadow_denied: decisions("shadow_denied"),
            near: Counter::new("keep_rate_limit_near_total", &labels),
            unkeyed: Counter::new("keep_rate_limit_unkeyed_total", &labels),
        }
    }

    /// Counts one decision; `near` where at least 80 % of the limit are in use.
    pub(super) fn decided(&self, state: &PolicyState, mode: Mode) {
        match (mode, state.outcome) {
            (_, Outcome::Admitted) => {
                self.admitted.add_one();
                if u64::from(state.used) * 5 >= u64::from(state.limit) * 4 {
                    self.near.add_one();
                }
            }
            (Mode::Shadow, Outcome::NotAsked) => {}
            (Mode::Shadow, _) => self.shadow_denied.add_one(),
            (Mode::Enforced, Outcome::Denied) => self.denied.add_one(),
            (Mode::Enforced, Outcome::Blocked) => self.blocked.add_one(),
            (Mode::Enforced, Outcome::Never) => self.never.add_one(),
            (Mode::Enforced, Outcome::NotAsked) => {}
        }
    }
}
