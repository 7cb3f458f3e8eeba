//! One step in a transaction: locks, rows, what the memory store makes of them, and writing that back.

use std::sync::atomic::Ordering;

#[cfg(feature = "postgres")]
use super::on_postgres;
#[cfg(feature = "sqlite")]
use super::on_sqlite;
use super::rows::{Raw, number};
use super::scratch::{Changes, Facts, Scratch};
use super::statements::Text;
use super::{CutOffLock, NewerRows, Own, Wanted, lock_name, part};
use crate::backend::memory::MemoryStore;
use crate::backend::sql::{Dialect, RequestTransaction, SqlStore, Step, TransactionError};
#[cfg(feature = "postgres")]
use crate::core::StoreErrorKind;
use crate::core::{RollbackCause, StoreError, StoreFuture};
use crate::session::store::{REMEMBERED_MILLIS, UserId};

/// How often a step begins anew that collided with another.
const TRIES: u32 = 5;
/// One new session in this many looks for rows that are over.
const SWEEP_EVERY: u32 = 64;
/// Rows stay this long after their end, so that a clock that steps back a little finds them.
const SWEEP_AFTER_MILLIS: i64 = 60_000;

/// Locks by name, for what no row stands for. (SQLite has one writer, and needs none.)
#[derive(Clone, Copy, Debug, Default)]
#[cfg_attr(not(feature = "postgres"), allow(dead_code))]
pub(super) struct Locks {
    pub(super) cut_off: Option<(CutOffLock, i64)>,
    pub(super) user: Option<i64>,
}

impl Locks {
    fn of(wanted: &Wanted, db: &SqlStore, own: &Own, user: Option<&UserId>) -> Self {
        Self {
            cut_off: wanted.cut_off.map(|kind| (kind, own.cut_off)),
            user: user.map(|user| lock_name(db, user.as_str().as_bytes())),
        }
    }
}

/// The time that a statement is given: an injected clock's, else Postgres reads its own. In milliseconds.
fn time_of(db: &SqlStore) -> Option<i64> {
    let own = match db.dialect() {
        #[cfg(feature = "sqlite")]
        Dialect::Sqlite => true,
        #[cfg(feature = "postgres")]
        Dialect::Postgres => db.injected_now().is_some(),
    };
    own.then(|| number(db.now().as_millis()))
}

/// Reads rows and locks none.
pub(super) async fn find(db: &SqlStore, text: &Text, key: &[u8]) -> Result<Vec<Raw>, StoreError> {
    let now = time_of(db);
    match db.dialect() {
        #[cfg(feature = "sqlite")]
        Dialect::Sqlite => {
            let mut reading = db.read::<sqlx::Sqlite>().await?;
            let found = on_sqlite::steps::find(&mut reading, text, key, now);
            Ok(found.await?)
        }
        #[cfg(feature = "postgres")]
        Dialect::Postgres => {
            let longest = db.statement_timeout();
            let read = || async {
                let mut reading = db.read::<sqlx::Postgres>().await?;
                let found = on_postgres::steps::find(&mut reading, text, key, now);
                match tokio::time::timeout(longest, found).await {
                    Ok(found) => Ok(Some(found?)),
                    Err(_elapsed) => {
                        reading.give_up();
                        Ok(None)
                    }
                }
            };
            let found = db.read_again(read).await?;
            found.ok_or_else(|| StoreErrorKind::TimedOut.into())
        }
    }
}

/// Takes one step in a transaction of its own; it begins anew when it collided with another.
pub(super) async fn step<R: Send>(
    db: &SqlStore,
    wanted: &Wanted,
    act: impl Fn(&MemoryStore) -> StoreFuture<R> + Send + Sync,
) -> Result<R, StoreError> {
    // Named before anything is begun, so that the tables are there.
    drop(part(db));
    let mut tries = 1;
    loop {
        match attempt(db, wanted, &act).await {
            Err(error) if error.is_retryable() && tries < TRIES => tries += 1,
            done => return done?,
        }
    }
}

/// Runs `$body` on whichever engine the step has.
macro_rules! on_engine {
    ($step:expr, |$connection:ident| $body:expr) => {{
        let step: Step<'_> = $step;
        #[cfg(feature = "sqlite")]
        if let Some($connection) = step.connection.sqlite() {
            #[allow(unused_imports)]
            use on_sqlite::{lock, steps};
            return $body;
        }
        #[cfg(feature = "postgres")]
        if let Some($connection) = step.connection.postgres() {
            #[allow(unused_imports)]
            use on_postgres::{lock, steps};
            return $body;
        }
        Err(TransactionError::crowded())
    }};
}

async fn attempt<R: Send>(
    db: &SqlStore,
    wanted: &Wanted,
    act: &(impl Fn(&MemoryStore) -> StoreFuture<R> + Send + Sync),
) -> Result<Result<R, StoreError>, TransactionError> {
    let (request, finisher) = RequestTransaction::alone(db);
    match in_transaction(&request, db, wanted, act).await {
        Ok(Ok(answer)) => finisher.commit().await.map(|()| Ok(answer)),
        Ok(Err(error)) => {
            finisher.rollback(RollbackCause::Poisoned).await;
            Ok(Err(error))
        }
        Err(error) => {
            finisher.rollback(RollbackCause::Poisoned).await;
            Err(error)
        }
    }
}

