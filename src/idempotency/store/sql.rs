//! Records in SQL: one row, one statement per step; the same statements serve leases and a request's transaction.

#[cfg(feature = "postgres")]
mod on_postgres;
#[cfg(feature = "sqlite")]
mod on_sqlite;
mod statements;
mod within;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;

use self::statements::Statements;
pub(in crate::idempotency) use self::within::{Entry, register};
use super::{Begin, Claim, Cursor, Health, IdempotencyStore, Owned, Purged, Resolution, Resolved};
use crate::backend::sql::{Dialect, SqlStore};
#[cfg(feature = "sqlite")]
use crate::backend::sql::{Finisher, RequestTransaction, TransactionError};
#[cfg(feature = "sqlite")]
use crate::core::RollbackCause;
#[cfg(feature = "postgres")]
use crate::core::StoreErrorKind;
use crate::core::{StoreError, StoreFuture, Timestamp};
use crate::idempotency::policy::LeaseEnd;
use crate::idempotency::record::{
    Answer, AnswerContent, Fence, Fingerprint, Head, Nonce, Record, RecordId, ScopeTag, State,
};

/// One claim in this many looks for rows that are gone.
const SWEEP_EVERY: u32 = 256;
/// Rows stay this long after their end, so that fences rise also where a clock steps back a little.
const SWEEP_AFTER: Duration = Duration::from_secs(60);

/// version, state, at_end, rule, nonce, fence, fingerprint, created, lease_until, expires_at, answer, time.
type Row = (
    i16,
    i16,
    i16,
    i16,
    Vec<u8>,
    i64,
    Vec<u8>,
    i64,
    i64,
    i64,
    Option<Vec<u8>>,
    i64,
);

/// A row as it was found.
struct Seen {
    record: Record,
}

impl Seen {
    fn of(row: Row) -> Self {
        let now = Timestamp::from_millis(row.11.unsigned_abs() / 1_000);
        let record = match head_of(&row, now) {
            Some(head) => Record::of(head, row.10.map(Bytes::from).unwrap_or_default()),
            // Another version, or damaged.
            None => Record::unreadable(now),
        };
        Self { record }
    }

    fn is_gone(&self) -> bool {
        self.record.head.state != State::Unreadable
            && self.record.head.read_at >= self.record.head.expires_at
    }

    /// As [`begun`](Self::begun) decides: whether the claim may be written over this.
    #[cfg(feature = "sqlite")]
    fn is_free_for(&self, claim: &Claim) -> bool {
        let head = &self.record.head;
        let left_behind = head.state == State::Claimed
            && !head.is_leased()
            && head.at_lease_end == LeaseEnd::Reexecute
            && head.nonce != claim.nonce
            && !head.fingerprint.contradicts(&claim.fingerprint);
        self.is_gone() || left_behind
    }

    /// What a claim is told that may not be written over this.
    fn begun(self, claim: &Claim) -> Begin {
        let head = self.record.head;
        if head.state != State::Unreadable && head.fingerprint.contradicts(&claim.fingerprint) {
            return Begin::Mismatch(head);
        }
        if head.state != State::Claimed {
            return Begin::Done(self.record);
        }
        if head.nonce == claim.nonce {
            return Begin::Run(head.fence);
        }
        if head.is_leased() {
            return Begin::Running(head);
        }
        Begin::Unknown(head)
    }
}

fn head_of(row: &Row, read_at: Timestamp) -> Option<Head> {
    let (version, state, at_end, rule, nonce, fence, fingerprint, ..) = row;
    let state = match (version, state) {
        (1, 1) => State::Claimed,
        (1, 2) => State::Answered,
        (1, 3) => State::Tombstone,
        _ => return None,
    };
    let time = |ms: i64| {
        let ms = ms.unsigned_abs();
        (ms <= Timestamp::MAX.as_millis()).then(|| Timestamp::from_millis(ms))
    };
    Some(Head {
        state,
        at_lease_end: LeaseEnd::from_byte(u8::try_from(*at_end).ok()?)?,
        nonce: Nonce(nonce.as_slice().try_into().ok()?),
        fence: Fence(fence.unsigned_abs()),
        fingerprint: Fingerprint {
            rule: u8::try_from(*rule).ok()?,
            hash: fingerprint.as_slice().try_into().ok()?,
        },
        created: time(row.7)?,
        lease_until: time(row.8)?,
        expires_at: time(row.9)?,
        read_at,
    })
}

