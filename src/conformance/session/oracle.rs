//! The oracle: every session that ever was, in a flat list, asked by walking through it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::core::{Principal, Timestamp};
use crate::session::store::{
    DataEntry, Done, EndCause, EndedSession, Establish, EstablishCause, Established, Identity,
    LimitRule, Listed, Live, Loaded, NotLive, Operation, Otherwise, Part, Patch, Patched, Read,
    Revoked, Roles, Seen, SessionId, SessionLimit, SessionRecord, SessionRef, Sighting, Target,
    UserId, Value, Verifier, Whose,
};

#[derive(Clone)]
pub(super) struct Fact {
    record: SessionRecord,
    secrets: Vec<(Verifier, u64)>,
    extended: u64,
    used: u64,
    writes: u64,
    values: BTreeMap<String, (u64, Value)>,
    /// When it was ended or moved, and what it says since.
    over: Option<(u64, NotLive)>,
}

#[derive(Clone, Default)]
pub(super) struct Oracle {
    pub(super) now: u64,
    facts: Vec<Fact>,
    marks: BTreeMap<UserId, u64>,
    cut_off: Option<u64>,
}

const REMEMBERED: u64 = 60_000;
const MOST: i64 = 9_007_199_254_740_991;

fn ms(duration: Duration) -> u64 {
    duration.as_millis() as u64
}

fn at(millis: u64) -> Timestamp {
    Timestamp::from_millis(millis)
}

impl Fact {
    fn end(&self) -> u64 {
        let record = &self.record;
        (record.last_activity.as_millis() + ms(record.idle)).min(record.absolute_at.as_millis())
    }

    fn see(&mut self, sighting: &Sighting) {
        let seen = sighting.seen();
        if seen.device.is_some() {
            self.record.seen.device = seen.device;
        }
        if seen.ip.is_some() {
            self.record.seen.ip = seen.ip;
        }
    }

    fn renew(&mut self, sighting: &Sighting, now: u64) -> Option<Seen> {
        let age = now.saturating_sub(self.record.last_activity.as_millis());
        if age * 10 <= ms(self.record.idle).min(600_000) {
            return None;
        }
        let before = self.record.seen;
        self.record.last_activity = at(now);
        self.see(sighting);
        Some(before)
    }

    fn forget_old_values(&mut self, now: u64) {
        if self.used + self.extended <= now {
            self.values.clear();
        }
    }

    fn user(&self) -> Option<UserId> {
        self.record
            .principal
            .as_ref()
            .and_then(|principal| UserId::try_new(principal.id()))
    }

    fn ended(&self, cause: EndCause) -> EndedSession {
        EndedSession {
            id: self.record.id,
            user: self.user(),
            cause,
        }
    }

    fn write(&mut self, patch: &Patch, now: u64) -> Result<(), Patched> {
        if !patch.clear && patch.operations.is_empty() {
            return Ok(());
        }
        let mut conflict = None;
        let mut current = Vec::new();
        for (name, operation) in &patch.operations {
            if let Operation::SetIf(wanted, _) | Operation::RemoveIf(wanted) = operation {
                let found = self.values.get(&**name);
                if found.map_or(0, |found| found.0) != *wanted {
                    conflict = Some(());
                }
                if let Some((version, value)) = found {
                    current.push(DataEntry {
                        name: Arc::from(&**name),
                        version: *version,
                        value: value.clone(),
                    });
                }
            }
        }
        if conflict.is_some() {
            return Err(Patched::Conflict(current));
        }
        let size = |values: &BTreeMap<String, (u64, Value)>| -> usize {
            values
                .iter()
                .map(|(name, (_, value))| name.len() + value.json.len())
                .sum()
        };
        let mut next = if patch.clear {
            BTreeMap::new()
        } else {
            self.values.clone()
        };
        for (name, operation) in &patch.operations {
            let version = self.writes + 1;
            match operation {
                Operation::Set(value) | Operation::SetIf(_, value) => {
                    next.insert(name.to_string(), (version, value.clone()));
                }
                Operation::Remove | Operation::RemoveIf(_) => drop(next.remove(&**name)),
                Operation::Increment(by) => {
                    let before = match next.get(&**name) {
                        Some((_, value)) => serde_json::from_slice::<i64>(&value.json)
                            .map_err(|_| Patched::NotANumber)?,
                        None => 0,
                    };
                    let sum = i128::from(before) + i128::from(*by);
                    let sum = sum.clamp(i128::from(-MOST), i128::from(MOST));
                    let json = Bytes::from(sum.to_string());
                    next.insert(name.to_string(), (version, Value { format: 0, json }));
                }
            }
        }
        if size(&next) > patch.limit && size(&next) > size(&self.values) {
            return Err(Patched::TooLarge);
        }
        (self.values, self.writes, self.used) = (next, self.writes + 1, now);
        Ok(())
    }
}

