//! One queue's jobs and their orders: every step of the store, without locks, clocks or I/O.

mod enqueue;
mod lease;
mod listing;
mod sweep;

use std::collections::{BTreeSet, HashMap};

use bytes::Bytes;

use super::super::values::kept_error;
use super::super::{Depth, JobId, JobState, Rules, Settle, Settled, Token};
use crate::core::{Key, StoreError, StoreErrorKind};
use crate::data::queue::policy::{millis, score};

/// About what a job takes beside its items.
pub(super) const ROW: usize = 512 + ID;
/// About what a remembered id takes.
const ID: usize = 160;

/// One queue. Times are UTC milliseconds.
#[derive(Default)]
pub(super) struct Board {
    last: u64,
    bytes: usize,
    jobs: HashMap<u64, Job>,
    ready: BTreeSet<(u64, u64)>,
    delayed: BTreeSet<(u64, u64)>,
    leased: BTreeSet<(u64, u64)>,
    /// When what is not dead will be; of a leased job, when its lease ends, if that is later.
    expiry: BTreeSet<(u64, u64)>,
    dead: BTreeSet<(u64, u64)>,
    who: HashMap<Key, BTreeSet<Seat>>,
    once: HashMap<[u8; 32], Known>,
    /// When each of these ids is looked at.
    remember: BTreeSet<(u64, [u8; 32])>,
    digest: HashMap<(Key, Key), u64>,
}

/// An id that was given once.
struct Known {
    job: u64,
    until: u64,
    /// When it is looked at whether it is over.
    look: u64,
}

/// A recipient's job in the order it is shown: leased, ready, delayed.
type Seat = (u8, u8, u64, u64);

struct Job {
    recipient: Key,
    rank: u8,
    state: JobState,
    attempts: u32,
    due: u64,
    expires: u64,
    /// Its place in the order of its state: score, due time, end of lease, time of death.
    place: u64,
    token: Token,
    items: Vec<Bytes>,
    size: usize,
    digest: Option<Key>,
    error: Option<String>,
}

/// What an idle worker waits for: something ready, else the first due time.
#[derive(Clone, Copy)]
pub(super) struct Alarm {
    ready: bool,
    next: Option<u64>,
}

impl Alarm {
    /// Says whether idle workers must be told: they went to sleep by `before`.
    pub(super) fn is_before(self, before: Self) -> bool {
        let sooner = match (self.next, before.next) {
            (Some(now), Some(before)) => now < before,
            (now, None) => now.is_some(),
            (None, _) => false,
        };
        !before.ready && (self.ready || sooner)
    }
}

impl Board {
    pub(super) const fn bytes(&self) -> usize {
        size_of::<Self>() + self.bytes
    }

    pub(super) fn alarm(&self) -> Alarm {
        Alarm {
            ready: !self.ready.is_empty(),
            next: self.delayed.first().map(|(due, _)| *due),
        }
    }

    pub(super) fn ack(&mut self, number: JobId, token: Token, now: u64) -> Settled {
        let held = self.held(number, token, now);
        if held == Settled::Done {
            self.remove(number.0);
        }
        held
    }

    pub(super) fn extend(&mut self, number: JobId, token: Token, until: u64, now: u64) -> Settled {
        let held = self.held(number, token, now);
        if held == Settled::Done {
            self.leave(number.0);
            self.enter(number.0, JobState::Leased, until);
        }
        held
    }

    pub(super) fn nack(
        &mut self,
        number: JobId,
        token: Token,
        how: Settle,
        rules: &Rules,
        now: u64,
    ) -> Settled {
        let held = self.held(number, token, now);
        if held != Settled::Done {
            return held;
        }
        let number = number.0;
        let tries = self.jobs.get(&number).map_or(0, |job| job.attempts);
        let (due, error) = match how {
            Settle::After(wait, error) => (Some(now + millis(wait)), error),
            Settle::At(time, error) => (Some(time.as_millis().max(now)), error),
            Settle::Dead(error) => (None, error),
            Settle::GiveBack => {
                self.leave(number);
                self.with(number, |job| job.attempts -= 1);
                self.settle_in(number, rules, now);
                return Settled::Done;
            }
        };
        self.with(number, |job| job.error = Some(kept_error(error)));
        match due {
            Some(due) if tries < rules.attempts => {
                self.leave(number);
                self.set_due(number, due, rules);
                self.settle_in(number, rules, now);
                Settled::Done
            }
            _ => {
                self.bury(number, "", now);
                Settled::Died
            }
        }
    }

    /// Says whether a job is leased under `token`.
    fn held(&self, number: JobId, token: Token, now: u64) -> Settled {
        match self.jobs.get(&number.0) {
            None => Settled::Gone,
            Some(job) if job.state == JobState::Leased && job.token == token && now < job.place => {
                Settled::Done
            }
            Some(_) => Settled::Lost,
        }
    }

