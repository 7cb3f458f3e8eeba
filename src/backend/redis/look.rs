//! Commands that only read, sent together: one round trip, and no script to start.

use std::sync::Arc;
use std::time::Duration;
use std::vec;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::command::Command;
use super::node::Words;
use super::reply::Reply;
use super::slots::Slot;
use super::store::Inner;
use crate::core::telemetry::seconds;
use crate::core::{StoreError, StoreErrorKind, monotonic};

/// Where a server does not run a command of a look (the user may not, or it is too old), scripts are asked for so long:
/// each read would else ask in vain first.
const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(10);

/// Whether the servers of a handle take looks.
#[derive(Debug, Default)]
pub(super) struct Looks {
    refused: Mutex<Option<Instant>>,
}

impl Looks {
    pub(super) fn were_refused(&self) {
        *self.refused.lock() = Some(monotonic());
    }

    fn are_taken(&self) -> bool {
        let refused = *self.refused.lock();
        refused.is_none_or(|at| monotonic().duration_since(at) >= LOOK_AGAIN_AFTER)
    }
}

/// A look under construction; made by [`RedisStore::look`](super::RedisStore::look).
///
/// Each command is a step of its own, done in order, and others may write between them. So a look serves where its
/// answers still tell what was true at one instant; where they do not, or tell of anything to be done, a script is
/// asked, which costs the server several times as much. A replica answers reads with what it has: a look that must
/// come from a primary has a `GETEX` instead of a `GET` among its commands, which replicas refuse.
#[must_use]
pub struct Look {
    inner: Arc<Inner>,
    name: &'static str,
    commands: Vec<Command>,
    slot: Option<Slot>,
    /// The passed clock in microseconds; without one the server's TIME is asked for first.
    now: Option<u64>,
    timeout: Duration,
}

impl Look {
    pub(super) fn new(inner: Arc<Inner>, name: &'static str, key: &[u8], now: Option<u64>) -> Self {
        let mut commands = Vec::with_capacity(4);
        if now.is_none() {
            commands.push(Command::new("TIME"));
        }
        let (slot, timeout) = (inner.link.slot_of(key), inner.timeout);
        Self {
            inner,
            name,
            commands,
            slot,
            now,
            timeout,
        }
    }

    /// Waits no longer than `timeout` (the handle's otherwise).
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Appends a command that writes nothing, on keys that share the first one's slot.
    pub fn command<'a>(mut self, parts: impl IntoIterator<Item = &'a str>) -> Self {
        self.commands.push(Command::of(parts));
        self
    }

    /// Sends the look: the time in microseconds, and the answers in order. `None` where a script must be
    /// asked: a cluster is moving the keys, and some may not have arrived; or the server takes no writes now; or it
    /// does not run one of the commands, and then no look is sent for 10 s.
    ///
    /// Counts as one command: it is one round trip. Give the script the moment before this one by
    /// [`Call::since`](super::Call::since), so that both together wait no longer than one call does.
    ///
    /// # Errors
    /// The first of its commands that failed, or the server cannot be reached. `Failed` without asking, if one has no
    /// words: the server would not answer it, and each answer after it would go to the wrong caller.
    pub async fn ask(self) -> Result<Option<(u64, vec::IntoIter<Reply>)>, StoreError> {
        if self.commands.iter().any(Command::is_empty) {
            let why = "a command of no words";
            return Err(StoreError::with_source(StoreErrorKind::Failed, why));
        }
        let looks = &self.inner.looks;
        if !looks.are_taken() {
            return Ok(None);
        }
        let began = monotonic();
        let words = Words::Look(&self.commands, looks);
        let answer = self.inner.call(words, self.slot, self.timeout).await;
        seconds!("keep_store_op_seconds", began.elapsed().as_secs_f64(), "op" => self.name);
        let mut answers = match answer? {
            Reply::Nil => return Ok(None),
            answers => answers.array()?.into_iter(),
        };
        let now = match self.now {
            Some(now) => now,
            None => micros(answers.next())?,
        };
        Ok(Some((now, answers)))
    }
}

/// What TIME answers: seconds and microseconds.
fn micros(time: Option<Reply>) -> Result<u64, StoreError> {
    let mut parts = time.unwrap_or(Reply::Nil).array()?.into_iter();
    let mut next = || parts.next().unwrap_or(Reply::Nil).int();
    let (seconds, micros) = (next()?, next()?);
    let now = seconds
        .checked_mul(1_000_000)
        .and_then(|whole| whole.checked_add(micros));
    now.and_then(|now| u64::try_from(now).ok()).ok_or_else(|| {
        StoreError::with_source(StoreErrorKind::Failed, "the server's time is no time")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_server_that_refused_a_look_is_looked_at_again_after_a_while() {
        let looks = Looks::default();
        assert!(looks.are_taken());
        looks.were_refused();
        tokio::time::advance(LOOK_AGAIN_AFTER - Duration::from_millis(1)).await;
        assert!(!looks.are_taken());
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(looks.are_taken());
    }
}
