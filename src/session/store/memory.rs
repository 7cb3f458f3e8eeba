//! Sessions inside this process: one table of sessions, tombstones and indexes; each method one closure under its locks.

mod establish;
mod users;

use std::mem::size_of;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;

use super::{
    Data, EndCause, EndedSession, Establish, Established, Listed, Live, Loaded, NotLive, Part,
    Patch, Patched, REMEMBERED_MILLIS, Read, Revoked, Roles, Seen, SessionId, SessionRecord,
    SessionRef, SessionStore, Sighting, Target, UserId, Verifier, Whose,
};
use crate::backend::memory::{self, EntryKey, MemoryStore, PartSetup, Slot};
use crate::core::{StoreError, StoreFuture, Timestamp};
use crate::session::data::{Plan, Unapplied};
use crate::session::policy::{self, Facts};

impl SessionStore for MemoryStore {
    fn load(&self, at: SessionRef, read: Read) -> StoreFuture<Loaded> {
        let moment = Moment::of(self);
        let (table, key) = (self.table::<Entry>(), session_key(self, at.id));
        // Nearly all change nothing: the shortest way.
        let seen = table.read_one(key, moment.micros, |entry| look(entry, at, &read, moment));
        StoreFuture::ok(seen.unwrap_or_else(|| {
            table.update_one(key, moment.micros, |slot| load(slot, at, &read, moment))
        }))
    }

    fn patch(&self, at: SessionRef, patch: &Patch) -> StoreFuture<Patched> {
        StoreFuture::ready(change_one(self, at, |slot, moment| {
            apply(slot, at, patch, moment)
        }))
    }

    fn establish(&self, order: Establish) -> StoreFuture<Established> {
        StoreFuture::ready(establish::establish(self, &order))
    }

    fn list(&self, of: Whose) -> StoreFuture<Listed> {
        StoreFuture::ok(users::list(self, &of))
    }

    fn assign_roles(&self, user: UserId, roles: Roles) -> StoreFuture<u64> {
        StoreFuture::ready(users::assign_roles(self, &user, &roles))
    }

    fn revoke(&self, target: Target) -> StoreFuture<Revoked> {
        StoreFuture::ready(users::revoke(self, &target))
    }
}

pub(super) enum Entry {
    Session(Box<Row>),
    /// What is left of a session that ended or moved.
    Grave(NotLive),
    User(Index),
}

#[derive(Clone)]
pub(super) struct Row {
    pub(super) record: SessionRecord,
    pub(super) verifier: Verifier,
    pub(super) previous: Option<(Verifier, Timestamp)>,
    pub(super) extended: std::time::Duration,
    pub(super) data_used: Timestamp,
    /// The number of the last write.
    pub(super) counter: u64,
    pub(super) data: Data,
}

/// A user's sessions, dead ones that nobody met yet included, and the last change that overtakes logins.
#[derive(Clone, Default)]
pub(super) struct Index {
    pub(super) sessions: Vec<SessionId>,
    pub(super) mark: Option<Timestamp>,
}

impl memory::Entry for Entry {
    fn weight(&self) -> usize {
        size_of::<Self>()
            + match self {
                Self::Session(row) => row.heap(),
                Self::Grave(_) => 0,
                Self::User(index) => index.sessions.capacity() * size_of::<SessionId>(),
            }
    }
}

impl Row {
    fn heap(&self) -> usize {
        let principal = self.record.principal.as_ref().map_or(0, |principal| {
            let roles = principal.iter_roles().map(|role| role.len() + 16);
            principal.id().len() + 32 + roles.sum::<usize>()
        });
        size_of::<Self>() + principal + self.data_heap()
    }

    fn facts(&self, cut_off: Option<Timestamp>) -> Facts<'_> {
        Facts {
            record: &self.record,
            verifier: &self.verifier,
            previous: self.previous.as_ref(),
            cut_off,
        }
    }

    /// Records activity if due; returns what was seen before.
    fn renew(&mut self, sighting: &Sighting, now: Timestamp) -> Option<Seen> {
        if !policy::is_due(self.record.last_activity, self.record.idle, now) {
            return None;
        }
        let before = self.record.seen;
        self.record.last_activity = self.record.last_activity.max(now);
        self.record.seen.replace_known(&sighting.seen());
        Some(before)
    }

    fn drop_what_ran_out(&mut self, now: Timestamp) {
        if self.has_data_run_out(now) {
            self.data = Data::default();
        }
    }

    fn has_data_run_out(&self, now: Timestamp) -> bool {
        !self.data.is_empty() && self.data_used.plus(self.extended) <= now
    }
}

