//! Cached records in this process: records in a table, stamps and leases of a group behind one lock.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use tokio::time::Instant;

use super::{
    Ask, CacheKey, CacheStore, Fetched, Fill, LeaseToken, LeaseWish, Leased, Record, Right, Target,
    Written, notice,
};
use crate::backend::memory::{Entry, EntryKey, MemoryStore, Part, PartSetup};
use crate::core::{Clock, NoticeCallback, StoreFuture, Subscription, SystemClock, monotonic};

/// The most leases of a group; beyond, loads run without one, and are not stored.
const MOST_LEASES: usize = 100_000;
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
    /// By name of group, prefix or tag. Never evicted, only outlived.
    stamps: HashMap<String, u64>,
    longest_life: u64,
    prune_at: usize,
    leases: HashMap<CacheKey, Lease>,
}

struct Lease {
    token: LeaseToken,
    stamp: u64,
    until: Instant,
    waited: bool,
}

impl Group {
    fn next_stamp(&mut self) -> u64 {
        self.last = SystemClock.now_micros().max(self.last + 1);
        self.last
    }

    fn is_newer(&self, stamp: u64, key: &CacheKey, tags: &[String]) -> bool {
        let older = |member: &str| self.stamps.get(member).is_none_or(|own| *own < stamp);
        older("") && key.prefixes().iter().chain(tags).all(|name| older(name))
    }

    fn lease(&mut self, key: &CacheKey, wish: LeaseWish) -> Leased {
        let now = monotonic();
        if let Some(lease) = self.leases.get_mut(key)
            && lease.until > now
            && !wish.take_over
        {
            lease.waited = true;
            return Leased::Busy;
        }
        if self.leases.len() >= MOST_LEASES {
            self.leases.retain(|_, lease| lease.until > now);
        }
        let lease = Lease {
            token: wish.token,
            stamp: self.next_stamp(),
            until: now + wish.lasts,
            waited: false,
        };
        if self.leases.len() < MOST_LEASES {
            self.leases.insert(key.clone(), lease);
        }
        Leased::Given
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
    fn fetch(&self, group: &Arc<str>, key: &CacheKey, ask: Ask) -> StoreFuture<Fetched> {
        let (now, entry) = (self.now_micros() / 1_000, entry_of(self, group, key));
        let state = group_of(self, group);
        let found = read(self, entry, now);
        let valid = |state: &Group, found: Option<(Record, u64)>| {
            let found = found.filter(|(record, stamp)| state.is_newer(*stamp, key, &record.tags));
            found.map(|(record, _)| record)
        };
        let answer = |record, leased| {
            StoreFuture::ok(Fetched {
                record,
                leased,
                now,
            })
        };
        let record = valid(&state.read(), found);
        let is_due = record.as_ref().is_none_or(|record| now >= record.refresh);
        match ask {
            Ask::Lease(wish) if is_due || wish.force => {
                let mut state = state.write();
                let record = valid(&state, read(self, entry, now));
                let is_due = record.as_ref().is_none_or(|record| now >= record.refresh);
                let leased = if is_due || wish.force {
                    state.lease(key, wish)
                } else {
                    Leased::No
                };
                answer(record, leased)
            }
            _ => answer(record, Leased::No),
        }
    }

    fn write(
        &self,
        group: &Arc<str>,
        key: &CacheKey,
        fill: Fill,
        sender: &str,
    ) -> StoreFuture<Written> {
        let (now, entry) = (self.now_micros() / 1_000, entry_of(self, group, key));
        let state = group_of(self, group);
        let mut told = None;
        let written = {
            let mut state = state.write();
            let lease = match fill.right {
                Right::Always => state.leases.remove(key),
                Right::Lease(token) => match state.leases.get(key) {
                    Some(lease) if lease.token == token => state.leases.remove(key),
                    _ => return StoreFuture::ok(Written::Refused),
                },
            };
            if lease.as_ref().is_some_and(|lease| lease.waited) {
                told = Some(format!("f{}", key.member()));
            }
            let stamp = match (fill.right, lease) {
                (Right::Lease(_), Some(lease)) => lease.stamp,
                _ => state.next_stamp(),
            };
            if state.is_newer(stamp, key, &fill.tags) {
                state.longest_life = state.longest_life.max(fill.life);
                let stored = Stored {
                    stamp,
                    record: Record {
                        payload: fill.payload,
                        tags: fill.tags,
                        stored: now,
                        refresh: now + fill.refresh,
                        fresh: now + fill.fresh,
                        expires: now + fill.life,
                    },
                };
                let end = stored.record.expires.saturating_mul(1_000);
                let table = self.table::<Stored>();
                let set = table.update_one(entry, now * 1_000, |slot| slot.set(stored, end));
                if set.is_err() {
                    // The old record must not outlive a put.
                    table.update_one(entry, now * 1_000, |slot| slot.remove());
                }
                set.map(|()| Written::Stored)
            } else {
                Ok(Written::Refused)
            }
        };
        if fill.right == Right::Always {
            told = Some(key.member());
        }
        if let Some(told) = told {
            self.publish(&channel_of(group), &notice(sender, &[told]));
        }
        StoreFuture::ready(written.map_err(Into::into))
    }

    fn invalidate(&self, group: &Arc<str>, targets: Vec<Target>, sender: &str) -> StoreFuture<()> {
        let (now, state) = (self.now_micros(), group_of(self, group));
        {
            let mut state = state.write();
            for target in &targets {
                if let Some(key) = target.as_key() {
                    state.leases.remove(key);
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
}
