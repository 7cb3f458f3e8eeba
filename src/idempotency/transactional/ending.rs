//! One run inside a transaction, and its end: what is kept of the answer is decided first, then all is
//! committed or undone, and only then the client sees it.

use std::future::poll_fn;
use std::panic::resume_unwind;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body as HttpBody;
use tower_service::Service;

use super::is_contention;
use crate::backend::sql::{Finisher, RequestTransaction, TransactionError, TransactionErrorKind};
use crate::core::telemetry::{count, error, seldom};
use crate::core::{
    Body, Ending, IdempotencyOutcome, RollbackCause, StoreError, Timestamp, Vote, monotonic,
};
use crate::idempotency::answer::{self, Settled, Verdict, settle};
use crate::idempotency::claim::Question;
use crate::idempotency::intake::Gist;
use crate::idempotency::record::{Answer, AnswerContent, Fence};
use crate::idempotency::rejection::RejectionCause;
use crate::idempotency::run::{Ended, poll_caught};
use crate::idempotency::run_state::{IdempotentRun, RunState};
use crate::idempotency::running::Active;
use crate::idempotency::seats::{Found, Seat};
use crate::idempotency::service::Shared;
use crate::idempotency::store::Owned;
use crate::idempotency::store::sql::Entry;

/// A claim that was won, until its end. Dropped, all is rolled back.
pub(super) struct Turn {
    pub(super) question: Question,
    pub(super) fence: Fence,
    pub(super) entry: Entry,
    pub(super) request: RequestTransaction,
    /// Gone where somebody outside ends the transaction.
    pub(super) finisher: Option<Finisher>,
    /// The place where twins in this process wait.
    pub(super) seat: Option<Seat>,
    pub(super) active: Active,
}

/// How a run ended.
pub(super) enum Outcome<R, E> {
    Answer(Result<Response<Body<R>>, E>),
    Refused(RejectionCause),
    /// Others were in the way, and nothing was done.
    Contention,
}

/// What the handler answered, and what is to be kept of it.
struct Answered<R> {
    settled: Settled<R>,
    status: u16,
    ending: Option<Ending>,
}

impl Turn {
    /// Runs the handler and ends the transaction.
    pub(super) async fn run<S, B, R>(
        self: Box<Self>,
        inner: &mut S,
        mut gist: Box<Gist>,
        (shared, state): (&Arc<Shared>, &Arc<RunState>),
        limit: Duration,
    ) -> Outcome<R, S::Error>
    where
        S: Service<Request<Body<B>>, Response = Response<R>>,
        R: HttpBody<Data = Bytes>,
    {
        let config = &*shared.config;
        crate::idempotency::span::of_run(self.fence);
        let run = IdempotentRun::new(self.question.id, self.fence);
        gist.parts.extensions.insert(run);
        if shared.runs.has_given_up(state) {
            // It has waited for its turn longer than a drain for the others.
            self.undo(RollbackCause::Cancelled).await;
            return Outcome::Refused(RejectionCause::Draining);
        }
        // From here on a client that leaves changes nothing.
        state.claiming();
        let started = monotonic();
        let work = async {
            let response = inner.call(gist.request()).await?;
            let status = response.status().as_u16();
            let ending = response.extensions().get::<Ending>().copied();
            let settled = settle(config, response).await;
            Ok(Answered {
                settled,
                status,
                ending,
            })
        };
        let ended = within(limit, work).await;
        let took = started.elapsed();
        shared.runs.measured(took);
        let outcome = match ended {
            Ended::Done(Ok(answered)) => self.end(shared, answered, took).await,
            Ended::Done(Err(error)) => {
                self.undo(RollbackCause::Inner).await;
                Outcome::Answer(Err(error))
            }
            Ended::OverLimit => {
                self.undo(RollbackCause::Timeout).await;
                Outcome::Refused(RejectionCause::RunLimit)
            }
            Ended::Panicked(panic) => {
                self.undo(RollbackCause::Panic).await;
                state.idle();
                resume_unwind(panic)
            }
        };
        state.idle();
        outcome
    }

    async fn end<R, E>(
        self: Box<Self>,
        shared: &Arc<Shared>,
        answered: Answered<R>,
        took: Duration,
    ) -> Outcome<R, E> {
        let (response, verdict) = match answered.settled {
            Settled::Answer(response, verdict) => (response, verdict),
            Settled::Lost(_) => {
                self.undo(RollbackCause::Inner).await;
                return Outcome::Refused(RejectionCause::TransactionFailed);
            }
        };
        if self.finisher.as_ref().is_some_and(Finisher::is_leaked) {
            error!("a handle of the transaction outlived its handler, nothing is committed");
            // It may be the body that holds it.
            drop(response);
            self.undo(RollbackCause::Leaked).await;
            return Outcome::Refused(RejectionCause::TransactionLeaked);
        }
        let expires_at = match &verdict {
            Verdict::Keep(_, ttl) => Some(self.fence.time() + took + *ttl),
            Verdict::Release | Verdict::Unknown => None,
        };
        let outcome = match self.cause(answered.status, answered.ending) {
            None => match self.keep(verdict, expires_at).await {
                Ok(()) => IdempotencyOutcome::First,
                Err(error) => return failed(&error),
            },
            Some(_) if self.met_others() => {
                self.undo(RollbackCause::Contention).await;
                return Outcome::Contention;
            }
            Some(cause) => match self.refuse(cause, (verdict, expires_at)).await {
                Ok(outcome) => outcome,
                Err(cause) => return Outcome::Refused(cause),
            },
        };
        let mut response = response;
        answer::mark(&shared.config, &mut response, outcome, expires_at);
        Outcome::Answer(Ok(response))
    }

