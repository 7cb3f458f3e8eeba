//! Waits for the body of an answer that is to be kept whole.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::response::Parts;
use http::{HeaderMap, Response};
use http_body::Body as HttpBody;
use pin_project_lite::pin_project;
use tokio::time::{Sleep, sleep};

use super::answer::{Settled, Verdict, owned_body, tombstone};
use super::config::Config;
use super::gather::{End, Gathered};
use super::policy;
use super::record::{AnswerContent, StoredAnswer, TombstoneReason};
use crate::core::{Body, monotonic};

/// A body of unknown size is waited for this long.
const UNKNOWN_SIZE_WAIT: Duration = Duration::from_secs(5);

pin_project! {
    /// Becomes the answer and what is kept of it. Written by hand: no room for what only few answers need.
    pub(super) struct Settling<'a, R> {
        #[pin]
        state: State<'a, R>,
    }
}

pin_project! {
    #[project = StateProj]
    #[project_replace = StateOwn]
    enum State<'a, R> {
        Known { settled: Settled<R> },
        /// The body says its size: it is read where it lies.
        Sized { reading: Reading<'a>, #[pin] body: R },
        /// It says none: it may have to be given back.
        Unsized { reading: Reading<'a>, body: Pin<Box<R>>, over: Pin<Box<Sleep>> },
        Over,
    }
}

/// What was read so far, and of what.
struct Reading<'a> {
    config: &'a Config,
    parts: Parts,
    ttl: Duration,
    gathered: Gathered,
    /// The length that the head says, or else the body.
    length: Option<u64>,
}

impl<'a, R> Settling<'a, R> {
    pub(super) const fn known(settled: Settled<R>) -> Self {
        Self {
            state: State::Known { settled },
        }
    }

    /// Reads the body, and keeps the answer for `ttl`.
    pub(super) fn read(config: &'a Config, response: Response<R>, ttl: Duration) -> Self
    where
        R: HttpBody,
    {
        let (parts, body) = response.into_parts();
        let exact = body.size_hint().exact();
        let reading = Reading {
            config,
            ttl,
            gathered: Gathered::default(),
            length: policy::said_length(parts.status, &parts.headers).or(exact),
            parts,
        };
        let state = if exact.is_some() {
            State::Sized { reading, body }
        } else {
            State::Unsized {
                reading,
                body: Box::pin(body),
                over: Box::pin(sleep(UNKNOWN_SIZE_WAIT)),
            }
        };
        Self { state }
    }
}

impl<R: HttpBody<Data = Bytes>> Future for Settling<'_, R> {
    type Output = Settled<R>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        let end = match state.as_mut().project() {
            StateProj::Known { .. } | StateProj::Over => End::Whole,
            StateProj::Sized { reading, body } => {
                let most = reading.config.max_response_body;
                match reading.gathered.poll_fill(body, most, cx) {
                    Poll::Ready(end) => end,
                    Poll::Pending => return Poll::Pending,
                }
            }
            StateProj::Unsized {
                reading,
                body,
                over,
            } => {
                let most = reading.config.max_response_body;
                match reading.gathered.poll_fill(body.as_mut(), most, cx) {
                    Poll::Ready(end) => end,
                    Poll::Pending if is_past(over.as_mut(), cx) => End::TooLarge,
                    Poll::Pending => return Poll::Pending,
                }
            }
        };
        match state.project_replace(State::Over) {
            StateOwn::Known { settled } => Poll::Ready(settled),
            StateOwn::Sized { reading, .. } => Poll::Ready(reading.settle(end, None)),
            StateOwn::Unsized { reading, body, .. } => Poll::Ready(reading.settle(end, Some(body))),
            // Polled again after its answer: pending for ever, as a fused future would be.
            StateOwn::Over => Poll::Pending,
        }
    }
}

/// Says whether the time is over, also where the body has used up the task's turn, so that no timer would say it.
fn is_past(timer: Pin<&mut Sleep>, cx: &mut Context<'_>) -> bool {
    timer.deadline() <= monotonic() || timer.poll(cx).is_ready()
}

impl Reading<'_> {
    /// Decides once the body has come, or has not in time; `rest` is what may still be to come.
    fn settle<R>(self, end: End, rest: Option<Pin<Box<R>>>) -> Settled<R> {
        let Self {
            config,
            parts,
            ttl,
            gathered,
            length,
        } = self;
        let (bytes, trailers) = gathered.finish();
        let is_whole = length.is_none_or(|length| length == bytes.len() as u64);
        let left = |reason| tombstone(parts.status, &parts.headers, reason);
        match (end, rest) {
            (End::Whole, _) if is_whole => {
                let stored = stored(config, &parts, bytes.clone(), trailers.as_ref());
                let content = AnswerContent::Full(Arc::new(stored));
                let body = owned_body(bytes, trailers);
                let verdict = Verdict::Keep(content, ttl);
                Settled::Answer(Response::from_parts(parts, body), verdict)
            }
            (End::TooLarge, Some(rest)) => {
                let reason = if bytes.len() > config.max_response_body {
                    TombstoneReason::TooLarge
                } else {
                    TombstoneReason::Streamed
                };
                let verdict = Verdict::Keep(left(reason), config.ttl);
                let body = Body::resumed(bytes, rest);
                Settled::Answer(Response::from_parts(parts, body), verdict)
            }
            // A body that broke off, or one that was another length than it said.
            _ => Settled::Lost(left(TombstoneReason::BodyFailed)),
        }
    }
}

/// What is kept of a whole answer.
fn stored(
    config: &Config,
    parts: &Parts,
    body: Bytes,
    trailers: Option<&HeaderMap>,
) -> StoredAnswer {
    let allowed = config.replay_only.as_deref();
    let mut stored = StoredAnswer {
        status: parts.status,
        fields: policy::kept_fields(&parts.headers, allowed),
        body,
        trailers: policy::kept_trailers(trailers, allowed),
    };
    if stored.trailers.is_some() {
        policy::announce(&mut stored.fields, &parts.headers);
    }
    if let Some(change) = &config.sanitize {
        change(&mut stored);
    }
    stored
}
