//! Digests of request bodies (RFC 9530): an upload is known by what it says it is, and held to it.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::CONTENT_RANGE;
use http::{HeaderMap, HeaderName};
use http_body::{Body as HttpBody, Frame, SizeHint};
use sfv::{BareItem, Dictionary, ListEntry, Parser};
use sha2::{Digest as _, Sha256, Sha512};
use tokio::sync::Notify;

use super::mac::Hasher;
use crate::core::{Body, Followed};

const CONTENT_DIGEST: HeaderName = HeaderName::from_static("content-digest");
const REPR_DIGEST: HeaderName = HeaderName::from_static("repr-digest");

/// What a body says it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Digest {
    Sha256([u8; 32]),
    Sha512(Box<[u8; 64]>),
}

impl Digest {
    /// Reads `Content-Digest`, else `Repr-Digest` of a whole representation; `None` where neither says a digest that is
    /// known here. Of two the longer one is taken.
    pub(super) fn of(fields: &HeaderMap) -> Option<Self> {
        let of_whole = || {
            let is_part = fields.contains_key(CONTENT_RANGE);
            Self::read(fields, &REPR_DIGEST).filter(|_| !is_part)
        };
        Self::read(fields, &CONTENT_DIGEST).or_else(of_whole)
    }

    fn read(fields: &HeaderMap, name: &HeaderName) -> Option<Self> {
        let lines = fields.get_all(name).iter().map(|line| line.as_bytes());
        let lines: Vec<&[u8]> = lines.collect();
        if lines.is_empty() {
            return None;
        }
        let members: Dictionary = Parser::new(&lines.join(&b", "[..])).parse().ok()?;
        let value = |name: &str| match members.get(name)? {
            ListEntry::Item(item) => match &item.bare_item {
                BareItem::ByteSequence(bytes) => Some(bytes.clone()),
                _ => None,
            },
            ListEntry::InnerList(_) => None,
        };
        let long =
            value("sha-512").and_then(|bytes| Some(Self::Sha512(Box::new(bytes.try_into().ok()?))));
        long.or_else(|| Some(Self::Sha256(value("sha-256")?.try_into().ok()?)))
    }

    /// Takes the digest in, in the place of a body.
    pub(super) fn put(&self, hasher: &mut Hasher) {
        match self {
            Self::Sha256(value) => hasher.number(1).part(value),
            Self::Sha512(value) => hasher.number(2).part(&value[..]),
        };
    }

    /// Says whether `body` is what was said.
    pub(super) fn fits(&self, body: &[u8]) -> bool {
        let mut sum = Sum::of(self);
        sum.add(body);
        sum.is(self)
    }
}

/// A digest under way.
enum Sum {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Sum {
    fn of(digest: &Digest) -> Self {
        match digest {
            Digest::Sha256(_) => Self::Sha256(Sha256::new()),
            Digest::Sha512(_) => Self::Sha512(Sha512::new()),
        }
    }

    fn add(&mut self, data: &[u8]) {
        match self {
            Self::Sha256(sum) => sum.update(data),
            Self::Sha512(sum) => sum.update(data),
        }
    }

    fn is(self, digest: &Digest) -> bool {
        match (self, digest) {
            (Self::Sha256(sum), Digest::Sha256(said)) => sum.finalize()[..] == said[..],
            (Self::Sha512(sum), Digest::Sha512(said)) => sum.finalize()[..] == said[..],
            _ => false,
        }
    }
}

/// How an upload went, told by its body to its run.
#[derive(Debug, Default)]
pub(super) struct Upload {
    state: AtomicU8,
    told: Notify,
}

const OPEN: u8 = 0;
const WRONG: u8 = 1;
const BROKEN: u8 = 2;
const CLOSED: u8 = 3;

impl Upload {
    /// Waits until the body turned out to be another than it said; for ever where it does not.
    pub(super) async fn wrong(&self) {
        while self.state.load(Ordering::Acquire) != WRONG {
            // A permit is kept: nothing is lost between the look and the wait.
            self.told.notified().await;
        }
    }

    /// The handler is done: what comes of the body from now on ends it, and drops nobody.
    pub(super) fn close(&self) -> Seen {
        match self.state.swap(CLOSED, Ordering::AcqRel) {
            WRONG => Seen::Wrong,
            BROKEN => Seen::Broken,
            _ => Seen::NoFault,
        }
    }

    /// Says whether somebody still listens.
    fn tell(&self, state: u8) -> bool {
        let told = self
            .state
            .compare_exchange(OPEN, state, Ordering::AcqRel, Ordering::Acquire)
            .is_ok();
        self.told.notify_one();
        told
    }
}

/// What became of an upload until its handler was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    NoFault,
    /// It is another than it said.
    Wrong,
    /// The client broke off.
    Broken,
}

/// Makes the body of an upload too large to be read first: it is checked while it passes.
///
/// Its last frame is held back until the digest is known. A wrong body never ends: its run is dropped instead, so that no
/// handler takes it for whole. Only where the handler is already done does it end, without that frame.
pub(super) fn checked<B>(
    head: Bytes,
    body: Pin<Box<B>>,
    said: Digest,
    upload: &Arc<Upload>,
) -> Body<B>
where
    B: HttpBody<Data = Bytes> + Send + 'static,
{
    let mut sum = Sum::of(&said);
    sum.add(&head);
    Body::followed(Checked {
        held: (!head.is_empty()).then(|| Frame::data(head)),
        body,
        check: Some((sum, said)),
        is_over: false,
        upload: Arc::clone(upload),
    })
}

struct Checked<B> {
    held: Option<Frame<Bytes>>,
    body: Pin<Box<B>>,
    /// Nothing once the end was seen.
    check: Option<(Sum, Digest)>,
    is_over: bool,
    upload: Arc<Upload>,
}

impl<B> Followed<B> for Checked<B> {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>>
    where
        B: HttpBody<Data = Bytes>,
    {
        loop {
            if self.is_over {
                return Poll::Ready(self.held.take().map(Ok));
            }
            let Some((sum, _)) = &mut self.check else {
                return Poll::Pending;
            };
            match ready!(self.body.as_mut().poll_frame(cx)) {
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        sum.add(data);
                    }
                    if let Some(ready) = self.held.replace(frame) {
                        return Poll::Ready(Some(Ok(ready)));
                    }
                }
                Some(Err(error)) => {
                    self.upload.tell(BROKEN);
                    (self.is_over, self.held) = (true, None);
                    return Poll::Ready(Some(Err(error)));
                }
                None => {
                    let fits = self.check.take().is_some_and(|(sum, said)| sum.is(&said));
                    if !fits && self.upload.tell(WRONG) {
                        return Poll::Pending;
                    }
                    self.is_over = true;
                    if !fits {
                        self.held = None;
                    }
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.is_over && self.held.is_none()
    }

    fn size_hint(&self) -> SizeHint
    where
        B: HttpBody<Data = Bytes>,
    {
        let held = self
            .held
            .as_ref()
            .and_then(Frame::data_ref)
            .map_or(0, Bytes::len) as u64;
        let rest = self.body.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(held));
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper.saturating_add(held));
        }
        hint
    }
}

#[cfg(test)]
mod tests;
