//! A value that many threads read, counted in more than one place.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

/// A share of a value. Its clones are counted together and apart from those of other shares, so that threads which read one
/// value do not pass one count to and fro.
pub(super) struct Share<V>(Arc<Line<V>>);

struct Line<V> {
    value: Arc<V>,
    /// No two counts lie in one cache line.
    _apart: [u64; 4],
}

impl<V> Share<V> {
    /// Bytes of a share beside the value: two counts and a line.
    pub(super) const WEIGHT: usize = 2 * size_of::<usize>() + size_of::<Line<V>>();

    pub(super) fn new(value: V) -> Self {
        Self::of(Arc::new(value))
    }

    /// Another share of the same value.
    pub(super) fn another(&self) -> Self {
        Self::of(Arc::clone(&self.0.value))
    }

    pub(super) fn into_shared(self) -> Arc<V> {
        Arc::clone(&self.0.value)
    }

    #[cfg(test)]
    pub(super) fn is_counted_with(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    fn of(value: Arc<V>) -> Self {
        let _apart = [0; 4];
        Self(Arc::new(Line { value, _apart }))
    }
}

impl<V> Clone for Share<V> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<V> Deref for Share<V> {
    type Target = V;

    fn deref(&self) -> &V {
        &self.0.value
    }
}

impl<V> fmt::Debug for Share<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Share(..)")
    }
}
