//! Numbers that only grow: what ran, how often. Only the test hooks show them; what operators look at is in `/metrics`.
//!
//! Try it: `curl localhost:8080/_test/counters`, with `--test-hooks`
//!
//! Proof: `double_click_and_retry`

use std::sync::atomic::{AtomicU64, Ordering};

/// How often the innermost code ran; only the test hooks show it.
#[derive(Debug, Default)]
pub struct Counters {
    pub handlers_create: Count,
    pub handlers_webhook: Count,
    pub handlers_approve: Count,
    pub loaders_experts: Count,
    pub loaders_expert: Count,
    pub loaders_slots: Count,
    pub loaders_dashboard: Count,
    pub loaders_customers: Count,
    pub booking_confirmed: Count,
    pub reservation_expired: Count,
    pub payment_refunded: Count,
    pub notification_send: Count,
    pub dead: Count,
}

impl Counters {
    /// Counts a notice that was made.
    pub fn notice(&self, kind: &str) {
        match kind {
            "booking_confirmed" => self.booking_confirmed.add(),
            "reservation_expired" => self.reservation_expired.add(),
            _ => self.payment_refunded.add(),
        }
    }
}

/// One number that only grows.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    pub fn add(&self) {
        self.add_many(1);
    }

    pub fn add_many(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
