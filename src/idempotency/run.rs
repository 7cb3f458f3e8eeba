//! One run: the handler under a lease, then its answer into the store, and only then to the client.

use std::any::Any;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http_body::Body as HttpBody;
use tokio::time::Instant;
use tower_service::Service;

use super::answer::{self, Settled, Verdict, settle};
use super::claim::{Question, refuse};
use super::config::Config;
use super::digest::{Seen, Upload};
use super::intake::{Gist, Stream};
use super::key::ClientKey;
use super::lease;
use super::policy::LeaseEnd;
use super::record::{Answer, AnswerContent, Fence, Nonce};
use super::rejection::{IdempotencyRejection, RejectionCause};
use super::run_state::{IdempotentRun, RunState};
use super::running::{Active, Written, timed};
use super::seats::{Found, Seat};
use super::service::Shared;
use super::store::Owned;
use super::tee;
use crate::core::telemetry::{count, seconds, seldom};
use crate::core::{Body, IdempotencyOutcome, Inner, Timestamp, monotonic};

/// What a won claim carries along until its end.
pub(super) struct Ticket {
    pub(super) question: Question,
    pub(super) nonce: Nonce,
    pub(super) fence: Fence,
    /// When the store was asked: its lease began then, or later.
    pub(super) asked_at: Instant,
    /// The place where twins in this process wait.
    pub(super) seat: Option<Seat>,
    /// Counted as running for as long as this is there.
    pub(super) _active: Active,
}

/// How a run ended.
pub(super) enum Ended<T> {
    Done(T),
    Panicked(Box<dyn Any + Send>),
    OverLimit,
}

/// What came of the handler.
enum Out<R> {
    Settled(Settled<R>),
    /// Too large to be waited for: kept for this long once it has gone out.
    Teed(Response<R>, Duration),
    /// The upload was another than it said: the handler was dropped.
    Wrong,
}

async fn handle<S, B, R>(
    config: &Config,
    inner: &mut Inner<S>,
    request: impl FnOnce() -> Request<B>,
) -> Result<Out<R>, S::Error>
where
    S: Service<Request<B>, Response = Response<R>>,
    R: HttpBody<Data = Bytes>,
{
    let response = inner.call(request()).await?;
    if let Some(ttl) = tee::time_of(config, &response) {
        return Ok(Out::Teed(response, ttl));
    }
    Ok(Out::Settled(settle(config, response).await))
}

/// As [`handle`], for a body that is checked while it streams.
async fn handle_upload<S, B, R>(
    config: &Config,
    inner: &mut Inner<S>,
    request: impl FnOnce() -> Request<B>,
    upload: Arc<Upload>,
) -> Result<Out<R>, S::Error>
where
    S: Service<Request<B>, Response = Response<R>>,
    R: HttpBody<Data = Bytes>,
{
    let out = tokio::select! {
        biased;
        () = upload.wrong() => return Ok(Out::Wrong),
        out = handle(config, inner, request) => out?,
    };
    Ok(match (upload.close(), out) {
        (Seen::Wrong, _) => Out::Wrong,
        (Seen::Broken, Out::Settled(Settled::Answer(response, _))) => {
            Out::Settled(Settled::Answer(response, Verdict::Release))
        }
        (Seen::Broken, Out::Teed(response, _)) => {
            Out::Settled(Settled::Answer(response.map(Body::pass), Verdict::Release))
        }
        (_, out) => out,
    })
}

/// Calls the handler and drives it to its end; it is dropped by then.
async fn call<S, B, R>(
    inner: &mut Inner<S>,
    (gist, stream): (Box<Gist>, Option<Box<Stream<B>>>),
    ticket: &Ticket,
    shared: &Shared,
    state: &Arc<RunState>,
) -> Ended<Result<Out<R>, S::Error>>
where
    S: Service<Request<B>, Response = Response<R>>,
    R: HttpBody<Data = Bytes>,
{
    let config = &*shared.config;
    match stream {
        None => {
            let work = pin!(handle(config, inner, || gist.request()));
            supervise(work, ticket, shared, state).await
        }
        Some(stream) => {
            let Stream { body, upload } = *stream;
            let request = || Request::from_parts(gist.parts, body);
            let mut work = Box::pin(handle_upload(config, inner, request, upload));
            supervise(work.as_mut(), ticket, shared, state).await
        }
    }
}

