//! What a client sees when it is refused: problem documents, one code per fault.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_LANGUAGE, HeaderValue, LINK};
use http::{HeaderMap, Response, StatusCode};

use super::config::Config;
use super::key::ClientKey;
use super::record::Tombstone;
use crate::core::{IdempotencyOutcome, Problem, StoreError, StoreErrorKind};

/// Why a request was refused, in the extensions of the response.
#[derive(Clone, Debug)]
pub struct IdempotencyRejection {
    cause: RejectionCause,
    key: Option<ClientKey>,
}

/// The faults, one code each.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum RejectionCause {
    /// 400: the route needs a key.
    KeyMissing,
    /// 400: the field is not one valid key.
    KeyInvalid,
    /// 400: this field of the body is missing, empty, repeated, no scalar or no time.
    FieldsInvalid(Box<str>),
    /// 400: the body ended in an error.
    BodyUnreadable,
    /// 403: nobody knows who is asking.
    ScopeMissing,
    /// 400: the request body is not what its digest says.
    DigestMismatch,
    /// 413: larger than this many bytes.
    BodyTooLarge(usize),
    /// 413: larger than a layer outside lets through.
    BodyOverLimit,
    /// 422: the key belongs to another request.
    KeyReused,
    /// 409: the same request is running; ask again after this many seconds.
    InProgress(u64),
    /// 409: whether the effect happened is not known.
    OutcomeUnknown,
    /// 409: it ran, but its answer is not kept.
    NotReplayable(Option<Arc<Tombstone>>),
    /// 503: the store cannot answer; it is asked again after this many seconds.
    StoreUnavailable(u64),
    /// 503: the store has no room.
    StoreFull,
    /// 503: others held the key for too long; nothing was done.
    Contention,
    /// 503: the run took too long and was stopped.
    RunLimit,
    /// 503: [`IdempotencyLayer::drain`](super::IdempotencyLayer::drain) has given up what was left; nothing was done.
    Draining,
    /// 500: it ran, but its answer broke off.
    AnswerLost,
    /// 503: the reply to COMMIT was lost, and the database cannot tell yet; a retry will find out.
    CommitUnknown,
    /// 500: the database would not commit, or the answer broke off before; nothing was done.
    TransactionFailed,
    /// 500: a handle of the transaction outlived its handler; nothing was done.
    TransactionLeaked,
}

impl RejectionCause {
    pub(super) fn of_store(error: &StoreError) -> Self {
        match error.kind() {
            StoreErrorKind::Full | StoreErrorKind::TooLarge => Self::StoreFull,
            StoreErrorKind::Contention => Self::Contention,
            _ => Self::StoreUnavailable(error.retry_after_secs()),
        }
    }

    pub(super) const fn outcome(&self) -> IdempotencyOutcome {
        match self {
            Self::KeyReused => IdempotencyOutcome::Reused,
            Self::InProgress(_) => IdempotencyOutcome::InProgress,
            Self::OutcomeUnknown | Self::CommitUnknown => IdempotencyOutcome::Unknown,
            Self::NotReplayable(_) => IdempotencyOutcome::NotReplayable,
            Self::RunLimit | Self::AnswerLost => IdempotencyOutcome::First,
            _ => IdempotencyOutcome::Refused,
        }
    }

