//! Queues in SQL: a transaction per method; what others have locked is skipped. Who waits is told by looking once a second.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sqlx::AssertSqlSafe;

use super::values::unpack;
use super::{
    Claim, Depth, EnqueueOutcome, JobId, JobState, Leased, Listed, Listing, NewJob, Priority,
    QueueName, QueueStore, Rules, Settle, Settled, Token,
};
use crate::backend::sql::{
    Dialect, Engine, RequestTransaction, Schema, SqlStore, TransactionError,
};
use crate::core::{
    Key, NoticeCallback, RollbackCause, StoreError, StoreErrorKind, StoreFuture, Subscription,
    Timestamp,
};
use crate::data::Names;
use crate::data::ticker;

const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The statements' names of tables and locks.
pub(super) struct Text {
    prefix: String,
}

impl Text {
    /// Fills in the prefix, and how rows are locked where the engine locks rows.
    fn of(&self, text: &str, lock: &str) -> AssertSqlSafe<String> {
        let skip = if lock.is_empty() {
            ""
        } else {
            "FOR UPDATE SKIP LOCKED"
        };
        let text = text.replace("{p}", &self.prefix);
        AssertSqlSafe(text.replace("{skip}", skip).replace("{wait}", lock))
    }
}

/// The columns of a job that is shown.
const LISTED: &str = "seq, recipient, state, rank, attempts, due, items, error";

/// A ready job: number, recipient, rank, tries, due time, items.
type Found = (i64, String, i64, i64, i64, Vec<u8>);
/// A row of [`LISTED`].
type Row = (i64, String, i64, i64, i64, i64, Vec<u8>, Option<String>);

#[cfg(feature = "sqlite")]
mod on_sqlite;

#[cfg(feature = "postgres")]
mod on_postgres;

fn text(db: &SqlStore) -> Arc<Text> {
    let schema = |db: &SqlStore| {
        let (int, bytes, id) = match db.dialect() {
            #[cfg(feature = "sqlite")]
            Dialect::Sqlite => ("INTEGER", "BLOB", "INTEGER PRIMARY KEY AUTOINCREMENT"),
            #[cfg(feature = "postgres")]
            Dialect::Postgres => (
                "bigint",
                "bytea",
                "bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
            ),
        };
        let steps = [include_str!("sql/queue.sql"), include_str!("sql/look.sql")].map(|ddl| {
            let ddl = ddl.replace("{p}", db.table_prefix()).replace("{id}", id);
            ddl.replace("{int}", int).replace("{bytes}", bytes)
        });
        Some(Schema::new("queue", steps.to_vec()))
    };
    db.part(schema, |db| Text {
        prefix: db.table_prefix().to_owned(),
    })
}

/// Runs `$body` with `$steps` on whichever engine `$step` has.
macro_rules! on_engine {
    ($step:expr, $text:expr, $queue:expr, $injected:expr, |$steps:ident| $body:expr) => {{
        let step = $step;
        #[cfg(feature = "sqlite")]
        if let Some(connection) = step.connection.sqlite() {
            let mut own =
                on_sqlite::steps::Steps::begin(connection, &$text, &$queue, $injected).await?;
            let $steps = &mut own;
            return $body;
        }
        #[cfg(feature = "postgres")]
        if let Some(connection) = step.connection.postgres() {
            let mut own =
                on_postgres::steps::Steps::begin(connection, &$text, &$queue, $injected).await?;
            let $steps = &mut own;
            return $body;
        }
        Err(TransactionError::crowded())
    }};
}

/// Runs `$body` as a transaction of its own; dropped, it rolls back.
macro_rules! alone {
    ($db:expr, $queue:expr, |$steps:ident| $body:expr) => {{
        let (db, queue, text) = ($db.clone(), Arc::clone($queue), text($db));
        StoreFuture::boxed(async move {
            let (request, finisher) = RequestTransaction::alone(&db);
            let injected = db.injected_now();
            let step = request.operate(move |step| {
                Box::pin(async move { on_engine!(step, text, queue, injected, |$steps| $body) })
            });
            match step.await {
                Ok(answer) => {
                    finisher.commit().await?;
                    Ok(answer)
                }
                Err(error) => {
                    finisher.rollback(RollbackCause::Poisoned).await;
                    Err(StoreError::from(error))
                }
            }
        })
    }};
}

fn room<T: Send + 'static>(added: StoreFuture<Option<T>>) -> StoreFuture<T> {
    added.then(|added| added?.ok_or_else(|| StoreErrorKind::Full.into()))
}

impl QueueStore for SqlStore {
    fn enqueue(
        &self,
        queue: &QueueName,
        jobs: Vec<NewJob>,
        rules: &Rules,
    ) -> StoreFuture<Vec<EnqueueOutcome>> {
        let rules = *rules;
        room(alone!(self, queue, |steps| {
            let added = steps.enqueue(&jobs, &rules).await?;
            if added.is_some() {
                steps.forget_beside(&jobs).await?;
            }
            Ok(added)
        }))
    }

    fn lease(&self, queue: &QueueName, claim: Claim, rules: &Rules) -> StoreFuture<Leased> {
        let rules = *rules;
        alone!(self, queue, |steps| steps.lease(&claim, &rules).await)
    }

    fn ack(&self, queue: &QueueName, token: Token, ids: Vec<JobId>) -> StoreFuture<Vec<Settled>> {
        alone!(self, queue, |steps| {
            let mut settled = Vec::with_capacity(ids.len());
            for id in ids {
                settled.push(steps.ack(id, token).await?);
            }
            Ok(settled)
        })
    }

