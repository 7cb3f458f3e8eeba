//! Sending what is buffered: one patch, or a new session with it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::MutexGuard;
use tokio::time::Instant;

use super::state::{Buffer, Core, Issued, Own, State};
use super::{MAKING, Shared};
use crate::core::telemetry::count;
use crate::core::{StoreError, StoreFuture, monotonic};
use crate::session::error::{SessionError, SessionErrorKind};
use crate::session::event::SessionEventKind;
use crate::session::policy::{self, DeadWrite};
use crate::session::store::{
    Done, Establish, EstablishCause, Established, Identity, Live, NotLive, Otherwise, Patch,
    Patched, SessionRef,
};
use crate::session::token::{Secret, SessionId};

/// The longest that headers wait for other calls of their request: longer than a store takes.
const LONGEST_TURN: Duration = Duration::from_secs(15);

/// What became of buffered writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::session) enum Committed {
    /// They are in the store, or there were none.
    Applied,
    /// They were dropped: their session is over.
    Dropped,
}

/// An id is drawn again so many times.
pub(super) const DRAWS: usize = 3;

/// Sends the buffer; no box where the store answers at once and there is a session.
///
/// Dropped: the patch is applied whole or not at all; a new session that nobody holds ends by idle time.
pub(in crate::session) struct Committing {
    shared: Arc<Shared>,
    patch: Patch,
    /// Operations of the request's own; behind them stands the removal of what could not be decoded.
    own_operations: usize,
    /// The headers wait for it, so it may still set up a session.
    is_last: bool,
    /// It waits once for a token that somebody makes.
    has_waited: bool,
    /// Until when the headers wait, from their first turn on.
    until: Option<Instant>,
    /// What is buffered is sent, not dropped.
    keeps: bool,
    step: Step,
}

enum Step {
    Begin,
    /// Somebody makes a token that the headers have to carry.
    Turn(Pin<Box<dyn Future<Output = ()> + Send>>),
    /// The buffer is taken; another call of this request changed its session meanwhile.
    Again,
    Patch(SessionRef, u32, StoreFuture<Patched>),
    Anew(Anew),
}

/// A new session with the buffer; `None` where another call of this request set one up meanwhile.
type Anew = Pin<Box<dyn Future<Output = Result<Option<Committed>, SessionError>> + Send>>;

/// The end, or the next answer to wait for.
type Next = Result<Result<Committed, SessionError>, Step>;

