//! What a client sees when it is refused, and why.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};

use super::headers::ceil_secs;
use super::status::{PolicyStatus, Statuses};
use super::store::Outcome;
use crate::core::problem::{ABNORMAL_USAGE, Problem, QUOTA_EXCEEDED};
use crate::core::{Digits, StoreError, Timestamp};

/// The code of a refusal by the deny list.
const ADDRESS_DENIED: &str = "ADDRESS_DENIED";

/// Why a request was refused; in the extensions of the response. Cheap to clone.
#[derive(Clone)]
pub struct RateLimitRejection {
    refusal: Arc<Refusal>,
}

/// The cause of a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RateLimitCause {
    /// A limit is used up: 429.
    Limited,
    /// The key is blocked: 429.
    Blocked,
    /// The cost is above a limit and will never be admitted: 429 without `Retry-After`.
    TooCostly,
    /// The address is on the deny list: 403.
    Listed,
    /// The store cannot answer and the layer is closed: 503.
    Unavailable,
}

struct Refusal {
    cause: RateLimitCause,
    violated: Statuses,
    /// Which of the violated policies binds.
    binding: usize,
    /// Whole seconds.
    retry_after: Option<u64>,
    reset_time: Option<Timestamp>,
}

impl RateLimitRejection {
    /// Makes the refusal of a verdict; the retry is the longest of its violated policies.
    #[inline]
    pub(super) fn limited(decided: Statuses) -> Self {
        let mut violated = decided;
        violated.retain(|entry| entry.is_violated());
        let rank = |entry: &PolicyStatus| {
            let severity = match entry.state.outcome {
                Outcome::Never => 2,
                Outcome::Blocked => 1,
                Outcome::Denied | Outcome::Admitted | Outcome::NotAsked => 0,
            };
            (severity, entry.state.retry_in())
        };
        let binding = (0..violated.len())
            .rev()
            .max_by_key(|index| rank(&violated[*index]))
            .unwrap_or(0);
        let cause = match violated.get(binding).map(|entry| entry.state.outcome) {
            Some(Outcome::Never) => RateLimitCause::TooCostly,
            Some(Outcome::Blocked) => RateLimitCause::Blocked,
            _ => RateLimitCause::Limited,
        };
        let longest = violated
            .iter()
            .filter_map(|entry| entry.state.retry_in())
            .max();
        let wait = longest.filter(|_| cause != RateLimitCause::TooCostly);
        let now = violated.first().map_or(0, |entry| entry.now);
        Self::of(Refusal {
            cause,
            binding,
            retry_after: wait.map(|wait| ceil_secs(wait).max(1)),
            reset_time: wait.map(|wait| {
                let micros = u64::try_from(wait.as_micros()).unwrap_or(u64::MAX);
                Timestamp::from_millis(now.saturating_add(micros).div_ceil(1_000))
            }),
            violated,
        })
    }

    pub(super) fn listed() -> Self {
        Self::bare(RateLimitCause::Listed, None)
    }

    pub(super) fn unavailable(error: &StoreError) -> Self {
        Self::bare(RateLimitCause::Unavailable, Some(error.retry_after_secs()))
    }

    pub(super) fn no_address() -> Self {
        Self::bare(RateLimitCause::Unavailable, Some(1))
    }

    fn bare(cause: RateLimitCause, retry_after: Option<u64>) -> Self {
        Self::of(Refusal {
            cause,
            violated: Statuses::new(),
            binding: 0,
            retry_after,
            reset_time: None,
        })
    }

    fn of(refusal: Refusal) -> Self {
        Self {
            refusal: Arc::new(refusal),
        }
    }

    /// Returns the cause.
    #[must_use]
    pub fn cause(&self) -> RateLimitCause {
        self.refusal.cause
    }

