//! A line to a store that can be cut or slowed down by order: what an application does in an outage can be tested
//! without an outage, on any engine.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use tower_keep::backend::fault::Faults;
//! use tower_keep::backend::health::StoreMode;
//!
//! let faults = Faults::default();
//! let store = tower_keep::store::builder("memory:").faults(&faults).open().await?;
//! faults.cut();
//! for _ in 0..5 {
//!     assert!(store.ping().await.is_err());
//! }
//! assert_eq!(store.mode(), StoreMode::Fallback);
//! # Ok(())
//! # }
//! ```

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::beside::Beside;
use super::health::{Probed, StoreHealth, StoreMode, StoreStats};
use crate::core::{Admission, Breaker, StoreError, StoreErrorKind, StoreFuture};

/// As long as a call may take before it counts as failed.
const LONGEST_CALL: Duration = Duration::from_millis(500);

/// What goes wrong on the line, by order; clones give orders for the same line.
#[derive(Clone, Debug, Default)]
pub struct Faults(Arc<Line>);

#[derive(Debug)]
struct Line {
    began: Instant,
    is_cut: AtomicBool,
    delay_ms: AtomicU64,
    calls: AtomicU64,
    errors: AtomicU64,
    refused: AtomicU64,
    breaker: Mutex<Breaker>,
    beside: Beside,
}

impl Default for Line {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            is_cut: AtomicBool::default(),
            delay_ms: AtomicU64::default(),
            calls: AtomicU64::default(),
            errors: AtomicU64::default(),
            refused: AtomicU64::default(),
            breaker: Mutex::default(),
            beside: Beside::default(),
        }
    }
}

impl Faults {
    /// Lets every call fail at once.
    pub fn cut(&self) {
        self.0.is_cut.store(true, Ordering::Relaxed);
    }

    /// Lets calls through again.
    pub fn mend(&self) {
        self.0.is_cut.store(false, Ordering::Relaxed);
    }

    /// Holds every answer back for that long, in real time: the call itself may be made at once, also where its caller
    /// leaves meanwhile. What would take longer than its time limit (500 ms where the layer sets none) is not made and fails.
    pub fn delay(&self, by: Duration) {
        let millis = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        self.0.delay_ms.store(millis, Ordering::Relaxed);
    }

    /// Returns how many calls were asked for.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.0.calls.load(Ordering::Relaxed)
    }

    /// Returns how many calls failed by order, those included that an open breaker refused.
    #[must_use]
    pub fn errors(&self) -> u64 {
        self.0.errors.load(Ordering::Relaxed) + self.0.refused.load(Ordering::Relaxed)
    }

    fn failed(&self, admission: Admission, kind: StoreErrorKind) -> StoreError {
        self.0.errors.fetch_add(1, Ordering::Relaxed);
        let mut breaker = self.0.breaker.lock();
        breaker.failed(admission, self.0.began.elapsed());
        StoreError::new(kind).retry_after(breaker.until_probe(self.0.began.elapsed()))
    }

    fn succeeded(&self) {
        self.0.breaker.lock().succeeded();
    }
}

/// A store behind a line that fails by order, with a breaker of its own as a remote store has.
#[derive(Clone)]
pub struct FaultStore<S> {
    inner: S,
    faults: Faults,
    longest_call: Duration,
}

impl<S> FaultStore<S> {
    /// Puts `inner` at the far end of a line.
    pub fn new(inner: S, faults: &Faults) -> Self {
        Self {
            inner,
            faults: faults.clone(),
            longest_call: LONGEST_CALL,
        }
    }

    pub(crate) const fn inner(&self) -> &S {
        &self.inner
    }

    /// Returns the one `T` that is kept beside this line.
    pub(crate) fn beside<T: Default + Send + Sync + 'static>(&self) -> Arc<T> {
        self.faults.0.beside.one(T::default)
    }

    /// The same line to another view of the store, with another time limit.
    pub(crate) fn over<T>(&self, inner: T, longest_call: Duration) -> FaultStore<T> {
        FaultStore {
            inner,
            faults: self.faults.clone(),
            longest_call,
        }
    }

    /// Makes a call, unless the line or the breaker forbids it.
    pub(crate) fn call<T: Send + 'static>(
        &self,
        call: impl FnOnce() -> StoreFuture<T>,
    ) -> StoreFuture<T> {
        let (faults, line) = (self.faults.clone(), &self.faults.0);
        line.calls.fetch_add(1, Ordering::Relaxed);
        let admission = line.breaker.lock().admit(line.began.elapsed());
        if let Admission::Refused(rest) = admission {
            line.refused.fetch_add(1, Ordering::Relaxed);
            let refused = StoreError::new(StoreErrorKind::Unavailable).retry_after(rest);
            return StoreFuture::ready(Err(refused));
        }
        if line.is_cut.load(Ordering::Relaxed) {
            return StoreFuture::ready(Err(faults.failed(admission, StoreErrorKind::Unavailable)));
        }
        let delay = Duration::from_millis(line.delay_ms.load(Ordering::Relaxed));
        if delay.is_zero() {
            faults.succeeded();
            return call();
        }
        let limit = self.longest_call;
        if delay >= limit {
            return StoreFuture::boxed(async move {
                tokio::time::sleep(limit).await;
                Err(faults.failed(admission, StoreErrorKind::TimedOut))
            });
        }
        let answer = call();
        StoreFuture::boxed(async move {
            tokio::time::sleep(delay).await;
            faults.succeeded();
            answer.await
        })
    }
}

