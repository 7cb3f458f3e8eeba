//! Reading a body into memory, up to a bound; a body of one frame is not copied.

use std::pin::Pin;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::Body;
use http_body_util::BodyExt;

/// What was read so far.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    first: Bytes,
    rest: BytesMut,
    trailers: Option<HeaderMap>,
}

/// How reading ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Whole,
    /// More than the bound; what was read, the frame that went over included, is kept.
    TooLarge,
    Failed,
}

impl Gathered {
    /// Reads on until the end, an error, or more than `most` bytes. Dropping this keeps what was read.
    pub(super) async fn fill<B>(&mut self, mut body: Pin<&mut B>, most: usize) -> End
    where
        B: Body<Data = Bytes>,
    {
        while let Some(frame) = body.as_mut().frame().await {
            let Ok(frame) = frame else {
                return End::Failed;
            };
            match frame.into_data() {
                Ok(data) if self.first.is_empty() => self.first = data,
                Ok(data) => self.append(&data),
                Err(frame) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        self.trailers = Some(trailers);
                    }
                }
            }
            if self.len() > most {
                return End::TooLarge;
            }
            if body.is_end_stream() {
                break;
            }
        }
        End::Whole
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
        (bytes, self.trailers)
    }
}

/// Says whether a body is larger than `most` for certain.
pub(super) fn is_larger(body: &impl Body, most: usize) -> bool {
    body.size_hint().lower() > most as u64
}
