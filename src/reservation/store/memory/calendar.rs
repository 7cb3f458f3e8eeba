//! The steps in memory: reads see the transaction's own changes over what was committed.

use std::time::Duration;

use super::book::{Book, Changes};
use super::locks::{Held, Name, Names};
use crate::backend::memory::MemoryStore;
use crate::core::{StoreError, StoreErrorKind, Timestamp};
use crate::reservation::event::{EventId, ReservationEvent};
use crate::reservation::hold::{HoldId, HoldState};
use crate::reservation::slot::Slot;
use crate::reservation::store::calendar::{
    Calendar, Insertion, Lock, MOST_COUNTED, Outbox, Over, PURGE_ROWS, Seen, lag_of,
};
use crate::reservation::store::{
    AvailabilityQuery, Busy, Delivery, HoldRecord, HoldWish, PaymentRecord,
};

pub(super) struct MemoryCalendar<'c> {
    pub(super) store: &'c MemoryStore,
    pub(super) changes: &'c mut Changes,
    pub(super) held: &'c mut Held,
}

impl MemoryCalendar<'_> {
    fn book(&self) -> &Book {
        self.store.part()
    }

    /// Read anew each time, so never older than a lock.
    fn now(&self) -> Timestamp {
        Timestamp::of(&self.store.clock())
    }

    fn record(&self, hold: HoldId) -> Option<HoldRecord> {
        let own = self.changes.holds.get(&hold).cloned();
        own.or_else(|| self.book().hold(hold))
    }

    async fn take(&mut self, names: Names) -> Result<(), StoreError> {
        self.held
            .take(&self.store.part::<Book>().locks, names)
            .await
    }

    /// Writes a hold that is over as expired; it must be locked.
    fn write_over(&mut self, hold: HoldId, now: Timestamp) -> Option<Over> {
        let mut record = self.record(hold)?;
        if !record.state.is_running() || record.state_at(now) != HoldState::Expired {
            return None;
        }
        record.state = HoldState::Expired;
        record.version += 1;
        record.changed_at = now;
        let over = Over {
            hold,
            holder: record.holder.clone(),
            version: record.version,
        };
        self.changes.holds.insert(hold, record);
        Some(over)
    }
}

