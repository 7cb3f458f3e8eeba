//! The service: enqueues, leases, settles, and shows jobs.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::batch::{Batch, JobError, JobView, LeasedJob};
use super::error::QueueError;
use super::job::Job;
use super::meter;
use super::policy::Backoff;
use super::store::{
    Attempt, Claim, EnqueueOutcome, JobId, Listed, Listing, NewJob, QueueStore, Rules, Settle,
    Token,
};
use super::worker::Worker;
use crate::backend::health::Probed;
use crate::core::size::MIB;
use crate::core::ttl::{DAY, LONGEST, MINUTE, SECOND};
use crate::core::{
    IntoKey, Key, NotAServiceName, ServiceName, StoreError, StoreErrorKind, StoreFuture, monotonic,
};
use crate::data::{Check, once_more, record, tell_contradiction};

/// The most jobs that are added or shown by one call to the store, and the most bytes of what is added.
pub(super) const JOBS_AT_ONCE: usize = 512;
/// The most jobs that one call moves: while a server does that it does nothing else.
pub(super) const MOVED_AT_ONCE: usize = 100;
const BYTES_AT_ONCE: usize = 4 * MIB;

/// A queue of items of type `T`: at least once each, never to two at once while a lease holds.
///
/// All who use one queue set it up alike. Clones are cheap.
#[must_use]
pub struct Queue<T> {
    pub(super) config: Arc<Config>,
    item: PhantomData<fn(T) -> T>,
}

#[derive(Clone, Debug)]
pub(super) struct Config {
    pub(super) store: Arc<dyn QueueStore>,
    pub(super) name: ServiceName,
    pub(super) lease: Duration,
    pub(super) backoff: Backoff,
    pub(super) rules: Rules,
}

impl<T> Queue<T> {
    /// Makes a queue: leases of 30 s, 5 attempts, backoff from 10 s to 10 min, jobs dead 24 h after they were due, room for
    /// 100,000 jobs and 1,000 of one recipient, ids remembered for 24 h, no aging.
    ///
    /// # Panics
    /// If `name` is not 1 to 64 of `a-z 0-9 . _ -`.
    #[track_caller]
    pub fn new(store: impl QueueStore, name: &str) -> Self {
        Self::of(store, ServiceName::new(name))
    }

    /// Like [`Queue::new`], for a name that is known only at run time.
    ///
    /// # Errors
    /// The name is not 1 to 64 of `a-z 0-9 . _ -`.
    pub fn try_new(store: impl QueueStore, name: &str) -> Result<Self, NotAServiceName> {
        Ok(Self::of(store, ServiceName::try_new(name)?))
    }

    fn of(store: impl QueueStore, name: ServiceName) -> Self {
        if store.contradicts(&format!("queue {name}"), std::any::type_name::<T>()) {
            tell_contradiction("queue", name.as_str());
        }
        Self {
            config: Arc::new(Config {
                store: Arc::new(store),
                name,
                lease: 30 * SECOND,
                backoff: Backoff::exponential(10 * SECOND, 10 * MINUTE),
                rules: Rules {
                    capacity: 100_000,
                    per_recipient: 1_000,
                    attempts: 5,
                    expire_after: DAY,
                    remember_for: DAY,
                    aging: Duration::ZERO,
                },
            }),
            item: PhantomData,
        }
    }

    /// Sets how long a leased job belongs to its worker (30 s); workers extend it at a third. At least 10 ms, at most 366 days.
    pub fn lease_for(self, lease: impl Into<Duration>) -> Self {
        let lease = lease.into().clamp(Duration::from_millis(10), LONGEST);
        self.with(|config| config.lease = lease)
    }

    /// Sets how often a job is tried (5), at least once.
    pub fn attempts(self, attempts: u32) -> Self {
        self.with(|config| config.rules.attempts = attempts.max(1))
    }

    /// Sets how long retries wait (up to 10 s, doubling to 10 min).
    pub fn backoff(self, backoff: Backoff) -> Self {
        self.with(|config| config.backoff = backoff)
    }

    /// Sets how long after it was due a job is dead (24 h).
    pub fn expire_after(self, time: impl Into<Duration>) -> Self {
        let time = time.into();
        self.with(|config| config.rules.expire_after = time)
    }

    /// Bounds the jobs of the whole queue (100,000) and of one recipient (1,000).
    pub fn capacity(self, whole: u64, recipient: u64) -> Self {
        self.with(|config| {
            config.rules.capacity = whole;
            config.rules.per_recipient = recipient;
        })
    }

    /// Sets how long an id given to [`Job::once`] is known after enqueueing (24 h), if its job does not live longer.
    pub fn remember_for(self, time: impl Into<Duration>) -> Self {
        let time = time.into();
        self.with(|config| config.rules.remember_for = time)
    }

