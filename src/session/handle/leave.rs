//! What the layer asks when the inner service has answered: what to send, and what the response must say.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode};

use super::commit::Committing;
use super::state::{Buffer, Issued, State};
use super::{MAKING, PERSONAL, SEALED, Session, Shared, TOUCHED};
use crate::core::Visitor;
use crate::core::telemetry::warn;
use crate::session::policy;
use crate::session::rejection::SessionRejection;

/// What the response must say.
#[derive(Debug, Default)]
pub(in crate::session) struct Leaving {
    pub(in crate::session) personal: bool,
    /// A cache outside has to see that it is.
    pub(in crate::session) marked: bool,
    pub(in crate::session) accepts_bearer: bool,
    pub(in crate::session) no_store: bool,
    pub(in crate::session) clear_site_data: bool,
    pub(in crate::session) set_cookie: Option<HeaderValue>,
}

impl Session {
    /// From now on nothing more is buffered. Says whether the request was touched.
    pub(in crate::session) fn seal(&self) -> bool {
        self.shared.phase.fetch_or(SEALED, Ordering::SeqCst) & TOUCHED != 0
    }

    /// Says what the response needs, unless something is buffered that `status` keeps, or a token is being made: then
    /// the headers have to wait for that.
    pub(in crate::session) fn finish(&self, status: StatusCode) -> Option<Leaving> {
        let mut state = self.shared.state();
        let commits = policy::keeps_buffer(status) && !state.buffer.is_empty();
        let waits = commits || self.shared.has(MAKING);
        (!waits).then(|| self.shared.leave(&mut state))
    }

    /// Waits for a token that is being made, and sends what is buffered for the last time if `status` keeps it.
    pub(in crate::session) fn committing(&self, status: StatusCode) -> Committing {
        Committing::last(Arc::clone(&self.shared), policy::keeps_buffer(status))
    }

    /// Drops what is still buffered, and says what the response needs.
    pub(in crate::session) fn leave(&self) -> Leaving {
        self.shared.leave(&mut self.shared.state())
    }

    /// What a cache outside needs to see that the session is touched later on.
    pub(in crate::session) fn watched(&self) -> Option<Visitor> {
        self.shared.cache_outside.then(|| self.visitor())
    }

    /// Says whether documents of refusals have to be made again.
    pub(in crate::session) fn restates(&self) -> bool {
        self.shared.config.on_rejection.is_some() || self.shared.config.accepts_bearer
    }

    pub(in crate::session) fn refusal(&self, rejection: &SessionRejection) -> Response<Bytes> {
        let config = &self.shared.config;
        let mut response = rejection.respond(self.shared.challenge());
        if let Some(on_rejection) = &config.on_rejection {
            on_rejection(rejection, &mut response);
        }
        response
    }
}

impl Shared {
    fn leave(&self, state: &mut State) -> Leaving {
        if self.has(TOUCHED) {
            // Also where nobody asked who it is: a malformed cookie goes.
            self.own(state);
        }
        state.buffer = Buffer::default();
        let mut leaving = Leaving {
            personal: self.has(PERSONAL),
            marked: self.has(PERSONAL) && self.cache_outside,
            accepts_bearer: self.config.accepts_bearer,
            clear_site_data: state.clears_site_data,
            ..Leaving::default()
        };
        match state.issued.as_deref() {
            Some(Issued::Cookie { token, max_age }) => {
                leaving.set_cookie = self.config.cookie.set(token, *max_age);
            }
            Some(Issued::Bearer { taken, .. }) => {
                leaving.no_store = true;
                if !taken && self.config.said.token_not_taken.first() {
                    warn!("a bearer request got a new token that its handler did not take");
                }
            }
            None if state.removes_cookie && !state.is_bearer => {
                leaving.set_cookie = Some(self.config.cookie.removal());
            }
            None => {}
        }
        leaving.no_store |= leaving.set_cookie.is_some();
        leaving
    }
}
