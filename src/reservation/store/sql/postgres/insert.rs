//! The one way into a blocking state on Postgres: an insert that the constraint may refuse.

use std::time::Duration;

use sqlx::Row as _;
use sqlx::postgres::PgArguments;

use super::super::rows::{at, capacity, int, millis, ms, overlap_row};
use super::{PostgresCalendar, sql};
use crate::backend::sql::{TRANSACTION, TransactionError, Xid};
use crate::core::Timestamp;
use crate::reservation::slot::Slot;
use crate::reservation::store::calendar::{InTheWay, Insertion, Seen};
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

/// What became of the rows.
pub(super) enum Rows {
    In(Inserted),
    Refused(Option<Seen>),
}

/// The rows that got in.
pub(super) struct Inserted {
    pub(super) rows: Vec<i64>,
    pub(super) created_at: Timestamp,
    pub(super) expires_at: Option<Timestamp>,
}

/// A row that got in: row_id, created_at, expires_at, the transaction's id.
type InsertedRow = (i64, i64, Option<i64>, Xid);
type Insert<'q> = sqlx::query::QueryAs<'q, sqlx::Postgres, InsertedRow, PgArguments>;

/// Binds what a hold's rows have in common.
macro_rules! bind_hold {
    ($query:expr, $fresh:expr) => {{
        let (fresh, record) = ($fresh, $fresh.record);
        $query
            .bind(record.id.as_uuid())
            .bind(&*record.holder)
            .bind(&*record.key)
            .bind(&record.token.0[..])
            .bind(record.state.code())
            .bind(int(record.version))
            .bind(fresh.created_at.map(ms))
            .bind(fresh.lasting.map(millis))
    }};
}

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
    /// Inserts all rows in one statement, in order of (lane, start), or none.
    pub(super) async fn insert_rows(
        &mut self,
        fresh: &Fresh<'_>,
        how: How<'_>,
    ) -> Result<Rows, TransactionError> {
        match (how, &fresh.record.slots[..]) {
            (How::Plainly, [slot]) => self.insert_row(fresh, slot, None).await,
            (How::Alone(wait), [slot]) => self.insert_row(fresh, slot, Some(wait)).await,
            (How::Over(over, tell), slots) => {
                self.insert_several(fresh, slots, Some((over, tell))).await
            }
            (_, slots) => self.insert_several(fresh, slots, None).await,
        }
    }

    /// Inserts the row of a hold with one slot, or sees in the same statement what is in its way.
    async fn insert_row(
        &mut self,
        fresh: &Fresh<'_>,
        slot: &Slot,
        wait: Option<Duration>,
    ) -> Result<Rows, TransactionError> {
        let statement = match wait {
            None => &self.sql.insert,
            Some(_) => &self.sql.insert_alone,
        };
        let query = sqlx::query(sql(statement))
            .bind(self.injected())
            .bind(&*slot.resource)
            .bind(&*slot.unit)
            .bind(ms(slot.start))
            .bind(ms(slot.end))
            .bind(ms(slot.blocks().start))
            .bind(ms(slot.blocks().end))
            .bind(int(slot.wanted_units()))
            .bind(capacity(slot));
        let query = bind_hold!(query, fresh);
        let query = match wait {
            None => query,
            Some(wait) => query.bind(millis(wait).max(1).to_string()),
        };
        let (mut seen, mut stands): (Option<Seen>, bool) = (None, true);
        for row in query.fetch_all(&mut *self.connection).await? {
            let now = at(row.try_get(11)?);
            if let Some(row_id) = row.try_get(12)? {
                *self.xid = Some(row.try_get(13)?);
                let expires_at: Option<i64> = row.try_get(10)?;
                return Ok(Rows::In(Inserted {
                    rows: vec![row_id],
                    created_at: at(row.try_get(14)?),
                    expires_at: expires_at.map(at),
                }));
            }
            stands &= row.try_get::<bool, _>(15)?;
            let rows = &mut seen.get_or_insert((Vec::new(), now)).0;
            rows.push(overlap_row!(row, *fresh.record.holder, *fresh.record.key));
        }
        Ok(Rows::Refused(seen.filter(|_| stands)))
    }

    /// The same for a hold with several slots, or in the place of holds that are over.
    async fn insert_several(
        &mut self,
        fresh: &Fresh<'_>,
        slots: &[Slot],
        over: Option<(&InTheWay, bool)>,
    ) -> Result<Rows, TransactionError> {
        let statement = match over {
            None => &self.sql.insert_several,
            Some(_) => &self.sql.take_over,
        };
        let query = sqlx::query_as(sql(statement)).bind(self.injected());
        let query = bind_hold!(bind_slots(query, slots), fresh);
        let query = match over {
            None => query,
            Some((over, tell)) => {
                let holds: Vec<_> = over.holds.iter().map(|hold| hold.as_uuid()).collect();
                query.bind(holds).bind(ms(over.now)).bind(tell)
            }
        };
        let got = query.fetch_all(&mut *self.connection).await?;
        let rows: Vec<i64> = got.iter().map(|row| row.0).collect();
        let whole = rows.len() == slots.len();
        match got.into_iter().next() {
            Some((_, created_at, expires_at, xid)) if whole => {
                *self.xid = Some(xid);
                Ok(Rows::In(Inserted {
                    rows,
                    created_at: at(created_at),
                    expires_at: expires_at.map(at),
                }))
            }
            // Expiries were written all the same.
            None if over.is_some() => {
                let asked = format!("SELECT {TRANSACTION}");
                let asked =
                    sqlx::query_scalar(sqlx::AssertSqlSafe(asked)).fetch_one(&mut *self.connection);
                *self.xid = Some(asked.await?);
                Ok(Rows::Refused(None))
            }
            Some(_) => {
                sqlx::query(sql(&self.sql.delete_rows))
                    .bind(rows)
                    .execute(&mut *self.connection)
                    .await?;
                Ok(Rows::Refused(None))
            }
            None => Ok(Rows::Refused(None)),
        }
    }

    pub(super) async fn insert_wish(
        &mut self,
        wish: &HoldWish,
        how: How<'_>,
    ) -> Result<Insertion, TransactionError> {
        // The server has the clock: no time of it is bound.
        let record = wish.granted(Timestamp::EPOCH);
        let fresh = Fresh {
            record: &record,
            created_at: None,
            lasting: Some(wish.hold_for),
        };
        let inserted = match self.insert_rows(&fresh, how).await? {
            Rows::In(inserted) => inserted,
            Rows::Refused(seen) => return Ok(Insertion::Refused(seen)),
        };
        Ok(Insertion::Made(HoldRecord {
            expires_at: inserted.expires_at,
            ..wish.granted(inserted.created_at)
        }))
    }

    /// Inserts a wish of one slot in a statement that is a transaction of its own.
    pub(in crate::reservation::store::sql) async fn insert_alone(
        &mut self,
        wish: &HoldWish,
        wait: Duration,
    ) -> Result<Insertion, TransactionError> {
        self.insert_wish(wish, How::Alone(wait)).await
    }
}