impl Oracle {
    /// Moments at which something changes by itself.
    pub(super) fn deadlines(&self) -> Vec<u64> {
        let mut all: Vec<u64> = self
            .marks
            .values()
            .map(|mark| mark + REMEMBERED + 1)
            .collect();
        for fact in &self.facts {
            all.extend([fact.end(), fact.used + fact.extended]);
            all.extend(fact.over.iter().map(|(when, _)| when + REMEMBERED + 1));
            all.extend(fact.secrets.iter().map(|(_, until)| until + REMEMBERED + 1));
        }
        all.retain(|deadline| *deadline > self.now && *deadline < self.now + 200_000);
        all
    }

    fn end_of(&self, fact: &Fact) -> Result<(), NotLive> {
        if let Some((when, why)) = fact.over {
            return Err(if self.now - when <= REMEMBERED {
                why
            } else {
                NotLive::Missing
            });
        }
        if fact.end() <= self.now {
            return Err(NotLive::Missing);
        }
        match self.cut_off {
            Some(cut_off) if fact.record.created.as_millis() <= cut_off => {
                Err(NotLive::Ended(EndCause::Everyone))
            }
            _ => Ok(()),
        }
    }

    fn find(&self, wanted: SessionRef) -> Result<usize, NotLive> {
        let found = self
            .facts
            .iter()
            .rposition(|fact| fact.record.id == wanted.id);
        let index = found.ok_or(NotLive::Missing)?;
        self.end_of(&self.facts[index])?;
        let secrets = &self.facts[index].secrets;
        match secrets
            .iter()
            .rev()
            .position(|(verifier, _)| *verifier == wanted.verifier)
        {
            Some(0) => Ok(index),
            Some(1) if self.now - secrets[secrets.len() - 2].1 <= REMEMBERED => {
                Err(NotLive::Superseded)
            }
            Some(1) => Err(NotLive::Replayed),
            _ => Err(NotLive::WrongSecret),
        }
    }

    fn family(&self, user: &UserId) -> Vec<usize> {
        let is_own = |fact: &Fact| fact.user().as_ref() == Some(user) && self.end_of(fact).is_ok();
        (0..self.facts.len())
            .filter(|index| is_own(&self.facts[*index]))
            .collect()
    }

    fn asking(&self, whose: &Whose) -> Result<Option<UserId>, NotLive> {
        match whose {
            Whose::User(user) => Ok(Some(user.clone())),
            Whose::Session(wanted) => Ok(self.facts[self.find(*wanted)?].user()),
        }
    }

    pub(super) fn load(&mut self, wanted: SessionRef, read: &Read) -> Loaded {
        let index = match self.find(wanted) {
            Ok(index) => index,
            Err(why) => return Loaded::NotLive(why),
        };
        let now = self.now;
        let fact = &mut self.facts[index];
        fact.forget_old_values(now);
        let mut renewed = None;
        if let Some(sighting) = &read.renew {
            let age = now.saturating_sub(fact.used);
            if read.part == Part::Whole
                && !fact.values.is_empty()
                && age * 10 > fact.extended.min(600_000)
            {
                fact.used = now;
            }
            renewed = fact.renew(sighting, now);
        }
        let entries = fact
            .values
            .iter()
            .map(|(name, (version, value))| DataEntry {
                name: name.as_str().into(),
                version: *version,
                value: value.clone(),
            });
        let data = (read.part == Part::Whole).then(|| entries.collect());
        Loaded::Live(Box::new(Live {
            now: at(now),
            record: fact.record.clone(),
            data,
            renewed,
        }))
    }

    pub(super) fn patch(&mut self, wanted: SessionRef, patch: &Patch) -> Patched {
        let index = match self.find(wanted) {
            Ok(index) => index,
            Err(why) => return Patched::NotLive(why),
        };
        let (now, fact) = (self.now, &mut self.facts[index]);
        fact.forget_old_values(now);
        if let Err(refused) = fact.write(patch, now) {
            return refused;
        }
        let renewed = fact.renew(&patch.sighting, now);
        Patched::Applied {
            version: fact.writes,
            renewed,
        }
    }