impl Calendar for MemoryCalendar<'_> {
    type Error = StoreError;
    const INSERT_FIRST: bool = false;
    const LOCKS_ROWS: bool = false;

    fn crowded() -> StoreError {
        StoreErrorKind::Contention.into()
    }

    async fn lock_lanes(&mut self, slots: &[Slot]) -> Result<(), StoreError> {
        self.take(Name::of_lanes(slots)).await
    }

    async fn lock_payment(&mut self, payment: &str) -> Result<(), StoreError> {
        self.take(Names::from_iter([Name::Payment(payment.into())]))
            .await
    }

    async fn overlaps(
        &mut self,
        slots: &[Slot],
        holder: &str,
        key: &str,
    ) -> Result<Seen, StoreError> {
        let rows = self.book().overlaps(slots, self.changes, (holder, key));
        Ok((rows, self.now()))
    }

    async fn load(&mut self, hold: HoldId, lock: Lock) -> Result<Option<HoldRecord>, StoreError> {
        let Some(mut record) = self.record(hold) else {
            return Ok(None);
        };
        if lock == Lock::Yes {
            let mut names = Name::of_lanes(&record.slots);
            names.push(Name::Hold(hold));
            self.take(names).await?;
            let Some(locked) = self.record(hold) else {
                return Ok(None);
            };
            record = locked;
        }
        record.read_at = self.now();
        Ok(Some(record))
    }

    async fn payment(&mut self, payment: &str) -> Result<Option<PaymentRecord>, StoreError> {
        let own = self.changes.payments.get(payment).cloned();
        Ok(own.or_else(|| self.book().payment(payment)))
    }

    async fn payments(
        &mut self,
        hold: HoldId,
        spoken: &str,
    ) -> Result<Vec<PaymentRecord>, StoreError> {
        let mut all = self.book().payments(hold, spoken);
        all.retain(|payment| !self.changes.payments.contains_key(&payment.payment));
        let own = self.changes.payments.values();
        let wanted = |payment: &&PaymentRecord| payment.hold == hold || *payment.payment == *spoken;
        all.extend(own.filter(wanted).cloned());
        Ok(all)
    }

    async fn insert(&mut self, wish: &HoldWish) -> Result<Insertion, StoreError> {
        self.book().room(self.changes)?;
        let record = wish.granted(self.now());
        self.changes.holds.insert(record.id, record.clone());
        Ok(Insertion::Made(record))
    }

    async fn replace(&mut self, record: &HoldRecord) -> Result<bool, StoreError> {
        self.changes.holds.insert(record.id, record.clone());
        Ok(true)
    }

    async fn expire(&mut self, holds: &[HoldId], now: Timestamp) -> Result<Vec<Over>, StoreError> {
        let mut holds = holds.to_vec();
        holds.sort_unstable();
        self.take(holds.iter().map(|hold| Name::Hold(*hold)).collect())
            .await?;
        let over = holds.iter().filter_map(|hold| self.write_over(*hold, now));
        Ok(over.collect())
    }

    async fn expire_due(&mut self, batch: u32) -> Result<(Vec<Over>, Timestamp), StoreError> {
        let now = self.now();
        let mut over = Vec::new();
        for hold in self.book().due(now, batch) {
            // Somebody is at it: whoever that is finds it, or the next sweep does.
            let locks = &self.store.part::<Book>().locks;
            if self.held.try_take(locks, Name::Hold(hold)) {
                over.extend(self.write_over(hold, now));
            }
        }
        Ok((over, now))
    }

    async fn write_payment(&mut self, payment: &PaymentRecord) -> Result<bool, StoreError> {
        let known = self.payment(&payment.payment).await?;
        if known.is_some_and(|known| known.hold != payment.hold) {
            return Ok(false);
        }
        let name = payment.payment.clone();
        self.changes.payments.insert(name, payment.clone());
        Ok(true)
    }

    async fn write_hold(&mut self, record: &HoldRecord) -> Result<(), StoreError> {
        self.changes.holds.insert(record.id, record.clone());
        Ok(())
    }

    async fn write_events(&mut self, events: &[ReservationEvent]) -> Result<(), StoreError> {
        self.changes.events.extend_from_slice(events);
        Ok(())
    }

    async fn purge_holds(&mut self, closed_before: Timestamp) -> Result<u64, StoreError> {
        let most = usize::try_from(PURGE_ROWS).unwrap_or(usize::MAX);
        Ok(self.book().purge_holds(closed_before, most))
    }

    async fn busy(&mut self, query: &AvailabilityQuery) -> Result<Vec<Busy>, StoreError> {
        Ok(self.book().busy(query, self.now(), self.changes))
    }
}

impl Outbox for MemoryCalendar<'_> {
    async fn purge_events(&mut self, delivered_before: Timestamp) -> Result<u64, StoreError> {
        let most = usize::try_from(PURGE_ROWS).unwrap_or(usize::MAX);
        Ok(self.book().purge_events(delivered_before, most))
    }

    async fn take_events(
        &mut self,
        limit: u32,
        lease: Duration,
    ) -> Result<Vec<ReservationEvent>, StoreError> {
        Ok(self.book().take_events(limit, lease, self.now()))
    }

    async fn lag(&mut self) -> Result<Duration, StoreError> {
        Ok(lag_of(self.now(), self.book().first_end()))
    }

    async fn pending(&mut self) -> Result<u64, StoreError> {
        let most = u64::try_from(MOST_COUNTED).unwrap_or(u64::MAX);
        Ok(self.book().pending().min(most))
    }

    async fn settle_event(
        &mut self,
        event: &EventId,
        delivery: Delivery,
    ) -> Result<(), StoreError> {
        self.book().settle_event(event, delivery, self.now());
        Ok(())
    }
}
