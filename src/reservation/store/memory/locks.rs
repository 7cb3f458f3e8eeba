//! Locks by name: lanes, payments, holds; taken in order within a call.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;

use crate::core::{StoreError, StoreErrorKind};
use crate::reservation::hold::HoldId;
use crate::reservation::slot::Slot;

/// How long a lock is waited for.
const LONGEST: Duration = Duration::from_secs(3);

/// What can be locked, in the order in which one call takes them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Name {
    Payment(Box<str>),
    Lane(Box<str>, Box<str>),
    Hold(HoldId),
}

impl Name {
    pub(super) fn of_lanes(slots: &[Slot]) -> Vec<Self> {
        let lane = |slot: &Slot| Self::Lane(slot.resource.clone(), slot.unit.clone());
        let mut lanes: Vec<Self> = slots.iter().map(lane).collect();
        lanes.sort_unstable();
        lanes.dedup();
        lanes
    }
}

/// The locks that somebody has or waits for.
#[derive(Default)]
pub(super) struct Locks {
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    locks: HashMap<Name, Weak<tokio::sync::Mutex<()>>>,
    /// When the map has grown to this, those that nobody has are forgotten.
    sweep_at: usize,
}

impl Locks {
    fn find(&self, name: &Name) -> Arc<tokio::sync::Mutex<()>> {
        let mut known = self.known.lock();
        if let Some(lock) = known.locks.get(name).and_then(Weak::upgrade) {
            return lock;
        }
        if known.locks.len() >= known.sweep_at {
            known.locks.retain(|_, lock| lock.strong_count() > 0);
            known.sweep_at = (known.locks.len() * 2).max(64);
        }
        let lock = Arc::new(tokio::sync::Mutex::new(()));
        known.locks.insert(name.clone(), Arc::downgrade(&lock));
        lock
    }
}

/// The locks of one transaction; they go back on drop.
#[derive(Default)]
pub(super) struct Held {
    held: BTreeMap<Name, OwnedMutexGuard<()>>,
}

impl Held {
    /// Takes the locks that are not held yet, first come, first served, in the order given.
    pub(super) async fn take(&mut self, locks: &Locks, names: Vec<Name>) -> Result<(), StoreError> {
        for name in names {
            if self.held.contains_key(&name) {
                continue;
            }
            let waiting = locks.find(&name).lock_owned();
            match tokio::time::timeout(LONGEST, waiting).await {
                Ok(guard) => self.held.insert(name, guard),
                Err(_) => return Err(StoreErrorKind::Contention.into()),
            };
        }
        Ok(())
    }

    /// Takes a lock if nobody has it.
    pub(super) fn try_take(&mut self, locks: &Locks, name: Name) -> bool {
        if self.held.contains_key(&name) {
            return true;
        }
        match locks.find(&name).try_lock_owned() {
            Ok(guard) => {
                self.held.insert(name, guard);
                true
            }
            Err(_) => false,
        }
    }
}
