//! What every store of holds promises.
#![allow(clippy::panic, clippy::unwrap_used)]

mod model;
mod payments;

use std::sync::Arc;
use std::time::Duration;

pub use model::model;

use crate::core::{Clock, ManualClock, Timestamp};
use crate::reservation::store::{Delivery, SweepLimits};
use crate::reservation::{
    Claimant, Conflict, EventKind, EventSet, Hold, HoldId, HoldOutcome, HoldState,
    ReservationError, ReservationGuard, ReservationLayer, ReservationStore, Reservations, Slot,
    Slots,
};

const MINUTE: Duration = Duration::from_secs(60);

/// Holds a store, driven by `clock`, against every promise of [`ReservationStore`].
///
/// # Panics
/// At the first promise that is broken.
pub async fn reservation(store: Arc<dyn ReservationStore>, clock: &ManualClock) {
    let desk = Desk::new(store, clock);
    a_hold_blocks_until_exactly_its_end(&desk).await;
    neighbours_do_not_touch_and_buffers_add_up(&desk).await;
    several_slots_are_one_hold(&desk).await;
    the_same_wish_meets_its_own_hold(&desk).await;
    refusals_say_what_is_in_the_way_and_no_more(&desk).await;
    places_are_counted_at_the_busiest_instant(&desk).await;
    a_refusal_leaves_the_transaction_usable(&desk).await;
    what_is_rolled_back_never_was(&desk).await;
    a_hold_belongs_to_its_holder_and_its_token(&desk).await;
    states_change_as_the_table_says(&desk).await;
    an_expiry_is_told_once(&desk).await;
    a_failing_delivery_waits_longer_and_longer_and_is_parked(&desk).await;
    what_was_delivered_is_not_failed_by_a_late_answer(&desk).await;
    a_sweep_says_how_far_behind_it_was(&desk).await;
    a_calendar_shows_what_is_taken(&desk).await;
    payments::payments(&desk).await;
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

async fn a_hold_blocks_until_exactly_its_end(desk: &Desk<'_>) {
    let slot = desk.slot("end", 0, 30);
    let hold = desk.held(slot.clone(), "ann").await;
    assert_eq!(hold.outcome(), HoldOutcome::Created);
    assert!(hold.token().is_some());
    assert_eq!(hold.expires_at(), Some(desk.now().plus(10 * MINUTE)));
    desk.clock.advance(10 * MINUTE - Duration::from_millis(1));
    let refused = desk.hold(slot.clone(), "bob").await;
    assert_eq!(code(refused), "SLOT_TEMPORARILY_RESERVED");
    desk.clock.advance(Duration::from_millis(1));
    assert_eq!(desk.state(hold.id()).await, HoldState::Expired);
    assert_eq!(code(desk.hold(slot, "bob").await), "ok");
    assert_eq!(
        desk.events_of(hold.id()).await,
        [EventKind::Created, EventKind::Expired]
    );
}

async fn neighbours_do_not_touch_and_buffers_add_up(desk: &Desk<'_>) {
    desk.held(desk.slot("next", 0, 60), "ann").await;
    desk.held(desk.slot("next", 60, 120), "bob").await;
    let overlapping = desk.hold(desk.slot("next", 30, 90), "cid").await;
    assert_eq!(code(overlapping), "SLOT_TEMPORARILY_RESERVED");
    desk.held(desk.slot("next", 30, 60).unit("room"), "cid")
        .await;
    let cleaned = |from, to| {
        desk.slot("buffer", from, to)
            .buffer(Duration::ZERO, 10 * MINUTE)
    };
    desk.held(cleaned(0, 60), "ann").await;
    assert_eq!(
        code(desk.hold(cleaned(69, 80), "bob").await),
        "SLOT_TEMPORARILY_RESERVED"
    );
    desk.held(cleaned(70, 80), "bob").await;
}

async fn several_slots_are_one_hold(desk: &Desk<'_>) {
    desk.held(desk.slot("b", 0, 10), "ann").await;
    let both = [
        desk.slot("c", 0, 10),
        desk.slot("b", 5, 15),
        desk.slot("a", 0, 10),
    ];
    assert_eq!(
        code(desk.hold(both, "bob").await),
        "SLOT_TEMPORARILY_RESERVED"
    );
    desk.held(desk.slot("a", 0, 10), "cid").await;
    let free = [desk.slot("d", 0, 10), desk.slot("c", 0, 10)];
    let hold = desk.held(free, "bob").await;
    assert_eq!(hold.slots().len(), 2);
    assert_eq!(
        desk.release(hold.id(), "bob")
            .await
            .map(|hold| hold.state())
            .ok(),
        Some(HoldState::Released)
    );
    desk.held(desk.slot("c", 0, 10), "cid").await;
    desk.held(desk.slot("d", 0, 10), "cid").await;
}

async fn the_same_wish_meets_its_own_hold(desk: &Desk<'_>) {
    let slots = [desk.slot("same", 0, 10), desk.slot("same", 20, 30)];
    let first = desk.held(slots.clone(), "ann").await;
    desk.clock.advance(MINUTE);
    let again = desk
        .held(
            [
                Slot::new("same", slots[1].start()..slots[1].end()),
                slots[0].clone(),
            ],
            "ann",
        )
        .await;
    assert_eq!(
        (again.id(), again.outcome()),
        (first.id(), HoldOutcome::Reused)
    );
    assert_eq!(again.expires_at(), first.expires_at());
    assert!(again.token().is_none());
    let part = desk.hold(slots[0].clone(), "ann").await;
    assert_eq!(code(part), "SLOT_TEMPORARILY_RESERVED");
    let slots = &slots;
    let keyed = desk
        .own
        .run(|mut guard: ReservationGuard| async move {
            guard.hold(slots.clone(), "ann").key("second").await
        })
        .await;
    assert_eq!(code(keyed), "SLOT_TEMPORARILY_RESERVED");
    let place = desk.slot("counted twin", 0, 10).units(1).of(2);
    let one = desk.held(place.clone(), "ann").await;
    assert_eq!(desk.held(place, "ann").await.id(), one.id());
}

async fn refusals_say_what_is_in_the_way_and_no_more(desk: &Desk<'_>) {
    let slot = desk.slot("refused", 0, 10);
    let hold = desk.held(slot.clone(), "ann").await;
    let taken = |by_you| {
        ReservationError::Conflict(Conflict::SlotTaken {
            held_until: hold.expires_at(),
            by_you,
            retry_after: 600,
        })
    };
    let wider = desk.slot("refused", 0, 20);
    let by_other = desk.hold(wider.clone(), "bob").await.unwrap_err();
    assert_eq!(format!("{by_other:?}"), format!("{:?}", taken(false)));
    let by_self = desk.hold(wider.clone(), "ann").await.unwrap_err();
    assert_eq!(format!("{by_self:?}"), format!("{:?}", taken(true)));
    let id = hold.id();
    let confirmed = desk
        .own
        .run(|mut guard: ReservationGuard| async move { guard.confirm(id).await })
        .await;
    assert!(confirmed.is_ok());
    assert_eq!(
        code(desk.hold(wider.clone(), "bob").await),
        "SLOT_ALREADY_BOOKED"
    );
    assert_eq!(code(desk.hold(wider, "ann").await), "ALREADY_BOOKED_BY_YOU");
    let past = Slot::new("refused", Timestamp::EPOCH..Timestamp::from_millis(1));
    assert_eq!(code(desk.hold(past, "ann").await), "SLOT_IN_PAST");
    assert_eq!(
        code(desk.hold(desk.slot("refused", 0, 5), "").await),
        "SLOT_INVALID"
    );
}

async fn places_are_counted_at_the_busiest_instant(desk: &Desk<'_>) {
    let places = |from, to, units| desk.slot("places", from, to).units(units).of(2);
    desk.held(places(0, 20, 1), "ann").await;
    desk.held(places(30, 50, 1), "bob").await;
    desk.held(places(10, 40, 1), "cid").await;
    let full = desk.hold(places(15, 35, 1), "dot").await;
    assert_eq!(code(full), "CAPACITY_EXCEEDED");
    desk.held(places(50, 60, 2), "dot").await;
    let exclusive = desk.hold(desk.slot("places", 55, 70), "eve").await;
    assert_eq!(code(exclusive), "SLOT_TEMPORARILY_RESERVED");
    desk.held(desk.slot("places", 60, 70), "eve").await;
    let counted = desk.hold(places(65, 75, 1), "ann").await;
    assert_eq!(code(counted), "SLOT_TEMPORARILY_RESERVED");
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

async fn a_hold_belongs_to_its_holder_and_its_token(desk: &Desk<'_>) {
    let hold = desk.held(desk.slot("own", 0, 10), "ann").await;
    assert_eq!(code(desk.release(hold.id(), "bob").await), "HOLD_NOT_FOUND");
    let wrong = crate::reservation::HoldToken::from("wrong");
    assert_eq!(code(desk.release(hold.id(), wrong).await), "HOLD_NOT_FOUND");
    let unknown = HoldId::from(uuid::Uuid::nil());
    assert_eq!(code(desk.release(unknown, "ann").await), "HOLD_NOT_FOUND");
    let Some(token) = hold.token().cloned() else {
        panic!("a new hold comes with its token");
    };
    assert_eq!(code(desk.release(hold.id(), token).await), "ok");
    assert_eq!(code(desk.release(hold.id(), "ann").await), "ok");
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

async fn an_expiry_is_told_once(desk: &Desk<'_>) {
    let due = desk
        .held([desk.slot("swept", 0, 9), desk.slot("swept", 9, 10)], "ann")
        .await
        .id();
    let kept = desk
        .held(desk.slot("swept", 300_000, 300_010), "ann")
        .await
        .id();
    let confirmed = desk
        .own
        .run(|mut guard: ReservationGuard| async move { guard.confirm(kept).await });
    assert!(confirmed.await.is_ok());
    desk.clock.advance(10 * MINUTE);
    let _ = desk
        .own
        .sweep()
        .await
        .map(|swept| assert!(swept.expired >= 1));
    let again = desk.own.sweep().await;
    assert_eq!(again.map(|swept| swept.expired).ok(), Some(0));
    assert_eq!(
        desk.events_of(due).await,
        [EventKind::Created, EventKind::Expired]
    );
    desk.clock.advance(91 * 24 * 60 * MINUTE);
    assert!(desk.own.sweep().await.is_ok());
    assert!(matches!(desk.own.find(due).await, Ok(None)));
    assert_eq!(desk.state(kept).await, HoldState::Confirmed);
}

async fn a_failing_delivery_waits_longer_and_longer_and_is_parked(desk: &Desk<'_>) {
    let hold = desk.held(desk.slot("failing", 0, 10), "ann").await.id();
    let mine = || async {
        let taken = desk.store.take_events(100, MINUTE).await;
        let events = taken.unwrap_or_else(|error| panic!("{error:?}"));
        events.into_iter().find(|event| event.hold == hold)
    };
    let Some(event) = mine().await else {
        panic!("a hold was made, and nothing is told")
    };
    assert!(mine().await.is_none(), "a taken event is leased");
    let mut pause = Duration::from_secs(1);
    for failed in 1..=20 {
        let settled = vec![(event.id.clone(), Delivery::Failed)];
        assert!(desk.store.settle_events(settled).await.is_ok());
        desk.clock.advance(pause - Duration::from_millis(1));
        assert!(
            mine().await.is_none(),
            "it waits {pause:?} after {failed} failures"
        );
        desk.clock.advance(Duration::from_millis(1));
        let due = mine().await.is_some();
        assert_eq!(due, failed < 20, "parked after 20 failures");
        pause = (pause * 2).min(Duration::from_secs(3_600));
    }
    assert!(desk.own.redeliver(event.id.clone()).await.is_ok());
    assert_eq!(mine().await.map(|event| event.attempts), Some(0));
}

/// A lease that ran out was taken over; the first to have it answers late.
async fn what_was_delivered_is_not_failed_by_a_late_answer(desk: &Desk<'_>) {
    let hold = desk.held(desk.slot("late answer", 0, 10), "ann").await.id();
    let mine = || async {
        let taken = desk.store.take_events(100, MINUTE).await;
        let events = taken.unwrap_or_else(|error| panic!("{error:?}"));
        events.into_iter().find(|event| event.hold == hold)
    };
    let Some(event) = mine().await else {
        panic!("a hold was made, and nothing is told")
    };
    for delivery in [Delivery::Delivered, Delivery::Failed] {
        let settled = vec![(event.id.clone(), delivery)];
        assert!(desk.store.settle_events(settled).await.is_ok());
    }
    desk.clock.advance(2 * MINUTE);
    assert!(mine().await.is_none(), "delivered is delivered");
    assert!(desk.own.redeliver(event.id.clone()).await.is_ok());
    assert!(mine().await.is_some(), "unless it is wanted again");
    let settled = vec![(event.id, Delivery::Delivered)];
    assert!(desk.store.settle_events(settled).await.is_ok());
}

async fn a_sweep_says_how_far_behind_it_was(desk: &Desk<'_>) {
    let limits = SweepLimits {
        batch: 500,
        keep_closed: 90 * 24 * 60 * MINUTE,
        record: EventSet::all(),
    };
    let sweep = || async {
        let swept = desk.store.sweep(limits).await;
        swept.unwrap_or_else(|error| panic!("{error:?}"))
    };
    desk.clock.advance(10 * MINUTE);
    while sweep().await.expired > 0 {}
    let hold = desk.held(desk.slot("behind", 0, 10), "ann").await.id();
    let before = sweep().await;
    assert_eq!(before.lag, Duration::ZERO, "nothing is over");
    assert!(before.pending >= 1, "it was not told yet");
    desk.clock.advance(13 * MINUTE);
    let found = sweep().await;
    assert_eq!((found.expired, found.lag), (1, 3 * MINUTE));
    desk.events_of(hold).await;
    let after = sweep().await;
    assert_eq!((after.lag, after.pending), (Duration::ZERO, 0));
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
