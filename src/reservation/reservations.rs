//! The same store and settings outside requests: for workers, reads and retries.

use std::future::IntoFuture;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::availability::Availability;
use super::config::Config;
use super::event::EventId;
use super::guard::{Asked, GuardEngine, ReservationGuard, held, not_held, refusal_of};
use super::hold::{Hold, HoldOutcome, HoldRef};
use super::rejection::ReservationError;
use super::request::Request;
use super::slot::{Slots, is_text};
use super::store::{AvailabilityQuery, Delivery, Ended, SweepLimits, SweptBatch};
use crate::core::telemetry::{count, gauge};
use crate::core::ttl::{DAY, SECOND};
use crate::core::{RollbackCause, StoreErrorKind, Timestamp};

/// Holds, reads and sweeps outside requests. Clones share it.
#[derive(Clone, Debug)]
pub struct Reservations {
    pub(crate) config: Arc<Config>,
}

/// Says whether an error is one after which the whole transaction may succeed when it is done again.
pub trait Retryable {
    /// `true` after a deadlock or a serialisation failure; not after a lock timeout, which has waited.
    fn is_worth_again(&self) -> bool;

    /// Names why, as what the attempts are counted by.
    fn reason(&self) -> &'static str {
        "contention"
    }
}

impl Retryable for ReservationError {
    fn is_worth_again(&self) -> bool {
        matches!(self, Self::Contention { again: true })
    }
}

impl Reservations {
    pub(crate) const fn new(config: Arc<Config>) -> Self {
        Self { config }
    }

    /// Runs `body` in a transaction of its own and commits it; again, up to 5 times in 5 s, when it met
    /// a deadlock, a serialisation failure or a busy database.
    pub fn run<D, F, Fut, T, E>(&self, body: F) -> Run<'_, F, D>
    where
        D: GuardEngine,
        F: FnMut(ReservationGuard<D>) -> Fut,
        Fut: Future<Output = Result<T, E>>,
        E: Retryable + From<ReservationError>,
    {
        Run {
            reservations: self,
            body,
            attempts: 5,
            within: 5 * SECOND,
            engine: std::marker::PhantomData,
        }
    }

    /// Holds in one step of the store, outside any transaction. Dropped before its answer it may hold all the same, until
    /// the hold's end: a statement that is under way is not called back.
    ///
    /// # Errors
    /// As the guard's `hold`.
    pub async fn hold(
        &self,
        slots: impl Into<Slots>,
        holder: &str,
    ) -> Result<Hold, ReservationError> {
        let (wish, token) = self.config.wish(slots.into(), holder, "", None)?;
        let (id, asked) = (wish.id, Asked::of(&wish));
        match self.config.store.hold(wish).await.inspect_err(not_held) {
            Ok(decision) => Ok(held(decision, token, asked)?),
            Err(problem) if problem.kind() == StoreErrorKind::TimedOut => {
                Err(ReservationError::CommitUnknown {
                    holds: [id].as_slice().into(),
                })
            }
            Err(problem) => Err(problem.into()),
        }
    }

    /// Finds a hold as it was committed.
    ///
    /// # Errors
    /// The store's.
    pub async fn find(&self, hold: impl Into<HoldRef>) -> Result<Option<Hold>, ReservationError> {
        let hold = hold.into();
        if !hold.may_exist() {
            return Ok(None);
        }
        let found = self.config.store.find(hold).await?;
        Ok(found.map(|record| Hold::of(record, HoldOutcome::Known)))
    }

    /// Lists what blocks a resource.
    ///
    /// # Errors
    /// [`SlotInvalid`](ReservationError::SlotInvalid) for more than 366 days,
    /// [`RangeTooWide`](ReservationError::RangeTooWide) for more than 10,000 spans, and the store's.
    pub async fn availability(
        &self,
        resource: &str,
        range: Range<Timestamp>,
    ) -> Result<Availability, ReservationError> {
        let query = AvailabilityQuery::checked(resource, &range)?;
        let spans = self.config.store.availability(query).await;
        let spans = spans.map_err(ReservationError::of_availability)?;
        Ok(Availability::new(range, spans))
    }

    /// Makes or upgrades the store's tables. Done by itself before the first statement; call it to find
    /// out at start.
    ///
    /// # Errors
    /// The store's.
    pub async fn migrate(&self) -> Result<(), ReservationError> {
        Ok(self.config.store.migrate().await?)
    }

    /// Returns the tables' definition, for those who make them by hand
    /// ([`Migrations::Check`](crate::backend::sql::Migrations::Check)). Run it in one transaction (`psql -1`): its last
    /// statements note that all is there, which is what is checked. Run twice it is refused and changes nothing.
    #[cfg(any(feature = "sqlite", feature = "postgres"))]
    #[must_use]
    pub fn schema(&self, dialect: crate::backend::sql::Dialect) -> String {
        super::store::schema(&*self.config.store.open(None), dialect)
    }

    /// Asks the store for a sign of life: it reads where holds are.
    ///
    /// # Errors
    /// The store's.
    pub async fn health(&self) -> Result<(), ReservationError> {
        let nobody = HoldRef::Id(uuid::Uuid::nil().into());
        Ok(self.config.store.find(nobody).await.map(drop)?)
    }

