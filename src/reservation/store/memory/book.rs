//! What has been committed: holds by id, lane and due time, payments, the outbox.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::locks::Locks;
use crate::backend::memory::{Part, PartSetup};
use crate::core::{StoreError, StoreErrorKind, Timestamp};
use crate::reservation::event::{EventId, ReservationEvent};
use crate::reservation::hold::{HoldId, HoldRef, HoldState};
use crate::reservation::policy::Row;
use crate::reservation::slot::Slot;
use crate::reservation::store::{
    AvailabilityQuery, Busy, BusyState, Delivery, HoldRecord, MOST_ATTEMPTS, PaymentRecord,
    event_pause,
};

/// The most holds; more are refused, none is evicted.
const MOST_HOLDS: usize = 100_000;

/// One store's calendar.
pub(super) struct Book {
    pub(super) locks: Locks,
    most: usize,
    pages: Mutex<Pages>,
    /// Wakes a sweeper that waits for events.
    pub(super) told: Arc<Notify>,
}

#[derive(Default)]
struct Pages {
    holds: HashMap<HoldId, HoldRecord>,
    /// Rows in blocking states, by (resource, unit), then by the end of what they block.
    lanes: BTreeMap<(Box<str>, Box<str>), Lane>,
    due: BTreeSet<(Timestamp, HoldId)>,
    /// When a closed hold was closed, or a confirmed one is over.
    closed: BTreeSet<(Timestamp, HoldId)>,
    payments: HashMap<Box<str>, PaymentRecord>,
    paid: HashMap<HoldId, Vec<Box<str>>>,
    events: HashMap<EventId, Told>,
    pending: BTreeSet<(Timestamp, Timestamp, EventId)>,
    delivered: BTreeSet<(Timestamp, EventId)>,
}

struct Told {
    event: ReservationEvent,
    due: Timestamp,
    state: Telling,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Telling {
    Pending,
    Delivered,
    Parked,
}

/// The end of what it blocks, the hold, and which of its slots.
type Lane = BTreeSet<(Timestamp, HoldId, usize)>;

/// What an open transaction has changed so far.
#[derive(Default)]
pub(super) struct Changes {
    pub(super) holds: BTreeMap<HoldId, HoldRecord>,
    pub(super) payments: BTreeMap<Box<str>, PaymentRecord>,
    pub(super) events: Vec<ReservationEvent>,
}

impl Part for Book {
    fn build(setup: &PartSetup) -> Self {
        Self {
            locks: Locks::default(),
            most: setup.max_entries.min(MOST_HOLDS),
            pages: Mutex::new(Pages::default()),
            told: Arc::default(),
        }
    }
}

impl Book {
    pub(super) fn room(&self, changes: &Changes) -> Result<(), StoreError> {
        if self.pages.lock().holds.len() + changes.holds.len() >= self.most {
            return Err(StoreErrorKind::Full.into());
        }
        Ok(())
    }

    /// Applies a transaction's changes in one update.
    pub(super) fn apply(&self, changes: Changes) {
        let mut pages = self.pages.lock();
        for record in changes.holds.into_values() {
            pages.put(record);
        }
        for (name, payment) in changes.payments {
            if !pages.payments.contains_key(&name) {
                let own = pages.paid.entry(payment.hold).or_default();
                own.push(name.clone());
            }
            pages.payments.insert(name, payment);
        }
        if !changes.events.is_empty() {
            self.told.notify_one();
        }
        for event in changes.events {
            pages.tell(event);
        }
    }

    pub(super) fn hold(&self, id: HoldId) -> Option<HoldRecord> {
        self.pages.lock().holds.get(&id).cloned()
    }

    pub(super) fn payment(&self, name: &str) -> Option<PaymentRecord> {
        self.pages.lock().payments.get(name).cloned()
    }

    pub(super) fn payments(&self, hold: HoldId, spoken: &str) -> Vec<PaymentRecord> {
        let pages = self.pages.lock();
        let names = pages.paid.get(&hold).into_iter().flatten();
        let own = names.filter_map(|name| pages.payments.get(name));
        let other = pages.payments.get(spoken);
        let other = other.filter(|payment| payment.hold != hold);
        own.chain(other).cloned().collect()
    }

    pub(super) fn find(&self, by: &HoldRef, now: Timestamp) -> Option<HoldRecord> {
        let id = match by {
            HoldRef::Id(id) => *id,
            HoldRef::Payment(payment) => self.payment(payment)?.hold,
        };
        let mut record = self.hold(id)?;
        record.read_at = now;
        Some(record)
    }

