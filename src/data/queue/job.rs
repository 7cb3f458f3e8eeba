//! A job on its way into a queue.

use std::time::Duration;

use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::error::QueueError;
use super::store::{Again, DIGEST_BYTES, DigestWish, Due, NewJob, Priority};
use crate::core::{IntoKey, Key, Timestamp};
use crate::data::record;

/// One item for one recipient.
///
/// ```
/// use tower_keep::data::queue::{Digest, Job, Priority};
/// use tower_keep::MINUTE;
///
/// let urgent = Job::to("u1", "your booking moved").priority(Priority::High).once("moved:r17");
/// let collected = Job::to("u1", "a comment").digest("comments", Digest::window(10 * MINUTE).max(20));
/// # let _ = (urgent, collected);
/// ```
#[derive(Clone, Debug)]
#[must_use = "a job does nothing until it is enqueued"]
pub struct Job<T> {
    item: T,
    recipient: Key,
    priority: Priority,
    due: Due,
    once: Option<[u8; 32]>,
    again: Again,
    digest: Option<DigestWish>,
}

impl<T> Job<T> {
    /// Makes a job of normal priority, due at once.
    pub fn to(recipient: impl IntoKey, item: T) -> Self {
        Self {
            item,
            recipient: recipient.into_key(),
            priority: Priority::Normal,
            due: Due::After(Duration::ZERO),
            once: None,
            again: Again::Keep,
            digest: None,
        }
    }

    /// Sets the priority (normal).
    pub fn priority(mut self, priority: Priority) -> Self {
        self.priority = priority;
        self
    }

    /// Delivers not before `time`, by the store's clock; a time in the past is now.
    pub fn at(mut self, time: Timestamp) -> Self {
        self.due = Due::At(time);
        self
    }

    /// Delivers not before this much later.
    pub fn after(mut self, wait: Duration) -> Self {
        self.due = Due::After(wait);
        self
    }

    /// Adds the job once: while it lives, and for `remember_for` after it was enqueued, the same `id` is a duplicate. A
    /// dead letter does not live; revived it does, and has its `id` again unless that was given to another job meanwhile.
    /// Also makes it safe to enqueue again after an error. Kept as a hash.
    pub fn once(mut self, id: impl AsRef<str>) -> Self {
        let id = id.as_ref().as_bytes();
        let hash = Sha256::new_with_prefix(b"tower-keep queue once\0").chain_update(id);
        self.once = Some(hash.finalize().into());
        self
    }

    /// With [`Job::once`]: takes the place of the job with the same id, with item, priority and time, if that is the same
    /// recipient's, was never leased, and has one item; else it is a duplicate.
    pub fn replace(mut self) -> Self {
        self.again = Again::Replace;
        self
    }

    /// Joins the recipient's open digest of this key, or opens one. It is due one window after its first item.
    pub fn digest(mut self, key: impl IntoKey, digest: Digest) -> Self {
        self.digest = Some(DigestWish {
            key: key.into_key(),
            window: digest.window,
            max: digest.max,
        });
        self
    }
}

impl<T: Serialize> Job<T> {
    pub(super) fn encode(self) -> Result<NewJob, QueueError> {
        let item = record::encode(&self.item).map_err(QueueError::unencodable)?;
        if item.len() > LARGEST_ITEM {
            return Err(QueueError::too_large(LARGEST_ITEM));
        }
        Ok(NewJob {
            recipient: self.recipient,
            priority: self.priority,
            due: self.due,
            item,
            once: self.once,
            again: self.again,
            digest: self.digest,
        })
    }
}

/// The largest encoded item, in bytes.
const LARGEST_ITEM: usize = DIGEST_BYTES - 64;

/// How long and how much a digest collects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Digest {
    window: Duration,
    max: u32,
}

impl Digest {
    /// Collects for this long after the first item, up to 100 items (and 256 KiB).
    pub const fn window(window: Duration) -> Self {
        Self { window, max: 100 }
    }

    /// Is due at once when it has this many items (100), at least 1.
    pub const fn max(mut self, items: u32) -> Self {
        self.max = if items == 0 { 1 } else { items };
        self
    }
}
