//! What makes two requests the same request.

use std::borrow::Cow;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderMap, HeaderName};
use smallvec::SmallVec;

use super::digest::Digest;
use super::json::Json;
use super::mac::{Hasher, Keyed};
use super::multipart::Multipart;
use super::record::Fingerprint;
use crate::core::original_uri;

/// The path as it was routed, after the whole one where a router has cut its prefix away: the rest alone would mean
/// different things. No path has a space in it.
pub(super) fn path_of(parts: &Parts) -> Cow<'_, str> {
    let path = parts.uri.path();
    match original_uri(&parts.extensions) {
        Some(whole) if whole.path() != path => Cow::Owned(format!("{} {path}", whole.path())),
        _ => Cow::Borrowed(path),
    }
}

/// What of a request counts when a key comes again: the same is a repetition, another is 422.
///
/// Method and path count always.
#[derive(Clone, Debug)]
#[must_use]
pub struct FingerprintRule {
    body: BodyRule,
    headers: Vec<HeaderName>,
    include: Vec<Box<str>>,
    exclude: Vec<Box<str>>,
    digests: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BodyRule {
    Bytes,
    Json,
    Route,
}

impl FingerprintRule {
    const fn of(body: BodyRule) -> Self {
        Self {
            body,
            headers: Vec::new(),
            include: Vec::new(),
            exclude: Vec::new(),
            digests: false,
        }
    }

    /// Query, content type and body as received. Order of differently named query parameters and the
    /// boundary of a multipart body do not count.
    pub const fn bytes() -> Self {
        Self::of(BodyRule::Bytes)
    }

    /// As [`FingerprintRule::bytes`], but a JSON body counts by value: order of members and spelling of
    /// numbers and strings do not matter. The content type counts as it was received.
    pub const fn json() -> Self {
        Self::of(BodyRule::Json)
    }

    /// Method and path only; the default with a derived key.
    pub const fn route() -> Self {
        Self::of(BodyRule::Route)
    }

    /// Lets the values of the request field `name` count too.
    pub fn header(mut self, name: HeaderName) -> Self {
        self.headers.push(name);
        self
    }

    /// Of a JSON body, lets only what stands at these RFC 6901 pointers count.
    ///
    /// # Panics
    /// The rule is not [`FingerprintRule::json`], or `pointer` is neither empty nor begins with `/`.
    pub fn include(mut self, pointer: &str) -> Self {
        self.check(pointer);
        self.include.push(pointer.into());
        self
    }

    /// Leaves what stands at this RFC 6901 pointer of a JSON body out.
    ///
    /// # Panics
    /// The rule is not [`FingerprintRule::json`], or `pointer` is neither empty nor begins with `/`.
    pub fn exclude(mut self, pointer: &str) -> Self {
        self.check(pointer);
        self.exclude.push(pointer.into());
        self
    }

    /// Lets `Content-Digest`, else `Repr-Digest` (RFC 9530; sha-256, sha-512), stand for the body.
    ///
    /// A body within [`max_request_body`](super::IdempotencyLayer::max_request_body) is checked before anything is
    /// claimed; a wrong one is 400. A larger one is not refused: it streams to the handler and is checked on its way. If it
    /// turns out wrong its last bytes are never given out, the handler is dropped, the key is free and the client gets
    /// 400; if the client breaks off, the handler's answer is not kept. Bodies without a digest count as before.
    ///
    /// Such a stream is refused (503) while the store is away, also under `StoreFailure::Open`; with a derived key and in
    /// transactional mode it stays 413. It is to be read in the handler: a task of its own that outlives a dropped
    /// handler waits for the end of a wrong body for ever.
    pub const fn digest_uploads(mut self) -> Self {
        self.digests = true;
        self
    }

    /// What the body says it is, where that counts.
    pub(super) fn digest_of(&self, fields: &HeaderMap) -> Option<Digest> {
        if self.digests {
            Digest::of(fields)
        } else {
            None
        }
    }

