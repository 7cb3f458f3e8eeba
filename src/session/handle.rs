//! The handle: what a request knows of its session, and what it wants changed.

mod commit;
mod data;
mod devices;
mod identity;
mod leave;
mod load;
mod login;
mod state;

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use http::{Extensions, HeaderMap, HeaderValue, header};
use parking_lot::{Mutex, MutexGuard};
use smallvec::SmallVec;
use tokio::sync::Notify;

use super::config::Config;
use super::error::{SessionError, SessionErrorKind};
use super::event::{SessionEventKind, Signal};
use super::policy;
use super::rejection::Challenge;
use super::store::{NotLive, Seen, SessionRef, Sighting};
use super::token::BearerToken;
use crate::core::telemetry::count;
use crate::core::{CacheOutside, ClientIp, Clock, StoreFailure, SystemClock, Visitor};

pub(super) use commit::Committing;
pub(super) use leave::Leaving;
pub use login::Login;
use state::{Buffer, Core, Issued, Own, State};

/// The session of a request: cheap to clone, lazy; asks the store only when it is asked itself.
///
/// `insert`, `remove`, `increment` and `clear` are buffered and sent once, before the headers leave (or by
/// [`Session::commit`]); all that identifies or ends is committed when its call returns. Once the headers have
/// left, reads, `update`, `logout`, `revoke*` and `is_live` go on working.
#[derive(Clone)]
pub struct Session {
    shared: Arc<Shared>,
}

/// One per request. No lock is held across an await but `turn`, which orders the calls of this one request.
struct Shared {
    config: Arc<Config>,
    /// The `Cookie` lines, looked through at the first touch.
    cookies: SmallVec<[HeaderValue; 1]>,
    /// The `Authorization` field, where tokens are accepted there.
    authorization: Option<HeaderValue>,
    sighting: Sighting,
    is_passive: bool,
    cache_outside: bool,
    /// `TOUCHED`, `PERSONAL`, `SEALED`, `MAKING`.
    phase: AtomicU8,
    /// When the request began, for overtaken logins; 0 before.
    began: AtomicU64,
    state: Mutex<State>,
    /// Tells those who wait for a load that it is over.
    loaded: Notify,
    /// Login, rotation, logout and first writes of one request happen one after the other.
    turn: tokio::sync::Mutex<()>,
}

/// The handle or the visitor was asked for something.
const TOUCHED: u8 = 1;
/// The answer is made for one visitor.
const PERSONAL: u8 = 2;
/// The headers leave: nothing more is buffered.
const SEALED: u8 = 4;

/// Somebody has the turn and makes a token, which the headers have to carry.
const MAKING: u8 = 8;

/// In microseconds: the store tells times by whole milliseconds, and an age is rounded up to one, so that a login less than
/// two after a change may look as old as that.
const A_MOMENT: u64 = 2_000;

/// Reads a bearer token, if the field holds a well-formed one.
fn bearer(value: &HeaderValue) -> Option<SessionRef> {
    let (scheme, token) = value.as_bytes().split_at_checked(7)?;
    if !scheme.eq_ignore_ascii_case(b"Bearer ") {
        return None;
    }
    SessionRef::of_token(token.trim_ascii())
}

impl Session {
    pub(super) fn new(
        fields: &HeaderMap,
        extensions: &Extensions,
        is_passive: bool,
        config: &Arc<Config>,
    ) -> Self {
        let authorization = match config.accepts_bearer {
            true => fields.get(header::AUTHORIZATION).cloned(),
            false => None,
        };
        let agent = fields.get(header::USER_AGENT).cloned();
        let ip = extensions.get::<ClientIp>().map(|ip| ip.0);
        let mut cookies = SmallVec::new();
        // Pushed one by one: collecting is dearer, and this is done for every request.
        for line in fields.get_all(header::COOKIE) {
            cookies.push(line.clone());
        }
        let shared = Arc::new(Shared {
            config: Arc::clone(config),
            cookies,
            authorization,
            sighting: Sighting::new(agent, ip),
            is_passive,
            cache_outside: extensions.get::<CacheOutside>().is_some(),
            phase: AtomicU8::new(0),
            began: AtomicU64::new(0),
            state: Mutex::default(),
            loaded: Notify::const_new(),
            turn: tokio::sync::Mutex::const_new(()),
        });
        Self { shared }
    }

