//! What one pass over an answer's fields shows, so that what is not there is not looked up.

use http::header::{self, HeaderMap, HeaderValue};

/// Which of the fields that decide about storing are there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) set_cookie: bool,
    /// A Content-Type of what never ends.
    pub(super) stream: bool,
    pub(super) content_length: bool,
    /// Vary, or what implies it.
    pub(super) varies: bool,
    /// Tags or groups.
    pub(super) tags: bool,
    /// An ETag or Last-Modified.
    pub(super) validator: bool,
    /// Date or Age.
    pub(super) age: bool,
    pub(super) date: bool,
    pub(super) connection: bool,
    /// The size of the header block.
    pub(super) block: usize,
}

impl Seen {
    pub(super) fn of(fields: &HeaderMap) -> Self {
        let mut seen = Self::default();
        for (name, value) in fields {
            seen.block += name.as_str().len() + value.len() + 4;
            match *name {
                header::SET_COOKIE => seen.set_cookie = true,
                header::CONTENT_TYPE => seen.stream |= is_stream(value),
                header::CONTENT_LENGTH => seen.content_length = true,
                header::ETAG | header::LAST_MODIFIED => seen.validator = true,
                header::DATE => (seen.age, seen.date) = (true, true),
                header::AGE => seen.age = true,
                header::CONNECTION => seen.connection = true,
                header::VARY | header::CONTENT_ENCODING | header::ACCESS_CONTROL_ALLOW_ORIGIN => {
                    seen.varies = true
                }
                _ => {
                    let name = name.as_str();
                    seen.tags |= matches!(name, "surrogate-key" | "cache-tag" | "cache-groups");
                }
            }
        }
        seen
    }
}

fn is_stream(kind: &HeaderValue) -> bool {
    let kind = kind.as_bytes();
    let end = kind.iter().position(|byte| *byte == b';');
    let kind = kind[..end.unwrap_or(kind.len())].trim_ascii();
    kind.eq_ignore_ascii_case(b"text/event-stream")
        || kind.eq_ignore_ascii_case(b"multipart/x-mixed-replace")
}
