//! What can be invalidated: keys, tags, prefixes, and a whole group.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::core::{IntoKey, Key, NotAServiceName, ServiceName};

/// One key of one cache.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CacheKey {
    /// The cache's name in its group.
    pub entity: Arc<str>,
    /// The key.
    pub key: Key,
}

impl CacheKey {
    /// Returns the name of the key among stamps and in notices.
    #[must_use]
    pub fn member(&self) -> String {
        format!("k{}:{}", self.entity, self.key.as_str())
    }

    /// Says whether `holds` is true of every name that an invalidation of this key may have: its own, and its prefixes.
    pub(super) fn all_names(&self, mut holds: impl FnMut(&str) -> bool) -> bool {
        holds(&self.member()) && self.all_prefixes(holds)
    }

    /// Says whether `holds` is true of every one of [`CacheKey::prefixes`], none of them copied.
    pub(super) fn all_prefixes(&self, mut holds: impl FnMut(&str) -> bool) -> bool {
        let whole = format!("p{}:{}", self.entity, self.key.as_str());
        let mut ends = whole.match_indices(':').map(|(at, _)| at);
        ends.all(|at| holds(&whole[..at])) && holds(&whole)
    }

    /// Returns the names of the cache and of all leading segments among stamps.
    #[must_use]
    pub fn prefixes(&self) -> Vec<String> {
        let mut prefixes = Vec::new();
        self.all_prefixes(|prefix| {
            prefixes.push(prefix.to_owned());
            true
        });
        prefixes
    }
}

/// A word that values of several caches share, such as `user:u1`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Tag(Key);

impl Tag {
    /// Makes the tag of `key` of a kind.
    #[must_use]
    pub fn new(kind: &str, key: impl IntoKey) -> Self {
        let kind = Key::of([kind]);
        let key = key.into_key();
        Self(Key::from_escaped(format!(
            "{}:{}",
            kind.as_str(),
            key.as_str()
        )))
    }

    pub(super) fn member(&self) -> String {
        format!("t{}", self.0.as_str())
    }
}

impl FromStr for Tag {
    type Err = std::convert::Infallible;

    /// Reads `kind:key`, each colon a new segment.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(Key::of(text.split(':'))))
    }
}

impl fmt::Debug for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tag({:?})", self.0)
    }
}

/// What an invalidation hits.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target(pub(super) Hit);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Hit {
    Key(CacheKey),
    Tag(Tag),
    Prefix(String),
    All,
}

impl Target {
    /// Hits the values with `tag`, in all caches of the group.
    #[must_use]
    pub const fn tag(tag: Tag) -> Self {
        Self(Hit::Tag(tag))
    }

    /// Hits the keys of `entity` whose leading segments are those of `key`, never the half of a segment.
    ///
    /// # Panics
    /// If `entity` is no name of a cache.
    #[must_use]
    #[track_caller]
    pub fn prefix(entity: &str, key: impl IntoKey) -> Self {
        let (entity, key) = (ServiceName::new(entity), key.into_key());
        Self(Hit::Prefix(format!("p{entity}:{}", key.as_str())))
    }

    /// Hits all keys of one cache of the group.
    ///
    /// # Errors
    /// `entity` is no name of a cache.
    pub fn entity(entity: &str) -> Result<Self, NotAServiceName> {
        let entity = ServiceName::try_new(entity)?;
        Ok(Self(Hit::Prefix(format!("p{entity}"))))
    }

    /// Hits the whole group.
    #[must_use]
    pub const fn all() -> Self {
        Self(Hit::All)
    }

    /// Returns what kind it is, for a label.
    pub(super) const fn kind(&self) -> &'static str {
        match self.0 {
            Hit::Key(_) => "key",
            Hit::Tag(_) => "tag",
            Hit::Prefix(_) => "prefix",
            Hit::All => "all",
        }
    }

    /// Hits one key of one cache.
    #[must_use]
    pub const fn key(key: CacheKey) -> Self {
        Self(Hit::Key(key))
    }

    /// Returns the name among stamps and in notices: `k…` a key, `t…` a tag, `p…` a prefix, empty the group.
    #[must_use]
    pub fn member(&self) -> String {
        match &self.0 {
            Hit::Key(key) => key.member(),
            Hit::Tag(tag) => tag.member(),
            Hit::Prefix(prefix) => prefix.clone(),
            Hit::All => String::new(),
        }
    }

    pub(super) const fn as_key(&self) -> Option<&CacheKey> {
        match &self.0 {
            Hit::Key(key) => Some(key),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_whole_leading_segments() {
        let key = |of| CacheKey {
            entity: Arc::from("appointments"),
            key: of,
        };
        let mine = key(("u1", 7_u8).into_key()).prefixes();
        assert_eq!(
            mine,
            ["pappointments", "pappointments:u1", "pappointments:u1:7"]
        );
        let other = key(("u10", 7_u8).into_key()).prefixes();
        let target = Target::prefix("appointments", "u1").member();
        assert!(mine.contains(&target) && !other.contains(&target));
    }

    #[test]
    fn a_tag_is_read_as_it_is_made() {
        assert_eq!("user:u1".parse::<Tag>().unwrap(), Tag::new("user", "u1"));
    }
}
