//! What every store of holds promises.
#![allow(clippy::panic, clippy::unwrap_used)]

mod events;
mod holds;
mod model;
mod payments;

use std::sync::Arc;
use std::time::Duration;

pub use model::model;

use crate::core::{Clock, ManualClock, Timestamp};
use crate::reservation::store::{Change, ChangeDecision, Delivery, Ended};
use crate::reservation::{
    Claimant, EventKind, EventSet, Hold, HoldId, HoldState, ReservationError, ReservationGuard,
    ReservationLayer, ReservationStore, Reservations, Slot, Slots,
};

const MINUTE: Duration = Duration::from_secs(60);

/// Holds a store, driven by `clock`, against every promise of [`ReservationStore`].
///
/// # Panics
/// At the first promise that is broken.
pub async fn reservation(store: Arc<dyn ReservationStore>, clock: &ManualClock) {
    let desk = Desk::new(store, clock);
    holds::a_hold_blocks_until_exactly_its_end(&desk).await;
    holds::neighbours_do_not_touch_and_buffers_add_up(&desk).await;
    holds::several_slots_are_one_hold(&desk).await;
    holds::the_same_wish_meets_its_own_hold(&desk).await;
    holds::refusals_say_what_is_in_the_way_and_no_more(&desk).await;
    holds::places_are_counted_at_the_busiest_instant(&desk).await;
    a_refusal_leaves_the_transaction_usable(&desk).await;
    what_is_rolled_back_never_was(&desk).await;
    holds::a_hold_belongs_to_its_holder_and_its_token(&desk).await;
    states_change_as_the_table_says(&desk).await;
    events::an_expiry_is_told_once(&desk).await;
    events::a_failing_delivery_waits_longer_and_longer_and_is_parked(&desk).await;
    events::what_was_delivered_is_not_failed_by_a_late_answer(&desk).await;
    events::a_sweep_says_how_far_behind_it_was(&desk).await;
    events::events_come_in_the_order_in_which_they_became_due(&desk).await;
    a_calendar_shows_what_is_taken(&desk).await;
    a_calendar_too_full_to_show_says_so_and_ends_nothing(&desk).await;
    payments::payments(&desk).await;
    a_slow_payment_holds_no_longer_than_it_may(&desk).await;
    events::what_is_long_over_goes_with_all_that_belongs_to_it(&desk).await;
}

async fn a_slow_payment_holds_no_longer_than_it_may(desk: &Desk<'_>) {
    let created = desk.now();
    let hold = desk.held(desk.slot("slow", 0, 10), "ann").await.id();
    let day = 24 * 60 * MINUTE;
    for after in [Duration::ZERO, 10 * MINUTE] {
        desk.clock.advance(after);
        let open = desk.store.open(None);
        let change = Change::Processing {
            lasting: 40 * day,
            at_most: 30 * day,
        };
        let done = open.change(hold.into(), change, EventSet::all()).await;
        let ended = open.end(crate::core::Ending::Commit).await;
        assert!(matches!(ended, Ok(Ended::Committed)), "{ended:?}");
        let (Ok(ChangeDecision::Done(record)) | Ok(ChangeDecision::Same(record))) = done else {
            panic!("a running hold lasts longer: {done:?}")
        };
        assert_eq!(record.expires_at, Some(created.plus(30 * day)));
    }
    assert_eq!(code(desk.release(hold, "ann").await), "ok");
}

/// Counts the winners of `n` simultaneous wishes for one slot, spread over `stores`.
///
/// # Panics
/// If anybody is refused otherwise than by a typed conflict.
pub async fn winners_of(n: usize, stores: &[Arc<dyn ReservationStore>], slot: Slot) -> usize {
    let runs: Vec<_> = (0..n)
        .map(|at| {
            let store = Arc::clone(&stores[at % stores.len()]);
            let slot = slot.clone();
            tokio::spawn(async move {
                let own = ReservationLayer::new(store).reservations();
                own.hold(slot, &format!("guest-{at}")).await
            })
        })
        .collect();
    let mut winners = 0;
    for run in runs {
        match run.await {
            Ok(Ok(_)) => winners += 1,
            Ok(Err(ReservationError::Conflict(_))) => {}
            other => panic!("neither won nor lost: {other:?}"),
        }
    }
    winners
}

/// A store, its clock, and short words for what the checks do.
pub(super) struct Desk<'c> {
    pub(super) own: Reservations,
    pub(super) strict: Reservations,
    pub(super) store: Arc<dyn ReservationStore>,
    pub(super) clock: &'c ManualClock,
}

impl<'c> Desk<'c> {
    fn new(store: Arc<dyn ReservationStore>, clock: &'c ManualClock) -> Self {
        let layer = ReservationLayer::new(Arc::clone(&store)).record(EventSet::all());
        let strict = layer
            .clone()
            .late_confirm(crate::reservation::LateConfirm::Reject);
        Self {
            own: layer.reservations(),
            strict: strict.reservations(),
            store,
            clock,
        }
    }

