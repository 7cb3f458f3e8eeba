//! How jobs come in: new ones, duplicates, replacements, digests.

use super::super::super::room::{Collecting, ITEM, Tally};
use super::super::super::{
    Again, DIGEST_BYTES, DigestWish, Due, EnqueueOutcome, JobId, JobState, NewJob, Rules, Token,
};
use super::{Board, ID, Job, Known, ROW};
use crate::core::{Key, StoreError, StoreErrorKind};
use crate::data::queue::policy::{is_expired, millis};

impl Board {
    pub(crate) fn enqueue(
        &mut self,
        jobs: Vec<NewJob>,
        rules: &Rules,
        now: u64,
    ) -> Result<Vec<EnqueueOutcome>, StoreError> {
        if !self.has_room_for(&jobs, rules, now) {
            self.sweep(rules, now);
            if !self.has_room_for(&jobs, rules, now) {
                return Err(StoreErrorKind::Full.into());
            }
        }
        Ok(jobs
            .into_iter()
            .map(|job| self.add(job, rules, now))
            .collect())
    }

    fn has_room_for(&self, jobs: &[NewJob], rules: &Rules, now: u64) -> bool {
        let mut tally = Tally::default();
        for job in jobs.iter() {
            if tally.repeats(job) {
                continue;
            }
            if let Some(number) = job.once.and_then(|id| self.known(&id, now)) {
                let replaced = self.replaced(number, job);
                if let Some(key) = replaced.and_then(|old| old.digest.clone()) {
                    tally.closes(job, key);
                }
                continue;
            }
            let found = tally.wants(job).and_then(|key| {
                let number = self.digest.get(&(job.recipient.clone(), key.clone()))?;
                let open = self.jobs.get(number)?;
                (!is_expired(open.expires, now)).then_some(Collecting {
                    items: open.items.len(),
                    bytes: open.size,
                })
            });
            tally.add(job, found);
        }
        let of = tally.new_ones();
        let new: u64 = of.values().sum();
        let waiting = (self.jobs.len() - self.dead.len()) as u64;
        new == 0
            || waiting + new <= rules.capacity
                && of
                    .iter()
                    .all(|(recipient, new)| self.seats(recipient) + new <= rules.per_recipient)
    }

    pub(super) fn seats(&self, recipient: &Key) -> u64 {
        self.who
            .get(recipient)
            .map_or(0, |seats| seats.len() as u64)
    }

    fn add(&mut self, new: NewJob, rules: &Rules, now: u64) -> EnqueueOutcome {
        if let Some(number) = new.once.and_then(|id| self.known(&id, now)) {
            return self.again(number, new, rules, now);
        }
        let due = match new.due {
            Due::After(wait) => now + millis(wait),
            Due::At(time) => time.as_millis().max(now),
        };
        let joined = match &new.digest {
            Some(wish) => self.join(&new, wish, rules, now),
            None => None,
        };
        let outcome = match joined {
            Some(number) => EnqueueOutcome::Joined(JobId(number)),
            None => EnqueueOutcome::New(JobId(self.insert(&new, due, rules, now))),
        };
        if let Some(id) = new.once {
            let until = now + millis(rules.remember_for);
            let known = Known {
                job: outcome.id().0,
                until,
                look: until,
            };
            match self.once.insert(id, known) {
                Some(before) => drop(self.remember.remove(&(before.look, id))),
                None => self.bytes += ID,
            }
            self.remember.insert((until, id));
        }
        outcome
    }

    fn insert(&mut self, new: &NewJob, due: u64, rules: &Rules, now: u64) -> u64 {
        self.last += 1;
        let number = self.last;
        let full = new.digest.as_ref().is_some_and(|wish| wish.max <= 1);
        let due = match &new.digest {
            Some(wish) if !full => due + millis(wish.window),
            _ => due,
        };
        let size = new.item.len() + ITEM;
        self.bytes += ROW + size;
        let job = Job {
            recipient: new.recipient.clone(),
            rank: new.priority.rank(),
            state: JobState::Delayed,
            attempts: 0,
            due,
            expires: due + millis(rules.expire_after),
            place: 0,
            token: Token([0; 16]),
            items: vec![new.item.clone()],
            size,
            digest: None,
            error: None,
        };
        self.jobs.insert(number, job);
        if let (Some(wish), false) = (&new.digest, full) {
            let key = (new.recipient.clone(), wish.key.clone());
            self.digest.insert(key, number);
            self.with(number, |job| job.digest = Some(wish.key.clone()));
        }
        self.settle_in(number, rules, now);
        number
    }

    /// Adds the item to an open digest; one without room is closed and due.
    fn join(&mut self, new: &NewJob, wish: &DigestWish, rules: &Rules, now: u64) -> Option<u64> {
        let number = *self
            .digest
            .get(&(new.recipient.clone(), wish.key.clone()))?;
        let size = new.item.len() + ITEM;
        if is_expired(self.jobs.get(&number)?.expires, now) {
            // Dead already, and only not yet noticed: what is new must not be buried with it.
            self.bury(number, "expired", now);
            return None;
        }
        let job = self.jobs.get_mut(&number)?;
        let fits = job.size + size <= DIGEST_BYTES;
        if fits {
            job.items.push(new.item.clone());
            job.size += size;
            self.bytes += size;
        }
        let full = !fits || self.jobs.get(&number)?.items.len() >= wish.max as usize;
        if full {
            self.close_digest(number);
            self.leave(number);
            self.set_due(number, now.min(self.jobs.get(&number)?.due), rules);
            self.settle_in(number, rules, now);
        }
        fits.then_some(number)
    }

    /// A job with a known id comes again.
    fn again(&mut self, number: u64, new: NewJob, rules: &Rules, now: u64) -> EnqueueOutcome {
        if self.replaced(number, &new).is_none() {
            return EnqueueOutcome::Duplicate(JobId(number));
        }
        let due = match new.due {
            Due::After(wait) => now + millis(wait),
            Due::At(time) => time.as_millis().max(now),
        };
        self.close_digest(number);
        self.leave(number);
        let size = new.item.len() + ITEM;
        let before = self.with(number, |job| {
            job.rank = new.priority.rank();
            job.items = vec![new.item];
            std::mem::replace(&mut job.size, size)
        });
        self.bytes = self.bytes + size - before.unwrap_or(size);
        self.set_due(number, due, rules);
        self.settle_in(number, rules, now);
        EnqueueOutcome::Replaced(JobId(number))
    }

    /// The job whose place `new` takes: its recipient's own, never leased, and with nobody else's item.
    fn replaced(&self, number: u64, new: &NewJob) -> Option<&Job> {
        let job = self.jobs.get(&number)?;
        let waits = matches!(job.state, JobState::Ready | JobState::Delayed) && job.attempts == 0;
        let is_own = job.items.len() == 1 && job.recipient == new.recipient;
        (new.again == Again::Replace && waits && is_own).then_some(job)
    }

    /// The job of an id, while it lives and for as long as the id is remembered.
    fn known(&self, id: &[u8; 32], now: u64) -> Option<u64> {
        let known = self.once.get(id)?;
        let job = self.jobs.get(&known.job);
        // One that is over is dead, also where nobody has noticed yet, but for one that somebody may still be at.
        let lives = job.is_some_and(|job| match job.state {
            JobState::Dead => false,
            JobState::Leased => true,
            JobState::Ready | JobState::Delayed => !is_expired(job.expires, now),
        });
        (lives || now < known.until).then_some(known.job)
    }
}
