//! The endings themselves: each carried to its end by whatever owns the connection, the after-work behind it.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::error::{TransactionError, TransactionErrorKind};
use super::open::Open;
use super::proof::Clue;
use super::shared::Shared;
use crate::core::telemetry::{count, error};
use crate::core::{AfterWork, Carried, End, RollbackCause, run_all};

/// How long the task asks on after a lost COMMIT, so that after-work runs once it knows.
const RESOLVE_LONGEST: Duration = Duration::from_secs(60);

/// Whether anything may follow.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    SoFar,
    Last,
}

/// Starts a commit; `told` makes of its end what whoever waits wants to hear.
pub(super) fn start_commit<T: Send + 'static>(
    shared: &Arc<Shared>,
    part: Part,
    told: fn(Result<(), TransactionError>) -> T,
) -> Carried<T> {
    let tasks = shared.db.inner.tasks.clone();
    let shared = Arc::clone(shared);
    tasks.carry(async move {
        let ended = commit(&shared, part).await;
        told(finish(&shared, ended).await)
    })
}

/// What a commit came to.
enum Ended {
    Committed,
    RolledBack(RollbackCause, TransactionError),
    /// The reply was lost; the clue may tell.
    Lost(Clue),
}

async fn commit(shared: &Arc<Shared>, part: Part) -> Ended {
    let leaked = part == Part::Last && shared.close();
    let mut slot = match shared.slot.try_lock() {
        Ok(slot) => slot,
        Err(_) if part == Part::SoFar => match shared.in_time(shared.turn()).await {
            Ok(slot) => slot,
            // Whoever takes it back waits for the turn.
            Err(_) => return rolled_back(RollbackCause::Timeout),
        },
        Err(_) => {
            let cause = if shared.is_overdue() && !leaked {
                RollbackCause::Timeout
            } else {
                RollbackCause::Leaked
            };
            reap(shared);
            return rolled_back(cause);
        }
    };
    let (doom, refused, over) = {
        let mut said = shared.said.lock();
        // A commit has a timeout of its own.
        said.due = None;
        let over = part == Part::SoFar && said.closed;
        (said.doom, said.rollback, over)
    };
    // While a leaked guard waited for its commit so far, all of it has ended.
    let leak = (leaked || over).then_some(RollbackCause::Leaked);
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
    let checking = async {
        open.check().await?;
        open.take_xid().await
    };
    let checked = tokio::time::timeout(shared.db.longest_step(), checking).await;
    let xid = match checked {
        Ok(Ok(name)) => name,
        Ok(Err(error)) => {
            open.rollback().await;
            return rolled_back(cause_before_commit(&error));
        }
        Err(_) => {
            error!("the check before a commit was not answered");
            // Its ROLLBACK would not be answered either: that goes on behind.
            return rolled_back(RollbackCause::Aborted);
        }
    };
    let clue = Clue {
        xid,
        nameless: open.nameless,
        probe: shared.said.lock().probe.take(),
    };
    let longest = shared.db.inner.settings.commit_timeout;
    match tokio::time::timeout(longest, open.commit()).await {
        Ok(Ok(())) => Ended::Committed,
        Ok(Err(error)) => refused(error, clue),
        Err(_) => Ended::Lost(clue),
    }
}

/// COMMIT was not sent: nothing is stored. Where the database only went away, all of it may be done again.
fn cause_before_commit(error: &TransactionError) -> RollbackCause {
    match error.kind() {
        TransactionErrorKind::Doomed(cause) => cause,
        TransactionErrorKind::Unavailable => RollbackCause::Aborted,
        kind => {
            let _ = kind;
            error!(?kind, "the check before a commit failed");
            RollbackCause::Poisoned
        }
    }
}

/// An ERROR reply to COMMIT means not committed; no reply, or a FATAL one, means nothing.
fn refused(error: sqlx::Error, clue: Clue) -> Ended {
    let error = TransactionError::from(error);
    match error.kind() {
        TransactionErrorKind::Unavailable => Ended::Lost(clue),
        TransactionErrorKind::LockTimeout | TransactionErrorKind::Conflict => {
            Ended::RolledBack(RollbackCause::Contention, error)
        }
        _ => {
            error!(error = ?error.database(), "the database refused a commit");
            Ended::RolledBack(RollbackCause::Poisoned, error)
        }
    }
}

/// The waiter's answer; the work that waited for the end goes on in a task.
async fn finish(shared: &Arc<Shared>, ended: Ended) -> Result<(), TransactionError> {
    let work = take_work(shared);
    match ended {
        Ended::Committed => {
            count!("keep_sql_transactions_total", 1, "end" => "commit");
            start_work(shared, work, End::Committed);
            Ok(())
        }
        Ended::RolledBack(cause, error) => {
            // What was to be committed so far is gone: nothing after it may end as a success.
            shared.doom(cause);
            count!("keep_sql_transactions_total", 1, "end" => label(cause));
            start_work(shared, work, End::RolledBack(cause));
            Err(error)
        }
        Ended::Lost(clue) => resolve(shared, clue, work).await,
    }
}

fn start_work(shared: &Shared, work: Vec<AfterWork>, end: End) {
    if !work.is_empty() {
        let tasks = &shared.db.inner.tasks;
        tasks.spawn(&Handle::current(), run_all(work, end));
    }
}

fn take_work(shared: &Shared) -> Vec<AfterWork> {
    let mut said = shared.said.lock();
    (said.commit, said.rollback, said.probe) = (false, None, None);
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
    shared: &Arc<Shared>,
    clue: Clue,
    work: Vec<AfterWork>,
) -> Result<(), TransactionError> {
    count!("keep_sql_transactions_total", 1, "end" => "unknown");
    error!("the reply to a commit was lost");
    let patience = shared.db.inner.settings.commit_timeout;
    let fate = ask(shared, &clue, patience).await;
    match fate {
        Some(End::Committed) => {}
        Some(End::RolledBack(cause)) => shared.doom(cause),
        None => shared.doom(RollbackCause::Poisoned),
    }
    let holder = Arc::clone(shared);
    let tasks = &shared.db.inner.tasks;
    tasks.spawn(&Handle::current(), async move {
        let mut fate = fate;
        if fate.is_none() && clue.may_tell() {
            fate = ask(&holder, &clue, RESOLVE_LONGEST).await;
        }
        if let Some(end) = fate {
            count!("keep_sql_transactions_total", 1, "end" => "resolved");
            run_all(work, end).await;
        }
    });
    match fate {
        Some(End::Committed) => Ok(()),
        Some(End::RolledBack(cause)) => Err(TransactionError::doomed(cause)),
        None => Err(TransactionError::new(TransactionErrorKind::Unknown)),
    }
}

/// Looks again and again, after 50 ms doubling to 1 s, for `patience`.
async fn ask(shared: &Shared, clue: &Clue, patience: Duration) -> Option<End> {
    let asking = async {
        let mut pause = Duration::from_millis(50);
        loop {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(1));
            match clue.look(&shared.db).await {
                None if clue.may_tell() => {}
                fate => return fate,
            }
        }
    };
    tokio::time::timeout(patience, asking).await.ok().flatten()
}

pub(super) fn start_rollback(
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