    /// Reads the rows in blocking states that overlap `slots`, changes included.
    pub(super) fn overlaps(
        &self,
        slots: &[Slot],
        changes: &Changes,
        (holder, key): (&str, &str),
    ) -> Vec<Row> {
        let mut rows = Vec::new();
        let pages = self.pages.lock();
        let mut add = |record: &HoldRecord, part: usize, wanted: &Slot| {
            let Some(own) = record.slots.get(part) else {
                return;
            };
            let (blocks, wish) = (own.blocks(), wanted.blocks());
            let meets = blocks.start < wish.end && wish.start < blocks.end;
            if meets && own.shares_lane(wanted) && record.state.blocks() {
                rows.push(row_of(record, own, holder, key));
            }
        };
        for slot in slots {
            let lane = pages.lanes.get(&(slot.resource.clone(), slot.unit.clone()));
            for (_, id, part) in lane
                .into_iter()
                .flat_map(|lane| after(lane, slot.blocks().start))
            {
                if let (false, Some(record)) = (changes.holds.contains_key(id), pages.holds.get(id))
                {
                    add(record, *part, slot);
                }
            }
            for record in changes.holds.values() {
                (0..record.slots.len()).for_each(|part| add(record, part, slot));
            }
        }
        rows
    }

    pub(super) fn due(&self, now: Timestamp, batch: u32) -> Vec<HoldId> {
        let pages = self.pages.lock();
        let due = pages.due.iter().take_while(|(end, _)| *end <= now);
        due.take(batch as usize).map(|(_, id)| *id).collect()
    }

    pub(super) fn purge_holds(&self, closed_before: Timestamp, most: usize) -> u64 {
        let mut pages = self.pages.lock();
        let closed = pages
            .closed
            .iter()
            .take_while(|(at, _)| *at <= closed_before);
        let gone: Vec<HoldId> = closed.take(most).map(|(_, id)| *id).collect();
        for id in &gone {
            pages.forget(*id);
            for name in pages.paid.remove(id).unwrap_or_default() {
                pages.payments.remove(&name);
            }
        }
        gone.len() as u64
    }

    pub(super) fn purge_events(&self, delivered_before: Timestamp, most: usize) -> u64 {
        let mut pages = self.pages.lock();
        let old = pages
            .delivered
            .iter()
            .take_while(|(at, _)| *at <= delivered_before);
        let gone: Vec<_> = old.take(most).cloned().collect();
        for entry in &gone {
            pages.delivered.remove(entry);
            pages.events.remove(&entry.1);
        }
        gone.len() as u64
    }

    pub(super) fn busy(
        &self,
        query: &AvailabilityQuery,
        now: Timestamp,
        changes: &Changes,
    ) -> Vec<Busy> {
        let pages = self.pages.lock();
        let mut spans = Vec::new();
        let mut add = |record: &HoldRecord, slot: &Slot| {
            let blocks = slot.blocks();
            let meets = blocks.start < query.to && query.from < blocks.end;
            if *slot.resource == *query.resource && meets && record.state_at(now).blocks() {
                spans.push(busy_of(record, slot));
            }
        };
        let first = (query.resource.clone(), Box::from(""));
        let lanes = pages.lanes.range(first..);
        for (_, lane) in lanes.take_while(|((resource, _), _)| *resource == query.resource) {
            for (_, id, part) in after(lane, query.from) {
                let record = pages
                    .holds
                    .get(id)
                    .filter(|_| !changes.holds.contains_key(id));
                if let Some((record, slot)) =
                    record.and_then(|own| Some((own, own.slots.get(*part)?)))
                {
                    add(record, slot);
                }
            }
        }
        for record in changes.holds.values() {
            record.slots.iter().for_each(|slot| add(record, slot));
        }
        spans.sort_by(|a, b| (&a.unit, a.start).cmp(&(&b.unit, b.start)));
        spans
    }

    pub(super) fn take_events(
        &self,
        limit: u32,
        lease: Duration,
        now: Timestamp,
    ) -> Vec<ReservationEvent> {
        let mut pages = self.pages.lock();
        // In the order in which they became due, so that a backlog costs a batch no more than its own.
        let due = pages.pending.iter().take_while(|(due, _, _)| *due <= now);
        let due: Vec<_> = due.take(limit as usize).cloned().collect();
        let leased = due.into_iter().filter_map(|entry| {
            pages.pending.remove(&entry);
            let (_, made, id) = entry;
            pages.pending.insert((now.plus(lease), made, id.clone()));
            let told = pages.events.get_mut(&id)?;
            told.due = now.plus(lease);
            Some(told.event.clone())
        });
        let mut events: Vec<_> = leased.collect();
        events.sort_by(|a, b| (a.at, &a.id).cmp(&(b.at, &b.id)));
        events
    }

    /// The end of the hold that ends or ended first.
    pub(super) fn first_end(&self) -> Option<Timestamp> {
        self.pages.lock().due.first().map(|(end, _)| *end)
    }

