//! The steps on SQLite: everything happens under the write lock, a trigger watches other writers.

mod outbox;

use std::sync::Arc;

use sqlx::{AssertSqlSafe, Row as _, SqliteConnection};
use uuid::Uuid;

use self::outbox::OutboxStatements;
use super::rows::{
    COLUMNS, OVERLAP_COLUMNS, StoredPayment, StoredSpan, busy_of, capacity, int, ms, overlap_row,
    payload_of, payment_of, record_of, stored_slot, whole,
};
use crate::backend::sql::{Schema, TransactionError};
use crate::core::Timestamp;
use crate::reservation::event::ReservationEvent;
use crate::reservation::hold::HoldId;
use crate::reservation::slot::Slot;
use crate::reservation::store::calendar::{Calendar, Insertion, Lock, Over, PURGE_ROWS, Seen};
use crate::reservation::store::{
    AvailabilityQuery, Busy, HoldRecord, HoldWish, MOST_SPANS, PaymentRecord,
};

pub(super) fn schema(prefix: &str) -> Schema {
    let first = include_str!("sqlite.sql").replace("{p}", prefix);
    Schema::new("reservation", vec![first])
}

pub(super) struct Statements {
    outbox: OutboxStatements,
    overlaps: Arc<str>,
    load: Arc<str>,
    payment: Arc<str>,
    payments: Arc<str>,
    insert: Arc<str>,
    insert_alone: Arc<str>,
    delete: Arc<str>,
    expire: Arc<str>,
    due: Arc<str>,
    write_payment: Arc<str>,
    write_hold: Arc<str>,
    closed: Arc<str>,
    forget_payments: Arc<str>,
    busy: Arc<str>,
}

impl Statements {
    pub(super) fn new(p: &str) -> Self {
        let arc = |sql: String| Arc::from(sql);
        Self {
            outbox: OutboxStatements::new(p),
            overlaps: arc(format!(
                "SELECT {OVERLAP_COLUMNS} FROM {p}hold h WHERE h.resource = ?1 AND h.unit = ?2 \
                 AND h.state <= 3 AND h.block_end > ?3 AND h.block_start < ?4"
            )),
            load: arc(format!(
                "SELECT {COLUMNS} FROM {p}hold WHERE hold_id = ?1 ORDER BY part"
            )),
            payment: arc(format!(
                "SELECT payment, hold_id, valid_until, standing FROM {p}payment WHERE payment = ?1"
            )),
            payments: arc(format!(
                "SELECT payment, hold_id, valid_until, standing FROM {p}payment \
                 WHERE hold_id = ?1 OR payment = ?2"
            )),
            insert: arc(format!(
                "INSERT INTO {p}hold ({COLUMNS}, part, counted) VALUES \
                 (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14,?15,?16,?17,?18,?9 > 0)"
            )),
            insert_alone: arc(format!(
                "INSERT INTO {p}hold ({COLUMNS}, part, counted) SELECT \
                 ?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14,?15,?16,?17,?18,?9 > 0 \
                 WHERE NOT EXISTS (SELECT 1 FROM {p}hold h WHERE h.resource = ?2 AND h.unit = ?3 \
                 AND h.state <= 3 AND h.block_end > ?6 AND h.block_start < ?7)"
            )),
            delete: arc(format!("DELETE FROM {p}hold WHERE hold_id = ?1")),
            expire: arc(format!(
                "UPDATE {p}hold SET state = 5, version = version + 1, changed_at = ?2 \
                 WHERE hold_id = ?1 AND state <= 2 AND expires_at <= ?2 RETURNING holder, version"
            )),
            due: arc(format!(
                "SELECT hold_id FROM {p}hold WHERE state <= 2 AND expires_at <= ?1 AND part = 0 \
                 ORDER BY expires_at LIMIT ?2"
            )),
            write_payment: arc(format!(
                "INSERT INTO {p}payment (payment, hold_id, valid_until, standing, paid_at) \
                 VALUES (?1, ?2, ?3, ?4, CASE WHEN ?4 > 0 THEN ?5 END) \
                 ON CONFLICT (payment) DO UPDATE SET valid_until = excluded.valid_until, \
                 standing = excluded.standing, paid_at = coalesce(paid_at, excluded.paid_at) \
                 WHERE hold_id = excluded.hold_id"
            )),
            write_hold: arc(format!(
                "UPDATE {p}hold SET state = ?2, version = ?3, expires_at = ?4, changed_at = ?5 \
                 WHERE hold_id = ?1"
            )),
            closed: arc(format!(
                "SELECT hold_id FROM {p}hold WHERE state >= 4 AND changed_at <= ?1 AND part = 0 LIMIT ?2"
            )),
            forget_payments: arc(format!("DELETE FROM {p}payment WHERE hold_id = ?1")),
            busy: arc(format!(
                "SELECT unit, starts, ends, block_start, block_end, state, expires_at, units \
                 FROM {p}hold WHERE resource = ?1 AND state <= 3 AND block_end > ?2 \
                 AND block_start < ?3 AND (state = 3 OR expires_at > ?4) \
                 ORDER BY unit, starts, row_id LIMIT ?5"
            )),
        }
    }
}