/// The moment of one step.
#[derive(Clone, Copy)]
struct Moment {
    micros: u64,
    now: Timestamp,
    cut_off: Option<Timestamp>,
}

impl Moment {
    fn of(store: &MemoryStore) -> Self {
        // The clock first: whoever sets up a session excludes a cut-off anyway, all others may be a moment early.
        let micros = store.now_micros();
        Self {
            micros,
            now: Timestamp::from_millis(micros / 1_000),
            cut_off: store.part::<CutOff>().read(),
        }
    }

    /// When a tombstone or mark of this moment is forgotten, in microseconds.
    fn forgotten(self) -> u64 {
        (self.now.as_millis() + REMEMBERED_MILLIS + 1) * 1_000
    }
}

/// Sessions set up until then are ended. An atomic beside the table, so that reads share no lock.
pub(super) struct CutOff {
    /// Milliseconds plus one; 0 is never.
    at: AtomicU64,
    /// Read by whoever sets up a session, so that none slips in between.
    setting_up: RwLock<()>,
}

impl CutOff {
    /// Moves it on, never back.
    pub(super) fn raise(&self, to: Timestamp) {
        self.at.fetch_max(to.as_millis() + 1, Ordering::AcqRel);
    }

    pub(super) fn read(&self) -> Option<Timestamp> {
        let at = self.at.load(Ordering::Acquire);
        at.checked_sub(1).map(Timestamp::from_millis)
    }
}

impl memory::Part for CutOff {
    fn build(_: &PartSetup) -> Self {
        Self {
            at: AtomicU64::new(0),
            setting_up: RwLock::new(()),
        }
    }
}

pub(super) fn session_key(store: &MemoryStore, id: SessionId) -> EntryKey {
    store.hash(|hasher| hasher.part(id.as_bytes()))
}

pub(super) fn user_key(store: &MemoryStore, user: &UserId) -> EntryKey {
    store.hash(|hasher| {
        hasher.part(b"user");
        hasher.part(user.as_str().as_bytes());
    })
}

fn change_one<R>(
    store: &MemoryStore,
    at: SessionRef,
    change: impl FnOnce(&mut Slot<'_, Entry>, Moment) -> R,
) -> R {
    let moment = Moment::of(store);
    let (table, key) = (store.table::<Entry>(), session_key(store, at.id));
    table.update_one(key, moment.micros, |slot| change(slot, moment))
}

/// Finds a session that is live for `at`.
fn live<'a>(entry: Option<&'a Entry>, at: &SessionRef, moment: Moment) -> Result<&'a Row, NotLive> {
    match entry {
        None | Some(Entry::User(_)) => Err(NotLive::Missing),
        Some(Entry::Grave(why)) => Err(*why),
        Some(Entry::Session(row)) => {
            policy::check(row.facts(moment.cut_off), &at.verifier, moment.now)?;
            Ok(row)
        }
    }
}

/// Finds a session that is live for anybody.
fn any_live(entry: Option<&Entry>, moment: Moment) -> Option<&Row> {
    match entry {
        Some(Entry::Session(row)) => {
            let alive = policy::check_ends(row.facts(moment.cut_off), moment.now);
            alive.is_ok().then_some(row)
        }
        _ => None,
    }
}

fn row_mut(entry: Option<&mut Entry>) -> Option<&mut Row> {
    match entry {
        Some(Entry::Session(row)) => Some(row),
        _ => None,
    }
}

fn load(slot: &mut Slot<'_, Entry>, at: SessionRef, read: &Read, moment: Moment) -> Loaded {
    if let Some(seen) = look(slot.get(), at, read, moment) {
        return seen;
    }
    let renewed = record_use(slot, read, moment.now);
    match slot.get() {
        Some(Entry::Session(row)) => told(row, read.part, moment.now, renewed),
        _ => Loaded::NotLive(NotLive::Missing),
    }
}