async fn in_transaction<R: Send>(
    request: &RequestTransaction,
    db: &SqlStore,
    wanted: &Wanted,
    act: &(impl Fn(&MemoryStore) -> StoreFuture<R> + Send + Sync),
) -> Result<Result<R, StoreError>, TransactionError> {
    let scratch = locked(request, db.clone(), wanted.clone()).await?;
    if let Err(error) = wanted.check(&scratch) {
        return Ok(Err(error));
    }
    let answer = match act(&scratch.store).await {
        Ok(answer) => answer,
        Err(error) => return Ok(Err(error)),
    };
    write(request, db, wanted, &scratch).await?;
    Ok(Ok(answer))
}

/// Takes the locks, then reads the rows, then what they are held against.
async fn locked(
    request: &RequestTransaction,
    db: SqlStore,
    wanted: Wanted,
) -> Result<Scratch, TransactionError> {
    let step = request.operate(move |step| {
        Box::pin(async move {
            let own = part(&db);
            on_engine!(step, |connection| {
                let sql = &own.sql;
                let [whole, _] = wanted.ids();
                let mut user = wanted.user.clone();
                if wanted.family {
                    let owner = steps::owner(connection, sql, whole).await?;
                    user = owner.as_deref().and_then(user_of);
                }
                lock(connection, &Locks::of(&wanted, &db, &own, user.as_ref())).await?;
                let key = user
                    .as_ref()
                    .map_or(&[][..], |user| user.as_str().as_bytes());
                let now = time_of(&db);
                let raws = steps::lock_rows(connection, sql, wanted.ids(), key, now).await?;
                let asking = raws.iter().find(|raw| raw.0 == whole);
                let owner = asking.and_then(|raw| raw.1.as_deref());
                if wanted.family && owner.and_then(user_of) != user {
                    // It became another's before it was locked.
                    return Err(TransactionError::crowded());
                }
                let facts = steps::facts(connection, sql, key, time_of(&db)).await?;
                Ok(Scratch::new(&raws, wanted.whole, user, Facts::of(facts)))
            })
        })
    });
    step.await
}

fn user_of(bytes: &[u8]) -> Option<UserId> {
    std::str::from_utf8(bytes).ok().and_then(UserId::try_new)
}

async fn write(
    request: &RequestTransaction,
    db: &SqlStore,
    wanted: &Wanted,
    scratch: &Scratch,
) -> Result<(), TransactionError> {
    let mut changes = scratch.changes(wanted.other);
    if wanted.newer == NewerRows::End {
        let graves = scratch.newer.iter().map(|id| (scratch.grave(*id), true));
        changes.updated.extend(graves);
    }
    let damaged = scratch.damaged.clone();
    if changes.is_empty() && damaged.is_empty() {
        return Ok(());
    }
    let user = scratch.user().cloned();
    let own = part(db);
    let step = request.operate(move |step| {
        Box::pin(async move {
            on_engine!(step, |connection| {
                let sql = &own.sql;
                for id in damaged {
                    steps::remove(connection, sql, id.as_bytes()).await?;
                }
                let Changes {
                    inserted,
                    updated,
                    mark,
                    cut_off,
                } = changes;
                for row in inserted {
                    steps::insert(connection, sql, row).await?;
                }
                for (row, with_data) in updated {
                    steps::update(connection, sql, row, with_data).await?;
                }
                if let (Some(mark), Some(user)) = (mark, user) {
                    let at = number(mark.as_millis());
                    let until = at.saturating_add(number(REMEMBERED_MILLIS + 1));
                    steps::mark(connection, sql, user.as_str().as_bytes(), at, until).await?;
                }
                if let Some(cut_off) = cut_off {
                    let at = number(cut_off.as_millis());
                    steps::mark(connection, sql, &[], at, i64::MAX).await?;
                }
                Ok(())
            })
        })
    });
    step.await
}

/// Removes some rows that are over, in the background.
pub(super) fn sweep_now_and_then(db: &SqlStore) {
    let own = part(db);
    let set_up = own.set_up.fetch_add(1, Ordering::Relaxed);
    if set_up % SWEEP_EVERY != SWEEP_EVERY - 1 {
        return;
    }
    let (handle, now) = (db.clone(), time_of(db));
    db.detach(async move {
        let (request, finisher) = RequestTransaction::alone(&handle);
        let swept = request.operate(move |step| {
            Box::pin(async move {
                on_engine!(step, |connection| {
                    steps::sweep(connection, &own.sql, SWEEP_AFTER_MILLIS, now).await
                })
            })
        });
        match swept.await {
            // What failed is tried again by a later one.
            Ok(()) => drop(finisher.commit().await),
            Err(_) => finisher.rollback(RollbackCause::Poisoned).await,
        }
    });
}
