//! Steps over all sessions of a user: list, roles, revocation.

use super::establish::bury;
use super::{CutOff, Entry, Index, Moment, Row, any_live, live, row_mut, session_key, user_key};
use crate::backend::memory::{EntryKey, MemoryStore, Slots};
use crate::core::{Principal, StoreError, Timestamp};
use crate::session::store::{
    EndCause, EndedSession, Listed, NotLive, Revoked, Roles, SessionId, SessionRecord, SessionRef,
    Target, UserId, Whose,
};

const INDEX: usize = 0;
const ASKING: usize = 1;
const FIRST: usize = 2;

/// Why there is nobody whose sessions could be meant.
enum Nobody {
    NoUser,
    NotLive(NotLive),
}

/// A user's index, the asking session, and the user's sessions, under lock.
struct Family<'s, 't> {
    slots: &'s mut Slots<'t, Entry>,
    sessions: &'s [SessionId],
    user: &'s UserId,
    moment: Moment,
}

/// Runs `step` on all sessions of a user; it starts over when they changed between the look and the locks.
fn with_family<R>(
    store: &MemoryStore,
    whose: &Whose,
    mut step: impl FnMut(Family<'_, '_>) -> R,
) -> Result<R, Nobody> {
    let table = store.table::<Entry>();
    loop {
        let moment = Moment::of(store);
        let (user, asking) = asking(store, whose, moment)?;
        let index = user_key(store, &user);
        let sessions = table.update_one(index, moment.micros, |slot| sessions_of(slot.get()));
        let asking_key = asking.map_or(index, |asking| session_key(store, asking.id));
        let mut keys: Vec<EntryKey> = vec![index, asking_key];
        keys.extend(sessions.iter().map(|id| session_key(store, *id)));
        let done = table.update(&keys, moment.micros, |slots| {
            let user_now = match asking {
                Some(asking) => user_of(slots.get(ASKING), &asking, moment)?,
                None => user.clone(),
            };
            let changed = user_now != user || sessions_of(slots.get(INDEX)) != sessions;
            Ok((!changed).then(|| {
                step(Family {
                    slots,
                    sessions: &sessions,
                    user: &user,
                    moment,
                })
            }))
        })?;
        if let Some(answer) = done {
            return Ok(answer);
        }
    }
}

fn asking(
    store: &MemoryStore,
    whose: &Whose,
    moment: Moment,
) -> Result<(UserId, Option<SessionRef>), Nobody> {
    match whose {
        Whose::User(user) => Ok((user.clone(), None)),
        Whose::Session(at) => {
            let (table, key) = (store.table::<Entry>(), session_key(store, at.id));
            let user =
                table.update_one(key, moment.micros, |slot| user_of(slot.get(), at, moment))?;
            Ok((user, Some(*at)))
        }
    }
}

fn user_of(entry: Option<&Entry>, at: &SessionRef, moment: Moment) -> Result<UserId, Nobody> {
    let row = live(entry, at, moment).map_err(Nobody::NotLive)?;
    row.record
        .user()
        .and_then(UserId::try_new)
        .ok_or(Nobody::NoUser)
}

fn sessions_of(entry: Option<&Entry>) -> Vec<SessionId> {
    match entry {
        Some(Entry::User(index)) => index.sessions.clone(),
        _ => Vec::new(),
    }
}

impl Family<'_, '_> {
    fn live(&self, at: usize) -> Option<&Row> {
        let row = any_live(self.slots.get(at), self.moment)?;
        (row.record.user() == Some(self.user.as_str())).then_some(row)
    }

    fn places(&self) -> impl Iterator<Item = usize> + use<> {
        FIRST..FIRST + self.sessions.len()
    }

    /// Keeps in the index only what is live.
    fn trim(&mut self) {
        let live: Vec<SessionId> = self
            .places()
            .filter_map(|at| Some(self.live(at)?.record.id))
            .collect();
        if live.len() < self.sessions.len()
            && let Some(Entry::User(index)) = self.slots.get_mut(INDEX)
        {
            index.sessions = live;
        }
    }

    /// Remembers that logins which began before are overtaken.
    fn mark(&mut self) -> Result<(), StoreError> {
        let expires = self
            .slots
            .expires_at(INDEX)
            .unwrap_or(0)
            .max(self.moment.forgotten());
        match self.slots.get_mut(INDEX) {
            Some(Entry::User(index)) => index.mark = Some(self.moment.now),
            _ => {
                let mark = Some(self.moment.now);
                let index = Index {
                    mark,
                    ..Index::default()
                };
                self.slots.set(INDEX, Entry::User(index), expires)?;
            }
        }
        self.slots.set_expiry(INDEX, expires);
        Ok(())
    }

