//! Everything that is set, with its default, behind one `Arc` for layer, service and handles.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Response, request};

use super::cookie::{CookieText, SessionCookie};
use super::event::{SessionEvent, SessionEventKind, Signal};
use super::limits::{EXTENDED, Lifetimes, SessionLimit};
use super::observed::observed;
use super::record::UserId;
use super::rejection::SessionRejection;
use super::store::{EndedSession, SessionStore};
use super::token::SessionId;
use crate::core::StoreFailure;
use crate::core::telemetry::{Once, Seldom, count, debug, info, warn};

pub(super) type IsPassive = Arc<dyn Fn(&request::Parts) -> bool + Send + Sync>;
pub(super) type OnEvent = Arc<dyn Fn(&SessionEvent) + Send + Sync>;
pub(super) type OnRejection = Arc<dyn Fn(&SessionRejection, &mut Response<Bytes>) + Send + Sync>;

const DATA_LIMIT: usize = 64 * 1_024;

#[derive(Clone)]
pub(super) struct Config {
    pub(super) store: Arc<dyn SessionStore>,
    pub(super) lifetimes: Lifetimes,
    pub(super) extended: Duration,
    pub(super) cookie: CookieText,
    pub(super) accepts_bearer: bool,
    pub(super) limit: SessionLimit,
    pub(super) data_limit: usize,
    pub(super) is_passive: Option<IsPassive>,
    pub(super) store_failure: StoreFailure,
    pub(super) clears_site_data: bool,
    pub(super) on_event: Option<OnEvent>,
    pub(super) on_rejection: Option<OnRejection>,
    pub(super) said: Arc<Said>,
}

/// What is said once per layer, or once a minute.
#[derive(Debug, Default)]
pub(super) struct Said {
    /// By the signal: anybody may send what is no session, or no session any more.
    signals: [Seldom; Signal::KINDS],
    pub(super) nested: Once,
    pub(super) token_not_taken: Once,
}

impl Config {
    pub(super) fn new(store: Arc<dyn SessionStore>) -> Self {
        store.register();
        Self {
            store: observed(store),
            lifetimes: Lifetimes::DEFAULT,
            extended: EXTENDED,
            cookie: CookieText::new(SessionCookie::host("id")),
            accepts_bearer: false,
            limit: SessionLimit::evict_longest_idle(100),
            data_limit: DATA_LIMIT,
            is_passive: None,
            store_failure: StoreFailure::Closed,
            clears_site_data: false,
            on_event: None,
            on_rejection: None,
            said: Arc::default(),
        }
    }

    /// Tells whoever watches.
    pub(super) fn tell(
        &self,
        kind: SessionEventKind,
        session: Option<SessionId>,
        user: Option<UserId>,
    ) {
        match kind {
            SessionEventKind::Signal(signal) => {
                let name = signal.as_str();
                if let Some(silent) = self.said.signals[signal as usize].turn() {
                    warn!(?session, signal = name, silent, "session signal");
                    let _ = silent;
                } else {
                    debug!(?session, signal = name, "session signal");
                }
                let _ = name;
                count!("keep_session_signals_total", 1, "kind" => signal.as_str());
            }
            SessionEventKind::StoreFailed => {
                let answer = if self.store_failure == StoreFailure::Open {
                    "open"
                } else {
                    "closed"
                };
                count!("keep_session_unavailable_total", 1, "answer" => answer);
            }
            SessionEventKind::Undecodable => {
                count!("keep_session_undecodable_total", 1, "part" => "data");
            }
            _ => info!(?session, ?kind, "session"),
        }
        if let Some(on_event) = &self.on_event {
            on_event(&SessionEvent {
                kind,
                session,
                user,
            });
        }
    }

    pub(super) fn tell_ended(&self, ended: Vec<EndedSession>) {
        for EndedSession { id, user, cause } in ended {
            count!("keep_session_ended_total", 1, "cause" => cause.as_str());
            self.tell(SessionEventKind::Ended(cause), Some(id), user);
        }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("store", &self.store)
            .field("lifetimes", &self.lifetimes)
            .field("extended", &self.extended)
            .field("cookie", &self.cookie.name())
            .field("accepts_bearer", &self.accepts_bearer)
            .field("limit", &self.limit)
            .field("data_limit", &self.data_limit)
            .field("store_failure", &self.store_failure)
            .finish_non_exhaustive()
    }
}
