//! Keyed hashes over length-prefixed parts: what is stored tells nothing of what was hashed.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// HMAC-SHA-256 under one purpose, its key schedule done once.
#[derive(Clone)]
pub(super) struct Keyed(Option<Hmac<Sha256>>);

impl Keyed {
    /// Derives a key of its own for `purpose` from the layer's secret.
    pub(super) fn new(secret: &[u8; 32], purpose: &[u8]) -> Self {
        // HMAC takes keys of any length; both calls always succeed.
        let subkey = Hmac::<Sha256>::new_from_slice(secret).ok().map(|mut mac| {
            mac.update(b"tower-keep idempotency ");
            mac.update(purpose);
            mac.finalize().into_bytes()
        });
        Self(subkey.and_then(|subkey| Hmac::new_from_slice(&subkey).ok()))
    }

    /// Starts a hash.
    pub(super) fn start(&self) -> Hasher {
        Hasher {
            mac: self.0.clone(),
            waiting: [0; TOGETHER],
            length: 0,
        }
    }
}

/// Takes in the parts of one hash.
pub(super) struct Hasher {
    mac: Option<Hmac<Sha256>>,
    /// Short parts go into the hash together: each update costs more than its bytes.
    waiting: [u8; TOGETHER],
    length: usize,
}

/// So many bytes wait before they are hashed.
const TOGETHER: usize = 192;

impl Hasher {
    /// Takes in bytes behind their length: no two lists of parts look the same.
    pub(super) fn part(&mut self, bytes: &[u8]) -> &mut Self {
        self.number(bytes.len() as u64).raw(bytes)
    }

    /// Takes in a number, seven bits a byte: no spelling begins another.
    pub(super) fn number(&mut self, mut number: u64) -> &mut Self {
        let mut spelled = [0; 10];
        let mut length = 0;
        while number >= 0x80 {
            spelled[length] = (number & 0x7F) as u8 | 0x80;
            number >>= 7;
            length += 1;
        }
        spelled[length] = number as u8;
        self.raw(&spelled[..=length])
    }

    fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        let end = self.length + bytes.len();
        if let Some(place) = self.waiting.get_mut(self.length..end) {
            place.copy_from_slice(bytes);
            self.length = end;
        } else {
            self.flush(bytes);
        }
        self
    }

    /// Hashes what waits, then `more`.
    fn flush(&mut self, more: &[u8]) {
        if let Some(mac) = &mut self.mac {
            mac.update(&self.waiting[..self.length]);
            mac.update(more);
        }
        self.length = 0;
    }

    /// Returns the hash.
    pub(super) fn finish(&mut self) -> [u8; 32] {
        self.flush(&[]);
        self.mac
            .take()
            .map_or([0; 32], |mac| mac.finalize().into_bytes().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn only_equal_lists_of_parts_hash_alike(a in prop::collection::vec(".{0,6}", 0..4), b in prop::collection::vec(".{0,6}", 0..4)) {
            let keyed = Keyed::new(&[7; 32], b"test");
            let hash = |parts: &[String]| {
                let mut hasher = keyed.start();
                parts.iter().for_each(|part| { hasher.part(part.as_bytes()); });
                hasher.finish()
            };
            prop_assert_eq!(a == b, hash(&a) == hash(&b));
        }
    }

    proptest! {
        /// Whatever waits, is flushed or goes around the buffer: the bytes are the same as in one piece.
        #[test]
        fn parts_of_any_length_are_hashed_in_their_order(lengths in prop::collection::vec(0_usize..500, 0..6)) {
            let keyed = Keyed::new(&[7; 32], b"test");
            let (mut hasher, mut whole) = (keyed.start(), Vec::new());
            for (n, length) in lengths.into_iter().enumerate() {
                let part = vec![n as u8; length];
                hasher.part(&part);
                if length < 128 {
                    whole.push(length as u8);
                } else {
                    whole.extend([length as u8 | 0x80, (length >> 7) as u8]);
                }
                whole.extend(part);
            }
            let mut mac = keyed.0.unwrap();
            mac.update(&whole);
            let expected: [u8; 32] = mac.finalize().into_bytes().into();
            prop_assert_eq!(hasher.finish(), expected);
        }
    }

    #[test]
    fn purposes_and_secrets_are_apart() {
        let hash = |secret, purpose: &[u8]| Keyed::new(secret, purpose).start().finish();
        assert_ne!(hash(&[1; 32], b"a"), hash(&[1; 32], b"b"));
        assert_ne!(hash(&[1; 32], b"a"), hash(&[2; 32], b"a"));
        assert_ne!(hash(&[1; 32], b"a"), [0; 32]);
    }
}
