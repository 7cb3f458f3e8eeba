//! Names for owners: no two claims have the same.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use super::record::Nonce;

/// Draws a nonce: a random start for each process, then a count.
pub(super) fn draw_nonce() -> Nonce {
    static START: LazyLock<[u8; 16]> = LazyLock::new(random_start);
    static DRAWN: AtomicU64 = AtomicU64::new(0);
    let drawn = u128::from(DRAWN.fetch_add(1, Ordering::Relaxed));
    Nonce(
        u128::from_be_bytes(*START)
            .wrapping_add(drawn)
            .to_be_bytes(),
    )
}

fn random_start() -> [u8; 16] {
    use std::hash::{BuildHasher, RandomState};
    let mut start = [0; 16];
    if getrandom::fill(&mut start).is_err() {
        // The standard library seeds these from the system too, and cannot fail.
        start[..8].copy_from_slice(&RandomState::new().hash_one(1).to_be_bytes());
        start[8..].copy_from_slice(&RandomState::new().hash_one(2).to_be_bytes());
    }
    start
}
