//! Makes the answer for one request out of a stored response.

use bytes::Bytes;
use http::header::{self, AGE, HeaderMap, HeaderValue};
use http::{Response, StatusCode};

use super::age;
use super::body::ResponseBody;
use super::config::Config;
use super::entry::{Entry, Flags, Head};
use super::feed::Reader;
use super::fields::ROOM;
use super::freshness::{self, MICROS};
use super::policy;
use super::range::{self, Part};
use super::revalidate;
use super::status::Said;
use crate::core::ResponseCacheOutcome;
use crate::core::fields::CACHE_STATUS;

/// What of a request shapes the form of its answer, lent: a hit copies nothing of its request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'a> {
    /// HEAD: the same head, no body.
    pub(super) head: bool,
    /// The request's fields, where conditions or a range are among them.
    pub(super) conditions: Option<&'a HeaderMap>,
}

/// Answers a hit: nothing is written but what changes with the second. Its extensions are the caller's to put.
pub(super) fn hit<R>(
    entry: &Entry,
    asked: Asked<'_>,
    config: &Config,
    now: u64,
    outcome: ResponseCacheOutcome,
) -> Response<ResponseBody<R>> {
    let head = entry.head();
    // Stale within its lifetime: by an invalidation.
    let expired = outcome == ResponseCacheOutcome::StaleHit && head.age(now) < head.lifetime;
    let left = if expired { -1 } else { ttl(head, now) };
    let written = (
        Some(age::value(age_seconds(head, now))),
        config.status.hit(left),
    );
    finish(
        entry,
        asked,
        config,
        HeaderMap::clone(&head.fields),
        written,
    )
}

/// Answers from `entry`, with its age.
pub(super) fn stored<R>(
    entry: &Entry,
    asked: Asked<'_>,
    config: &Config,
    now: u64,
    said: Said,
    outcome: ResponseCacheOutcome,
) -> Response<ResponseBody<R>> {
    let head = entry.head();
    let age = age::value(age_seconds(head, now));
    let written = (Some(age), config.status.value(said));
    let fields = HeaderMap::clone(&head.fields);
    let mut response = finish(entry, asked, config, fields, written);
    response.extensions_mut().insert(outcome);
    response
}

fn age_seconds(head: &Head, now: u64) -> u64 {
    (head.age(now) / MICROS).min(1 << 31)
}

/// Answers with `entry` as it was just fetched: without an age of ours.
pub(super) fn fetched<R>(
    entry: &Entry,
    asked: Asked<'_>,
    config: &Config,
    mut fields: HeaderMap,
    said: Said,
    outcome: ResponseCacheOutcome,
) -> Response<ResponseBody<R>> {
    fields.remove(AGE);
    let written = (None, config.status.value(said));
    let mut response = finish(entry, asked, config, fields, written);
    response.extensions_mut().insert(outcome);
    response
}

/// Answers with a body that is still on its way to somebody else.
pub(super) fn joined<R>(
    head: &Head,
    reader: Reader<R>,
    config: &Config,
    now: u64,
    said: Said,
    outcome: ResponseCacheOutcome,
) -> Response<ResponseBody<R>> {
    let mut fields = HeaderMap::clone(&head.fields);
    let age = age::value(age_seconds(head, now));
    fill(&mut fields, config, Some(age), config.status.value(said));
    let reader = reader.of_length(policy::content_length(&fields));
    let mut response = Response::new(ResponseBody::fed(reader));
    *response.status_mut() = head.status;
    *response.headers_mut() = fields;
    response.extensions_mut().insert(outcome);
    response
}

fn finish<R>(
    entry: &Entry,
    asked: Asked<'_>,
    config: &Config,
    mut fields: HeaderMap,
    (age, said): (Option<HeaderValue>, HeaderValue),
) -> Response<ResponseBody<R>> {
    fill(&mut fields, config, age, said);
    let (status, body) = shape(entry, asked, &mut fields, || {
        (entry.body(), entry.head().trailers.clone())
    });
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = fields;
    response
}

/// Writes the two values that change with each answer into the room that is kept for them.
fn fill(fields: &mut HeaderMap, config: &Config, age: Option<HeaderValue>, said: HeaderValue) {
    if config.status.is_hidden() {
        fields.remove(CACHE_STATUS);
    }
    let (mut age, mut said) = (age, Some(said));
    // They lead the map, unless somebody took a field out: no need to look for them.
    for (name, value) in fields.iter_mut().take(ROOM) {
        let written = match *name {
            AGE => age.take(),
            _ if *name == CACHE_STATUS => said.take(),
            _ => None,
        };
        if let Some(written) = written {
            *value = written;
        }
    }
    for (name, written) in [(AGE, age), (CACHE_STATUS, said)] {
        if let Some(written) = written
            && let Some(value) = fields.get_mut(name)
        {
            *value = written;
        }
    }
}

