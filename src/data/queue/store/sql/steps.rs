//! The steps of a queue in SQL that both engines understand; mounted once for each, with its connection.

#[path = "enqueue.rs"]
mod enqueue;
#[path = "lease.rs"]
mod lease;

use std::collections::{BTreeSet, HashMap};

use sqlx::AssertSqlSafe;

use super::{Connection, LOCK, now_of, serialise};
use crate::backend::sql::TransactionError;
use crate::core::{Key, Timestamp};
use crate::data::queue::policy::millis;
use crate::data::queue::store::sql::{LISTED, Row, Text, shown};
use crate::data::queue::store::values::kept_error;
use crate::data::queue::store::{Depth, JobId, Listed, Listing, Rules, Settle, Settled, Token};

type Done<T> = Result<T, TransactionError>;
/// State, tries, token, end of the lease.
type Held = (i64, i64, Option<Vec<u8>>, Option<i64>);

/// One queue on a connection with a transaction open. Times are UTC milliseconds.
pub(in crate::data::queue::store::sql) struct Steps<'c> {
    connection: &'c mut Connection,
    text: &'c Text,
    queue: &'c str,
    now: i64,
    /// A clock was passed: what happens is to be certain.
    is_certain: bool,
}

fn ms(time: u64) -> i64 {
    i64::try_from(time).unwrap_or(i64::MAX)
}

impl<'c> Steps<'c> {
    pub(in crate::data::queue::store::sql) async fn begin(
        connection: &'c mut Connection,
        text: &'c Text,
        queue: &'c str,
        injected: Option<Timestamp>,
    ) -> Done<Self> {
        let now = now_of(connection, injected).await?;
        Ok(Self {
            connection,
            text,
            queue,
            now,
            is_certain: injected.is_some(),
        })
    }

    fn sql(&self, text: &str) -> AssertSqlSafe<String> {
        self.text.of(text, LOCK)
    }

    async fn bury(&mut self, seq: i64, why: Option<&str>) -> Done<()> {
        let sql = "UPDATE {p}queue SET state = 3, died = $2, digest = NULL, error = coalesce($3, error) WHERE seq = $1";
        sqlx::query(self.sql(sql))
            .bind(seq)
            .bind(self.now)
            .bind(why)
            .execute(&mut *self.connection)
            .await?;
        Ok(())
    }

    /// Says whether a job is leased under `token`, and how often it was tried; locks it.
    async fn held(&mut self, id: JobId, token: Token) -> Done<(Settled, i64)> {
        let sql = "SELECT state, attempts, token, lease_end FROM {p}queue WHERE seq = $1 AND queue = $2 {wait}";
        let found: Option<Held> = sqlx::query_as(self.sql(sql))
            .bind(ms(id.0))
            .bind(self.queue)
            .fetch_optional(&mut *self.connection)
            .await?;
        Ok(match found {
            None => (Settled::Gone, 0),
            Some((2, attempts, Some(own), Some(end))) if own == token.0 && self.now < end => {
                (Settled::Done, attempts)
            }
            Some(_) => (Settled::Lost, 0),
        })
    }

    pub(in crate::data::queue::store::sql) async fn ack(
        &mut self,
        id: JobId,
        token: Token,
    ) -> Done<Settled> {
        let (held, _) = self.held(id, token).await?;
        if held == Settled::Done {
            sqlx::query(self.sql("DELETE FROM {p}queue WHERE seq = $1"))
                .bind(ms(id.0))
                .execute(&mut *self.connection)
                .await?;
        }
        Ok(held)
    }

    pub(in crate::data::queue::store::sql) async fn extend(
        &mut self,
        id: JobId,
        token: Token,
        lease: std::time::Duration,
    ) -> Done<Settled> {
        let (held, _) = self.held(id, token).await?;
        if held == Settled::Done {
            sqlx::query(self.sql("UPDATE {p}queue SET lease_end = $2 WHERE seq = $1"))
                .bind(ms(id.0))
                .bind(self.now + ms(millis(lease)))
                .execute(&mut *self.connection)
                .await?;
        }
        Ok(held)
    }

