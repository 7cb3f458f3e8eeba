//! A primary store, and a second one for what may be decided locally while the primary is away.
//!
//! What falling back *means* is decided per part, in its `store/fallback.rs`: a rate limit may be counted
//! inside the process, a session may not. The breaker that says "away" is the primary's own.

/// Asks `primary`; where a part allows it, `secondary` stands in while the primary cannot be reached.
#[derive(Clone, Debug)]
pub struct Fallback<P, S> {
    primary: P,
    secondary: S,
}

impl<P, S> Fallback<P, S> {
    /// Puts `secondary` behind `primary`.
    #[must_use]
    pub const fn new(primary: P, secondary: S) -> Self {
        Self { primary, secondary }
    }

    /// Returns the store that is asked first.
    #[must_use]
    pub const fn primary(&self) -> &P {
        &self.primary
    }

    /// Returns the store that stands in.
    #[must_use]
    pub const fn secondary(&self) -> &S {
        &self.secondary
    }
}
