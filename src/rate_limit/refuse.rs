//! The answer to a request that is over its limit: one piece of text, and a copy of fields that are ready.

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};

use super::config::Config;
use super::decide::{self, Decided};
use super::headers::{self, Policies, RateLimitFields};
use super::rejection::{RateLimitRejection, content_type, no_store};
use super::status::RateLimitStatus;
use crate::core::Digits;
use crate::core::fields::{RATE_LIMIT, RATE_LIMIT_POLICY};

/// Bytes that most answers fit into.
const ROOM: usize = 640;

/// The fields of an answer; the numbers in them are written for each.
pub(super) fn prepared(standard: bool, policy_line: Option<&HeaderValue>) -> HeaderMap {
    // Twice the room: a map that is full grows when one of its fields is set again.
    let mut fields = HeaderMap::with_capacity(12);
    fields.insert(CONTENT_TYPE, content_type());
    fields.insert(CACHE_CONTROL, no_store());
    fields.insert(RETRY_AFTER, HeaderValue::from_static("1"));
    fields.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    if standard {
        let line = policy_line.cloned();
        let line = line.unwrap_or_else(|| HeaderValue::from_static(""));
        fields.insert(RATE_LIMIT_POLICY, line);
        fields.insert(RATE_LIMIT, HeaderValue::from_static(""));
    }
    fields
}

/// Makes the answer of a refusal, as the hook wants it.
pub(super) fn refused(config: &Config, rejection: RateLimitRejection) -> Response<Bytes> {
    let Some(hook) = &config.settings.hook else {
        return rejection.into_response_of_bytes();
    };
    let mut response = rejection.response();
    hook(&rejection, &mut response);
    rejection.set_retry_after(response.headers_mut());
    response
}

/// Makes the answer to a request that is over its limit.
#[inline]
pub(super) fn limited(
    config: &Config,
    earlier: Option<&RateLimitStatus>,
    decided: Decided,
) -> Response<Bytes> {
    if config.settings.hook.is_some() {
        let fields = RateLimitFields::render(config, earlier, &decided.own);
        let mut response = refused(config, decide::rejection(config, decided.own));
        fields.apply_after_hook(response.headers_mut());
        return response;
    }
    let own = &decided.own;
    let older = RateLimitFields::older(config, earlier, own);
    let (mut text, mut fields) = (Text::new(), config.refusal_fields.clone());
    let (mut limits, mut policies) = (None, None);
    if config.settings.fields.standard {
        limits = Some(text.write(|out| headers::push_limits(out, config, own)));
        policies = match headers::policies(config, own) {
            Policies::AsDeclared(_) => None,
            Policies::Other => Some(text.write(|out| headers::push_policies(out, own))),
            Policies::None => Some(Part::default()),
        };
    }
    let rejection = decide::rejection(config, decided.own);
    let body = text.write(|out| rejection.write(out));
    let length = text.write(|out| push_number(out, (body.end - body.start) as u64));
    let wait = rejection.retry_after_secs();
    let wait = text.write(|out| wait.into_iter().for_each(|wait| push_number(out, wait)));

    let text = text.done();
    let pieces = [
        (&CONTENT_LENGTH, Some(length)),
        (&RETRY_AFTER, Some(wait)),
        (&RATE_LIMIT, limits),
        (&RATE_LIMIT_POLICY, policies),
    ];
    text.fill(&mut fields, &pieces);
    older.apply(&mut fields);
    let mut response = Response::new(text.bytes.slice(body.start..body.end));
    *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
    *response.headers_mut() = fields;
    response.extensions_mut().insert(rejection);
    response
}

fn push_number(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(Digits::of(number).text());
}

/// All that is written of an answer, in one allocation.
struct Text {
    out: Vec<u8>,
}

/// Where a piece of it lies.
#[derive(Clone, Copy, Debug, Default)]
struct Part {
    start: usize,
    end: usize,
}

struct Done {
    bytes: Bytes,
}

impl Text {
    fn new() -> Self {
        Self {
            out: Vec::with_capacity(ROOM),
        }
    }

    fn write(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> Part {
        let start = self.out.len();
        write(&mut self.out);
        let end = self.out.len();
        Part { start, end }
    }

    fn done(self) -> Done {
        Done {
            bytes: Bytes::from(self.out),
        }
    }
}

impl Done {
    /// Sets fields that are there to pieces of the text, in one pass and without a look-up; what has an empty piece
    /// is taken away.
    fn fill(&self, fields: &mut HeaderMap, pieces: &[(&HeaderName, Option<Part>)]) {
        for (name, field) in fields.iter_mut() {
            // Two of the fields are the same in all answers.
            if [CONTENT_TYPE, CACHE_CONTROL].contains(name) {
                continue;
            }
            let own = pieces.iter().find(|(own, _)| *own == name);
            if let Some((_, Some(part))) = own {
                let value = HeaderValue::from_maybe_shared(self.bytes.slice(part.start..part.end));
                // Digits, and names that were checked when the policies were made.
                *field = value.unwrap_or_else(|_| HeaderValue::from_static(""));
            }
        }
        for (name, part) in pieces {
            if part.is_some_and(|part| part.start == part.end) {
                fields.remove(*name);
            }
        }
    }
}