pub(super) struct SqliteCalendar<'c> {
    pub(super) connection: &'c mut SqliteConnection,
    pub(super) sql: &'c Statements,
    /// Read when the step began, under the write lock.
    pub(super) now: Timestamp,
    /// Events were written.
    pub(super) told: bool,
}

fn sql(text: &Arc<str>) -> AssertSqlSafe<Arc<str>> {
    AssertSqlSafe(Arc::clone(text))
}

impl SqliteCalendar<'_> {
    async fn insert_rows(
        &mut self,
        record: &HoldRecord,
        statement: &Arc<str>,
    ) -> Result<u64, TransactionError> {
        let mut rows = 0;
        for (part, slot) in record.slots.iter().enumerate() {
            let blocks = slot.blocks();
            let done = sqlx::query(sql(statement))
                .bind(record.id.as_uuid())
                .bind(&*slot.resource)
                .bind(&*slot.unit)
                .bind(ms(slot.start))
                .bind(ms(slot.end))
                .bind(ms(blocks.start))
                .bind(ms(blocks.end))
                .bind(int(slot.wanted_units()))
                .bind(capacity(slot))
                .bind(&*record.holder)
                .bind(&*record.key)
                .bind(&record.token.0[..])
                .bind(record.state.code())
                .bind(int(record.version))
                .bind(ms(record.created_at))
                .bind(record.expires_at.map(ms))
                .bind(ms(record.changed_at))
                .bind(i64::try_from(part).unwrap_or(i64::MAX))
                .execute(&mut *self.connection)
                .await?;
            rows += done.rows_affected();
        }
        Ok(rows)
    }

    /// Inserts a wish of one slot in a statement that is a transaction of its own.
    pub(super) async fn insert_alone(
        &mut self,
        wish: &HoldWish,
    ) -> Result<Insertion, TransactionError> {
        let (record, statements) = (wish.granted(self.now), self.sql);
        let rows = self.insert_rows(&record, &statements.insert_alone).await?;
        Ok(match rows {
            0 => Insertion::Refused(None),
            _ => Insertion::Made(record),
        })
    }
}