    pub(super) fn cancel(&mut self, number: JobId, recipient: &Key) -> bool {
        let waits = self.jobs.get(&number.0).is_some_and(|job| {
            job.recipient == *recipient && matches!(job.state, JobState::Ready | JobState::Delayed)
        });
        if waits {
            self.remove(number.0);
        }
        waits
    }

    pub(super) fn revive(
        &mut self,
        mut ids: Vec<JobId>,
        rules: &Rules,
        now: u64,
    ) -> Result<Vec<JobId>, StoreError> {
        let mut seen = BTreeSet::new();
        ids.retain(|id| {
            let job = self.jobs.get(&id.0);
            job.is_some_and(|job| job.state == JobState::Dead) && seen.insert(*id)
        });
        let waiting = (self.jobs.len() - self.dead.len() + ids.len()) as u64;
        let mut of: HashMap<&Key, u64> = HashMap::new();
        for id in &ids {
            if let Some(job) = self.jobs.get(&id.0) {
                *of.entry(&job.recipient).or_default() += 1;
            }
        }
        let crowded =
            |(recipient, new): (&&Key, &u64)| self.seats(recipient) + new > rules.per_recipient;
        if waiting > rules.capacity || of.iter().any(crowded) {
            return Err(StoreErrorKind::Full.into());
        }
        for id in &ids {
            self.leave(id.0);
            self.with(id.0, |job| job.attempts = 0);
            self.set_due(id.0, now, rules);
            self.settle_in(id.0, rules, now);
        }
        Ok(ids)
    }

    /// Changes when a job is due, and so when it expires; it stands in no order at the moment.
    fn set_due(&mut self, number: u64, due: u64, rules: &Rules) {
        let Some(job) = self.jobs.get_mut(&number) else {
            return;
        };
        self.expiry.remove(&(job.expires, number));
        job.due = due;
        job.expires = due + millis(rules.expire_after);
    }

    /// Puts a job that stands in no order where its due time says.
    fn settle_in(&mut self, number: u64, rules: &Rules, now: u64) {
        let Some(job) = self.jobs.get(&number) else {
            return;
        };
        let (rank, due) = (job.rank, job.due);
        self.expiry.insert((job.expires, number));
        if due <= now {
            self.enter(
                number,
                JobState::Ready,
                score(rank, due, millis(rules.aging)),
            );
        } else {
            self.enter(number, JobState::Delayed, due);
        }
    }

    fn enter(&mut self, number: u64, state: JobState, place: u64) {
        let Some(job) = self.jobs.get_mut(&number) else {
            return;
        };
        (job.state, job.place) = (state, place);
        let (recipient, seat) = (job.recipient.clone(), seat(number, job));
        self.order(state).insert((place, number));
        if state != JobState::Dead {
            self.who.entry(recipient).or_default().insert(seat);
        }
    }

    fn leave(&mut self, number: u64) {
        let Some(job) = self.jobs.get(&number) else {
            return;
        };
        let (state, place, seat) = (job.state, job.place, seat(number, job));
        if let Some(seats) = self.who.get_mut(&job.recipient) {
            seats.remove(&seat);
            if seats.is_empty() {
                self.who.remove(&job.recipient);
            }
        }
        self.order(state).remove(&(place, number));
    }

    /// Forgets a job for good.
    fn remove(&mut self, number: u64) {
        self.leave(number);
        self.close_digest(number);
        if let Some(job) = self.jobs.remove(&number) {
            self.expiry.remove(&(job.expires, number));
            self.bytes -= ROW + job.size;
        }
    }

    fn close_digest(&mut self, number: u64) {
        let Some(job) = self.jobs.get_mut(&number) else {
            return;
        };
        if let Some(key) = job.digest.take() {
            self.digest.remove(&(job.recipient.clone(), key));
        }
    }

    fn with<R>(&mut self, number: u64, change: impl FnOnce(&mut Job) -> R) -> Option<R> {
        self.jobs.get_mut(&number).map(change)
    }

    fn order(&mut self, state: JobState) -> &mut BTreeSet<(u64, u64)> {
        match state {
            JobState::Leased => &mut self.leased,
            JobState::Ready => &mut self.ready,
            JobState::Delayed => &mut self.delayed,
            JobState::Dead => &mut self.dead,
        }
    }

    fn sizes(&self) -> Depth {
        Depth {
            ready: self.ready.len() as u64,
            delayed: self.delayed.len() as u64,
            leased: self.leased.len() as u64,
            dead: self.dead.len() as u64,
            oldest: None,
        }
    }
}

fn seat(number: u64, job: &Job) -> Seat {
    (state_digit(job.state), job.rank, job.place, number)
}

/// The order in which a recipient's jobs are shown.
const fn state_digit(state: JobState) -> u8 {
    match state {
        JobState::Leased => 0,
        JobState::Ready => 1,
        JobState::Delayed => 2,
        JobState::Dead => 3,
    }
}
