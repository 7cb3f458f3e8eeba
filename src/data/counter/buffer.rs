//! What `add` keeps back for a moment: sums by key, sent in calls with an id, so that a lost reply counts once.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;

use super::handle::AT_ONCE;
use super::store::{Change, CounterStore};
use crate::core::telemetry::{count, gauge, warn};
use crate::core::ttl::Ttl;
use crate::core::{IntoKey, Key, Segments, StoreError, StoreErrorKind, base64url};
use crate::data::{DataError, DataErrorKind};

/// The most keys that wait, those of calls under way included.
const MOST_KEYS: usize = 10_000;

pub(super) struct Buffer {
    shared: Arc<Shared>,
}

struct Shared {
    store: Arc<dyn CounterStore>,
    name: Arc<str>,
    every: Duration,
    waiting: Mutex<Waiting>,
    /// One flush at a time: calls go out in order.
    flushing: tokio::sync::Mutex<()>,
    is_running: AtomicBool,
    /// Holds what a dropped handle left behind: it is not kept a third time.
    is_last: bool,
}

#[derive(Default)]
struct Waiting {
    sums: HashMap<Key, (i64, Ttl)>,
    /// Calls whose answer is not known to be good, each to be repeated under its id.
    calls: Vec<(Key, Vec<Change>)>,
    /// The keys of these calls.
    called: usize,
}

impl Waiting {
    fn keys(&self) -> usize {
        self.sums.len() + self.called
    }
}

impl Buffer {
    pub(super) fn new(store: Arc<dyn CounterStore>, name: Arc<str>, every: Duration) -> Self {
        Self {
            shared: Arc::new(Shared {
                store,
                name,
                every,
                waiting: Mutex::default(),
                flushing: tokio::sync::Mutex::default(),
                is_running: AtomicBool::new(false),
                is_last: false,
            }),
        }
    }

    /// A key that waits already is found by its text: nothing is made for it.
    pub(super) fn add(&self, key: &Segments, by: i64, ttl: Ttl) -> Result<(), DataError> {
        let full = || DataError::of(DataErrorKind::Full { retry_after: 1 });
        {
            let mut waiting = self.shared.waiting.lock();
            let has_room = waiting.keys() < MOST_KEYS;
            match waiting.sums.get_mut(key.as_str()) {
                Some((sum, _)) => *sum = sum.checked_add(by).ok_or_else(full)?,
                None if has_room => drop(waiting.sums.insert(key.to_key(), (by, ttl))),
                None => return Err(full()),
            }
        }
        self.shared.run();
        Ok(())
    }

    pub(super) async fn flush(&self) -> Result<(), StoreError> {
        self.shared.flush().await
    }
}

impl Shared {
    /// Starts the task that flushes, where there is a runtime; it ends with the last handle, after a last flush.
    fn run(self: &Arc<Self>) {
        if self.is_running.load(Ordering::Acquire) || self.is_running.swap(true, Ordering::AcqRel) {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            self.is_running.store(false, Ordering::Release);
            return;
        };
        let ticking = Ticking {
            shared: Arc::downgrade(self),
            is_over: false,
        };
        runtime.spawn(tick(ticking, self.every));
    }

    async fn flush(&self) -> Result<(), StoreError> {
        let _one_at_a_time = self.flushing.lock().await;
        self.pack()?;
        let (mut at, mut failed) = (0, Ok(()));
        loop {
            let Some((id, changes)) = self.waiting.lock().calls.get(at).cloned() else {
                return failed;
            };
            match self.store.incr(&self.name, changes, Some(id)).await {
                Ok(_) => {
                    let mut waiting = self.waiting.lock();
                    let (_, sent) = waiting.calls.remove(at);
                    waiting.called -= sent.len();
                    drop(waiting);
                    count!("keep_counter_ops_total", sent.len() as u64, "counter" => self.name.to_string());
                }
                // Whatever it was, the call stays and keeps its id.
                Err(error) if error.is_unknown() => return Err(error),
                // This one was refused: the others need not wait for it.
                Err(error) => (at, failed) = (at + 1, Err(error)),
            }
        }
    }

    /// Makes calls of the sums, each with an id of its own.
    fn pack(&self) -> Result<(), StoreError> {
        // Drawn before anything is taken out: what is packed is in one call, never in two.
        let mut id = [0; 16];
        getrandom::fill(&mut id)
            .map_err(|error| StoreError::with_source(StoreErrorKind::Failed, error.to_string()))?;
        let mut waiting = self.waiting.lock();
        let sums: Vec<(Key, (i64, Ttl))> = waiting.sums.drain().collect();
        gauge!("keep_counter_buffered", sums.len() as f64, "counter" => self.name.to_string());
        let change = |(key, (by, ttl)): &(Key, (i64, Ttl))| Change {
            key: key.clone(),
            by: *by,
            ttl: *ttl,
            sliding: false,
            within: i64::MIN..=i64::MAX,
            event: None,
        };
        for (number, part) in sums.chunks(AT_ONCE).enumerate() {
            let call = (
                (base64url(&id), number).into_key(),
                part.iter().map(change).collect::<Vec<_>>(),
            );
            waiting.called += call.1.len();
            waiting.calls.push(call);
        }
        Ok(())
    }
}

/// A task that flushes. Where its runtime ends under it, the next `add` starts another on its own.
struct Ticking {
    shared: Weak<Shared>,
    is_over: bool,
}

impl Drop for Ticking {
    fn drop(&mut self) {
        if !self.is_over
            && let Some(shared) = self.shared.upgrade()
        {
            shared.is_running.store(false, Ordering::Release);
        }
    }
}

async fn tick(mut ticking: Ticking, every: Duration) {
    loop {
        tokio::time::sleep(every).await;
        let Some(shared) = ticking.shared.upgrade() else {
            return;
        };
        if let Err(error) = shared.flush().await {
            let _ = &error;
            warn!(counter = &*shared.name, %error, "counts are kept back");
        }
        // Idle: the next `add` starts a task again.
        shared.is_running.store(false, Ordering::Release);
        let is_idle = shared.waiting.lock().keys() == 0;
        if is_idle || shared.is_running.swap(true, Ordering::AcqRel) {
            ticking.is_over = true;
            return;
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let waiting = std::mem::take(self.waiting.get_mut());
        let keys = waiting.keys();
        if keys == 0 {
            return;
        }
        if self.is_last {
            // The runtime has ended under it: to spawn once more would drop it here again, without end.
            count!("keep_counter_flush_lost_total", keys as u64, "counter" => self.name.to_string());
            return;
        }
        // The last handle is gone: what waits goes out once more, best effort.
        let rest = Self {
            store: Arc::clone(&self.store),
            name: Arc::clone(&self.name),
            every: self.every,
            waiting: Mutex::new(waiting),
            flushing: tokio::sync::Mutex::default(),
            is_running: AtomicBool::new(true),
            is_last: true,
        };
        let last = async move {
            let sent = rest.flush().await;
            let lost = std::mem::take(&mut *rest.waiting.lock()).keys();
            if sent.is_err() {
                count!("keep_counter_flush_lost_total", lost as u64, "counter" => rest.name.to_string());
            }
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(last)),
            Err(_) => {
                count!("keep_counter_flush_lost_total", keys as u64, "counter" => self.name.to_string());
            }
        }
    }
}
