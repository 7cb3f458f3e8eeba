//! Test suites that any store can be held against.

pub mod cache;
pub mod counter;
pub mod idempotency;
pub mod lock;
pub mod once;
pub mod queue;

pub mod rate_limit;
pub mod reservation;
pub mod response_cache;
pub mod session;
pub mod topic;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Semaphore;

use crate::core::{Notice, NoticeCallback};

/// Adds a permit for each notice, but for the first word that there will be some.
fn bell(told: &Arc<Semaphore>) -> NoticeCallback {
    let (told, greeted) = (Arc::clone(told), AtomicBool::new(false));
    Arc::new(move |notice| {
        let is_greeting = notice == Notice::Restored && !greeted.swap(true, Ordering::SeqCst);
        if !is_greeting && notice != Notice::Lost {
            told.add_permits(1);
        }
    })
}

/// Numbers that are the same for the same seed (SplitMix64).
struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    /// Draws from `0..bound`.
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % bound
    }
}