    /// Why all is to be undone: a vote, what the handler said, its status; `None` to commit.
    fn cause(&self, status: u16, ending: Option<Ending>) -> Option<RollbackCause> {
        let vote = self.finisher.as_ref().and_then(Finisher::verdict);
        match (vote, ending) {
            (Some(Vote::Rollback(cause)), _) => Some(cause),
            (_, Some(Ending::Commit)) => None,
            (_, Some(Ending::Rollback)) => Some(RollbackCause::Status(status)),
            (_, None) => (!(200..400).contains(&status)).then_some(RollbackCause::Status(status)),
        }
    }

    /// Says whether the transaction failed because of others, so that running again may help.
    fn met_others(&self) -> bool {
        let doom = self.finisher.as_ref().and_then(Finisher::doom);
        matches!(
            doom,
            Some(RollbackCause::Contention | RollbackCause::Aborted)
        )
    }

    /// Writes the end of the record beside what the handler wrote, and commits both.
    async fn keep(
        mut self: Box<Self>,
        verdict: Verdict,
        expires_at: Option<Timestamp>,
    ) -> Result<(), TransactionError> {
        let written = self.write(&verdict).await;
        let Some(finisher) = self.finisher.take() else {
            if written.is_err() {
                self.request.vote(Vote::Rollback(RollbackCause::Poisoned));
            }
            return written;
        };
        if let Err(error) = written {
            finisher.rollback(RollbackCause::Poisoned).await;
            return Err(error);
        }
        finisher.commit().await?;
        count!("keep_idempotency_transactions_total", 1, "end" => "commit");
        if let (Verdict::Keep(content, _), Some(expires_at)) = (verdict, expires_at) {
            self.publish(content, expires_at);
        }
        Ok(())
    }

    async fn write(&self, verdict: &Verdict) -> Result<(), TransactionError> {
        let owned = match verdict {
            Verdict::Keep(content, ttl) => {
                let answer = Answer {
                    fingerprint: self.question.fingerprint,
                    content: content.clone(),
                };
                self.entry.complete(answer, *ttl).await?
            }
            Verdict::Release => self.entry.release().await?,
            Verdict::Unknown => self.entry.leave_undecided().await?,
        };
        match owned {
            Owned::Yes => Ok(()),
            // Our row is locked by us: only the handler itself can have changed it.
            Owned::Lost => Err(TransactionError::crowded_out()),
        }
    }

    /// Undoes what the handler wrote; the answer of a refusal is kept where it is to be.
    async fn refuse(
        mut self: Box<Self>,
        cause: RollbackCause,
        (verdict, expires_at): (Verdict, Option<Timestamp>),
    ) -> Result<IdempotencyOutcome, RejectionCause> {
        let Verdict::Keep(..) = &verdict else {
            self.undo(cause).await;
            return Ok(IdempotencyOutcome::First);
        };
        let Some(finisher) = &mut self.finisher else {
            self.request.vote(Vote::Rollback(cause));
            return Ok(IdempotencyOutcome::First);
        };
        let rewound = finisher.rewind(cause).await;
        let kept = match rewound {
            Ok(()) => {
                count!("keep_idempotency_transactions_total", 1, "end" => "rewind");
                self.keep(verdict, expires_at).await
            }
            Err(error) => {
                self.undo(cause).await;
                Err(error)
            }
        };
        match kept.map_err(|error| error.kind()) {
            Ok(()) => Ok(IdempotencyOutcome::First),
            Err(TransactionErrorKind::Doomed(RollbackCause::Leaked)) => {
                Err(RejectionCause::TransactionLeaked)
            }
            // Nothing was done, and the client may know; only a retry will be told anew.
            Err(_) => {
                count!("keep_idempotency_unrecorded_total", 1);
                seldom!(warn, "idempotency: a refusal could not be kept");
                Ok(IdempotencyOutcome::Unrecorded)
            }
        }
    }

    /// Rolls back: awaited, so that nothing is locked when the client asks again.
    async fn undo(mut self: Box<Self>, cause: RollbackCause) {
        count!("keep_idempotency_transactions_total", 1, "end" => "rollback");
        match self.finisher.take() {
            Some(finisher) => finisher.rollback(cause).await,
            None => self.request.vote(Vote::Rollback(cause)),
        }
    }

    /// Wakes the twins of this process with the answer.
    fn publish(self, content: AnswerContent, expires_at: Timestamp) {
        if let Some(seat) = self.seat {
            seat.publish(Found {
                content: content.into(),
                expires_at,
            });
        }
        drop(self.active);
    }
}

/// Drives `work` to its end, for `limit` at most.
async fn within<T>(limit: Duration, work: impl Future<Output = T>) -> Ended<T> {
    let mut work = pin!(work);
    let caught = poll_fn(|cx| poll_caught(work.as_mut(), cx));
    let ended = tokio::time::timeout(limit, caught).await;
    ended.unwrap_or(Ended::OverLimit)
}

/// What the client is told of a transaction that was to commit and did not, or perhaps did.
fn failed<R, E>(error: &TransactionError) -> Outcome<R, E> {
    if is_contention(error) {
        return Outcome::Contention;
    }
    Outcome::Refused(match error.kind() {
        TransactionErrorKind::Unknown => RejectionCause::CommitUnknown,
        TransactionErrorKind::Doomed(RollbackCause::Leaked) => RejectionCause::TransactionLeaked,
        TransactionErrorKind::Doomed(RollbackCause::Timeout) => RejectionCause::RunLimit,
        TransactionErrorKind::Unavailable => {
            let after = StoreError::new(crate::core::StoreErrorKind::Unavailable);
            RejectionCause::of_store(&after)
        }
        _ => RejectionCause::TransactionFailed,
    })
}
