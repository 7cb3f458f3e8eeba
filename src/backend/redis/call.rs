//! One call of a script: keys, arguments, a deadline, one command.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::command::Command;
use super::node::Words;
use super::reply::Reply;
use super::script::Script;
use super::slots::Slot;
use super::store::Inner;
use crate::core::telemetry::seconds;
use crate::core::{StoreError, StoreErrorKind, StoreFuture, monotonic};

/// A call under construction; made by [`RedisStore::script`](super::RedisStore::script).
#[must_use]
pub struct Call {
    inner: Arc<Inner>,
    script: &'static Script,
    command: Command,
    slot: Option<Slot>,
    timeout: Duration,
    /// What the caller did before counts as waiting, too.
    began: Option<Instant>,
}

impl Call {
    pub(super) fn new(
        inner: Arc<Inner>,
        script: &'static Script,
        keys: &[impl AsRef<[u8]>],
        clock: &str,
        timeout: Duration,
    ) -> Self {
        let size = keys.iter().map(|key| key.as_ref().len()).sum::<usize>() + 128;
        let mut command = Command::with_capacity("EVALSHA", size + 16 * keys.len())
            .arg(&script.loaded().sha)
            .num(keys.len() as i128);
        for key in keys {
            command = command.arg(key);
        }
        let command = command.arg(clock);
        let slot = keys
            .first()
            .and_then(|key| inner.link.slot_of(key.as_ref()));
        Self {
            inner,
            script,
            command,
            slot,
            timeout,
            began: None,
        }
    }

    /// Appends an argument.
    pub fn arg(mut self, argument: impl AsRef<[u8]>) -> Self {
        self.command = self.command.arg(argument);
        self
    }

    /// Appends a whole number.
    pub fn num(mut self, number: impl Into<i128>) -> Self {
        self.command = self.command.num(number.into());
        self
    }

    /// Goes to the node that has this slot, whatever the keys; on a single server that is the one.
    pub fn to_slot(mut self, slot: u16) -> Self {
        self.slot = self.inner.link.is_cluster().then_some(slot);
        self
    }

    /// Waits no longer than `timeout` (the handle's otherwise).
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Counts the wait from `began`: a question that led to this call has used up a part of its time. Where nothing is
    /// left nothing is sent.
    pub fn since(mut self, began: Instant) -> Self {
        self.began = Some(began);
        self
    }

    /// Sends the call and decodes the answer.
    ///
    /// Dropping the future leaves unknown whether the step was done; the handle stays usable.
    pub fn run<T: Send + 'static>(
        self,
        decode: impl FnOnce(Reply) -> Result<T, StoreError> + Send + 'static,
    ) -> StoreFuture<T> {
        StoreFuture::boxed(async move { decode(self.ask().await?) })
    }

    /// Sends the call; it can be sent again.
    pub async fn ask(&self) -> Result<Reply, StoreError> {
        let script = self.script;
        // The same call as EVAL, which also teaches the server the script: one more command, no third.
        let with_source = || self.command.beginning("EVAL", &script.loaded().source);
        let spent = self.began.map_or(Duration::ZERO, |at| at.elapsed());
        let rest = self.timeout.saturating_sub(spent);
        if rest.is_zero() && self.began.is_some() {
            return Err(StoreError::new(StoreErrorKind::TimedOut));
        }
        let began = monotonic();
        let words = Words::Script {
            call: &self.command,
            with_source: &with_source,
        };
        let answer = self
            .inner
            .call_within(words, self.slot, self.timeout, rest)
            .await;
        seconds!("keep_store_op_seconds", began.elapsed().as_secs_f64(), "op" => script.name);
        answer
    }
}
