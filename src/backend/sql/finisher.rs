//! The one who ends a request's transaction.
//!
//! Every ending runs in a task of its own that owns the connection: dropping whoever waits for it
//! changes nothing. Work for after the end runs there too, when the waiter has its answer.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::error::{TransactionError, TransactionErrorKind};
use super::open::Open;
use super::shared::Shared;
use crate::core::telemetry::{count, error};
use crate::core::{AfterWork, End, RollbackCause, Vote, run_all};

/// How long a refusal waits for its ROLLBACK; then it leaves, and the rollback goes on.
const ROLLBACK_AWAITED: Duration = Duration::from_secs(1);
/// How long the task asks on after a lost COMMIT, so that after-work runs once it knows.
const RESOLVE_LONGEST: Duration = Duration::from_secs(60);

/// Ends a transaction. Not `Clone`: only whoever joined first has it. Dropped, it rolls back in a task.
pub struct Finisher {
    shared: Arc<Shared>,
    /// Work registered before the mark survives a rewind; `None` without a mark.
    marked: Option<usize>,
    ended: bool,
}

impl Finisher {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            marked: None,
            ended: false,
        }
    }

    /// Begins now, with another wait for locks; for an owner that writes before anybody else.
    ///
    /// # Errors
    /// As [`RequestTransaction::lease`](super::RequestTransaction::lease).
    pub async fn begin(&self, lock_timeout: Duration) -> Result<(), TransactionError> {
        self.shared.enter(lock_timeout).await.map(drop)
    }

    /// Sets the mark that [`rewind`](Self::rewind) goes back to, and the usual wait for locks; one message.
    ///
    /// # Errors
    /// As [`RequestTransaction::lease`](super::RequestTransaction::lease); the transaction is doomed then.
    pub async fn mark(&mut self) -> Result<(), TransactionError> {
        let lock_timeout = self.shared.db.inner.settings.lock_timeout;
        let mut slot = self.shared.enter(lock_timeout).await?;
        let Some(open) = slot.as_mut() else {
            return Err(TransactionError::new(TransactionErrorKind::Ended));
        };
        open.check().await?;
        let sql = match self.shared.db.dialect() {
            #[cfg(feature = "postgres")]
            super::Dialect::Postgres => format!(
                "SAVEPOINT keep_mark; SET LOCAL lock_timeout = {}",
                super::postgres::millis(lock_timeout)
            ),
            #[cfg(feature = "sqlite")]
            super::Dialect::Sqlite => "SAVEPOINT keep_mark".to_owned(),
        };
        if let Err(error) = open.connection()?.run(sql).await {
            self.shared.doom(RollbackCause::Poisoned);
            return Err(error.into());
        }
        self.marked = Some(self.shared.said.lock().after.len());
        Ok(())
    }

    /// Goes back to the mark: undoes what was written since, heals a failed statement, forgets votes and
    /// work for after the commit. Work for after a rollback stays, and runs with `cause` now.
    ///
    /// # Errors
    /// When there is no mark, or the transaction is lost: then all can only be rolled back.
    pub async fn rewind(&mut self, cause: RollbackCause) -> Result<(), TransactionError> {
        let Some(kept) = self.marked else {
            return Err(TransactionError::new(TransactionErrorKind::Ended));
        };
        let mut slot = self.shared.slot.lock().await;
        let Some(open) = slot.as_mut() else {
            return Err(TransactionError::doomed(RollbackCause::Timeout));
        };
        if let Err(error) = open.rewind().await {
            self.shared.doom(RollbackCause::Poisoned);
            return Err(error);
        }
        drop(slot);
        let undone = {
            let mut said = self.shared.said.lock();
            said.doom = None;
            said.commit = false;
            said.rollback = None;
            said.after.split_off(kept)
        };
        let work: Vec<_> = undone
            .into_iter()
            .filter(|work| !work.waits_for_commit())
            .collect();
        if !work.is_empty() {
            let after = run_all(work, End::RolledBack(cause));
            let tasks = &self.shared.db.inner.tasks;
            tasks.spawn(&Handle::current(), after);
        }
        Ok(())
    }

    /// Returns what the members have voted: one `Rollback` decides; `None` if nobody has.
    #[must_use]
    pub fn verdict(&self) -> Option<Vote> {
        self.shared.verdict()
    }

    /// Says whether anything was begun: an untouched transaction ends without any I/O.
    #[must_use]
    pub fn is_begun(&self) -> bool {
        self.shared
            .slot
            .try_lock()
            .map_or(true, |slot| slot.is_some())
    }

    /// Says whether nothing was begun and no work waits for the end.
    pub(crate) fn is_untouched(&self) -> bool {
        let begun = self.is_begun();
        let said = self.shared.said.lock();
        !begun && said.after.is_empty() && said.doom.is_none()
    }

    /// Ends a transaction that nobody has touched, without a task.
    pub(crate) fn close(mut self) {
        self.ended = true;
        self.shared.close();
    }

    /// Commits. `Ok` means that it is durable.
    ///
    /// # Errors
    /// [`TransactionErrorKind::Doomed`] when it was rolled back instead (a failed statement, a leaked guard,
    /// a vote, the timeout), [`TransactionErrorKind::Unknown`] when the reply was lost and stays lost.
    ///
    /// Started at the call: dropping the answer changes nothing.
    pub fn commit(mut self) -> impl Future<Output = Result<(), TransactionError>> + Send + use<> {
        self.ended = true;
        start_commit(&self.shared, Part::Last)
    }

    /// Commits what was written so far; the next statement begins a new transaction.
    ///
    /// # Errors
    /// As [`commit`](Self::commit).
    pub fn commit_so_far(
        &mut self,
    ) -> impl Future<Output = Result<(), TransactionError>> + Send + use<> {
        self.marked = None;
        start_commit(&self.shared, Part::SoFar)
    }

    /// Rolls back: started at the call, and awaited for up to one second, so that locks are free.
    pub fn rollback(mut self, cause: RollbackCause) -> impl Future<Output = ()> + Send + 'static {
        self.ended = true;
        let ended = start_rollback(&self.shared, cause);
        async move {
            let _ = tokio::time::timeout(ROLLBACK_AWAITED, ended).await;
        }
    }
}

