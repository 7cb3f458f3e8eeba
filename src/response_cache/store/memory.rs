//! Stored responses inside this process.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::backend::memory::{self, Full, MemoryStore, Part, PartSetup, Slot};
use crate::core::{Clock, StoreFuture, Subscription};
use crate::response_cache::entry::Entry;
use crate::response_cache::key::token;
use crate::response_cache::stamps::{Change, ChangeKind, Changes, Stamp, is_superseded};
use crate::response_cache::target::Target;
use crate::response_cache::vary::Names;

use super::leases::Leases;
use super::local::{LINGER, OVERHEAD, Row};
use super::{
    EntryKey, Found, FoundEntry, Hash128, Lease, Lookup, MOST_STAMPS, Place, ResponseStore,
    STAMPS_LEAVING, StoreNoticeCallback, Stored, Ticket, Want,
};

impl ResponseStore for MemoryStore {
    fn lookup(&self, lookup: Lookup) -> StoreFuture<Found> {
        let now = self.now_micros();
        let stamps = self.part::<MemoryStamps>();
        let rows = self.table::<Row>();
        let found = rows.read_one(row_key(lookup.key.primary), now, |row| {
            // Read under the lock: whoever invalidates before this moment is seen.
            let (highest, floor) = stamps.head();
            let mut found = Found {
                now,
                highest,
                floor,
                names: Names::default(),
                entry: FoundEntry::None,
                lease: None,
                mark: None,
            };
            if look(row, &lookup, &mut found) {
                found.lease = lease(self.part(), &lookup, &found);
            }
            if found.names.is_empty() {
                found.names = lookup.names;
            }
            found
        });
        StoreFuture::ok(found)
    }

    fn store(&self, key: EntryKey, ticket: Ticket, entry: Arc<Entry>) -> StoreFuture<Stored> {
        let now = self.now_micros();
        let until = entry.head().expires_at.saturating_add(LINGER);
        let leases = self.part::<Leases>();
        let first = Row::of(key.selector, entry, now);
        let rows = self.table::<Row>();
        let row = row_key(key.primary);
        let Err(mut first) = rows.set_absent(row, now, (first, until), || {
            leases.drop(key.primary, ticket);
        }) else {
            return StoreFuture::ok(Stored::Yes);
        };
        // It was the one variant of the row that did not come to be.
        let Some((_, entry)) = first.variants.pop() else {
            return StoreFuture::ok(Stored::TooLarge);
        };
        let stored = rows.update_one(row, now, |slot| {
            leases.drop(key.primary, ticket);
            let more = entry.weight() + OVERHEAD;
            if slot.get().is_some() && slot.reserve(more).is_err() {
                // What was there is not what the inner service says any more.
                if let Some(row) = slot.get_mut() {
                    row.variants.retain(|(own, _)| *own != key.selector);
                }
                return Stored::TooLarge;
            }
            let Some(row) = slot.get_mut() else {
                return stored(slot.set(Row::of(key.selector, entry, now), until));
            };
            row.touch(now);
            let names = row.names.union(&entry.head().names);
            let there = row.variant(key.selector);
            if there.is_some_and(|there| is_superseded(there.head(), ticket.at, now)) {
                return Stored::Superseded;
            }
            if names != entry.head().names {
                // Somebody learned of more names meanwhile: under fewer this entry would never be found. Nor would those
                // that are there, if it has names that they have not.
                if row.names != names {
                    row.names = names;
                    row.variants.clear();
                }
                return Stored::Superseded;
            }
            row.unmark(key.selector);
            row.put(key.selector, entry);
            let until = row.expires_at();
            slot.set_expiry(until);
            Stored::Yes
        });
        StoreFuture::ok(stored)
    }

    fn freshen(&self, key: EntryKey, ticket: Ticket, entry: Arc<Entry>) -> StoreFuture<Stored> {
        let now = self.now_micros();
        let stored = with_row(self, key.primary, now, |slot| {
            self.part::<Leases>().drop(key.primary, ticket);
            // A longer head is no more than what entries may weigh beside their bodies.
            if slot.get().is_some() && slot.reserve(entry.weight() - entry.body_bytes()).is_err() {
                return Stored::TooLarge;
            }
            let Some(row) = slot.get_mut() else {
                return Stored::Superseded;
            };
            let there = row.variant(key.selector).map(|there| there.head());
            let same = there.is_some_and(|there| {
                there.body_id == entry.head().body_id
                    && there.expires_at > now
                    && !is_superseded(there, ticket.at, now)
            });
            if !same {
                return Stored::Superseded;
            }
            row.put(key.selector, entry);
            let until = row.expires_at();
            slot.set_expiry(until);
            Stored::Yes
        });
        StoreFuture::ok(stored)
    }

    fn release(&self, key: EntryKey, ticket: Ticket, mark: Option<Duration>) -> StoreFuture<()> {
        let now = self.now_micros();
        with_row(self, key.primary, now, |slot| {
            self.part::<Leases>().drop(key.primary, ticket);
            let Some(mark) = mark else {
                return;
            };
            let mark_until = now.saturating_add(micros(mark));
            if let Some(row) = slot.get_mut() {
                row.mark(key.selector, mark_until);
                let until = row.expires_at();
                slot.set_expiry(until);
            } else {
                let mut row = Row::default();
                row.mark(key.selector, mark_until);
                row.touch(now);
                // A mark that finds no room costs a fetch that waiters share in vain.
                let _ = slot.set(row, mark_until.saturating_add(LINGER));
            }
        });
        StoreFuture::ok(())
    }