/// Says whether the handler may start: not under a lease that is over, nor for a client that left, nor once a drain has
/// given up what was left.
async fn may_start(
    ticket: &mut Ticket,
    shared: &Arc<Shared>,
    state: &RunState,
    now: Instant,
) -> Result<(), RejectionCause> {
    let is_late = now.duration_since(ticket.asked_at) >= shared.config.lease;
    if is_late && !shared.runs.has_given_up(state) {
        Box::pin(lease::renew_late(ticket, shared)).await?;
    }
    let cause = if shared.runs.has_given_up(state) {
        RejectionCause::Draining
    } else if state.has_client_left() {
        // Nobody needs the effect.
        RejectionCause::BodyUnreadable
    } else {
        return Ok(());
    };
    release(shared, ticket).await;
    Err(cause)
}

/// Runs the handler and ends the record.
pub(super) async fn run<S, B, R>(
    inner: &mut Inner<S>,
    (mut gist, stream): (Box<Gist>, Option<Box<Stream<B>>>),
    mut ticket: Box<Ticket>,
    shared: &Arc<Shared>,
    state: &Arc<RunState>,
    key: Option<ClientKey>,
) -> Result<Response<Body<R>>, S::Error>
where
    S: Service<Request<B>, Response = Response<R>>,
    R: HttpBody<Data = Bytes> + Send + 'static,
{
    let config = &*shared.config;
    let refused = |cause| refuse(config, IdempotencyRejection::new(cause, key));
    let (claimed, started) = (ticket.asked_at, monotonic());
    if let Err(cause) = may_start(&mut ticket, shared, state, started).await {
        state.idle();
        return Ok(refused(cause));
    }
    gist.parts
        .extensions
        .insert(IdempotentRun(Arc::clone(state)));
    let ended = call(inner, (gist, stream), &ticket, shared, state).await;
    let took = started.elapsed();
    shared.runs.measured(took);
    // Since the fence was given: its reply may have come late.
    let age = claimed.elapsed();
    seconds!("keep_idempotency_run_seconds", took);
    let answer = match ended {
        Ended::Done(Ok(Out::Teed(response, ttl))) => {
            Ok(Box::pin(tee::start(shared, ticket, response, ttl, age)).await)
        }
        Ended::Done(Ok(Out::Settled(Settled::Answer(mut response, verdict)))) => {
            finish(shared, &mut ticket, &mut response, verdict, age).await;
            Ok(response)
        }
        Ended::Done(Ok(Out::Settled(Settled::Lost(content)))) => {
            let expires_at = ticket.fence.time() + age + config.ttl;
            let _ = keep(shared, &mut ticket, content, (config.ttl, expires_at)).await;
            Ok(refused(RejectionCause::AnswerLost))
        }
        Ended::Done(Ok(Out::Wrong)) => {
            release(shared, &ticket).await;
            Ok(refused(RejectionCause::DigestMismatch))
        }
        Ended::Done(Err(error)) => {
            release(shared, &ticket).await;
            Err(error)
        }
        Ended::OverLimit => {
            give_up(shared, &ticket, config.at_lease_end).await;
            Ok(refused(RejectionCause::RunLimit))
        }
        Ended::Panicked(panic) => {
            give_up(shared, &ticket, config.at_lease_end).await;
            drop(ticket);
            state.idle();
            resume_unwind(panic)
        }
    };
    state.idle();
    answer
}

type Request<B> = http::Request<Body<B>>;

/// Drives `work` to its end, renewing the lease meanwhile; a run that never waits pays for no timer.
async fn supervise<T>(
    mut work: Pin<&mut impl Future<Output = T>>,
    ticket: &Ticket,
    shared: &Shared,
    state: &Arc<RunState>,
) -> Ended<T> {
    if let Poll::Ready(ended) = poll_fn(|cx| Poll::Ready(poll_caught(work.as_mut(), cx))).await {
        return ended;
    }
    let whose = (ticket.question.id, ticket.nonce);
    let end = shared.config.at_lease_end;
    let _listed = shared.runs.list(whose, end, state);
    // In a box: a run that never waits pays for no room of timers.
    let mut lease = Box::pin(tokio::time::timeout(
        shared.config.run_limit,
        lease::keep(ticket, shared, state),
    ));
    let mut fresh = true;
    poll_fn(|cx| {
        // First: work that always goes on uses up the task's turn, and no timer would say anything after it.
        let is_over = lease.as_mut().poll(cx).is_ready();
        // Its first poll was just now: the waker is in place.
        if !std::mem::take(&mut fresh)
            && let Poll::Ready(ended) = poll_caught(work.as_mut(), cx)
        {
            return Poll::Ready(ended);
        }
        if is_over {
            return Poll::Ready(Ended::OverLimit);
        }
        Poll::Pending
    })
    .await
}

