//! The steps on Postgres: the exclusion constraint decides, and nobody asks before having been refused.

use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, PgConnection, Row as _};
use uuid::Uuid;

use super::rows::{
    COLUMNS, OVERLAP_COLUMNS, StoredEvent, StoredPayment, StoredSpan, at, busy_of, capacity,
    event_of, int, millis, ms, overlap_row, payload_of, payment_of, record_of, stored_slot, whole,
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

/// The injected clock, bound as $1, else the server's; `now()` would stand still since BEGIN.
const CLOCK: &str =
    "coalesce($1::bigint, floor(extract(epoch from clock_timestamp()) * 1000)::bigint)";

/// The slots of a call as rows, in their order.
const SLOTS: &str = "unnest($2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::bigint[], \
     $7::bigint[], $8::int[], $9::int[]) WITH ORDINALITY AS \
     w(resource, unit, starts, ends, block_start, block_end, units, capacity, part)";

pub(super) struct Statements {
    prefix: Arc<str>,
    lock_lanes: Arc<str>,
    overlaps: Arc<str>,
    load: Arc<str>,
    load_locked: Arc<str>,
    payment: Arc<str>,
    payments: Arc<str>,
    insert: Arc<str>,
    delete_rows: Arc<str>,
    delete_others: Arc<str>,
    expire: Arc<str>,
    expire_due: Arc<str>,
    write_payment: Arc<str>,
    write_hold: Arc<str>,
    write_events: Arc<str>,
    purge_holds: Arc<str>,
    purge_events: Arc<str>,
    busy: Arc<str>,
    take_events: Arc<str>,
    fail_event: Arc<str>,
    settle_event: Arc<str>,
}

impl Statements {
    pub(super) fn new(p: &str) -> Self {
        let arc = |sql: String| Arc::from(sql);
        Self {
            prefix: Arc::from(p),
            lock_lanes: arc(
                "SELECT pg_advisory_xact_lock(lane) FROM unnest($1::bigint[]) lane".into(),
            ),
            overlaps: arc(format!(
                "SELECT {OVERLAP_COLUMNS}, {CLOCK} \
                 FROM unnest($2::text[], $3::text[], $4::bigint[], $5::bigint[]) \
                 AS w(resource, unit, block_start, block_end) JOIN {p}hold h \
                 ON h.resource = w.resource AND h.unit = w.unit \
                 AND int8range(h.block_start, h.block_end) && int8range(w.block_start, w.block_end) \
                 WHERE h.state <= 3"
            )),
            load: arc(format!(
                "SELECT {COLUMNS}, {CLOCK} FROM {p}hold WHERE hold_id = $2 ORDER BY part"
            )),
            // The clock is read above the locks: it must not be older than the wait for them.
            load_locked: arc(format!(
                "WITH own AS MATERIALIZED (SELECT part, {COLUMNS} FROM {p}hold WHERE hold_id = $2 \
                 ORDER BY row_id FOR UPDATE) SELECT {COLUMNS}, {CLOCK} FROM own ORDER BY part"
            )),
            payment: arc(format!(
                "SELECT payment, hold_id, valid_until, standing FROM {p}payment WHERE payment = $1"
            )),
            payments: arc(format!(
                "SELECT payment, hold_id, valid_until, standing FROM {p}payment WHERE hold_id = $1"
            )),
            insert: arc(format!(
                "WITH clock AS MATERIALIZED (SELECT {CLOCK} AS ms) INSERT INTO {p}hold \
                 (hold_id, part, resource, unit, starts, ends, block_start, block_end, units, capacity, \
                 counted, holder, wish_key, token_hash, state, version, created_at, expires_at, changed_at) \
                 SELECT $10, w.part - 1, w.resource, w.unit, w.starts, w.ends, w.block_start, \
                 w.block_end, w.units, w.capacity, w.capacity > 0, $11, $12, $13, $14, $15, \
                 coalesce($16::bigint, clock.ms), clock.ms + $17::bigint, clock.ms \
                 FROM {SLOTS}, clock ORDER BY w.part ON CONFLICT DO NOTHING \
                 RETURNING row_id, created_at, expires_at, pg_current_xact_id()::text"
            )),
            delete_rows: arc(format!("DELETE FROM {p}hold WHERE row_id = ANY($1)")),
            delete_others: arc(format!(
                "DELETE FROM {p}hold WHERE hold_id = $1 AND row_id <> ALL($2)"
            )),
            expire: arc(format!(
                "WITH due AS MATERIALIZED (SELECT row_id FROM {p}hold WHERE hold_id = ANY($1) \
                 AND state <= 2 AND expires_at <= $2 ORDER BY row_id FOR UPDATE) \
                 UPDATE {p}hold h SET state = 5, version = version + 1, changed_at = $2 \
                 FROM due WHERE h.row_id = due.row_id RETURNING h.hold_id, h.holder, h.version, h.part"
            )),
            expire_due: arc(format!(
                "WITH clock AS MATERIALIZED (SELECT {CLOCK} AS ms), \
                 due AS MATERIALIZED (SELECT hold_id FROM {p}hold, clock WHERE state <= 2 \
                 AND expires_at <= clock.ms AND part = 0 ORDER BY expires_at LIMIT $2 \
                 FOR UPDATE OF {p}hold SKIP LOCKED) \
                 UPDATE {p}hold h SET state = 5, version = version + 1, changed_at = clock.ms \
                 FROM due, clock WHERE h.hold_id = due.hold_id AND h.state <= 2 \
                 RETURNING h.hold_id, h.holder, h.version, h.part"
            )),
            write_payment: arc(format!(
                "INSERT INTO {p}payment AS own (payment, hold_id, valid_until, standing, paid_at) \
                 VALUES ($1, $2, $3, $4, CASE WHEN $4 > 0 THEN $5::bigint END) \
                 ON CONFLICT (payment) DO UPDATE SET valid_until = excluded.valid_until, \
                 standing = excluded.standing, paid_at = coalesce(own.paid_at, excluded.paid_at) \
                 WHERE own.hold_id = excluded.hold_id"
            )),
            write_hold: arc(format!(
                "UPDATE {p}hold SET state = $2, version = $3, expires_at = $4, changed_at = $5 \
                 WHERE hold_id = $1 RETURNING pg_current_xact_id()::text"
            )),
            write_events: arc(format!(
                "INSERT INTO {p}event (id, kind, hold_id, payload, created_at, due_at, attempts, state) \
                 SELECT id, kind, hold_id, payload, at, at, 0, 0 \
                 FROM unnest($1::text[], $2::text[], $3::uuid[], $4::text[], $5::bigint[]) \
                 AS e(id, kind, hold_id, payload, at) ON CONFLICT (id) DO NOTHING"
            )),
            purge_holds: arc(format!(
                "WITH closed AS MATERIALIZED (SELECT hold_id FROM {p}hold WHERE state >= 4 \
                 AND changed_at <= $1 AND part = 0 LIMIT $2 FOR UPDATE SKIP LOCKED), \
                 paid AS (DELETE FROM {p}payment p USING closed WHERE p.hold_id = closed.hold_id) \
                 DELETE FROM {p}hold h USING closed WHERE h.hold_id = closed.hold_id \
                 AND h.state >= 4 AND h.part >= 0 RETURNING h.part"
            )),
            purge_events: arc(format!(
                "DELETE FROM {p}event WHERE id IN (SELECT id FROM {p}event WHERE state = 1 \
                 AND due_at <= $1 LIMIT $2 FOR UPDATE SKIP LOCKED)"
            )),
            busy: arc(format!(
                "SELECT unit, starts, ends, block_start, block_end, state, expires_at, units \
                 FROM {p}hold WHERE resource = $2 AND state <= 3 \
                 AND int8range(block_start, block_end) && int8range($3, $4) \
                 AND (state = 3 OR expires_at > {CLOCK}) ORDER BY unit, starts, row_id LIMIT $5"
            )),
            take_events: arc(format!(
                "WITH clock AS MATERIALIZED (SELECT {CLOCK} AS ms), \
                 due AS MATERIALIZED (SELECT id FROM {p}event, clock WHERE state = 0 \
                 AND due_at <= clock.ms ORDER BY created_at, id LIMIT $2 \
                 FOR UPDATE OF {p}event SKIP LOCKED) \
                 UPDATE {p}event e SET due_at = clock.ms + $3 FROM due, clock WHERE e.id = due.id \
                 RETURNING e.id, e.kind, e.hold_id, e.payload, e.created_at, e.attempts"
            )),
            fail_event: arc(format!(
                "UPDATE {p}event SET attempts = attempts + 1 WHERE id = $1 RETURNING attempts"
            )),
            settle_event: arc(format!(
                "UPDATE {p}event SET state = $3, due_at = {CLOCK} + $4, \
                 attempts = CASE WHEN $5 THEN 0 ELSE attempts END WHERE id = $2"
            )),
        }
    }
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
