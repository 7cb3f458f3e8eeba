//! Counts that threads do not pass to and fro: each thread has a place of its own, and a sum is read over all.

use std::sync::atomic::{AtomicUsize, Ordering};

pub(crate) const STRIPES: usize = 8;

/// Returns this thread's place, below [`STRIPES`].
pub(crate) fn own_stripe() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local!(static OWN: usize = NEXT.fetch_add(1, Ordering::Relaxed) % STRIPES);
    OWN.with(|own| *own)
}

/// Several `T` on cache lines of their own; a thread always finds the same one.
#[derive(Debug, Default)]
pub(crate) struct Stripes<T>([Line<T>; STRIPES]);

#[derive(Debug, Default)]
#[repr(align(128))]
struct Line<T>(T);

impl<T> Stripes<T> {
    /// Returns this thread's.
    pub(crate) fn own(&self) -> &T {
        &self.0[own_stripe()].0
    }

    /// Returns all.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|line| &line.0)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;

    #[test]
    fn what_many_threads_count_adds_up() {
        let counts: Stripes<AtomicU64> = Stripes::default();
        std::thread::scope(|scope| {
            for _ in 0..2 * STRIPES {
                scope.spawn(|| {
                    for _ in 0..100 {
                        counts.own().fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        let sum: u64 = counts
            .iter()
            .map(|count| count.load(Ordering::Relaxed))
            .sum();
        assert_eq!(sum, 200 * STRIPES as u64);
        assert!(std::ptr::eq(counts.own(), counts.own()));
    }
}
