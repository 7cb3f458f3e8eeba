//! What a loader gives.

use super::target::Tag;
use crate::core::ttl::Ttl;

/// A value with instructions; a plain value is one without.
#[derive(Clone, Debug)]
#[must_use]
pub struct Loaded<V> {
    pub(super) value: V,
    pub(super) ttl: Option<Ttl>,
    pub(super) tags: Vec<Tag>,
    /// Digests of the values' secondary keys, set by the cache.
    pub(super) aliases: Vec<String>,
    pub(super) is_stored: bool,
}

impl<V> Loaded<V> {
    /// Wraps a value.
    pub const fn new(value: V) -> Self {
        Self {
            value,
            ttl: None,
            tags: Vec::new(),
            aliases: Vec::new(),
            is_stored: true,
        }
    }

    /// Gives it another ttl than the cache's, without refresh.
    pub const fn ttl(mut self, ttl: Ttl) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// Tags it, beside what the cache does. At most 16 tags count for a value.
    pub fn tag(mut self, tag: Tag) -> Self {
        self.tags.push(tag);
        self
    }

    /// Keeps it nowhere.
    pub const fn no_store(mut self) -> Self {
        self.is_stored = false;
        self
    }
}

impl<V> From<V> for Loaded<V> {
    fn from(value: V) -> Self {
        Self::new(value)
    }
}
