//! Two transactions of three steps in every order: whatever comes first, one legal end, and nobody is told of a failure.
//! On a database every third order is tried, unless `KEEP_ORDERS` is `all`.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::Poll;
use std::time::{Duration, Instant};

use tower_keep::core::ManualClock;
use tower_keep::reservation::{
    HoldId, HoldOutcome, HoldRef, HoldState, Payment, ReservationError, ReservationGuard,
    ReservationLayer, ReservationStore, Reservations, Settled, Slot,
};

use super::{MINUTE, SECOND};

/// What one of the two does.
#[derive(Clone, Debug)]
enum Deed {
    /// Holds the slot, exclusively or one place of two.
    Hold(&'static str, Slot),
    Confirm(HoldRef),
    Extend(HoldId),
    Release(HoldId),
    Sweep,
}

/// What came of it.
#[derive(Clone, Debug)]
enum Told {
    Held(HoldId, HoldOutcome),
    Settled(Settled),
    Done,
}

type Answer = Result<Told, ReservationError>;

/// Waits at each of its steps until it may go on.
#[derive(Clone, Debug, Default)]
struct Pace {
    reached: Arc<AtomicUsize>,
    granted: Arc<AtomicUsize>,
}

impl Pace {
    async fn step(&self) {
        let own = self.reached.fetch_add(1, SeqCst) + 1;
        // Whoever paces polls: nobody need be woken.
        poll_fn(|_| match self.granted.load(SeqCst) >= own {
            true => Poll::Ready(()),
            false => Poll::Pending,
        })
        .await;
    }
}

async fn act(own: Reservations, deed: Deed, pace: Pace) -> Answer {
    if let Deed::Sweep = deed {
        pace.step().await;
        return own.sweep().await.map(|_| Told::Done);
    }
    let body = |mut guard: ReservationGuard| {
        let (deed, pace) = (deed.clone(), pace.clone());
        async move {
            pace.step().await;
            let told = match deed {
                Deed::Hold(holder, slot) => {
                    let hold = guard.hold(slot, holder).await?;
                    Told::Held(hold.id(), hold.outcome())
                }
                Deed::Confirm(by) => Told::Settled(guard.confirm(by).await?),
                Deed::Extend(hold) => {
                    guard.extend(hold, "ann", 5 * MINUTE).await?;
                    Told::Done
                }
                Deed::Release(hold) => {
                    guard.release(hold, "ann").await?;
                    Told::Done
                }
                Deed::Sweep => Told::Done,
            };
            pace.step().await;
            guard.find(HoldRef::payment("none")).await?;
            pace.step().await;
            Ok::<_, ReservationError>(told)
        }
    };
    own.run(body).within(MINUTE).attempts(50).await
}

/// Lets both go on in this order, a step at a time; who has to wait for the other is left waiting.
async fn in_order(
    own: &Reservations,
    deeds: [Deed; 2],
    order: &[usize],
    patience: u32,
) -> [Answer; 2] {
    let paces = [Pace::default(), Pace::default()];
    let mut acting: Vec<Pin<Box<dyn Future<Output = Answer> + Send>>> = Vec::new();
    for (deed, pace) in deeds.into_iter().zip(&paces) {
        acting.push(Box::pin(act(own.clone(), deed, pace.clone())));
    }
    let mut answers: [Option<Answer>; 2] = [None, None];
    let started = Instant::now();
    let free = (0..).flat_map(|_| [0, 1]);
    for (turn, at) in order.iter().copied().chain(free).enumerate() {
        let pace = &paces[at];
        let (before, mut waited) = (pace.reached.load(SeqCst), 0);
        pace.granted.fetch_add(1, SeqCst);
        while answers[at].is_none() && pace.reached.load(SeqCst) == before && waited < patience {
            let future = &mut acting[at];
            let polled = poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx)));
            match polled.await {
                Poll::Ready(answer) => answers[at] = Some(answer),
                Poll::Pending => tokio::time::sleep(Duration::from_millis(1)).await,
            }
            waited += 1;
        }
        assert!(
            turn < 10 || started.elapsed() < MINUTE,
            "nobody comes to an end"
        );
        if let [Some(first), Some(second)] = &answers {
            return [first.clone(), second.clone()];
        }
    }
    unreachable!("turns are taken for ever")
}

/// All orders of three steps each.
fn orders() -> Vec<Vec<usize>> {
    (0..64_u32)
        .filter(|bits| bits.count_ones() == 3)
        .map(|bits| (0..6).map(|at| (bits >> at & 1) as usize).collect())
        .collect()
}

/// A store, its clock, and how long a step is waited for: memory needs no time at all.
struct Desk {
    own: Reservations,
    clock: ManualClock,
    patience: u32,
    used: AtomicUsize,
}