    /// Returns the status: 429, 403 or 503.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self.cause() {
            RateLimitCause::Listed => StatusCode::FORBIDDEN,
            RateLimitCause::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::TOO_MANY_REQUESTS,
        }
    }

    /// Returns the time after which the same request is admitted if nobody else comes, in whole seconds.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.refusal.retry_after.map(Duration::from_secs)
    }

    pub(super) fn retry_after_secs(&self) -> Option<u64> {
        self.refusal.retry_after
    }

    /// Returns the violated policies in declared order.
    pub fn violated(&self) -> impl Iterator<Item = &PolicyStatus> {
        self.refusal.violated.iter()
    }

    pub(super) fn violated_policies(&self) -> &[PolicyStatus] {
        &self.refusal.violated
    }

    /// Where one policy refused at the quota that the shared store has for it: what it said, with the seconds and the time of
    /// the retry. All else in the document is then the same each time.
    pub(super) fn of_one_as_declared(&self) -> Option<(&PolicyStatus, u64, Timestamp)> {
        let [only] = self.violated_policies() else {
            return None;
        };
        let is_usual =
            self.cause() == RateLimitCause::Limited && only.is_declared() && only.is_at_its_quota();
        let (retry, reset) = (self.refusal.retry_after?, self.refusal.reset_time?);
        is_usual.then_some((only, retry, reset))
    }

    /// Returns the policy that decides about the retry.
    #[must_use]
    pub fn binding(&self) -> Option<&PolicyStatus> {
        self.refusal.violated.get(self.refusal.binding)
    }

    /// Returns the code of the problem document: the binding policy's name, or a code of our own.
    #[must_use]
    pub fn code(&self) -> &str {
        match self.cause() {
            RateLimitCause::Listed => ADDRESS_DENIED,
            RateLimitCause::Unavailable => crate::core::problem::STORE_UNAVAILABLE,
            _ => self.binding().map_or("", PolicyStatus::policy),
        }
    }

    /// Makes the response: a problem document (RFC 9457), `Retry-After`, and this refusal in the extensions.
    #[must_use]
    pub fn response(&self) -> Response<Bytes> {
        let mut response = self.document();
        response.extensions_mut().insert(self.clone());
        response
    }

    /// The response of a refusal that nobody looks at any more.
    pub(super) fn into_response_of_bytes(self) -> Response<Bytes> {
        let mut response = self.document();
        response.extensions_mut().insert(self);
        response
    }

    fn document(&self) -> Response<Bytes> {
        match self.cause() {
            RateLimitCause::Listed => Problem::new(StatusCode::FORBIDDEN, ADDRESS_DENIED)
                .registered_type("about:blank")
                .response(),
            RateLimitCause::Unavailable => {
                let seconds = self.refusal.retry_after.unwrap_or(1);
                Problem::store_unavailable(seconds)
                    .member(
                        "error",
                        "The service is short of capacity. Try again later.",
                    )
                    .response()
            }
            _ => self.too_many(),
        }
    }

    fn too_many(&self) -> Response<Bytes> {
        let mut response = Response::new(self.body());
        *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
        let fields = response.headers_mut();
        fields.insert(CONTENT_TYPE, content_type());
        fields.insert(CACHE_CONTROL, no_store());
        self.set_retry_after(fields);
        response
    }

    /// Sets `Retry-After` unless it is there.
    pub(super) fn set_retry_after(&self, fields: &mut http::HeaderMap) {
        if let Some(seconds) = self.refusal.retry_after
            && !fields.contains_key(RETRY_AFTER)
        {
            fields.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
    }

    /// Makes the document: no member needs an escape, names were checked when the policies were made.
    pub(super) fn body(&self) -> Bytes {
        let own;
        let head = match self.refusal.violated.as_slice() {
            // The usual one: but for its numbers it is always the same.
            [only] if self.cause() == RateLimitCause::Limited && only.is_at_its_quota() => {
                only.scope.refusal(|| self.head().into())
            }
            _ => {
                own = self.head();
                &own
            }
        };
        let (Some(seconds), Some(reset)) = (self.refusal.retry_after, self.refusal.reset_time)
        else {
            let error = b"],\"error\":\"Too many requests. This request costs more than its limit allows.\"}";
            return Bytes::from([head, error].concat());
        };
        let (seconds, reset) = (Digits::of(seconds), Digits::of(reset.as_millis()));
        let text = [
            head,
            b"],\"error\":\"Too many requests. Try again in ",
            seconds.text(),
            b" seconds.\",\"reset_time\":",
            reset.text(),
            b",\"retry_after\":",
            seconds.text(),
            b"}",
        ];
        Bytes::from(text.concat())
    }

    /// Makes what comes before the numbers of a refusal.
    fn head(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(320);
        self.put_head(&mut out);
        out
    }

    fn put_head(&self, out: &mut Vec<u8>) {
        let (kind, title) = match self.cause() {
            RateLimitCause::Blocked => (ABNORMAL_USAGE, "Abnormal Usage Detected"),
            _ => (QUOTA_EXCEEDED, "Quota Exceeded"),
        };
        for text in ["{\"type\":\"", kind, "\",\"title\":\"", title] {
            out.extend_from_slice(text.as_bytes());
        }
        out.extend_from_slice(b"\",\"status\":429,\"detail\":\"");
        self.put_detail(out);
        out.extend_from_slice(b"\",\"code\":\"");
        out.extend_from_slice(self.code().as_bytes());
        out.extend_from_slice(b"\",\"violated-policies\":[");
        for (index, entry) in self.violated().enumerate() {
            out.extend_from_slice(if index > 0 { b",\"" } else { b"\"" });
            out.extend_from_slice(entry.policy().as_bytes());
            out.extend_from_slice(b"\"");
        }
    }

    fn put_detail(&self, out: &mut Vec<u8>) {
        let Some(binding) = self.binding() else {
            return;
        };
        out.extend_from_slice(b"policy ");
        out.extend_from_slice(binding.policy().as_bytes());
        if self.cause() == RateLimitCause::Blocked {
            out.extend_from_slice(b" blocks this client");
            return;
        }
        out.extend_from_slice(b" allows ");
        out.extend_from_slice(Digits::of(u64::from(binding.state().limit)).text());
        match binding.quota().field_window() {
            Some(window) => {
                out.extend_from_slice(b" in ");
                out.extend_from_slice(Digits::of(window).text());
                out.extend_from_slice(b" s");
            }
            None => out.extend_from_slice(b" in a calendar month"),
        }
    }
}

pub(super) const fn content_type() -> HeaderValue {
    HeaderValue::from_static("application/problem+json")
}

/// RFC 6585 section 4: a response of this status must not be stored.
pub(super) const fn no_store() -> HeaderValue {
    HeaderValue::from_static("no-store")
}

impl fmt::Debug for RateLimitRejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimitRejection")
            .field("cause", &self.cause())
            .field("code", &self.code())
            .field("retry_after", &self.retry_after())
            .finish_non_exhaustive()
    }
}

impl fmt::Display for RateLimitRejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.cause() {
            RateLimitCause::Listed => f.write_str("the address is denied"),
            RateLimitCause::Unavailable => {
                f.write_str("the rate limit cannot be decided now, try again later")
            }
            RateLimitCause::Blocked => write!(f, "policy {} blocks this client", self.code()),
            _ => write!(f, "the limit of policy {} is used up", self.code()),
        }
    }
}

impl std::error::Error for RateLimitRejection {}