    const fn facts(&self) -> Facts {
        match self {
            Self::KeyMissing => facts(400, "IDEMPOTENCY_KEY_MISSING", "Idempotency-Key is missing"),
            Self::KeyInvalid => facts(
                400,
                "IDEMPOTENCY_KEY_INVALID",
                "Idempotency-Key is not valid",
            ),
            Self::FieldsInvalid(_) => facts(
                400,
                "IDEMPOTENCY_FIELDS_INVALID",
                "A field of the request is not valid",
            ),
            Self::BodyUnreadable => facts(
                400,
                "IDEMPOTENCY_BODY_UNREADABLE",
                "The request body broke off",
            ),
            Self::DigestMismatch => facts(
                400,
                "IDEMPOTENCY_DIGEST_MISMATCH",
                "The request body is not what its digest says",
            ),
            Self::ScopeMissing => {
                facts(403, "IDEMPOTENCY_SCOPE_MISSING", "The caller is not known")
            }
            Self::BodyTooLarge(_) | Self::BodyOverLimit => TOO_LARGE,
            Self::KeyReused => facts(
                422,
                "IDEMPOTENCY_KEY_REUSED",
                "Idempotency-Key is already used",
            ),
            Self::InProgress(after) => facts(
                409,
                "IDEMPOTENCY_IN_PROGRESS",
                "The request is still being processed",
            )
            .again(*after),
            Self::OutcomeUnknown => facts(
                409,
                "IDEMPOTENCY_OUTCOME_UNKNOWN",
                "The outcome is not known",
            ),
            Self::NotReplayable(_) => facts(
                409,
                "IDEMPOTENCY_NOT_REPLAYABLE",
                "The answer cannot be given again",
            ),
            Self::StoreUnavailable(after) => {
                facts(503, "STORE_UNAVAILABLE", "Temporary Reduced Capacity").again(*after)
            }
            Self::StoreFull => {
                facts(503, "IDEMPOTENCY_STORE_FULL", "No room for another request").again(30)
            }
            Self::Contention => facts(503, "CONTENTION", "Too many requests at once").again(1),
            Self::RunLimit => {
                facts(503, "IDEMPOTENCY_RUN_LIMIT", "The request took too long").again(1)
            }
            Self::Draining => DRAINING,
            Self::AnswerLost => facts(500, "IDEMPOTENCY_ANSWER_LOST", "The answer broke off"),
            Self::CommitUnknown => {
                facts(503, "COMMIT_UNKNOWN", "The outcome is not known yet").again(5)
            }
            Self::TransactionFailed => {
                facts(500, "TRANSACTION_FAILED", "Nothing was stored").again(0)
            }
            Self::TransactionLeaked => {
                facts(500, "TRANSACTION_LEAKED", "Nothing was stored").again(0)
            }
        }
    }

    fn detail(&self) -> String {
        match self {
            Self::KeyMissing => "this operation needs an Idempotency-Key field".into(),
            Self::KeyInvalid => {
                "the field must be one line with one key of 1 to 255 visible ASCII characters"
                    .into()
            }
            Self::FieldsInvalid(name) => {
                format!("the field {name} must be there once, as a single value of its kind")
            }
            Self::BodyUnreadable => "the request body ended before it was complete".into(),
            Self::DigestMismatch => "the request body is another than its digest field says".into(),
            Self::ScopeMissing => "a key belongs to a caller, and this request names none".into(),
            Self::BodyTooLarge(most) => format!("the request body may have {most} bytes"),
            Self::BodyOverLimit => "the request body is larger than this service takes".into(),
            Self::KeyReused => {
                "the key was used for a request with another payload, use a new key".into()
            }
            Self::InProgress(_) => {
                "a request with this key is being processed, ask again later".into()
            }
            Self::OutcomeUnknown => {
                "the first request with this key did not report its end, it may have taken effect"
                    .into()
            }
            Self::NotReplayable(_) => {
                "the first request with this key was carried out, but its answer was not kept"
                    .into()
            }
            Self::StoreUnavailable(_) => {
                "the service cannot reach its store, nothing was done, try again later".into()
            }
            Self::StoreFull => "the store has no room, nothing was done, try again later".into(),
            Self::Contention => {
                "too many requests want the same thing, nothing was done, send it again".into()
            }
            Self::RunLimit => "the request was stopped because it took too long".into(),
            Self::Draining => {
                "the service is stopping, nothing was done, send the request again".into()
            }
            Self::AnswerLost => {
                "the request was carried out, but its answer could not be completed".into()
            }
            Self::CommitUnknown => {
                "the database did not say whether the request was carried out, send it again to find out"
                    .into()
            }
            Self::TransactionFailed => {
                "the request was undone because it could not be completed".into()
            }
            Self::TransactionLeaked => {
                "the request was undone because it was still being worked on".into()
            }
        }
    }
}

