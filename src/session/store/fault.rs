//! Sessions behind a line that can be cut by order, for tests of an outage. As with a store that is far away, what was
//! revoked on a cut line is made up for before anything else gets through.

use parking_lot::Mutex;

use super::{
    Establish, Established, Listed, Loaded, Patch, Patched, Read, Revoked, Roles, SessionRef,
    SessionStore, Target, UserId, Whose,
};
use crate::backend::fault::FaultStore;
use crate::core::StoreFuture;

/// Revocations that the line has not let through.
#[derive(Debug, Default)]
struct Owed(Mutex<Vec<Target>>);

impl<S: SessionStore> FaultStore<S> {
    fn after_revocations<T: Send + 'static>(
        &self,
        call: impl FnOnce() -> StoreFuture<T>,
    ) -> StoreFuture<T> {
        self.call(|| {
            let owed = self.beside::<Owed>();
            let mut owed = owed.0.lock();
            if owed.is_empty() {
                return call();
            }
            // Asked for under the lock: nobody overtakes them.
            let earlier: Vec<_> = owed.drain(..).map(|one| self.inner().revoke(one)).collect();
            let answer = call();
            StoreFuture::boxed(async move {
                for revoked in earlier {
                    drop(revoked.await);
                }
                answer.await
            })
        })
    }
}

impl<S: SessionStore> SessionStore for FaultStore<S> {
    fn load(&self, at: SessionRef, read: Read) -> StoreFuture<Loaded> {
        self.after_revocations(|| self.inner().load(at, read))
    }

    fn patch(&self, at: SessionRef, patch: &Patch) -> StoreFuture<Patched> {
        self.after_revocations(|| self.inner().patch(at, patch))
    }

    fn establish(&self, order: Establish) -> StoreFuture<Established> {
        self.after_revocations(|| self.inner().establish(order))
    }

    fn list(&self, of: Whose) -> StoreFuture<Listed> {
        self.after_revocations(|| self.inner().list(of))
    }

    fn assign_roles(&self, user: UserId, roles: Roles) -> StoreFuture<u64> {
        self.after_revocations(|| self.inner().assign_roles(user, roles))
    }

    fn revoke(&self, target: Target) -> StoreFuture<Revoked> {
        let (owed, again) = (self.beside::<Owed>(), target.clone());
        let answer = self.after_revocations(|| self.inner().revoke(target));
        StoreFuture::boxed(async move {
            let answer = answer.await;
            if matches!(&answer, Err(error) if error.is_unknown()) {
                owed.0.lock().push(again);
            }
            answer
        })
    }

    fn register(&self) {
        self.inner().register();
    }
}