impl Desk {
    /// Slots that nobody has asked for yet, one for each trial.
    fn slot(&self) -> Slot {
        super::slot(&format!("room {}", self.used.fetch_add(1, SeqCst)))
    }

    /// A hold of the slot, with a payment that is named like its resource.
    async fn held(&self, slot: &Slot) -> (HoldId, HoldRef) {
        let (slot, payment) = (slot.clone(), slot.resource().to_owned());
        let named = HoldRef::payment(&payment);
        let hold = self.own.run(move |mut guard: ReservationGuard| {
            let (slot, payment) = (slot.clone(), Payment::new(&payment));
            async move {
                let hold = guard.hold(slot, "ann").await?;
                guard.attach_payment(hold.id(), payment).await
            }
        });
        (hold.await.unwrap().id(), named)
    }

    async fn state(&self, hold: HoldId) -> HoldState {
        self.own.find(hold).await.unwrap().unwrap().state()
    }

    /// How many have the slot now.
    async fn takers(&self, slot: &Slot) -> usize {
        let calendar = self.own.availability(slot.resource(), slot.blocks()).await;
        calendar.unwrap().spans().len()
    }

    async fn all_orders(&self) {
        let all = self.patience == 1 || std::env::var("KEEP_ORDERS").is_ok_and(|all| all == "all");
        for order in orders().iter().step_by(if all { 1 } else { 3 }) {
            self.try_all(order).await;
        }
    }

    async fn both(&self, deeds: [Deed; 2], order: &[usize]) -> [Answer; 2] {
        let at = format!("{deeds:?} in {order:?}");
        let answers = in_order(&self.own, deeds, order, self.patience).await;
        for answer in &answers {
            if let Err(error) = answer {
                assert!(!error.status().is_server_error(), "{at}: {answers:?}");
            }
        }
        answers
    }

    async fn try_all(&self, order: &[usize]) {
        self.two_guests(order).await;
        self.double_clicks(order).await;
        self.exclusive_beside_counted(order).await;
        self.two_confirmations(order).await;
        self.a_release_beside_a_confirmation(order).await;
        self.an_extension_beside_a_sweep(order).await;
        self.a_late_confirmation_beside_a_taker(order).await;
        self.a_late_confirmation_beside_a_sweep(order).await;
    }

    async fn two_guests(&self, order: &[usize]) {
        let slot = self.slot();
        let wish = |holder| Deed::Hold(holder, slot.clone());
        let answers = self.both([wish("ann"), wish("bob")], order).await;
        let won = answers.iter().filter(|answer| answer.is_ok()).count();
        assert_eq!((won, self.takers(&slot).await), (1, 1), "{answers:?}");
    }

    async fn double_clicks(&self, order: &[usize]) {
        for slot in [self.slot(), self.slot().units(1).of(2)] {
            let wish = || Deed::Hold("ann", slot.clone());
            let answers = self.both([wish(), wish()], order).await;
            let [Ok(Told::Held(first, a)), Ok(Told::Held(second, b))] = answers else {
                panic!("{order:?}: {answers:?}");
            };
            assert_eq!((first, self.takers(&slot).await), (second, 1));
            let made = [a, b]
                .iter()
                .filter(|own| **own == HoldOutcome::Created)
                .count();
            assert_eq!(made, 1, "{order:?}");
        }
    }

    async fn exclusive_beside_counted(&self, order: &[usize]) {
        let slot = self.slot();
        let place = slot.clone().units(1).of(2);
        let wishes = [Deed::Hold("ann", slot.clone()), Deed::Hold("bob", place)];
        let answers = self.both(wishes, order).await;
        let won = answers.iter().filter(|answer| answer.is_ok()).count();
        assert_eq!((won, self.takers(&slot).await), (1, 1), "{answers:?}");
    }

    async fn two_confirmations(&self, order: &[usize]) {
        let slot = self.slot();
        let (hold, payment) = self.held(&slot).await;
        let deeds = [Deed::Confirm(payment.clone()), Deed::Confirm(payment)];
        let answers = self.both(deeds, order).await;
        let is_new = |answer: &&Answer| matches!(answer, Ok(Told::Settled(Settled::Confirmed(_))));
        let is_known =
            |answer: &&Answer| matches!(answer, Ok(Told::Settled(Settled::AlreadyConfirmed(_))));
        let counted = (
            answers.iter().filter(is_new).count(),
            answers.iter().filter(is_known).count(),
        );
        assert_eq!(counted, (1, 1), "{order:?}: {answers:?}");
        assert_eq!(self.state(hold).await, HoldState::Confirmed);
    }

