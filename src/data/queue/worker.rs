//! The worker: leases for free slots only, keeps leases alive, settles what its work says.

use std::any::Any;
use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinSet, yield_now};
use tokio::time::{Instant, sleep, timeout};

use super::batch::{Batch, JobError};
use super::error::QueueError;
use super::handle::{Claimed, Queue};
use super::store::{JobId, Settle, Settled, Token};
use crate::core::telemetry::{seconds, warn};
use crate::core::ttl::SECOND;
use crate::core::{StoreError, monotonic};
use crate::data::bell::Bell;

/// However silent the store is, a worker looks this often.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// The first pause after the store failed, doubling to [`LOOK_EVERY`]; and after it told of jobs and gave none.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// How long a shutdown waits for what it has aborted: work that is held by nothing ends at once.
const ABORTED_WITHIN: Duration = Duration::from_secs(1);

type Done = Pin<Box<dyn Future<Output = Result<(), JobError>> + Send>>;
type Work<T> = dyn Fn(Batch<T>) -> Done + Send + Sync;

/// Works off a queue; any number may run, in any number of processes.
///
/// A batch whose work returns `Ok` is acked, but for the jobs that it failed by [`Batch::fail`]; `Err` and a panic fail the
/// whole batch. A worker that is dropped or dies leaves its jobs to the end of their lease.
#[must_use = "a worker does nothing unless it is run"]
pub struct Worker<T> {
    queue: Queue<T>,
    work: Arc<Work<T>>,
    concurrency: usize,
    batch: usize,
    drain: Duration,
}

/// What a worker did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkReport {
    /// Jobs that were acked.
    pub delivered: u64,
    /// Jobs that failed and will be tried again.
    pub retried: u64,
    /// Jobs that failed and will not.
    pub dead: u64,
}

impl<T: DeserializeOwned + Send + 'static> Worker<T> {
    pub(super) fn new<W, R, E>(queue: Queue<T>, work: W) -> Self
    where
        W: Fn(Batch<T>) -> R + Send + Sync + 'static,
        R: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<JobError>,
    {
        Self {
            queue,
            work: Arc::new(move |batch| {
                let work = work(batch);
                Box::pin(async move { work.await.map_err(Into::into) })
            }),
            concurrency: 4,
            batch: 5,
            drain: 30 * SECOND,
        }
    }

    /// Sets how many batches are worked on at once (4), at least 1.
    pub fn concurrency(mut self, batches: usize) -> Self {
        self.concurrency = batches.clamp(1, Semaphore::MAX_PERMITS / 2);
        self
    }

    /// Sets the most jobs of a batch (5), at least 1; above 100 it is 100.
    pub fn batch(mut self, jobs: usize) -> Self {
        self.batch = jobs.max(1);
        self
    }

    /// Sets how long a shutdown waits for the work under way (30 s); what is unfinished then goes back uncounted.
    pub fn drain(mut self, longest: Duration) -> Self {
        self.drain = longest;
        self
    }

    /// Works until `shutdown` resolves, then finishes what is under way.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) -> WorkReport {
        let mut shutdown = pin!(shutdown);
        let mut crew = Crew::new(self);
        let bell = Arc::new(Bell::default());
        // A store that cannot tell is looked at every few seconds.
        let config = &crew.shared.queue.config;
        let listening = config
            .store
            .subscribe(&config.name.shared(), bell.callback());
        let _listening = listening.await;
        let mut pause = FIRST_PAUSE;
        loop {
            tokio::select! {
                biased;
                () = &mut shutdown => break,
                () = crew.slot() => {}
            }
            bell.hush();
            let look_again = match crew.claim().await {
                Ok(Claimed {
                    batch: Some(batch), ..
                }) => {
                    crew.start(batch);
                    pause = FIRST_PAUSE;
                    continue;
                }
                Ok(Claimed {
                    only_buried: true, ..
                }) => {
                    // In memory every answer is there at once: whoever shares the thread has a turn, too.
                    tokio::task::yield_now().await;
                    continue;
                }
                Ok(Claimed { next_in, .. }) => {
                    pause = FIRST_PAUSE;
                    next_in.map_or(LOOK_EVERY, soon).min(LOOK_EVERY)
                }
                Err(problem) => {
                    let _ = &problem;
                    warn!(queue = crew.shared.queue.name(), error = %problem, "a worker cannot lease");
                    pause = (pause * 2).min(LOOK_EVERY);
                    pause / 2
                }
            };
            tokio::select! {
                biased;
                () = &mut shutdown => break,
                () = bell.rung() => {}
                () = sleep(look_again) => {}
            }
        }
        crew.drain().await
    }

    /// Works until nothing is ready and nothing is under way.
    ///
    /// # Errors
    /// The store's, when it cannot lease; what is under way is finished first.
    pub async fn run_until_idle(self) -> Result<WorkReport, QueueError> {
        let mut crew = Crew::new(self);
        loop {
            crew.slot().await;
            match crew.claim().await {
                Ok(Claimed {
                    batch: Some(batch), ..
                }) => crew.start(batch),
                Ok(Claimed {
                    only_buried: true, ..
                }) => tokio::task::yield_now().await,
                Ok(_) if crew.tasks.is_empty() => return Ok(crew.shared.report()),
                // Something under way may yet give its jobs back.
                Ok(_) => drop(crew.tasks.join_next().await),
                Err(error) => {
                    crew.drain().await;
                    return Err(error);
                }
            }
        }
    }
}

