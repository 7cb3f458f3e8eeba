//! E-mail addresses as keys: the address itself is kept nowhere.

use sha2::{Digest, Sha256};

use super::into_key::{KeySegments, Segments};
use super::key::base64url;

/// An e-mail address as a key: trimmed, in lower case, and only as a digest.
///
/// ```
/// use tower_keep::core::{Email, IntoKey};
///
/// assert_eq!(Email(" Ann@Example.test").into_key(), Email("ann@example.test").into_key());
/// assert!(!Email("ann@example.test").into_key().as_str().contains("ann"));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Email<S>(pub S);

impl<S: AsRef<str>> KeySegments for Email<S> {
    fn segments(&self, into: &mut Segments) {
        let address = self.0.as_ref().trim().to_lowercase();
        let mut hash = Sha256::new();
        for part in ["tower-keep e-mail", &address] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        into.push(base64url(&hash.finalize()));
    }
}

impl<S> std::fmt::Debug for Email<S> {
    /// Logs are read by many.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Email(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::IntoKey;

    #[test]
    fn addresses_that_look_alike_are_different_keys() {
        let keys = ["a.b@x", "a_b@x", "a+b@x", "a.b@y"].map(|address| Email(address).into_key());
        for (index, key) in keys.iter().enumerate() {
            assert!(!keys[..index].contains(key));
        }
        assert_eq!(format!("{:?}", Email("a.b@x")), "Email(..)");
    }
}
