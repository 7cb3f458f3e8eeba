//! First write, login, switch and rotation in one step: the current session, the new one, the users' indexes and what gives way.

use super::{Entry, Index, Moment, Row, any_live, live, session_key, user_key};
use crate::backend::memory::{EntryKey, MemoryStore, Slots};
use crate::core::{Principal, StoreError, Timestamp};
use crate::session::data::Unapplied;
use crate::session::policy;
use crate::session::store::{
    Data, Done, EndCause, EndedSession, Establish, EstablishCause, Established, Identity,
    LoginIdentity, NotLive, Otherwise, Seen, SessionId, SessionRecord, UserId,
};

use super::CutOff;

const FRESH: usize = 0;

/// Takes the step; it starts over when the users' sessions changed between the look and the locks.
pub(super) fn establish(store: &MemoryStore, order: &Establish) -> Result<Established, StoreError> {
    let _no_cut_off_meanwhile = store.part::<CutOff>().setting_up.read();
    loop {
        let plan = Plan::look(store, order);
        let moment = Moment::of(store);
        let table = store.table::<Entry>();
        let answer = table.update(&plan.keys, moment.micros, |slots| {
            let step = Step {
                order,
                plan: &plan,
                moment,
            };
            step.sees_what_was_planned(slots).then(|| step.take(slots))
        });
        if let Some(answer) = answer {
            return answer;
        }
    }
}

/// Which entries the step needs, as they looked a moment before.
struct Plan {
    keys: Vec<EntryKey>,
    current: Option<usize>,
    current_user: Option<UserId>,
    /// The index of the user who logs in.
    index: Option<usize>,
    /// The index of another user whose session this was.
    left: Option<usize>,
    /// The sessions in `index`, from `others_at` on.
    others: Vec<SessionId>,
    others_at: usize,
}

impl Plan {
    fn look(store: &MemoryStore, order: &Establish) -> Self {
        let table = store.table::<Entry>();
        let micros = store.now_micros();
        let mut keys = vec![session_key(store, order.fresh)];
        let mut push = |key| {
            keys.push(key);
            keys.len() - 1
        };
        let current_key = order.current.map(|current| session_key(store, current.id));
        let current = current_key.map(&mut push);
        let current_user =
            current_key.and_then(|key| table.update_one(key, micros, |slot| user_of(slot.get())));
        let (mut index, mut left, mut others) = (None, None, Vec::new());
        if let Identity::Set(login) = &order.identity {
            let key = user_key(store, &login.user);
            others = table.update_one(key, micros, |slot| sessions_of(slot.get()).to_vec());
            index = Some(push(key));
            left = current_user
                .as_ref()
                .filter(|user| **user != login.user)
                .map(|user| push(user_key(store, user)));
        }
        let others_at = keys.len();
        keys.extend(others.iter().map(|id| session_key(store, *id)));
        Self {
            keys,
            current,
            current_user,
            index,
            left,
            others,
            others_at,
        }
    }
}

fn user_of(entry: Option<&Entry>) -> Option<UserId> {
    match entry {
        Some(Entry::Session(row)) => row.record.user().and_then(UserId::try_new),
        _ => None,
    }
}

fn sessions_of(entry: Option<&Entry>) -> &[SessionId] {
    match entry {
        Some(Entry::User(index)) => &index.sessions,
        _ => &[],
    }
}

struct Step<'a> {
    order: &'a Establish,
    plan: &'a Plan,
    moment: Moment,
}

/// The session as it will be.
struct Next {
    row: Row,
    cause: EstablishCause,
    /// The record goes on under a new id.
    moves: bool,
}

