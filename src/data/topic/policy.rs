//! What a reader gives next: from its place in the log and what the log still has, without I/O.

use super::event::EventId;
use super::store::{Kept, Page};

/// What a feed gives, before decoding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Raw {
    Event(Kept),
    /// Something is missing; `before` is the place before the next kept event.
    Gap {
        missed: Option<u64>,
        before: EventId,
    },
}

/// What follows a place in the log.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Followed {
    pub(super) raws: Vec<Raw>,
    pub(super) position: Option<EventId>,
    /// The log goes on behind this page.
    pub(super) more: bool,
}

/// The place before every event of every log: nothing was published when its reader began.
pub(super) const NOTHING_YET: EventId = EventId::new(0, 0);

/// Says whether the log knows `position`; without one, all of the log comes after it.
pub(super) fn knows(head: Option<EventId>, position: Option<EventId>) -> bool {
    match (head, position) {
        (_, None) => true,
        (None, Some(_)) => false,
        (Some(head), Some(position)) => {
            head.epoch() == position.epoch() && position.seq() <= head.seq()
        }
    }
}

/// Says whether another event stands at `position` than the one that the reader had: a server that took over lacked it, and
/// gave its number once more. `page` begins with it, if it is kept.
pub(super) fn is_another(position: Option<EventId>, page: &Page) -> bool {
    match (position, page.events.first()) {
        (Some(had), Some(kept)) => kept.id == had && kept.place().differs(had),
        _ => false,
    }
}

/// Where to read on when the log does not know the reader's place: from its beginning.
pub(super) fn beginning(head: EventId) -> EventId {
    EventId::new(head.epoch(), 0)
}

/// Follows `position` by a page of at most `most` events that was read after it. `unknown`: how much was missed
/// before is not known, and not yet said.
pub(super) fn follow(
    position: Option<EventId>,
    page: Page,
    most: usize,
    mut unknown: bool,
) -> Followed {
    let Some(head) = page.head else {
        let gap = Raw::Gap {
            missed: None,
            before: NOTHING_YET,
        };
        return Followed {
            raws: if unknown { vec![gap] } else { Vec::new() },
            position: None,
            more: false,
        };
    };
    let more = page.events.len() >= most;
    let mut last = position.unwrap_or_else(|| beginning(head));
    let mut raws = Vec::with_capacity(page.events.len() + 1);
    for event in page.events {
        let before = EventId::new(event.id.epoch(), event.id.seq().saturating_sub(1));
        // A log that began anew between two reads is one whose beginning we do not know.
        unknown |= before.epoch() != last.epoch();
        if unknown || before > last {
            let missed = (!unknown).then(|| before.seq() - last.seq());
            raws.push(Raw::Gap { missed, before });
        }
        unknown = false;
        last = event.place();
        raws.push(Raw::Event(event));
    }
    if !more && (unknown || last < head) {
        unknown |= last.epoch() != head.epoch();
        raws.push(Raw::Gap {
            missed: (!unknown).then(|| head.seq() - last.seq()),
            before: head,
        });
        last = head;
    }
    Followed {
        raws,
        position: Some(last),
        more,
    }
}

/// What a notice is to a reader at `position`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// The next one.
    Next,
    /// Given already.
    Old,
    /// Others come before it: read the log.
    Hole,
}

