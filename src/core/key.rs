//! Names of things in a store: segments that cannot forge one another, cut to a length, with a cluster hash tag.

use std::fmt::{self, Write};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};

/// A segment longer than this many bytes, once escaped, is replaced by its digest.
pub const LONGEST_SEGMENT: usize = 128;

/// Builds one key: `prefix:part:{tag}:segment…`.
///
/// Prefix and parts are ours; segments and tags are anybody's and are escaped, so that none can forge a
/// separator, a brace or a wildcard, and `a.b@x` never meets `a_b@x`. The tag is what Redis Cluster
/// hashes: keys that one step touches share it.
///
/// ```
/// use tower_keep::core::KeyBuilder;
///
/// let key = KeyBuilder::new("keep", "rl").tag(["payments", "u1"]).segment("user").segment("a:b").finish();
/// assert_eq!(key, "keep:rl:{payments:u1}:user:a%3Ab");
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct KeyBuilder {
    text: String,
}

impl KeyBuilder {
    /// Starts a key with the handle's prefix and the name of a part, both plain ASCII of ours.
    pub fn new(prefix: &str, part: &str) -> Self {
        let mut text = String::with_capacity(96);
        text.push_str(prefix);
        text.push(':');
        text.push_str(part);
        Self { text }
    }

    /// Appends a cluster hash tag made of one or several segments.
    pub fn tag<S: AsRef<str>>(mut self, segments: impl IntoIterator<Item = S>) -> Self {
        self.text.push_str(":{");
        for (index, segment) in segments.into_iter().enumerate() {
            if index > 0 {
                self.text.push(':');
            }
            escape_into(&mut self.text, segment.as_ref());
        }
        self.text.push('}');
        self
    }

    /// Appends a cluster hash tag that is escaped already.
    pub(super) fn whole_tag(mut self, tag: &str) -> Self {
        self.text.push_str(":{");
        self.text.push_str(tag);
        self.text.push('}');
        self
    }

    /// Appends one segment.
    pub fn segment(mut self, segment: impl AsRef<str>) -> Self {
        self.text.push(':');
        escape_into(&mut self.text, segment.as_ref());
        self
    }

    /// Appends what needs no escape: digests, numbers and names of ours.
    pub fn plain(mut self, segment: impl fmt::Display) -> Self {
        self.text.push(':');
        // Writing to a `String` cannot fail.
        let _ = write!(self.text, "{segment}");
        self
    }

    /// Returns the key.
    #[must_use]
    pub fn finish(self) -> String {
        self.text
    }
}

/// What escaped text is written to.
pub(super) trait Text {
    fn size(&self) -> usize;
    fn put(&mut self, text: &str);
    fn cut(&mut self, size: usize);
}

impl Text for String {
    fn size(&self) -> usize {
        self.len()
    }

    fn put(&mut self, text: &str) {
        self.push_str(text);
    }

    fn cut(&mut self, size: usize) {
        self.truncate(size);
    }
}

const fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'@' | b'/' | b'+' | b'=')
}

/// The bytes that need no escape.
static PLAIN: [bool; 256] = {
    let (mut plain, mut byte) = ([false; 256], 0);
    while byte < 256 {
        plain[byte] = is_plain(byte as u8);
        byte += 1;
    }
    plain
};

pub(super) fn escape_into(out: &mut impl Text, segment: &str) {
    const DIGITS: &str = "0123456789ABCDEF";
    let start = out.size();
    let mut rest = segment;
    // Runs of plain bytes go as they are; all others are escaped byte by byte.
    while let Some(at) = rest.bytes().position(|byte| !PLAIN[usize::from(byte)]) {
        let (plain, others) = rest.split_at(at);
        out.put(plain);
        let length = others.chars().next().map_or(0, char::len_utf8);
        let (strange, after) = others.split_at(length);
        for byte in strange.bytes() {
            let (high, low) = (usize::from(byte >> 4), usize::from(byte & 15));
            out.put("%");
            out.put(&DIGITS[high..=high]);
            out.put(&DIGITS[low..=low]);
        }
        rest = after;
    }
    out.put(rest);
    if out.size() - start > LONGEST_SEGMENT {
        out.cut(start);
        // `~` is escaped above, so that no short segment can look like a digest.
        out.put("~");
        out.put(&digest22(segment.as_bytes()));
    }
}

/// Returns SHA-256 of `bytes` cut to 128 bits, as 22 characters of base64url.
#[must_use]
pub fn digest22(bytes: &[u8]) -> String {
    base64url(&Sha256::digest(bytes)[..16])
}

/// Returns `bytes` as base64url without padding (RFC 4648 §5).
#[must_use]
pub fn base64url(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(segments: &[String]) -> String {
        segments
            .iter()
            .fold(KeyBuilder::new("keep", "x"), |key, segment| {
                key.segment(segment)
            })
            .finish()
    }

    proptest! {
        #[test]
        fn different_segments_make_different_keys(a in prop::collection::vec(".{0,40}", 0..4), b in prop::collection::vec(".{0,40}", 0..4)) {
            prop_assert_eq!(a == b, key(&a) == key(&b));
        }

        #[test]
        fn a_key_has_no_foreign_separator_and_is_short(segment in ".{0,4000}") {
            let key = key(std::slice::from_ref(&segment));
            prop_assert_eq!(key.matches(':').count(), 2);
            let foreign = key.contains(['{', '}', '*', '?', '[', ' ', '\n']);
            prop_assert!(!foreign);
            prop_assert!(key.len() <= "keep:x:".len() + LONGEST_SEGMENT);
        }
    }

    #[test]
    fn a_segment_cannot_pretend_to_be_a_digest() {
        let long = "x".repeat(200);
        let forged = format!("~{}", digest22(long.as_bytes()));
        assert_ne!(key(&[long]), key(&[forged]));
    }
}
