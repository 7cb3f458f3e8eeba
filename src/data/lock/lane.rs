//! Who waits for a key in this process: first come, first served, and one at a time asks the store.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

use crate::core::Key;

/// The lanes of a service: one per key that somebody waits for.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    open: Mutex<HashMap<Key, Arc<Lane>>>,
}

#[derive(Debug)]
struct Lane {
    turn: Semaphore,
    /// When the holder's lease ends, as the waiter in front last heard.
    busy_until: Mutex<Option<Instant>>,
}

/// A place in a lane; leaving the last one closes it.
pub(super) struct Place {
    lanes: Arc<Lanes>,
    key: Key,
    lane: Arc<Lane>,
}

impl Lanes {
    pub(super) fn enter(self: &Arc<Self>, key: &Key) -> Place {
        let lane = Arc::clone(self.open.lock().entry(key.clone()).or_insert_with(|| {
            Arc::new(Lane {
                turn: Semaphore::new(1),
                busy_until: Mutex::new(None),
            })
        }));
        Place {
            lanes: Arc::clone(self),
            key: key.clone(),
            lane,
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.open.lock().len()
    }
}

impl Place {
    /// Waits to be the first. The turn ends when the permit is dropped.
    pub(super) async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        // It is never closed.
        self.lane.turn.acquire().await.ok()
    }

    pub(super) fn heard(&self, busy_until: Instant) {
        *self.lane.busy_until.lock() = Some(busy_until);
    }

    pub(super) fn busy_until(&self) -> Option<Instant> {
        *self.lane.busy_until.lock()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.lanes.open.lock();
        // The map's own, and ours: whoever enters does so under this lock.
        if Arc::strong_count(&self.lane) == 2 {
            open.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::IntoKey;

    #[tokio::test]
    async fn a_lane_is_served_in_order_and_closed_by_the_last() {
        let lanes = Arc::new(Lanes::default());
        let key = "k".into_key();
        let (first, second) = (lanes.enter(&key), lanes.enter(&key));
        let turn = first.turn().await;
        assert!(turn.is_some() && lanes.len() == 1);
        drop(turn);
        drop(first);
        assert!(second.turn().await.is_some());
        drop(second);
        assert_eq!(lanes.len(), 0);
    }
}
