//! What is guarded, what is kept, and for how long a twin is told to wait: decisions on values.

use std::time::Duration;

use http::header::{self, HeaderMap, HeaderName};
use http::{Method, StatusCode};

use super::record::TombstoneReason;
use crate::core::fields;

/// What the end of a lease means: nobody renewed it, and no answer came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LeaseEnd {
    /// The next request with the same payload runs: the effect may happen again.
    Reexecute,
    /// Nothing runs until an operator says what happened, or the owner completes late.
    Indeterminate,
}

impl LeaseEnd {
    pub(super) const fn byte(self) -> u8 {
        match self {
            Self::Reexecute => 1,
            Self::Indeterminate => 2,
        }
    }

    pub(super) const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Reexecute),
            2 => Some(Self::Indeterminate),
            _ => None,
        }
    }
}

/// What a second request gets while the first one runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Twins {
    /// 409 with `Retry-After`.
    Reject,
    /// The first one's answer as a replay, waited for up to this long; then 409.
    Attach(Duration),
}

/// Which methods are guarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Methods {
    /// POST and PATCH.
    PostPatch,
    /// All but GET, HEAD, OPTIONS, TRACE and CONNECT.
    Unsafe,
}

impl Methods {
    pub(super) fn guard(self, method: &Method) -> bool {
        match self {
            Self::PostPatch => matches!(*method, Method::POST | Method::PATCH),
            Self::Unsafe => !matches!(
                *method,
                Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::CONNECT
            ),
        }
    }
}

/// What becomes of an answer. As a response extension it beats the layer's [`StatusPolicy`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Directive {
    /// Kept for the layer's `ttl` and given again.
    Store,
    /// Kept for this long and given again.
    StoreFor(Duration),
    /// A retry gets 409: it ran, but its answer is not kept.
    NoStore,
    /// Forgotten: a retry runs.
    Release,
    /// Whether the effect happened is not known: a retry gets 409 until an operator resolves it.
    Unknown,
}

/// Which directive each status gets.
///
/// ```
/// use tower_keep::SECOND;
/// use tower_keep::idempotency::{Directive, StatusPolicy};
///
/// let policy = StatusPolicy::default().on(409, Directive::StoreFor(10 * SECOND));
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct StatusPolicy {
    base: Base,
    on: Vec<(u16, u16, Directive)>,
}

#[derive(Clone, Copy, Debug)]
enum Base {
    Default,
    Ietf,
    Stripe,
    Iceberg,
    SuccessOnly,
    SuccessAndRedirects,
    By(fn(StatusCode) -> Directive),
}

impl Default for StatusPolicy {
    /// Keeps 2xx, 3xx and 4xx but 401 403 407 408 421 423 425 429 and a 4xx with `Retry-After`; those, 5xx and above are released.
    fn default() -> Self {
        Self::of(Base::Default)
    }
}

impl StatusPolicy {
    const fn of(base: Base) -> Self {
        Self {
            base,
            on: Vec::new(),
        }
    }

    /// As the IETF draft suggests: the default, and 5xx are kept too.
    pub const fn ietf() -> Self {
        Self::of(Base::Ietf)
    }

    /// As Stripe documents: 200–599 are kept but 400 401 403 409 425 429.
    pub const fn stripe() -> Self {
        Self::of(Base::Stripe)
    }

    /// As the Iceberg REST catalogue specifies: 200, 201, 204 and the default's 4xx are kept.
    pub const fn iceberg() -> Self {
        Self::of(Base::Iceberg)
    }

    /// Only 2xx are kept.
    pub const fn success_only() -> Self {
        Self::of(Base::SuccessOnly)
    }

    /// Only 2xx and 3xx are kept.
    pub(super) const fn success_and_redirects() -> Self {
        Self::of(Base::SuccessAndRedirects)
    }

    /// Asks `decide` for each status.
    pub const fn by(decide: fn(StatusCode) -> Directive) -> Self {
        Self::of(Base::By(decide))
    }

    /// Gives `status` a directive of its own, which also beats the rule about `Retry-After`.
    ///
    /// # Panics
    /// `status` is not within 100–999.
    pub fn on(self, status: u16, directive: Directive) -> Self {
        assert!(
            (100..=999).contains(&status),
            "a status is a number from 100 to 999"
        );
        self.on_range(status, status, directive)
    }

    pub(super) fn on_range(mut self, first: u16, last: u16, directive: Directive) -> Self {
        self.on.push((first, last, directive));
        self
    }

    /// Decides about one answer; `retry_later` says that it carries `Retry-After`.
    #[must_use]
    pub fn decide(&self, status: StatusCode, retry_later: bool) -> Directive {
        let code = status.as_u16();
        let own = self
            .on
            .iter()
            .rev()
            .find(|(first, last, _)| (*first..=*last).contains(&code));
        if let Some((_, _, directive)) = own {
            return *directive;
        }
        if let Base::By(decide) = self.base {
            return decide(status);
        }
        if code < 200 {
            return Directive::NoStore;
        }
        if self.base.keeps(code, retry_later) {
            Directive::Store
        } else {
            Directive::Release
        }
    }
}

