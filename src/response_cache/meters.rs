//! What is told about fetches and about the cache as a whole; nothing without the features `metrics` and `tracing`.

use crate::core::{ResponseCacheOutcome, telemetry};

use super::cache::Cache;
use super::store::Hash128;

/// One call of the inner service: how long it takes, and how it ends.
pub(super) struct FetchMeter {
    kind: &'static str,
    #[cfg(feature = "metrics")]
    started: u64,
}

impl FetchMeter {
    pub(super) fn begin(kind: &'static str) -> Self {
        Self {
            kind,
            #[cfg(feature = "metrics")]
            started: crate::core::Clock::now_micros(&crate::core::SystemClock),
        }
    }

    /// Counts the end of the call.
    pub(super) fn end(&self, is_ok: bool) {
        #[cfg(feature = "metrics")]
        {
            let now = crate::core::Clock::now_micros(&crate::core::SystemClock);
            let took = std::time::Duration::from_micros(now.saturating_sub(self.started));
            telemetry::seconds!("keep_response_cache_fetch_seconds", took, "kind" => self.kind);
        }
        self.count(if is_ok { "ok" } else { "error" });
    }

    /// Stands beside a poll of the call: a panic that passes it is counted.
    pub(super) const fn watch(&self) -> Watch<'_> {
        Watch(self)
    }

    fn count(&self, result: &'static str) {
        let kind = self.kind;
        telemetry::count!("keep_response_cache_fetches_total", 1, "kind" => kind, "result" => result);
    }
}

/// Counts a panic that passes it.
pub(super) struct Watch<'a>(&'a FetchMeter);

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.count("panic");
        }
    }
}

impl Cache {
    /// Shows by gauges how things stand: with each look at the stamps, and when somebody asks for the numbers.
    pub(super) fn show(&self) {
        #[cfg(feature = "metrics")]
        {
            let name = self.counters.name();
            let stamps = &self.stamps;
            let lag = self.real.now_micros().saturating_sub(stamps.confirmed());
            let lag = if stamps.confirmed() == 0 { 0 } else { lag };
            let queued = stamps.queued().len();
            telemetry::gauge!("keep_response_cache_flights", self.flights.len() as f64, "name" => name);
            telemetry::gauge!("keep_response_cache_waiters", self.flights.waiters() as f64, "name" => name);
            telemetry::gauge!("keep_response_cache_local_bytes", self.local.bytes() as f64, "name" => name);
            telemetry::gauge!("keep_response_cache_local_entries", self.local.entries() as f64, "name" => name);
            telemetry::gauge!("keep_response_cache_queued_invalidations", queued as f64, "name" => name);
            telemetry::gauge!("keep_response_cache_stamp_lag_seconds", lag as f64 / 1e6, "name" => name);
            let suspended = f64::from(u8::from(stamps.is_away()));
            telemetry::gauge!("keep_response_cache_suspended", suspended, "name" => name);
            let evicted = self.counters.newly_evicted(self.local.evicted());
            telemetry::count!("keep_response_cache_evictions_total", evicted, "name" => name);
        }
    }
}

/// The span of one considered request.
#[derive(Clone)]
pub(super) struct Span {
    #[cfg(feature = "tracing")]
    span: tracing::Span,
}

impl Span {
    /// Begins one; its key is shown as the first digits of a hash that only this process knows.
    pub(super) fn begin(key: Option<Hash128>) -> Self {
        #[cfg(not(feature = "tracing"))]
        let _ = key;
        let span = Self {
            #[cfg(feature = "tracing")]
            span: tracing::debug_span!(
                "response_cache",
                key = tracing::field::Empty,
                outcome = tracing::field::Empty,
            ),
        };
        if let Some(key) = key {
            span.name(key);
        }
        span
    }

    /// No span: for what is not considered.
    pub(super) const fn none() -> Self {
        Self {
            #[cfg(feature = "tracing")]
            span: tracing::Span::none(),
        }
    }

    /// Says what was asked for.
    pub(super) fn name(&self, key: Hash128) {
        #[cfg(not(feature = "tracing"))]
        let _ = key;
        #[cfg(feature = "tracing")]
        if !self.span.is_disabled() {
            let [a, b, c, d, ..] = key.0;
            let digits = format!("{:08x}", u32::from_be_bytes([a, b, c, d]));
            self.span.record("key", digits);
        }
    }

    pub(super) fn within<T>(&self, run: impl FnOnce() -> T) -> T {
        #[cfg(feature = "tracing")]
        return self.span.in_scope(run);
        #[cfg(not(feature = "tracing"))]
        run()
    }

    /// Says what became of it.
    pub(super) fn end(&self, outcome: Option<&ResponseCacheOutcome>) {
        #[cfg(not(feature = "tracing"))]
        let _ = outcome;
        #[cfg(feature = "tracing")]
        if let Some(outcome) = outcome.filter(|_| !self.span.is_disabled()) {
            self.span
                .record("outcome", super::counters::label(*outcome));
        }
    }
}
