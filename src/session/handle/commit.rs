//! Sending what is buffered: one patch, or a new session with it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use super::Shared;
use super::state::{Buffer, Core, Issued, Own, State};
use crate::core::telemetry::count;
use crate::core::{StoreError, StoreFuture};
use crate::session::error::{SessionError, SessionErrorKind};
use crate::session::event::SessionEventKind;
use crate::session::policy::{self, DeadWrite};
use crate::session::store::{
    Done, Establish, EstablishCause, Established, Identity, NotLive, Otherwise, Patched, SessionRef,
};
use crate::session::token::{Secret, SessionId};

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

/// Sends the buffer; no box where the store answers at once.
///
/// Dropped: the patch is applied whole or not at all; a new session that nobody holds ends by idle time.
pub(in crate::session) struct Committing {
    shared: Arc<Shared>,
    buffer: Buffer,
    step: Step,
}

enum Step {
    Begin,
    Patch(SessionRef, StoreFuture<Patched>),
    Establish(StoreFuture<Established>, Secret, usize),
}

/// The end, or the next answer to wait for.
type Next = Result<Result<Committed, SessionError>, Step>;

impl Committing {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            buffer: Buffer::default(),
            step: Step::Begin,
        }
    }

    fn begin(&mut self) -> Next {
        let shared = Arc::clone(&self.shared);
        let mut state = shared.state.lock();
        self.buffer = std::mem::take(&mut state.buffer);
        if self.buffer.is_empty() {
            return Ok(Ok(Committed::Applied));
        }
        if let Some(error) = state.failed.clone() {
            drop(state);
            return Ok(self.unanswered(error));
        }
        match shared.own(&mut state) {
            Own::Ref(at) => match state.core {
                Core::NotLive(why) => self.not_live(&mut state, why),
                _ => {
                    drop(state);
                    let patch = self
                        .buffer
                        .to_patch(shared.config.data_limit, &shared.sighting);
                    Err(Step::Patch(at, shared.config.store.patch(at, patch)))
                }
            },
            Own::Nobody | Own::Undecoded => {
                drop(state);
                self.start_anew()
            }
        }
    }

    fn patched(&self, at: SessionRef, answer: Result<Patched, StoreError>) -> Next {
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => return Ok(self.unanswered(error.into())),
        };
        let mut state = self.shared.state.lock();
        match answer {
            Patched::Applied { .. } => {
                count!("keep_session_writes_total", 1, "answer" => "applied");
                state.was_seen_live = true;
                state.data = None;
                Ok(Ok(Committed::Applied))
            }
            Patched::TooLarge => Ok(Err(SessionError::new(SessionErrorKind::TooLarge))),
            // A buffer holds no conditions.
            Patched::NotANumber | Patched::Conflict(_) => {
                Ok(Err(SessionError::new(SessionErrorKind::NotANumber)))
            }
            Patched::NotLive(why) => {
                self.shared.found_dead(&mut state, at, why);
                self.not_live(&mut state, why)
            }
        }
    }

    fn not_live(&self, state: &mut State, why: NotLive) -> Next {
        match policy::dead_write(why, state.was_seen_live) {
            DeadWrite::StartAnew => self.start_anew(),
            DeadWrite::Drop => {
                let id = match state.own {
                    Own::Ref(at) => Some(at.id),
                    _ => None,
                };
                count!("keep_session_writes_total", 1, "answer" => "dropped");
                self.shared
                    .config
                    .tell(SessionEventKind::WriteDropped, id, None);
                Ok(Ok(Committed::Dropped))
            }
        }
    }

    fn start_anew(&self) -> Next {
        if !self.buffer.creates() {
            return Ok(Ok(Committed::Applied));
        }
        if let Err(sealed) = self.shared.check_sealed() {
            return Ok(Err(sealed));
        }
        self.draw(DRAWS)
    }

    fn draw(&self, draws: usize) -> Next {
        let drawn = SessionId::draw(None).and_then(|id| Ok((id, Secret::draw()?)));
        let (fresh, secret) = match drawn {
            Ok(drawn) => drawn,
            Err(error) => return Ok(Err(error.into())),
        };
        let shared = &self.shared;
        let order = Establish {
            current: None,
            fresh,
            verifier: secret.verifier(),
            identity: Identity::Keep,
            otherwise: Otherwise::Create,
            lifetimes: shared.config.lifetimes,
            extended: shared.config.extended,
            limit: shared.config.limit,
            patch: self
                .buffer
                .to_patch(shared.config.data_limit, &shared.sighting),
            age: Duration::ZERO,
        };
        Err(Step::Establish(
            shared.config.store.establish(order),
            secret,
            draws,
        ))
    }

    fn established(
        &self,
        answer: Result<Established, StoreError>,
        secret: &Secret,
        draws: usize,
    ) -> Next {
        let kind = match answer {
            Ok(Established::Done(done)) => {
                self.shared.adopt(*done, secret);
                return Ok(Ok(Committed::Applied));
            }
            Ok(Established::Taken) if draws > 1 => return self.draw(draws - 1),
            Ok(Established::TooLarge) => SessionErrorKind::TooLarge,
            Ok(Established::NotANumber) => SessionErrorKind::NotANumber,
            Ok(_) => SessionErrorKind::Unavailable,
            Err(error) => return Ok(self.unanswered(error.into())),
        };
        Ok(Err(SessionError::new(kind)))
    }

    /// The store did not answer: refused, or dropped where the layer is open.
    fn unanswered(&self, error: SessionError) -> Result<Committed, SessionError> {
        self.shared.failed(&error);
        if self.shared.is_open() {
            self.shared
                .config
                .tell(SessionEventKind::WriteDropped, None, None);
            return Ok(Committed::Dropped);
        }
        Err(error)
    }
}

impl Future for Committing {
    type Output = Result<Committed, SessionError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        loop {
            let next = match std::mem::replace(&mut this.step, Step::Begin) {
                Step::Begin => this.begin(),
                Step::Patch(at, mut answer) => match Pin::new(&mut answer).poll(cx) {
                    Poll::Ready(answer) => this.patched(at, answer),
                    Poll::Pending => {
                        this.step = Step::Patch(at, answer);
                        return Poll::Pending;
                    }
                },
                Step::Establish(mut answer, secret, draws) => {
                    match Pin::new(&mut answer).poll(cx) {
                        Poll::Ready(answer) => this.established(answer, &secret, draws),
                        Poll::Pending => {
                            this.step = Step::Establish(answer, secret, draws);
                            return Poll::Pending;
                        }
                    }
                }
            };
            match next {
                Ok(end) => return Poll::Ready(end),
                Err(step) => this.step = step,
            }
        }
    }
}

impl Shared {
    /// Makes a session that was just established the request's own.
    pub(super) fn adopt(&self, done: Done, secret: &Secret) {
        let Done {
            now,
            record,
            cause,
            ended,
        } = done;
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
        let mut state = self.state.lock();
        state.own = Own::Ref(own);
        state.core = Core::Live(Box::new(record), now);
        state.data = None;
        state.epoch += 1;
        state.was_seen_live = true;
        state.clears_site_data = false;
        state.issued = Some(if self.presented.is_bearer {
            Issued::Bearer {
                token,
                taken: false,
            }
        } else {
            Issued::Cookie { token, max_age }
        });
        drop(state);
        self.config.tell(event_of(cause), Some(own.id), user);
        self.config.tell_ended(ended);
    }
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
