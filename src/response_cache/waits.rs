//! Waiting for a lease that another process has: until it is told, or for a little longer each time.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::key;
use super::store::Hash128;

/// The first waits for somebody else's lease; the last one repeats.
const WAITS: [u64; 4] = [25, 50, 100, 200];

/// Who waits for which key, as the shared store names it.
#[derive(Default)]
pub(super) struct Filled(Mutex<Vec<(Hash128, Arc<Notify>)>>);

impl Filled {
    /// Wakes who waits for `primary`: its lease was dropped.
    pub(super) fn wake(&self, primary: Hash128) {
        for (own, told) in &*self.0.lock() {
            if *own == primary {
                told.notify_one();
            }
        }
    }

    /// Waits from now on; what is told between two waits is not missed.
    pub(super) fn wait_for(&self, primary: Hash128) -> Wait<'_> {
        let told = Arc::<Notify>::default();
        self.0.lock().push((primary, Arc::clone(&told)));
        Wait {
            among: self,
            told,
            waited: 0,
        }
    }
}

/// One leader's place among those who wait; free again when it is dropped.
pub(super) struct Wait<'a> {
    among: &'a Filled,
    told: Arc<Notify>,
    waited: usize,
}

impl Wait<'_> {
    /// Waits until it is told, a little longer each time, never past the lease's end, and not all at once.
    pub(super) async fn next(&mut self, left: Duration) {
        let base = WAITS[self.waited.min(WAITS.len() - 1)];
        let jitter = 80 + key::random() % 41;
        let longest = Duration::from_micros(base * 10 * jitter);
        self.waited += 1;
        let _ = timeout(
            longest.min(left.max(Duration::from_millis(1))),
            self.told.notified(),
        )
        .await;
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        self.among
            .0
            .lock()
            .retain(|(_, told)| !Arc::ptr_eq(told, &self.told));
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, advance};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_waits_is_woken_for_its_own_key_and_else_looks_again_ever_less_often() {
        let filled = Filled::default();
        let (own, other) = (Hash128([1; 16]), Hash128([2; 16]));
        let mut wait = filled.wait_for(own);
        let long = Duration::from_secs(5);
        let started = Instant::now();
        filled.wake(own);
        wait.next(long).await;
        assert_eq!(
            started.elapsed(),
            Duration::ZERO,
            "told before it waited again"
        );
        filled.wake(other);
        wait.next(long).await;
        let first = started.elapsed();
        assert!((40..=60).contains(&first.as_millis()), "{first:?}");
        wait.next(Duration::from_millis(3)).await;
        assert_eq!(
            (started.elapsed() - first).as_millis(),
            3,
            "not past the lease"
        );
        advance(Duration::from_millis(1)).await;
        drop(wait);
        assert!(filled.0.lock().is_empty());
    }
}