    pub(super) fn establish(&mut self, order: &Establish) -> Established {
        let current = order
            .current
            .map_or(Err(NotLive::Missing), |current| self.find(current));
        if let (Err(why), Otherwise::Refuse) = (current, order.otherwise) {
            return Established::NotLive(why);
        }
        let login = match &order.identity {
            Identity::Set(login) => Some(&**login),
            Identity::Keep => None,
        };
        if let Some(login) = login {
            let began = self.now.saturating_sub(ms(order.age));
            let mark = self
                .marks
                .get(&login.user)
                .filter(|mark| self.now - **mark <= REMEMBERED);
            if mark.is_some_and(|mark| began <= *mark)
                || self.cut_off.is_some_and(|cut| began <= cut)
            {
                return Established::Overtaken;
            }
        }
        let (mut next, cause, moved_from) = self.next(order, current.ok());
        let is_new = next.record.id == order.fresh;
        if is_new
            && self
                .facts
                .iter()
                .any(|fact| fact.record.id == order.fresh && self.is_remembered(fact))
        {
            return Established::Taken;
        }
        let mut others = login.map_or_else(Vec::new, |login| self.family(&login.user));
        others.retain(|index| self.facts[*index].record.id != next.record.id);
        let ends = login.is_some_and(|login| login.revoke_others);
        let Some(gone) = self.who_gives_way(others, order.limit, ends, login.is_some()) else {
            return Established::Limit;
        };
        match next.write(&order.patch, self.now) {
            Ok(()) => {}
            Err(Patched::NotANumber) => return Established::NotANumber,
            Err(_) => return Established::TooLarge,
        }
        let cause_of_end = if ends {
            EndCause::CredentialChange
        } else {
            EndCause::Evicted
        };
        let ended = self.end(&gone, cause_of_end);
        if let Some(index) = moved_from {
            self.facts[index].over = Some((self.now, NotLive::Superseded));
        }
        match current {
            Ok(index) if moved_from.is_none() => self.facts[index] = next.clone(),
            _ => self.facts.push(next.clone()),
        }
        if let (true, Some(login)) = (ends, login) {
            self.marks.insert(login.user.clone(), self.now);
        }
        Established::Done(Box::new(Done {
            now: at(self.now),
            record: next.record,
            cause,
            ended,
        }))
    }

    /// An id is taken as long as anything is known of it.
    fn is_remembered(&self, fact: &Fact) -> bool {
        match fact.over {
            Some((when, _)) => self.now - when <= REMEMBERED,
            None => fact.end() > self.now,
        }
    }

    fn next(
        &self,
        order: &Establish,
        current: Option<usize>,
    ) -> (Fact, EstablishCause, Option<usize>) {
        let now = self.now;
        let created = self.cut_off.map_or(now, |cut_off| now.max(cut_off + 1));
        let mut next = match current {
            Some(index) => self.facts[index].clone(),
            None => Fact {
                record: SessionRecord {
                    id: order.fresh,
                    principal: None,
                    stamp: None,
                    seen: order.patch.sighting.seen(),
                    generation: 0,
                    created: at(created),
                    authenticated: None,
                    last_activity: at(now),
                    absolute_at: at(now + ms(order.lifetimes.absolute())),
                    idle: order.lifetimes.idle(),
                    remembered: false,
                },
                secrets: Vec::new(),
                extended: ms(order.extended),
                used: now,
                writes: 0,
                values: BTreeMap::new(),
                over: None,
            },
        };
        if current.is_some() {
            next.forget_old_values(now);
            next.record.generation += 1;
        }
        let Identity::Set(login) = &order.identity else {
            if current.is_some() {
                next.renew(&order.patch.sighting, now);
            }
            change_secret(&mut next, order.verifier, now);
            let cause = if current.is_some() {
                EstablishCause::Rotated
            } else {
                EstablishCause::Created
            };
            return (next, cause, None);
        };
        let before = next.user();
        let moves = current.is_some() && next.record.id.home() != order.fresh.home();
        if moves {
            next.record.id = order.fresh;
            next.secrets.clear();
        }
        change_secret(&mut next, order.verifier, now);
        let cause = match before {
            Some(user) if user == login.user => EstablishCause::Again,
            Some(_) => EstablishCause::Switched,
            None => EstablishCause::First,
        };
        if cause == EstablishCause::Switched {
            next.values.clear();
            next.record.created = at(created);
            next.record.seen = Seen::default();
        }
        next.see(&order.patch.sighting);
        let record = &mut next.record;
        record.principal = Some(Principal::new(login.user.as_str()).roles(login.roles.iter()));
        record.stamp = login.stamp;
        record.remembered = login.remembered;
        (record.authenticated, record.last_activity) = (Some(at(now)), at(now));
        record.absolute_at = at(now + ms(order.lifetimes.absolute()));
        record.idle = order.lifetimes.idle();
        next.extended = ms(order.extended);
        (next, cause, current.filter(|_| moves))
    }