    fn end(&mut self, which: impl Fn(SessionId) -> bool, cause: EndCause) -> Vec<EndedSession> {
        let mut ended = Vec::new();
        for at in self.places() {
            let Some(gone) = self.live(at).filter(|row| which(row.record.id)) else {
                continue;
            };
            ended.push(gone.ended(cause));
            bury(self.slots, at, NotLive::Ended(cause), self.moment);
        }
        self.trim();
        ended.sort_by_key(|ended| ended.id);
        ended
    }
}

pub(super) fn list(store: &MemoryStore, of: &Whose) -> Listed {
    let listed = with_family(store, of, |mut family| {
        family.trim();
        let live = family
            .places()
            .filter_map(|at| Some(family.live(at)?.record.clone()));
        let mut records: Vec<SessionRecord> = live.collect();
        latest_first(&mut records);
        records
    });
    match listed {
        Ok(records) => Listed::Sessions(records),
        Err(Nobody::NoUser) => Listed::NoUser,
        Err(Nobody::NotLive(why)) => Listed::NotLive(why),
    }
}

fn latest_first(records: &mut [SessionRecord]) {
    records.sort_by_key(|record| (std::cmp::Reverse(record.last_activity), record.id));
}

pub(super) fn assign_roles(
    store: &MemoryStore,
    user: &UserId,
    roles: &Roles,
) -> Result<u64, StoreError> {
    let whose = Whose::User(user.clone());
    let done = with_family(store, &whose, |mut family| {
        family.mark()?;
        family.trim();
        let principal = Principal::new(user.as_str()).roles(roles.iter());
        let places: Vec<usize> = family
            .places()
            .filter(|at| family.live(*at).is_some())
            .collect();
        for at in &places {
            if let Some(row) = row_mut(family.slots.get_mut(*at)) {
                row.record.principal = Some(principal.clone());
            }
        }
        Ok(places.len() as u64)
    });
    done.unwrap_or(Ok(0))
}

pub(super) fn revoke(store: &MemoryStore, target: &Target) -> Result<Revoked, StoreError> {
    let cause = EndCause::Revoked;
    let done = match target {
        Target::Own(at, cause) => return Ok(revoke_own(store, *at, *cause)),
        Target::Everyone => {
            revoke_everyone(store);
            return Ok(Revoked::Done(Vec::new()));
        }
        Target::One(whose, id) => with_family(store, whose, |mut family| {
            Ok(family.end(|own| own == *id, cause))
        }),
        Target::Others(keep) => with_family(store, &Whose::Session(*keep), |mut family| {
            family.mark()?;
            Ok(family.end(|own| own != keep.id, cause))
        }),
        Target::All(whose) => with_family(store, whose, |mut family| {
            family.mark()?;
            Ok(family.end(|_| true, cause))
        }),
    };
    match done {
        Ok(ended) => ended.map(Revoked::Done),
        Err(Nobody::NoUser) => Ok(Revoked::NoUser),
        Err(Nobody::NotLive(why)) => Ok(Revoked::NotLive(why)),
    }
}

fn revoke_own(store: &MemoryStore, at: SessionRef, cause: EndCause) -> Revoked {
    let ended = with_family(store, &Whose::Session(at), |mut family| {
        family.end(|own| own == at.id, cause)
    });
    match ended {
        Ok(ended) => Revoked::Done(ended),
        Err(Nobody::NotLive(why)) => Revoked::NotLive(why),
        Err(Nobody::NoUser) => revoke_anonymous(store, at, cause),
    }
}

fn revoke_anonymous(store: &MemoryStore, at: SessionRef, cause: EndCause) -> Revoked {
    let moment = Moment::of(store);
    let (table, keys) = (store.table::<Entry>(), [session_key(store, at.id)]);
    let ended = table.update(&keys, moment.micros, |slots| {
        let ended = live(slots.get(0), &at, moment)?.ended(cause);
        bury(slots, 0, NotLive::Ended(cause), moment);
        Ok(vec![ended])
    });
    ended.map_or_else(Revoked::NotLive, Revoked::Done)
}

fn revoke_everyone(store: &MemoryStore) {
    let cut_off = store.part::<CutOff>();
    let _nobody_sets_up = cut_off.setting_up.write();
    cut_off.raise(Timestamp::from_millis(store.now_micros() / 1_000));
}