/// What a load finds; `None` where it has something to record.
fn look(entry: Option<&Entry>, at: SessionRef, read: &Read, moment: Moment) -> Option<Loaded> {
    let row = match live(entry, &at, moment) {
        Ok(row) => row,
        Err(why) => return Some(Loaded::NotLive(why)),
    };
    let now = moment.now;
    let is_due = || {
        policy::is_due(row.record.last_activity, row.record.idle, now)
            || (!row.data.is_empty() && policy::is_due(row.data_used, row.extended, now))
    };
    let changes = row.has_data_run_out(now) || (read.renew.is_some() && is_due());
    (!changes).then(|| told(row, read.part, now, None))
}

fn told(row: &Row, part: Part, now: Timestamp, renewed: Option<Seen>) -> Loaded {
    Loaded::Live(Box::new(Live {
        now,
        record: row.record.clone(),
        data: (part == Part::Whole).then(|| row.data.clone()),
        renewed,
    }))
}

fn record_use(slot: &mut Slot<'_, Entry>, read: &Read, now: Timestamp) -> Option<Seen> {
    let row = row_mut(slot.get_mut())?;
    row.drop_what_ran_out(now);
    let sighting = read.renew.as_ref()?;
    if read.part == Part::Whole
        && !row.data.is_empty()
        && policy::is_due(row.data_used, row.extended, now)
    {
        row.data_used = row.data_used.max(now);
    }
    let renewed = row.renew(sighting, now);
    let expires = row.record.expires_at();
    slot.set_expiry(expires.as_micros());
    renewed
}

fn apply(
    slot: &mut Slot<'_, Entry>,
    at: SessionRef,
    patch: &Patch,
    moment: Moment,
) -> Result<Patched, StoreError> {
    let row = match live(slot.get(), &at, moment) {
        Ok(row) => row,
        Err(why) => return Ok(Patched::NotLive(why)),
    };
    let has_run_out = row.has_data_run_out(moment.now);
    let plan = if has_run_out {
        Plan::of(&Data::default(), patch)
    } else {
        Plan::of(&row.data, patch)
    };
    let plan = match plan {
        Ok(plan) => plan,
        Err(Unapplied::Conflict(entries)) => return Ok(Patched::Conflict(entries)),
        Err(Unapplied::TooLarge) => return Ok(Patched::TooLarge),
        Err(Unapplied::NotANumber) => return Ok(Patched::NotANumber),
    };
    let (bytes, keys) = plan.size();
    let growth = data_heap(bytes, keys).saturating_sub(row.data_heap());
    if growth > 0 {
        slot.reserve(growth)?;
    }
    let Some(row) = row_mut(slot.get_mut()) else {
        return Ok(Patched::NotLive(NotLive::Missing));
    };
    row.drop_what_ran_out(moment.now);
    row.write(plan, patch, moment.now);
    let renewed = row.renew(&patch.sighting, moment.now);
    let (version, expires) = (row.counter, row.record.expires_at().as_micros());
    slot.set_expiry(expires);
    Ok(Patched::Applied { version, renewed })
}

/// What values take beside their rows.
const fn data_heap(bytes: usize, keys: usize) -> usize {
    bytes + keys * 96
}

impl Row {
    /// Changes the data, whole or not at all.
    fn apply(&mut self, patch: &Patch, now: Timestamp) -> Result<(), Unapplied> {
        let plan = Plan::of(&self.data, patch)?;
        self.write(plan, patch, now);
        Ok(())
    }

    fn write(&mut self, plan: Plan, patch: &Patch, now: Timestamp) {
        if !patch.is_empty() {
            self.counter += 1;
            plan.apply(&mut self.data, patch, self.counter);
            self.data_used = self.data_used.max(now);
        }
    }

    fn data_heap(&self) -> usize {
        data_heap(self.data.size(), self.data.entries().len())
    }

    fn ended(&self, cause: EndCause) -> EndedSession {
        EndedSession {
            id: self.record.id,
            user: self.record.user().and_then(UserId::try_new),
            cause,
        }
    }
}

#[cfg(test)]
mod tests;
