//! A turn on the request's connection.

use std::fmt;
use std::ops::{Deref, DerefMut};

use tokio::sync::MappedMutexGuard;

use super::engine::Engine;

/// A turn on the request's connection: derefs to sqlx's, and goes back on drop.
///
/// It borrows whoever lent it, so it cannot leave the handler without it. `lease.begin()` is a SAVEPOINT.
pub struct Lease<'t, D: Engine> {
    pub(super) connection: MappedMutexGuard<'t, D::Connection>,
}

impl<D: Engine> Deref for Lease<'_, D> {
    type Target = D::Connection;

    fn deref(&self) -> &D::Connection {
        &self.connection
    }
}

impl<D: Engine> DerefMut for Lease<'_, D> {
    fn deref_mut(&mut self) -> &mut D::Connection {
        &mut self.connection
    }
}

impl<D: Engine> fmt::Debug for Lease<'_, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("engine", &D::DIALECT)
            .finish_non_exhaustive()
    }
}