struct Facts {
    status: StatusCode,
    code: &'static str,
    title: &'static str,
    /// A retry, unchanged, may succeed: after this many seconds, or nobody knows when (0).
    again: Option<u64>,
}

const DRAINING: Facts = facts(503, "IDEMPOTENCY_DRAINING", "The service is stopping").again(1);
const TOO_LARGE: Facts = facts(413, "BODY_TOO_LARGE", "The request body is too large");

const fn facts(status: u16, code: &'static str, title: &'static str) -> Facts {
    let status = match StatusCode::from_u16(status) {
        Ok(status) => status,
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR,
    };
    Facts {
        status,
        code,
        title,
        again: None,
    }
}

impl Facts {
    const fn again(mut self, after: u64) -> Self {
        self.again = Some(after);
        self
    }
}

impl IdempotencyRejection {
    pub(super) const fn new(cause: RejectionCause, key: Option<ClientKey>) -> Self {
        Self { cause, key }
    }

    /// Returns the fault.
    #[must_use]
    pub const fn cause(&self) -> &RejectionCause {
        &self.cause
    }

    /// Returns the status of the refusal.
    #[must_use]
    pub const fn status(&self) -> StatusCode {
        self.cause.facts().status
    }

    /// Returns the code of the fault, such as `IDEMPOTENCY_KEY_REUSED`.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        self.cause.facts().code
    }

    /// Says whether the same request may succeed when it is sent again.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        self.cause.facts().again.is_some()
    }

    /// Returns the key the client sent, if it was readable.
    #[must_use]
    pub const fn client_key(&self) -> Option<&ClientKey> {
        self.key.as_ref()
    }

    /// Makes the response: the document, the fields, then whatever the hook changes.
    pub(super) fn response(self, config: &Config) -> Response<Bytes> {
        let facts = self.cause.facts();
        let mut problem = Problem::new(facts.status, facts.code)
            .title(facts.title)
            .detail(self.cause.detail())
            .member("instance", uuid::Uuid::new_v4().urn().to_string())
            .member("retryable", facts.again.is_some());
        if let Some(after @ 1..) = facts.again {
            problem = problem.retry_after(after);
        }
        if matches!(self.cause, RejectionCause::StoreUnavailable(_)) {
            problem = problem.registered_type(crate::core::problem::REDUCED_CAPACITY);
        }
        let kept = match &self.cause {
            RejectionCause::NotReplayable(Some(kept)) => {
                problem = problem.member("original_status", kept.status.as_u16());
                kept.fields.clone()
            }
            _ => HeaderMap::new(),
        };
        let mut response = problem.response();
        response.headers_mut().extend(kept);
        response
            .headers_mut()
            .insert(CONTENT_LANGUAGE, HeaderValue::from_static("en"));
        if let Some(link) = &config.documentation {
            response.headers_mut().insert(LINK, link.clone());
        }
        if let Some(hook) = &config.on_rejection {
            hook(&self, &mut response);
        }
        response.extensions_mut().insert(self);
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_what_the_page_of_codes_says_of_it() {
        for cause in [
            RejectionCause::KeyMissing,
            RejectionCause::KeyInvalid,
            RejectionCause::FieldsInvalid("start".into()),
            RejectionCause::BodyUnreadable,
            RejectionCause::ScopeMissing,
            RejectionCause::DigestMismatch,
            RejectionCause::BodyTooLarge(1),
            RejectionCause::KeyReused,
            RejectionCause::InProgress(1),
            RejectionCause::OutcomeUnknown,
            RejectionCause::NotReplayable(None),
            RejectionCause::StoreUnavailable(1),
            RejectionCause::StoreFull,
            RejectionCause::Contention,
            RejectionCause::RunLimit,
            RejectionCause::Draining,
            RejectionCause::AnswerLost,
            RejectionCause::CommitUnknown,
            RejectionCause::TransactionFailed,
            RejectionCause::TransactionLeaked,
        ] {
            let facts = cause.facts();
            let says = Some((facts.status.as_u16(), facts.again.is_some()));
            assert_eq!(
                says,
                crate::problem_codes::promised(facts.code),
                "{cause:?}"
            );
        }
    }
}
