//! The answer to a request that is over its limit: a text, and a copy of fields that are ready.

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use http::{Extensions, HeaderMap, HeaderName, HeaderValue, Response, StatusCode};

use super::config::Config;
use super::decide;
use super::headers::{self, Policies, RateLimitFields};
use super::rejection::{RateLimitRejection, content_type, no_store};
use super::status::{RateLimitStatus, Statuses};
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
    hook(&rejection, &mut response);
    rejection.set_retry_after(response.headers_mut());
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
    let mut fields = config.refusal_fields.clone();
    let (mut limits, mut policies) = (None, None);
    if config.settings.fields.standard {
        let line = headers::policies(config, &own);
        if let Policies::None = line {
            fields.remove(RATE_LIMIT);
            fields.remove(RATE_LIMIT_POLICY);
        } else {
            limits = headers::limits(config, &own);
        }
        if let Policies::Other = line {
            policies = headers::policies_as_asked(&own);
        }
    }
    let rejection = decide::rejection(config, own);
    let wait = rejection.retry_after_secs();
    if wait.is_none() {
        fields.remove(RETRY_AFTER);
    }
    let body = rejection.body();
    let length = number_field(body.len() as u64);
    fill(
        &mut fields,
        [Some(length), wait.map(number_field), limits, policies],
    );
    older.apply(&mut fields);
    extensions.clear();
    extensions.insert(rejection);
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
    *response.headers_mut() = fields;
    *response.extensions_mut() = extensions;
    response
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
