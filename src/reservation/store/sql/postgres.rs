//! The steps on Postgres: the exclusion constraint decides, and nobody asks before having been refused.

mod statements;

use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection, Row as _};
use uuid::Uuid;

use self::statements::CLOCK;
pub(super) use self::statements::Statements;
use super::rows::{
    StoredEvent, StoredPayment, StoredSpan, at, busy_of, capacity, event_of, int, millis, ms,
    overlap_row, payload_of, payment_of, record_of, stored_slot, whole,
};
use crate::backend::sql::{Schema, TransactionError};
use crate::core::Timestamp;
use crate::reservation::event::{EventId, ReservationEvent};
use crate::reservation::hold::{HoldId, HoldState};
use crate::reservation::policy::Row;
use crate::reservation::slot::Slot;
use crate::reservation::store::steps::{Calendar, Lock, Over, PURGE_ROWS};
use crate::reservation::store::{
    AvailabilityQuery, Busy, Delivery, HoldRecord, HoldWish, MOST_ATTEMPTS, MOST_SPANS,
    PaymentRecord, event_pause,
};

pub(super) fn schema(prefix: &str) -> Schema {
    let first = include_str!("postgres.sql").replace("{p}", prefix);
    Schema::new("reservation", vec![first])
}

pub(super) struct PostgresCalendar<'c> {
    pub(super) connection: &'c mut PgConnection,
    pub(super) sql: &'c Statements,
    /// The injected clock; without one the server's is read.
    pub(super) now: Option<Timestamp>,
    pub(super) xid: &'c mut Option<String>,
}

fn sql(text: &Arc<str>) -> AssertSqlSafe<Arc<str>> {
    AssertSqlSafe(Arc::clone(text))
}

/// What a fresh hold's rows carry beside their slots.
struct Fresh<'r> {
    record: &'r HoldRecord,
    created_at: Option<Timestamp>,
    lasting: Option<Duration>,
}

/// The rows that got in.
struct Inserted {
    rows: Vec<i64>,
    created_at: Timestamp,
    expires_at: Option<Timestamp>,
}

impl PostgresCalendar<'_> {
    fn injected(&self) -> Option<i64> {
        self.now.map(ms)
    }

    /// Inserts all rows in one statement, in order of (lane, start); `None` if one was refused.
    async fn insert_rows(
        &mut self,
        fresh: &Fresh<'_>,
    ) -> Result<Option<Inserted>, TransactionError> {
        let record = fresh.record;
        let slots = &record.slots;
        let text = |of: fn(&Slot) -> &str| -> Vec<&str> { slots.iter().map(of).collect() };
        let time = |of: fn(&Slot) -> Timestamp| -> Vec<i64> {
            slots.iter().map(|slot| ms(of(slot))).collect()
        };
        let got: Vec<(i64, i64, Option<i64>, String)> = sqlx::query_as(sql(&self.sql.insert))
            .bind(self.injected())
            .bind(text(|slot| &slot.resource))
            .bind(text(|slot| &slot.unit))
            .bind(time(|slot| slot.start))
            .bind(time(|slot| slot.end))
            .bind(time(|slot| slot.blocks().start))
            .bind(time(|slot| slot.blocks().end))
            .bind(
                slots
                    .iter()
                    .map(|slot| int(slot.wanted_units()))
                    .collect::<Vec<_>>(),
            )
            .bind(slots.iter().map(capacity).collect::<Vec<_>>())
            .bind(record.id.as_uuid())
            .bind(&*record.holder)
            .bind(&*record.key)
            .bind(&record.token.0[..])
            .bind(record.state.code())
            .bind(int(record.version))
            .bind(fresh.created_at.map(ms))
            .bind(fresh.lasting.map(millis))
            .fetch_all(&mut *self.connection)
            .await?;
        let rows: Vec<i64> = got.iter().map(|row| row.0).collect();
        let whole = rows.len() == slots.len();
        match got.into_iter().next() {
            Some((_, created_at, expires_at, xid)) if whole => {
                *self.xid = Some(xid);
                Ok(Some(Inserted {
                    rows,
                    created_at: at(created_at),
                    expires_at: expires_at.map(at),
                }))
            }
            Some(_) => {
                sqlx::query(sql(&self.sql.delete_rows))
                    .bind(rows)
                    .execute(&mut *self.connection)
                    .await?;
                Ok(None)
            }
            None => Ok(None),
        }
    }

    async fn load_by(
        &mut self,
        statement: &Arc<str>,
        hold: HoldId,
    ) -> Result<Option<HoldRecord>, TransactionError> {
        let found = sqlx::query(sql(statement))
            .bind(self.injected())
            .bind(hold.as_uuid())
            .fetch_all(&mut *self.connection)
            .await?;
        let mut read_at = Timestamp::EPOCH;
        let mut rows = Vec::with_capacity(found.len());
        for row in found {
            read_at = read_at.max(at(row.try_get(17)?));
            rows.push(stored_slot!(row));
        }
        Ok(record_of(rows, read_at))
    }

    /// A name for the lane's advisory lock.
    fn lane(&self, slot: &Slot) -> i64 {
        let mut digest = Sha256::new();
        for part in [&*self.sql.prefix, &*slot.resource, &*slot.unit] {
            digest.update(u64::try_from(part.len()).unwrap_or(0).to_be_bytes());
            digest.update(part.as_bytes());
        }
        let digest = digest.finalize();
        let mut first = [0_u8; 8];
        first.copy_from_slice(&digest[..8]);
        i64::from_be_bytes(first)
    }
}

