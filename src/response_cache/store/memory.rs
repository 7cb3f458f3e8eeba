//! Stored responses inside this process.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::backend::memory::{MemoryStore, Part, PartSetup, Slot};
use crate::core::{Clock, StoreFuture};
use crate::response_cache::entry::{Entry, Head};
use crate::response_cache::key::random;
use crate::response_cache::stamps::{Change, ChangeKind, Changes, Stamp, is_superseded};
use crate::response_cache::target::Target;

use super::local::{LINGER, LeaseRow, Row};
use super::{
    EntryKey, Found, FoundEntry, Hash128, Lease, Lookup, MOST_STAMPS, Place, ResponseStore,
    STAMPS_LEAVING, Stored, Ticket, Want,
};

impl ResponseStore for MemoryStore {
    fn lookup(&self, lookup: Lookup) -> StoreFuture<Found> {
        let now = self.now_micros();
        let stamps = self.part::<MemoryStamps>();
        let found = with_row(self, lookup.key.primary, now, |slot| {
            // Read under the lock: whoever invalidates before this moment is seen.
            let (highest, floor) = stamps.head();
            let found = Found {
                now,
                highest,
                floor,
                names: lookup.names.clone(),
                entry: FoundEntry::None,
                lease: None,
                mark: None,
            };
            look(slot, &lookup, found)
        });
        StoreFuture::ok(found)
    }

    fn store(&self, key: EntryKey, ticket: Ticket, entry: Arc<Entry>) -> StoreFuture<Stored> {
        let now = self.now_micros();
        let stored = with_row(self, key.primary, now, |slot| {
            let mut row = slot.remove().unwrap_or_default();
            drop_lease(&mut row, ticket);
            let names = row.names.union(&entry.head().names);
            let there = row.variant(key.selector);
            let stored = if there.is_some_and(|there| is_superseded(there.head(), ticket.at, now)) {
                Stored::Superseded
            } else if names != entry.head().names {
                // Somebody learned of more names meanwhile: under fewer this entry would never be found.
                row.names = names;
                row.variants.clear();
                Stored::Superseded
            } else {
                row.mark_until = 0;
                row.put(key.selector, entry);
                Stored::Yes
            };
            row.touch(now);
            let until = row.expires_at();
            match slot.set(row, until) {
                Ok(()) => stored,
                Err(_) => Stored::TooLarge,
            }
        });
        StoreFuture::ok(stored)
    }

    fn freshen(&self, key: EntryKey, ticket: Ticket, head: Arc<Head>) -> StoreFuture<Stored> {
        let now = self.now_micros();
        let stored = with_row(self, key.primary, now, |slot| {
            let Some(mut row) = slot.remove() else {
                return Stored::Superseded;
            };
            drop_lease(&mut row, ticket);
            let fresh = row
                .variant(key.selector)
                .filter(|there| there.head().body_id == head.body_id)
                .filter(|there| there.head().expires_at > now)
                .filter(|there| !is_superseded(there.head(), ticket.at, now))
                .map(|there| Arc::new(there.with_head(Arc::clone(&head))));
            let stored = match fresh {
                Some(entry) => {
                    row.put(key.selector, entry);
                    Stored::Yes
                }
                None => Stored::Superseded,
            };
            let until = row.expires_at();
            match slot.set(row, until) {
                Ok(()) => stored,
                Err(_) => Stored::TooLarge,
            }
        });
        StoreFuture::ok(stored)
    }

    fn release(&self, key: EntryKey, ticket: Ticket, mark: Option<Duration>) -> StoreFuture<()> {
        let now = self.now_micros();
        with_row(self, key.primary, now, |slot| {
            if mark.is_none() && slot.get().is_none() {
                return;
            }
            let mut row = slot.remove().unwrap_or_default();
            drop_lease(&mut row, ticket);
            if let Some(mark) = mark {
                row.mark_until = now.saturating_add(micros(mark));
                row.variants.retain(|(own, _)| *own != key.selector);
            }
            let until = row.expires_at();
            // A mark that finds no room costs a fetch that waiters share in vain.
            let _ = slot.set(row, until);
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

    fn place(&self) -> Place {
        Place::Process
    }

    fn clock(&self) -> Arc<dyn Clock> {
        Self::clock(self)
    }
}

fn with_row<R>(
    store: &MemoryStore,
    primary: Hash128,
    now: u64,
    change: impl FnOnce(&mut Slot<'_, Row>) -> R,
) -> R {
    let key = store.hash(|hasher| hasher.part(&primary.0));
    store.table::<Row>().update_one(key, now, change)
}

fn look(slot: &mut Slot<'_, Row>, lookup: &Lookup, mut found: Found) -> Found {
    let now = found.now;
    if let Some(row) = slot.get() {
        row.touch(now);
        let left = row.mark_until.saturating_sub(now);
        found.mark = (left > 0).then(|| Duration::from_micros(left));
        if row.names != lookup.names && !row.names.is_empty() {
            found.names = row.names.clone();
            return found;
        }
        if let Some(entry) = row.variant(lookup.key.selector) {
            let head = entry.head();
            let oldest = lookup.not_before.max(found.floor);
            if head.expires_at > now && head.begun >= oldest && head.names == lookup.names {
                found.entry = match lookup.have {
                    Some(have) if have == head.id => FoundEntry::Same,
                    _ => FoundEntry::Entry(Arc::clone(entry)),
                };
                if now < head.due_at() && !matches!(lookup.want, Want::Lease(_)) {
                    return found;
                }
            }
        }
    }
    if let Want::EntryOrLease(length) | Want::Lease(length) = lookup.want
        && found.mark.is_none()
    {
        found.lease = Some(lease(slot, lookup.key.selector, length, &found));
    }
    found
}

/// Grants the lease, or says how long it is held.
fn lease(slot: &mut Slot<'_, Row>, selector: Hash128, length: Duration, found: &Found) -> Lease {
    let now = found.now;
    let token = u128::from(random()) << 64 | u128::from(random());
    let until = now.saturating_add(micros(length));
    let row = LeaseRow {
        selector,
        token,
        until,
    };
    if let Some(known) = slot.get_mut() {
        known.leases.retain(|lease| lease.until > now);
        if let Some(held) = known.leases.iter().find(|lease| lease.selector == selector) {
            return Lease::Held(Duration::from_micros(held.until - now));
        }
        known.leases.push(row);
        let expires_at = known.expires_at();
        slot.set_expiry(expires_at);
    } else {
        let mut known = Row::default();
        known.leases.push(row);
        known.touch(now);
        // Without room for a lease everybody leads: more calls than one, but an answer for each.
        let _ = slot.set(known, until.saturating_add(LINGER));
    }
    Lease::Granted(Ticket {
        token,
        begun: found.highest,
        at: now,
    })
}

fn drop_lease(row: &mut Row, ticket: Ticket) {
    row.leases.retain(|lease| lease.token != ticket.token);
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