    #[track_caller]
    fn check(&self, pointer: &str) {
        assert!(
            self.body == BodyRule::Json,
            "a pointer needs FingerprintRule::json()"
        );
        assert!(
            pointer.is_empty() || pointer.starts_with('/'),
            "a pointer begins with a slash"
        );
    }

    /// Returns the tag of the rule with all that belongs to it: another set of fields is another rule.
    pub(super) fn tag(&self) -> u8 {
        let mut hasher = Keyed::new(&[0; 32], b"rule").start();
        hasher.number(self.body as u64);
        for name in &self.headers {
            hasher.part(name.as_str().as_bytes());
        }
        for (kind, pointers) in [(1, &self.include), (2, &self.exclude)] {
            for pointer in pointers {
                hasher.number(kind).part(pointer.as_bytes());
            }
        }
        if self.digests {
            hasher.number(3);
        }
        // 0 is the tag of records that nobody can read.
        hasher.finish()[0].max(1)
    }

    /// Hashes a request.
    pub(super) fn of_request(
        &self,
        keyed: &Keyed,
        tag: u8,
        parts: &Parts,
        body: &Bytes,
    ) -> Fingerprint {
        let mut hasher = keyed.start();
        hasher
            .number(u64::from(tag))
            .part(parts.method.as_str().as_bytes());
        hasher.part(path_of(parts).as_bytes());
        for name in &self.headers {
            let values = parts.headers.get_all(name);
            hasher.number(values.iter().count() as u64);
            for value in values {
                hasher.part(value.as_bytes());
            }
        }
        if self.body != BodyRule::Route {
            hash_query(&mut hasher, parts.uri.query());
            self.hash_body(&mut hasher, parts, body);
        }
        Fingerprint {
            rule: tag,
            hash: hasher.finish(),
        }
    }

    fn hash_body(&self, hasher: &mut Hasher, parts: &Parts, body: &Bytes) {
        let content_type = parts
            .headers
            .get(CONTENT_TYPE)
            .map_or(&b""[..], |value| value.as_bytes());
        if let Some(digest) = self.digest_of(&parts.headers) {
            hasher.number(4).part(content_type);
            return digest.put(hasher);
        }
        if self.body == BodyRule::Json
            && is_json(content_type)
            && let Some(mut json) = Json::parse(body)
        {
            self.exclude.iter().for_each(|pointer| json.remove(pointer));
            hasher.number(1).part(content_type);
            if self.include.is_empty() {
                hasher.part(&json.canonical());
            }
            for pointer in &self.include {
                hasher.part(pointer.as_bytes());
                match json.at(pointer) {
                    Some(found) => hasher.number(1).part(&found.canonical()),
                    None => hasher.number(0),
                };
            }
        } else if let Some(multipart) = Multipart::of(content_type) {
            hasher.number(2);
            multipart.hash(hasher, body);
        } else {
            hasher.number(3).part(content_type).part(body);
        }
    }
}

/// Takes in the parameters sorted by name, equal names in their order; nothing is decoded.
fn hash_query(hasher: &mut Hasher, query: Option<&str>) {
    let Some(query) = query else {
        hasher.number(0);
        return;
    };
    let mut parameters: SmallVec<[&str; 16]> = query.split('&').collect();
    parameters.sort_by_key(|parameter| parameter.split('=').next().unwrap_or_default());
    hasher.number(parameters.len() as u64);
    for parameter in parameters {
        hasher.part(parameter.as_bytes());
    }
}

pub(super) fn is_json(content_type: &[u8]) -> bool {
    let essence = content_type
        .split(|byte| *byte == b';')
        .next()
        .unwrap_or_default()
        .trim_ascii();
    let lower = essence.to_ascii_lowercase();
    lower == b"application/json" || lower.ends_with(b"+json")
}

#[cfg(test)]
mod tests;
