//! Cached records in this process: records in a table, stamps and leases of a group behind one lock.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use tokio::time::Instant;

use super::{
    Ask, CacheKey, CacheStore, Fetched, Item, LeaseToken, LeaseWish, Leased, Lookup, Record, Right,
    Target, Written, notice,
};
use crate::backend::memory::{Entry, EntryKey, Full, MemoryStore, Part, PartSetup};
use crate::core::{Clock, Key, NoticeCallback, StoreFuture, Subscription, SystemClock, monotonic};
use crate::data::Names;

/// The most leases of a group; beyond, loads run without one, and are not stored.
const MOST_LEASES: usize = 100_000;
/// Owners of a lease; one of them will fill, or all have died, and the lease ends.
const MOST_OWNERS: usize = 30;
const FIRST_PRUNE: usize = 1_000;

struct Stored {
    record: Record,
    stamp: u64,
}

impl Entry for Stored {
    fn weight(&self) -> usize {
        let tags: usize = self.record.tags.iter().map(|tag| tag.len() + 24).sum();
        size_of::<Self>() + self.record.payload.len() + tags
    }

    /// What ends first goes first.
    fn eviction_rank(&self, _: u64) -> Option<u64> {
        Some(u64::MAX - self.record.expires)
    }
}

/// What an alias stands for.
struct Pointer {
    key: Key,
    expires: u64,
}

impl Entry for Pointer {
    fn weight(&self) -> usize {
        size_of::<Self>() + self.key.as_str().len()
    }

    fn eviction_rank(&self, _: u64) -> Option<u64> {
        Some(u64::MAX - self.expires)
    }
}

#[derive(Default)]
struct Groups(Mutex<HashMap<Arc<str>, Arc<RwLock<Group>>>>);

impl Part for Groups {
    fn build(_: &PartSetup) -> Self {
        Self::default()
    }
}

#[derive(Default)]
struct Group {
    last: u64,
    /// When a key was last dropped or put.
    last_key: u64,
    /// By name of group, prefix or tag. Never evicted, only outlived.
    stamps: HashMap<String, u64>,
    longest_life: u64,
    prune_at: usize,
    leases: HashMap<CacheKey, Lease>,
}

/// A load that is under way, and those it was taken over from: they may fill still.
struct Lease {
    /// Each with the stamp at which it began, the last one last.
    owners: Vec<(LeaseToken, u64)>,
    /// The last owner has given up.
    is_free: bool,
    until: Instant,
    waited: bool,
}

impl Lease {
    fn stamp_of(&self, token: LeaseToken) -> Option<u64> {
        let own = self.owners.iter().find(|owner| owner.0 == token);
        own.map(|(_, stamp)| *stamp)
    }
}

impl Group {
    fn next_stamp(&mut self) -> u64 {
        self.last = SystemClock.now_micros().max(self.last + 1);
        self.last
    }

    fn is_newer(&self, stamp: u64, key: &CacheKey, tags: &[String]) -> bool {
        let older = |member: &str| self.stamps.get(member).is_none_or(|own| *own < stamp);
        self.stamps.is_empty()
            || (older("") && key.all_prefixes(older) && tags.iter().all(|tag| older(tag)))
    }

    fn lease(&mut self, key: &CacheKey, wish: LeaseWish) -> Leased {
        let now = monotonic();
        let owner = (wish.token, self.next_stamp());
        if let Some(lease) = self.leases.get_mut(key)
            && lease.until > now
        {
            let may_take = wish.take_over && lease.owners.len() < MOST_OWNERS;
            if !lease.is_free && !may_take {
                lease.waited = true;
                return Leased::Busy;
            }
            lease.owners.push(owner);
            (lease.is_free, lease.until) = (false, now + wish.lasts);
            return Leased::Given;
        }
        if self.leases.len() >= MOST_LEASES {
            self.leases.retain(|_, lease| lease.until > now);
        }
        let lease = Lease {
            owners: vec![owner],
            is_free: false,
            until: now + wish.lasts,
            waited: false,
        };
        if self.leases.len() < MOST_LEASES {
            self.leases.insert(key.clone(), lease);
        }
        Leased::Given
    }

    /// Ends an owner's part in a lease, or all of it where what it loaded is stored. Returns whether somebody waits.
    fn end(&mut self, key: &CacheKey, token: LeaseToken, is_stored: bool) -> bool {
        let Some(lease) = self.leases.get_mut(key) else {
            return false;
        };
        lease.is_free |= lease.owners.last().is_some_and(|owner| owner.0 == token);
        lease.owners.retain(|owner| owner.0 != token);
        let waited = std::mem::take(&mut lease.waited);
        if is_stored || lease.owners.is_empty() {
            self.leases.remove(key);
        }
        waited
    }