    fn who_gives_way(
        &self,
        mut others: Vec<usize>,
        limit: SessionLimit,
        all: bool,
        counts: bool,
    ) -> Option<Vec<usize>> {
        if all {
            return Some(others);
        }
        let most = usize::from(limit.most());
        if !counts || others.len() < most {
            return Some(Vec::new());
        }
        if limit.rule() == LimitRule::Reject {
            return None;
        }
        let key = |index: &usize| {
            let record = &self.facts[*index].record;
            let first = if limit.rule() == LimitRule::EvictOldest {
                record.created
            } else {
                record.last_activity
            };
            (first, record.id.to_string())
        };
        others.sort_by_key(key);
        others.truncate(others.len() + 1 - most);
        Some(others)
    }

    fn end(&mut self, which: &[usize], cause: EndCause) -> Vec<EndedSession> {
        let mut ended: Vec<EndedSession> = which
            .iter()
            .map(|index| self.facts[*index].ended(cause))
            .collect();
        for index in which {
            self.facts[*index].over = Some((self.now, NotLive::Ended(cause)));
        }
        ended.sort_by_key(|ended| ended.id);
        ended
    }

    pub(super) fn list(&self, of: &Whose) -> Listed {
        let user = match self.asking(of) {
            Ok(Some(user)) => user,
            Ok(None) => return Listed::NoUser,
            Err(why) => return Listed::NotLive(why),
        };
        let family = self.family(&user);
        let mut records: Vec<SessionRecord> = family
            .iter()
            .map(|index| self.facts[*index].record.clone())
            .collect();
        records.sort_by(|a, b| b.last_activity.cmp(&a.last_activity).then(a.id.cmp(&b.id)));
        Listed::Sessions(records)
    }

    pub(super) fn assign_roles(&mut self, user: &UserId, roles: &Roles) -> u64 {
        self.marks.insert(user.clone(), self.now);
        let family = self.family(user);
        for index in &family {
            self.facts[*index].record.principal =
                Some(Principal::new(user.as_str()).roles(roles.iter()));
        }
        family.len() as u64
    }

    pub(super) fn revoke(&mut self, target: &Target) -> Revoked {
        let whose = match target {
            Target::Everyone => {
                self.cut_off = Some(self.now);
                return Revoked::Done(Vec::new());
            }
            Target::Own(own, cause) => {
                return match self.find(*own) {
                    Ok(index) => Revoked::Done(self.end(&[index], *cause)),
                    Err(why) => Revoked::NotLive(why),
                };
            }
            Target::One(whose, _) | Target::All(whose) => whose.clone(),
            Target::Others(keep) => Whose::Session(*keep),
        };
        let user = match self.asking(&whose) {
            Ok(Some(user)) => user,
            Ok(None) => return Revoked::NoUser,
            Err(why) => return Revoked::NotLive(why),
        };
        let is_meant = |id: SessionId| match target {
            Target::One(_, one) => id == *one,
            Target::Others(keep) => id != keep.id,
            _ => true,
        };
        let gone: Vec<usize> = self
            .family(&user)
            .into_iter()
            .filter(|index| is_meant(self.facts[*index].record.id))
            .collect();
        if !matches!(target, Target::One(..)) {
            self.marks.insert(user, self.now);
        }
        Revoked::Done(self.end(&gone, EndCause::Revoked))
    }
}

fn change_secret(fact: &mut Fact, verifier: Verifier, now: u64) {
    if let Some(last) = fact.secrets.last_mut() {
        last.1 = now;
    }
    fact.secrets.push((verifier, u64::MAX / 2));
}