    /// Finds the handle that a [`SessionLayer`](super::SessionLayer) put into a request's extensions, as the axum
    /// extractor does; touches nothing.
    #[must_use]
    pub fn of(extensions: &Extensions) -> Option<Self> {
        let shared = extensions.get::<Visitor>()?.downcast()?;
        Some(Self { shared })
    }

    pub(super) fn visitor(&self) -> Visitor {
        Visitor::new(Arc::clone(&self.shared) as Arc<_>)
    }

    pub(super) fn has_cookie(&self, name: &str) -> bool {
        self.shared.config.cookie.name() == name
    }

    /// Remembers when the request began; touches nothing.
    #[cfg(feature = "axum")]
    pub(super) fn begin(&self) {
        self.shared.begin();
    }

    /// Marks the request as touched and its answer as made for one visitor.
    fn ask(&self) -> &Arc<Shared> {
        self.shared.touch_as(TOUCHED | PERSONAL);
        &self.shared
    }

    /// Returns the token that a login, rotation or first write of this bearer request made, once.
    ///
    /// Hand it to the client in the body: a bearer request gets no `Set-Cookie`.
    #[must_use]
    pub fn bearer_token(&self) -> Option<BearerToken> {
        let mut state = self.ask().state();
        match state.issued.as_deref_mut() {
            Some(Issued::Bearer { token, taken }) if !*taken => {
                *taken = true;
                Some(BearerToken(token.clone()))
            }
            _ => None,
        }
    }
}

/// What is known, under lock. What is to be told is told when the lock is given back, so that whoever listens may
/// ask this very handle.
struct Known<'a> {
    state: MutexGuard<'a, State>,
    config: &'a Config,
}

impl Deref for Known<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        &self.state
    }
}

impl DerefMut for Known<'_> {
    fn deref_mut(&mut self) -> &mut State {
        &mut self.state
    }
}

impl Drop for Known<'_> {
    fn drop(&mut self) {
        if self.state.untold.is_empty() {
            return;
        }
        let untold = std::mem::take(&mut self.state.untold);
        let config = self.config;
        MutexGuard::unlocked(&mut self.state, || {
            for (kind, session, user) in untold {
                config.tell(kind, session, user);
            }
        });
    }
}

