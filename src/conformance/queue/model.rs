//! Random steps of three workers, held against a list of jobs that is sorted anew for every question.

mod steps;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::{digest, job};
use crate::conformance::Dice;
use crate::core::{Clock, IntoKey, Key, ManualClock, StoreErrorKind};
use crate::data::queue::store::{
    Again, DigestWish, Due, EnqueueOutcome, JobId, NewJob, Priority, QueueStore, Rules,
};

/// Lets three workers and their customers do anything in random order while the clock jumps. After every step the store
/// must have said what a sorted list says. One history in five is of large calls.
///
/// # Panics
/// When the store says anything else.
pub async fn histories(store: Arc<dyn QueueStore>, clock: &ManualClock, seed: u64, steps: usize) {
    let mut dice = Dice::new(seed);
    let large = seed % 5 == 4;
    let rules = Rules {
        capacity: if large { 500 } else { 40 },
        per_recipient: if large { 220 } else { 15 },
        attempts: 3,
        expire_after: Duration::from_millis(3_000),
        remember_for: Duration::from_millis(2_000),
        // With aging, of many that expired some are found later.
        aging: Duration::from_millis([0, if large { 0 } else { 700 }][dice.below(2) as usize]),
    };
    let mut model = Model {
        store,
        clock: clock.clone(),
        name: Arc::from(format!("model.{seed}")),
        rules,
        jobs: Vec::new(),
        once: HashMap::new(),
        last: 0,
        tokens: 0,
        large,
    };
    for step in 0..steps {
        model
            .step(&mut dice, &format!("seed {seed}, step {step}"))
            .await;
    }
}

struct Model {
    store: Arc<dyn QueueStore>,
    clock: ManualClock,
    name: Arc<str>,
    rules: Rules,
    jobs: Vec<Job>,
    once: HashMap<[u8; 32], Given>,
    last: u64,
    tokens: u8,
    large: bool,
}

/// An id that was given once.
#[derive(Clone, Copy)]
struct Given {
    job: u64,
    until: u64,
}

#[derive(Clone, Debug)]
struct Job {
    id: u64,
    to: Key,
    rank: u8,
    due: u64,
    expires: u64,
    attempts: u32,
    items: Vec<Bytes>,
    state: State,
    collects: Option<Key>,
    error: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    Leased { token: u8, until: u64 },
    Dead { at: u64 },
}

fn ms(duration: Duration) -> u64 {
    duration.as_millis() as u64
}

#[allow(clippy::unwrap_used)]
impl Model {
    fn now(&self) -> u64 {
        self.clock.now_micros() / 1_000
    }

    fn score(&self, job: &Job) -> (u64, u64, u64) {
        match ms(self.rules.aging) {
            0 => (u64::from(job.rank), job.due, job.id),
            aging => (0, job.due + u64::from(job.rank) * aging, job.id),
        }
    }

    fn find(&mut self, id: u64) -> Option<&mut Job> {
        self.jobs.iter_mut().find(|job| job.id == id)
    }

    fn sweep(&mut self, now: u64) {
        let most = self.rules.attempts;
        for job in &mut self.jobs {
            let bury = |job: &mut Job, why: &str| {
                job.state = State::Dead { at: now };
                job.collects = None;
                job.error = Some(why.to_owned());
            };
            match job.state {
                State::Leased { until, .. } if until <= now => {
                    if job.attempts >= most {
                        bury(job, "the lease of the last attempt ended");
                    } else if job.expires <= now {
                        bury(job, "expired");
                    } else {
                        job.state = State::Waiting;
                    }
                }
                State::Waiting if job.expires <= now => bury(job, "expired"),
                _ => {}
            }
        }
    }

    async fn step(&mut self, dice: &mut Dice, at: &str) {
        match dice.below(12) {
            0..=3 => self.enqueue(dice, at).await,
            4..=5 => self.lease(dice, at).await,
            6..=7 => self.settle(dice, at).await,
            8 => self.look(at).await,
            9 => self.cancel_or_revive(dice, at).await,
            _ => {
                let wait = [1, 50, 500, 2_000][dice.below(4) as usize];
                self.clock.advance(Duration::from_millis(dice.below(wait)));
                if self.large {
                    self.settle_all().await;
                }
            }
        }
    }

    /// A look moves few: so many that all is where its time says.
    async fn settle_all(&mut self) {
        for _ in 0..=self.jobs.len() / 10 {
            let counted = self.store.count(&self.name, None, &self.rules);
            counted.await.unwrap();
        }
        self.sweep(self.now());
    }

    /// More jobs than are put in their places together, of which it is known at once what becomes of them.
    fn many(dice: &mut Dice) -> Vec<NewJob> {
        let first = dice.below(400) as u16;
        let of = |dice: &mut Dice, number: u16| {
            let mut new = Self::wish(dice);
            (new.digest, new.once, new.again) = (None, None, Again::Keep);
            if dice.below(3) == 0 {
                let mut id = [77; 32];
                id[..2].copy_from_slice(&(first + number).to_be_bytes());
                new.once = Some(id);
            }
            new
        };
        let count = 60 + dice.below(120) as u16;
        (0..count).map(|number| of(dice, number)).collect()
    }

