//! One repeat of a call whose reply was lost, where a repeat is harmless.

use crate::core::{StoreError, StoreErrorKind, StoreFuture};

/// Makes the call again, once, if its answer was lost on a cut link. One that timed out has used up its deadline.
pub(crate) async fn once_more<T>(call: impl Fn() -> StoreFuture<T>) -> Result<T, StoreError> {
    match call().await {
        Err(error) if error.kind() == StoreErrorKind::Unavailable => call().await,
        answer => answer,
    }
}
