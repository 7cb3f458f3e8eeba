//! Decisions about one-time values, on values and `now`.

use super::store::{Expect, Keep};

/// Says whether what is there (0: nothing) is what was expected.
pub(super) fn is_expected(expect: Expect, version: u64) -> bool {
    match expect {
        Expect::Any => true,
        Expect::Absent => version == 0,
        Expect::Version(wanted) => version == wanted && version != 0,
    }
}

/// Returns when a value saved at `now_ms` ends, first saved at `created_ms`.
pub(super) fn end(keep: Keep, created_ms: u64, now_ms: u64) -> u64 {
    let last = created_ms.saturating_add(keep.max_age.as_millis());
    now_ms.saturating_add(keep.ttl.as_millis()).min(last)
}