    fn nack(
        &self,
        queue: &QueueName,
        token: Token,
        jobs: Vec<(JobId, Settle)>,
        rules: &Rules,
    ) -> StoreFuture<Vec<Settled>> {
        let rules = *rules;
        alone!(self, queue, |steps| {
            let mut settled = Vec::with_capacity(jobs.len());
            for (id, how) in jobs {
                settled.push(steps.nack(id, token, how, &rules).await?);
            }
            Ok(settled)
        })
    }

    fn extend(
        &self,
        queue: &QueueName,
        token: Token,
        ids: Vec<JobId>,
        lease: Duration,
    ) -> StoreFuture<Vec<Settled>> {
        alone!(self, queue, |steps| {
            let mut settled = Vec::with_capacity(ids.len());
            for id in ids {
                settled.push(steps.extend(id, token, lease).await?);
            }
            Ok(settled)
        })
    }

    fn cancel(
        &self,
        queue: &QueueName,
        recipient: &Key,
        ids: Vec<JobId>,
    ) -> StoreFuture<Vec<JobId>> {
        let recipient = recipient.clone();
        alone!(self, queue, |steps| {
            // In one order at everybody: two calls would wait for each other's rows. Told in the order asked for.
            let each: BTreeSet<JobId> = ids.iter().copied().collect();
            let mut gone = BTreeSet::new();
            for id in each {
                if steps.cancel(id, &recipient).await? {
                    gone.insert(id);
                }
            }
            Ok(ids.into_iter().filter(|id| gone.remove(id)).collect())
        })
    }

    fn list(&self, queue: &QueueName, listing: Listing, rules: &Rules) -> StoreFuture<Vec<Listed>> {
        let rules = *rules;
        alone!(self, queue, |steps| steps.list(&listing, &rules).await)
    }

    fn count(
        &self,
        queue: &QueueName,
        recipient: Option<&Key>,
        rules: &Rules,
    ) -> StoreFuture<Depth> {
        let (rules, recipient) = (*rules, recipient.cloned());
        alone!(self, queue, |steps| {
            let _swept = steps.sweep(&rules).await?;
            steps.depth(recipient.as_ref()).await
        })
    }

    fn revive(&self, queue: &QueueName, ids: Vec<JobId>, rules: &Rules) -> StoreFuture<Vec<JobId>> {
        let rules = *rules;
        room(alone!(self, queue, |steps| steps
            .revive(&ids, &rules)
            .await))
    }

    /// Nobody tells: whoever listens is rung once a second.
    fn subscribe(&self, _: &QueueName, callback: NoticeCallback) -> StoreFuture<Subscription> {
        StoreFuture::ok(ticker::every(LOOK_EVERY..=LOOK_EVERY, callback))
    }

    fn contradicts(&self, name: &str, what: &str) -> bool {
        self.part(|_| None, |_| Names::default())
            .contradicts(name, what)
    }
}

/// The job of an id with the end of its being remembered, and whether it lives.
fn known_job(found: Option<(i64, i64, i32)>, now: i64) -> Option<i64> {
    let (seq, until, lives) = found?;
    (lives > 0 || now < until).then_some(seq)
}

fn shown(row: Row, now: i64) -> Listed {
    let (seq, recipient, state, rank, attempts, due, items, error) = row;
    Listed {
        id: JobId(seq.unsigned_abs()),
        recipient: Key::from_escaped(recipient),
        state: match state {
            2 => JobState::Leased,
            3 => JobState::Dead,
            _ if due <= now => JobState::Ready,
            _ => JobState::Delayed,
        },
        priority: Priority::of_rank(u8::try_from(rank).unwrap_or(2)),
        attempts: u32::try_from(attempts).unwrap_or(u32::MAX),
        due: Timestamp::from_millis(due.unsigned_abs()),
        items: unpack(Bytes::from(items)),
        last_error: error,
    }
}

/// Names the tables to the handle.
pub(in crate::data::queue) fn register(db: &SqlStore) {
    drop(text(db));
}

type Added<'c> = std::pin::Pin<
    Box<dyn Future<Output = Result<Option<Vec<EnqueueOutcome>>, TransactionError>> + Send + 'c>,
>;

/// An engine whose transactions can take jobs.
pub trait QueueEngine: Engine {
    #[doc(hidden)]
    fn enqueue<'c>(
        db: &'c SqlStore,
        connection: &'c mut Self::Connection,
        queue: &'c str,
        jobs: &'c [NewJob],
        rules: &'c Rules,
    ) -> Added<'c>;
}

macro_rules! queue_engine {
    ($engine:ty, $module:ident) => {
        impl QueueEngine for $engine {
            fn enqueue<'c>(
                db: &'c SqlStore,
                connection: &'c mut Self::Connection,
                queue: &'c str,
                jobs: &'c [NewJob],
                rules: &'c Rules,
            ) -> Added<'c> {
                let (text, injected) = (text(db), db.injected_now());
                Box::pin(async move {
                    let mut steps =
                        $module::steps::Steps::begin(connection, &text, queue, injected).await?;
                    steps.enqueue(jobs, rules).await
                })
            }
        }
    };
}
#[cfg(feature = "sqlite")]
queue_engine!(crate::backend::sql::Sqlite, on_sqlite);
#[cfg(feature = "postgres")]
queue_engine!(crate::backend::sql::Postgres, on_postgres);