    async fn a_release_beside_a_confirmation(&self, order: &[usize]) {
        let slot = self.slot();
        let (hold, payment) = self.held(&slot).await;
        let answers = self
            .both([Deed::Release(hold), Deed::Confirm(payment)], order)
            .await;
        // Released first, the slot is free and the money is honoured; later, there is nothing to release.
        assert!(answers[1].is_ok(), "{order:?}: {answers:?}");
        assert_eq!(self.takers(&slot).await, 1, "{order:?}: {answers:?}");
        assert_eq!(self.state(hold).await, HoldState::Confirmed, "{order:?}");
    }

    async fn an_extension_beside_a_sweep(&self, order: &[usize]) {
        let slot = self.slot();
        let (hold, _) = self.held(&slot).await;
        self.clock.advance(10 * MINUTE - SECOND);
        let in_time = self.both([Deed::Extend(hold), Deed::Sweep], order).await;
        assert!(in_time.iter().all(Result::is_ok), "{order:?}: {in_time:?}");
        assert_eq!(self.state(hold).await, HoldState::Held);
        self.clock.advance(5 * MINUTE);
        let late = self.both([Deed::Extend(hold), Deed::Sweep], order).await;
        assert!(
            matches!(late[0], Err(ReservationError::HoldExpired)),
            "{order:?}: {late:?}"
        );
        assert_eq!(
            (self.state(hold).await, self.takers(&slot).await),
            (HoldState::Expired, 0)
        );
        self.back(15 * MINUTE - SECOND);
    }

    async fn a_late_confirmation_beside_a_taker(&self, order: &[usize]) {
        let slot = self.slot();
        let (hold, payment) = self.held(&slot).await;
        self.clock.advance(10 * MINUTE);
        let deeds = [Deed::Confirm(payment), Deed::Hold("bob", slot.clone())];
        let answers = self.both(deeds, order).await;
        let end = (self.state(hold).await, answers[1].is_ok());
        let legal = [
            (HoldState::Confirmed, false),
            (HoldState::LateConflict, true),
        ];
        assert!(legal.contains(&end), "{order:?}: {answers:?}");
        assert!(answers[0].is_ok(), "{order:?}: {answers:?}");
        assert_eq!(self.takers(&slot).await, 1);
        self.back(10 * MINUTE);
    }

    async fn a_late_confirmation_beside_a_sweep(&self, order: &[usize]) {
        let slot = self.slot();
        let (hold, payment) = self.held(&slot).await;
        self.clock.advance(10 * MINUTE);
        let answers = self
            .both([Deed::Confirm(payment), Deed::Sweep], order)
            .await;
        assert!(answers.iter().all(Result::is_ok), "{order:?}: {answers:?}");
        let end = (self.state(hold).await, self.takers(&slot).await);
        assert_eq!(end, (HoldState::Confirmed, 1), "{order:?}: {answers:?}");
        self.back(10 * MINUTE);
    }

    /// Every trial begins at the same time.
    fn back(&self, by: Duration) {
        use tower_keep::core::Clock;
        let by = u64::try_from(by.as_micros()).unwrap();
        self.clock.set_micros(self.clock.now_micros() - by);
    }
}

fn desk(store: impl ReservationStore, clock: ManualClock, patience: u32) -> Desk {
    Desk {
        own: ReservationLayer::new(store).reservations(),
        clock,
        patience,
        used: AtomicUsize::new(0),
    }
}

#[tokio::test]
async fn two_transactions_in_every_order_end_legally_in_memory() {
    let clock = super::clock();
    let store = tower_keep::backend::memory::MemoryStore::builder().clock(clock.clone());
    desk(store.build(), clock, 1).all_orders().await;
}

#[tokio::test]
async fn two_transactions_in_any_order_end_legally_on_sqlite() {
    let (clock, folder) = (super::clock(), tempfile::tempdir().unwrap());
    let url = format!("sqlite:{}", folder.path().join("o.db").display());
    desk(patient(&url, &clock).await, clock, 8)
        .all_orders()
        .await;
}

#[tokio::test]
async fn two_transactions_in_any_order_end_legally_on_postgres() {
    let clock = super::clock();
    let url = crate::support::postgres::shared().await.database().await;
    desk(patient(&url, &clock).await, clock, 8)
        .all_orders()
        .await;
}

/// A handle whose locks are waited for as long as a busy machine may need.
pub(super) async fn patient(url: &str, clock: &ManualClock) -> tower_keep::backend::sql::SqlStore {
    let db = tower_keep::backend::sql::SqlStore::builder(url).clock(clock.clone());
    let db = db
        .acquire_timeout(MINUTE)
        .lock_timeout(MINUTE)
        .statement_timeout(2 * MINUTE);
    db.transaction_timeout(5 * MINUTE).open().await.unwrap()
}
