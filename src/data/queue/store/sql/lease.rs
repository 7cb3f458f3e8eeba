//! How jobs go out, in SQL, and what is tidied up before.

use bytes::Bytes;

use super::{Done, Steps, job_id, ms, time};
use crate::core::Key;
use crate::data::queue::policy::{IDS_LOOKED_AT_EVERY, millis};
use crate::data::queue::store::sql::{Found, LOOK_EVERY};
use crate::data::queue::store::values::unpack;
use crate::data::queue::store::{
    Attempt, Claim, DEAD_KEPT, DEAD_KEPT_FOR, LEASE_BYTES, Leased, Priority, Rules, SWEPT_AT_ONCE,
    Swept,
};

impl Steps<'_> {
    /// Ended leases, expired jobs, dead letters, ids: 100 each. What is due needs no promotion here.
    pub(in crate::data::queue::store::sql) async fn sweep(&mut self, rules: &Rules) -> Done<Swept> {
        let mut swept = self.settle(rules).await?;
        self.forget(&mut swept).await?;
        Ok(swept)
    }

    /// Whether a lease forgets what is over: one time in eight, by the token, which is random. 100 ids and dead letters then
    /// are more than eight leases of a dozen leave behind, and larger ones see to it themselves.
    fn forgets(&self, claim: &Claim) -> bool {
        claim.token.0[0].is_multiple_of(8) || claim.most > 12 || self.is_certain
    }

    /// Dead letters are looked for by going through as many as are kept.
    async fn forget(&mut self, swept: &mut Swept) -> Done<()> {
        let most = SWEPT_AT_ONCE as i64;
        // One look buries up to 100 of each kind.
        swept.dropped = self.forget_dead(2 * most).await?;
        self.forget_ids(most).await
    }

    /// Ended leases and expired jobs.
    async fn settle(&mut self, rules: &Rules) -> Done<Swept> {
        let mut swept = Swept::default();
        let most = SWEPT_AT_ONCE as i64;
        let sql = self.sql(
            "UPDATE {p}queue SET \
             error = CASE WHEN attempts >= $4 THEN 'the lease of the last attempt ended' \
                          WHEN expires <= $2 THEN 'expired' ELSE error END, \
             died = CASE WHEN attempts >= $4 OR expires <= $2 THEN $2 ELSE died END, \
             state = CASE WHEN attempts >= $4 OR expires <= $2 THEN 3 ELSE 1 END \
             WHERE seq IN (SELECT seq FROM {p}queue WHERE queue = $1 AND state = 2 AND lease_end <= $2 \
             ORDER BY lease_end LIMIT $3 {skip}) RETURNING CASE WHEN attempts >= $4 THEN 2 \
             WHEN expires <= $2 THEN 3 ELSE 1 END",
        );
        let ended: Vec<(i32,)> = sqlx::query_as(sql)
            .bind(self.queue)
            .bind(self.now)
            .bind(most)
            .bind(i64::from(rules.attempts))
            .fetch_all(&mut *self.connection)
            .await?;
        let of = |kind| ended.iter().filter(|(one,)| *one == kind).count() as u64;
        (swept.lost, swept.dead, swept.expired) = (ended.len() as u64, of(2), of(3));
        let sql = self.sql(
            "UPDATE {p}queue SET state = 3, died = $2, digest = NULL, error = 'expired' \
             WHERE seq IN (SELECT seq FROM {p}queue WHERE queue = $1 AND state = 1 AND expires <= $2 \
             ORDER BY expires LIMIT $3 {skip})",
        );
        let expired = sqlx::query(sql)
            .bind(self.queue)
            .bind(self.now)
            .bind(most)
            .execute(&mut *self.connection)
            .await?;
        swept.expired += expired.rows_affected();
        Ok(swept)
    }

    /// Forgets ids whose time is over and whose job is gone. Where that is still there, the id is put back to a later look.
    pub(super) async fn forget_ids(&mut self, most: i64) -> Done<()> {
        let sql = "SELECT min(look_ms) FROM {p}queue_once WHERE queue = $1";
        let look: Option<i64> = sqlx::query_scalar(self.sql(sql))
            .bind(self.queue)
            .fetch_one(&mut *self.connection)
            .await?;
        if look.is_none_or(|look| look > self.now) {
            return Ok(());
        }
        let first = "queue = $1 AND id IN (SELECT id FROM {p}queue_once WHERE queue = $1 \
                     AND look_ms <= $2 ORDER BY look_ms LIMIT $3 {skip})";
        let job = "EXISTS (SELECT 1 FROM {p}queue q WHERE q.seq = {p}queue_once.seq)";
        let sql = format!(
            "UPDATE {{p}}queue_once SET look_ms = $4 WHERE {first} AND (until_ms > $2 OR {job})"
        );
        sqlx::query(self.sql(&sql))
            .bind(self.queue)
            .bind(self.now)
            .bind(most)
            .bind(self.now + ms(millis(IDS_LOOKED_AT_EVERY)))
            .execute(&mut *self.connection)
            .await?;
        let sql =
            format!("DELETE FROM {{p}}queue_once WHERE {first} AND until_ms <= $2 AND NOT {job}");
        sqlx::query(self.sql(&sql))
            .bind(self.queue)
            .bind(self.now)
            .bind(most)
            .execute(&mut *self.connection)
            .await?;
        Ok(())
    }

    async fn forget_dead(&mut self, most: i64) -> Done<u64> {
        let mut dropped = 0;
        let old = "DELETE FROM {p}queue WHERE seq IN (SELECT seq FROM {p}queue WHERE queue = $1 \
                   AND state = 3 AND died <= $2 ORDER BY died LIMIT $3 {skip})";
        let old = sqlx::query(self.sql(old))
            .bind(self.queue)
            .bind(self.now - ms(millis(DEAD_KEPT_FOR)))
            .bind(most)
            .execute(&mut *self.connection)
            .await?;
        dropped += old.rows_affected();
        // Chosen first and locked then: else all that are passed over would be locked, too. One that was revived in between
        // is no dead letter any more: asked again of what was locked.
        // Each step once, whatever a planner believes: it would go through all of them again for each row.
        let spare = "WITH spare AS MATERIALIZED (SELECT seq FROM {p}queue WHERE queue = $1 AND state = 3 \
                     ORDER BY died DESC, seq DESC LIMIT $2 OFFSET $3), \
                     own AS MATERIALIZED (SELECT seq FROM {p}queue WHERE state = 3 \
                     AND seq IN (SELECT seq FROM spare) {skip}) \
                     DELETE FROM {p}queue WHERE state = 3 AND seq IN (SELECT seq FROM own)";
        let spare = sqlx::query(self.sql(spare))
            .bind(self.queue)
            .bind(most)
            .bind(ms(DEAD_KEPT))
            .execute(&mut *self.connection)
            .await?;
        dropped += spare.rows_affected();
        Ok(dropped)
    }

    pub(in crate::data::queue::store::sql) async fn lease(
        &mut self,
        claim: &Claim,
        rules: &Rules,
    ) -> Done<Leased> {
        let mut swept = self.settle(rules).await?;
        // Who buries forgets: there are never many more dead letters than are kept.
        if self.forgets(claim) || swept.dead + swept.expired > 0 {
            self.forget(&mut swept).await?;
        }
        let until = self.now + ms(millis(claim.lease));
        let found = match &claim.recipient {
            Some(recipient) => self.ready_of(recipient, None, claim.most, rules).await?,
            None => match self.first(rules).await? {
                Some((recipient, rank)) => {
                    self.ready_of(&recipient, Some(rank), claim.most, rules)
                        .await?
                }
                None => Vec::new(),
            },
        };
        let (mut jobs, mut bytes, mut recipient) = (Vec::new(), 0, None);
        for (seq, to, rank, attempts, due, packed) in found {
            bytes += packed.len();
            if bytes > LEASE_BYTES && !jobs.is_empty() {
                break;
            }
            let sql = self.sql(
                "UPDATE {p}queue SET state = 2, attempts = attempts + 1, token = $2, lease_end = $3, \
                 digest = NULL WHERE seq = $1",
            );
            sqlx::query(sql)
                .bind(seq)
                .bind(&claim.token.0[..])
                .bind(until)
                .execute(&mut *self.connection)
                .await?;
            recipient = Some(Key::from_escaped(to));
            jobs.push(Attempt {
                id: job_id(seq),
                priority: Priority::of_rank(u8::try_from(rank).unwrap_or(2)),
                attempt: u32::try_from(attempts)
                    .unwrap_or(u32::MAX)
                    .saturating_add(1),
                due: time(due),
                items: unpack(Bytes::from(packed)),
            });
        }
        let next_due = match jobs.is_empty() {
            // There may be more; whoever has a free slot asks.
            false => Some(self.now),
            true => {
                let next = self.next_due().await?;
                next.map(|due| self.look_at(due, claim, swept))
            }
        };
        Ok(Leased {
            recipient,
            jobs,
            until: time(until),
            now: time(self.now),
            next_due: next_due.map(time),
            swept,
            // Counting a whole table would cost more than the lease.
            depth: None,
        })
    }

    /// When to look for what is due at `due`. If that is over, others have locked it, for as long as their transaction
    /// takes. But after a look that tidied up something there may be more to do.
    fn look_at(&self, due: i64, claim: &Claim, swept: Swept) -> i64 {
        let is_locked = claim.recipient.is_none() && swept.lost + swept.expired == 0;
        match is_locked && due <= self.now {
            true => self.now + ms(millis(LOOK_EVERY)),
            false => due,
        }
    }

    /// Whose the first ready job is.
    async fn first(&mut self, rules: &Rules) -> Done<Option<(Key, i64)>> {
        // Without aging each priority is asked for itself: an index tells its first.
        let (ranks, filter, order) = match rules.aging.is_zero() {
            true => (&[0_i64, 1, 2][..], "rank = $3 AND $4 >= 0", "due, seq"),
            false => (&[0][..], "$3 >= 0", "due + rank * $4, seq"),
        };
        let sql = format!(
            "SELECT recipient, rank FROM {{p}}queue WHERE queue = $1 AND state = 1 AND due <= $2 \
             AND expires > $2 AND {filter} ORDER BY {order} LIMIT 1 {{skip}}"
        );
        for rank in ranks {
            let found: Option<(String, i64)> = sqlx::query_as(self.sql(&sql))
                .bind(self.queue)
                .bind(self.now)
                .bind(*rank)
                .bind(ms(millis(rules.aging)))
                .fetch_optional(&mut *self.connection)
                .await?;
            if let Some((recipient, rank)) = found {
                return Ok(Some((Key::from_escaped(recipient), rank)));
            }
        }
        Ok(None)
    }

    /// The first ready jobs of a recipient, locked; what others have locked is skipped.
    async fn ready_of(
        &mut self,
        recipient: &Key,
        rank: Option<i64>,
        most: usize,
        rules: &Rules,
    ) -> Done<Vec<Found>> {
        let (filter, order) = match (rank, rules.aging.is_zero()) {
            (Some(_), _) => ("rank = $4 AND $6 >= 0", "due, seq"),
            (None, true) => ("$4 < 0 AND $6 >= 0", "rank, due, seq"),
            (None, false) => ("$4 < 0", "due + rank * $6, seq"),
        };
        let sql = self.sql(&format!(
            "SELECT seq, recipient, rank, attempts, due, items FROM {{p}}queue WHERE queue = $1 \
             AND state = 1 AND due <= $2 AND expires > $2 AND recipient = $3 AND {filter} \
             ORDER BY {order} LIMIT $5 {{skip}}"
        ));
        let found = sqlx::query_as(sql)
            .bind(self.queue)
            .bind(self.now)
            .bind(recipient.as_str())
            .bind(rank.unwrap_or(-1))
            .bind(i64::try_from(most).unwrap_or(i64::MAX))
            .bind(ms(millis(rules.aging)));
        Ok(found.fetch_all(&mut *self.connection).await?)
    }

    async fn next_due(&mut self) -> Done<Option<i64>> {
        // Each priority is asked for itself: an index tells its first.
        let sql = self.sql(
            "SELECT min(at_ms) FROM (\
             SELECT min(due) AS at_ms FROM {p}queue WHERE queue = $1 AND state = 1 AND rank = 0 UNION ALL \
             SELECT min(due) FROM {p}queue WHERE queue = $1 AND state = 1 AND rank = 1 UNION ALL \
             SELECT min(due) FROM {p}queue WHERE queue = $1 AND state = 1 AND rank = 2 UNION ALL \
             SELECT min(lease_end) FROM {p}queue WHERE queue = $1 AND state = 2) AS times",
        );
        let next: Option<i64> = sqlx::query_scalar(sql)
            .bind(self.queue)
            .fetch_one(&mut *self.connection)
            .await?;
        Ok(next)
    }
}