impl Shared {
    fn state(&self) -> Known<'_> {
        Known {
            state: self.state.lock(),
            config: &self.config,
        }
    }

    fn begin(&self) {
        if self.began.load(Ordering::Relaxed) == 0 {
            self.began
                .store(SystemClock.now_micros(), Ordering::Relaxed);
        }
    }

    /// Forgets what came before: an own revocation does not overtake the login after it, which begins a moment later.
    fn begins_anew(&self) {
        self.began
            .store(SystemClock.now_micros() + A_MOMENT, Ordering::Relaxed);
    }

    /// Waits out the moment after an own revocation.
    async fn has_begun(&self) {
        let began = self.began.load(Ordering::Relaxed);
        let early = began.saturating_sub(SystemClock.now_micros());
        if early > 0 {
            tokio::time::sleep(Duration::from_micros(early)).await;
        }
    }

    fn age(&self) -> Duration {
        let micros = SystemClock
            .now_micros()
            .saturating_sub(self.began.load(Ordering::Relaxed));
        // Rounded up: the store counts whole milliseconds, and a login may only look older than it is.
        Duration::from_millis(micros.div_ceil(1_000))
    }

    fn has(&self, phase: u8) -> bool {
        self.phase.load(Ordering::SeqCst) & phase != 0
    }

    /// Notes a question of this request; the first one begins it.
    fn touch_as(&self, phase: u8) {
        if self.phase.load(Ordering::SeqCst) & phase != phase {
            self.begin();
            // One atomic for all phases: whoever seals either sees this touch or is seen by it.
            self.phase.fetch_or(phase, Ordering::SeqCst);
        }
    }

    fn check_sealed(&self) -> Result<(), SessionError> {
        if self.has(SEALED) {
            Err(SessionError::new(SessionErrorKind::Sealed))
        } else {
            Ok(())
        }
    }

    /// Notes that a token is about to be made: the headers wait for it, unless they have left. Whoever asks has the turn.
    fn making(&self) -> Result<Making<'_>, SessionError> {
        let making = Making(self);
        // Whoever seals after this sees it, and waits for the turn.
        if self.phase.fetch_or(MAKING, Ordering::SeqCst) & SEALED != 0 {
            return Err(SessionError::new(SessionErrorKind::Sealed));
        }
        Ok(making)
    }

    /// Changes the buffer unless the headers are leaving.
    fn buffer<R>(&self, change: impl FnOnce(&mut Buffer) -> R) -> Result<R, SessionError> {
        let mut state = self.state();
        // Under the lock: whoever sealed takes the buffer after this.
        self.check_sealed()?;
        Ok(change(&mut state.buffer))
    }

    fn challenge(&self) -> Challenge {
        if !self.config.accepts_bearer {
            return Challenge::Session;
        }
        match self.authorization.as_ref().and_then(bearer) {
            Some(_) => Challenge::InvalidBearer,
            None => Challenge::Bearer,
        }
    }

    /// Which session this request is about; decodes and hashes the token at the first question.
    fn own(&self, state: &mut State) -> Own {
        if matches!(state.own, Own::Undecoded) {
            self.present(state);
        }
        state.own
    }

    fn present(&self, state: &mut State) {
        let own = match self.authorization.as_ref().and_then(bearer) {
            Some(at) => {
                state.is_bearer = true;
                Some(at)
            }
            None => {
                let found = self.config.cookie.find(&self.cookies);
                state.had_cookie = found.any;
                if found.duplicate {
                    state.tell(SessionEventKind::Signal(Signal::DuplicateCookie));
                }
                found.token.map(|(_, at)| at)
            }
        };
        match own {
            Some(at) => state.own = Own::Ref(at),
            None => {
                (state.own, state.core) = (Own::Nobody, Core::Nobody);
                if state.had_cookie {
                    state.removes_cookie = true;
                    state.tell(SessionEventKind::Signal(Signal::MalformedToken));
                }
            }
        }
    }

    /// Notes that the store did not find the session live.
    fn found_dead(&self, state: &mut State, at: SessionRef, why: NotLive) {
        if !matches!(state.own, Own::Ref(own) if own == at) {
            // A login of this very request came in between.
            return;
        }
        if let (Some(signal), false) = (Signal::of(why), state.was_seen_live) {
            state.tell(SessionEventKind::Signal(signal));
        }
        state.removes_cookie |= policy::removes_cookie(why);
        state.core = Core::NotLive(why);
        state.data = None;
    }

    /// Notes that activity was recorded: whether device or network are others than before.
    fn renewed(&self, state: &mut State, before: Option<Seen>) {
        let Some(before) = before else {
            return;
        };
        count!("keep_session_renewals_total", 1);
        for signal in policy::changes(&before, &self.sighting.seen()) {
            state.tell(SessionEventKind::Signal(signal));
        }
    }

    /// Notes that the store failed: nothing more is asked by this request.
    fn note_failed(&self, state: &mut State, error: SessionError) -> SessionError {
        if state.failed.is_none() {
            state.failed = Some(error.clone());
            state.tell(SessionEventKind::StoreFailed);
        }
        error
    }

    fn failed(&self, error: &SessionError) {
        self.note_failed(&mut self.state(), error.clone());
    }

    fn is_open(&self) -> bool {
        self.config.store_failure == StoreFailure::Open
    }
}

/// A token is being made until this is dropped.
struct Making<'a>(&'a Shared);

impl Drop for Making<'_> {
    fn drop(&mut self) {
        self.0.phase.fetch_and(!MAKING, Ordering::SeqCst);
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("touched", &self.shared.has(TOUCHED))
            .finish_non_exhaustive()
    }
}
