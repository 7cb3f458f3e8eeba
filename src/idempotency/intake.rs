//! What comes in: a request whose body was read, or streams under its digest.

use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, Request};
use http_body::Body as HttpBody;

use super::answer::owned_body;
use super::config::Config;
use super::digest::{self, Digest, Upload};
use super::gather::{End, Gathered, is_larger};
use super::rejection::RejectionCause;
use crate::core::Body;

/// A request whose body is read, in a box of its own: it moves through many hands.
#[derive(Clone)]
pub(super) struct Gist {
    pub(super) parts: Parts,
    pub(super) bytes: Bytes,
    pub(super) trailers: Option<HeaderMap>,
}

impl Gist {
    pub(super) fn of(parts: Parts) -> Box<Self> {
        Box::new(Self {
            parts,
            bytes: Bytes::new(),
            trailers: None,
        })
    }

    /// Takes in the body.
    pub(super) fn fill(&mut self, (bytes, trailers): Whole) {
        (self.bytes, self.trailers) = (bytes, trailers);
    }

    pub(super) fn request<B>(self: Box<Self>) -> Request<Body<B>> {
        let Self {
            parts,
            bytes,
            trailers,
        } = *self;
        Request::from_parts(parts, owned_body(bytes, trailers))
    }
}

/// A body and its trailers.
pub(super) type Whole = (Bytes, Option<HeaderMap>);

/// The body of a request that streams under its digest; its gist has none.
pub(super) struct Stream<B> {
    pub(super) body: Body<B>,
    pub(super) upload: Arc<Upload>,
}

/// Reads a body, up to the limit.
pub(super) async fn read<B>(config: &Config, body: Pin<&mut B>) -> Result<Whole, RejectionCause>
where
    B: HttpBody<Data = Bytes> + 'static,
{
    let most = config.max_request_body;
    if is_larger(&*body, most) {
        return Err(RejectionCause::BodyTooLarge(most));
    }
    let mut gathered = Gathered::default();
    match gathered.fill(body, most).await {
        End::Whole => Ok(gathered.finish()),
        End::TooLarge => Err(RejectionCause::BodyTooLarge(most)),
        End::OverLimit => Err(RejectionCause::BodyOverLimit),
        End::Failed => Err(RejectionCause::BodyUnreadable),
    }
}

/// Reads what says what it is: checked where it fits, else on its way.
pub(super) async fn read_upload<B>(
    config: &Config,
    mut body: Pin<Box<B>>,
    said: Digest,
) -> Result<(Whole, Option<Box<Stream<B>>>), RejectionCause>
where
    B: HttpBody<Data = Bytes> + Send + 'static,
{
    let most = config.max_request_body;
    let mut gathered = Gathered::default();
    let end = if is_larger(&body, most) {
        End::TooLarge
    } else {
        gathered.fill(body.as_mut(), most).await
    };
    let (bytes, trailers) = gathered.finish();
    match end {
        End::Whole if said.fits(&bytes) => Ok(((bytes, trailers), None)),
        End::Whole => Err(RejectionCause::DigestMismatch),
        End::OverLimit => Err(RejectionCause::BodyOverLimit),
        End::Failed => Err(RejectionCause::BodyUnreadable),
        End::TooLarge if !config.may_stream() => Err(RejectionCause::BodyTooLarge(most)),
        End::TooLarge => {
            let upload = Arc::default();
            let body = digest::checked(bytes, body, said, &upload);
            let stream = Box::new(Stream { body, upload });
            Ok(((Bytes::new(), None), Some(stream)))
        }
    }
}
