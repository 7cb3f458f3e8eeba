//! A memory store that holds nothing but the rows of one step: what the step makes of them is what is written.
//!
//! So the rules of sessions stand in Rust once. What is shared with other steps is locked in the database; this store
//! belongs to one step alone.

use std::collections::BTreeMap;

use super::super::memory::{CutOff, Entry, Index, session_key, user_key};
use super::rows::{Columns, Held, Raw, decode, number, time};
use crate::backend::memory::MemoryStore;
use crate::core::{ManualClock, Timestamp};
use crate::session::store::{EndCause, NotLive, REMEMBERED_MILLIS, SessionId, UserId};

/// More than a user can have, and few enough for a small table.
const ENTRIES: usize = 4_096;

/// What a step goes by, read after the locks were taken.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Facts {
    pub(super) cut_off: Option<Timestamp>,
    /// When the user's sessions were last revoked, or roles changed.
    pub(super) mark: Option<Timestamp>,
    pub(super) now: Timestamp,
}

pub(super) struct Scratch {
    pub(super) store: MemoryStore,
    facts: Facts,
    user: Option<UserId>,
    rows: Vec<Known>,
    /// Rows of a newer version.
    pub(super) newer: Vec<SessionId>,
    pub(super) damaged: Vec<SessionId>,
}

/// A row as it was read.
struct Known {
    id: SessionId,
    before: Columns,
    keeps_data: bool,
}

/// What a step has changed.
#[derive(Default)]
pub(super) struct Changes {
    pub(super) inserted: Vec<Columns>,
    /// Rows, and whether their data is written, too.
    pub(super) updated: Vec<(Columns, bool)>,
    pub(super) mark: Option<Timestamp>,
    pub(super) cut_off: Option<Timestamp>,
}

impl Changes {
    pub(super) fn is_empty(&self) -> bool {
        self.inserted.is_empty()
            && self.updated.is_empty()
            && self.mark.is_none()
            && self.cut_off.is_none()
    }
}

impl Scratch {
    /// `whole` is the session whose data was read.
    pub(super) fn new(
        raws: &[Raw],
        whole: Option<SessionId>,
        user: Option<UserId>,
        facts: Facts,
    ) -> Self {
        let clock = ManualClock::at(facts.now);
        let store = MemoryStore::builder().clock(clock).max_entries(ENTRIES);
        let mut scratch = Self {
            store: store.max_bytes(usize::MAX / 4).build(),
            facts,
            user,
            rows: Vec::new(),
            newer: Vec::new(),
            damaged: Vec::new(),
        };
        if let Some(cut_off) = facts.cut_off {
            scratch.store.part::<CutOff>().raise(cut_off);
        }
        let mut users: BTreeMap<UserId, Vec<SessionId>> = BTreeMap::new();
        for raw in raws {
            scratch.take_in(raw, whole, &mut users);
        }
        if let Some(user) = &scratch.user {
            users.entry(user.clone()).or_default();
        }
        for (user, sessions) in users {
            let own = scratch.user.as_ref() == Some(&user);
            let mark = facts.mark.filter(|_| own);
            if mark.is_some() || !sessions.is_empty() {
                let key = user_key(&scratch.store, &user);
                scratch.put(key, Entry::User(Index { sessions, mark }), u64::MAX);
            }
        }
        scratch
    }

    fn take_in(
        &mut self,
        raw: &Raw,
        whole: Option<SessionId>,
        users: &mut BTreeMap<UserId, Vec<SessionId>>,
    ) {
        let Some(id) = raw.0.as_slice().try_into().ok().map(SessionId::from_bytes) else {
            return;
        };
        let entry = match decode(id, raw) {
            Held::Entry(entry) => entry,
            Held::Newer => return self.newer.push(id),
            Held::Damaged => return self.damaged.push(id),
        };
        let Some(before) = Columns::of(id, &entry, raw.5) else {
            return;
        };
        if let Entry::Session(row) = &entry
            && let Some(user) = row.record.user().and_then(UserId::try_new)
        {
            users.entry(user).or_default().push(id);
        }
        // Data that was not read stays where the same session goes on.
        let goes_on = before.is_session() && time(raw.5) > self.facts.now;
        self.rows.push(Known {
            id,
            before,
            keeps_data: goes_on && whole != Some(id),
        });
        let key = session_key(&self.store, id);
        self.put(key, entry, raw.5.unsigned_abs().saturating_mul(1_000));
    }

    fn put(&self, key: crate::backend::memory::EntryKey, entry: Entry, expires: u64) {
        let (table, now) = (self.store.table::<Entry>(), self.facts.now.as_micros());
        table.update(&[key], now, |slots| {
            slots.set_beyond_bounds(0, entry, expires);
        });
    }

    fn out(&self, key: crate::backend::memory::EntryKey) -> Option<(Entry, u64)> {
        let (table, now) = (self.store.table::<Entry>(), self.facts.now.as_micros());
        table.update_one(key, now, |slot| {
            let expires = slot.expires_at()?;
            Some((slot.remove()?, expires))
        })
    }

    pub(super) fn user(&self) -> Option<&UserId> {
        self.user.as_ref()
    }

    /// Says what is to be written; `fresh` is an id that had no row.
    pub(super) fn changes(&self, fresh: Option<SessionId>) -> Changes {
        let mut changes = Changes::default();
        for known in &self.rows {
            let Some(after) = self.after(known.id) else {
                continue;
            };
            if after != known.before {
                let with_data = !(known.keeps_data && after.is_session());
                changes.updated.push((after, with_data));
            }
        }
        let is_known = |id: &SessionId| self.rows.iter().any(|known| known.id == *id);
        let fresh = fresh.filter(|id| !is_known(id));
        changes.inserted.extend(fresh.and_then(|id| self.after(id)));
        let index = self.user.as_ref().map(|user| user_key(&self.store, user));
        if let Some((Entry::User(index), _)) = index.and_then(|key| self.out(key)) {
            changes.mark = index.mark.filter(|mark| Some(*mark) != self.facts.mark);
        }
        let cut_off = self.store.part::<CutOff>().read();
        changes.cut_off = cut_off.filter(|_| cut_off != self.facts.cut_off);
        changes
    }

    fn after(&self, id: SessionId) -> Option<Columns> {
        let (entry, expires) = self.out(session_key(&self.store, id))?;
        Columns::of(id, &entry, number(expires / 1_000))
    }

    /// The tombstone of a row that cannot be read.
    pub(super) fn grave(&self, id: SessionId) -> Columns {
        let expires = self.facts.now.as_millis() + REMEMBERED_MILLIS + 1;
        Columns::grave(id, NotLive::Ended(EndCause::Revoked), number(expires))
    }
}

impl Facts {
    /// What a row that was read without locks says beside itself.
    pub(super) fn beside(raw: &Raw) -> Self {
        Self {
            cut_off: raw.6.map(time),
            mark: None,
            now: time(raw.7),
        }
    }

    pub(super) fn of((cut_off, mark, now): (Option<i64>, Option<i64>, i64)) -> Self {
        Self {
            cut_off: cut_off.map(time),
            mark: mark.map(time),
            now: time(now),
        }
    }
}
