//! Keys of entries: seeded 128-bit hashes, so that no identity is kept and no client can flood a shard.

use std::hash::Hasher as _;

use siphasher::sip128::{Hasher128, SipHasher13};

/// The key of one entry: 128 bits of SipHash under this store's own random seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EntryKey {
    pub(super) shard: u64,
    pub(super) row: u64,
}

impl EntryKey {
    /// Makes the key from 128 bits that are a seeded hash already: nobody outside can have chosen them.
    #[must_use]
    pub const fn from_hash(hash: [u8; 16]) -> Self {
        let bits = u128::from_le_bytes(hash);
        Self {
            shard: bits as u64,
            row: (bits >> 64) as u64,
        }
    }

    /// Spreads keys evenly over `0..classes`, the same key always to the same number.
    #[must_use]
    pub fn spread(self, classes: u64) -> u64 {
        self.shard.checked_rem(classes).unwrap_or(0)
    }
}

/// Takes in the parts of a key, each with its length, so that different parts never look the same.
#[derive(Clone, Copy, Debug)]
pub struct KeyHasher {
    sip: SipHasher13,
}

impl KeyHasher {
    pub(super) fn new(seed: (u64, u64)) -> Self {
        Self {
            sip: SipHasher13::new_with_keys(seed.0, seed.1),
        }
    }

    /// Takes in bytes of any length.
    pub fn part(&mut self, bytes: &[u8]) {
        self.sip.write_u64(bytes.len() as u64);
        self.sip.write(bytes);
    }

    /// Takes in a number.
    pub fn num(&mut self, number: u64) {
        self.sip.write_u64(number);
    }

    pub(super) fn finish(self) -> EntryKey {
        let hash = self.sip.finish128();
        EntryKey {
            shard: hash.h1,
            row: hash.h2,
        }
    }
}