impl Drop for Finisher {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        let cause = match self.shared.verdict() {
            Some(Vote::Rollback(cause)) => cause,
            _ if std::thread::panicking() => RollbackCause::Panic,
            _ => RollbackCause::Cancelled,
        };
        drop(start_rollback(&self.shared, cause));
    }
}

impl fmt::Debug for Finisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Finisher")
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}

/// Whether anything may follow.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    SoFar,
    Last,
}

fn start_commit(
    shared: &Arc<Shared>,
    part: Part,
) -> impl Future<Output = Result<(), TransactionError>> + Send + use<> {
    let (reply, answer) = oneshot::channel();
    let tasks = shared.db.inner.tasks.clone();
    let shared = Arc::clone(shared);
    let task = tasks.spawn(&Handle::current(), async move {
        let ended = commit(&shared, part).await;
        finish(&shared, ended, reply).await;
    });
    async move {
        let answer = answer.await;
        drop(task);
        answer.map_err(|_| TransactionError::new(TransactionErrorKind::Unknown))?
    }
}

/// What a commit came to.
enum Ended {
    Committed,
    RolledBack(RollbackCause, TransactionError),
    /// The reply was lost; on Postgres the transaction's id may tell.
    Lost(Option<String>),
}

async fn commit(shared: &Arc<Shared>, part: Part) -> Ended {
    let leaked = part == Part::Last && shared.close();
    let mut slot = match shared.slot.try_lock() {
        Ok(slot) => slot,
        Err(_) if part == Part::SoFar => shared.slot.lock().await,
        Err(_) => {
            reap(shared);
            return rolled_back(RollbackCause::Leaked);
        }
    };
    let (doom, refused) = {
        let said = shared.said.lock();
        (said.doom, said.rollback)
    };
    let leak = leaked.then_some(RollbackCause::Leaked);
    let cause = leak.or(doom).or(refused);
    let open = slot.take();
    if let Some(cause) = cause {
        if let Some(open) = open {
            open.rollback().await;
        }
        return rolled_back(cause);
    }
    match open {
        Some(open) => commit_open(shared, open).await,
        None => Ended::Committed,
    }
}

fn rolled_back(cause: RollbackCause) -> Ended {
    Ended::RolledBack(cause, TransactionError::doomed(cause))
}

async fn commit_open(shared: &Shared, mut open: Open) -> Ended {
    if let Err(error) = open.check().await {
        open.rollback().await;
        return Ended::RolledBack(RollbackCause::Poisoned, poisoned(error));
    }
    let xid = open.xid();
    let longest = shared.db.inner.settings.commit_timeout;
    match tokio::time::timeout(longest, open.commit()).await {
        Ok(Ok(())) => Ended::Committed,
        Ok(Err(error)) => refused(error, xid),
        Err(_) => Ended::Lost(xid),
    }
}

/// Whatever the sentinel met, the answer is that the transaction was not committed.
fn poisoned(error: TransactionError) -> TransactionError {
    match error.kind() {
        TransactionErrorKind::Doomed(_) => error,
        kind => {
            let _ = kind;
            error!(?kind, "the check before a commit failed");
            TransactionError::doomed(RollbackCause::Poisoned)
        }
    }
}

/// An ERROR reply to COMMIT means not committed; no reply, or a FATAL one, means nothing.
fn refused(error: sqlx::Error, xid: Option<String>) -> Ended {
    let error = TransactionError::from(error);
    match error.kind() {
        TransactionErrorKind::Unavailable => Ended::Lost(xid),
        TransactionErrorKind::LockTimeout | TransactionErrorKind::Conflict => {
            Ended::RolledBack(RollbackCause::Contention, error)
        }
        _ => {
            error!(error = ?error.database(), "the database refused a commit");
            Ended::RolledBack(RollbackCause::Poisoned, error)
        }
    }
}

