//! Response bodies: passed through, stored bytes, or pulled by a task that stores them while they are read.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use pin_project_lite::pin_project;

use super::feed::Reader;
use crate::core::owned_size;

/// Any error.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

pin_project! {
    /// The body of an answer that went through the cache.
    ///
    /// A body that is not stored is the inner service's own, untouched. Dropping one that is being stored
    /// does not stop the fetch: it ends within its size limit and 60 s, so that others find it stored.
    pub struct ResponseBody<R> {
        #[pin]
        inner: Inner<R>,
    }
}

pin_project! {
    #[project = InnerProj]
    enum Inner<R> {
        Pass { #[pin] body: R },
        Owned { data: Option<Bytes>, trailers: Option<Box<HeaderMap>> },
        Fed { reader: Reader<R> },
    }
}

impl<R> ResponseBody<R> {
    pub(super) const fn pass(body: R) -> Self {
        Self {
            inner: Inner::Pass { body },
        }
    }

    pub(super) fn bytes(data: Bytes, trailers: Option<Box<HeaderMap>>) -> Self {
        let data = (!data.is_empty()).then_some(data);
        Self {
            inner: Inner::Owned { data, trailers },
        }
    }

    pub(super) fn empty() -> Self {
        Self::bytes(Bytes::new(), None)
    }

    pub(super) const fn fed(reader: Reader<R>) -> Self {
        Self {
            inner: Inner::Fed { reader },
        }
    }
}

/// Empty, as the answers that a layer outside makes itself: to a preflight, at a timeout.
impl<R> Default for ResponseBody<R> {
    fn default() -> Self {
        Self::empty()
    }
}

impl<R> http_body::Body for ResponseBody<R>
where
    R: http_body::Body<Data = Bytes>,
    R::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.project().inner.project() {
            InnerProj::Pass { body } => body.poll_frame(cx).map_err(Into::into),
            InnerProj::Owned { data, trailers } => Poll::Ready(
                data.take()
                    .map(Frame::data)
                    .or_else(|| trailers.take().map(|fields| Frame::trailers(*fields)))
                    .map(Ok),
            ),
            InnerProj::Fed { reader } => reader.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            Inner::Pass { body } => body.is_end_stream(),
            Inner::Owned { data, trailers } => data.is_none() && trailers.is_none(),
            Inner::Fed { reader } => reader.is_over(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Inner::Pass { body } => body.size_hint(),
            Inner::Owned { data, trailers } => owned_size(data.as_ref(), trailers.is_some()),
            Inner::Fed { reader } => reader.size_hint(),
        }
    }
}

impl<R> fmt::Debug for ResponseBody<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.inner {
            Inner::Pass { .. } => "pass",
            Inner::Owned { .. } => "stored",
            Inner::Fed { .. } => "fed",
        };
        f.debug_tuple("ResponseBody").field(&kind).finish()
    }
}