/// The batches under way.
struct Crew<T> {
    shared: Arc<Shared<T>>,
    tasks: JoinSet<()>,
    /// The slots for work, and the one that the next batch will have.
    slots: Arc<Semaphore>,
    next: Option<OwnedSemaphorePermit>,
    concurrency: usize,
    batch: usize,
    drain: Duration,
    started: u64,
}

/// Jobs of a batch that the store knows as leased.
enum Unsettled {
    /// They are worked on.
    Leased(Vec<JobId>),
    /// Their work is done.
    Done(Verdicts),
}

/// What became of the jobs of a batch.
#[derive(Clone, Default)]
struct Verdicts {
    good: Vec<JobId>,
    bad: Vec<(JobId, Settle)>,
}

struct Shared<T> {
    queue: Queue<T>,
    work: Arc<Work<T>>,
    /// What the store has not yet heard, for a shutdown that waits no longer.
    unsettled: Mutex<HashMap<u64, (Token, Unsettled)>>,
    delivered: AtomicU64,
    retried: AtomicU64,
    dead: AtomicU64,
}

impl<T: DeserializeOwned + Send + 'static> Crew<T> {
    fn new(worker: Worker<T>) -> Self {
        Self {
            shared: Arc::new(Shared {
                queue: worker.queue,
                work: worker.work,
                unsettled: Mutex::default(),
                delivered: AtomicU64::new(0),
                retried: AtomicU64::new(0),
                dead: AtomicU64::new(0),
            }),
            tasks: JoinSet::new(),
            slots: Arc::new(Semaphore::new(worker.concurrency)),
            next: None,
            concurrency: worker.concurrency,
            batch: worker.batch,
            drain: worker.drain,
            started: 0,
        }
    }

    /// Waits for a free slot. A batch whose work is done has none: its ack goes out beside the next lease. But as many
    /// acks as there are slots may be on their way, no more.
    async fn slot(&mut self) {
        while self.tasks.try_join_next().is_some() {}
        while self.tasks.len() >= 2 * self.concurrency {
            let _ended = self.tasks.join_next().await;
        }
        if self.next.is_none() {
            // It is never closed.
            self.next = Arc::clone(&self.slots).acquire_owned().await.ok();
        }
    }

    async fn claim(&self) -> Result<Claimed<T>, QueueError> {
        self.shared.queue.claim(None, self.batch).await
    }

    fn start(&mut self, batch: Batch<T>) {
        self.started += 1;
        let (shared, number) = (Arc::clone(&self.shared), self.started);
        let kept = (batch.token, Unsettled::Leased(batch.ids()));
        shared.unsettled.lock().insert(number, kept);
        let slot = self.next.take();
        self.tasks.spawn(async move {
            shared.work_off(number, batch, slot).await;
            shared.unsettled.lock().remove(&number);
        });
    }

    /// Waits for what is under way. Then what is done is settled once more, for its task may have been on the way to it, and
    /// the rest is given back as if it had not been leased.
    async fn drain(mut self) -> WorkReport {
        if timeout(self.drain, all_ended(&mut self.tasks))
            .await
            .is_err()
        {
            // Not waited for long: work may hold its thread.
            self.tasks.abort_all();
            let _ended = timeout(ABORTED_WITHIN, all_ended(&mut self.tasks)).await;
        }
        let unsettled: Vec<_> = self.shared.unsettled.lock().drain().collect();
        // Where it fails, they return at the end of their lease.
        for (_, (token, unsettled)) in unsettled {
            match unsettled {
                Unsettled::Leased(ids) => {
                    let back = ids.into_iter().map(|id| (id, Settle::GiveBack)).collect();
                    let _ = self.shared.queue.settle(token, back).await;
                }
                Unsettled::Done(Verdicts { good, bad }) => {
                    let _ = self.shared.ack(token, good, true).await;
                    let _ = self.shared.give_back(token, bad).await;
                }
            }
        }
        self.shared.report()
    }
}

