//! An answer too large to be waited for: it is copied on its way out and kept once it is whole.
//!
//! Before its first byte leaves, a tombstone is stored: whatever breaks from then on, nothing runs twice.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::task::consume_budget;

use super::answer::{self, Verdict};
use super::config::Config;
use super::policy::{self, Directive};
use super::record::{
    Answer, AnswerContent, Fingerprint, Nonce, RecordId, StoredAnswer, TombstoneReason,
};
use super::run::{self, Ticket};
use super::running::{Active, Written};
use super::service::Shared;
use crate::core::telemetry::{count, warn};
use crate::core::{Body, Followed, IdempotencyOutcome};

/// Says for how long an answer is to be kept that is too large to be read first, and not too large to be copied.
pub(super) fn time_of<R: HttpBody>(config: &Config, response: &Response<R>) -> Option<Duration> {
    let size = usize::try_from(response.body().size_hint().exact()?).ok()?;
    if size <= config.max_response_body || size > config.tee_up_to {
        return None;
    }
    let (status, fields) = (response.status(), response.headers());
    match answer::directive(config, response) {
        _ if policy::streamed(status, fields).is_some() => None,
        Directive::Store => Some(config.ttl),
        Directive::StoreFor(ttl) => Some(ttl),
        Directive::NoStore | Directive::Release | Directive::Unknown => None,
    }
}

/// Stores the tombstone, and lets the body pass under a copier.
pub(super) async fn start<R>(
    shared: &Arc<Shared>,
    mut ticket: Box<Ticket>,
    mut response: Response<R>,
    ttl: Duration,
    age: Duration,
) -> Response<Body<R>>
where
    R: HttpBody<Data = Bytes> + Send + 'static,
{
    let config = &*shared.config;
    response.extensions_mut().remove::<Directive>();
    let (parts, body) = response.into_parts();
    let size = body.size_hint().exact().unwrap_or_default();
    let mut announced = HeaderMap::new();
    policy::announce(&mut announced, &parts.headers);
    let keep = Keep {
        id: ticket.question.id,
        fingerprint: ticket.question.fingerprint,
        nonce: ticket.nonce,
        answer: StoredAnswer {
            status: parts.status,
            fields: policy::kept_fields(&parts.headers, config.replay_only.as_deref()),
            body: Bytes::new(),
            trailers: None,
        },
        announced,
        ttl,
        _active: shared.runs.enter(),
        shared: Arc::clone(shared),
    };
    let left = answer::tombstone(parts.status, &parts.headers, TombstoneReason::TooLarge);
    let mut head = Response::from_parts(parts, Body::<R>::empty());
    let verdict = Verdict::Keep(left, ttl);
    run::finish(shared, &mut ticket, &mut head, verdict, age).await;
    let is_ours = head.extensions().get() == Some(&IdempotencyOutcome::First);
    head.map(|_| {
        if is_ours {
            Body::followed(Tee {
                body: Some(Box::pin(body)),
                copied: BytesMut::new(),
                trailers: None,
                size,
                keep: Some(keep),
            })
        } else {
            Body::pass(body)
        }
    })
}

/// What is stored once the body is whole.
struct Keep {
    shared: Arc<Shared>,
    id: RecordId,
    fingerprint: Fingerprint,
    nonce: Nonce,
    answer: StoredAnswer,
    /// The names of trailers that may come.
    announced: HeaderMap,
    ttl: Duration,
    /// `drain` waits for the copy too.
    _active: Active,
}

/// Passes a body on and copies it. Dropped before its end, it reads the rest in a task, at most for a run's limit.
struct Tee<B: HttpBody<Data = Bytes> + Send + 'static> {
    body: Option<Pin<Box<B>>>,
    copied: BytesMut,
    trailers: Option<HeaderMap>,
    size: u64,
    /// Nothing once the copy is stored, or cannot be whole any more.
    keep: Option<Keep>,
}

impl<B: HttpBody<Data = Bytes> + Send + 'static> Tee<B> {
    /// Copies a frame. A body that sends more than it said is not kept.
    fn copy(&mut self, frame: &Frame<Bytes>) {
        if let Some(data) = frame.data_ref() {
            if (self.copied.len() + data.len()) as u64 > self.size {
                self.give_up();
            } else {
                self.copied.extend_from_slice(data);
            }
        } else if let Some(trailers) = frame.trailers_ref() {
            self.trailers = Some(trailers.clone());
        }
    }

    /// Nothing but the tombstone is kept.
    fn give_up(&mut self) {
        self.keep = None;
        self.copied = BytesMut::new();
    }

    /// The body is over: the whole answer takes the tombstone's place, in a task.
    fn end(&mut self) {
        self.body = None;
        let Some(keep) = self.keep.take() else { return };
        if self.copied.len() as u64 != self.size {
            return;
        }
        let bytes = std::mem::take(&mut self.copied).freeze();
        let trailers = self.trailers.take();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(keep.write(bytes, trailers));
        }
    }
}

impl<B: HttpBody<Data = Bytes> + Send + 'static> Followed<B> for Tee<B> {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let Some(body) = &mut self.body else {
            return Poll::Ready(None);
        };
        let frame = ready!(body.as_mut().poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                let is_over = body.is_end_stream();
                self.copy(frame);
                if is_over {
                    self.end();
                }
            }
            Some(Err(_)) => {
                self.give_up();
                self.body = None;
            }
            None => self.end(),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(|body| body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let none = SizeHint::with_exact(0);
        self.body.as_ref().map_or(none, |body| body.size_hint())
    }
}

impl<B: HttpBody<Data = Bytes> + Send + 'static> Drop for Tee<B> {
    fn drop(&mut self) {
        let (Some(mut body), Some(keep)) = (self.body.take(), self.keep.take()) else {
            return;
        };
        // Without a runtime nothing can go on: the tombstone stays.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        let limit = keep.shared.config.run_limit;
        let mut rest = Self {
            body: None,
            copied: std::mem::take(&mut self.copied),
            trailers: self.trailers.take(),
            size: self.size,
            keep: Some(keep),
        };
        runtime.spawn(async move {
            let read = async {
                while let Some(frame) = body.frame().await.map(Result::ok) {
                    match frame {
                        Some(frame) => rest.copy(&frame),
                        None => rest.give_up(),
                    }
                    if rest.keep.is_none() {
                        return;
                    }
                    // A body that always has one more frame lets the limit be seen.
                    consume_budget().await;
                }
                rest.end();
            };
            // Whoever does not end in time leaves the tombstone.
            let _ = tokio::time::timeout(limit, read).await;
        });
    }
}

impl Keep {
    async fn write(mut self, bytes: Bytes, trailers: Option<HeaderMap>) {
        let config = &*self.shared.config;
        let trailers = policy::kept_trailers(trailers.as_ref(), config.replay_only.as_deref());
        if trailers.is_some() {
            policy::announce(&mut self.answer.fields, &self.announced);
        }
        (self.answer.body, self.answer.trailers) = (bytes, trailers);
        if let Some(change) = &config.sanitize {
            change(&mut self.answer);
        }
        let answer = Answer {
            fingerprint: self.fingerprint,
            content: AnswerContent::Full(Arc::new(self.answer)),
        };
        let (written, _) = self
            .shared
            .runs
            .complete(&config.store, self.id, self.nonce, answer, self.ttl)
            .await;
        if written == Written::Lost {
            count!("keep_idempotency_stale_writes_total", 1, "op" => "complete");
            warn!("idempotency: an answer was whole, but its key is another's by now");
        }
    }
}