impl Step<'_> {
    fn sees_what_was_planned(&self, slots: &Slots<'_, Entry>) -> bool {
        let plan = self.plan;
        let user = plan.current.and_then(|at| user_of(slots.get(at)));
        let others = plan.index.map_or(&[][..], |at| sessions_of(slots.get(at)));
        // Only a login needs the users; a rotation takes the session as it is.
        plan.index.is_none() || (user == plan.current_user && others == plan.others)
    }

    fn take(&self, slots: &mut Slots<'_, Entry>) -> Result<Established, StoreError> {
        let current = match self.current(slots) {
            Ok(row) => Some(row),
            Err(why) if self.order.otherwise == Otherwise::Refuse => {
                return Ok(Established::NotLive(why));
            }
            Err(_) => None,
        };
        if self.is_overtaken(slots) {
            return Ok(Established::Overtaken);
        }
        let current = current.map(|row| {
            let mut row = row.clone();
            row.drop_what_ran_out(self.moment.now);
            row
        });
        let mut next = self.next(current.as_ref());
        if next.row.record.id == self.order.fresh && slots.get(FRESH).is_some() {
            return Ok(Established::Taken);
        }
        let Some(giving_way) = self.giving_way(slots, next.row.record.id) else {
            return Ok(Established::Limit);
        };
        match next.row.apply(&self.order.patch, self.moment.now) {
            Ok(()) => {}
            Err(Unapplied::NotANumber) => return Ok(Established::NotANumber),
            // Conditions of a patch have no meaning here: `update` sets what it made of nothing.
            Err(Unapplied::TooLarge | Unapplied::Conflict(_)) => return Ok(Established::TooLarge),
        }
        self.write(slots, next, giving_way)
    }

    fn current<'s>(&self, slots: &'s Slots<'_, Entry>) -> Result<&'s Row, NotLive> {
        match (self.order.current, self.plan.current) {
            (Some(current), Some(at)) => live(slots.get(at), &current, self.moment),
            _ => Err(NotLive::Missing),
        }
    }

    fn login(&self) -> Option<&LoginIdentity> {
        match &self.order.identity {
            Identity::Set(login) => Some(login),
            Identity::Keep => None,
        }
    }

    fn is_overtaken(&self, slots: &Slots<'_, Entry>) -> bool {
        let mark = match self.plan.index.map(|at| slots.get(at)) {
            Some(Some(Entry::User(index))) => index.mark,
            Some(_) => None,
            None => return false,
        };
        let (age, now) = (self.order.age, self.moment.now);
        let mark = mark.filter(|mark| policy::remembers(*mark, now));
        policy::is_overtaken(mark.max(self.moment.cut_off), age, now)
    }

    fn next(&self, current: Option<&Row>) -> Next {
        let (order, now) = (self.order, self.moment.now);
        let Some(login) = self.login() else {
            return match current {
                Some(row) => Next {
                    row: self.with_new_secret(row.clone()),
                    cause: EstablishCause::Rotated,
                    moves: false,
                },
                None => Next {
                    row: self.fresh_row(),
                    cause: EstablishCause::Created,
                    moves: false,
                },
            };
        };
        let before = current.and_then(|row| row.record.user());
        let cause = match before {
            Some(user) if user == login.user.as_str() => EstablishCause::Again,
            Some(_) => EstablishCause::Switched,
            None => EstablishCause::First,
        };
        let moves = current.is_some_and(|row| row.record.id.home() != order.fresh.home());
        let mut row = match current {
            Some(row) if moves => Row {
                record: SessionRecord {
                    id: order.fresh,
                    ..row.record.clone()
                },
                verifier: order.verifier,
                previous: None,
                ..row.clone()
            },
            Some(row) => self.with_new_secret(row.clone()),
            None => self.fresh_row(),
        };
        if cause == EstablishCause::Switched {
            row.data = Data::default();
            row.record.created = self.created();
            row.record.seen = Seen::default();
        }
        if current.is_some() {
            row.record.generation += u64::from(moves);
            row.record.last_activity = row.record.last_activity.max(now);
            row.record.seen.replace_known(&order.patch.sighting.seen());
        }
        row.record.principal = Some(Principal::new(login.user.as_str()).roles(login.roles.iter()));
        row.record.stamp = login.stamp;
        row.record.authenticated = Some(now);
        row.record.remembered = login.remembered;
        row.record.absolute_at = now.plus(order.lifetimes.absolute);
        row.record.idle = order.lifetimes.idle;
        row.extended = order.extended;
        Next { row, cause, moves }
    }

    fn with_new_secret(&self, mut row: Row) -> Row {
        row.previous = Some((row.verifier, self.moment.now));
        row.verifier = self.order.verifier;
        row.record.generation += 1;
        row.renew(&self.order.patch.sighting, self.moment.now);
        row
    }

    fn fresh_row(&self) -> Row {
        let (order, now) = (self.order, self.moment.now);
        let seen = order.patch.sighting.seen();
        let record = SessionRecord {
            id: order.fresh,
            principal: None,
            stamp: None,
            seen,
            generation: 0,
            created: self.created(),
            authenticated: None,
            last_activity: now,
            absolute_at: now.plus(order.lifetimes.absolute),
            idle: order.lifetimes.idle,
            remembered: false,
        };
        Row {
            record,
            verifier: order.verifier,
            previous: None,
            extended: order.extended,
            data_used: now,
            counter: 0,
            data: Data::default(),
        }
    }

    /// A session set up in the millisecond of a cut-off gets the next one.
    fn created(&self) -> Timestamp {
        let after = self
            .moment
            .cut_off
            .map(|at| Timestamp::from_millis(at.as_millis() + 1));
        after.map_or(self.moment.now, |after| after.max(self.moment.now))
    }

    /// The user's other live sessions that end by this step, with the cause; `None` if the limit refuses.
    fn giving_way(
        &self,
        slots: &Slots<'_, Entry>,
        own: SessionId,
    ) -> Option<Vec<(usize, EndCause)>> {
        let Some(login) = self.login() else {
            return Some(Vec::new());
        };
        let others: Vec<(usize, &SessionRecord)> = (self.plan.others_at..self.plan.keys.len())
            .filter_map(|at| Some((at, &any_live(slots.get(at), self.moment)?.record)))
            .filter(|(_, record)| record.id != own)
            .collect();
        if login.revoke_others {
            let all = others
                .iter()
                .map(|(at, _)| (*at, EndCause::CredentialChange));
            return Some(all.collect());
        }
        let records: Vec<&SessionRecord> = others.iter().map(|(_, record)| *record).collect();
        let evicted = policy::evictions(&records, self.order.limit)?;
        Some(
            evicted
                .into_iter()
                .map(|at| (others[at].0, EndCause::Evicted))
                .collect(),
        )
    }

    fn write(
        &self,
        slots: &mut Slots<'_, Entry>,
        next: Next,
        giving_way: Vec<(usize, EndCause)>,
    ) -> Result<Established, StoreError> {
        let record = next.row.record.clone();
        // Only a live session leaves its user: whoever merely knows its id moves nothing.
        let left = self.current(slots).ok().map(|row| row.record.id);
        let kept = self.kept(slots, &giving_way, record.id);
        let at = if record.id == self.order.fresh {
            FRESH
        } else {
            self.plan.current.unwrap_or(FRESH)
        };
        // Whatever needs room comes first and is taken back if there is none: all or nothing.
        if let Some(index) = self.plan.index
            && slots.get(index).is_none()
        {
            slots.set(
                index,
                Entry::User(Index::default()),
                self.moment.forgotten(),
            )?;
        }
        let expires = record.expires_at().as_micros();
        slots.set(at, Entry::Session(Box::new(next.row)), expires)?;
        if let (true, Some(current)) = (next.moves, self.plan.current) {
            bury(slots, current, NotLive::Superseded, self.moment);
        }
        let ended = self.end(slots, &giving_way);
        self.leave(slots, left);
        self.enter(slots, kept, &record);
        Ok(Established::Done(Box::new(Done {
            now: self.moment.now,
            record,
            cause: next.cause,
            ended,
        })))
    }

    /// The user's other sessions that go on; expired ones are forgotten here.
    fn kept(
        &self,
        slots: &Slots<'_, Entry>,
        giving_way: &[(usize, EndCause)],
        own: SessionId,
    ) -> Vec<SessionId> {
        (self.plan.others_at..self.plan.keys.len())
            .filter(|at| !giving_way.iter().any(|(gone, _)| gone == at))
            .filter_map(|at| Some(any_live(slots.get(at), self.moment)?.record.id))
            .filter(|id| *id != own)
            .collect()
    }

    fn end(
        &self,
        slots: &mut Slots<'_, Entry>,
        giving_way: &[(usize, EndCause)],
    ) -> Vec<EndedSession> {
        let mut ended = Vec::new();
        for (at, cause) in giving_way {
            if let Some(Entry::Session(row)) = slots.get(*at) {
                ended.push(row.ended(*cause));
            }
            bury(slots, *at, NotLive::Ended(*cause), self.moment);
        }
        ended.sort_by_key(|ended| ended.id);
        ended
    }

    /// Takes the session off the index of the user whose it was.
    fn leave(&self, slots: &mut Slots<'_, Entry>, id: Option<SessionId>) {
        if let Some(left) = self.plan.left
            && let Some(Entry::User(index)) = slots.get_mut(left)
        {
            index.sessions.retain(|own| Some(*own) != id);
        }
    }

    fn enter(
        &self,
        slots: &mut Slots<'_, Entry>,
        mut kept: Vec<SessionId>,
        record: &SessionRecord,
    ) {
        let (Some(at), Some(login)) = (self.plan.index, self.login()) else {
            return;
        };
        kept.push(record.id);
        let expires = slots.expires_at(at).unwrap_or(0);
        if let Some(Entry::User(index)) = slots.get_mut(at) {
            index.sessions = kept;
            if login.revoke_others {
                index.mark = Some(self.moment.now);
            }
        }
        let latest = record.absolute_at.as_micros().max(self.moment.forgotten());
        slots.set_expiry(at, expires.max(latest));
    }
}

/// Leaves a tombstone, which needs no more room than the session did.
pub(super) fn bury(slots: &mut Slots<'_, Entry>, at: usize, why: NotLive, moment: Moment) {
    if let Some(entry) = slots.get_mut(at) {
        *entry = Entry::Grave(why);
    }
    slots.set_expiry(at, moment.forgotten());
}
