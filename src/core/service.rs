//! The one place that takes the ready inner service.

/// Takes the service that `poll_ready` made ready and leaves a fresh clone in its place.
///
/// Tower's contract: only the very value that was polled ready may be called. A middleware that keeps
/// working after `call` returns must take that one along, not a clone of it.
pub fn take_ready<S: Clone>(service: &mut S) -> S {
    let fresh = service.clone();
    std::mem::replace(service, fresh)
}

/// Empties the extensions of a request that ends here: its answer puts its own in their place, and need not make any.
pub(crate) fn emptied(extensions: &mut http::Extensions) -> http::Extensions {
    let mut spare = std::mem::take(extensions);
    spare.clear();
    spare
}