    /// How many events are not delivered.
    pub(super) fn pending(&self) -> u64 {
        self.pages.lock().pending.len() as u64
    }

    pub(super) fn settle_event(&self, event: &EventId, delivery: Delivery, now: Timestamp) {
        self.pages.lock().settle(event, delivery, now);
    }
}

impl Pages {
    fn put(&mut self, record: HoldRecord) {
        self.forget(record.id);
        let id = record.id;
        if record.state.blocks() {
            for (part, slot) in record.slots.iter().enumerate() {
                let lane = (slot.resource.clone(), slot.unit.clone());
                let lane = self.lanes.entry(lane).or_default();
                lane.insert((slot.blocks().end, id, part));
            }
        }
        match (record.state.is_running(), record.expires_at) {
            (true, Some(end)) => self.due.insert((end, id)),
            _ => self.closed.insert((closed_at(&record), id)),
        };
        self.holds.insert(id, record);
    }

    fn forget(&mut self, id: HoldId) {
        let Some(old) = self.holds.remove(&id) else {
            return;
        };
        for (part, slot) in old.slots.iter().enumerate() {
            let name = (slot.resource.clone(), slot.unit.clone());
            if let Some(lane) = self.lanes.get_mut(&name) {
                lane.remove(&(slot.blocks().end, id, part));
                if lane.is_empty() {
                    self.lanes.remove(&name);
                }
            }
        }
        if let Some(end) = old.expires_at {
            self.due.remove(&(end, id));
        }
        self.closed.remove(&(closed_at(&old), id));
    }

    fn tell(&mut self, event: ReservationEvent) {
        if self.events.contains_key(&event.id) {
            return;
        }
        let (id, at) = (event.id.clone(), event.at);
        self.pending.insert((at, at, id.clone()));
        let told = Told {
            event,
            due: at,
            state: Telling::Pending,
        };
        self.events.insert(id, told);
    }

    fn settle(&mut self, id: &EventId, delivery: Delivery, now: Timestamp) {
        let Some(told) = self.events.get_mut(id) else {
            return;
        };
        // Another who had it after its lease has told it meanwhile: that stays.
        if told.state != Telling::Pending && delivery != Delivery::Again {
            return;
        }
        let made = told.event.at;
        self.pending.remove(&(told.due, made, id.clone()));
        self.delivered.remove(&(told.due, id.clone()));
        match delivery {
            Delivery::Delivered => (told.state, told.due) = (Telling::Delivered, now),
            Delivery::Again => {
                told.event.attempts = 0;
                (told.state, told.due) = (Telling::Pending, now);
            }
            Delivery::Failed => {
                told.event.attempts += 1;
                let parked = told.event.attempts >= MOST_ATTEMPTS;
                told.state = if parked {
                    Telling::Parked
                } else {
                    Telling::Pending
                };
                told.due = now.plus(event_pause(told.event.attempts));
            }
        }
        match told.state {
            Telling::Pending => {
                self.pending.insert((told.due, made, id.clone()));
            }
            Telling::Delivered => {
                self.delivered.insert((told.due, id.clone()));
            }
            Telling::Parked => {}
        }
    }
}

/// A confirmed hold is kept until its last slot is over, and then as long as a closed one.
fn closed_at(record: &HoldRecord) -> Timestamp {
    if record.state == HoldState::Confirmed {
        let last = record.slots.iter().map(Slot::end).max();
        return last.unwrap_or(record.changed_at);
    }
    record.changed_at
}

/// The rows of a lane whose block ends later than `from`.
fn after(lane: &Lane, from: Timestamp) -> impl Iterator<Item = &(Timestamp, HoldId, usize)> {
    let first = (from, HoldId::from(uuid::Uuid::nil()), 0);
    lane.range(first..).filter(move |(end, _, _)| *end > from)
}

fn row_of(record: &HoldRecord, slot: &Slot, holder: &str, key: &str) -> Row {
    let blocks = slot.blocks();
    Row {
        hold: record.id,
        state: record.state,
        expires_at: record.expires_at,
        mine: *record.holder == *holder,
        same_key: *record.key == *key,
        resource: slot.resource.clone(),
        unit: slot.unit.clone(),
        from: blocks.start,
        to: blocks.end,
        units: slot.wanted_units(),
        counted: slot.is_counted(),
    }
}

fn busy_of(record: &HoldRecord, slot: &Slot) -> Busy {
    let blocks = slot.blocks();
    Busy {
        unit: slot.unit.clone(),
        start: slot.start,
        end: slot.end,
        blocks_from: blocks.start,
        blocks_to: blocks.end,
        state: match (record.state, record.expires_at) {
            (HoldState::Confirmed, _) | (_, None) => BusyState::Booked,
            (_, Some(end)) => BusyState::Held(end),
        },
        units: slot.wanted_units(),
    }
}