    pub(super) fn now(&self) -> Timestamp {
        Timestamp::of(self.clock)
    }

    /// A slot of `resource`, in minutes from an hour after the clock's time.
    pub(super) fn slot(&self, resource: &str, from: u32, to: u32) -> Slot {
        let start = self.now().plus(60 * MINUTE);
        Slot::new(resource, start.plus(MINUTE * from)..start.plus(MINUTE * to))
    }

    pub(super) async fn hold(
        &self,
        slots: impl Into<Slots>,
        holder: &str,
    ) -> Result<Hold, ReservationError> {
        self.own.hold(slots, holder).await
    }

    pub(super) async fn held(&self, slots: impl Into<Slots>, holder: &str) -> Hold {
        match self.hold(slots, holder).await {
            Ok(hold) => hold,
            Err(error) => panic!("expected a hold, got {error:?}"),
        }
    }

    pub(super) async fn state(&self, hold: HoldId) -> HoldState {
        match self.own.find(hold).await {
            Ok(Some(hold)) => hold.state(),
            other => panic!("expected a hold, got {other:?}"),
        }
    }

    pub(super) async fn release(
        &self,
        hold: HoldId,
        claimant: impl Into<Claimant>,
    ) -> Result<Hold, ReservationError> {
        let claimant = claimant.into();
        let claimant = &claimant;
        self.own
            .run(|mut guard: ReservationGuard| async move {
                guard.release(hold, claimant.clone()).await
            })
            .await
    }

    /// Takes all due events, settles them as delivered, and returns those of one hold.
    pub(super) async fn events_of(&self, hold: HoldId) -> Vec<EventKind> {
        let mut kinds = Vec::new();
        loop {
            let taken = self.store.take_events(100, MINUTE).await;
            let events = taken.unwrap_or_else(|error| panic!("{error:?}"));
            if events.is_empty() {
                return kinds;
            }
            let mine = events.iter().filter(|event| event.hold == hold);
            kinds.extend(mine.map(|event| event.kind));
            let settled = events
                .into_iter()
                .map(|event| (event.id, Delivery::Delivered));
            let done = self.store.settle_events(settled.collect()).await;
            done.unwrap_or_else(|error| panic!("{error:?}"));
        }
    }
}

pub(super) fn code<T: std::fmt::Debug>(done: Result<T, ReservationError>) -> &'static str {
    match done {
        Ok(_) => "ok",
        Err(error) => error.code(),
    }
}

async fn a_refusal_leaves_the_transaction_usable(desk: &Desk<'_>) {
    let (taken, free) = (desk.slot("usable", 0, 10), desk.slot("usable", 10, 20));
    desk.held(taken.clone(), "ann").await;
    let (taken, free) = (&taken, &free);
    let second = desk
        .own
        .run(|mut guard: ReservationGuard| async move {
            assert!(
                guard
                    .hold([taken.clone(), free.clone()], "bob")
                    .await
                    .is_err()
            );
            guard.hold(free.clone(), "bob").await
        })
        .await;
    let hold = second.unwrap_or_else(|error| panic!("{error:?}"));
    assert_eq!(desk.state(hold.id()).await, HoldState::Held);
}

async fn what_is_rolled_back_never_was(desk: &Desk<'_>) {
    let slot = desk.slot("undone", 0, 10);
    let wanted = &slot;
    let undone: Result<(), ReservationError> = desk
        .own
        .run(|mut guard: ReservationGuard| async move {
            let hold = guard.hold(wanted.clone(), "ann").await?;
            assert!(guard.find(hold.id()).await?.is_some());
            Err(ReservationError::HoldNotFound)
        })
        .await;
    assert_eq!(code(undone), "HOLD_NOT_FOUND");
    let hold = desk.held(slot, "bob").await;
    assert_eq!(desk.events_of(hold.id()).await, [EventKind::Created]);
}

