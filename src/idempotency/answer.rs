//! From a response to what is kept of it, and back.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, HeaderValue, RETRY_AFTER};
use http::{Extensions, HeaderMap, Response, StatusCode};
use http_body::Body as HttpBody;

use super::config::{Config, EXPIRES_FIELD, STATUS_FIELD};
use super::gather::is_larger;
use super::policy::{self, Directive};
use super::record::{AnswerContent, StoredAnswer, Tombstone, TombstoneReason};
use super::settling::Settling;
use crate::core::telemetry::count;
use crate::core::{Body, IdempotencyOutcome, Timestamp};

/// What becomes of the record.
pub(super) enum Verdict {
    Keep(AnswerContent, Duration),
    Release,
    Unknown,
}

/// A response on its way to the client, and what becomes of the record.
pub(super) enum Settled<R> {
    Answer(Response<Body<R>>, Verdict),
    /// The body failed: the client gets a refusal, the record this tombstone.
    Lost(AnswerContent),
}

/// Decides what is kept of `response`; its body is read where the whole answer is.
pub(super) fn settle<R>(config: &Config, mut response: Response<R>) -> Settling<'_, R>
where
    R: HttpBody<Data = Bytes>,
{
    let directive = directive(config, &response);
    response.extensions_mut().remove::<Directive>();
    let ttl = match directive {
        Directive::Store => config.ttl,
        Directive::StoreFor(ttl) => ttl,
        Directive::NoStore => return bury(config, response, TombstoneReason::NoStore),
        Directive::Release => {
            return Settling::known(Settled::Answer(response.map(Body::pass), Verdict::Release));
        }
        Directive::Unknown => {
            return Settling::known(Settled::Answer(response.map(Body::pass), Verdict::Unknown));
        }
    };
    if let Some(reason) = policy::streamed(response.status(), response.headers()) {
        return bury(config, response, reason);
    }
    if is_larger(response.body(), config.max_response_body) {
        return bury(config, response, TombstoneReason::TooLarge);
    }
    Settling::read(config, response, ttl)
}

/// What the handler says, or the policy.
pub(super) fn directive<R>(config: &Config, response: &Response<R>) -> Directive {
    let later = response.headers().contains_key(RETRY_AFTER);
    let own = response.extensions().get().copied();
    own.unwrap_or_else(|| config.statuses.decide(response.status(), later))
}

/// Lets the response pass; the record says only that it ran.
fn bury<R>(config: &Config, response: Response<R>, reason: TombstoneReason) -> Settling<'_, R> {
    let left = tombstone(response.status(), response.headers(), reason);
    let verdict = Verdict::Keep(left, config.ttl);
    Settling::known(Settled::Answer(response.map(Body::pass), verdict))
}

impl AnswerContent {
    /// What is left where a store has no room for this: a tombstone, then a bare one, for which the claim holds room.
    pub(super) fn shrunk(&self) -> Option<Self> {
        match self {
            Self::Full(full) => {
                let reason = TombstoneReason::TooLarge;
                Some(tombstone(full.status, &full.fields, reason))
            }
            Self::Tombstone(left) if !left.fields.is_empty() => {
                Some(Self::Tombstone(Arc::new(Tombstone {
                    fields: HeaderMap::new(),
                    ..**left
                })))
            }
            Self::Tombstone(_) => None,
        }
    }
}

pub(super) fn tombstone(
    status: StatusCode,
    fields: &HeaderMap,
    reason: TombstoneReason,
) -> AnswerContent {
    count!("keep_idempotency_tombstones_total", 1, "reason" => match reason {
        TombstoneReason::TooLarge => "too_large",
        TombstoneReason::Streamed => "streamed",
        TombstoneReason::BodyFailed => "body_failed",
        TombstoneReason::NoStore => "no_store",
    });
    let fields = policy::tombstone_fields(fields);
    AnswerContent::Tombstone(Arc::new(Tombstone {
        status,
        fields,
        reason,
    }))
}

pub(super) fn owned_body<B>(bytes: Bytes, trailers: Option<HeaderMap>) -> Body<B> {
    match trailers {
        Some(trailers) => Body::with_trailers(bytes, trailers),
        None => Body::bytes(bytes),
    }
}

/// Makes the stored answer's replay.
pub(super) fn replay<R>(
    config: &Config,
    stored: Arc<StoredAnswer>,
    spare: Extensions,
) -> Response<Body<R>> {
    let StoredAnswer {
        status,
        fields,
        body,
        trailers,
    } = Arc::unwrap_or_clone(stored);
    let mut response = Response::new(owned_body(body, trailers));
    *response.status_mut() = status;
    *response.headers_mut() = fields;
    *response.extensions_mut() = spare;
    let fields = response.headers_mut();
    fields.insert(
        config.replay_field.clone(),
        HeaderValue::from_static("true"),
    );
    fields.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Says in fields and extensions what was done.
pub(super) fn mark<B>(
    config: &Config,
    response: &mut Response<B>,
    outcome: IdempotencyOutcome,
    expires_at: Option<Timestamp>,
) {
    let (word, always) = match outcome {
        IdempotencyOutcome::First => ("first", false),
        IdempotencyOutcome::Replayed => ("replayed", false),
        IdempotencyOutcome::Attached => ("attached", false),
        IdempotencyOutcome::InProgress => ("in-progress", false),
        IdempotencyOutcome::Reused => ("reused", false),
        IdempotencyOutcome::NotReplayable => ("not-replayable", false),
        IdempotencyOutcome::Unknown => ("unknown", false),
        IdempotencyOutcome::Unrecorded => ("unrecorded", true),
        IdempotencyOutcome::Unprotected => ("unprotected", true),
        // It has a code, and no word of its own for clients.
        _ => ("refused", false),
    };
    count!("keep_idempotency_requests_total", 1, "namespace" => Arc::clone(&config.namespace), "outcome" => word);
    super::span::of_end(word);
    response.extensions_mut().insert(outcome);
    if outcome == IdempotencyOutcome::Refused || !(config.report_status || always) {
        return;
    }
    response
        .headers_mut()
        .insert(STATUS_FIELD, HeaderValue::from_static(word));
    let imf = |at: Timestamp| {
        let since = Duration::from_millis(at.as_millis());
        HeaderValue::try_from(httpdate::fmt_http_date(std::time::UNIX_EPOCH + since)).ok()
    };
    if config.report_status
        && let Some(value) = expires_at.and_then(imf)
    {
        response.headers_mut().insert(EXPIRES_FIELD, value);
    }
}
