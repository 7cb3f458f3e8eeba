//! The layer: a store and settings.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Response, request};
use tower_layer::Layer;

use super::config::Config;
use super::cookie::{CookieText, SessionCookie};
use super::directory::SessionDirectory;
use super::event::SessionEvent;
use super::limits::{self, Lifetimes, SessionLimit};
use super::rejection::SessionRejection;
use super::service::SessionService;
use super::store::SessionStore;
use crate::core::StoreFailure;

/// Puts a lazy [`Session`](super::Session) and a [`Visitor`](crate::core::Visitor) into every request.
#[must_use]
#[derive(Clone, Debug)]
pub struct SessionLayer {
    config: Arc<Config>,
}

impl SessionLayer {
    /// Keeps sessions in `store`.
    pub fn new(store: impl SessionStore) -> Self {
        Self {
            config: Arc::new(Config::new(Arc::new(store))),
        }
    }

    fn set(mut self, change: impl FnOnce(&mut Config)) -> Self {
        change(Arc::make_mut(&mut self.config));
        self
    }

    /// Ends a session this long after its last activity (15 minutes).
    ///
    /// # Panics
    /// Shorter than a millisecond, or longer than 400 days.
    pub fn idle_timeout(self, idle: Duration) -> Self {
        limits::check(idle);
        self.set(|config| config.lifetimes.idle = idle)
    }

    /// Ends a session this long after its login, or its set-up without one (24 hours).
    ///
    /// # Panics
    /// Shorter than a millisecond, or longer than 400 days.
    pub fn absolute_timeout(self, absolute: Duration) -> Self {
        limits::check(absolute);
        self.set(|config| config.lifetimes.absolute = absolute)
    }

    /// Drops data this long after its last use (1 hour); it never outlives its session.
    ///
    /// # Panics
    /// Shorter than a millisecond, or longer than 400 days.
    pub fn extended_timeout(self, extended: Duration) -> Self {
        limits::check(extended);
        self.set(|config| config.extended = extended)
    }

    /// Sets idle and absolute time together.
    pub fn lifetimes(self, lifetimes: Lifetimes) -> Self {
        self.set(|config| config.lifetimes = lifetimes)
    }

    /// Sets the cookie (`SessionCookie::host("id")`).
    pub fn cookie(self, cookie: SessionCookie) -> Self {
        self.set(|config| config.cookie = CookieText::new(cookie))
    }

    /// Takes a well-formed `Authorization: Bearer` token, before the cookie (off).
    pub fn accept_bearer(self) -> Self {
        self.set(|config| config.accepts_bearer = true)
    }

    /// Limits the live sessions of a user (`SessionLimit::evict_longest_idle(100)`).
    pub fn limit(self, limit: SessionLimit) -> Self {
        self.set(|config| config.limit = limit)
    }

    /// Limits the bytes of names and values of a session (64 KiB).
    pub fn data_limit(self, bytes: usize) -> Self {
        self.set(|config| config.data_limit = bytes)
    }

    /// Names polling routes: their reads record no activity (none).
    pub fn passive(
        self,
        is_passive: impl Fn(&request::Parts) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.set(|config| config.is_passive = Some(Arc::new(is_passive)))
    }

    /// Chooses what happens while the store is away (`Closed`). `Open` reads as if there were no session and
    /// drops buffered writes; login, rotation, logout, revocation and `update` are refused either way.
    ///
    /// # Panics
    /// On `Local`: it would serve what was revoked.
    pub fn on_store_failure(self, failure: StoreFailure) -> Self {
        assert!(
            failure != StoreFailure::Local,
            "sessions have no local mode: it would serve what was revoked"
        );
        self.set(|config| config.store_failure = failure)
    }

    /// Sends `Clear-Site-Data` with a logout (off).
    pub fn clear_site_data(self) -> Self {
        self.set(|config| config.clears_site_data = true)
    }

    /// Watches life cycle and signals, after the store confirmed them; not what a store makes up for after an outage.
    pub fn on_event(self, on_event: impl Fn(&SessionEvent) + Send + Sync + 'static) -> Self {
        self.set(|config| config.on_event = Some(Arc::new(on_event)))
    }

    /// Changes the finished problem document of a refusal, also of one that a handler or extractor returned.
    pub fn on_rejection(
        self,
        on_rejection: impl Fn(&SessionRejection, &mut Response<Bytes>) + Send + Sync + 'static,
    ) -> Self {
        self.set(|config| config.on_rejection = Some(Arc::new(on_rejection)))
    }

    /// Returns a handle for administrators, outside any request.
    #[must_use]
    pub fn directory(&self) -> SessionDirectory {
        SessionDirectory::new(Arc::clone(&self.config))
    }
}

impl<S> Layer<S> for SessionLayer {
    type Service = SessionService<S>;

    fn layer(&self, inner: S) -> SessionService<S> {
        SessionService::new(inner, Arc::clone(&self.config))
    }
}
