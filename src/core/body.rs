//! The body that layers hand on: somebody else's, untouched, or bytes of our own.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use parking_lot::Mutex;
use pin_project_lite::pin_project;

/// The most frames that are taken of a body in one turn: one that always has another lets others in between.
pub(crate) const FRAMES_AT_ONCE: usize = 1_024;

pin_project! {
    /// A request or response body: passed through as it came, or owned bytes with optional trailers.
    ///
    /// Passing through adds no allocation and asks nothing of `B` but `Data = Bytes`.
    #[derive(Debug)]
    pub struct Body<B> {
        #[pin]
        inner: Inner<B>,
    }
}

pin_project! {
    #[project = InnerProj]
    #[derive(Debug)]
    enum Inner<B> {
        Pass { #[pin] body: B },
        Owned { data: Option<Bytes>, trailers: Option<Box<HeaderMap>> },
        Resumed { head: Option<Bytes>, body: Pin<Box<B>> },
        // Never locked but for a look: a lock makes it as shareable as the others.
        Followed { body: Mutex<Box<dyn Followed<B> + Send>> },
    }
}

/// The size of owned bytes. It is not exact where trailers follow: HTTP/1.1 would say it in front, and then send no trailers.
pub(crate) fn owned_size(data: Option<&Bytes>, has_trailers: bool) -> SizeHint {
    let bytes = data.map_or(0, |data| data.len() as u64);
    if !has_trailers {
        return SizeHint::with_exact(bytes);
    }
    let mut hint = SizeHint::new();
    hint.set_lower(bytes);
    hint
}

/// A body that does more than pass while it is read. What happens when it is dropped is its own affair.
pub(crate) trait Followed<B> {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>>
    where
        B: http_body::Body<Data = Bytes>;

    fn is_end_stream(&self) -> bool
    where
        B: http_body::Body<Data = Bytes>;

    fn size_hint(&self) -> SizeHint
    where
        B: http_body::Body<Data = Bytes>;
}

impl<B> fmt::Debug for dyn Followed<B> + Send {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Followed(..)")
    }
}

impl<B> Body<B> {
    /// Passes `body` through.
    pub fn pass(body: B) -> Self {
        Self {
            inner: Inner::Pass { body },
        }
    }

    /// Makes a body of bytes.
    pub fn bytes(data: Bytes) -> Self {
        let data = (!data.is_empty()).then_some(data);
        Self {
            inner: Inner::Owned {
                data,
                trailers: None,
            },
        }
    }

    /// Makes a body that begins with bytes already taken from `body`, and goes on with the rest of it.
    pub fn resumed(head: Bytes, body: Pin<Box<B>>) -> Self {
        let head = (!head.is_empty()).then_some(head);
        Self {
            inner: Inner::Resumed { head, body },
        }
    }

    /// Makes a body that is followed while it passes.
    pub(crate) fn followed(body: impl Followed<B> + Send + 'static) -> Self {
        Self {
            inner: Inner::Followed {
                body: Mutex::new(Box::new(body)),
            },
        }
    }

    /// Makes an empty body.
    pub fn empty() -> Self {
        Self::bytes(Bytes::new())
    }

    /// Makes a body of bytes that ends with trailers.
    pub fn with_trailers(data: Bytes, trailers: HeaderMap) -> Self {
        let data = (!data.is_empty()).then_some(data);
        Self {
            inner: Inner::Owned {
                data,
                trailers: (!trailers.is_empty()).then(|| Box::new(trailers)),
            },
        }
    }
}

impl<B> From<Bytes> for Body<B> {
    fn from(data: Bytes) -> Self {
        Self::bytes(data)
    }
}

impl<B> Default for Body<B> {
    fn default() -> Self {
        Self::empty()
    }
}

impl<B: http_body::Body<Data = Bytes>> http_body::Body for Body<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        match self.project().inner.project() {
            InnerProj::Pass { body } => body.poll_frame(cx),
            InnerProj::Owned { data, trailers } => Poll::Ready(
                data.take()
                    .map(Frame::data)
                    .or_else(|| trailers.take().map(|fields| Frame::trailers(*fields)))
                    .map(Ok),
            ),
            InnerProj::Resumed { head, body } => match head.take() {
                Some(head) => Poll::Ready(Some(Ok(Frame::data(head)))),
                None => body.as_mut().poll_frame(cx),
            },
            InnerProj::Followed { body } => body.get_mut().poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            Inner::Pass { body } => body.is_end_stream(),
            Inner::Owned { data, trailers } => data.is_none() && trailers.is_none(),
            Inner::Resumed { head, body } => head.is_none() && body.is_end_stream(),
            Inner::Followed { body } => body.lock().is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Inner::Pass { body } => body.size_hint(),
            Inner::Owned { data, trailers } => owned_size(data.as_ref(), trailers.is_some()),
            Inner::Followed { body } => body.lock().size_hint(),
            Inner::Resumed { head, body } => {
                let (head, rest) = (head.as_ref().map_or(0, Bytes::len) as u64, body.size_hint());
                let mut hint = SizeHint::new();
                hint.set_lower(rest.lower().saturating_add(head));
                if let Some(upper) = rest.upper() {
                    hint.set_upper(upper.saturating_add(head));
                }
                hint
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body::Body as _;
    use http_body_util::{BodyExt, Full};

    use super::*;

    #[tokio::test]
    async fn owned_bytes_and_trailers_come_out_once_and_sizes_are_told() {
        let mut fields = HeaderMap::new();
        fields.insert("x-sum", http::HeaderValue::from_static("1"));
        let body: Body<Full<Bytes>> =
            Body::with_trailers(Bytes::from_static(b"abc"), fields.clone());
        assert_eq!(
            (body.size_hint().lower(), body.size_hint().exact()),
            (3, None)
        );
        let all = body.collect().await.unwrap();
        assert_eq!(all.trailers(), Some(&fields));
        assert_eq!(all.to_bytes(), "abc");
        assert!(Body::<Full<Bytes>>::empty().is_end_stream());
    }

    #[tokio::test]
    async fn a_resumed_body_gives_back_what_was_taken_from_it() {
        let rest = Box::pin(Full::new(Bytes::from_static(b"rest")));
        let body = Body::resumed(Bytes::from_static(b"head "), rest);
        assert_eq!(body.size_hint().exact(), Some(9));
        assert_eq!(body.collect().await.unwrap().to_bytes(), "head rest");
    }

    #[test]
    fn it_is_shared_between_threads_where_the_body_inside_is() {
        fn check<T: Send + Sync>() {}
        check::<Body<Full<Bytes>>>();
    }

    #[tokio::test]
    async fn a_passed_body_is_the_same_body() {
        let body = Body::pass(Full::new(Bytes::from_static(b"xy")));
        assert_eq!(
            (body.size_hint().exact(), body.is_end_stream()),
            (Some(2), false)
        );
        assert_eq!(body.collect().await.unwrap().to_bytes(), "xy");
    }
}