impl<T: DeserializeOwned + Send + 'static> Shared<T> {
    async fn work_off(&self, number: u64, batch: Batch<T>, slot: Option<OwnedSemaphorePermit>) {
        let (token, ends) = (batch.token, Arc::clone(&batch.ends));
        let jobs: Vec<_> = batch.jobs.iter().map(|job| (job.id, job.attempt)).collect();
        let failures = Arc::clone(&batch.failures);
        let started = monotonic();
        let work = &self.work;
        let mut work = pin!(caught(async move { work(batch).await }));
        // Beside the work, which goes on: what it holds may be what an extension waits for.
        let done = tokio::select! {
            biased;
            done = &mut work => done,
            never = self.keep(token, &jobs, &ends) => match never {},
        };
        drop(slot);
        seconds!("keep_queue_run_seconds", monotonic() - started, "queue" => self.queue.name().to_owned());
        let failed: Vec<_> = match done {
            Ok(()) => failures.lock().drain(..).collect(),
            Err(error) => {
                let error = Arc::new(error);
                let all = 0..jobs.len();
                all.map(|index| (index, same(&error))).collect::<Vec<_>>()
            }
        };
        let verdicts = self.verdicts(&jobs, failed);
        let done = (token, Unsettled::Done(verdicts.clone()));
        self.unsettled.lock().insert(number, done);
        if verdicts.bad.is_empty() {
            // The next lease goes out first: the store acks while its answer is on the way.
            yield_now().await;
        }
        let ends = *ends.lock();
        self.settle(number, token, verdicts, ends).await;
    }

    /// Extends the lease at each third of it. One that cannot be extended runs out; the work goes on, and its ack will be
    /// too late.
    async fn keep(&self, token: Token, jobs: &[(JobId, u32)], ends: &Mutex<Instant>) -> Infallible {
        let lease = self.queue.config.lease;
        loop {
            sleep(lease / 3).await;
            let ids = jobs.iter().map(|(id, _)| *id).collect();
            let sent = monotonic();
            if let Ok(report) = self.queue.extend_all(token, ids).await
                && !report.done.is_empty()
            {
                *ends.lock() = sent + lease;
            }
        }
    }

    fn verdicts(&self, jobs: &[(JobId, u32)], failed: Vec<(usize, JobError)>) -> Verdicts {
        // The last word about a job counts.
        let failed: HashMap<usize, JobError> = failed.into_iter().collect();
        let mut verdicts = Verdicts::default();
        for (index, (id, attempt)) in jobs.iter().enumerate() {
            match failed.get(&index) {
                Some(error) => verdicts
                    .bad
                    .push((*id, self.queue.verdict(*attempt, error))),
                None => verdicts.good.push(*id),
            }
        }
        verdicts
    }

    async fn settle(&self, number: u64, token: Token, verdicts: Verdicts, ends: Instant) {
        let Verdicts { good, bad } = verdicts;
        if !good.is_empty() {
            let asked = AtomicBool::new(false);
            let ack = || {
                let before = asked.swap(true, Ordering::Relaxed);
                self.ack(token, good.clone(), before)
            };
            until(ends, ack).await;
            if !bad.is_empty() {
                let rest = Verdicts {
                    good: Vec::new(),
                    bad: bad.clone(),
                };
                let rest = (token, Unsettled::Done(rest));
                self.unsettled.lock().insert(number, rest);
            }
        }
        if !bad.is_empty() {
            until(ends, || self.give_back(token, bad.clone())).await;
        }
    }

    /// Counts with the answer, so that nothing that was counted is settled again.
    async fn ack(&self, token: Token, good: Vec<JobId>, before: bool) -> Result<(), StoreError> {
        if good.is_empty() {
            return Ok(());
        }
        let done = self.queue.end(token, good, before).await?.done.len() as u64;
        self.delivered.fetch_add(done, Ordering::Relaxed);
        Ok(())
    }

    async fn give_back(&self, token: Token, bad: Vec<(JobId, Settle)>) -> Result<(), StoreError> {
        if bad.is_empty() {
            return Ok(());
        }
        let settled = self.queue.settle(token, bad).await?;
        let of = |wanted| settled.iter().filter(|(_, one)| *one == wanted).count() as u64;
        self.retried.fetch_add(of(Settled::Done), Ordering::Relaxed);
        self.dead.fetch_add(of(Settled::Died), Ordering::Relaxed);
        Ok(())
    }

    fn report(&self) -> WorkReport {
        WorkReport {
            delivered: self.delivered.load(Ordering::Relaxed),
            retried: self.retried.load(Ordering::Relaxed),
            dead: self.dead.load(Ordering::Relaxed),
        }
    }
}