pub(super) fn poll_caught<T>(
    work: Pin<&mut impl Future<Output = T>>,
    cx: &mut Context<'_>,
) -> Poll<Ended<T>> {
    match catch_unwind(AssertUnwindSafe(|| work.poll(cx))) {
        Ok(Poll::Ready(done)) => Poll::Ready(Ended::Done(done)),
        Ok(Poll::Pending) => Poll::Pending,
        Err(panic) => Poll::Ready(Ended::Panicked(panic)),
    }
}

/// Ends the record by the verdict and marks the response.
pub(super) async fn finish<R>(
    shared: &Arc<Shared>,
    ticket: &mut Ticket,
    response: &mut Response<Body<R>>,
    verdict: Verdict,
    age: Duration,
) {
    let config = &*shared.config;
    let now = ticket.fence.time() + age;
    let (written, expires_at) = match verdict {
        Verdict::Keep(content, ttl) => {
            let written = keep(shared, ticket, content, (ttl, now + ttl)).await;
            (written, Some(now + ttl))
        }
        Verdict::Release => (release(shared, ticket).await, None),
        Verdict::Unknown => (give_up(shared, ticket, LeaseEnd::Indeterminate).await, None),
    };
    let outcome = match written {
        Written::Yes => IdempotencyOutcome::First,
        Written::Lost | Written::Later => {
            count!("keep_idempotency_unrecorded_total", 1);
            seldom!(warn, "idempotency: an answer could not be kept");
            IdempotencyOutcome::Unrecorded
        }
    };
    answer::mark(config, response, outcome, expires_at);
}

/// Stores the answer, wakes the twins of this process.
async fn keep(
    shared: &Arc<Shared>,
    ticket: &mut Ticket,
    content: AnswerContent,
    (ttl, expires_at): (Duration, Timestamp),
) -> Written {
    let Question { id, fingerprint } = ticket.question;
    let answer = Answer {
        fingerprint,
        content,
    };
    let store = &shared.config.store;
    let (written, content) = shared
        .runs
        .complete(store, id, ticket.nonce, answer, ttl)
        .await;
    if written == Written::Lost {
        count!("keep_idempotency_stale_writes_total", 1, "op" => "complete");
    } else if let Some(seat) = ticket.seat.take() {
        seat.publish(Found {
            content: content.into(),
            expires_at,
        });
    }
    written
}

async fn release(shared: &Arc<Shared>, ticket: &Ticket) -> Written {
    let (store, id) = (&shared.config.store, ticket.question.id);
    match timed("release", store.release(&id, ticket.nonce)).await {
        Ok(Owned::Yes) => Written::Yes,
        Ok(Owned::Lost) => {
            count!("keep_idempotency_stale_writes_total", 1, "op" => "release");
            // Somebody else owns the key by now: a retry is theirs.
            Written::Yes
        }
        Err(_) => {
            shared
                .runs
                .backlog
                .release(store, id, ticket.nonce, shared.config.lease);
            Written::Yes
        }
    }
}

/// Ends a run that has no answer: released, or undecided from now on.
async fn give_up(shared: &Arc<Shared>, ticket: &Ticket, end: LeaseEnd) -> Written {
    if end == LeaseEnd::Reexecute {
        return release(shared, ticket).await;
    }
    let (store, Question { id, fingerprint }) = (&shared.config.store, ticket.question);
    match store.renew(&id, ticket.nonce, Duration::ZERO, end).await {
        Ok(_) => Written::Yes,
        Err(_) => {
            // The claim's own policy may say otherwise: it must be told before its lease is over.
            let keep = shared.config.keep();
            let backlog = &shared.runs.backlog;
            backlog.leave_undecided(store, id, ticket.nonce, fingerprint, keep);
            Written::Later
        }
    }
}