    pub(in crate::data::queue::store::sql) async fn nack(
        &mut self,
        id: JobId,
        token: Token,
        how: Settle,
        rules: &Rules,
    ) -> Done<Settled> {
        let (held, attempts) = self.held(id, token).await?;
        if held != Settled::Done {
            return Ok(held);
        }
        let (due, error) = match how {
            Settle::GiveBack => {
                let sql = "UPDATE {p}queue SET state = 1, attempts = attempts - 1 WHERE seq = $1";
                sqlx::query(self.sql(sql))
                    .bind(ms(id.0))
                    .execute(&mut *self.connection)
                    .await?;
                return Ok(held);
            }
            Settle::After(wait, error) => (Some(self.now + ms(millis(wait))), error),
            Settle::At(at, error) => (Some(ms(at.as_millis()).max(self.now)), error),
            Settle::Dead(error) => (None, error),
        };
        let error = &*kept_error(error);
        let Some(due) = due.filter(|_| attempts < i64::from(rules.attempts)) else {
            self.bury(ms(id.0), Some(error)).await?;
            return Ok(Settled::Died);
        };
        let sql =
            "UPDATE {p}queue SET state = 1, due = $2, expires = $3, error = $4 WHERE seq = $1";
        sqlx::query(self.sql(sql))
            .bind(ms(id.0))
            .bind(due)
            .bind(due + ms(millis(rules.expire_after)))
            .bind(error)
            .execute(&mut *self.connection)
            .await?;
        Ok(Settled::Done)
    }

    pub(in crate::data::queue::store::sql) async fn cancel(
        &mut self,
        id: JobId,
        recipient: &Key,
    ) -> Done<bool> {
        let sql =
            "DELETE FROM {p}queue WHERE seq = $1 AND queue = $2 AND recipient = $3 AND state = 1";
        let cancelled = sqlx::query(self.sql(sql))
            .bind(ms(id.0))
            .bind(self.queue)
            .bind(recipient.as_str())
            .execute(&mut *self.connection)
            .await?;
        Ok(cancelled.rows_affected() > 0)
    }

    pub(in crate::data::queue::store::sql) async fn list(
        &mut self,
        listing: &Listing,
        rules: &Rules,
    ) -> Done<Vec<Listed>> {
        self.sweep(rules).await?;
        let rows: Vec<Row> = match listing {
            Listing::Of(recipient, most) => {
                let sql = format!(
                    "SELECT {LISTED} FROM {{p}}queue WHERE queue = $1 AND recipient = $2 AND state < 3 \
                     ORDER BY CASE WHEN state = 2 THEN 0 WHEN due <= $3 THEN 1 ELSE 2 END, rank, \
                     CASE WHEN state = 2 THEN lease_end ELSE due END, seq LIMIT $4"
                );
                sqlx::query_as(self.sql(&sql))
                    .bind(self.queue)
                    .bind(recipient.as_str())
                    .bind(self.now)
                    .bind(i64::try_from(*most).unwrap_or(i64::MAX))
                    .fetch_all(&mut *self.connection)
                    .await?
            }
            Listing::Dead(most) => {
                let sql = format!(
                    "SELECT {LISTED} FROM {{p}}queue WHERE queue = $1 AND state = 3 \
                     ORDER BY died DESC, seq DESC LIMIT $2"
                );
                sqlx::query_as(self.sql(&sql))
                    .bind(self.queue)
                    .bind(i64::try_from(*most).unwrap_or(i64::MAX))
                    .fetch_all(&mut *self.connection)
                    .await?
            }
            Listing::Ids(ids) => {
                let sql = format!("SELECT {LISTED} FROM {{p}}queue WHERE queue = $1 AND seq = $2");
                let mut rows = Vec::with_capacity(ids.len());
                for id in ids {
                    let row = sqlx::query_as(self.sql(&sql))
                        .bind(self.queue)
                        .bind(ms(id.0))
                        .fetch_optional(&mut *self.connection)
                        .await?;
                    rows.extend(row);
                }
                rows
            }
        };
        Ok(rows.into_iter().map(|row| shown(row, self.now)).collect())
    }