    fn raise(&mut self, member: String) {
        let stamp = self.next_stamp();
        self.stamps.insert(member, stamp);
        if self.stamps.len() >= self.prune_at.max(FIRST_PRUNE) {
            let life = (self.longest_life + 7_200_000).saturating_mul(1_000);
            let before = self.last.saturating_sub(life);
            self.stamps.retain(|_, stamp| *stamp >= before);
            self.prune_at = 2 * self.stamps.len();
        }
    }
}

fn group_of(store: &MemoryStore, group: &Arc<str>) -> Arc<RwLock<Group>> {
    let mut groups = store.part::<Groups>().0.lock();
    Arc::clone(groups.entry(Arc::clone(group)).or_default())
}

fn entry_of(store: &MemoryStore, group: &str, key: &CacheKey) -> EntryKey {
    store.hash(|hasher| {
        hasher.part(group.as_bytes());
        hasher.part(key.entity.as_bytes());
        hasher.part(key.key.as_str().as_bytes());
    })
}

fn alias_of(store: &MemoryStore, group: &str, alias: &str) -> EntryKey {
    store.hash(|hasher| {
        hasher.part(group.as_bytes());
        hasher.part(alias.as_bytes());
    })
}

/// Returns the record unless a stamp has overtaken it.
fn valid(state: &Group, key: &CacheKey, found: Option<(Record, u64)>) -> Option<Record> {
    let found = found.filter(|(record, stamp)| state.is_newer(*stamp, key, &record.tags));
    found.map(|(record, _)| record)
}

/// Returns the lease that a look-up asks for, and may have.
fn wish_of(lookup: &Lookup, record: Option<&Record>, now: u64) -> Option<LeaseWish> {
    let is_due = record.is_none_or(|record| now >= record.refresh);
    match lookup.ask {
        Ask::Lease(wish) if is_due || wish.force => Some(wish),
        _ => None,
    }
}

impl MemoryStore {
    /// Writes a record and its aliases; one without room leaves nothing behind.
    fn set(&self, group: &str, item: Item, stamp: u64, now: u64) -> Result<(), Full> {
        let Item { key, mut fill, .. } = item;
        let (table, entry) = (self.table::<Stored>(), entry_of(self, group, &key));
        let expires = now.saturating_add(fill.life);
        let (now_us, end) = (now * 1_000, expires.saturating_mul(1_000));
        let aliases = std::mem::take(&mut fill.aliases);
        let pointers = self.table::<Pointer>();
        let mut tags = fill.tags;
        let mut set = Ok(());
        for alias in aliases {
            let pointer = Pointer {
                key: key.key.clone(),
                expires,
            };
            let alias_entry = alias_of(self, group, &alias);
            set = set.and(pointers.update_one(alias_entry, now_us, |slot| slot.set(pointer, end)));
            tags.push(alias);
        }
        let stored = Stored {
            stamp,
            record: Record {
                payload: fill.payload,
                tags,
                stored: now,
                refresh: now.saturating_add(fill.refresh),
                fresh: now.saturating_add(fill.fresh),
                expires,
            },
        };
        let set = set.and_then(|()| table.update_one(entry, now_us, |slot| slot.set(stored, end)));
        if set.is_err() {
            // The old record must not outlive a put.
            table.update_one(entry, now_us, |slot| slot.remove());
        }
        set
    }
}

fn channel_of(group: &str) -> String {
    format!("cache:{group}")
}

/// Reads what no stamp has overtaken. The stamps are read after the record: one that is raised in between counts.
fn read(store: &MemoryStore, entry: EntryKey, now: u64) -> Option<(Record, u64)> {
    let table = store.table::<Stored>();
    table.read_one(entry, now * 1_000, |stored| {
        stored.map(|stored| (stored.record.clone(), stored.stamp))
    })
}