    /// Ends what is due, until nothing is; for a cron route. Parallel runs never count a hold twice.
    ///
    /// # Errors
    /// The store's; what was swept before stays swept.
    ///
    /// Nobody is told here: a cron route that delivers as well calls [`Sweeper::once`](super::Sweeper::once).
    pub async fn sweep(&self) -> Result<Swept, ReservationError> {
        let mut all = Swept::default();
        loop {
            let swept = self.sweep_batch(500, 90 * DAY).await?;
            all.expired += swept.expired;
            all.purged += swept.purged;
            if swept.is_last() {
                return Ok(all);
            }
        }
    }

    pub(crate) async fn sweep_batch(
        &self,
        batch: u32,
        keep_closed: Duration,
    ) -> Result<SweptBatch, ReservationError> {
        let limits = SweepLimits {
            batch,
            keep_closed,
            record: self.config.record,
        };
        let swept = self.config.store.sweep(limits).await?;
        count!("keep_reservation_swept_total", swept.expired);
        gauge!(
            "keep_reservation_sweep_lag_seconds",
            swept.lag.as_secs_f64()
        );
        if let Some(pending) = swept.pending {
            gauge!("keep_reservation_events_pending", pending as f64);
            let _ = pending;
        }
        Ok(swept)
    }

    /// Delivers an event again, also one that was parked; one that is not there is not told of.
    ///
    /// # Errors
    /// The store's.
    pub async fn redeliver(&self, event: EventId) -> Result<(), ReservationError> {
        if !is_text(event.as_str(), 1, 255) {
            return Ok(());
        }
        let again = vec![(event, Delivery::Again)];
        Ok(self.config.store.settle_events(again).await?)
    }
}

/// What a sweep came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Swept {
    /// Holds that it ended.
    pub expired: u64,
    /// Closed holds and delivered events that it removed.
    pub purged: u64,
    /// Events that the application took.
    pub delivered: u64,
}

/// A transaction about to be run; await it.
#[must_use = "nothing runs unless it is awaited"]
pub struct Run<'r, F, D> {
    reservations: &'r Reservations,
    body: F,
    attempts: u32,
    within: Duration,
    engine: std::marker::PhantomData<fn() -> D>,
}

impl<F, D> Run<'_, F, D> {
    /// Bounds the attempts (5).
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts.max(1);
        self
    }

    /// Bounds the time in which another attempt may begin (5 s).
    pub fn within(mut self, within: Duration) -> Self {
        self.within = within;
        self
    }
}

impl<F, D> std::fmt::Debug for Run<'_, F, D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Run")
            .field("attempts", &self.attempts)
            .field("within", &self.within)
            .finish_non_exhaustive()
    }
}

impl<'r, D, F, Fut, T, E> IntoFuture for Run<'r, F, D>
where
    D: GuardEngine,
    F: FnMut(ReservationGuard<D>) -> Fut + Send + 'r,
    Fut: Future<Output = Result<T, E>> + Send + 'r,
    T: Send + 'r,
    E: Retryable + From<ReservationError> + Send + 'r,
{
    type Output = Result<T, E>;
    type IntoFuture = Pin<Box<dyn Future<Output = Result<T, E>> + Send + 'r>>;

    fn into_future(mut self) -> Self::IntoFuture {
        Box::pin(async move {
            let started = Instant::now();
            let mut attempt = 1;
            loop {
                let error = match once(&self.reservations.config, &mut self.body).await {
                    Ok(done) => return Ok(done),
                    Err(error) => error,
                };
                let over = attempt >= self.attempts || started.elapsed() >= self.within;
                if over || !error.is_worth_again() {
                    return Err(error);
                }
                count!("keep_sql_retries_total", 1, "reason" => error.reason());
                tokio::time::sleep(pause(attempt)).await;
                attempt += 1;
            }
        })
    }
}

/// Rolls back if the run is dropped half-way.
struct Unfinished(Option<Arc<Request>>);

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(request) = self.0.take() {
            request.close();
            let cause = if std::thread::panicking() {
                RollbackCause::Panic
            } else {
                RollbackCause::Cancelled
            };
            drop(request.roll_back(cause));
        }
    }
}

async fn once<D, F, Fut, T, E>(config: &Arc<Config>, body: &mut F) -> Result<T, E>
where
    D: GuardEngine,
    F: FnMut(ReservationGuard<D>) -> Fut,
    Fut: Future<Output = Result<T, E>>,
    E: From<ReservationError>,
{
    let request = Request::open(config, None);
    let source = super::guard::GuardSource(Arc::clone(&request));
    if !D::fits(&source) {
        return Err(ReservationError::Misconfigured.into());
    }
    drop(source);
    let mut unfinished = Unfinished(Some(Arc::clone(&request)));
    let done = body(ReservationGuard::new(&request)).await;
    unfinished.0 = None;
    let leaked = request.close();
    let value = match done {
        Ok(_) if leaked => {
            let _ = request.roll_back(RollbackCause::Leaked).await;
            return Err(ReservationError::TransactionLeaked.into());
        }
        Ok(value) => value,
        Err(error) => {
            let cause = request.conflict().map(|_| RollbackCause::Conflict);
            let _ = request
                .roll_back(cause.unwrap_or(RollbackCause::Inner))
                .await;
            return Err(error);
        }
    };
    match request.commit().await {
        Ok(Ended::Committed) => Ok(value),
        Ok(ended) => Err(refusal_of(ended, &request).into()),
        Err(problem) => Err(ReservationError::from(problem).into()),
    }
}

/// Full jitter in 0…min(250 ms, 10 ms · 2ⁿ).
fn pause(attempt: u32) -> Duration {
    let most = (10_u64 << attempt.min(5)).min(250);
    let drawn = getrandom::u64().map_or(most, |random| random % (most + 1));
    Duration::from_millis(drawn)
}
