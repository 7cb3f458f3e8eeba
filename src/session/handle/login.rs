//! What a login sets.

use std::fmt;
use std::time::Duration;

use crate::core::Principal;
use crate::session::limits;
use crate::session::record::AuthStamp;

/// A login: who, for how long, resting on what. A plain [`Principal`] is one.
#[derive(Clone)]
#[must_use]
pub struct Login {
    pub(super) principal: Principal,
    pub(super) remember_for: Option<Duration>,
    pub(super) stamp: Option<AuthStamp>,
    pub(super) revoke_others: bool,
}

impl Login {
    /// Logs `principal` in.
    pub const fn new(principal: Principal) -> Self {
        Self {
            principal,
            remember_for: None,
            stamp: None,
            revoke_others: false,
        }
    }

    /// Keeps the login for this long, idle or not, also when the browser is closed (off).
    ///
    /// # Panics
    /// Shorter than a millisecond, or longer than 400 days.
    pub fn remember_for(mut self, lifetime: Duration) -> Self {
        limits::check(lifetime);
        self.remember_for = Some(lifetime);
        self
    }

    /// Remembers a hash of what the login rests on, say of the password hash, for
    /// [`Session::check_auth_stamp`](super::Session::check_auth_stamp) (none).
    pub fn auth_stamp(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.stamp = Some(AuthStamp::of(bytes));
        self
    }

    /// Ends all other sessions of the user in the same step, for a change of credentials (off).
    pub const fn revoke_others(mut self) -> Self {
        self.revoke_others = true;
        self
    }
}

impl From<Principal> for Login {
    fn from(principal: Principal) -> Self {
        Self::new(principal)
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login")
            .field("principal", &self.principal)
            .field("remember_for", &self.remember_for)
            .field("revoke_others", &self.revoke_others)
            .finish_non_exhaustive()
    }
}