    fn invalidate(&self, changes: &[Change]) -> StoreFuture<Stamp> {
        let now = self.now_micros();
        StoreFuture::ok(self.part::<MemoryStamps>().raise(changes, now))
    }

    fn changes(&self, since: Stamp) -> StoreFuture<Changes> {
        StoreFuture::ok(self.part::<MemoryStamps>().since(since))
    }

    /// Every look-up here is exact already: there is nothing to be told.
    fn subscribe(&self, _: StoreNoticeCallback) -> StoreFuture<Subscription> {
        StoreFuture::ok(Subscription::new(|| {}))
    }

    fn place(&self) -> Place {
        Place::Process
    }

    fn clock(&self) -> Arc<dyn Clock> {
        Self::clock(self)
    }
}

/// A primary hash is seeded already, and all other stores' are never used here.
const fn row_key(primary: Hash128) -> memory::EntryKey {
    memory::EntryKey::from_hash(primary.0)
}

fn with_row<R>(
    store: &MemoryStore,
    primary: Hash128,
    now: u64,
    change: impl FnOnce(&mut Slot<'_, Row>) -> R,
) -> R {
    let rows = store.table::<Row>();
    rows.update_one(row_key(primary), now, change)
}

const fn stored(set: Result<(), Full>) -> Stored {
    match set {
        Ok(()) => Stored::Yes,
        Err(Full) => Stored::TooLarge,
    }
}

/// Fills in what the row says; returns whether the lease is wanted and due.
fn look(row: Option<&Row>, lookup: &Lookup, found: &mut Found) -> bool {
    let Some(row) = row else {
        return lookup.want != Want::Entry;
    };
    let now = found.now;
    row.touch(now);
    if row.names != lookup.names && !row.names.is_empty() {
        found.names = row.names.clone();
        return false;
    }
    let left = row.marked_until(lookup.key.selector).saturating_sub(now);
    found.mark = (left > 0).then(|| Duration::from_micros(left));
    let mut due = true;
    if let Some(entry) = row.variant(lookup.key.selector) {
        let head = entry.head();
        let oldest = lookup.not_before.max(found.floor);
        if head.expires_at > now && head.begun >= oldest && head.names == lookup.names {
            found.entry = match lookup.have {
                Some(have) if have == head.id => FoundEntry::Same,
                _ => FoundEntry::Entry(Arc::clone(entry)),
            };
            due = now >= head.due_at();
        }
    }
    let wanted = match lookup.want {
        Want::Entry => false,
        Want::EntryOrLease(_) => due,
        Want::Lease(_) => true,
    };
    wanted && found.mark.is_none()
}

/// Grants the lease, or says how long it is held.
fn lease(leases: &Leases, lookup: &Lookup, found: &Found) -> Option<Lease> {
    let (Want::EntryOrLease(length) | Want::Lease(length)) = lookup.want else {
        return None;
    };
    let ticket = Ticket {
        token: token(),
        selector: lookup.key.selector,
        begun: found.highest,
        at: found.now,
    };
    let until = found.now.saturating_add(micros(length));
    Some(match leases.take(lookup.key.primary, ticket, until) {
        Some(held) => Lease::Held(Duration::from_micros(held - found.now)),
        None => Lease::Granted(ticket),
    })
}

fn micros(length: Duration) -> u64 {
    u64::try_from(length.as_micros()).unwrap_or(u64::MAX)
}

/// The stamps of a memory store.
#[derive(Default)]
struct MemoryStamps {
    highest: AtomicU64,
    floor: AtomicU64,
    table: Mutex<StampTable>,
}

#[derive(Default)]
struct StampTable {
    of: HashMap<Change, u64>,
    /// In order; one invalidation gives many targets one stamp.
    order: BTreeSet<(u64, Change)>,
}

impl Part for MemoryStamps {
    fn build(_: &PartSetup) -> Self {
        Self::default()
    }
}

impl MemoryStamps {
    fn head(&self) -> (Stamp, Stamp) {
        let highest = self.highest.load(Ordering::Acquire);
        (Stamp(highest), Stamp(self.floor.load(Ordering::Acquire)))
    }

    fn raise(&self, changes: &[Change], now: u64) -> Stamp {
        let mut table = self.table.lock();
        let stamp = now.max(self.highest.load(Ordering::Acquire) + 1);
        for change in changes {
            if let Some(before) = table.of.insert(*change, stamp) {
                table.order.remove(&(before, *change));
            }
            table.order.insert((stamp, *change));
        }
        if table.of.len() > MOST_STAMPS {
            for _ in 0..STAMPS_LEAVING.max(table.of.len() - MOST_STAMPS) {
                let Some((oldest, change)) = table.order.pop_first() else {
                    break;
                };
                table.of.remove(&change);
                self.floor.fetch_max(oldest, Ordering::AcqRel);
            }
        }
        // Last: whoever sees the new highest finds all of it in the table.
        self.highest.store(stamp, Ordering::Release);
        Stamp(stamp)
    }

    fn since(&self, since: Stamp) -> Changes {
        let table = self.table.lock();
        let (highest, floor) = self.head();
        let from = if since < floor { 0 } else { since.0 + 1 };
        let first = Change {
            target: Target::from_bits(0),
            kind: ChangeKind::Gone,
        };
        let all = table.order.range((from, first)..);
        Changes {
            highest,
            floor,
            changes: if from > highest.0 {
                Vec::new()
            } else {
                all.map(|(stamp, change)| (*change, Stamp(*stamp)))
                    .collect()
            },
        }
    }
}
