//! What every store method returns: a future without lifetime that is already known, or boxed.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

#[cfg(any(feature = "sqlite", feature = "postgres"))]
use super::carried::Carried;
use super::store_error::StoreError;

/// The answer of a store: already known (memory: no box, no wake) or on its way (boxed).
///
/// Dropping it drops the boxed future; what that leaves behind is said by the store method.
#[must_use = "futures do nothing unless polled"]
pub struct StoreFuture<T> {
    inner: Inner<T>,
}

enum Inner<T> {
    Ready(Option<Result<T, StoreError>>),
    Boxed(Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send>>),
    #[cfg(any(feature = "sqlite", feature = "postgres"))]
    Carried(Carried<Result<T, StoreError>>),
}

impl<T> StoreFuture<T> {
    /// Makes a future that is already known.
    #[inline]
    pub fn ready(answer: Result<T, StoreError>) -> Self {
        Self {
            inner: Inner::Ready(Some(answer)),
        }
    }

    /// Makes a future that is already known and good.
    #[inline]
    pub fn ok(answer: T) -> Self {
        Self::ready(Ok(answer))
    }

    /// Boxes `future`.
    pub fn boxed(future: impl Future<Output = Result<T, StoreError>> + Send + 'static) -> Self {
        Self {
            inner: Inner::Boxed(Box::pin(future)),
        }
    }

    /// Makes a future that is carried to its end, dropped or not.
    #[cfg(any(feature = "sqlite", feature = "postgres"))]
    pub(crate) const fn carried(work: Carried<Result<T, StoreError>>) -> Self {
        Self {
            inner: Inner::Carried(work),
        }
    }

    /// Takes the answer if it is already known, else gives the future back.
    ///
    /// # Errors
    /// The future itself, when it has to be polled.
    #[inline]
    pub fn try_now(self) -> Result<Result<T, StoreError>, Self> {
        match self.inner {
            Inner::Ready(Some(answer)) => Ok(answer),
            inner => Err(Self { inner }),
        }
    }

    /// Looks at a good answer that is already known, where it lies.
    #[inline]
    pub(crate) const fn known(&self) -> Option<&T> {
        match &self.inner {
            Inner::Ready(Some(Ok(answer))) => Some(answer),
            _ => None,
        }
    }

    /// Changes the answer, good or bad, once it is known.
    pub fn then<U>(
        self,
        change: impl FnOnce(Result<T, StoreError>) -> Result<U, StoreError> + Send + 'static,
    ) -> StoreFuture<U>
    where
        T: Send + 'static,
    {
        match self.try_now() {
            Ok(answer) => StoreFuture::ready(change(answer)),
            Err(later) => StoreFuture::boxed(async move { change(later.await) }),
        }
    }

    /// Changes a good answer once it is known.
    pub fn map<U>(self, change: impl FnOnce(T) -> U + Send + 'static) -> StoreFuture<U>
    where
        T: Send + 'static,
    {
        self.then(move |answer| answer.map(change))
    }
}

// No field is ever pinned structurally: a known answer is moved out, a boxed future pins itself.
impl<T> Unpin for StoreFuture<T> {}

impl<T> Future for StoreFuture<T> {
    type Output = Result<T, StoreError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.inner {
            // Polled again after its answer: pending for ever, as a fused future would be.
            Inner::Ready(answer) => answer.take().map_or(Poll::Pending, Poll::Ready),
            Inner::Boxed(future) => future.as_mut().poll(cx),
            #[cfg(any(feature = "sqlite", feature = "postgres"))]
            Inner::Carried(work) => Pin::new(work).poll(cx),
        }
    }
}

impl<T> fmt::Debug for StoreFuture<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.inner {
            Inner::Ready(_) => "ready",
            Inner::Boxed(_) => "boxed",
            #[cfg(any(feature = "sqlite", feature = "postgres"))]
            Inner::Carried(_) => "carried",
        };
        f.debug_tuple("StoreFuture").field(&state).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_known_answer_is_taken_without_a_poll_and_a_boxed_one_is_not() {
        assert_eq!(
            StoreFuture::ok(7)
                .map(|n| n + 1)
                .try_now()
                .unwrap()
                .unwrap(),
            8
        );
        let later = StoreFuture::boxed(async { Ok(7) });
        assert_eq!(
            later.try_now().unwrap_err().map(|n| n + 1).await.unwrap(),
            8
        );
    }

    #[test]
    fn it_is_send_whatever_it_carries() {
        fn check<T: Send>(_: &T) {}
        check(&StoreFuture::ok(1));
    }
}
