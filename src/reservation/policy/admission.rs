//! Whether slots may be taken beside what is there.

use super::state_at;
use crate::core::Timestamp;
use crate::reservation::hold::{HoldId, HoldState};
use crate::reservation::rejection::Conflict;
use crate::reservation::slot::Slot;
use crate::reservation::store::{Blockers, HoldRecord, HoldWish};

/// A stored row in a blocking state that overlaps a wish.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) hold: HoldId,
    pub(crate) state: HoldState,
    pub(crate) expires_at: Option<Timestamp>,
    pub(crate) mine: bool,
    pub(crate) same_key: bool,
    pub(crate) resource: Box<str>,
    pub(crate) unit: Box<str>,
    pub(crate) from: Timestamp,
    pub(crate) to: Timestamp,
    pub(crate) units: u32,
    pub(crate) counted: bool,
}

impl Row {
    /// What tells it from all others: a hold's slots do not overlap in a lane.
    fn name(&self) -> (HoldId, &str, &str, Timestamp) {
        (self.hold, &self.resource, &self.unit, self.from)
    }

    fn is_live(&self, now: Timestamp) -> bool {
        state_at(self.state, self.expires_at, now).blocks()
    }

    fn meets(&self, slot: &Slot) -> bool {
        let blocks = slot.blocks();
        *self.resource == *slot.resource
            && *self.unit == *slot.unit
            && self.from < blocks.end
            && blocks.start < self.to
    }
}

/// Whether slots may be taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// Yes, once these holds, which are over, are written as expired.
    Free(Vec<HoldId>),
    Taken(Blockers),
    Full {
        left: u32,
    },
}

/// Decides whether `slots` may be taken beside `rows`, the blocking rows that overlap them.
pub(crate) fn admit(slots: &[Slot], rows: &[Row], now: Timestamp) -> Admission {
    let mut met: Vec<&Row> = rows
        .iter()
        .filter(|row| slots.iter().any(|slot| row.meets(slot)))
        .collect();
    // A row that meets several slots was found once for each, and takes its places once.
    if slots.len() > 1 {
        met.sort_unstable_by_key(|row| row.name());
        met.dedup_by_key(|row| row.name());
    }
    let (live, over): (Vec<&Row>, Vec<&Row>) = met.into_iter().partition(|row| row.is_live(now));
    let in_the_way: Vec<&Row> = live
        .iter()
        .copied()
        .filter(|row| {
            let mut met = slots.iter().filter(|slot| row.meets(slot));
            met.any(|slot| !(row.counted && slot.is_counted()))
        })
        .collect();
    if !in_the_way.is_empty() {
        return Admission::Taken(blockers(&in_the_way, now));
    }
    let full = slots.iter().filter_map(|slot| left_if_full(slot, &live));
    if let Some(left) = full.min() {
        return Admission::Full { left };
    }
    let mut expired: Vec<HoldId> = over.iter().map(|row| row.hold).collect();
    expired.sort_unstable();
    expired.dedup();
    Admission::Free(expired)
}

/// Finds holds that are over and not yet written so.
pub(crate) fn over(rows: &[Row], now: Timestamp) -> Vec<HoldId> {
    let over = rows.iter().filter(|row| !row.is_live(now));
    over.map(|row| row.hold).collect()
}

