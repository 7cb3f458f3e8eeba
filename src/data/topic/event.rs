//! Events and their ids.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;

use crate::core::Timestamp;

/// The place of an event in its log: `<epoch>-<seq>`. Within a log ids only grow.
///
/// Its text ends in the time of the event, `<epoch>-<seq>-<at>`, where that is known: a server that took over without the
/// last events gives their numbers once more, and whoever comes back with one of the first is told of a gap. Two that differ
/// in this alone are equal.
#[derive(Clone, Copy, Debug)]
pub struct EventId {
    epoch: u64,
    seq: u64,
    /// In UTC milliseconds; 0 is unknown.
    at: u64,
}

impl EventId {
    pub(crate) const fn new(epoch: u64, seq: u64) -> Self {
        let at = 0;
        Self { epoch, seq, at }
    }

    /// The same place, of an event that was published then.
    pub(crate) const fn at(self, at: Timestamp) -> Self {
        let at = at.as_millis();
        Self { at, ..self }
    }

    /// Says whether both stand for events that were published at different times, if at one place then not for the same one.
    pub(crate) const fn differs(self, other: Self) -> bool {
        self.at != 0 && other.at != 0 && self.at != other.at
    }

    pub(crate) const fn is_later(self, than: Self) -> bool {
        self.differs(than) && self.at > than.at
    }

    /// The place before it.
    pub(crate) const fn before(self) -> Self {
        Self::new(self.epoch, self.seq.saturating_sub(1))
    }

    /// Returns the time in UTC milliseconds at which the log began.
    #[must_use]
    pub const fn epoch(self) -> u64 {
        self.epoch
    }

    /// Returns the number within the log, from 1.
    #[must_use]
    pub const fn seq(self) -> u64 {
        self.seq
    }

    pub(crate) const fn next(self) -> Self {
        Self::new(self.epoch, self.seq.saturating_add(1))
    }
}

impl PartialEq for EventId {
    fn eq(&self, other: &Self) -> bool {
        (self.epoch, self.seq) == (other.epoch, other.seq)
    }
}

impl Eq for EventId {}

impl Ord for EventId {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.epoch, self.seq).cmp(&(other.epoch, other.seq))
    }
}

impl PartialOrd for EventId {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Hash for EventId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.epoch, self.seq).hash(state);
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.epoch, self.seq)?;
        match self.at {
            0 => Ok(()),
            at => write!(f, "-{at}"),
        }
    }
}

/// A text that is no event's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAnEventId;

impl fmt::Display for NotAnEventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("expected an event's id such as 1767225600000-7")
    }
}

impl std::error::Error for NotAnEventId {}

impl FromStr for EventId {
    type Err = NotAnEventId;

    fn from_str(text: &str) -> Result<Self, NotAnEventId> {
        // Numbers up to 2^53 only, as they are exact on every engine; what is longer was never ours.
        let number = |text: &str| match text.len() {
            1..=16 if text.bytes().all(|byte| byte.is_ascii_digit()) => text.parse().ok(),
            _ => None,
        };
        let (epoch, rest) = text.split_once('-').ok_or(NotAnEventId)?;
        let (seq, at) = rest.split_once('-').unwrap_or((rest, "0"));
        let mut numbers = [0; 3];
        for (number_of, text) in numbers.iter_mut().zip([epoch, seq, at]) {
            *number_of = number(text).ok_or(NotAnEventId)?;
        }
        let [epoch, seq, at] = numbers;
        Ok(Self { epoch, seq, at })
    }
}

/// What a feed gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event<T> {
    /// An event.
    Message {
        /// Its place.
        id: EventId,
        /// When it was published, by the store's clock.
        at: Timestamp,
        /// What was published.
        value: T,
    },
    /// Something is missing here: read the present state from where it is kept.
    Gap {
        /// How many events, where that is known.
        missed: Option<u64>,
    },
}

impl<T> Event<T> {
    /// Returns the value, if it is a message.
    pub fn into_value(self) -> Option<T> {
        match self {
            Self::Message { value, .. } => Some(value),
            Self::Gap { .. } => None,
        }
    }
}

/// The newest event of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Latest<T> {
    /// Its place.
    pub id: EventId,
    /// When it was published, by the store's clock.
    pub at: Timestamp,
    /// What was published.
    pub value: T,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_as_they_are_written_and_nothing_else_is() {
        let id = EventId::new(1_767_225_600_000, 7);
        assert_eq!(id.to_string().parse(), Ok(id));
        let timed = id.at(Timestamp::from_millis(9));
        assert_eq!(timed.to_string(), "1767225600000-7-9");
        let read: EventId = timed.to_string().parse().unwrap();
        assert_eq!(read, id);
        let other = id.at(Timestamp::from_millis(8));
        assert!(read.is_later(other) && !read.differs(timed) && !read.differs(id));
        for text in [
            "",
            "-",
            "1-",
            "-1",
            "1",
            "+1-2",
            "1-2-",
            "1-2-3-4",
            "1 -2",
            "18446744073709551615-1",
        ] {
            assert_eq!(text.parse::<EventId>(), Err(NotAnEventId), "{text}");
        }
    }
}
