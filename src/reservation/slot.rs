//! What is wanted: a time of a resource, alone or several together.

use std::fmt;
use std::ops::Range;
use std::time::Duration;

use serde::Serialize;
use smallvec::{SmallVec, smallvec};

use crate::core::Timestamp;
use crate::core::ttl::DAY;

const LONGEST: Duration = Duration::from_secs(366 * 86_400);
const LONGEST_BUFFER: Duration = Duration::from_secs(7 * 86_400);
const MOST_UNITS: u32 = 1_000_000;
/// The most slots of one hold.
pub(crate) const MOST_SLOTS: usize = 32;

/// A half-open range of time of a resource: [9:00, 10:00) and [10:00, 11:00) are neighbours.
///
/// (resource, unit) is a *lane*; by default a hold is exclusive in its lane. The empty unit is a lane
/// of its own, not the whole. With [`units`](Self::units) a lane has a capacity instead.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Slot {
    pub(crate) resource: Box<str>,
    pub(crate) unit: Box<str>,
    pub(crate) start: Timestamp,
    pub(crate) end: Timestamp,
    pub(crate) before: Duration,
    pub(crate) after: Duration,
    pub(crate) places: Option<Places>,
    pub(crate) in_progress: bool,
}

/// How many of a lane's places are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Places {
    pub(crate) units: u32,
    pub(crate) capacity: u32,
}

/// Why a slot cannot be wanted at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SlotError {
    /// The resource must be 1–200 bytes without control characters.
    Resource,
    /// The unit must be up to 64 bytes without control characters.
    Unit,
    /// The end must be later than the start, by up to 366 days.
    Range,
    /// A buffer may last up to 7 days.
    Buffer,
    /// 1 ≤ units ≤ capacity ≤ 1,000,000.
    Units,
    /// 1–32 slots make a hold.
    Count,
    /// Two slots of one hold overlap in one lane.
    Overlap,
    /// The holder must be 1–128 bytes without control characters.
    Holder,
    /// The key may have up to 64 bytes, without control characters.
    Key,
    /// The payment's id must be 1–255 bytes without control characters.
    Payment,
    /// A hold must last at least a millisecond, and no longer than `hold_at_most`.
    Length,
}

impl fmt::Display for SlotError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Resource => "the resource must be 1 to 200 bytes without control characters",
            Self::Unit => "the unit must be up to 64 bytes without control characters",
            Self::Range => "the end must be later than the start, by up to 366 days",
            Self::Buffer => "a buffer may last up to 7 days",
            Self::Units => "there must be 1 to 1,000,000 places, and no more units than places",
            Self::Count => "1 to 32 slots make a hold",
            Self::Overlap => "two slots of one hold overlap in one lane",
            Self::Holder => "the holder must be 1 to 128 bytes without control characters",
            Self::Key => "the key must be up to 64 bytes without control characters",
            Self::Payment => "the payment must be 1 to 255 bytes without control characters",
            Self::Length => "a hold must last at least 1 ms and no longer than is allowed",
        })
    }
}

impl std::error::Error for SlotError {}

impl Slot {
    /// Makes a slot from literals or checked values.
    ///
    /// # Panics
    /// Where [`try_new`](Self::try_new) errs.
    #[must_use]
    #[track_caller]
    #[allow(clippy::panic)]
    pub fn new<T: Into<Timestamp>>(resource: impl AsRef<str>, range: Range<T>) -> Self {
        match Self::try_new(resource, range) {
            Ok(slot) => slot,
            Err(error) => panic!("{error}"),
        }
    }