pub(super) fn arrival(position: Option<EventId>, id: EventId) -> Arrival {
    match position {
        None if id.seq() == 1 => Arrival::Next,
        None => Arrival::Hole,
        // A number that is given once more: the log lost its end.
        Some(last) if id <= last && id.is_later(last) => Arrival::Hole,
        Some(last) if id <= last => Arrival::Old,
        Some(last) if id == last.next() => Arrival::Next,
        Some(_) => Arrival::Hole,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::Timestamp;
    use bytes::Bytes;
    use proptest::prelude::*;

    const EPOCH: u64 = 7;

    fn kept(seq: u64) -> Kept {
        Kept {
            id: EventId::new(EPOCH, seq),
            at: Timestamp::EPOCH,
            payload: Bytes::new(),
        }
    }

    /// A log of which only `first..=head` is kept, read after `position`.
    fn read(first: u64, head: u64, position: Option<EventId>, most: usize) -> Page {
        let events = (first..=head).map(kept);
        let after = |event: &Kept| position.is_none_or(|position| event.id > position);
        Page {
            head: (head > 0).then(|| EventId::new(EPOCH, head)),
            events: events.filter(after).take(most).collect(),
        }
    }

    proptest! {
        #[test]
        fn every_event_is_given_once_in_order_or_counted_in_a_gap(
            first in 1_u64..60, head in 1_u64..60, start in 0_u64..60, most in 1_usize..9,
        ) {
            let start = start.min(head);
            let mut position = (start > 0).then(|| EventId::new(EPOCH, start));
            prop_assert!(knows(Some(EventId::new(EPOCH, head)), position));
            let (mut next, mut more) = (start + 1, true);
            while more {
                let followed = follow(position, read(first, head, position, most), most, false);
                for raw in followed.raws {
                    match raw {
                        Raw::Event(event) => {
                            prop_assert_eq!(event.id.seq(), next);
                            next += 1;
                        }
                        Raw::Gap { missed, before } => {
                            next += missed.unwrap();
                            prop_assert_eq!(before.seq() + 1, next);
                            prop_assert!(next <= first.min(head + 1), "what is kept is not a gap");
                        }
                    }
                }
                (position, more) = (followed.position, followed.more);
            }
            prop_assert_eq!(next, head + 1);
        }
    }

    #[test]
    fn who_missed_nothing_gets_no_gap_though_nothing_is_kept() {
        let position = Some(EventId::new(EPOCH, 5));
        let followed = follow(position, read(9, 5, position, 9), 9, false);
        assert_eq!((followed.raws, followed.position), (vec![], position));
    }

    #[test]
    fn an_unknown_place_is_one_gap_of_unknown_size_then_what_is_kept() {
        for position in [
            EventId::new(EPOCH, 99),
            EventId::new(3, 1),
            EventId::new(9, 1),
        ] {
            assert!(!knows(Some(EventId::new(EPOCH, 4)), Some(position)));
        }
        let start = Some(beginning(EventId::new(EPOCH, 4)));
        let followed = follow(start, read(3, 4, start, 9), 9, true);
        let gap = Raw::Gap {
            missed: None,
            before: EventId::new(EPOCH, 2),
        };
        assert_eq!(
            followed.raws,
            [gap, Raw::Event(kept(3)), Raw::Event(kept(4))]
        );
        let nothing_kept = follow(start, read(9, 4, start, 9), 9, true);
        let gap = Raw::Gap {
            missed: None,
            before: EventId::new(EPOCH, 4),
        };
        assert_eq!(nothing_kept.raws, [gap]);
    }

    #[test]
    fn a_log_that_was_lost_is_one_gap() {
        let empty = || Page {
            head: None,
            events: vec![],
        };
        assert!(!knows(None, Some(EventId::new(EPOCH, 1))));
        let lost = follow(None, empty(), 9, true);
        assert_eq!((lost.raws.len(), lost.position), (1, None));
        assert_eq!(follow(None, empty(), 9, false).raws, []);
    }

    #[test]
    fn notices_are_taken_in_order_only() {
        let at = |seq| EventId::new(EPOCH, seq);
        assert_eq!(arrival(Some(at(4)), at(5)), Arrival::Next);
        assert_eq!(arrival(Some(at(4)), at(4)), Arrival::Old);
        assert_eq!(arrival(Some(at(4)), at(6)), Arrival::Hole);
        assert_eq!(
            arrival(Some(at(4)), EventId::new(EPOCH + 1, 5)),
            Arrival::Hole
        );
        // What was told before the last one, and what took its number later.
        let at_ms = |seq, ms| at(seq).at(Timestamp::from_millis(ms));
        let last = Some(at_ms(4, 10));
        for (told, expected) in [
            (at_ms(3, 9), Arrival::Old),
            (at_ms(4, 10), Arrival::Old),
            (at_ms(3, 11), Arrival::Hole),
            (at_ms(4, 11), Arrival::Hole),
            (at_ms(5, 11), Arrival::Next),
        ] {
            assert_eq!(arrival(last, told), expected, "{told}");
        }
        assert_eq!(arrival(None, at(1)), Arrival::Next);
        assert_eq!(arrival(None, at(2)), Arrival::Hole);
    }
}
