//! Keys that belong to somebody: made for their owner, or for whom the application lets in, and for nobody else.

use std::fmt;
use std::sync::Arc;

use super::into_key::{KeySegments, Segments};
use super::principal::Principal;

/// A key of one owner's data. It cannot be made for another's.
///
/// ```
/// use tower_keep::core::{Owned, Principal};
///
/// let (ann, root) = (Principal::new("ann"), Principal::new("root").roles(["admin"]));
/// let admins = |who: &Principal| who.has_role("admin");
/// assert!(Owned::of(&ann, "ann", "notes", admins).is_ok());
/// assert!(Owned::of(&root, "ann", "notes", admins).is_ok());
/// assert!(Owned::of(&ann, "bob", "notes", admins).is_err());
/// ```
///
/// What is keyed by it, such as `Cache<Owned<String>, Notes>`, can only be asked for by whoever may.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Owned<K> {
    owner: Arc<str>,
    key: K,
}

/// The principal is neither the owner nor let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotTheOwner;

impl<K> Owned<K> {
    /// Makes the key `key` of `owner`, if `principal` is the owner, or `may_too` lets it in.
    ///
    /// # Errors
    /// It is neither.
    pub fn of(
        principal: &Principal,
        owner: impl AsRef<str>,
        key: K,
        may_too: impl FnOnce(&Principal) -> bool,
    ) -> Result<Self, NotTheOwner> {
        let owner = owner.as_ref();
        if principal.id() != owner && !may_too(principal) {
            return Err(NotTheOwner);
        }
        Ok(Self {
            owner: Arc::from(owner),
            key,
        })
    }

    /// Returns the owner's id.
    #[must_use]
    pub fn owner(&self) -> &str {
        &self.owner
    }

    /// Returns the key without its owner.
    #[must_use]
    pub const fn key(&self) -> &K {
        &self.key
    }
}

impl<K: KeySegments> KeySegments for Owned<K> {
    fn segments(&self, into: &mut Segments) {
        into.push(&self.owner);
        self.key.segments(into);
    }
}

impl<K> fmt::Debug for Owned<K> {
    /// A key may name a person, and Debug text ends up in logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Owned(..)")
    }
}

impl fmt::Display for NotTheOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("only its owner may ask for this")
    }
}

impl std::error::Error for NotTheOwner {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::IntoKey;

    #[test]
    fn an_owner_is_a_segment_of_its_own() {
        let ann = Principal::new("ann:x");
        let key = Owned::of(&ann, "ann:x", "y", |_| false).unwrap();
        assert_eq!(key.clone().into_key(), ("ann:x", "y").into_key());
        assert_ne!(key.clone().into_key(), ("ann", "x", "y").into_key());
        assert!(!format!("{key:?}").contains("ann"));
    }
}