    /// Lets a job overtake the next higher priority after waiting this much longer (off, by zero).
    pub fn aging(self, after: impl Into<Duration>) -> Self {
        let after = after.into();
        self.with(|config| config.rules.aging = after)
    }

    fn with(mut self, change: impl FnOnce(&mut Config)) -> Self {
        change(Arc::make_mut(&mut self.config));
        self
    }

    /// Returns the name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.config.name.as_str()
    }
}

impl<T: Serialize> Queue<T> {
    /// Adds a job.
    ///
    /// # Errors
    /// Full, too large, or the store's. Without [`Job::once`] it is unknown after `Unavailable` and `TimedOut` whether it
    /// was added.
    pub async fn enqueue(&self, job: Job<T>) -> Result<EnqueueOutcome, QueueError> {
        let added = self.add(vec![job.encode()?]).await?;
        let none = StoreError::new(StoreErrorKind::Failed);
        Ok(*added.first().ok_or(none)?)
    }

    /// Adds jobs in order, all or none of each 512 (and 4 MiB).
    ///
    /// # Errors
    /// As [`Queue::enqueue`]; what was added before the part that failed stays.
    pub async fn enqueue_many(
        &self,
        jobs: impl IntoIterator<Item = Job<T>>,
    ) -> Result<Vec<EnqueueOutcome>, QueueError> {
        let jobs: Vec<NewJob> = jobs
            .into_iter()
            .map(Job::encode)
            .collect::<Result<_, _>>()?;
        let mut outcomes = Vec::with_capacity(jobs.len());
        let (mut part, mut bytes) = (Vec::new(), 0);
        for job in jobs {
            if part.len() == JOBS_AT_ONCE || bytes + job.item.len() > BYTES_AT_ONCE {
                outcomes.extend(self.add(std::mem::take(&mut part)).await?);
                bytes = 0;
            }
            bytes += job.item.len();
            part.push(job);
        }
        if !part.is_empty() {
            outcomes.extend(self.add(part).await?);
        }
        Ok(outcomes)
    }

    async fn add(&self, jobs: Vec<NewJob>) -> Result<Vec<EnqueueOutcome>, QueueError> {
        let Config {
            store, name, rules, ..
        } = &*self.config;
        let harmless = jobs.iter().all(|job| job.once.is_some());
        let name = name.shared();
        let added = if harmless {
            once_more(|| store.enqueue(&name, jobs.clone(), rules)).await?
        } else {
            store.enqueue(&name, jobs, rules).await?
        };
        meter::enqueued(&name, &added);
        Ok(added)
    }
}

impl<T: DeserializeOwned> Queue<T> {
    /// Leases the next job, and up to `most` - 1 more of its recipient and priority, 100 in all at most; `None` if nothing
    /// is ready.
    ///
    /// # Errors
    /// The store's; what was leased without an answer returns at the lease's end.
    pub async fn lease(&self, most: usize) -> Result<Option<Batch<T>>, QueueError> {
        self.next(None, most).await
    }

    /// Leases the next jobs of `recipient`, of any priority.
    ///
    /// # Errors
    /// As [`Queue::lease`].
    pub async fn lease_from(
        &self,
        recipient: impl IntoKey,
        most: usize,
    ) -> Result<Option<Batch<T>>, QueueError> {
        self.next(Some(recipient.into_key()), most).await
    }

    async fn next(
        &self,
        recipient: Option<Key>,
        most: usize,
    ) -> Result<Option<Batch<T>>, QueueError> {
        loop {
            let claimed = self.claim(recipient.as_ref(), most).await?;
            if !claimed.only_buried {
                return Ok(claimed.batch);
            }
            // In memory every answer is there at once: whoever shares the thread has a turn, too.
            tokio::task::yield_now().await;
        }
    }

    /// Asks the store once. What it finds may be good for nothing but to be buried: there may be more behind it.
    pub(super) async fn claim(
        &self,
        recipient: Option<&Key>,
        most: usize,
    ) -> Result<Claimed<T>, QueueError> {
        let Config {
            store, name, rules, ..
        } = &*self.config;
        let mut bits = [0; 16];
        getrandom::fill(&mut bits)
            .map_err(|error| StoreError::with_source(StoreErrorKind::Failed, error))?;
        let claim = Claim {
            token: Token(bits),
            most: most.clamp(1, MOVED_AT_ONCE),
            lease: self.config.lease,
            recipient: recipient.cloned(),
        };
        let sent = monotonic();
        let leased = store.lease(&name.shared(), claim, rules).await?;
        meter::leased(self.name(), &leased);
        let next_in = leased.next_due.map(|due| due.since(leased.now));
        let Some(recipient) = leased.recipient else {
            // Much that is over stood before what is ready: each look puts some of it away.
            let (swept, is_due) = (leased.swept, next_in.is_some_and(|wait| wait.is_zero()));
            let only_buried = swept.lost + swept.dead + swept.expired > 0 && is_due;
            return Ok(Claimed {
                batch: None,
                next_in,
                only_buried,
            });
        };
        let jobs = self.decode(leased.jobs, Token(bits)).await?;
        let only_buried = jobs.is_empty();
        let batch = (!only_buried).then(|| Batch {
            recipient,
            jobs,
            token: Token(bits),
            ends: Arc::new(Mutex::new(sent + self.config.lease)),
            failures: Arc::default(),
        });
        Ok(Claimed {
            batch,
            next_in,
            only_buried,
        })
    }

