//! The one way into a blocking state on Postgres: an insert that the constraint may refuse.

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::PgArguments;

use super::super::rows::{at, capacity, int, millis, ms};
use super::{PostgresCalendar, sql};
use crate::backend::sql::{TRANSACTION, TransactionError};
use crate::core::Timestamp;
use crate::reservation::hold::HoldState;
use crate::reservation::slot::Slot;
use crate::reservation::store::calendar::InTheWay;
use crate::reservation::store::{HoldRecord, HoldWish};

/// What a fresh hold's rows carry beside their slots.
pub(super) struct Fresh<'r> {
    pub(super) record: &'r HoldRecord,
    pub(super) created_at: Option<Timestamp>,
    pub(super) lasting: Option<Duration>,
}

/// What an insert does beside inserting.
#[derive(Clone, Copy)]
pub(super) enum How<'o> {
    Plainly,
    /// Bounds its wait for others, where no transaction has done so.
    Alone(Duration),
    /// Writes these as expired before, and tells of it or not.
    Over(&'o InTheWay, bool),
}

/// The rows that got in.
pub(super) struct Inserted {
    pub(super) rows: Vec<i64>,
    pub(super) created_at: Timestamp,
    pub(super) expires_at: Option<Timestamp>,
}

/// A row that got in: row_id, created_at, expires_at, the transaction's id.
type InsertedRow = (i64, i64, Option<i64>, String);
type Insert<'q> = sqlx::query::QueryAs<'q, sqlx::Postgres, InsertedRow, PgArguments>;

/// Binds slots as columns.
fn bind_slots<'q>(query: Insert<'q>, slots: &'q [Slot]) -> Insert<'q> {
    let text = |of: fn(&Slot) -> &str| -> Vec<&str> { slots.iter().map(of).collect() };
    let time = |of: fn(&Slot) -> Timestamp| -> Vec<i64> {
        slots.iter().map(|slot| ms(of(slot))).collect()
    };
    let units = slots.iter().map(|slot| int(slot.wanted_units()));
    query
        .bind(text(|slot| &slot.resource))
        .bind(text(|slot| &slot.unit))
        .bind(time(|slot| slot.start))
        .bind(time(|slot| slot.end))
        .bind(time(|slot| slot.blocks().start))
        .bind(time(|slot| slot.blocks().end))
        .bind(units.collect::<Vec<_>>())
        .bind(slots.iter().map(capacity).collect::<Vec<_>>())
}

impl PostgresCalendar<'_> {
    /// Inserts all rows in one statement, in order of (lane, start); `None` if one was refused.
    pub(super) async fn insert_rows(
        &mut self,
        fresh: &Fresh<'_>,
        how: How<'_>,
    ) -> Result<Option<Inserted>, TransactionError> {
        let (record, slots) = (fresh.record, &fresh.record.slots);
        let statement = match how {
            How::Plainly if slots.len() > 1 => &self.sql.insert_several,
            How::Plainly => &self.sql.insert,
            How::Alone(_) => &self.sql.insert_alone,
            How::Over(..) => &self.sql.take_over,
        };
        let query = sqlx::query_as(sql(statement)).bind(self.injected());
        let query = bind_slots(query, slots)
            .bind(record.id.as_uuid())
            .bind(&*record.holder)
            .bind(&*record.key)
            .bind(&record.token.0[..])
            .bind(record.state.code())
            .bind(int(record.version))
            .bind(fresh.created_at.map(ms))
            .bind(fresh.lasting.map(millis));
        let query = match how {
            How::Plainly => query,
            How::Alone(wait) => query.bind(millis(wait).max(1).to_string()),
            How::Over(over, tell) => query
                .bind(
                    over.holds
                        .iter()
                        .map(|hold| hold.as_uuid())
                        .collect::<Vec<_>>(),
                )
                .bind(ms(over.now))
                .bind(tell),
        };
        let got = query.fetch_all(&mut *self.connection).await?;
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
            // Expiries were written all the same.
            None if matches!(how, How::Over(..)) => {
                let asked = format!("SELECT {TRANSACTION}");
                let asked =
                    sqlx::query_scalar(sqlx::AssertSqlSafe(asked)).fetch_one(&mut *self.connection);
                *self.xid = Some(asked.await?);
                Ok(None)
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

    pub(super) async fn insert_wish(
        &mut self,
        wish: &HoldWish,
        how: How<'_>,
    ) -> Result<Option<HoldRecord>, TransactionError> {
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
        let Some(inserted) = self.insert_rows(&fresh, how).await? else {
            return Ok(None);
        };
        record.created_at = inserted.created_at;
        record.changed_at = inserted.created_at;
        record.read_at = inserted.created_at;
        record.expires_at = inserted.expires_at;
        Ok(Some(record))
    }

    /// Inserts a wish of one slot in a statement that is a transaction of its own.
    pub(in crate::reservation::store::sql) async fn insert_alone(
        &mut self,
        wish: &HoldWish,
        wait: Duration,
    ) -> Result<Option<HoldRecord>, TransactionError> {
        self.insert_wish(wish, How::Alone(wait)).await
    }
}
