//! What a store tells at once to whoever listens on a channel. Notices only save time: any of them may be lost.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

/// What a listener on a channel is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Somebody published this.
    Payload(Bytes),
    /// From now on payloads may be missed: a copy that depends on them is not to be believed.
    Lost,
    /// Payloads arrive (again): what was published before may have been missed, what comes later is told.
    ///
    /// Every subscription is told this first, on memory perhaps beside the first payload.
    Restored,
}

/// Called for each notice; must neither block nor publish.
///
/// On Redis one call follows the other, in the order of publishing; on memory each publisher calls, so two calls
/// may overlap.
///
/// A callback that holds the store it listens on keeps it alive until the [`Subscription`] is dropped.
pub type NoticeCallback = Arc<dyn Fn(Notice) + Send + Sync>;

/// A place among the listeners of a channel. Dropping it ends the calls, but for one that is running.
#[must_use]
pub struct Subscription {
    end: Option<Box<dyn FnOnce() + Send + Sync>>,
}

impl Subscription {
    /// Makes one that runs `end` when it is dropped.
    pub fn new(end: impl FnOnce() + Send + Sync + 'static) -> Self {
        Self {
            end: Some(Box::new(end)),
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if let Some(end) = self.end.take() {
            end();
        }
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription").finish_non_exhaustive()
    }
}
