//! Sessions behind a line that can be cut by order, for tests of an outage.

use super::{
    Establish, Established, Listed, Loaded, Patch, Patched, Read, Revoked, Roles, SessionRef,
    SessionStore, Target, UserId, Whose,
};
use crate::backend::fault::FaultStore;
use crate::core::StoreFuture;

impl<S: SessionStore> SessionStore for FaultStore<S> {
    fn load(&self, at: SessionRef, read: Read) -> StoreFuture<Loaded> {
        self.call(|| self.inner().load(at, read))
    }

    fn patch(&self, at: SessionRef, patch: &Patch) -> StoreFuture<Patched> {
        self.call(|| self.inner().patch(at, patch))
    }

    fn establish(&self, order: Establish) -> StoreFuture<Established> {
        self.call(|| self.inner().establish(order))
    }

    fn list(&self, of: Whose) -> StoreFuture<Listed> {
        self.call(|| self.inner().list(of))
    }

    fn assign_roles(&self, user: UserId, roles: Roles) -> StoreFuture<u64> {
        self.call(|| self.inner().assign_roles(user, roles))
    }

    fn revoke(&self, target: Target) -> StoreFuture<Revoked> {
        self.call(|| self.inner().revoke(target))
    }
}
