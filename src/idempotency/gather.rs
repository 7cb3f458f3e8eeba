//! Reading a body into memory, up to a bound; a body of one frame is not copied.

use std::any::Any;
use std::error::Error;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::Body;
use http_body_util::LengthLimitError;
use tokio::task::yield_now;

use super::extract::body_error;
use crate::core::FRAMES_AT_ONCE;

/// What was read so far.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    first: Bytes,
    rest: BytesMut,
    trailers: Option<Box<HeaderMap>>,
}

/// How reading ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Whole,
    /// More than the bound; what was read, the frame that went over included, is kept.
    TooLarge,
    /// A layer outside ended it, since it is larger than that one lets through.
    OverLimit,
    Failed,
}

impl Gathered {
    /// Reads on until the end, an error, or more than `most` bytes. Dropping this keeps what was read.
    ///
    /// A body that is shorter than it said broke off. Where it does not say itself that it is over, the server gets a
    /// turn before it counts as whole: over HTTP/2 a stream that was reset without an error looks like one that has
    /// ended, and the server drops the request only when it has to wait.
    pub(super) async fn fill<B>(&mut self, mut body: Pin<&mut B>, most: usize) -> End
    where
        B: Body<Data = Bytes> + 'static,
    {
        let least = body.size_hint().lower();
        let ended = |error: B::Error| {
            if is_over_limit(&error) {
                End::OverLimit
            } else {
                End::Failed
            }
        };
        let end = poll_fn(|cx| self.poll_frames(body.as_mut(), most, ended, cx)).await;
        if end == End::Whole {
            if (self.len() as u64) < least {
                return End::Failed;
            }
            if !body.is_end_stream() {
                yield_now().await;
            }
        }
        end
    }

    pub(super) fn poll_fill<B>(
        &mut self,
        body: Pin<&mut B>,
        most: usize,
        cx: &mut Context<'_>,
    ) -> Poll<End>
    where
        B: Body<Data = Bytes>,
    {
        self.poll_frames(body, most, |_| End::Failed, cx)
    }

    fn poll_frames<B>(
        &mut self,
        mut body: Pin<&mut B>,
        most: usize,
        ended: impl FnOnce(B::Error) -> End,
        cx: &mut Context<'_>,
    ) -> Poll<End>
    where
        B: Body<Data = Bytes>,
    {
        for _ in 0..FRAMES_AT_ONCE {
            let frame = match ready!(body.as_mut().poll_frame(cx)) {
                Some(Ok(frame)) => frame,
                Some(Err(error)) => return Poll::Ready(ended(error)),
                None => return Poll::Ready(End::Whole),
            };
            match frame.into_data() {
                Ok(data) if self.first.is_empty() => self.first = data,
                Ok(data) => self.append(&data),
                Err(frame) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        self.trailers = Some(Box::new(trailers));
                    }
                }
            }
            if self.len() > most {
                return Poll::Ready(End::TooLarge);
            }
            if body.is_end_stream() {
                return Poll::Ready(End::Whole);
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn append(&mut self, data: &[u8]) {
        if self.rest.is_empty() && !data.is_empty() {
            self.rest.reserve(self.first.len() + data.len());
            self.rest.extend_from_slice(&self.first);
        }
        self.rest.extend_from_slice(data);
    }

    fn len(&self) -> usize {
        self.first.len().max(self.rest.len())
    }

    /// Returns what was read.
    pub(super) fn finish(self) -> (Bytes, Option<HeaderMap>) {
        let bytes = if self.rest.is_empty() {
            self.first
        } else {
            self.rest.freeze()
        };
        (bytes, self.trailers.map(|trailers| *trailers))
    }
}

/// Says whether a body ended in the error of tower-http's and axum's limits, however it is wrapped.
fn is_over_limit(error: &dyn Any) -> bool {
    let boxed = error.downcast_ref::<Box<dyn Error + Send + Sync>>();
    let own = error.downcast_ref::<LengthLimitError>();
    let mut cause = boxed
        .map(|error| &**error as &(dyn Error + 'static))
        .or(own.map(|error| error as _))
        .or_else(|| body_error(error));
    while let Some(error) = cause {
        if error.is::<LengthLimitError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Says whether a body is larger than `most` for certain.
pub(super) fn is_larger(body: &impl Body, most: usize) -> bool {
    body.size_hint().lower() > most as u64
}
