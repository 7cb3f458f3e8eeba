//! What a layer did with a request, in the response extensions, for the layers outside it.

/// What the idempotency layer did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum IdempotencyOutcome {
    /// The handler ran, and its answer is kept.
    First,
    /// An earlier answer was given again.
    Replayed,
    /// The answer of a run that was under way was waited for.
    Attached,
    /// The same request is still running: 409.
    InProgress,
    /// The key belongs to another request: 422.
    Reused,
    /// The answer was too large or a stream, and cannot be given again: 409.
    NotReplayable,
    /// Whether the effect happened is not known: 409.
    Unknown,
    /// The handler ran, but its answer could not be kept.
    Unrecorded,
    /// The store was down and the layer is open: the handler ran without protection.
    Unprotected,
    /// The request was refused before the store was asked.
    Refused,
}

/// What the response cache did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ResponseCacheOutcome {
    /// A stored answer, fresh.
    Hit,
    /// A stored answer, stale but allowed.
    StaleHit,
    /// A stored answer that the inner service confirmed.
    Validated,
    /// A fetched answer that was stored.
    Stored,
    /// The answer of somebody else's fetch.
    Collapsed,
    /// A stale answer in place of an error.
    StandIn,
    /// A fetched answer that may not be stored.
    Uncacheable,
    /// The cache was not asked.
    Bypass,
    /// Refused: nothing stored, and the client wanted nothing else.
    Refused,
}
