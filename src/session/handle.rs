//! The handle: what a request knows of its session, and what it wants changed.

mod commit;
mod data;
mod devices;
mod identity;
mod load;
mod login;
mod state;

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use http::{HeaderValue, Response, header, request};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use super::config::Config;
use super::error::{SessionError, SessionErrorKind};
use super::event::{SessionEventKind, Signal};
use super::policy;
use super::rejection::{Challenge, SessionRejection};
use super::store::{NotLive, Seen, SessionRef, Sighting};
use super::token::{BearerToken, Token};
use crate::core::telemetry::{count, warn};
use crate::core::{CacheOutside, ClientIp, Clock, StoreFailure, SystemClock, Visitor};

pub(super) use commit::Committing;
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
    me: Weak<Self>,
    config: Arc<Config>,
    presented: Presented,
    sighting: Sighting,
    is_passive: bool,
    cache_outside: bool,
    touched: AtomicBool,
    personal: AtomicBool,
    sealed: AtomicBool,
    /// When the request began, for overtaken logins; 0 before.
    began: AtomicU64,
    state: Mutex<State>,
    /// Tells those who wait for a load that it is over.
    loaded: Notify,
    /// Login, rotation, logout and first writes of one request happen one after the other.
    turn: tokio::sync::Mutex<()>,
}

/// What the request brought.
struct Presented {
    token: Option<Token>,
    /// A cookie of our name came, well-formed or not.
    any_cookie: bool,
    is_bearer: bool,
    duplicate: bool,
}

impl Presented {
    fn of(parts: &request::Parts, config: &Config) -> Self {
        if config.accepts_bearer
            && let Some(token) = bearer(parts)
        {
            return Self {
                token: Some(token),
                any_cookie: false,
                is_bearer: true,
                duplicate: false,
            };
        }
        let found = config.cookie.find(&parts.headers);
        Self {
            token: found.token,
            any_cookie: found.any,
            is_bearer: false,
            duplicate: found.duplicate,
        }
    }
}

fn bearer(parts: &request::Parts) -> Option<Token> {
    let value = parts.headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked(7)?;
    let token = Token::parse(token.trim_ascii())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then_some(token)
}

/// What the response must say.
#[derive(Debug, Default)]
pub(super) struct Leaving {
    pub(super) personal: bool,
    pub(super) accepts_bearer: bool,
    pub(super) no_store: bool,
    pub(super) clear_site_data: bool,
    pub(super) set_cookie: Option<HeaderValue>,
}

impl Session {
    pub(super) fn of(parts: &request::Parts, config: &Arc<Config>) -> Self {
        let agent = parts.headers.get(header::USER_AGENT).cloned();
        let ip = parts.extensions.get::<ClientIp>().map(|ip| ip.0);
        let is_passive = config
            .is_passive
            .as_ref()
            .is_some_and(|is_passive| is_passive(parts));
        let shared = Arc::new_cyclic(|me| Shared {
            me: Weak::clone(me),
            config: Arc::clone(config),
            presented: Presented::of(parts, config),
            sighting: Sighting::new(agent, ip),
            is_passive,
            cache_outside: parts.extensions.get::<CacheOutside>().is_some(),
            touched: AtomicBool::new(false),
            personal: AtomicBool::new(false),
            sealed: AtomicBool::new(false),
            began: AtomicU64::new(0),
            state: Mutex::default(),
            loaded: Notify::new(),
            turn: tokio::sync::Mutex::const_new(()),
        });
        Self { shared }
    }

    pub(super) fn visitor(&self) -> Visitor {
        Visitor::new(Arc::clone(&self.shared) as Arc<_>)
    }

    /// What a cache outside needs to see that the session is touched later on.
    pub(super) fn watched(&self) -> Option<Visitor> {
        self.shared.cache_outside.then(|| self.visitor())
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
        self.shared.touch();
        self.shared.personal.store(true, Ordering::Relaxed);
        &self.shared
    }

    /// Returns the token that a login, rotation or first write of this bearer request made, once.
    ///
    /// Hand it to the client in the body: a bearer request gets no `Set-Cookie`.
    #[must_use]
    pub fn bearer_token(&self) -> Option<BearerToken> {
        let shared = self.ask();
        let mut state = shared.state();
        match &mut state.issued {
            Some(Issued::Bearer { token, taken }) if !*taken => {
                *taken = true;
                Some(BearerToken(token.clone()))
            }
            _ => None,
        }
    }
}

/// What the layer asks.
impl Session {
    pub(super) fn is_touched(&self) -> bool {
        self.shared.touched.load(Ordering::SeqCst)
    }