    /// Makes a slot from run-time input.
    ///
    /// # Errors
    /// [`SlotError::Resource`] and [`SlotError::Range`].
    pub fn try_new<T: Into<Timestamp>>(
        resource: impl AsRef<str>,
        range: Range<T>,
    ) -> Result<Self, SlotError> {
        let (start, end) = (range.start.into(), range.end.into());
        if !is_text(resource.as_ref(), 1, 200) {
            return Err(SlotError::Resource);
        }
        if end <= start || end.since(start) > LONGEST {
            return Err(SlotError::Range);
        }
        Ok(Self {
            resource: resource.as_ref().into(),
            unit: "".into(),
            start,
            end,
            before: Duration::ZERO,
            after: Duration::ZERO,
            places: None,
            in_progress: false,
        })
    }

    /// Widens what is blocked, not what is shown; between neighbours buffers add up.
    #[must_use]
    pub fn buffer(mut self, before: Duration, after: Duration) -> Self {
        (self.before, self.after) = (before, after);
        self
    }

    /// Names a part of the resource, such as a seat or a room: a lane of its own.
    #[must_use]
    pub fn unit(mut self, name: impl AsRef<str>) -> Self {
        self.unit = name.as_ref().into();
        self
    }

    /// Wants `n` places of a lane that has several: say how many by [`Units::of`].
    pub fn units(self, n: u32) -> Units {
        Units { slot: self, n }
    }

    /// Allows a start in the past, as long as the end is not.
    #[must_use]
    pub fn in_progress(mut self) -> Self {
        self.in_progress = true;
        self
    }

    /// Returns the resource.
    #[must_use]
    pub fn resource(&self) -> &str {
        &self.resource
    }

    /// Returns the unit's name, empty by default.
    #[must_use]
    pub fn unit_name(&self) -> &str {
        &self.unit
    }

    /// Returns the start as shown.
    #[must_use]
    pub const fn start(&self) -> Timestamp {
        self.start
    }

    /// Returns the end as shown.
    #[must_use]
    pub const fn end(&self) -> Timestamp {
        self.end
    }

    /// Returns what is blocked: the range with its buffers.
    #[must_use]
    pub fn blocks(&self) -> Range<Timestamp> {
        self.start.minus(self.before)..self.end.plus(self.after)
    }

    /// Returns how many places are wanted; 1 for an exclusive slot.
    #[must_use]
    pub const fn wanted_units(&self) -> u32 {
        match self.places {
            Some(places) => places.units,
            None => 1,
        }
    }

    pub(crate) const fn is_counted(&self) -> bool {
        self.places.is_some()
    }

    pub(crate) fn shares_lane(&self, other: &Self) -> bool {
        self.resource == other.resource && self.unit == other.unit
    }

    fn check(&self) -> Result<(), SlotError> {
        if !is_text(&self.unit, 0, 64) {
            return Err(SlotError::Unit);
        }
        if self.before > LONGEST_BUFFER || self.after > LONGEST_BUFFER {
            return Err(SlotError::Buffer);
        }
        match self.places {
            Some(Places { units, capacity })
                if units == 0 || units > capacity || capacity > MOST_UNITS =>
            {
                Err(SlotError::Units)
            }
            _ => Ok(()),
        }
    }
}

/// A number of places that still needs its capacity.
#[derive(Clone, Debug)]
#[must_use = "say of how many places"]
pub struct Units {
    slot: Slot,
    n: u32,
}

impl Units {
    /// Says how many places the lane has; it comes with each call and may change.
    #[must_use]
    pub fn of(mut self, capacity: u32) -> Slot {
        self.slot.places = Some(Places {
            units: self.n,
            capacity,
        });
        self.slot
    }
}

/// The slots of one hold: one state, all or nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slots {
    slots: SmallVec<[Slot; 1]>,
}