async fn states_change_as_the_table_says(desk: &Desk<'_>) {
    let hold = desk.held(desk.slot("table", 0, 10), "ann").await;
    let id = hold.id();
    let extend = |by| async move {
        desk.own
            .run(|mut guard: ReservationGuard| async move { guard.extend(id, "ann", by).await })
            .await
    };
    let end = |by| Some(desk.now().plus(by));
    let extended = extend(20 * MINUTE)
        .await
        .unwrap_or_else(|error| panic!("{error:?}"));
    assert_eq!(
        (extended.expires_at(), extended.version()),
        (end(20 * MINUTE), 2)
    );
    let shorter = extend(MINUTE)
        .await
        .unwrap_or_else(|error| panic!("{error:?}"));
    assert_eq!(shorter.expires_at(), end(20 * MINUTE));
    let longest = extend(100 * 60 * MINUTE)
        .await
        .unwrap_or_else(|error| panic!("{error:?}"));
    assert_eq!(longest.expires_at(), end(24 * 60 * MINUTE));
    let run = |what: &'static str| async move {
        let done = desk.own.run(|mut guard: ReservationGuard| async move {
            match what {
                "processing" => guard.processing(id).await.map(|hold| hold.state()),
                "confirm" => guard.confirm(id).await.map(|done| done.hold().state()),
                "cancel" => guard
                    .cancel(id, Claimant::system())
                    .await
                    .map(|hold| hold.state()),
                _ => guard.release(id, "ann").await.map(|hold| hold.state()),
            }
        });
        done.await.map_err(|error| error.code())
    };
    assert_eq!(run("cancel").await, Err("HOLD_STATE"));
    assert_eq!(run("processing").await, Ok(HoldState::Processing));
    assert_eq!(code(extend(MINUTE).await), "HOLD_STATE");
    desk.clock.advance(10 * 24 * 60 * MINUTE);
    assert_eq!(desk.state(id).await, HoldState::Processing);
    assert_eq!(run("confirm").await, Ok(HoldState::Confirmed));
    assert_eq!(run("release").await, Err("HOLD_STATE"));
    assert_eq!(run("cancel").await, Ok(HoldState::Cancelled));
    assert_eq!(run("cancel").await, Ok(HoldState::Cancelled));
    let over = desk.held(desk.slot("table", 20, 30), "ann").await.id();
    desk.clock.advance(10 * MINUTE);
    let late = desk
        .own
        .run(|mut guard: ReservationGuard| async move { guard.extend(over, "ann", MINUTE).await })
        .await;
    assert_eq!(code(late), "HOLD_EXPIRED");
}

async fn a_calendar_shows_what_is_taken(desk: &Desk<'_>) {
    let slot = desk
        .slot("calendar", 10, 20)
        .buffer(Duration::ZERO, 5 * MINUTE);
    let day = desk.slot("calendar", 0, 60);
    let range = day.start()..day.end();
    desk.held(slot.clone(), "ann").await;
    let shown = desk.own.availability("calendar", range.clone()).await;
    let shown = shown.unwrap_or_else(|error| panic!("{error:?}"));
    assert_eq!(shown.spans().len(), 1);
    assert_eq!(
        (shown.spans()[0].start, shown.spans()[0].end),
        (slot.start(), slot.end())
    );
    let free = shown.free(10 * MINUTE, 10 * MINUTE);
    let minutes: Vec<u64> = free
        .iter()
        .map(|at| at.since(day.start()).as_secs() / 60)
        .collect();
    assert_eq!(minutes, [0, 30, 40, 50]);
    desk.clock.advance(10 * MINUTE);
    let shown = desk.own.availability("calendar", range).await;
    assert_eq!(shown.map(|shown| shown.spans().len()).ok(), Some(0));
    assert!(desk.clock.now_micros() > 0);
}

/// 10,000 spans are shown, and one more is not.
async fn a_calendar_too_full_to_show_says_so_and_ends_nothing(desk: &Desk<'_>) {
    let of = |row: u32, slots: u32| -> Vec<Slot> {
        let seats = 0..slots;
        seats
            .map(|seat| desk.slot("hall", seat, seat + 1).unit(format!("row {row}")))
            .collect()
    };
    // In a few transactions: a file would wait for its disk after each hold.
    let rows: Vec<u32> = (0..=312).collect();
    for rows in rows.chunks(64) {
        let held = desk.own.run(|mut guard: ReservationGuard| {
            let holds: Vec<Vec<Slot>> = rows
                .iter()
                .map(|row| of(*row, if *row < 312 { 32 } else { 16 }))
                .collect();
            async move {
                for slots in holds {
                    guard.hold(slots, "ann").await?;
                }
                Ok::<(), ReservationError>(())
            }
        });
        held.await.unwrap_or_else(|error| panic!("{error:?}"));
    }
    let hour = desk.slot("hall", 0, 60);
    let shown = desk.own.availability("hall", hour.blocks()).await;
    assert_eq!(shown.map(|shown| shown.spans().len()).ok(), Some(10_000));
    desk.held(desk.slot("hall", 40, 41), "ann").await;
    let refused = desk.own.availability("hall", hour.blocks()).await;
    assert_eq!(code(refused), "RANGE_TOO_WIDE");
    let fewer = desk.slot("hall", 0, 31).blocks();
    let shown = desk.own.availability("hall", fewer).await;
    assert_eq!(
        shown.map(|shown| shown.spans().len()).ok(),
        Some(312 * 31 + 16)
    );
    let (whole, other) = (hour.blocks(), desk.slot("hall", 50, 51));
    let held = desk.own.run(|mut guard: ReservationGuard| {
        let (whole, other) = (whole.clone(), other.clone());
        async move {
            let refused = guard.availability("hall", whole).await;
            assert_eq!(code(refused), "RANGE_TOO_WIDE");
            guard.hold(other, "ann").await.map(|hold| hold.id())
        }
    });
    let held = held.await.unwrap_or_else(|error| panic!("{error:?}"));
    assert_eq!(desk.state(held).await, HoldState::Held);
}
