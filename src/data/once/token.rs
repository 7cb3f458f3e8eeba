//! Tokens, and what of them enters a store: a digest.

use std::fmt;

use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::core::{Key, base64url};
use crate::data::{DataError, DataErrorKind};

/// The fewest bytes of a token that somebody else made.
const WEAKEST: usize = 16;

/// A token: 256 random bits as 43 characters of base64url. Debug text does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(Zeroizing<String>);

impl Token {
    pub(super) fn draw() -> Result<Self, DataError> {
        let mut bits = Zeroizing::new([0; 32]);
        getrandom::fill(&mut *bits)
            .map_err(|error| DataError::with_source(DataErrorKind::Failed, error.to_string()))?;
        Ok(Self(Zeroizing::new(base64url(&*bits))))
    }

    /// Returns the text, for a link or a form.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for Token {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// Returns the key of a token: SHA-256 over the length-prefixed service, name, owner and token.
pub(super) fn digest(name: &str, owner: Option<&str>, token: &str) -> Result<Key, DataError> {
    if token.len() < WEAKEST {
        return Err(DataError::of(DataErrorKind::WeakToken));
    }
    let mut hash = Sha256::new();
    for part in ["tower-keep once", name, owner.unwrap_or_default(), token] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.update([u8::from(owner.is_some())]);
    Ok(Key::of([base64url(&hash.finalize())]))
}