/// What became of a claim.
enum Claimed {
    /// Written, under this fence, in the transaction that Postgres calls so.
    Taken(Fence, Option<String>),
    Seen(Seen),
}

impl Claimed {
    fn begun(self, claim: &Claim) -> Begin {
        match self {
            Self::Taken(fence, _) => Begin::Run(fence),
            Self::Seen(seen) => seen.begun(claim),
        }
    }
}

/// The part of a handle.
struct Part {
    sql: Statements,
    claims: AtomicU32,
}

fn part(db: &SqlStore) -> Arc<Part> {
    db.part(
        |db| Some(statements::schema(db.table_prefix(), db.dialect())),
        |db| Part {
            sql: Statements::new(db.table_prefix(), db.dialect()),
            claims: AtomicU32::new(0),
        },
    )
}

/// The time that a statement is given: an injected clock's, else Postgres reads its own.
fn time_of(db: &SqlStore) -> Option<i64> {
    let own = match db.dialect() {
        #[cfg(feature = "sqlite")]
        Dialect::Sqlite => true,
        #[cfg(feature = "postgres")]
        Dialect::Postgres => db.injected_now().is_some(),
    };
    own.then(|| number(db.clock().now_micros()))
}

fn number(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Later than the year 9999 is as good as never, and overflows nothing.
fn millis(duration: Duration) -> i64 {
    let most = Timestamp::MAX.as_millis() / 2;
    number(u64::try_from(duration.as_millis()).map_or(most, |ms| ms.min(most)))
}

const fn state_of(content: &AnswerContent) -> i16 {
    match content.state() {
        State::Answered => 2,
        _ => 3,
    }
}

/// Runs `$body` outside any request: on Postgres a statement of its own, on SQLite a turn as the writer.
/// `$body` may run twice, and changes nothing the second time.
macro_rules! alone {
    ($db:expr, |$connection:ident, $part:ident, $now:ident| $body:expr) => {{
        let (db, $part) = ($db.clone(), part($db));
        StoreFuture::boxed(async move {
            match db.dialect() {
                #[cfg(feature = "sqlite")]
                Dialect::Sqlite => {
                    #[allow(unused_imports)]
                    use on_sqlite::{claim, steps};
                    let $now = time_of(&db);
                    let (request, finisher) = RequestTransaction::alone(&db);
                    let step = request.operate(move |step| {
                        Box::pin(async move {
                            let $connection = step.connection.sqlite();
                            let $connection = $connection.ok_or_else(TransactionError::crowded)?;
                            $body
                        })
                    });
                    ended(finisher, step.await).await
                }
                #[cfg(feature = "postgres")]
                Dialect::Postgres => {
                    #[allow(unused_imports)]
                    use on_postgres::{claim, steps};
                    let $now = time_of(&db);
                    let (mut tries, mut old) = (0, db.idle_connections());
                    loop {
                        let mut reading = db.read::<sqlx::Postgres>().await?;
                        let $connection = &mut *reading;
                        let answer = async { $body };
                        let longest = db.lock_timeout() + db.statement_timeout();
                        let Ok(answer) = tokio::time::timeout(longest, answer).await else {
                            reading.give_up();
                            break Err(StoreErrorKind::TimedOut.into());
                        };
                        let answer = match answer {
                            Ok(answer) => reading.done(longest).await.map(|()| answer),
                            error => error,
                        };
                        match answer {
                            // It had died in the pool: another, until none of the old ones is left.
                            Err(error) if old > 0 && error.is_lost() => old -= 1,
                            answer => match answer.map_err(StoreError::from) {
                                // A connection that died meanwhile, or a stricter isolation level: once more.
                                Err(error) if tries < TRIES && may_go_better(&error) => tries += 1,
                                answer => break answer,
                            },
                        }
                    }
                }
            }
        })
    }};
}

#[cfg(feature = "postgres")]
const TRIES: u32 = 2;

#[cfg(feature = "postgres")]
fn may_go_better(error: &StoreError) -> bool {
    matches!(
        error.kind(),
        StoreErrorKind::Unavailable | StoreErrorKind::Contention
    )
}

#[cfg(feature = "sqlite")]
async fn ended<T>(finisher: Finisher, done: Result<T, TransactionError>) -> Result<T, StoreError> {
    match done {
        Ok(answer) => {
            finisher.commit().await?;
            Ok(answer)
        }
        Err(error) => {
            finisher.rollback(RollbackCause::Poisoned).await;
            Err(error.into())
        }
    }
}

impl IdempotencyStore for SqlStore {
    fn begin(&self, key: &RecordId, wish: &Claim) -> StoreFuture<Begin> {
        let (id, wish) = (*key, *wish);
        sweep_now_and_then(self);
        let taking = alone!(self, |connection, part, now| {
            let claimed = claim(connection, &part.sql, now, &id, &wish).await;
            claimed.map(|claimed| claimed.begun(&wish))
        });
        match self.dialect() {
            // What is there already needs no turn as the writer.
            #[cfg(feature = "sqlite")]
            Dialect::Sqlite => {
                let found = find(self, &id);
                StoreFuture::boxed(async move {
                    match found.await?.filter(|seen| !seen.is_free_for(&wish)) {
                        Some(seen) => Ok(seen.begun(&wish)),
                        None => taking.await,
                    }
                })
            }
            #[cfg(feature = "postgres")]
            Dialect::Postgres => taking,
        }
    }

    fn renew(
        &self,
        key: &RecordId,
        nonce: Nonce,
        lease: Duration,
        end: LeaseEnd,
    ) -> StoreFuture<Owned> {
        let id = *key;
        alone!(self, |connection, part, now| {
            steps::renew(connection, &part.sql, now, &id, nonce, (lease, end)).await
        })
    }

    fn complete(
        &self,
        key: &RecordId,
        nonce: Nonce,
        answer: Answer,
        ttl: Duration,
    ) -> StoreFuture<Owned> {
        let id = *key;
        alone!(self, |connection, part, now| {
            steps::complete(connection, &part.sql, now, &id, nonce, (&answer, ttl)).await
        })
    }

    fn release(&self, key: &RecordId, nonce: Nonce) -> StoreFuture<Owned> {
        let id = *key;
        alone!(self, |connection, part, now| {
            steps::release(connection, &part.sql, now, &id, nonce).await
        })
    }

    fn peek(&self, key: &RecordId) -> StoreFuture<Option<Record>> {
        find(self, key).map(|seen| seen.filter(|seen| !seen.is_gone()).map(|seen| seen.record))
    }

    fn health(&self) -> StoreFuture<Health> {
        find(self, &RecordId::from_bytes([0; 32])).map(|_| Health::Good)
    }

    fn resolve(&self, key: &RecordId, fence: Fence, to: Resolution) -> StoreFuture<Resolved> {
        let id = *key;
        alone!(self, |connection, part, now| {
            steps::resolve(connection, &part.sql, now, &id, fence, &to).await
        })
    }

    fn purge(&self, scope: ScopeTag, page: Option<Cursor>) -> StoreFuture<Purged> {
        let (mut first, mut last) = ([0; 32], [u8::MAX; 32]);
        first[..16].copy_from_slice(&scope.0);
        last[..16].copy_from_slice(&scope.0);
        let ids = (page.map_or(first, |Cursor(id)| id.max(first)), last);
        alone!(self, |connection, part, now| {
            steps::purge(connection, &part.sql, now, ids).await
        })
    }
}

/// Looks at a row, gone or not, and locks nothing.
fn find(db: &SqlStore, key: &RecordId) -> StoreFuture<Option<Seen>> {
    let id = *key;
    match db.dialect() {
        #[cfg(feature = "sqlite")]
        Dialect::Sqlite => {
            let (db, part) = (db.clone(), part(db));
            StoreFuture::boxed(async move {
                let mut reading = db.read::<sqlx::Sqlite>().await?;
                let connection = &mut *reading;
                let found = on_sqlite::steps::find(connection, &part.sql, time_of(&db), &id);
                Ok(found.await?)
            })
        }
        #[cfg(feature = "postgres")]
        Dialect::Postgres => alone!(db, |connection, part, now| {
            steps::find(connection, &part.sql, now, &id).await
        }),
    }
}

/// Removes some rows that are gone, in the background.
fn sweep_now_and_then(db: &SqlStore) {
    let claims = part(db).claims.fetch_add(1, Ordering::Relaxed);
    if claims % SWEEP_EVERY != SWEEP_EVERY - 1 {
        return;
    }
    let before = db.now().as_millis();
    let before = number(before.saturating_sub(SWEEP_AFTER.as_millis() as u64));
    let sweeping: StoreFuture<()> = alone!(db, |connection, part, now| {
        let _ = now;
        steps::sweep(connection, &part.sql, before).await
    });
    db.detach(async move { drop(sweeping.await) });
}
