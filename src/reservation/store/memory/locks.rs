//! Locks by name: lanes, payments, holds; taken in order within a call.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use smallvec::SmallVec;
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

/// What one call locks.
pub(super) type Names = SmallVec<[Name; 2]>;

impl Name {
    pub(super) fn of_lanes(slots: &[Slot]) -> Names {
        let lane = |slot: &Slot| Self::Lane(slot.resource.clone(), slot.unit.clone());
        let mut lanes: Names = slots.iter().map(lane).collect();
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
    /// Sorted.
    held: SmallVec<[(Name, OwnedMutexGuard<()>); 2]>,
}

impl Held {
    /// Takes the locks that are not held yet, first come, first served, in the order given.
    pub(super) async fn take(&mut self, locks: &Locks, names: Names) -> Result<(), StoreError> {
        for name in names {
            let Err(place) = self.place(&name) else {
                continue;
            };
            let waiting = locks.find(&name).lock_owned();
            match tokio::time::timeout(LONGEST, waiting).await {
                Ok(guard) => self.held.insert(place, (name, guard)),
                Err(_) => return Err(StoreErrorKind::Contention.into()),
            }
        }
        Ok(())
    }

    /// Takes a lock if nobody has it.
    pub(super) fn try_take(&mut self, locks: &Locks, name: Name) -> bool {
        let Err(place) = self.place(&name) else {
            return true;
        };
        match locks.find(&name).try_lock_owned() {
            Ok(guard) => {
                self.held.insert(place, (name, guard));
                true
            }
            Err(_) => false,
        }
    }

    /// Where a lock is, or where it would be.
    fn place(&self, name: &Name) -> Result<usize, usize> {
        self.held.binary_search_by(|(held, _)| held.cmp(name))
    }
}
