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
        Hasher(self.0.clone())
    }
}

/// Takes in the parts of one hash.
pub(super) struct Hasher(Option<Hmac<Sha256>>);

impl Hasher {
    /// Takes in bytes behind their length: no two lists of parts look the same.
    pub(super) fn part(&mut self, bytes: &[u8]) -> &mut Self {
        self.number(bytes.len() as u64).raw(bytes)
    }

    /// Takes in a number.
    pub(super) fn number(&mut self, number: u64) -> &mut Self {
        self.raw(&number.to_be_bytes())
    }

    fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        if let Some(mac) = &mut self.0 {
            mac.update(bytes);
        }
        self
    }

    /// Returns the hash.
    pub(super) fn finish(self) -> [u8; 32] {
        self.0
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

    #[test]
    fn purposes_and_secrets_are_apart() {
        let hash = |secret, purpose: &[u8]| Keyed::new(secret, purpose).start().finish();
        assert_ne!(hash(&[1; 32], b"a"), hash(&[1; 32], b"b"));
        assert_ne!(hash(&[1; 32], b"a"), hash(&[2; 32], b"a"));
        assert_ne!(hash(&[1; 32], b"a"), [0; 32]);
    }
}