    /// Decodes jobs; one that cannot be is dead at once, and holds up nobody.
    async fn decode(
        &self,
        attempts: Vec<Attempt>,
        token: Token,
    ) -> Result<Vec<LeasedJob<T>>, QueueError> {
        let (mut jobs, mut poison) = (Vec::with_capacity(attempts.len()), Vec::new());
        for attempt in attempts {
            match decode_all(&attempt.items) {
                Some(items) => jobs.push(LeasedJob {
                    id: attempt.id,
                    priority: attempt.priority,
                    attempt: attempt.attempt,
                    due: attempt.due,
                    items,
                    token,
                }),
                None => poison.push((attempt.id, Settle::Dead("undecodable payload".to_owned()))),
            }
        }
        if !poison.is_empty() {
            self.settle(token, poison).await?;
        }
        Ok(jobs)
    }

    /// Lists the jobs of `recipient` that are leased, ready and delayed, in this order.
    ///
    /// # Errors
    /// The store's.
    pub async fn list(
        &self,
        recipient: impl IntoKey,
        most: usize,
    ) -> Result<Vec<JobView<T>>, QueueError> {
        self.show(Listing::Of(recipient.into_key(), most.min(JOBS_AT_ONCE)))
            .await
    }

    /// Finds jobs by their numbers, dead letters too; those that are gone are left out.
    ///
    /// # Errors
    /// The store's.
    pub async fn jobs(
        &self,
        ids: impl IntoIterator<Item = JobId>,
    ) -> Result<Vec<JobView<T>>, QueueError> {
        let ids: Vec<JobId> = ids.into_iter().collect();
        let mut found = Vec::with_capacity(ids.len());
        for part in ids.chunks(JOBS_AT_ONCE) {
            found.extend(self.show(Listing::Ids(part.to_vec())).await?);
        }
        Ok(found)
    }

    /// Lists dead letters, the last first.
    ///
    /// # Errors
    /// The store's.
    pub async fn dead(&self, most: usize) -> Result<Vec<JobView<T>>, QueueError> {
        self.show(Listing::Dead(most.min(JOBS_AT_ONCE))).await
    }

    async fn show(&self, listing: Listing) -> Result<Vec<JobView<T>>, QueueError> {
        let Config {
            store, name, rules, ..
        } = &*self.config;
        let listed = store.list(&name.shared(), listing, rules).await?;
        Ok(listed.into_iter().map(view).collect())
    }
}

impl<T: DeserializeOwned + Send + 'static> Queue<T> {
    /// Makes a worker that hands batches to `work`, up to 4 at once, 5 jobs each.
    pub fn worker<W, R, E>(&self, work: W) -> Worker<T>
    where
        W: Fn(Batch<T>) -> R + Send + Sync + 'static,
        R: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<JobError>,
    {
        Worker::new(self.clone(), work)
    }
}

/// A lease, and when to look again.
pub(super) struct Claimed<T> {
    pub(super) batch: Option<Batch<T>>,
    pub(super) next_in: Option<Duration>,
    /// Nothing of what stood in front could be worked on: it is dead now, and there may be more at once.
    pub(super) only_buried: bool,
}

fn decode_all<T: DeserializeOwned>(items: &[bytes::Bytes]) -> Option<Vec<T>> {
    let items: Option<Vec<T>> = items.iter().map(|item| record::decode(item)).collect();
    items.filter(|items| !items.is_empty())
}

fn view<T: DeserializeOwned>(listed: Listed) -> JobView<T> {
    JobView {
        id: listed.id,
        recipient: listed.recipient,
        state: listed.state,
        priority: listed.priority,
        attempts: listed.attempts,
        due: listed.due,
        items: decode_all(&listed.items),
        last_error: listed.last_error,
    }
}

impl<T: 'static> Check for Queue<T> {
    fn check(&self) -> StoreFuture<Probed> {
        let Config {
            store, name, rules, ..
        } = &*self.config;
        let counted = store.count(&name.shared(), None, rules);
        counted.then(|answer| answer.map(|_| Probed::default()))
    }
}

impl<T> Clone for Queue<T> {
    fn clone(&self) -> Self {
        Self {
            config: Arc::clone(&self.config),
            item: PhantomData,
        }
    }
}

impl<T> fmt::Debug for Queue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue")
            .field("name", &self.config.name)
            .field("rules", &self.config.rules)
            .finish_non_exhaustive()
    }
}