impl Slots {
    /// Sorts by (lane, start), so that two holds never wait for each other crosswise, and checks.
    pub(crate) fn checked(mut self) -> Result<SmallVec<[Slot; 1]>, SlotError> {
        if self.slots.is_empty() || self.slots.len() > MOST_SLOTS {
            return Err(SlotError::Count);
        }
        self.slots.iter().try_for_each(Slot::check)?;
        self.slots
            .sort_by(|a, b| (&a.resource, &a.unit, a.start).cmp(&(&b.resource, &b.unit, b.start)));
        // Compared by what they block: two rows of one insert would refuse each other silently.
        let collides = self.slots.iter().enumerate().any(|(at, slot)| {
            self.slots[..at].iter().any(|earlier| {
                earlier.shares_lane(slot)
                    && earlier.blocks().start < slot.blocks().end
                    && slot.blocks().start < earlier.blocks().end
            })
        });
        if collides {
            return Err(SlotError::Overlap);
        }
        Ok(self.slots)
    }
}

impl From<Slot> for Slots {
    fn from(slot: Slot) -> Self {
        Self {
            slots: smallvec![slot],
        }
    }
}

impl From<Vec<Slot>> for Slots {
    fn from(slots: Vec<Slot>) -> Self {
        Self {
            slots: slots.into(),
        }
    }
}

impl<const N: usize> From<[Slot; N]> for Slots {
    fn from(slots: [Slot; N]) -> Self {
        Self {
            slots: slots.into_iter().collect(),
        }
    }
}

impl FromIterator<Slot> for Slots {
    fn from_iter<I: IntoIterator<Item = Slot>>(slots: I) -> Self {
        Self {
            slots: slots.into_iter().collect(),
        }
    }
}

impl Serialize for Slot {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Shown<'s> {
            resource: &'s str,
            #[serde(skip_serializing_if = "str::is_empty")]
            unit: &'s str,
            start: Timestamp,
            end: Timestamp,
            #[serde(skip_serializing_if = "Option::is_none")]
            units: Option<u32>,
        }
        Shown {
            resource: &self.resource,
            unit: &self.unit,
            start: self.start,
            end: self.end,
            units: self.places.map(|places| places.units),
        }
        .serialize(serializer)
    }
}

/// A text of `least` to `most` bytes without control characters.
pub(crate) fn is_text(text: &str, least: usize, most: usize) -> bool {
    (least..=most).contains(&text.len()) && !text.chars().any(char::is_control)
}

/// The longest life in `processing`, counted from creation.
pub(crate) const PROCESSING_AT_MOST: Duration = Duration::from_secs(30 * DAY.as_secs());

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    #[test]
    fn impossible_slots_are_named() {
        assert_eq!(Slot::try_new("", at(0)..at(1)), Err(SlotError::Resource));
        assert_eq!(Slot::try_new("a\n", at(0)..at(1)), Err(SlotError::Resource));
        assert_eq!(Slot::try_new("a", at(2)..at(2)), Err(SlotError::Range));
        assert_eq!(Slot::try_new("a", at(3)..at(2)), Err(SlotError::Range));
        let day = 86_400_000;
        assert!(Slot::try_new("a", at(0)..at(366 * day)).is_ok());
        assert_eq!(
            Slot::try_new("a", at(0)..at(366 * day + 1)),
            Err(SlotError::Range)
        );
    }

    #[test]
    fn slots_are_sorted_and_overlaps_in_one_lane_refused_buffers_included() {
        let slot = |start, end| Slot::new("a", at(start)..at(end));
        let sorted = Slots::from([slot(20, 30), slot(0, 10)]).checked().unwrap();
        assert_eq!(sorted[0].start(), at(0));
        let touching = [
            slot(0, 10).buffer(Duration::ZERO, Duration::from_millis(1)),
            slot(10, 20),
        ];
        assert_eq!(Slots::from(touching).checked(), Err(SlotError::Overlap));
        assert_eq!(Slots::from(vec![]).checked(), Err(SlotError::Count));
        assert_eq!(
            Slots::from(slot(0, 1).units(3).of(2)).checked(),
            Err(SlotError::Units)
        );
        let rooms = [slot(0, 10).unit("1"), slot(0, 10).unit("2")];
        assert!(Slots::from(rooms).checked().is_ok());
    }
}
