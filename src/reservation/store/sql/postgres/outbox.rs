//! The outbox on Postgres.

use std::time::Duration;

use super::super::rows::{StoredEvent, at, event_of, millis, ms, whole};
use super::{PostgresCalendar, sql};
use crate::backend::sql::TransactionError;
use crate::core::Timestamp;
use crate::reservation::event::{EventId, ReservationEvent};
use crate::reservation::store::calendar::{MOST_COUNTED, Outbox, PURGE_ROWS, lag_of};
use crate::reservation::store::{Delivery, MOST_ATTEMPTS, event_pause};

impl Outbox for PostgresCalendar<'_> {
    async fn purge_events(&mut self, delivered_before: Timestamp) -> Result<u64, TransactionError> {
        let done = sqlx::query(sql(&self.sql.purge_events))
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

    async fn lag(&mut self) -> Result<Duration, TransactionError> {
        let (now, oldest): (i64, Option<i64>) = sqlx::query_as(sql(&self.sql.first_end))
            .bind(self.injected())
            .fetch_one(&mut *self.connection)
            .await?;
        Ok(lag_of(at(now), oldest.map(at)))
    }

    async fn pending(&mut self) -> Result<u64, TransactionError> {
        let pending: i64 = sqlx::query_scalar(sql(&self.sql.pending))
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
        let (mut state, mut pause) = (0_i16, Duration::ZERO);
        match delivery {
            Delivery::Delivered => state = 1,
            Delivery::Again => {}
            Delivery::Failed => {
                // Another who had it after its lease has told it meanwhile: that stays.
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