/// Finds holds of the same holder and key that run and overlap: one of them may be the same wish.
pub(crate) fn twins(rows: &[Row], now: Timestamp) -> Vec<HoldId> {
    let mine = rows
        .iter()
        .filter(|row| row.mine && row.same_key && row.is_live(now) && row.state.is_running());
    let mut ids: Vec<HoldId> = mine.map(|row| row.hold).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// Says whether `record` is what `wish` asks for: holder, key and slots, and running.
pub(crate) fn is_same_wish(record: &HoldRecord, wish: &HoldWish, now: Timestamp) -> bool {
    let same = |(a, b): (&Slot, &Slot)| {
        a.shares_lane(b)
            && (a.start, a.end) == (b.start, b.end)
            && a.blocks() == b.blocks()
            && a.is_counted() == b.is_counted()
            && a.wanted_units() == b.wanted_units()
    };
    record.holder == wish.holder
        && record.key == wish.key
        && record.state_at(now).is_running()
        && record.slots.len() == wish.slots.len()
        && record.slots.iter().zip(wish.slots.iter()).all(same)
}

fn blockers(rows: &[&Row], now: Timestamp) -> Blockers {
    let booked = |row: &&&Row| row.state == HoldState::Confirmed;
    Blockers {
        booked: rows.iter().any(|row| booked(&row)),
        booked_by_you: rows.iter().any(|row| booked(&row) && row.mine),
        held_until: rows
            .iter()
            .filter_map(|row| row.expires_at)
            .max()
            .unwrap_or(now),
        by_you: rows.iter().all(|row| row.mine),
        now,
    }
}

/// What a client is told of those in the way.
pub(crate) fn conflict(blockers: &Blockers) -> Conflict {
    if blockers.booked_by_you {
        return Conflict::AlreadyBookedByYou;
    }
    let left = blockers.held_until.since(blockers.now);
    let seconds = left.as_millis().div_ceil(1_000).max(1);
    Conflict::SlotTaken {
        held_until: (!blockers.booked).then_some(blockers.held_until),
        by_you: blockers.by_you,
        retry_after: u64::try_from(seconds).unwrap_or(u64::MAX),
    }
}

/// Sweeps the rows of the slot's lane: at no instant may the units exceed the capacity. Ends come before
/// starts at one instant, because ranges are half-open.
fn left_if_full(slot: &Slot, live: &[&Row]) -> Option<u32> {
    let places = slot.places?;
    let blocks = slot.blocks();
    let mut steps: Vec<(Timestamp, i64)> = Vec::new();
    for row in live.iter().filter(|row| row.counted && row.meets(slot)) {
        steps.push((row.from.max(blocks.start), i64::from(row.units)));
        steps.push((row.to.min(blocks.end), -i64::from(row.units)));
    }
    steps.sort_unstable();
    let (mut taken, mut peak) = (0_i64, 0_i64);
    for (_, step) in steps {
        taken += step;
        peak = peak.max(taken);
    }
    let left = (i64::from(places.capacity) - peak).max(0);
    let left = u32::try_from(left).unwrap_or(0);
    (places.units > left).then_some(left)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    fn row(from: u64, to: u64, units: u32, counted: bool) -> Row {
        Row {
            hold: HoldId::from(uuid::Uuid::from_u128(
                u128::from(from) << 64 | u128::from(to),
            )),
            state: HoldState::Held,
            expires_at: Some(at(1_000)),
            mine: false,
            same_key: false,
            resource: "a".into(),
            unit: "".into(),
            from: at(from),
            to: at(to),
            units,
            counted,
        }
    }

    #[test]
    fn a_wish_fits_although_no_numbered_place_is_free_throughout() {
        let wish = [Slot::new("a", at(1)..at(4)).units(1).of(2)];
        let rows = [row(0, 2, 1, true), row(3, 5, 1, true)];
        assert_eq!(admit(&wish, &rows, at(0)), Admission::Free(vec![]));
        let three = [row(0, 2, 1, true), row(1, 5, 1, true)];
        assert_eq!(admit(&wish, &three, at(0)), Admission::Full { left: 0 });
    }

    #[test]
    fn a_row_that_was_found_for_several_slots_takes_its_places_once() {
        let early = Slot::new("a", at(1)..at(2)).units(1).of(2);
        let late = Slot::new("a", at(3)..at(4)).units(1).of(2);
        let long = row(0, 9, 1, true);
        let found = [long.clone(), long.clone()];
        assert_eq!(
            admit(&[early.clone(), late.clone()], &found, at(0)),
            Admission::Free(vec![])
        );
        let two = [long.clone(), row(0, 8, 1, true), long];
        assert_eq!(
            admit(&[early, late], &two, at(0)),
            Admission::Full { left: 0 }
        );
    }

    #[test]
    fn exclusive_and_counted_holds_exclude_each_other() {
        let counted = [Slot::new("a", at(0)..at(2)).units(1).of(9)];
        let exclusive = [Slot::new("a", at(0)..at(2))];
        let taken =
            |slots: &[Slot], row| matches!(admit(slots, &[row], at(0)), Admission::Taken(_));
        assert!(taken(&counted, row(1, 3, 1, false)));
        assert!(taken(&exclusive, row(1, 3, 1, true)));
        assert!(!taken(&exclusive, row(2, 3, 1, true)));
    }

    #[test]
    fn at_exactly_its_end_a_hold_blocks_nothing_and_is_named_as_over() {
        let wish = [Slot::new("a", at(0)..at(2))];
        let rows = [row(0, 2, 1, false)];
        assert!(matches!(admit(&wish, &rows, at(999)), Admission::Taken(_)));
        assert_eq!(
            admit(&wish, &rows, at(1_000)),
            Admission::Free(vec![rows[0].hold])
        );
    }

    proptest! {
        #[test]
        fn the_capacity_sweep_agrees_with_counting_instant_by_instant(
            rows in prop::collection::vec((0_u64..20, 1_u64..8, 1_u32..4), 0..8),
            (from, len, units, capacity) in (0_u64..20, 1_u64..8, 1_u32..4, 4_u32..9),
        ) {
            let rows: Vec<Row> = rows
                .into_iter()
                .map(|(from, len, units)| row(from, from + len, units, true))
                .collect();
            let wish = [Slot::new("a", at(from)..at(from + len)).units(units).of(capacity)];
            let peak = (from..from + len)
                .map(|t| {
                    let here = rows.iter().filter(|r| r.from <= at(t) && at(t) < r.to);
                    here.map(|r| r.units).sum::<u32>()
                })
                .max()
                .unwrap_or(0);
            let fits = peak + units <= capacity;
            let expected = if fits {
                Admission::Free(vec![])
            } else {
                Admission::Full { left: capacity.saturating_sub(peak) }
            };
            prop_assert_eq!(admit(&wish, &rows, at(0)), expected);
        }
    }
}
