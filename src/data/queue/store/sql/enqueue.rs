//! How jobs come in, in SQL: new ones, duplicates, replacements, digests.

use std::collections::{BTreeSet, HashMap};

use bytes::Bytes;

use super::{Done, Steps, job_id, ms, serialise};
use crate::core::{Key, base64url};
use crate::data::queue::policy::millis;
use crate::data::queue::store::room::{Collecting, ITEM, Tally};
use crate::data::queue::store::sql::known_job;
use crate::data::queue::store::values::{pack, unpack};
use crate::data::queue::store::{
    Again, DIGEST_BYTES, DigestWish, Due, EnqueueOutcome, NewJob, Rules,
};

/// The ids that one call looks at.
const MOST_IDS_LOOKED_AT: i64 = 128;

/// How many ids jobs with ids look at, whether they may go: four for each id, together at one in eight of them, and no more
/// than a part of jobs can afford. Leases alone
/// do not keep up: the items of a digest leave as many ids as there are, and a cancelled job leaves one that nobody leases.
fn ids_looked_at(jobs: &[NewJob]) -> i64 {
    let ids = jobs.iter().filter_map(|job| job.once.as_ref());
    let looks = ids.filter(|id| id[0].is_multiple_of(8)).count() as i64;
    (32 * looks).min(MOST_IDS_LOOKED_AT)
}

