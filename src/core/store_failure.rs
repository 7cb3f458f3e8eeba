//! What a layer does while its store cannot answer.

/// The choice of a layer for the time its store is down.
///
/// Each layer has a safe default, and a setter that panics on a mode which it does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StoreFailure {
    /// Go on without what the store would have said.
    Open,
    /// Refuse: 503 with `Retry-After`.
    Closed,
    /// Decide by a store inside this process until the shared one is back.
    Local,
}