/// Says whether answers of this status have a length where they have no body (RFC 9110 §8.6).
pub(super) const fn has_length(status: StatusCode) -> bool {
    !matches!(status.as_u16(), 204 | 205 | 304)
}

/// Evaluates conditions and range on a complete answer (RFC 9110 §13, §14), whose body and trailers are asked for where
/// they are sent.
pub(super) fn shape<R>(
    entry: &Entry,
    asked: Asked<'_>,
    fields: &mut HeaderMap,
    body: impl FnOnce() -> (Bytes, Option<Box<HeaderMap>>),
) -> (StatusCode, ResponseBody<R>) {
    let (status, length) = (entry.head().status, entry.body_bytes());
    // Near enough to settle the century of a two-digit year.
    let now = freshness::seconds_of(entry.head().received);
    if let Some(conditions) = asked.conditions.filter(|_| status == StatusCode::OK) {
        if revalidate::is_not_modified(conditions, fields, now) {
            revalidate::without_body(fields);
            return (StatusCode::NOT_MODIFIED, ResponseBody::empty());
        }
        if !asked.head {
            match range::part(conditions, fields, length as u64, now) {
                Part::Whole => {}
                Part::Bytes(first, last) => return part(fields, &body().0, first, last),
                Part::Unsatisfiable => return unsatisfiable(fields, length),
            }
        }
    }
    if asked.head {
        let unsaid = !fields.contains_key(header::CONTENT_LENGTH);
        if unsaid && has_length(status) && entry.trailers().is_none() {
            fields.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        }
        return (status, ResponseBody::empty());
    }
    let (data, trailers) = body();
    (status, ResponseBody::bytes(data, trailers))
}

fn part<R>(
    fields: &mut HeaderMap,
    body: &Bytes,
    first: u64,
    last: u64,
) -> (StatusCode, ResponseBody<R>) {
    put_range(fields, first, last, body.len() as u64);
    let slice = body.slice(first as usize..=last as usize);
    (
        StatusCode::PARTIAL_CONTENT,
        ResponseBody::bytes(slice, None),
    )
}

/// Makes the fields of a whole answer those of a part.
pub(super) fn put_range(fields: &mut HeaderMap, first: u64, last: u64, length: u64) {
    if let Ok(range) = HeaderValue::try_from(format!("bytes {first}-{last}/{length}")) {
        fields.insert(header::CONTENT_RANGE, range);
    }
    without_digest(fields);
    fields.insert(header::CONTENT_LENGTH, HeaderValue::from(last - first + 1));
}

/// Takes off what is of the whole body, where that is not what goes out (RFC 9530 §2).
fn without_digest(fields: &mut HeaderMap) {
    fields.remove("content-digest");
    fields.remove("content-md5");
}

fn unsatisfiable<R>(fields: &mut HeaderMap, length: usize) -> (StatusCode, ResponseBody<R>) {
    revalidate::without_body(fields);
    without_digest(fields);
    if let Ok(range) = HeaderValue::try_from(format!("bytes */{length}")) {
        fields.insert(header::CONTENT_RANGE, range);
    }
    (StatusCode::RANGE_NOT_SATISFIABLE, ResponseBody::empty())
}

/// Adds to an answer what its terms say that clients get: `downstream`, and `private` on private routes.
pub(super) fn put_downstream(fields: &mut HeaderMap, flags: Flags, config: &Config) {
    if flags.has(Flags::OWN_CACHE_CONTROL) {
        fields.insert(header::CACHE_CONTROL, config.downstream.clone());
    }
    if config.private() {
        let said = super::directives::Directives::of(fields.get_all(header::CACHE_CONTROL));
        if !said.private {
            fields.append(header::CACHE_CONTROL, HeaderValue::from_static("private"));
        }
    }
}

/// Whole seconds that `head` is still fresh for, negative when stale.
pub(super) fn ttl(head: &Head, now: u64) -> i64 {
    let (lifetime, age) = (head.lifetime.cast_signed(), head.age(now).cast_signed());
    lifetime
        .saturating_sub(age)
        .div_euclid(MICROS.cast_signed())
}
