//! The words in which layers and handlers speak about the end of a request's transaction.

/// What one member of a request's transaction wants its end to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vote {
    /// Keep the writes.
    Commit,
    /// Undo the writes; one such vote decides.
    Rollback(RollbackCause),
}

/// What a handler says about the end, whatever its status: put it into the response extensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Commit, though the status says failure (an audit row of a refusal).
    Commit,
    /// Roll back, though the status says success.
    Rollback,
}

/// Why a transaction was rolled back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RollbackCause {
    /// A hold was refused: somebody else has the slot.
    Conflict,
    /// The response has a status outside 200–399, or said [`Ending::Rollback`].
    Status(u16),
    /// The inner service returned an error.
    Inner,
    /// The handler panicked.
    Panic,
    /// The client went away, or the response future was dropped.
    Cancelled,
    /// A statement had failed, or user SQL ended the transaction: the database would not have committed.
    Poisoned,
    /// A guard outlived its handler.
    Leaked,
    /// The transaction was open for too long.
    Timeout,
    /// Lock timeout, deadlock or serialisation failure.
    Contention,
    /// The database went away before the commit was sent, or the commit was lost and proven not to have happened.
    Aborted,
}