    /// From now on nothing more is buffered: whatever was is taken after this, under the lock.
    pub(super) fn seal(&self) {
        self.shared.sealed.store(true, Ordering::SeqCst);
    }

    pub(super) fn has_buffered(&self) -> bool {
        !self.shared.state().buffer.is_empty()
    }

    /// Sends what is buffered for the last time: the headers wait for it.
    pub(super) fn committing(&self) -> Committing {
        Committing::last(Arc::clone(&self.shared))
    }

    /// Says whether documents of refusals have to be made again.
    pub(super) fn restates(&self) -> bool {
        self.shared.config.on_rejection.is_some() || self.shared.config.accepts_bearer
    }

    pub(super) fn refusal(&self, rejection: &SessionRejection) -> Response<Bytes> {
        let config = &self.shared.config;
        let mut response = rejection.respond(self.shared.challenge());
        if let Some(on_rejection) = &config.on_rejection {
            on_rejection(rejection, &mut response);
        }
        response
    }

    /// Drops what is still buffered, and says what the response needs.
    pub(super) fn leave(&self) -> Leaving {
        let shared = &self.shared;
        let mut state = shared.state();
        state.buffer = Buffer::default();
        let mut leaving = Leaving {
            personal: shared.personal.load(Ordering::Relaxed),
            accepts_bearer: shared.config.accepts_bearer,
            clear_site_data: state.clears_site_data,
            ..Leaving::default()
        };
        match &state.issued {
            Some(Issued::Cookie { token, max_age }) => {
                leaving.set_cookie = shared.config.cookie.set(token, *max_age);
            }
            Some(Issued::Bearer { taken, .. }) => {
                leaving.no_store = true;
                if !taken && shared.config.said.token_not_taken.first() {
                    warn!("a bearer request got a new token that its handler did not take");
                }
            }
            None if state.removes_cookie && !shared.presented.is_bearer => {
                leaving.set_cookie = Some(shared.config.cookie.removal());
            }
            None => {}
        }
        leaving.no_store |= leaving.set_cookie.is_some();
        leaving
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
            self.began_now();
        }
    }

    /// Forgets what came before: an own revocation does not overtake the login after it.
    fn began_now(&self) {
        self.began
            .store(SystemClock.now_micros(), Ordering::Relaxed);
    }

    fn age(&self) -> std::time::Duration {
        let micros = SystemClock
            .now_micros()
            .saturating_sub(self.began.load(Ordering::Relaxed));
        // Rounded up: the store counts whole milliseconds, and a login may only look older than it is.
        std::time::Duration::from_millis(micros.div_ceil(1_000))
    }

    /// Notes the first question of this request.
    fn touch(&self) {
        if self.touched.swap(true, Ordering::SeqCst) {
            return;
        }
        self.begin();
        let presented = &self.presented;
        if presented.duplicate {
            self.config.signal(Signal::DuplicateCookie, None);
        }
        if presented.token.is_none() && presented.any_cookie {
            self.state().removes_cookie = true;
            self.config.signal(Signal::MalformedToken, None);
        }
    }

    fn is_sealed(&self) -> bool {
        self.sealed.load(Ordering::SeqCst)
    }

    fn check_sealed(&self) -> Result<(), SessionError> {
        if self.is_sealed() {
            Err(SessionError::new(SessionErrorKind::Sealed))
        } else {
            Ok(())
        }
    }

    /// Changes the buffer unless the headers are leaving.
    fn buffer<R>(&self, change: impl FnOnce(&mut Buffer) -> R) -> Result<R, SessionError> {
        let mut state = self.state();
        // Under the lock: whoever sealed takes the buffer after this.
        self.check_sealed()?;
        Ok(change(&mut state.buffer))
    }

    fn challenge(&self) -> Challenge {
        match (self.config.accepts_bearer, self.presented.is_bearer) {
            (false, _) => Challenge::Session,
            (true, false) => Challenge::Bearer,
            (true, true) => Challenge::InvalidBearer,
        }
    }

    /// Which session this request is about.
    fn own(&self, state: &mut State) -> Own {
        if matches!(state.own, Own::Undecoded) {
            let token = self.presented.token.as_ref();
            state.own = token
                .and_then(Token::reference)
                .map_or(Own::Nobody, Own::Ref);
            if matches!(state.own, Own::Nobody) {
                state.core = Core::Nobody;
            }
        }
        state.own
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
    fn failed(&self, error: &SessionError) {
        let mut state = self.state();
        if state.failed.is_none() {
            state.failed = Some(error.clone());
            state.tell(SessionEventKind::StoreFailed);
        }
    }

    fn is_open(&self) -> bool {
        self.config.store_failure == StoreFailure::Open
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
            .field("touched", &self.is_touched())
            .finish_non_exhaustive()
    }
}