    fn wish(dice: &mut Dice) -> NewJob {
        let (to, item) = (
            ["a", "b"][dice.below(2) as usize],
            dice.below(1_000).to_string(),
        );
        let mut new = match dice.below(3) {
            0 => NewJob {
                digest: Some(DigestWish {
                    key: "d".into_key(),
                    window: Duration::from_millis(300),
                    max: 3,
                }),
                ..digest(to, &item, 3)
            },
            _ => job(to, &item),
        };
        new.priority = Priority::of_rank(dice.below(3) as u8);
        if dice.below(3) == 0 {
            new.due = Due::After(Duration::from_millis(dice.below(800)));
        }
        if dice.below(3) == 0 {
            new.once = Some([dice.below(6) as u8; 32]);
            new.again = [Again::Keep, Again::Replace][dice.below(2) as usize];
        }
        new
    }

    async fn enqueue(&mut self, dice: &mut Dice, at: &str) {
        let now = self.now();
        let most = [4, 4, 4, 14][dice.below(4) as usize];
        let jobs: Vec<_> = match self.large && dice.below(4) == 0 {
            true => Self::many(dice),
            false => (0..=dice.below(most)).map(|_| Self::wish(dice)).collect(),
        };
        let answer = self
            .store
            .enqueue(&self.name, jobs.clone(), &self.rules)
            .await;
        if !self.has_room(&jobs, now) {
            self.sweep(now);
            if !self.has_room(&jobs, now) {
                assert_eq!(answer.unwrap_err().kind(), StoreErrorKind::Full, "{at}");
                return;
            }
        }
        let answer = answer.unwrap();
        let told = jobs.iter().zip(&answer);
        let expected: Vec<_> = told.map(|(job, told)| self.add(job, *told, now)).collect();
        assert_eq!(answer, expected, "{at}");
    }

    fn known(&self, id: &[u8; 32], now: u64) -> Option<u64> {
        let given = self.once.get(id)?;
        let job = self.jobs.iter().find(|job| job.id == given.job);
        let lives = job.is_some_and(|job| match job.state {
            State::Waiting => now < job.expires,
            State::Leased { .. } => true,
            State::Dead { .. } => false,
        });
        (lives || now < given.until).then_some(given.job)
    }

    /// Whose jobs would be new: found by adding all of them to a copy.
    fn new_ones(&self, jobs: &[NewJob], now: u64) -> Vec<Key> {
        let mut copy = Self {
            store: Arc::clone(&self.store),
            clock: self.clock.clone(),
            name: Arc::clone(&self.name),
            jobs: self.jobs.clone(),
            once: self.once.clone(),
            ..*self
        };
        for job in jobs {
            let next = EnqueueOutcome::New(JobId(copy.last + 1));
            copy.add(job, next, now);
        }
        let new = copy.jobs.into_iter().filter(|job| job.id > self.last);
        new.map(|job| job.to).collect()
    }

    fn has_room(&self, jobs: &[NewJob], now: u64) -> bool {
        let new = self.new_ones(jobs, now);
        let live = |to: Option<&Key>| {
            let live = self
                .jobs
                .iter()
                .filter(|job| !matches!(job.state, State::Dead { .. }));
            live.filter(|job| to.is_none_or(|to| job.to == *to)).count()
        };
        let each = |to: &Key| {
            let more = new.iter().filter(|new| *new == to).count();
            (live(Some(to)) + more) as u64 <= self.rules.per_recipient
        };
        new.is_empty()
            || (live(None) + new.len()) as u64 <= self.rules.capacity && new.iter().all(each)
    }

    /// What must become of `new`. Of a number only that it rises is known before.
    fn add(&mut self, new: &NewJob, told: EnqueueOutcome, now: u64) -> EnqueueOutcome {
        let mut due = match new.due {
            Due::After(wait) => now + ms(wait),
            Due::At(time) => time.as_millis().max(now),
        };
        let expire = ms(self.rules.expire_after);
        if let Some(number) = new.once.and_then(|id| self.known(&id, now)) {
            if let Some(job) = self.find(number)
                && (new.again, job.state, job.attempts) == (Again::Replace, State::Waiting, 0)
                && job.items.len() == 1
                && job.to == new.recipient
            {
                job.items = vec![new.item.clone()];
                job.rank = new.priority.rank();
                (job.due, job.expires) = (due, due + expire);
                job.collects = None;
                return EnqueueOutcome::Replaced(JobId(number));
            }
            return EnqueueOutcome::Duplicate(JobId(number));
        }
        let key = new.digest.as_ref().map(|wish| wish.key.clone());
        let open = self
            .jobs
            .iter_mut()
            .find(|job| key.is_some() && job.collects == key && job.to == new.recipient);
        let outcome = match (open, &new.digest) {
            (Some(job), Some(wish)) if now < job.expires => {
                job.items.push(new.item.clone());
                if job.items.len() >= wish.max as usize {
                    job.collects = None;
                    job.due = job.due.min(now);
                    job.expires = job.due + expire;
                }
                EnqueueOutcome::Joined(JobId(job.id))
            }
            (open, wish) => {
                if let Some(job) = open {
                    job.state = State::Dead { at: now };
                    job.collects = None;
                    job.error = Some("expired".to_owned());
                }
                if let Some(wish) = wish {
                    due += ms(wish.window);
                }
                self.last = told.id().0.max(self.last + 1);
                self.jobs.push(Job {
                    id: self.last,
                    to: new.recipient.clone(),
                    rank: new.priority.rank(),
                    due,
                    expires: due + expire,
                    attempts: 0,
                    items: vec![new.item.clone()],
                    state: State::Waiting,
                    collects: key,
                    error: None,
                });
                EnqueueOutcome::New(JobId(self.last))
            }
        };
        if let Some(id) = new.once {
            let given = Given {
                job: outcome.id().0,
                until: now + ms(self.rules.remember_for),
            };
            self.once.insert(id, given);
        }
        outcome
    }
}
