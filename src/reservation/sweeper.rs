//! The worker that ends due holds, delivers events, and removes what is long closed.

use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Sleep, sleep, timeout};

use super::event::ReservationEvent;
use super::rejection::ReservationError;
use super::reservations::{Reservations, Swept};
use super::store::{Delivery, MOST_ATTEMPTS, event_pause};
use crate::core::telemetry::{count, error};
use crate::core::ttl::{DAY, MINUTE, SECOND};

/// Events taken at once.
const EVENTS: u32 = 100;
/// How long taken events are ours.
const LEASE: Duration = Duration::from_secs(60);
/// How long a consumer may take for one of them: as long as most who call somebody else's endpoint wait for it.
const DELIVERY: Duration = Duration::from_secs(30);

/// What a consumer of events says when it could not do its work.
pub type DeliveryError = Box<dyn std::error::Error + Send + Sync>;

type Consumer = dyn Fn(ReservationEvent) -> Pin<Box<dyn Future<Output = Result<(), DeliveryError>> + Send>>
    + Send
    + Sync;

/// Sweeps in the background. Correctness never waits for it: what is over blocks nothing, noticed or not.
/// Any number may run; each hold is counted once, each event delivered at least once.
#[derive(Clone)]
#[must_use = "a sweeper does nothing unless it is run"]
pub struct Sweeper {
    reservations: Reservations,
    every: Duration,
    batch: u32,
    keep_closed: Duration,
    delivery: Duration,
    consumer: Option<Arc<Consumer>>,
}

impl Sweeper {
    /// Makes a sweeper: every 30 s, batches of 500, closed holds kept for 90 days.
    pub fn new(reservations: &Reservations) -> Self {
        Self {
            reservations: reservations.clone(),
            every: 30 * SECOND,
            batch: 500,
            keep_closed: 90 * DAY,
            delivery: DELIVERY,
            consumer: None,
        }
    }

    /// Sets the pause between sweeps (30 s), ± 20 %.
    pub fn every(mut self, every: Duration) -> Self {
        self.every = every;
        self
    }

    /// Bounds the holds of one transaction (500).
    pub fn batch(mut self, batch: u32) -> Self {
        self.batch = batch.max(1);
        self
    }

    /// Sets how long closed holds are kept (90 days).
    pub fn keep_closed(mut self, keep: Duration) -> Self {
        self.keep_closed = keep;
        self
    }

    /// Bounds one delivery (30 s): a consumer that takes longer is dropped where it waits, and its event has failed. Events are
    /// taken a hundred at once for a minute and delivered one after another: where they take longer together, another
    /// sweeper may deliver the rest, too.
    pub fn delivery_timeout(mut self, longest: Duration) -> Self {
        self.delivery = longest;
        self
    }

