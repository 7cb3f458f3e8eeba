//! Work that is carried to its end, whoever waits for it.

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::runtime::Handle;

type Work<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Work that goes on in a task when it is dropped before its end.
#[must_use]
pub(crate) struct Carried<T> {
    /// None once it has ended, or has panicked.
    work: Option<Work<T>>,
    runtime: Handle,
    /// Here the answer is known to be one that a task may have.
    go_on: fn(Work<T>, &Handle),
}

impl<T: Send + 'static> Carried<T> {
    pub(crate) fn new(work: impl Future<Output = T> + Send + 'static) -> Self {
        Self {
            work: Some(Box::pin(work)),
            runtime: Handle::current(),
            go_on: |work, runtime| drop(runtime.spawn(work)),
        }
    }
}

impl<T> Future for Carried<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let Some(mut work) = self.work.take() else {
            return Poll::Pending;
        };
        let polled = work.as_mut().poll(context);
        if polled.is_pending() {
            self.work = Some(work);
        }
        polled
    }
}

impl<T> Drop for Carried<T> {
    fn drop(&mut self) {
        if let Some(work) = self.work.take() {
            let _context = self.runtime.enter();
            (self.go_on)(work, &self.runtime);
        }
    }
}
