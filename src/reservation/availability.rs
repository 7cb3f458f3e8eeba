//! What of a resource's calendar is free: advice, not a promise.

use std::ops::Range;
use std::time::Duration;

use serde::Serialize;

use super::slot::{SlotError, is_text};
use super::store::{AvailabilityQuery, Busy};
use crate::core::Timestamp;

/// A stretch of a resource's calendar: what is taken in it, ordered by unit and start.
#[derive(Clone, Debug, Serialize)]
pub struct Availability {
    from: Timestamp,
    to: Timestamp,
    spans: Vec<Busy>,
}

impl Availability {
    pub(crate) const fn new(range: Range<Timestamp>, spans: Vec<Busy>) -> Self {
        Self {
            from: range.start,
            to: range.end,
            spans,
        }
    }

    /// Returns what is taken.
    #[must_use]
    pub fn spans(&self) -> &[Busy] {
        &self.spans
    }

    /// Lists the starts, one `step` apart, at which `duration` fits into the lane of the empty unit without
    /// meeting anything, buffers of what is there included. A step of zero lists nothing.
    #[must_use]
    pub fn free(&self, duration: Duration, step: Duration) -> Vec<Timestamp> {
        let mut starts = Vec::new();
        let mut start = self.from;
        while !step.is_zero() && start.plus(duration) <= self.to {
            let end = start.plus(duration);
            let mut own = self.spans.iter().filter(|span| span.unit.is_empty());
            if !own.any(|span| span.blocks_from < end && start < span.blocks_to) {
                starts.push(start);
            }
            let next = start.plus(step);
            if next == start {
                break;
            }
            start = next;
        }
        starts
    }
}

impl AvailabilityQuery {
    pub(crate) fn checked(resource: &str, range: &Range<Timestamp>) -> Result<Self, SlotError> {
        if !is_text(resource, 1, 200) {
            return Err(SlotError::Resource);
        }
        let longest = Duration::from_secs(366 * 86_400);
        if range.end <= range.start || range.end.since(range.start) > longest {
            return Err(SlotError::Range);
        }
        Ok(Self {
            resource: resource.into(),
            from: range.start,
            to: range.end,
        })
    }
}