impl<S: fmt::Debug> fmt::Debug for FaultStore<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultStore")
            .field("inner", &self.inner)
            .field("faults", &self.faults)
            .finish_non_exhaustive()
    }
}

impl<S: StoreHealth> StoreHealth for FaultStore<S> {
    fn mode(&self) -> StoreMode {
        self.inner.mode()
    }

    fn is_refusing(&self) -> bool {
        self.faults.0.breaker.lock().is_open() || self.inner.is_refusing()
    }

    fn ping(&self) -> StoreFuture<()> {
        self.call(|| self.inner.ping())
    }

    fn probe(&self) -> StoreFuture<Probed> {
        self.call(|| self.inner.probe())
    }

    fn stats(&self) -> StoreStats {
        let (stats, line) = (self.inner.stats(), &self.faults.0);
        let breaker_open = self.is_refusing();
        StoreStats {
            reachable: stats.reachable && !breaker_open && !line.is_cut.load(Ordering::Relaxed),
            errors: stats.errors + line.errors.load(Ordering::Relaxed),
            fallbacks: stats.fallbacks + line.refused.load(Ordering::Relaxed),
            breaker_open,
            ..stats
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::fallback::Fallback;
    use crate::backend::memory::MemoryStore;

    fn store(faults: &Faults) -> Fallback<FaultStore<MemoryStore>, MemoryStore> {
        let inner = FaultStore::new(MemoryStore::new(), faults);
        Fallback::new(inner, MemoryStore::new())
    }

    #[tokio::test(start_paused = true)]
    async fn five_calls_on_a_cut_line_open_the_breaker_and_a_probe_on_the_mended_one_closes_it() {
        let faults = Faults::default();
        let store = store(&faults);
        faults.cut();
        for _ in 0..5 {
            assert_eq!(store.mode(), StoreMode::Memory);
            assert!(store.ping().await.is_err());
        }
        assert_eq!(store.mode(), StoreMode::Fallback);
        faults.mend();
        assert!(
            store.ping().await.is_err(),
            "the pause of a second is not over"
        );
        assert_eq!((faults.calls(), faults.errors()), (6, 6));
        // The breaker's pause is real time.
        std::thread::sleep(Duration::from_millis(1_010));
        store.ping().await.unwrap();
        assert_eq!(store.mode(), StoreMode::Memory);
    }

    #[tokio::test]
    async fn a_call_on_a_slow_line_is_made_though_its_caller_leaves_and_one_on_a_dead_slow_line_is_not()
     {
        let faults = Faults::default();
        let line = FaultStore::new(MemoryStore::new(), &faults);
        let made = Arc::new(AtomicU64::new(0));
        let call = || {
            let made = Arc::clone(&made);
            line.call(move || StoreFuture::ready(Ok(made.fetch_add(1, Ordering::Relaxed))))
        };
        faults.delay(Duration::from_millis(200));
        drop(call());
        assert_eq!(made.load(Ordering::Relaxed), 1);
        faults.delay(Duration::from_secs(9));
        drop(call());
        assert_eq!(made.load(Ordering::Relaxed), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_line_delays_calls_and_one_that_is_too_slow_fails_them() {
        let faults = Faults::default();
        let store = store(&faults);
        let started = tokio::time::Instant::now();
        faults.delay(Duration::from_millis(200));
        store.ping().await.unwrap();
        assert_eq!(started.elapsed().as_millis(), 200);
        faults.delay(Duration::from_secs(9));
        let late = store.ping().await.unwrap_err();
        assert_eq!(late.kind(), StoreErrorKind::TimedOut);
        assert_eq!(started.elapsed().as_millis(), 700);
    }
}