impl Steps<'_> {
    /// Adds jobs; `None` without room.
    pub(in crate::data::queue::store::sql) async fn enqueue(
        &mut self,
        jobs: &[NewJob],
        rules: &Rules,
    ) -> Done<Option<Vec<EnqueueOutcome>>> {
        // Who else enqueues the same id or digest waits for our end; in one order, so that nobody waits in a circle.
        let mut names = BTreeSet::new();
        for job in jobs {
            names.extend(
                job.once
                    .map(|id| format!("{}/{}", self.queue, base64url(&id))),
            );
            let to = job.recipient.as_str();
            let digest = job.digest.as_ref();
            names.extend(digest.map(|wish| format!("{}/{to}/{}", self.queue, wish.key.as_str())));
        }
        for name in names {
            serialise(self.connection, &name).await?;
        }
        if !self.has_room(jobs, rules).await? {
            self.sweep(rules).await?;
            if !self.has_room(jobs, rules).await? {
                return Ok(None);
            }
        }
        let mut outcomes = Vec::with_capacity(jobs.len());
        for job in jobs {
            outcomes.push(self.add(job, rules).await?);
        }
        Ok(Some(outcomes))
    }

    /// Forgets ids that are over, now and then; not inside a caller's transaction: what is locked would stay so until its end.
    pub(in crate::data::queue::store::sql) async fn forget_beside(
        &mut self,
        jobs: &[NewJob],
    ) -> Done<()> {
        match ids_looked_at(jobs) {
            0 => Ok(()),
            looked_at => self.forget_ids(looked_at).await,
        }
    }

    async fn has_room(&mut self, jobs: &[NewJob], rules: &Rules) -> Done<bool> {
        let mut tally = Tally::default();
        for job in jobs {
            if tally.repeats(job) {
                continue;
            }
            if let Some(id) = &job.once
                && let Some(seq) = self.known(id).await?
            {
                if let Some(Some(key)) = self.replaced(seq, job, false).await? {
                    tally.closes(job, Key::from_escaped(key));
                }
                continue;
            }
            let found = match tally.wants(job) {
                Some(key) => self.collecting(&job.recipient, key).await?,
                None => None,
            };
            tally.add(job, found);
        }
        self.fits(tally.new_ones(), rules).await
    }

    pub(super) async fn fits(&mut self, of: &HashMap<&Key, u64>, rules: &Rules) -> Done<bool> {
        let new: u64 = of.values().sum();
        if new == 0 {
            return Ok(true);
        }
        let waiting = self.waiting(rules.capacity.saturating_sub(new)).await?;
        if waiting + new > rules.capacity {
            return Ok(false);
        }
        if waiting + new <= rules.per_recipient {
            // No recipient can have more than there are.
            return Ok(true);
        }
        for (recipient, new) in of {
            if self.seats(recipient).await? + new > rules.per_recipient {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// How many jobs wait. Where the numbers of all jobs there are lie within `enough` of each other, there can be no more,
    /// and it is told how many there are at most: nothing is counted then.
    async fn waiting(&mut self, enough: u64) -> Done<u64> {
        let sql = self.sql(
            "SELECT CASE WHEN (SELECT max(seq) FROM {p}queue) - (SELECT min(seq) FROM {p}queue) < $2 \
             THEN (SELECT max(seq) FROM {p}queue) - (SELECT min(seq) FROM {p}queue) + 1 \
             ELSE (SELECT count(*) FROM {p}queue WHERE queue = $1 AND state < 3) END",
        );
        let waiting: i64 = sqlx::query_scalar(sql)
            .bind(self.queue)
            .bind(ms(enough))
            .fetch_one(&mut *self.connection)
            .await?;
        Ok(waiting.unsigned_abs())
    }

    async fn seats(&mut self, recipient: &Key) -> Done<u64> {
        let sql = "SELECT count(*) FROM {p}queue WHERE queue = $1 AND recipient = $2 AND state < 3";
        let seats: i64 = sqlx::query_scalar(self.sql(sql))
            .bind(self.queue)
            .bind(recipient.as_str())
            .fetch_one(&mut *self.connection)
            .await?;
        Ok(seats.unsigned_abs())
    }

    /// The job of an id, while it lives and for as long as the id is remembered.
    async fn known(&mut self, id: &[u8; 32]) -> Done<Option<i64>> {
        let sql = self.sql(
            "SELECT o.seq, o.until_ms, CASE WHEN q.state = 2 OR (q.state = 1 AND q.expires > $3) THEN 1 ELSE 0 END \
             FROM {p}queue_once o LEFT JOIN {p}queue q ON q.seq = o.seq WHERE o.queue = $1 AND o.id = $2",
        );
        let found: Option<(i64, i64, i32)> = sqlx::query_as(sql)
            .bind(self.queue)
            .bind(&id[..])
            .bind(self.now)
            .fetch_optional(&mut *self.connection)
            .await?;
        Ok(known_job(found, self.now))
    }

    async fn open_digest(&mut self, recipient: &Key, key: &Key) -> Done<Option<(i64, i64)>> {
        let sql = self.sql(
            "SELECT seq, expires FROM {p}queue WHERE queue = $1 AND recipient = $2 AND digest = $3 \
             AND state = 1 ORDER BY seq DESC LIMIT 1",
        );
        let found = sqlx::query_as(sql)
            .bind(self.queue)
            .bind(recipient.as_str())
            .bind(key.as_str());
        Ok(found.fetch_optional(&mut *self.connection).await?)
    }

    /// What an open digest has so far; one that is dead, and only not yet noticed, is none.
    async fn collecting(&mut self, recipient: &Key, key: &Key) -> Done<Option<Collecting>> {
        let Some((seq, expires)) = self.open_digest(recipient, key).await? else {
            return Ok(None);
        };
        let sql = self.sql("SELECT items FROM {p}queue WHERE seq = $1");
        let packed: Option<Vec<u8>> = sqlx::query_scalar(sql)
            .bind(seq)
            .fetch_optional(&mut *self.connection)
            .await?;
        let items = packed.filter(|_| self.now < expires);
        Ok(items.map(|packed| collecting(&unpack(Bytes::from(packed)))))
    }

    /// The job whose place `new` takes, as its digest: its recipient's own, never leased, and with nobody else's item.
    async fn replaced(
        &mut self,
        seq: i64,
        new: &NewJob,
        locks: bool,
    ) -> Done<Option<Option<String>>> {
        if new.again == Again::Keep {
            return Ok(None);
        }
        let lock = if locks { "{wait}" } else { "" };
        let sql = self.sql(&format!(
            "SELECT items, digest FROM {{p}}queue WHERE seq = $1 AND state = 1 AND attempts = 0 \
             AND recipient = $2 {lock}"
        ));
        let found: Option<(Vec<u8>, Option<String>)> = sqlx::query_as(sql)
            .bind(seq)
            .bind(new.recipient.as_str())
            .fetch_optional(&mut *self.connection)
            .await?;
        let own = found.filter(|(packed, _)| unpack(Bytes::from(packed.clone())).len() == 1);
        Ok(own.map(|(_, digest)| digest))
    }

    fn due(&self, due: Due) -> i64 {
        match due {
            Due::After(wait) => self.now + ms(millis(wait)),
            Due::At(time) => ms(time.as_millis()).max(self.now),
        }
    }

    async fn add(&mut self, new: &NewJob, rules: &Rules) -> Done<EnqueueOutcome> {
        let due = self.due(new.due);
        if let Some(id) = &new.once
            && let Some(seq) = self.known(id).await?
        {
            return self.again(seq, due, new, rules).await;
        }
        let joined = match &new.digest {
            Some(wish) => self.join(new, wish, rules).await?,
            None => None,
        };
        let (outcome, seq) = match joined {
            Some(seq) => (EnqueueOutcome::Joined(job_id(seq)), seq),
            None => {
                let seq = self.insert(new, due, rules).await?;
                (EnqueueOutcome::New(job_id(seq)), seq)
            }
        };
        if let Some(id) = &new.once {
            let sql = self.sql(
                "INSERT INTO {p}queue_once (queue, id, seq, until_ms, look_ms) VALUES ($1, $2, $3, $4, $4) \
                 ON CONFLICT (queue, id) DO UPDATE SET seq = excluded.seq, until_ms = excluded.until_ms, \
                 look_ms = excluded.look_ms",
            );
            sqlx::query(sql)
                .bind(self.queue)
                .bind(&id[..])
                .bind(seq)
                .bind(self.now + ms(millis(rules.remember_for)))
                .execute(&mut *self.connection)
                .await?;
        }
        Ok(outcome)
    }

    async fn insert(&mut self, new: &NewJob, due: i64, rules: &Rules) -> Done<i64> {
        let collects = new.digest.as_ref().filter(|wish| wish.max > 1);
        let due = due + collects.map_or(0, |wish| ms(millis(wish.window)));
        let sql = self.sql(
            "INSERT INTO {p}queue (queue, recipient, rank, state, due, expires, attempts, items, digest) \
             VALUES ($1, $2, $3, 1, $4, $5, 0, $6, $7) RETURNING seq",
        );
        let seq = sqlx::query_scalar(sql)
            .bind(self.queue)
            .bind(new.recipient.as_str())
            .bind(i64::from(new.priority.rank()))
            .bind(due)
            .bind(due + ms(millis(rules.expire_after)))
            .bind(pack(std::slice::from_ref(&new.item)))
            .bind(collects.map(|wish| wish.key.as_str()));
        Ok(seq.fetch_one(&mut *self.connection).await?)
    }

    /// Adds the item to an open digest; one without room is closed and due.
    async fn join(&mut self, new: &NewJob, wish: &DigestWish, rules: &Rules) -> Done<Option<i64>> {
        let Some((seq, expires)) = self.open_digest(&new.recipient, &wish.key).await? else {
            return Ok(None);
        };
        // It may just be leased: then it is closed.
        let sql = "SELECT items, due FROM {p}queue WHERE seq = $1 AND state = 1 AND digest IS NOT NULL {wait}";
        let found: Option<(Vec<u8>, i64)> = sqlx::query_as(self.sql(sql))
            .bind(seq)
            .fetch_optional(&mut *self.connection)
            .await?;
        let Some((packed, due)) = found else {
            return Ok(None);
        };
        if self.now >= expires {
            self.bury(seq, Some("expired")).await?;
            return Ok(None);
        }
        let mut items = unpack(Bytes::from(packed));
        let fits = collecting(&items).bytes + new.item.len() + ITEM <= DIGEST_BYTES;
        if fits {
            items.push(new.item.clone());
        }
        let full = !fits || items.len() >= wish.max as usize;
        let due = if full { due.min(self.now) } else { due };
        let sql = self.sql(
            "UPDATE {p}queue SET items = $2, due = $3, expires = $4, \
             digest = CASE WHEN $5 = 1 THEN NULL ELSE digest END WHERE seq = $1",
        );
        sqlx::query(sql)
            .bind(seq)
            .bind(pack(&items))
            .bind(due)
            .bind(due + ms(millis(rules.expire_after)))
            .bind(i64::from(full))
            .execute(&mut *self.connection)
            .await?;
        Ok(fits.then_some(seq))
    }

    /// A job with a known id comes again.
    async fn again(
        &mut self,
        seq: i64,
        due: i64,
        new: &NewJob,
        rules: &Rules,
    ) -> Done<EnqueueOutcome> {
        if self.replaced(seq, new, true).await?.is_some() {
            let sql = self.sql(
                "UPDATE {p}queue SET rank = $2, items = $3, due = $4, expires = $5, digest = NULL \
                 WHERE seq = $1",
            );
            sqlx::query(sql)
                .bind(seq)
                .bind(i64::from(new.priority.rank()))
                .bind(pack(std::slice::from_ref(&new.item)))
                .bind(due)
                .bind(due + ms(millis(rules.expire_after)))
                .execute(&mut *self.connection)
                .await?;
            return Ok(EnqueueOutcome::Replaced(job_id(seq)));
        }
        Ok(EnqueueOutcome::Duplicate(job_id(seq)))
    }
}

fn collecting(items: &[Bytes]) -> Collecting {
    Collecting {
        items: items.len(),
        bytes: items.iter().map(|item| item.len() + ITEM).sum(),
    }
}
