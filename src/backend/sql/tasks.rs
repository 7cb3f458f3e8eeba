//! The work that must end before the handle may: begins, endings, and what follows them.
//!
//! Such work must not stop half way when whoever waits for it goes away (a client that hangs up drops the
//! request's future). A task for each would do, but costs two changes of thread on every request; so it runs
//! where it is awaited, and only what is dropped half way goes on in a task.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::runtime::Handle;
use tokio::sync::Notify;

use crate::core::Carried;

/// Counts the work under way, and wakes who waits for the last.
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
    /// Runs `work` in a task of its own.
    pub(super) fn spawn(&self, runtime: &Handle, work: impl Future<Output = ()> + Send + 'static) {
        let running = self.running();
        // If the runtime is gone the future is dropped right here, and sqlx's drops want its context.
        let _context = runtime.enter();
        runtime.spawn(async move {
            let _running = running;
            work.await;
        });
    }

    /// Carries `work` to its end: in the waiter while it waits, in a task from when it is dropped.
    pub(super) fn carry<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Carried<T> {
        let running = self.running();
        Carried::new(async move {
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

    fn running(&self) -> Running {
        self.inner.running.fetch_add(1, Ordering::SeqCst);
        Running(Arc::clone(&self.inner))
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

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::Poll;
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn what_is_dropped_half_way_is_carried_to_its_end() {
        let tasks = Tasks::default();
        let (go, gone) = tokio::sync::oneshot::channel::<()>();
        let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
        let mut work = tasks.carry(async move {
            gone.await.unwrap();
            told.send(()).unwrap();
        });
        let polled = std::future::poll_fn(|context| {
            Poll::Ready(Pin::new(&mut work).poll(context).is_pending())
        });
        assert!(polled.await);
        drop(work);
        let waiting = tokio::time::timeout(Duration::from_millis(20), tasks.idle());
        assert!(waiting.await.is_err(), "it is still under way");
        go.send(()).unwrap();
        assert_eq!(heard.recv().await, Some(()));
        tasks.idle().await;
    }

    #[tokio::test]
    async fn what_is_dropped_before_it_began_is_done_all_the_same() {
        let tasks = Tasks::default();
        let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
        drop(tasks.carry(async move { told.send(()).unwrap() }));
        assert_eq!(heard.recv().await, Some(()));
    }

    #[tokio::test]
    async fn what_ended_or_panicked_is_not_begun_again() {
        let tasks = Tasks::default();
        assert_eq!(tasks.carry(async { 7 }).await, 7);
        let panics = tokio::spawn(tasks.carry(async { panic!("on purpose") }));
        assert!(panics.await.unwrap_err().is_panic());
        tasks.idle().await;
    }
}