impl Calendar for SqliteCalendar<'_> {
    type Error = TransactionError;
    const INSERT_FIRST: bool = false;
    const LOCKS_ROWS: bool = false;

    fn crowded() -> TransactionError {
        TransactionError::crowded()
    }

    async fn lock_lanes(&mut self, _slots: &[Slot]) -> Result<(), TransactionError> {
        Ok(())
    }

    async fn lock_payment(&mut self, _payment: &str) -> Result<(), TransactionError> {
        Ok(())
    }

    async fn overlaps(
        &mut self,
        slots: &[Slot],
        holder: &str,
        key: &str,
    ) -> Result<Seen, TransactionError> {
        let mut rows = Vec::new();
        for slot in slots {
            let blocks = slot.blocks();
            let found = sqlx::query(sql(&self.sql.overlaps))
                .bind(&*slot.resource)
                .bind(&*slot.unit)
                .bind(ms(blocks.start))
                .bind(ms(blocks.end))
                .fetch_all(&mut *self.connection)
                .await?;
            for row in found {
                rows.push(overlap_row!(row, holder, key));
            }
        }
        Ok((rows, self.now))
    }

    async fn load(
        &mut self,
        hold: HoldId,
        _lock: Lock,
    ) -> Result<Option<HoldRecord>, TransactionError> {
        let found = sqlx::query(sql(&self.sql.load))
            .bind(hold.as_uuid())
            .fetch_all(&mut *self.connection)
            .await?;
        let mut rows = Vec::with_capacity(found.len());
        for row in found {
            rows.push(stored_slot!(row));
        }
        Ok(record_of(rows, self.now))
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

    async fn insert(&mut self, wish: &HoldWish) -> Result<Insertion, TransactionError> {
        let (record, statements) = (wish.granted(self.now), self.sql);
        self.insert_rows(&record, &statements.insert).await?;
        Ok(Insertion::Made(record))
    }

    async fn replace(&mut self, record: &HoldRecord) -> Result<bool, TransactionError> {
        sqlx::query(sql(&self.sql.delete))
            .bind(record.id.as_uuid())
            .execute(&mut *self.connection)
            .await?;
        let statements = self.sql;
        self.insert_rows(record, &statements.insert).await?;
        Ok(true)
    }

    async fn expire(
        &mut self,
        holds: &[HoldId],
        now: Timestamp,
    ) -> Result<Vec<Over>, TransactionError> {
        let mut over = Vec::with_capacity(holds.len());
        for hold in holds {
            let rows: Vec<(String, i32)> = sqlx::query_as(sql(&self.sql.expire))
                .bind(hold.as_uuid())
                .bind(ms(now))
                .fetch_all(&mut *self.connection)
                .await?;
            over.extend(rows.into_iter().next().map(|(holder, version)| Over {
                hold: *hold,
                holder: holder.into(),
                version: whole(version),
            }));
        }
        Ok(over)
    }

    async fn expire_due(&mut self, batch: u32) -> Result<(Vec<Over>, Timestamp), TransactionError> {
        let due: Vec<Uuid> = sqlx::query_scalar(sql(&self.sql.due))
            .bind(ms(self.now))
            .bind(batch)
            .fetch_all(&mut *self.connection)
            .await?;
        let due: Vec<HoldId> = due.into_iter().map(HoldId::from).collect();
        let now = self.now;
        Ok((self.expire(&due, now).await?, now))
    }

    async fn write_payment(&mut self, payment: &PaymentRecord) -> Result<bool, TransactionError> {
        let done = sqlx::query(sql(&self.sql.write_payment))
            .bind(&*payment.payment)
            .bind(payment.hold.as_uuid())
            .bind(payment.valid_until.map(ms))
            .bind(payment.standing.code())
            .bind(ms(self.now))
            .execute(&mut *self.connection)
            .await?;
        Ok(done.rows_affected() > 0)
    }

    async fn write_hold(&mut self, record: &HoldRecord) -> Result<(), TransactionError> {
        sqlx::query(sql(&self.sql.write_hold))
            .bind(record.id.as_uuid())
            .bind(record.state.code())
            .bind(int(record.version))
            .bind(record.expires_at.map(ms))
            .bind(ms(record.changed_at))
            .execute(&mut *self.connection)
            .await?;
        Ok(())
    }

    async fn write_events(&mut self, events: &[ReservationEvent]) -> Result<(), TransactionError> {
        self.told = true;
        for event in events {
            sqlx::query(sql(&self.sql.outbox.write_event))
                .bind(event.id.as_str())
                .bind(event.kind.as_str())
                .bind(event.hold.as_uuid())
                .bind(payload_of(event))
                .bind(ms(event.at))
                .execute(&mut *self.connection)
                .await?;
        }
        Ok(())
    }

    async fn purge_holds(&mut self, closed_before: Timestamp) -> Result<u64, TransactionError> {
        let closed: Vec<Uuid> = sqlx::query_scalar(sql(&self.sql.closed))
            .bind(ms(closed_before))
            .bind(PURGE_ROWS)
            .fetch_all(&mut *self.connection)
            .await?;
        for hold in &closed {
            for statement in [&self.sql.forget_payments, &self.sql.delete] {
                sqlx::query(sql(statement))
                    .bind(hold)
                    .execute(&mut *self.connection)
                    .await?;
            }
        }
        Ok(closed.len() as u64)
    }

    async fn busy(&mut self, query: &AvailabilityQuery) -> Result<Vec<Busy>, TransactionError> {
        let rows: Vec<StoredSpan> = sqlx::query_as(sql(&self.sql.busy))
            .bind(&*query.resource)
            .bind(ms(query.from))
            .bind(ms(query.to))
            .bind(ms(self.now))
            .bind(MOST_SPANS as i64 + 1)
            .fetch_all(&mut *self.connection)
            .await?;
        Ok(rows.into_iter().map(busy_of).collect())
    }
}