    /// Delivers recorded events, at least once each, those first that became due first; use their id to do the work once. An
    /// error means again, and so do a panic and a delivery that [takes too long](Self::delivery_timeout): after 1 s, doubling
    /// to 1 h, parked after 20 times. It may be dropped wherever it waits, and then it is asked again.
    pub fn on_event<F, Fut>(mut self, consumer: F) -> Self
    where
        F: Fn(ReservationEvent) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), DeliveryError>> + Send + 'static,
    {
        self.consumer = Some(Arc::new(move |event| Box::pin(consumer(event))));
        self
    }

    /// Sweeps until `shutdown` resolves, and ends after the batch under way.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) {
        let mut shutdown = std::pin::pin!(shutdown);
        let mut failures = 0;
        let mut plan = Plan::now();
        loop {
            let pause = match self.round(&mut plan, shutdown.as_mut()).await {
                Ok(Round::Shutdown) => return,
                Ok(Round::Done) => {
                    failures = 0;
                    Duration::MAX
                }
                Err(problem) => {
                    let _ = &problem;
                    error!(error = %problem, "a sweep failed");
                    failures += 1;
                    (SECOND * 2_u32.saturating_pow(failures.min(10) - 1)).min(5 * MINUTE)
                }
            };
            // After a failure nothing wakes it earlier than its pause.
            let plan = (failures == 0).then_some(&mut plan);
            if self.rest(pause, plan, shutdown.as_mut()).await == Round::Shutdown {
                return;
            }
        }
    }

    /// Sweeps and delivers until nothing is due.
    ///
    /// # Errors
    /// The store's.
    pub async fn once(&self) -> Result<Swept, ReservationError> {
        let never = std::pin::pin!(std::future::pending());
        let mut plan = Plan::now();
        self.round(&mut plan, never).await?;
        Ok(plan.swept)
    }

    /// Sweeps if it is time, and delivers what is due.
    async fn round(
        &self,
        plan: &mut Plan,
        mut shutdown: Pin<&mut (impl Future<Output = ()> + Send)>,
    ) -> Result<Round, ReservationError> {
        let mut due = poll_fn(|cx| Poll::Ready(plan.poll_sweep(cx).is_ready())).await;
        while due {
            let swept = self
                .reservations
                .sweep_batch(self.batch, self.keep_closed)
                .await?;
            plan.swept.expired += swept.expired;
            plan.swept.purged += swept.purged;
            if is_over(shutdown.as_mut()).await {
                return Ok(Round::Shutdown);
            }
            due = !swept.is_last();
            if !due {
                plan.sweep = Some(Box::pin(sleep(jittered(self.every))));
            }
        }
        loop {
            let batch = self.deliver(plan).await?;
            if is_over(shutdown.as_mut()).await {
                return Ok(Round::Shutdown);
            }
            if batch < EVENTS as usize {
                return Ok(Round::Done);
            }
        }
    }

    /// Waits for `pause`, for what is planned, for the end, or for a commit of this process that has
    /// something to tell.
    async fn rest(
        &self,
        pause: Duration,
        mut plan: Option<&mut Plan>,
        mut shutdown: Pin<&mut (impl Future<Output = ()> + Send)>,
    ) -> Round {
        let listening = plan.is_some() && self.consumer.is_some();
        let mut told = listening.then(|| self.reservations.config.store.told());
        let waiting = poll_fn(|cx| {
            if shutdown.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Round::Shutdown);
            }
            let told = told.as_mut().map(|told| Pin::new(told).poll(cx));
            let planned = plan.as_mut().map(|plan| plan.poll(cx));
            match (told, planned) {
                (Some(Poll::Ready(_)), _) | (_, Some(Poll::Ready(()))) => Poll::Ready(Round::Done),
                _ => Poll::Pending,
            }
        });
        let woken = timeout(pause, waiting).await;
        woken.unwrap_or(Round::Done)
    }

    /// Asks the consumer, and says whether it took the event in time.
    async fn delivered(&self, consumer: &Arc<Consumer>, event: ReservationEvent) -> bool {
        let consumer = Arc::clone(consumer);
        // A task of its own, so that a panic in it is a failed delivery.
        let mut work = tokio::spawn(async move { consumer(event).await });
        match timeout(self.delivery, &mut work).await {
            Ok(done) => matches!(done, Ok(Ok(()))),
            Err(_) => {
                // Not waited for: it may hold its thread.
                work.abort();
                false
            }
        }
    }

    /// Delivers one batch and says how large it was.
    async fn deliver(&self, plan: &mut Plan) -> Result<usize, ReservationError> {
        let Some(consumer) = &self.consumer else {
            return Ok(0);
        };
        let store = &self.reservations.config.store;
        let events = store.take_events(EVENTS, LEASE).await?;
        let taken = events.len();
        for event in events {
            let failed = event.attempts + 1;
            let (id, kind) = (event.id.clone(), event.kind);
            let delivery = match self.delivered(consumer, event).await {
                true => Delivery::Delivered,
                false => {
                    count!("keep_reservation_event_failures_total", 1, "kind" => kind.as_str());
                    if failed >= MOST_ATTEMPTS {
                        count!("keep_reservation_events_parked_total", 1);
                        error!(event = %id, "an event was refused too often and is parked");
                    } else {
                        plan.retry(event_pause(failed));
                    }
                    Delivery::Failed
                }
            };
            let _ = kind;
            plan.swept.delivered += u64::from(delivery == Delivery::Delivered);
            store.settle_events(vec![(id, delivery)]).await?;
        }
        Ok(taken)
    }
}

/// What a round or a rest came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Round {
    Shutdown,
    Done,
}

/// When there is something to do again, if nobody wakes us earlier.
struct Plan {
    /// `None` is now.
    sweep: Option<Pin<Box<Sleep>>>,
    /// The first event that was refused is due again.
    retry: Option<Pin<Box<Sleep>>>,
    /// What was done since the beginning.
    swept: Swept,
}

impl Plan {
    fn now() -> Self {
        Self {
            sweep: None,
            retry: None,
            swept: Swept::default(),
        }
    }

    fn retry(&mut self, pause: Duration) {
        let own = Box::pin(sleep(pause));
        let earlier = self.retry.take();
        let earlier = earlier.filter(|earlier| earlier.deadline() <= own.deadline());
        self.retry = Some(earlier.unwrap_or(own));
    }

    fn poll_sweep(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let sweep = self.sweep.as_mut();
        sweep.map_or(Poll::Ready(()), |sweep| sweep.as_mut().poll(cx))
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(retry) = &mut self.retry
            && retry.as_mut().poll(cx).is_ready()
        {
            self.retry = None;
            return Poll::Ready(());
        }
        self.poll_sweep(cx)
    }
}

/// Looks whether it is time to end, without waiting.
async fn is_over(mut shutdown: Pin<&mut (impl Future<Output = ()> + Send)>) -> bool {
    poll_fn(|cx| Poll::Ready(shutdown.as_mut().poll(cx).is_ready())).await
}

impl fmt::Debug for Sweeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sweeper")
            .field("every", &self.every)
            .field("batch", &self.batch)
            .field("keep_closed", &self.keep_closed)
            .field("delivery_timeout", &self.delivery)
            .finish_non_exhaustive()
    }
}

/// ± 20 %, so that the sweepers of many processes do not meet.
fn jittered(every: Duration) -> Duration {
    let drawn = getrandom::u32().map_or(0, |random| random % 401);
    let pause = (every / 1_000).saturating_mul(800 + drawn);
    pause.max(Duration::from_millis(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_pause_is_jittered_and_none_is_nothing() {
        let minute = jittered(MINUTE);
        assert!((48 * SECOND..=72 * SECOND).contains(&minute));
        assert!(jittered(Duration::MAX) > 365 * DAY);
        assert!(jittered(Duration::ZERO) > Duration::ZERO);
    }
}