/// When to look for what may be ready in `wait`. What is ready now and was not given is not to be had at the moment.
async fn all_ended(tasks: &mut JoinSet<()>) {
    while tasks.join_next().await.is_some() {}
}

fn soon(wait: Duration) -> Duration {
    match wait.is_zero() {
        true => FIRST_PAUSE,
        false => wait + Duration::from_millis(1),
    }
}

fn same(error: &Arc<JobError>) -> JobError {
    if error.is_worth_again() {
        JobError::retry(error.to_string())
    } else {
        JobError::dead(error.to_string())
    }
}

/// Calls until the store answers or the lease is over: what was done must not be done again for want of an ack.
async fn until<R, F>(ends: Instant, call: impl Fn() -> F) -> Option<R>
where
    F: Future<Output = Result<R, StoreError>>,
{
    let mut pause = FIRST_PAUSE;
    loop {
        match call().await {
            Ok(answer) => return Some(answer),
            Err(_) if monotonic() + pause < ends => {
                sleep(pause).await;
                pause = (pause * 2).min(SECOND);
            }
            Err(_) => return None,
        }
    }
}

/// Turns a panic of `work` into a failure, so that it stays in its batch.
async fn caught(work: impl Future<Output = Result<(), JobError>>) -> Result<(), JobError> {
    let mut work = pin!(work);
    poll_fn(
        |cx| match catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(cx))) {
            Ok(polled) => polled,
            Err(panic) => Poll::Ready(Err(JobError::retry(words(&*panic)))),
        },
    )
    .await
}

fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    text.map_or_else(|| "panicked".to_owned(), |text| format!("panicked: {text}"))
}

impl<T> fmt::Debug for Worker<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker")
            .field("queue", &self.queue)
            .field("concurrency", &self.concurrency)
            .field("batch", &self.batch)
            .finish_non_exhaustive()
    }
}
