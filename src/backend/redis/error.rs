//! The driver's errors in our words: what is known of the effect.

use redis::{ErrorKind, RedisError, ServerErrorKind};

use crate::core::{StoreError, StoreErrorKind};

/// What an error of the driver means to a call.
pub(super) enum Meaning {
    /// The server does not know the script: nothing was done.
    NoScript,
    /// The server answered, and refused.
    Refused(StoreErrorKind),
    /// The server cannot serve at this moment, or the answer is lost.
    Away,
}

pub(super) fn meaning(error: &RedisError) -> Meaning {
    match error.kind() {
        ErrorKind::Server(ServerErrorKind::NoScript) => Meaning::NoScript,
        ErrorKind::Server(
            ServerErrorKind::BusyLoading
            | ServerErrorKind::ClusterDown
            | ServerErrorKind::MasterDown
            | ServerErrorKind::ReadOnly
            | ServerErrorKind::TryAgain,
        ) => Meaning::Away,
        ErrorKind::Server(_) | ErrorKind::Extension if is_out_of_memory(error) => {
            Meaning::Refused(StoreErrorKind::Full)
        }
        ErrorKind::Server(_)
        | ErrorKind::Extension
        | ErrorKind::UnexpectedReturnType
        | ErrorKind::InvalidClientConfig => Meaning::Refused(StoreErrorKind::Failed),
        _ => Meaning::Away,
    }
}

/// Whether the next command needs another connection: this one is broken, or it leads to a server that
/// may not write (a replica, after a failover), while the name may lead to its successor by now.
pub(super) fn ends_connection(error: &RedisError) -> bool {
    error.is_io_error()
        || error.is_connection_dropped()
        || error.is_unrecoverable_error()
        || matches!(
            error.kind(),
            ErrorKind::Server(ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown)
        )
}

/// At `maxmemory` a write is refused with OOM, also from inside a script.
fn is_out_of_memory(error: &RedisError) -> bool {
    error.code() == Some("OOM")
        || error
            .detail()
            .is_some_and(|detail| detail.contains("OOM command not allowed"))
}

/// An error whose driver text is kept for the log, never for a client.
pub(super) fn with_source(kind: StoreErrorKind, error: RedisError) -> StoreError {
    StoreError::with_source(kind, error)
}
