//! The outbox on SQLite.

use std::sync::Arc;
use std::time::Duration;

use super::super::rows::{StoredEvent, at, event_of, millis, ms, whole};
use super::{SqliteCalendar, sql};
use crate::backend::sql::TransactionError;
use crate::core::Timestamp;
use crate::reservation::event::{EventId, ReservationEvent};
use crate::reservation::store::calendar::{MOST_COUNTED, Outbox, PURGE_ROWS, lag_of};
use crate::reservation::store::{Delivery, MOST_ATTEMPTS, event_pause};

pub(super) struct OutboxStatements {
    pub(super) write_event: Arc<str>,
    purge_events: Arc<str>,
    take_events: Arc<str>,
    fail_event: Arc<str>,
    settle_event: Arc<str>,
    first_end: Arc<str>,
    pending: Arc<str>,
}

impl OutboxStatements {
    pub(super) fn new(p: &str) -> Self {
        let arc = |sql: String| Arc::from(sql);
        Self {
            write_event: arc(format!(
                "INSERT INTO {p}event (id, kind, hold_id, payload, created_at, due_at, attempts, state) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?5, 0, 0) ON CONFLICT (id) DO NOTHING"
            )),
            purge_events: arc(format!(
                "DELETE FROM {p}event WHERE id IN \
                 (SELECT id FROM {p}event WHERE state = 1 AND due_at <= ?1 LIMIT ?2)"
            )),
            take_events: arc(format!(
                "UPDATE {p}event SET due_at = ?2 WHERE id IN (SELECT id FROM {p}event \
                 WHERE state = 0 AND due_at <= ?1 ORDER BY due_at, created_at, id LIMIT ?3) \
                 RETURNING id, kind, hold_id, payload, created_at, attempts"
            )),
            fail_event: arc(format!(
                "UPDATE {p}event SET attempts = attempts + 1 WHERE id = ?1 AND state = 0 \
                 RETURNING attempts"
            )),
            settle_event: arc(format!(
                "UPDATE {p}event SET state = ?2, due_at = ?3, \
                 attempts = CASE WHEN ?4 THEN 0 ELSE attempts END \
                 WHERE id = ?1 AND (state = 0 OR ?4)"
            )),
            first_end: arc(format!(
                "SELECT min(expires_at) FROM {p}hold WHERE state <= 2"
            )),
            pending: arc(format!(
                "SELECT count(*) FROM (SELECT 1 FROM {p}event WHERE state = 0 LIMIT ?1)"
            )),
        }
    }
}

impl Outbox for SqliteCalendar<'_> {
    async fn purge_events(&mut self, delivered_before: Timestamp) -> Result<u64, TransactionError> {
        let done = sqlx::query(sql(&self.sql.outbox.purge_events))
            .bind(ms(delivered_before))
            .bind(PURGE_ROWS)
            .execute(&mut *self.connection)
            .await?;
        Ok(done.rows_affected())
    }

    async fn take_events(
        &mut self,
        limit: u32,
        lease: Duration,
    ) -> Result<Vec<ReservationEvent>, TransactionError> {
        let rows: Vec<StoredEvent> = sqlx::query_as(sql(&self.sql.outbox.take_events))
            .bind(ms(self.now))
            .bind(ms(self.now) + millis(lease))
            .bind(limit)
            .fetch_all(&mut *self.connection)
            .await?;
        let mut events: Vec<_> = rows.into_iter().filter_map(event_of).collect();
        events.sort_by(|a, b| (a.at, &a.id).cmp(&(b.at, &b.id)));
        Ok(events)
    }

    async fn lag(&mut self) -> Result<Duration, TransactionError> {
        let oldest: Option<i64> = sqlx::query_scalar(sql(&self.sql.outbox.first_end))
            .fetch_one(&mut *self.connection)
            .await?;
        Ok(lag_of(self.now, oldest.map(at)))
    }

    async fn pending(&mut self) -> Result<u64, TransactionError> {
        let pending: i64 = sqlx::query_scalar(sql(&self.sql.outbox.pending))
            .bind(MOST_COUNTED)
            .fetch_one(&mut *self.connection)
            .await?;
        Ok(u64::try_from(pending).unwrap_or(0))
    }

    async fn settle_event(
        &mut self,
        event: &EventId,
        delivery: Delivery,
    ) -> Result<(), TransactionError> {
        let mut state = 0_i16;
        let mut due = self.now;
        match delivery {
            Delivery::Delivered => state = 1,
            Delivery::Again => {}
            Delivery::Failed => {
                let failed: Option<i32> = sqlx::query_scalar(sql(&self.sql.outbox.fail_event))
                    .bind(event.as_str())
                    .fetch_optional(&mut *self.connection)
                    .await?;
                let attempts = whole(failed.unwrap_or(0));
                due = due.plus(event_pause(attempts));
                state = if attempts >= MOST_ATTEMPTS { 2 } else { 0 };
            }
        }
        sqlx::query(sql(&self.sql.outbox.settle_event))
            .bind(event.as_str())
            .bind(state)
            .bind(ms(due))
            .bind(delivery == Delivery::Again)
            .execute(&mut *self.connection)
            .await?;
        Ok(())
    }
}
