//! The transaction timeout: one task for all open transactions of a handle, instead of one for each.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::shared::Shared;

/// A timeout of more than a year is none; and it must not overflow.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// When a transaction must have ended; no two are equal.
pub(super) type Due = (Instant, u64);

/// Who must have ended by when.
#[derive(Clone, Default)]
pub(super) struct Deadlines {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    open: BTreeMap<Due, Waiting>,
    next: u64,
    /// A task is waiting for the first of them.
    watched: bool,
}

/// A transaction that may end in time by itself.
struct Waiting {
    shared: Weak<Shared>,
    /// Where it lives; taken by who watches on there.
    runtime: Option<Handle>,
}

impl Deadlines {
    /// Ends the transaction by [`Shared::overdue`] if the entry is still there after `longest`.
    pub(super) fn enter(&self, shared: &Arc<Shared>, longest: Duration) -> Entry {
        let runtime = Handle::current();
        let waiting = Waiting {
            shared: Arc::downgrade(shared),
            runtime: Some(runtime.clone()),
        };
        let (key, is_first) = {
            let mut inner = self.inner.lock();
            let key = (Instant::now() + longest.min(LONGEST), inner.next);
            inner.next += 1;
            inner.open.insert(key, waiting);
            (key, !std::mem::replace(&mut inner.watched, true))
        };
        if is_first {
            // Without the lock: a runtime that is ending drops the task right here.
            runtime.spawn(watch(Watching(Some(self.clone()))));
        }
        Entry {
            key,
            deadlines: self.clone(),
        }
    }
}

/// Removed from the list when the transaction ends.
pub(super) struct Entry {
    key: Due,
    deadlines: Deadlines,
}

impl Entry {
    pub(super) const fn due(&self) -> Due {
        self.key
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.deadlines.inner.lock().open.remove(&self.key);
    }
}

/// The task's claim to be the only one; dropped with its runtime, it goes to another that has transactions open.
struct Watching(Option<Deadlines>);

impl Watching {
    /// Takes the first entry if it is due, else says when to look again; `None` when the list is empty, and
    /// the claim is given up.
    fn next(&mut self) -> Option<Next> {
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
            let (due, waiting) = entry.remove_entry();
            Next::Now(due, waiting)
        } else {
            Next::At(at)
        })
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let Some(deadlines) = self.0.take() else {
            return;
        };
        let heir = {
            let mut inner = deadlines.inner.lock();
            let mut open = inner.open.values_mut();
            let heir = open.find_map(|waiting| waiting.runtime.take());
            inner.watched = heir.is_some();
            heir
        };
        // If that one is gone, too, the task is dropped right here, and the next is asked.
        if let Some(runtime) = heir {
            runtime.spawn(watch(Watching(Some(deadlines))));
        }
    }
}

enum Next {
    Now(Due, Waiting),
    At(Instant),
}

/// Sleeps from deadline to deadline, and ends when it wakes to an empty list.
async fn watch(mut watching: Watching) {
    while let Some(next) = watching.next() {
        match next {
            Next::At(at) => tokio::time::sleep_until(at).await,
            Next::Now(due, waiting) => {
                let Some(shared) = waiting.shared.upgrade() else {
                    continue;
                };
                // A task of its own: it waits for the statement that runs.
                let runtime = waiting.runtime.unwrap_or_else(Handle::current);
                runtime.spawn(async move { shared.overdue(due).await });
            }
        }
    }
}