impl Committing {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            patch: Patch::default(),
            own_operations: 0,
            is_last: false,
            has_waited: false,
            until: None,
            keeps: true,
            step: Step::Begin,
        }
    }

    pub(super) fn last(shared: Arc<Shared>, keeps: bool) -> Self {
        let mut last = Self::new(shared);
        (last.is_last, last.keeps) = (true, keeps);
        last
    }

    /// Until when it waits for a turn; `None`, for ever, where the headers do not wait for it.
    fn until(&mut self) -> Option<Instant> {
        let until = || monotonic() + LONGEST_TURN;
        self.is_last.then(|| *self.until.get_or_insert_with(until))
    }

    fn begin(&mut self) -> Next {
        let shared = Arc::clone(&self.shared);
        if self.is_last && !self.has_waited && shared.has(MAKING) {
            self.has_waited = true;
            let until = self.until();
            return Err(Step::Turn(Box::pin(async move {
                drop(shared.turn_until(until).await);
            })));
        }
        let mut state = shared.state();
        let mut buffer = std::mem::take(&mut state.buffer);
        if !self.keeps {
            buffer = Buffer::default();
        }
        let unanswered = state.failed.clone().or_else(|| {
            let in_doubt = state.is_patch_in_doubt;
            in_doubt.then(|| SessionError::new(SessionErrorKind::Unavailable))
        });
        match unanswered {
            // Whoever asked for this knows of the failure already, and asks what became of an earlier one.
            Some(error) if buffer.is_empty() && !self.is_last => return Ok(Err(error)),
            _ if buffer.is_empty() => return Ok(Ok(Committed::Applied)),
            Some(error) => return Ok(shared.unanswered(&mut state, error)),
            None => {}
        }
        self.patch = buffer.into_patch(shared.config.data_limit, &shared.sighting);
        self.own_operations = self.patch.operations.len();
        state.clean(&mut self.patch);
        self.send(&shared, &mut state)
    }

    fn again(&mut self) -> Next {
        let shared = Arc::clone(&self.shared);
        self.patch.operations.truncate(self.own_operations);
        self.send(&shared, &mut shared.state())
    }

    /// Under the lock: a store that answers at once is done with it.
    fn send(&mut self, shared: &Arc<Shared>, state: &mut State) -> Next {
        if let Some(error) = state.failed.clone() {
            return Ok(shared.unanswered(state, error));
        }
        match (shared.own(state), &state.core) {
            (Own::Ref(_), Core::NotLive(why)) => {
                let why = *why;
                self.not_live(state, why)
            }
            (Own::Ref(at), _) => match shared.config.store.patch(at, &self.patch).try_now() {
                Ok(answer) => self.patched(state, at, state.epoch, answer),
                Err(later) => Err(Step::Patch(at, state.epoch, later)),
            },
            (Own::Nobody | Own::Undecoded, _) => self.start_anew(state),
        }
    }

    fn patched(
        &mut self,
        state: &mut State,
        at: SessionRef,
        epoch: u32,
        answer: Result<Patched, StoreError>,
    ) -> Next {
        let shared = &self.shared;
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => return Ok(shared.unanswered(state, error.into())),
        };
        match answer {
            Patched::Applied { renewed, .. } => {
                count!("keep_session_writes_total", 1, "answer" => "applied");
                state.was_seen_live = true;
                state.data = None;
                state.undecodable.clear();
                shared.renewed(state, renewed);
                Ok(Ok(Committed::Applied))
            }
            Patched::TooLarge => Ok(Err(SessionError::new(SessionErrorKind::TooLarge))),
            // What could not be decoded was changed by somebody: it stays. The buffer has no conditions of its own.
            Patched::Conflict(_) if self.patch.operations.len() > self.own_operations => {
                Err(Step::Again)
            }
            Patched::NotANumber | Patched::Conflict(_) => {
                Ok(Err(SessionError::new(SessionErrorKind::NotANumber)))
            }
            // A login or rotation of this very request came in between: nothing was done, and the session goes on.
            Patched::NotLive(_) if state.epoch != epoch && matches!(state.own, Own::Ref(_)) => {
                Err(Step::Again)
            }
            // One may be about to hear of its success: wait for it, and look again.
            Patched::NotLive(NotLive::Superseded) if shared.turn.try_lock().is_err() => {
                let (shared, until) = (Arc::clone(shared), self.until());
                Err(Step::Anew(Box::pin(async move {
                    drop(shared.turn_until(until).await?);
                    Ok(None)
                })))
            }
            Patched::NotLive(why) => {
                shared.found_dead(state, at, why);
                self.not_live(state, why)
            }
        }
    }

    fn not_live(&mut self, state: &mut State, why: NotLive) -> Next {
        match policy::dead_write(why, state.was_seen_live) {
            DeadWrite::StartAnew => self.start_anew(state),
            DeadWrite::Drop => Ok(Ok(dropped(state))),
        }
    }

    fn start_anew(&mut self, state: &State) -> Next {
        self.patch.operations.truncate(self.own_operations);
        if !self.patch.creates() {
            return Ok(Ok(Committed::Applied));
        }
        let (shared, patch) = (Arc::clone(&self.shared), self.patch.clone());
        let (until, epoch) = (self.until(), state.epoch);
        Err(Step::Anew(Box::pin(async move {
            shared.commit_anew(&patch, until, epoch).await
        })))
    }
}

impl Future for Committing {
    type Output = Result<Committed, SessionError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        loop {
            let next = match std::mem::replace(&mut this.step, Step::Begin) {
                Step::Begin => this.begin(),
                Step::Turn(mut turn) => match turn.as_mut().poll(cx) {
                    Poll::Ready(()) => Err(Step::Begin),
                    Poll::Pending => {
                        this.step = Step::Turn(turn);
                        return Poll::Pending;
                    }
                },
                Step::Again => this.again(),
                Step::Patch(at, epoch, mut answer) => match Pin::new(&mut answer).poll(cx) {
                    Poll::Ready(answer) => {
                        let shared = Arc::clone(&this.shared);
                        this.patched(&mut shared.state(), at, epoch, answer)
                    }
                    Poll::Pending => {
                        this.step = Step::Patch(at, epoch, answer);
                        return Poll::Pending;
                    }
                },
                Step::Anew(mut anew) => match anew.as_mut().poll(cx) {
                    Poll::Ready(Ok(Some(committed))) => Ok(Ok(committed)),
                    Poll::Ready(Ok(None)) => Err(Step::Again),
                    Poll::Ready(Err(error)) => Ok(Err(error)),
                    Poll::Pending => {
                        this.step = Step::Anew(anew);
                        return Poll::Pending;
                    }
                },
            };
            match next {
                Ok(end) => return Poll::Ready(end),
                Err(step) => this.step = step,
            }
        }
    }
}

impl Drop for Committing {
    fn drop(&mut self) {
        if matches!(self.step, Step::Patch(..) | Step::Anew(_)) {
            self.shared.state().is_patch_in_doubt = true;
        }
    }
}

