//! Refusals as problem documents (RFC 9457), `application/problem+json`.

use std::borrow::Cow;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};
use serde_json::Value;
use smallvec::SmallVec;

/// What `type` begins with; the code follows.
pub const TYPE_BASE: &str =
    "https://docs.rs/tower-keep/latest/tower_keep/problem_codes/index.html#";

/// The registered type for a used-up quota.
pub const QUOTA_EXCEEDED: &str = "https://iana.org/assignments/http-problem-types#quota-exceeded";
/// The registered type for a service that is short of a resource.
pub const REDUCED_CAPACITY: &str =
    "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity";
/// The registered type for a client that behaves abnormally.
pub const ABNORMAL_USAGE: &str =
    "https://iana.org/assignments/http-problem-types#abnormal-usage-detected";

/// The code of every layer for a store that cannot answer.
pub const STORE_UNAVAILABLE: &str = "STORE_UNAVAILABLE";
/// The code of every layer for contention that outlasted its retries.
pub const CONTENTION: &str = "CONTENTION";

/// A problem document under construction.
///
/// ```
/// use http::StatusCode;
/// use tower_keep::core::Problem;
///
/// let response = Problem::new(StatusCode::CONFLICT, "SLOT_ALREADY_BOOKED").detail("the slot is booked").response();
/// assert_eq!(response.headers()["content-type"], "application/problem+json");
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Problem {
    status: StatusCode,
    code: Cow<'static, str>,
    kind: Option<&'static str>,
    title: Option<Cow<'static, str>>,
    detail: Option<Cow<'static, str>>,
    retry_after: Option<u64>,
    members: SmallVec<[(&'static str, Value); 4]>,
}

impl Problem {
    /// Starts a document; `code` is one fault's one name in all layers.
    pub fn new(status: StatusCode, code: impl Into<Cow<'static, str>>) -> Self {
        let (code, members) = (code.into(), SmallVec::new());
        Self {
            status,
            code,
            kind: None,
            title: None,
            detail: None,
            retry_after: None,
            members,
        }
    }

    /// The 503 of every layer whose store cannot answer; asked again after `retry_after` seconds, 1 to 30.
    pub fn store_unavailable(retry_after: u64) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, STORE_UNAVAILABLE)
            .registered_type(REDUCED_CAPACITY)
            .title("Temporary Reduced Capacity")
            .detail("the service cannot reach its store, try again later")
            .retry_after(retry_after.clamp(1, 30))
    }

    /// The 503 of every layer for contention that outlasted its retries; nothing was done.
    pub fn contention() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, CONTENTION)
            .detail("too many requests want the same thing, nothing was done, send it again")
            .retry_after(1)
    }

    /// Uses a registered problem type instead of our own.
    pub fn registered_type(mut self, uri: &'static str) -> Self {
        self.kind = Some(uri);
        self
    }

    /// Sets the title; without it the status phrase.
    pub fn title(mut self, title: impl Into<Cow<'static, str>>) -> Self {
        self.title = Some(title.into());
        self
    }

    /// Sets the sentence about this occurrence. It must never carry text of a store or another client.
    pub fn detail(mut self, detail: impl Into<Cow<'static, str>>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// Sets whole seconds for the `Retry-After` field and the member of that name.
    pub fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// Adds a member.
    pub fn member(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        self.members.push((name, value.into()));
        self
    }

    /// Makes the response: status, document, `Retry-After`, `Cache-Control: no-store`.
    #[must_use]
    pub fn response(self) -> Response<Bytes> {
        let mut response = Response::new(Bytes::from(self.document()));
        *response.status_mut() = self.status;
        let fields = response.headers_mut();
        fields.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        fields.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(seconds) = self.retry_after {
            fields.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }

    fn document(&self) -> Vec<u8> {
        let title = self
            .title
            .as_deref()
            .or(self.status.canonical_reason())
            .unwrap_or("Problem");
        let mut out = Vec::with_capacity(320);
        out.extend_from_slice(b"{\"type\":");
        match self.kind {
            Some(uri) => write_text(&mut out, uri),
            None => write_text(&mut out, &format!("{TYPE_BASE}{}", self.code)),
        }
        out.extend_from_slice(b",\"title\":");
        write_text(&mut out, title);
        out.extend_from_slice(b",\"status\":");
        out.extend_from_slice(self.status.as_str().as_bytes());
        if let Some(detail) = &self.detail {
            out.extend_from_slice(b",\"detail\":");
            write_text(&mut out, detail);
        }
        out.extend_from_slice(b",\"code\":");
        write_text(&mut out, &self.code);
        for (name, value) in &self.members {
            out.extend_from_slice(b",\"");
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(b"\":");
            out.extend_from_slice(value.to_string().as_bytes());
        }
        if let Some(seconds) = self.retry_after {
            out.extend_from_slice(b",\"retry_after\":");
            out.extend_from_slice(seconds.to_string().as_bytes());
        }
        out.push(b'}');
        out
    }
}

fn write_text(out: &mut Vec<u8>, text: &str) {
    // Writing a string to a `Vec` cannot fail.
    let _ = serde_json::to_writer(out, text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_json_with_the_members_in_order_and_the_fields_beside_it() {
        let response = Problem::new(StatusCode::CONFLICT, "HOLD_STATE")
            .detail("a \"quoted\"\nword")
            .member("state", "held")
            .retry_after(3)
            .response();
        assert_eq!(
            (response.status(), &response.headers()[RETRY_AFTER]),
            (StatusCode::CONFLICT, &HeaderValue::from_static("3"))
        );
        let document: Value = serde_json::from_slice(response.body()).unwrap();
        assert_eq!(document["type"], format!("{TYPE_BASE}HOLD_STATE"));
        assert_eq!(document["title"], "Conflict");
        assert_eq!(document["status"], 409);
        assert_eq!(document["detail"], "a \"quoted\"\nword");
        assert_eq!(
            (&document["state"], &document["retry_after"]),
            (&Value::from("held"), &Value::from(3))
        );
    }

    #[test]
    fn an_unknown_status_still_makes_a_document() {
        let response = Problem::new(StatusCode::from_u16(599).unwrap(), "X").response();
        assert_eq!(
            serde_json::from_slice::<Value>(response.body()).unwrap()["title"],
            "Problem"
        );
    }
}
