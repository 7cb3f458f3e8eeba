//! Events and their ids.

use std::fmt;
use std::str::FromStr;

use crate::core::Timestamp;

/// The place of an event in its log: `<epoch>-<seq>`. Within a log ids only grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId {
    epoch: u64,
    seq: u64,
}

impl EventId {
    pub(crate) const fn new(epoch: u64, seq: u64) -> Self {
        Self { epoch, seq }
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

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.epoch, self.seq)
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
        let (epoch, seq) = text.split_once('-').ok_or(NotAnEventId)?;
        let epoch = number(epoch).ok_or(NotAnEventId)?;
        let seq = number(seq).ok_or(NotAnEventId)?;
        Ok(Self::new(epoch, seq))
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
        for text in [
            "",
            "-",
            "1-",
            "-1",
            "1",
            "+1-2",
            "1-2-3",
            "1 -2",
            "18446744073709551615-1",
        ] {
            assert_eq!(text.parse::<EventId>(), Err(NotAnEventId), "{text}");
        }
    }
}