    pub(in crate::data::queue::store::sql) async fn depth(
        &mut self,
        recipient: Option<&Key>,
    ) -> Done<Depth> {
        // Each by an index of its own: other queues' jobs and, of one recipient, the dead ones are not looked at.
        let (whose, dead) = match recipient {
            Some(_) => ("AND recipient = $3", "CAST(0 AS bigint)"),
            None => (
                "AND $3 = ''",
                "(SELECT count(*) FROM {p}queue WHERE queue = $1 AND state = 3)",
            ),
        };
        let sql = format!(
            "SELECT count(CASE WHEN state = 1 AND due <= $2 THEN 1 END), \
             count(CASE WHEN state = 1 AND due > $2 THEN 1 END), \
             count(CASE WHEN state = 2 THEN 1 END), {dead}, \
             min(CASE WHEN state = 1 AND due <= $2 THEN due END) \
             FROM {{p}}queue WHERE queue = $1 AND state < 3 {whose}"
        );
        let row: (i64, i64, i64, i64, Option<i64>) = sqlx::query_as(self.sql(&sql))
            .bind(self.queue)
            .bind(self.now)
            .bind(recipient.map_or("", Key::as_str))
            .fetch_one(&mut *self.connection)
            .await?;
        let (ready, delayed, leased, dead, oldest) = row;
        Ok(Depth {
            ready: ready.unsigned_abs(),
            delayed: delayed.unsigned_abs(),
            leased: leased.unsigned_abs(),
            dead: dead.unsigned_abs(),
            oldest: oldest.filter(|_| recipient.is_none()).map(time),
        })
    }

    /// Makes dead letters ready; `None` without room.
    pub(in crate::data::queue::store::sql) async fn revive(
        &mut self,
        ids: &[JobId],
        rules: &Rules,
    ) -> Done<Option<Vec<JobId>>> {
        let mut dead = Vec::new();
        // In one order at everybody: two calls would wait for each other's rows.
        let each: BTreeSet<JobId> = ids.iter().copied().collect();
        for id in &each {
            let sql =
                "SELECT recipient FROM {p}queue WHERE seq = $1 AND queue = $2 AND state = 3 {wait}";
            let found: Option<String> = sqlx::query_scalar(self.sql(sql))
                .bind(ms(id.0))
                .bind(self.queue)
                .fetch_optional(&mut *self.connection)
                .await?;
            dead.extend(found.map(|recipient| (*id, Key::from_escaped(recipient))));
        }
        let mut of: HashMap<&Key, u64> = HashMap::new();
        for (_, recipient) in &dead {
            *of.entry(recipient).or_default() += 1;
        }
        if !self.fits(&of, rules).await? {
            return Ok(None);
        }
        let sql =
            "UPDATE {p}queue SET state = 1, attempts = 0, due = $2, expires = $3 WHERE seq = $1";
        for (id, _) in &dead {
            sqlx::query(self.sql(sql))
                .bind(ms(id.0))
                .bind(self.now)
                .bind(self.now + ms(millis(rules.expire_after)))
                .execute(&mut *self.connection)
                .await?;
        }
        // Told in the order in which they were asked for, each once.
        let mut revived: BTreeSet<JobId> = dead.into_iter().map(|(id, _)| id).collect();
        let asked = ids.iter().filter(|id| revived.remove(id));
        Ok(Some(asked.copied().collect()))
    }
}

fn job_id(seq: i64) -> JobId {
    JobId(seq.unsigned_abs())
}

fn time(ms: i64) -> Timestamp {
    Timestamp::from_millis(ms.unsigned_abs())
}
