//! The answer to a request that is over its limit: a text, and a copy of fields that are ready.

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, Entry, RETRY_AFTER};
use http::{Extensions, HeaderMap, HeaderName, HeaderValue, Response, StatusCode};

use super::config::Config;
use super::decide;
use super::headers::{self, Policies, RateLimitFields};
use super::rejection::{RateLimitRejection, content_type, no_store};
use super::repeated::{Answer, Numbers};
use super::status::{PolicyStatus, RateLimitStatus, Statuses};
use crate::core::fields::{RATE_LIMIT, RATE_LIMIT_POLICY};
use crate::core::number_field;

/// The fields that are written for each answer, in the order in which a prepared map has them.
static WRITTEN: [HeaderName; 4] = [CONTENT_LENGTH, RETRY_AFTER, RATE_LIMIT, RATE_LIMIT_POLICY];

/// The fields of an answer; the numbers in them are written for each.
pub(super) fn prepared(standard: bool, policy_line: Option<&HeaderValue>) -> HeaderMap {
    // Twice the room: a map that is full grows when one of its fields is set again.
    let mut fields = HeaderMap::with_capacity(12);
    fields.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    fields.insert(RETRY_AFTER, HeaderValue::from_static("1"));
    if standard {
        let line = policy_line.cloned();
        let line = line.unwrap_or_else(|| HeaderValue::from_static(""));
        fields.insert(RATE_LIMIT, HeaderValue::from_static(""));
        fields.insert(RATE_LIMIT_POLICY, line);
    }
    fields.insert(CONTENT_TYPE, content_type());
    fields.insert(CACHE_CONTROL, no_store());
    fields
}

/// Makes the answer of a refusal, as the hook wants it.
pub(super) fn refused(config: &Config, rejection: RateLimitRejection) -> Response<Bytes> {
    let Some(hook) = &config.settings.hook else {
        return rejection.into_response_of_bytes();
    };
    let mut response = rejection.response();
    let cache_control = response.headers().get(CACHE_CONTROL).cloned();
    hook(&rejection, &mut response);
    rejection.set_retry_after(response.headers_mut());
    // A hook may make a response of its own: no cache keeps it, and whoever is outside learns the cause.
    if let (Some(value), Entry::Vacant(vacant)) =
        (cache_control, response.headers_mut().entry(CACHE_CONTROL))
    {
        vacant.insert(value);
    }
    response.extensions_mut().insert(rejection);
    response
}

/// Makes the answer to a request that is over its limit; `extensions` are the request's, which nobody needs any more.
pub(super) fn limited(
    config: &Config,
    mut extensions: Extensions,
    own: Statuses,
) -> Response<Bytes> {
    let earlier = extensions.get::<RateLimitStatus>();
    if config.settings.hook.is_some() {
        let fields = RateLimitFields::render(config, earlier, &own);
        let mut response = refused(config, decide::rejection(config, own));
        fields.apply_after_hook(response.headers_mut());
        return response;
    }
    let older = RateLimitFields::older(config, earlier, &own);
    let (rejection, Answer { mut fields, body }) = match own.as_slice() {
        [only] if only.is_violated() => by_one(config, decide::rejection(config, own)),
        _ => {
            // The fields tell also of policies that did not refuse.
            let lines = Lines::of(config, &own);
            let rejection = decide::rejection(config, own);
            let answer = answer(config, &rejection, lines);
            (rejection, answer)
        }
    };
    older.apply(&mut fields);
    extensions.clear();
    extensions.insert(rejection);
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
    *response.headers_mut() = fields;
    *response.extensions_mut() = extensions;
    response
}

/// The usual refusal: whoever asks too often is told the same again and again.
fn by_one(config: &Config, rejection: RateLimitRejection) -> (RateLimitRejection, Answer) {
    let make = || {
        let lines = Lines::of(config, rejection.violated_policies());
        answer(config, &rejection, lines)
    };
    let answer = match Numbers::of(&rejection) {
        Some(numbers) => config.repeated.answer(numbers, make),
        None => make(),
    };
    (rejection, answer)
}

/// The standard fields of an answer.
#[derive(Default)]
struct Lines {
    are_shown: bool,
    limits: Option<HeaderValue>,
    /// `None` where the prepared one fits.
    policies: Option<HeaderValue>,
}

impl Lines {
    fn of(config: &Config, own: &[PolicyStatus]) -> Self {
        if !config.settings.fields.standard {
            return Self::default();
        }
        let policies = match headers::policies(config, own) {
            Policies::None => return Self::default(),
            Policies::AsDeclared(_) => None,
            Policies::Other => headers::policies_as_asked(own),
        };
        Self {
            are_shown: true,
            limits: headers::limits(config, own),
            policies,
        }
    }
}

/// Makes the fields and the document of a refusal.
fn answer(config: &Config, rejection: &RateLimitRejection, lines: Lines) -> Answer {
    let mut fields = config.refusal_fields.clone();
    if config.settings.fields.standard && !lines.are_shown {
        fields.remove(RATE_LIMIT);
        fields.remove(RATE_LIMIT_POLICY);
    }
    let wait = rejection.retry_after_secs();
    if wait.is_none() {
        fields.remove(RETRY_AFTER);
    }
    let body = rejection.body();
    let length = number_field(body.len() as u64);
    let written = [
        Some(length),
        wait.map(number_field),
        lines.limits,
        lines.policies,
    ];
    fill(&mut fields, written);
    Answer { fields, body }
}

/// Sets what is written: in one pass and without a look-up where it stands in the prepared order.
fn fill(fields: &mut HeaderMap, mut values: [Option<HeaderValue>; 4]) {
    let written = WRITTEN.iter().zip(&mut values);
    for ((name, field), (own, value)) in fields.iter_mut().zip(written) {
        if name == own
            && let Some(value) = value.take()
        {
            *field = value;
        }
    }
    for (name, value) in WRITTEN.iter().zip(values) {
        if let Some(value) = value {
            fields.insert(name, value);
        }
    }
}
