//! What names a record, and a caller: hashes from which neither key nor caller can be read.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// Names one record: keyed hashes of scope and key, 16 bytes each. Nothing of either can be read from it.
///
/// Written and read as two words of 22 base64url characters with a colon between.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RecordId([u8; 32]);

impl RecordId {
    /// Makes an id from its bytes: scope tag, then key tag.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns the bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Returns the tag of the key.
    #[cfg(feature = "tracing")]
    pub(super) fn key(&self) -> [u8; 16] {
        let mut tag = [0; 16];
        tag.copy_from_slice(&self.0[16..]);
        tag
    }

    /// Returns the tag of the caller whose key it is.
    #[must_use]
    pub fn scope(&self) -> ScopeTag {
        let mut tag = [0; 16];
        tag.copy_from_slice(&self.0[..16]);
        ScopeTag(tag)
    }
}

/// One caller, as the ids of all its records begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ScopeTag(pub [u8; 16]);

impl fmt::Display for ScopeTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl fmt::Display for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [b':'; 45];
        let (scope, key) = text.split_at_mut(22);
        // 16 bytes are exactly 22 characters: the slices always fit.
        let _ = URL_SAFE_NO_PAD.encode_slice(&self.0[..16], scope);
        let _ = URL_SAFE_NO_PAD.encode_slice(&self.0[16..], &mut key[1..]);
        f.write_str(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RecordId({self})")
    }
}

/// A text that is no [`RecordId`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotARecordId;

impl fmt::Display for NotARecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("expected two words of 22 base64url characters with a colon between")
    }
}

impl std::error::Error for NotARecordId {}

impl FromStr for RecordId {
    type Err = NotARecordId;

    fn from_str(text: &str) -> Result<Self, NotARecordId> {
        let (scope, key) = text.split_once(':').ok_or(NotARecordId)?;
        let mut bytes = [0; 32];
        for (word, place) in [scope, key].into_iter().zip(bytes.chunks_mut(16)) {
            let read = URL_SAFE_NO_PAD.decode(word).map_err(|_| NotARecordId)?;
            if read.len() != place.len() {
                return Err(NotARecordId);
            }
            place.copy_from_slice(&read);
        }
        Ok(Self(bytes))
    }
}
