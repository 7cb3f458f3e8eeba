//! The tasks that must end before the handle may: endings of transactions and the work after them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// Counts running tasks, and wakes who waits for the last.
#[derive(Clone, Debug, Default)]
pub(super) struct Tasks {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    running: AtomicUsize,
    idle: Notify,
}

impl Tasks {
    /// Runs `work` whatever happens to whoever waits for it.
    pub(super) fn spawn<T: Send + 'static>(
        &self,
        runtime: &tokio::runtime::Handle,
        work: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.inner.running.fetch_add(1, Ordering::SeqCst);
        let running = Running(Arc::clone(&self.inner));
        // If the runtime is gone the future is dropped right here, and sqlx's drops want its context.
        let _context = runtime.enter();
        runtime.spawn(async move {
            let _running = running;
            work.await
        })
    }

    /// Waits until none is running.
    pub(super) async fn idle(&self) {
        loop {
            let woken = self.inner.idle.notified();
            if self.inner.running.load(Ordering::SeqCst) == 0 {
                return;
            }
            woken.await;
        }
    }
}

struct Running(Arc<Inner>);

impl Drop for Running {
    fn drop(&mut self) {
        if self.0.running.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.idle.notify_waiters();
        }
    }
}
