//! A turn on the request's connection.

use std::fmt;
use std::ops::{Deref, DerefMut};

use tokio::sync::MappedMutexGuard;

use super::engine::Engine;

/// A turn on the request's connection: derefs to sqlx's, and goes back on drop.
///
/// It borrows whoever lent it, so it cannot leave the handler without it. `lease.begin()` is a SAVEPOINT.
///
/// What ends the transaction under a lease (a `COMMIT` or `ROLLBACK` in your SQL, on SQLite also an `INSERT OR ROLLBACK`,
/// on either a `lease.begin()` dropped before its answer) leaves the connection without one, and each further statement
/// **on the same lease** then stays at once. The next lease is refused (on Postgres only where the driver knows of it: not
/// after `COMMIT` or `ROLLBACK` as text), and so are the next step of the library and the commit: take a new lease after
/// an error, and leave ending to whoever finishes. And whoever holds a lease while it asks the same request for another, or
/// for a step of the library, waits for itself until the transaction's time is over.
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