impl CacheStore for MemoryStore {
    fn fetch(&self, group: &Arc<str>, lookups: Vec<Lookup>) -> StoreFuture<Vec<Fetched>> {
        let (now, state) = (self.now_micros() / 1_000, group_of(self, group));
        let peeked = |lookup: &Lookup| {
            let found = read(self, entry_of(self, group, &lookup.key), now);
            let record = valid(&state.read(), &lookup.key, found);
            wish_of(lookup, record.as_ref(), now).map_or(Some(record), |_| None)
        };
        let answers: Option<Vec<_>> = lookups.iter().map(peeked).collect();
        let fetched = |(record, leased)| Fetched {
            record,
            leased,
            now,
        };
        if let Some(records) = answers {
            let records = records.into_iter().map(|record| (record, Leased::No));
            return StoreFuture::ok(records.map(fetched).collect());
        }
        let mut state = state.write();
        let leased = lookups.iter().map(|lookup| {
            let found = read(self, entry_of(self, group, &lookup.key), now);
            let record = valid(&state, &lookup.key, found);
            let wish = wish_of(lookup, record.as_ref(), now);
            let leased = wish.map_or(Leased::No, |wish| state.lease(&lookup.key, wish));
            fetched((record, leased))
        });
        StoreFuture::ok(leased.collect())
    }

    fn write(&self, group: &Arc<str>, items: Vec<Item>, sender: &str) -> StoreFuture<Vec<Written>> {
        let (now, state) = (self.now_micros() / 1_000, group_of(self, group));
        let (mut told, mut fills) = (Vec::new(), Vec::new());
        let written: Result<Vec<Written>, Full> = {
            let mut state = state.write();
            let written = items.into_iter().map(|item| {
                let (right, lease_key) = (item.fill.right, item.lease_key().clone());
                let stamp = match right {
                    Right::Lease(token) => {
                        let lease = state.leases.get(&lease_key);
                        match lease.and_then(|lease| lease.stamp_of(token)) {
                            Some(stamp) => stamp,
                            None => return Ok(Written::Refused),
                        }
                    }
                    Right::Always => {
                        told.push(item.key.member());
                        state.leases.remove(&lease_key);
                        let stamp = state.next_stamp();
                        state.last_key = stamp;
                        stamp
                    }
                };
                // Whose key was not known: any that was dropped or put since may have been this one.
                let is_overtaken = item.lease_of.is_some() && state.last_key >= stamp;
                let is_stored = item.fill.life > 0
                    && !is_overtaken
                    && state.is_newer(stamp, &item.key, &item.fill.tags);
                if let Right::Lease(token) = right
                    && state.end(&lease_key, token, is_stored)
                {
                    fills.push(format!("f{}", lease_key.member()));
                }
                if !is_stored {
                    return Ok(Written::Refused);
                }
                state.longest_life = state.longest_life.max(item.fill.life);
                self.set(group, item, stamp, now).map(|()| Written::Stored)
            });
            written.collect()
        };
        if !told.is_empty() {
            self.publish(&channel_of(group), &notice(sender, &told));
        }
        for fill in fills {
            self.publish(&channel_of(group), &notice(sender, &[fill]));
        }
        StoreFuture::ready(written.map_err(Into::into))
    }

    fn resolve(&self, group: &Arc<str>, aliases: Vec<String>) -> StoreFuture<Vec<Option<Key>>> {
        let now = self.now_micros();
        let table = self.table::<Pointer>();
        let found = aliases.iter().map(|alias| {
            let entry = alias_of(self, group, alias);
            table.read_one(entry, now, |pointer| {
                pointer.map(|pointer| pointer.key.clone())
            })
        });
        StoreFuture::ok(found.collect())
    }

    fn invalidate(&self, group: &Arc<str>, targets: Vec<Target>, sender: &str) -> StoreFuture<()> {
        let (now, state) = (self.now_micros(), group_of(self, group));
        {
            let mut state = state.write();
            for target in &targets {
                if let Some(key) = target.as_key() {
                    state.leases.remove(key);
                    state.last_key = state.next_stamp();
                    let entry = entry_of(self, group, key);
                    let table = self.table::<Stored>();
                    table.update_one(entry, now, |slot| slot.remove());
                } else {
                    state.raise(target.member());
                }
            }
        }
        let members: Vec<String> = targets.iter().map(Target::member).collect();
        self.publish(&channel_of(group), &notice(sender, &members));
        StoreFuture::ok(())
    }

    fn subscribe(&self, group: &Arc<str>, callback: NoticeCallback) -> StoreFuture<Subscription> {
        Self::subscribe(self, &channel_of(group), callback)
    }

    fn clock(&self) -> Arc<dyn Clock> {
        Self::clock(self)
    }

    fn contradicts(&self, name: &str, what: &str) -> bool {
        self.part::<Names>().contradicts(name, what)
    }
}