impl Base {
    fn keeps(self, code: u16, retry_later: bool) -> bool {
        let class = code / 100;
        let client_error =
            || !retry_later && !matches!(code, 401 | 403 | 407 | 408 | 421 | 423 | 425 | 429);
        match self {
            Self::Default => matches!(class, 2 | 3) || class == 4 && client_error(),
            Self::Ietf => matches!(class, 2 | 3 | 5) || class == 4 && client_error(),
            Self::Stripe => {
                (200..600).contains(&code) && !matches!(code, 400 | 401 | 403 | 409 | 425 | 429)
            }
            Self::Iceberg => matches!(code, 200 | 201 | 204) || class == 4 && client_error(),
            Self::SuccessOnly => class == 2,
            Self::SuccessAndRedirects => matches!(class, 2 | 3),
            Self::By(_) => false,
        }
    }
}

/// Says why an answer cannot be collected at all, whatever its size.
pub(super) fn streamed(status: StatusCode, fields: &HeaderMap) -> Option<TombstoneReason> {
    let content_type = fields
        .get(header::CONTENT_TYPE)
        .map_or(&b""[..], |value| value.as_bytes());
    let essence = content_type
        .split(|byte| *byte == b';')
        .next()
        .unwrap_or_default()
        .trim_ascii();
    let starts = |with: &[u8]| {
        essence.len() >= with.len() && essence[..with.len()].eq_ignore_ascii_case(with)
    };
    let is_stream = essence.eq_ignore_ascii_case(b"text/event-stream")
        || essence.eq_ignore_ascii_case(b"multipart/x-mixed-replace")
        || starts(b"application/grpc");
    (is_stream || status == StatusCode::SWITCHING_PROTOCOLS).then_some(TombstoneReason::Streamed)
}

/// Reads the length of the body that a head announces.
pub(super) fn said_length(status: StatusCode, fields: &HeaderMap) -> Option<u64> {
    let has_body = !matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let said = fields.get(header::CONTENT_LENGTH).filter(|_| has_body)?;
    said.to_str().ok()?.parse().ok()
}

/// Says whether a field belongs to one exchange or one client; those of core come besides.
fn is_of_exchange(name: &str) -> bool {
    matches!(
        name,
        "content-length"
            | "date"
            | "age"
            | "via"
            | "set-cookie"
            | "www-authenticate"
            | "proxy-authenticate"
            | "authentication-info"
            | "proxy-authentication-info"
            | "cache-status"
            | "x-request-id"
            | "x-correlation-id"
            | "traceparent"
            | "tracestate"
            | "server-timing"
            | "trailer"
            | "upgrade"
    )
}

/// Returns those of `all`, fields or trailers, that may be kept: only `allowed`, if there is such a list, and never
/// those of one exchange.
pub(super) fn kept_fields(all: &HeaderMap, allowed: Option<&[HeaderName]>) -> HeaderMap {
    let mut kept = HeaderMap::with_capacity(all.keys_len() + 2);
    let names_more = all.contains_key(header::CONNECTION);
    for (name, value) in all {
        let wanted = allowed.is_none_or(|allowed| allowed.contains(name));
        let more = names_more.then_some(all);
        if wanted && !is_never_stored(name, more) {
            kept.append(name.clone(), value.clone());
        }
    }
    kept
}

/// The same of trailers; `None` where nothing is left of them.
pub(super) fn kept_trailers(
    all: Option<&HeaderMap>,
    allowed: Option<&[HeaderName]>,
) -> Option<HeaderMap> {
    all.map(|all| kept_fields(all, allowed))
        .filter(|kept| !kept.is_empty())
}

/// Adds the names under which kept trailers were announced: without them HTTP/1.1 sends none.
pub(super) fn announce(kept: &mut HeaderMap, all: &HeaderMap) {
    for names in all.get_all(header::TRAILER) {
        kept.append(header::TRAILER, names.clone());
    }
}

/// `all` only where a `Connection` field may name more.
fn is_never_stored(name: &HeaderName, all: Option<&HeaderMap>) -> bool {
    let text = name.as_str();
    is_of_exchange(text)
        || fields::is_of_connection(name)
        || text.starts_with("x-ratelimit-")
        || text.starts_with("ratelimit-")
        || text.starts_with("idempotency-")
        || fields::is_rate_limit(name)
        || all.is_some_and(|all| fields::is_hop_by_hop(name, all))
}

/// The few fields that a tombstone keeps.
pub(super) fn tombstone_fields(all: &HeaderMap) -> HeaderMap {
    let mut kept = HeaderMap::new();
    for name in [header::LOCATION, header::CONTENT_LOCATION, header::ETAG] {
        if let Some(value) = all.get(&name) {
            kept.insert(name, value.clone());
        }
    }
    kept
}

/// Whole seconds after which a twin may find the answer: what is left of an average run, 1 to 30.
pub(super) fn retry_after(mean: Duration, elapsed: Duration) -> u64 {
    let left = mean.saturating_sub(elapsed);
    left.as_micros().div_ceil(1_000_000).clamp(1, 30) as u64
}

/// Moves an average by an eighth of the way to `sample`; both in microseconds.
pub(super) const fn ewma(mean: u64, sample: u64) -> u64 {
    mean - mean / 8 + sample / 8
}

#[cfg(test)]
mod tests;