/// Answers the waiter, then does the work that waited for the end.
async fn finish(
    shared: &Arc<Shared>,
    ended: Ended,
    reply: oneshot::Sender<Result<(), TransactionError>>,
) {
    let work = take_work(shared);
    match ended {
        Ended::Committed => {
            count!("keep_sql_transactions_total", 1, "end" => "commit");
            let _ = reply.send(Ok(()));
            run_all(work, End::Committed).await;
        }
        Ended::RolledBack(cause, error) => {
            count!("keep_sql_transactions_total", 1, "end" => label(cause));
            let _ = reply.send(Err(error));
            run_all(work, End::RolledBack(cause)).await;
        }
        Ended::Lost(xid) => resolve(shared, xid, reply, work).await,
    }
}

fn take_work(shared: &Shared) -> Vec<AfterWork> {
    let mut said = shared.said.lock();
    (said.commit, said.rollback) = (false, None);
    std::mem::take(&mut said.after)
}

const fn label(cause: RollbackCause) -> &'static str {
    match cause {
        RollbackCause::Leaked => "leaked",
        RollbackCause::Poisoned => "poisoned",
        RollbackCause::Timeout => "timeout",
        RollbackCause::Cancelled | RollbackCause::Panic => "cancelled",
        _ => "rollback",
    }
}

/// Asks what became of a commit whose reply was lost: for the waiter up to the commit timeout, for the
/// after-work on up to a minute.
async fn resolve(
    shared: &Shared,
    xid: Option<String>,
    reply: oneshot::Sender<Result<(), TransactionError>>,
    work: Vec<AfterWork>,
) {
    count!("keep_sql_transactions_total", 1, "end" => "unknown");
    error!("the reply to a commit was lost");
    let patience = shared.db.inner.settings.commit_timeout;
    let mut fate = ask(shared, xid.as_deref(), patience).await;
    let _ = reply.send(match fate {
        Some(End::Committed) => Ok(()),
        Some(End::RolledBack(cause)) => Err(TransactionError::doomed(cause)),
        None => Err(TransactionError::new(TransactionErrorKind::Unknown)),
    });
    if fate.is_none() && xid.is_some() {
        fate = ask(shared, xid.as_deref(), RESOLVE_LONGEST).await;
    }
    if let Some(end) = fate {
        count!("keep_sql_transactions_total", 1, "end" => "resolved");
        run_all(work, end).await;
    }
}

#[cfg(feature = "postgres")]
async fn ask(shared: &Shared, xid: Option<&str>, patience: Duration) -> Option<End> {
    use super::postgres::{Fate, fate};
    let (pool, xid) = (shared.db.pool::<sqlx::Postgres>()?, xid?);
    let asking = async {
        let mut pause = Duration::from_millis(50);
        loop {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(1));
            match fate(pool, xid).await {
                Ok(Fate::Committed) => return End::Committed,
                Ok(Fate::Aborted) => return End::RolledBack(RollbackCause::Aborted),
                Ok(Fate::Open) | Err(_) => {}
            }
        }
    };
    tokio::time::timeout(patience, asking).await.ok()
}

#[cfg(not(feature = "postgres"))]
async fn ask(_shared: &Shared, _xid: Option<&str>, _patience: Duration) -> Option<End> {
    None
}

fn start_rollback(
    shared: &Arc<Shared>,
    cause: RollbackCause,
) -> impl Future<Output = ()> + Send + use<> {
    shared.close();
    let open = shared.slot.try_lock().map(|mut slot| slot.take());
    let work = take_work(shared);
    let (reply, answer) = oneshot::channel::<()>();
    match open {
        // Nothing was begun and nobody waits: no task at all.
        Ok(None) if work.is_empty() => drop(reply),
        open => {
            count!("keep_sql_transactions_total", 1, "end" => label(cause));
            let holder = Arc::clone(shared);
            let tasks = &shared.db.inner.tasks;
            // A finisher may be dropped while its runtime shuts down; the pool is dropped with it then.
            let Ok(runtime) = Handle::try_current() else {
                return wait(answer);
            };
            tasks.spawn(&runtime, async move {
                let open = match open {
                    Ok(open) => open,
                    Err(_) => holder.slot.lock().await.take(),
                };
                if let Some(open) = open {
                    open.rollback().await;
                }
                drop(reply);
                run_all(work, End::RolledBack(cause)).await;
            });
        }
    }
    wait(answer)
}

async fn wait(answer: oneshot::Receiver<()>) {
    let _ = answer.await;
}

/// Somebody still has the connection: nothing commits, and it is rolled back as soon as it comes back.
fn reap(shared: &Arc<Shared>) {
    let holder = Arc::clone(shared);
    let tasks = &shared.db.inner.tasks;
    tasks.spawn(&Handle::current(), async move {
        let open = holder.slot.lock().await.take();
        if let Some(open) = open {
            open.rollback().await;
        }
    });
}