impl Shared {
    /// Waits for a turn. Whoever has it may be stuck behind the very headers that wait: a body that has not left yet.
    async fn turn_until(&self, until: Option<Instant>) -> Result<MutexGuard<'_, ()>, SessionError> {
        let turn = self.turn.lock();
        match until {
            None => Ok(turn.await),
            Some(until) => {
                let turn = tokio::time::timeout_at(until, turn).await;
                turn.map_err(|_elapsed| SessionError::new(SessionErrorKind::Unavailable))
            }
        }
    }

    /// Sets up a session with `patch`, unless `epoch` is over: then another call of this request changed it.
    /// `until`: how long the headers wait for it, if they do.
    async fn commit_anew(
        &self,
        patch: &Patch,
        until: Option<Instant>,
        epoch: u32,
    ) -> Result<Option<Committed>, SessionError> {
        let _turn = self.turn_until(until).await?;
        {
            let mut state = self.state();
            if state.epoch != epoch {
                // What was buffered before a logout goes with it.
                let goes_on = matches!(state.own, Own::Ref(_));
                return Ok((!goes_on).then(|| dropped(&mut state)));
            }
        }
        // The headers wait for the last one anyway.
        let _making = match until {
            Some(_) => None,
            None => Some(self.making()?),
        };
        for _ in 0..DRAWS {
            let secret = Secret::draw()?;
            let order = Establish {
                current: None,
                fresh: SessionId::draw(None)?,
                verifier: secret.verifier(),
                identity: Identity::Keep,
                otherwise: Otherwise::Create,
                lifetimes: self.config.lifetimes,
                extended: self.config.extended,
                limit: self.config.limit,
                patch: patch.clone(),
                age: Duration::ZERO,
            };
            let kind = match self.config.store.establish(order).await {
                Ok(Established::Done(done)) => {
                    self.adopt(*done, &secret);
                    return Ok(Some(Committed::Applied));
                }
                Ok(Established::Taken) => continue,
                Ok(Established::TooLarge) => SessionErrorKind::TooLarge,
                Ok(Established::NotANumber) => SessionErrorKind::NotANumber,
                Ok(_) => SessionErrorKind::Unavailable,
                Err(error) => {
                    let mut state = self.state();
                    return self.unanswered(&mut state, error.into()).map(Some);
                }
            };
            return Err(SessionError::new(kind));
        }
        Err(SessionError::new(SessionErrorKind::Unavailable))
    }

    /// The store did not answer: refused, or dropped where the layer is open.
    fn unanswered(
        &self,
        state: &mut State,
        error: SessionError,
    ) -> Result<Committed, SessionError> {
        let error = self.note_failed(state, error);
        if self.is_open() {
            return Ok(dropped(state));
        }
        Err(error)
    }

    /// Makes a session that was just established the request's own.
    pub(super) fn adopt(&self, done: Done, secret: &Secret) {
        let Done {
            now,
            record,
            cause,
            ended,
        } = done;
        let live = Live {
            now,
            record,
            data: None,
            renewed: None,
        };
        let record = &live.record;
        let token = secret.token(record.id);
        let max_age = record
            .remembered
            .then(|| record.absolute_at.since(now).as_secs());
        let own = SessionRef {
            id: record.id,
            verifier: secret.verifier(),
        };
        let user = record
            .user()
            .and_then(crate::session::record::UserId::try_new);
        let mut state = self.state();
        state.own = Own::Ref(own);
        state.core = Core::Live(Box::new(live));
        state.data = None;
        state.epoch += 1;
        state.was_seen_live = true;
        state.clears_site_data = false;
        state.issued = Some(Box::new(if state.is_bearer {
            Issued::Bearer {
                token,
                taken: false,
            }
        } else {
            Issued::Cookie { token, max_age }
        }));
        drop(state);
        self.config.tell(event_of(cause), Some(own.id), user);
        self.config.tell_ended(ended);
    }
}

/// Tells that a buffered write was dropped: its session is over, or the store away.
fn dropped(state: &mut State) -> Committed {
    count!("keep_session_writes_total", 1, "answer" => "dropped");
    state.tell(SessionEventKind::WriteDropped);
    Committed::Dropped
}

fn event_of(cause: EstablishCause) -> SessionEventKind {
    use crate::session::event::LoggedIn;
    let (kind, label) = match cause {
        EstablishCause::Created => (SessionEventKind::Created, "created"),
        EstablishCause::First => (SessionEventKind::LoggedIn(LoggedIn::First), "first"),
        EstablishCause::Again => (SessionEventKind::LoggedIn(LoggedIn::Again), "again"),
        EstablishCause::Switched => (SessionEventKind::LoggedIn(LoggedIn::Switched), "switched"),
        EstablishCause::Rotated => (SessionEventKind::Rotated, "rotated"),
    };
    count!("keep_session_established_total", 1, "cause" => label);
    kind
}