impl Calendar for PostgresCalendar<'_> {
    type Error = TransactionError;
    const INSERT_FIRST: bool = true;

    fn crowded() -> TransactionError {
        TransactionError::crowded()
    }

    /// Counted lanes are swept, not constrained: whoever sweeps one must be alone in it.
    async fn lock_lanes(&mut self, slots: &[Slot]) -> Result<(), TransactionError> {
        let counted = slots.iter().filter(|slot| slot.is_counted());
        let mut lanes: Vec<i64> = counted.map(|slot| self.lane(slot)).collect();
        lanes.sort_unstable();
        lanes.dedup();
        if lanes.is_empty() {
            return Ok(());
        }
        sqlx::query(sql(&self.sql.lock_lanes))
            .bind(lanes)
            .execute(&mut *self.connection)
            .await?;
        Ok(())
    }

    /// The unique key of the payment does it.
    async fn lock_payment(&mut self, _payment: &str) -> Result<(), TransactionError> {
        Ok(())
    }

    async fn overlaps(
        &mut self,
        slots: &[Slot],
        holder: &str,
        key: &str,
    ) -> Result<(Vec<Row>, Timestamp), TransactionError> {
        let found = sqlx::query(sql(&self.sql.overlaps))
            .bind(self.injected())
            .bind(slots.iter().map(|slot| &*slot.resource).collect::<Vec<_>>())
            .bind(slots.iter().map(|slot| &*slot.unit).collect::<Vec<_>>())
            .bind(
                slots
                    .iter()
                    .map(|slot| ms(slot.blocks().start))
                    .collect::<Vec<_>>(),
            )
            .bind(
                slots
                    .iter()
                    .map(|slot| ms(slot.blocks().end))
                    .collect::<Vec<_>>(),
            )
            .fetch_all(&mut *self.connection)
            .await?;
        let mut now = Timestamp::EPOCH;
        let mut rows = Vec::with_capacity(found.len());
        for row in found {
            now = now.max(at(row.try_get(11)?));
            rows.push(overlap_row!(row, holder, key));
        }
        Ok((rows, now))
    }

    async fn load(
        &mut self,
        hold: HoldId,
        lock: Lock,
    ) -> Result<Option<HoldRecord>, TransactionError> {
        let statements = self.sql;
        if lock == Lock::No {
            return self.load_by(&statements.load, hold).await;
        }
        match self.load_by(&statements.load_locked, hold).await? {
            // A late confirmation may just have put fresh rows in the place of those we waited for.
            None => self.load_by(&statements.load_locked, hold).await,
            found => Ok(found),
        }
    }

    async fn payment(&mut self, payment: &str) -> Result<Option<PaymentRecord>, TransactionError> {
        let row: Option<StoredPayment> = sqlx::query_as(sql(&self.sql.payment))
            .bind(payment)
            .fetch_optional(&mut *self.connection)
            .await?;
        Ok(row.map(payment_of))
    }

    async fn payments(&mut self, hold: HoldId) -> Result<Vec<PaymentRecord>, TransactionError> {
        let rows: Vec<StoredPayment> = sqlx::query_as(sql(&self.sql.payments))
            .bind(hold.as_uuid())
            .fetch_all(&mut *self.connection)
            .await?;
        Ok(rows.into_iter().map(payment_of).collect())
    }

    async fn insert(&mut self, wish: &HoldWish) -> Result<Option<HoldRecord>, TransactionError> {
        let mut record = HoldRecord {
            id: wish.id,
            holder: wish.holder.clone(),
            key: wish.key.clone(),
            token: wish.token,
            state: HoldState::Held,
            slots: Arc::clone(&wish.slots),
            created_at: Timestamp::EPOCH,
            expires_at: None,
            changed_at: Timestamp::EPOCH,
            version: 1,
            read_at: Timestamp::EPOCH,
        };
        let fresh = Fresh {
            record: &record,
            created_at: None,
            lasting: Some(wish.hold_for),
        };
        let Some(inserted) = self.insert_rows(&fresh).await? else {
            return Ok(None);
        };
        record.created_at = inserted.created_at;
        record.changed_at = inserted.created_at;
        record.read_at = inserted.created_at;
        record.expires_at = inserted.expires_at;
        Ok(Some(record))
    }

    async fn replace(&mut self, record: &HoldRecord) -> Result<bool, TransactionError> {
        let fresh = Fresh {
            record,
            created_at: Some(record.created_at),
            lasting: None,
        };
        let Some(inserted) = self.insert_rows(&fresh).await? else {
            return Ok(false);
        };
        sqlx::query(sql(&self.sql.delete_others))
            .bind(record.id.as_uuid())
            .bind(inserted.rows)
            .execute(&mut *self.connection)
            .await?;
        Ok(true)
    }

    async fn expire(
        &mut self,
        holds: &[HoldId],
        now: Timestamp,
    ) -> Result<Vec<Over>, TransactionError> {
        let ids: Vec<Uuid> = holds.iter().map(|hold| hold.as_uuid()).collect();
        let rows: Vec<StoredOver> = sqlx::query_as(sql(&self.sql.expire))
            .bind(ids)
            .bind(ms(now))
            .fetch_all(&mut *self.connection)
            .await?;
        Ok(over_of(rows))
    }

    async fn expire_due(&mut self, batch: u32) -> Result<(Vec<Over>, Timestamp), TransactionError> {
        let rows: Vec<StoredOver> = sqlx::query_as(sql(&self.sql.expire_due))
            .bind(self.injected())
            .bind(i64::from(batch))
            .fetch_all(&mut *self.connection)
            .await?;
        let now: i64 = sqlx::query_scalar(AssertSqlSafe(format!("SELECT {CLOCK}")))
            .bind(self.injected())
            .fetch_one(&mut *self.connection)
            .await?;
        Ok((over_of(rows), at(now)))
    }

    async fn write_payment(&mut self, payment: &PaymentRecord) -> Result<bool, TransactionError> {
        let now = self
            .now
            .unwrap_or_else(|| Timestamp::of(&crate::core::SystemClock));
        let done = sqlx::query(sql(&self.sql.write_payment))
            .bind(&*payment.payment)
            .bind(payment.hold.as_uuid())
            .bind(payment.valid_until.map(ms))
            .bind(payment.standing.code())
            .bind(ms(now))
            .execute(&mut *self.connection)
            .await?;
        Ok(done.rows_affected() > 0)
    }

    async fn write_hold(&mut self, record: &HoldRecord) -> Result<(), TransactionError> {
        let row: Option<PgRow> = sqlx::query(sql(&self.sql.write_hold))
            .bind(record.id.as_uuid())
            .bind(record.state.code())
            .bind(int(record.version))
            .bind(record.expires_at.map(ms))
            .bind(ms(record.changed_at))
            .fetch_optional(&mut *self.connection)
            .await?;
        if let Some(row) = row {
            *self.xid = Some(row.try_get(0)?);
        }
        Ok(())
    }

    async fn write_events(&mut self, events: &[ReservationEvent]) -> Result<(), TransactionError> {
        let each =
            |of: fn(&ReservationEvent) -> &str| -> Vec<&str> { events.iter().map(of).collect() };
        sqlx::query(sql(&self.sql.write_events))
            .bind(each(|event| event.id.as_str()))
            .bind(each(|event| event.kind.as_str()))
            .bind(
                events
                    .iter()
                    .map(|event| event.hold.as_uuid())
                    .collect::<Vec<_>>(),
            )
            .bind(events.iter().map(payload_of).collect::<Vec<_>>())
            .bind(events.iter().map(|event| ms(event.at)).collect::<Vec<_>>())
            .execute(&mut *self.connection)
            .await?;
        Ok(())
    }

    async fn purge_holds(&mut self, closed_before: Timestamp) -> Result<u64, TransactionError> {
        let parts: Vec<i16> = sqlx::query_scalar(sql(&self.sql.purge_holds))
            .bind(ms(closed_before))
            .bind(PURGE_ROWS)
            .fetch_all(&mut *self.connection)
            .await?;
        Ok(parts.iter().filter(|part| **part == 0).count() as u64)
    }

    async fn purge_events(&mut self, delivered_before: Timestamp) -> Result<u64, TransactionError> {
        let done = sqlx::query(sql(&self.sql.purge_events))
            .bind(ms(delivered_before))
            .bind(PURGE_ROWS)
            .execute(&mut *self.connection)
            .await?;
        Ok(done.rows_affected())
    }

    async fn busy(&mut self, query: &AvailabilityQuery) -> Result<Vec<Busy>, TransactionError> {
        let rows: Vec<StoredSpan> = sqlx::query_as(sql(&self.sql.busy))
            .bind(self.injected())
            .bind(&*query.resource)
            .bind(ms(query.from))
            .bind(ms(query.to))
            .bind(MOST_SPANS as i64 + 1)
            .fetch_all(&mut *self.connection)
            .await?;
        Ok(rows.into_iter().map(busy_of).collect())
    }

    async fn take_events(
        &mut self,
        limit: u32,
        lease: Duration,
    ) -> Result<Vec<ReservationEvent>, TransactionError> {
        let rows: Vec<StoredEvent> = sqlx::query_as(sql(&self.sql.take_events))
            .bind(self.injected())
            .bind(i64::from(limit))
            .bind(millis(lease))
            .fetch_all(&mut *self.connection)
            .await?;
        let mut events: Vec<_> = rows.into_iter().filter_map(event_of).collect();
        events.sort_by(|a, b| (a.at, &a.id).cmp(&(b.at, &b.id)));
        Ok(events)
    }

    async fn settle_event(
        &mut self,
        event: &EventId,
        delivery: Delivery,
    ) -> Result<(), TransactionError> {
        let (mut state, mut pause) = (0_i16, Duration::ZERO);
        match delivery {
            Delivery::Delivered => state = 1,
            Delivery::Again => {}
            Delivery::Failed => {
                let failed: Option<i32> = sqlx::query_scalar(sql(&self.sql.fail_event))
                    .bind(event.as_str())
                    .fetch_optional(&mut *self.connection)
                    .await?;
                let attempts = whole(failed.unwrap_or(0));
                pause = event_pause(attempts);
                state = if attempts >= MOST_ATTEMPTS { 2 } else { 0 };
            }
        }
        sqlx::query(sql(&self.sql.settle_event))
            .bind(self.injected())
            .bind(event.as_str())
            .bind(state)
            .bind(millis(pause))
            .bind(delivery == Delivery::Again)
            .execute(&mut *self.connection)
            .await?;
        Ok(())
    }
}

/// hold_id, holder, version, part: one row per slot.
type StoredOver = (Uuid, String, i32, i16);

fn over_of(rows: Vec<StoredOver>) -> Vec<Over> {
    let first = rows.into_iter().filter(|row| row.3 == 0);
    first
        .map(|(hold, holder, version, _)| Over {
            hold: HoldId::from(hold),
            holder: holder.into(),
            version: whole(version),
        })
        .collect()
}
