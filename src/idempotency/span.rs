//! The span of a guarded request: what was found, under which fence, and a few digits that name its key to no one.

use super::record::{Fence, RecordId};

/// Begins the span; its fields come as they are known.
#[cfg(feature = "tracing")]
pub(super) fn of_request() -> tracing::Span {
    use tracing::field::Empty;
    tracing::debug_span!("idempotency", outcome = Empty, fence = Empty, key = Empty)
}

/// Our own span, if it is on: a field of the same name in another is not ours to write.
#[cfg(feature = "tracing")]
fn own() -> Option<tracing::Span> {
    let span = tracing::Span::current();
    let is_own = span
        .metadata()
        .is_some_and(|own| own.name() == "idempotency");
    is_own.then_some(span)
}

/// Notes whose record it is, by the first digits of the key's tag.
pub(super) fn of_key(id: &RecordId) {
    #[cfg(feature = "tracing")]
    if let Some(span) = own() {
        let [a, b, c, d, ..] = id.key();
        let tag = u32::from_be_bytes([a, b, c, d]);
        span.record("key", format_args!("{tag:08x}").to_string());
    }
    #[cfg(not(feature = "tracing"))]
    let _ = id;
}

/// Notes the run's fence.
pub(super) fn of_run(fence: Fence) {
    #[cfg(feature = "tracing")]
    if let Some(span) = own() {
        span.record("fence", fence.0);
    }
    #[cfg(not(feature = "tracing"))]
    let _ = fence;
}

/// Notes how it ended.
pub(super) fn of_end(outcome: &'static str) {
    #[cfg(feature = "tracing")]
    if let Some(span) = own() {
        span.record("outcome", outcome);
    }
    #[cfg(not(feature = "tracing"))]
    let _ = outcome;
}
