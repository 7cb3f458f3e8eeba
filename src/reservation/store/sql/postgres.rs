//! The steps on Postgres: the exclusion constraint decides, and nobody asks before having been refused.

mod changes;
mod insert;
mod outbox;
mod statements;

use std::sync::Arc;

use sha2::{Digest, Sha256};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection, Row as _};
use uuid::Uuid;

use self::insert::{Fresh, How, Rows};
use self::statements::CLOCK;
pub(super) use self::statements::Statements;
use super::rows::{
    StoredPayment, StoredSpan, at, busy_of, int, ms, overlap_row, payload_of, payment_of,
    record_of, stored_slot, whole,
};
use crate::backend::sql::{Schema, TransactionError, Xid};
use crate::core::Timestamp;
use crate::reservation::event::{EventKind, EventSet, ReservationEvent};
use crate::reservation::hold::{HoldId, HoldRef, Payment};
use crate::reservation::policy::Edit;
use crate::reservation::slot::Slot;
use crate::reservation::store::calendar::{
    Calendar, InTheWay, Insertion, Lock, Over, PURGE_ROWS, Seen,
};
use crate::reservation::store::{
    AvailabilityQuery, Busy, HoldRecord, HoldWish, MOST_SPANS, PaymentRecord,
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
    pub(super) xid: &'c mut Option<Xid>,
    /// Events were written.
    pub(super) told: bool,
}

fn sql(text: &Arc<str>) -> AssertSqlSafe<Arc<str>> {
    AssertSqlSafe(Arc::clone(text))
}

impl PostgresCalendar<'_> {
    fn injected(&self) -> Option<i64> {
        self.now.map(ms)
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
    const LOCKS_ROWS: bool = true;

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

    async fn lock_holds(&mut self, holds: &[HoldId]) -> Result<(), TransactionError> {
        let ids: Vec<Uuid> = holds.iter().map(|hold| hold.as_uuid()).collect();
        sqlx::query(sql(&self.sql.lock_holds))
            .bind(ids)
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
    ) -> Result<Seen, TransactionError> {
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

    async fn payments(
        &mut self,
        hold: HoldId,
        spoken: &str,
    ) -> Result<Vec<PaymentRecord>, TransactionError> {
        let rows: Vec<StoredPayment> = sqlx::query_as(sql(&self.sql.payments))
            .bind(hold.as_uuid())
            .bind(spoken)
            .fetch_all(&mut *self.connection)
            .await?;
        Ok(rows.into_iter().map(payment_of).collect())
    }

    async fn confirm_in_time(
        &mut self,
        target: &HoldRef,
        paid_by: Option<&Payment>,
        kinds: EventSet,
    ) -> Result<Option<HoldRecord>, TransactionError> {
        self.confirm_running(target, paid_by, kinds).await
    }

    async fn write(&mut self, edit: &Edit) -> Result<bool, TransactionError> {
        self.write_edit(edit).await
    }

    async fn insert(&mut self, wish: &HoldWish) -> Result<Insertion, TransactionError> {
        self.insert_wish(wish, How::Plainly).await
    }

    async fn take_over(
        &mut self,
        wish: &HoldWish,
        over: &InTheWay,
    ) -> Result<Insertion, TransactionError> {
        let tell = wish.record.contains(EventKind::Expired);
        self.told |= tell;
        self.insert_wish(wish, How::Over(over, tell)).await
    }

    async fn replace(&mut self, record: &HoldRecord) -> Result<bool, TransactionError> {
        let fresh = Fresh {
            record,
            created_at: Some(record.created_at),
            lasting: None,
        };
        let Rows::In(inserted) = self.insert_rows(&fresh, How::Plainly).await? else {
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
        Ok(self.over_of(rows))
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
        Ok((self.over_of(rows), at(now)))
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
        self.told = true;
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
}

/// hold_id, holder, version, part, the transaction's id: one row per slot.
type StoredOver = (Uuid, String, i32, i16, Xid);

impl PostgresCalendar<'_> {
    fn over_of(&mut self, mut rows: Vec<StoredOver>) -> Vec<Over> {
        if let Some(row) = rows.first_mut() {
            *self.xid = Some(std::mem::take(&mut row.4));
        }
        let first = rows.into_iter().filter(|row| row.3 == 0);
        first
            .map(|(hold, holder, version, ..)| Over {
                hold: HoldId::from(hold),
                holder: holder.into(),
                version: whole(version),
            })
            .collect()
    }
}
