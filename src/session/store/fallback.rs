//! Sessions never fall back: what stands in for the primary would serve what was revoked.

use std::fmt;

use super::{
    Establish, Established, Listed, Loaded, Patch, Patched, Read, Revoked, Roles, SessionRef,
    SessionStore, Target, UserId, Whose,
};
use crate::backend::fallback::Fallback;
use crate::core::StoreFuture;

/// Asks the primary only; behind its open breaker every answer is `Unavailable` at once.
impl<P: SessionStore, S: fmt::Debug + Send + Sync + 'static> SessionStore for Fallback<P, S> {
    fn load(&self, at: SessionRef, read: Read) -> StoreFuture<Loaded> {
        self.primary().load(at, read)
    }

    fn patch(&self, at: SessionRef, patch: &Patch) -> StoreFuture<Patched> {
        self.primary().patch(at, patch)
    }

    fn establish(&self, order: Establish) -> StoreFuture<Established> {
        self.primary().establish(order)
    }

    fn list(&self, of: Whose) -> StoreFuture<Listed> {
        self.primary().list(of)
    }

    fn assign_roles(&self, user: UserId, roles: Roles) -> StoreFuture<u64> {
        self.primary().assign_roles(user, roles)
    }

    fn revoke(&self, target: Target) -> StoreFuture<Revoked> {
        self.primary().revoke(target)
    }

    fn register(&self) {
        self.primary().register();
    }
}
