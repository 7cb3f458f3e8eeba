//! The transaction timeout: one task for all open transactions of a handle, instead of one for each.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::shared::Shared;

/// A timeout of more than a year is none; and it must not overflow.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// Who must have ended by when.
#[derive(Clone, Default)]
pub(super) struct Deadlines {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    open: BTreeMap<(Instant, u64), Weak<Shared>>,
    next: u64,
    /// A task is waiting for the first of them.
    watched: bool,
}

impl Deadlines {
    /// Ends the transaction by [`Shared::overdue`] if the entry is still there after `longest`.
    pub(super) fn enter(&self, shared: &Arc<Shared>, longest: Duration) -> Entry {
        let mut inner = self.inner.lock();
        let key = (Instant::now() + longest.min(LONGEST), inner.next);
        inner.next += 1;
        inner.open.insert(key, Arc::downgrade(shared));
        if !std::mem::replace(&mut inner.watched, true) {
            tokio::spawn(watch(Watching(Some(self.clone()))));
        }
        Entry {
            key,
            deadlines: self.clone(),
        }
    }
}

/// Removed from the list when the transaction ends.
pub(super) struct Entry {
    key: (Instant, u64),
    deadlines: Deadlines,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.deadlines.inner.lock().open.remove(&self.key);
    }
}

/// The task's claim to be the only one; given up also when its runtime drops it.
struct Watching(Option<Deadlines>);

impl Watching {
    /// Takes the first entry if it is due, else says when to look again; `None` when the list is empty, and
    /// the claim is given up.
    fn next(&mut self) -> Option<Due> {
        let deadlines = self.0.as_ref()?;
        let mut inner = deadlines.inner.lock();
        let Some(entry) = inner.open.first_entry() else {
            // Under the lock: who enters next sees that nobody watches.
            inner.watched = false;
            drop(inner);
            self.0 = None;
            return None;
        };
        let at = entry.key().0;
        Some(if at <= Instant::now() {
            Due::Now(entry.remove())
        } else {
            Due::At(at)
        })
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        if let Some(deadlines) = &self.0 {
            deadlines.inner.lock().watched = false;
        }
    }
}

enum Due {
    Now(Weak<Shared>),
    At(Instant),
}

/// Sleeps from deadline to deadline, and ends when it wakes to an empty list.
async fn watch(mut watching: Watching) {
    while let Some(due) = watching.next() {
        match due {
            Due::At(at) => tokio::time::sleep_until(at).await,
            Due::Now(shared) => {
                let Some(shared) = shared.upgrade() else {
                    continue;
                };
                // A task of its own: it waits for the statement that runs.
                tokio::spawn(async move { shared.overdue().await });
            }
        }
    }
}
