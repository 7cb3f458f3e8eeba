//! The key of a request: everything that may make its answer another one, length-prefixed.

use std::fmt;
use std::hash::Hasher as _;
use std::mem::swap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};

use http::header::{COOKIE, HeaderMap};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue, Request, Uri};
use sha2::{Digest, Sha256};
use siphasher::sip128::{Hasher128, SipHasher13};
use smallvec::SmallVec;

use super::store::Hash128;
use crate::core::original_uri;

/// Query parameters by which campaigns follow clicks; they select no content.
pub const TRACKING: &[&str] = &[
    "utm_*", "gclid", "gbraid", "wbraid", "fbclid", "msclkid", "mc_eid",
];

/// The first byte of every key: the form of the rest.
const VERSION: u8 = 1;
/// Longer keys are not looked up.
const LONGEST_KEY: usize = 8 * 1_024;

/// The text of a key; most fit in it, and lie in their entry's own memory.
pub(super) type Text = SmallVec<[u8; 96]>;
type By = Arc<dyn Fn(&Parts) -> Option<String> + Send + Sync>;

/// Says what belongs to a route's key beside scheme, host, path and query.
///
/// What is left out of the key is also left out of the URI that the inner service sees.
#[derive(Clone, Default)]
#[must_use]
pub struct KeyRules {
    sort: bool,
    query: QueryRule,
    headers: Vec<HeaderName>,
    cookies: Vec<String>,
    by: Vec<By>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum QueryRule {
    #[default]
    All,
    Ignore(Vec<String>),
    Only(Vec<String>),
}

impl KeyRules {
    /// Starts with the whole query in its own order, and nothing else.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sorts the query's parameters by name; those of one name keep their order.
    pub fn sort_query(mut self) -> Self {
        self.sort = true;
        self
    }

    /// Takes parameters out of the query, by name; `*` at the end of a name stands for any rest.
    pub fn ignore_query<S: AsRef<str>>(mut self, names: impl IntoIterator<Item = S>) -> Self {
        self.query = QueryRule::Ignore(
            names
                .into_iter()
                .map(|name| name.as_ref().to_owned())
                .collect(),
        );
        self
    }

    /// Takes all other parameters out of the query; `*` at the end of a name stands for any rest.
    pub fn only_query<S: AsRef<str>>(mut self, names: impl IntoIterator<Item = S>) -> Self {
        self.query = QueryRule::Only(
            names
                .into_iter()
                .map(|name| name.as_ref().to_owned())
                .collect(),
        );
        self
    }

    /// Adds the values of a request field.
    pub fn header(mut self, name: HeaderName) -> Self {
        self.headers.push(name);
        self
    }

    /// Adds the value of one cookie.
    pub fn cookie(mut self, name: impl Into<String>) -> Self {
        self.cookies.push(name.into());
        self
    }

    /// Adds whatever `part` finds in the request.
    pub fn by(mut self, part: impl Fn(&Parts) -> Option<String> + Send + Sync + 'static) -> Self {
        self.by.push(Arc::new(part));
        self
    }

    pub(super) const fn has_functions(&self) -> bool {
        !self.by.is_empty()
    }

    /// Returns what else belongs to the key, by name: fields, cookies, and the number of functions.
    pub(super) fn own(&self) -> (&[HeaderName], &[String], usize) {
        (&self.headers, &self.cookies, self.by.len())
    }

    /// Asks the route's own functions for their parts of the key.
    pub(super) fn own_parts<B>(&self, request: &mut Request<B>) -> Vec<Option<String>> {
        if self.by.is_empty() {
            return Vec::new();
        }
        // They read a request's head in one piece; it is taken out for that, and put back.
        let (mut parts, ()) = Request::new(()).into_parts();
        let mut swap = |parts: &mut Parts| {
            swap(&mut parts.method, request.method_mut());
            swap(&mut parts.uri, request.uri_mut());
            swap(&mut parts.version, request.version_mut());
            swap(&mut parts.headers, request.headers_mut());
            swap(&mut parts.extensions, request.extensions_mut());
        };
        swap(&mut parts);
        let found = self.by.iter().map(|part| part(&parts)).collect();
        swap(&mut parts);
        found
    }

    /// Rewrites the query by these rules; `None` where nothing changes.
    fn rewrite(&self, query: &str) -> Option<String> {
        if !self.sort && self.query == QueryRule::All {
            return None;
        }
        let keeps = |parameter: &&str| {
            let name = name_of(parameter);
            let listed = |list: &[String]| list.iter().any(|pattern| matches(pattern, name));
            match &self.query {
                QueryRule::All => true,
                QueryRule::Ignore(list) => !listed(list),
                QueryRule::Only(list) => listed(list),
            }
        };
        let mut parameters: Vec<&str> = query.split('&').filter(keeps).collect();
        if self.sort {
            parameters.sort_by_key(|parameter| name_of(parameter));
        }
        let rewritten = parameters.join("&");
        (rewritten != query).then_some(rewritten)
    }
}

impl fmt::Debug for KeyRules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyRules")
            .field("sort", &self.sort)
            .field("query", &self.query)
            .field("headers", &self.headers)
            .field("cookies", &self.cookies)
            .field("by", &self.by.len())
            .finish()
    }
}

fn name_of(parameter: &str) -> &str {
    parameter
        .split_once('=')
        .map_or(parameter, |(name, _)| name)
}

fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == pattern,
    }
}

/// Takes what is not part of the key out of a URI; `None` where nothing changes.
pub(super) fn rewritten(rules: &KeyRules, uri: &Uri) -> Option<Uri> {
    let path = form_of(rules, uri.path(), uri.query()?)?;
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = PathAndQuery::try_from(path).ok();
    // Fewer or reordered parameters of a valid URI make a valid one.
    Uri::from_parts(parts).ok()
}

/// The same of a path with its query, as text.
pub(super) fn in_form(rules: &KeyRules, target: &str) -> Option<String> {
    let (path, query) = target.split_once('?')?;
    form_of(rules, path, query)
}

fn form_of(rules: &KeyRules, path: &str, query: &str) -> Option<String> {
    let query = rules.rewrite(query)?;
    Some(if query.is_empty() {
        path.to_owned()
    } else {
        format!("{path}?{query}")
    })
}

/// Fields that some services build links or decisions from though no `Vary` names them: part of the key when present.
pub(super) fn is_poison(name: &str) -> bool {
    matches!(
        name,
        "x-forwarded-host"
            | "x-forwarded-proto"
            | "x-forwarded-scheme"
            | "x-forwarded-port"
            | "x-forwarded-prefix"
            | "x-host"
            | "x-original-host"
            | "x-original-url"
            | "x-rewrite-url"
            | "forwarded"
    )
}

/// A key: its text, and where host, path and query lie in it.
#[derive(Clone)]
pub(super) struct Key {
    text: Text,
    host: Range<usize>,
    target: Range<usize>,
    pub(super) principal: Option<[u8; 16]>,
    pub(super) local: Hash128,
}

impl Key {
    /// Builds the key of a request with the URI that the inner service sees; `None` if it is too long.
    #[inline]
    pub(super) fn of<B>(
        rules: &KeyRules,
        request: &Request<B>,
        uri: &Uri,
        own_parts: &[Option<String>],
        has_poison: bool,
        principal: Option<[u8; 16]>,
    ) -> Option<Self> {
        let mut text = Text::new();
        let (fields, original) = (request.headers(), original_uri(request.extensions()));
        let host = put_site(&mut text, uri, fields);
        let target = put_target(&mut text, uri, original);
        // Where a router has cut its prefix away, the rest alone would mean different things.
        if original.is_some_and(|original| original.path() != uri.path()) {
            put(&mut text, uri.path().as_bytes());
        }
        put_rules(&mut text, rules, fields);
        for value in own_parts {
            text.push(b'B');
            if let Some(value) = value {
                put(&mut text, value.as_bytes());
            }
        }
        if has_poison {
            put_poison(&mut text, fields);
        }
        if let Some(digest) = &principal {
            text.push(b'P');
            put(&mut text, digest);
        }
        if text.len() > LONGEST_KEY {
            return None;
        }
        let local = seeded(&text);
        Some(Self {
            text,
            host,
            target,
            principal,
            local,
        })
    }

    /// Names where a request goes that may change things, however long it is; nothing is looked up by it.
    pub(super) fn site<B>(request: &Request<B>, uri: &Uri) -> Self {
        let mut text = Text::new();
        let host = put_site(&mut text, uri, request.headers());
        let target = put_target(&mut text, uri, original_uri(request.extensions()));
        Self {
            text,
            host,
            target,
            principal: None,
            local: Hash128::default(),
        }
    }

    pub(super) fn text(&self) -> &[u8] {
        &self.text
    }

    pub(super) fn host(&self) -> &str {
        std::str::from_utf8(self.host_bytes()).unwrap_or("")
    }

    pub(super) fn host_bytes(&self) -> &[u8] {
        &self.text[self.host.clone()]
    }

    /// Path and query.
    pub(super) fn target(&self) -> &str {
        std::str::from_utf8(&self.text[self.target.clone()]).unwrap_or("")
    }
}

fn put(text: &mut Text, part: &[u8]) {
    text.extend_from_slice(&(part.len() as u32).to_be_bytes());
    text.extend_from_slice(part);
}

/// Version, scheme and host.
fn put_site(text: &mut Text, uri: &Uri, fields: &HeaderMap) -> Range<usize> {
    let scheme = uri.scheme_str().unwrap_or("");
    let host = host_of(scheme, uri, fields);
    let length = (host.len() as u32).to_be_bytes();
    if scheme.is_empty() {
        // The commonest: version, an empty part and the next one's length in one step.
        let [a, b, c, d] = length;
        text.extend_from_slice(&[VERSION, 0, 0, 0, 0, a, b, c, d]);
    } else {
        text.push(VERSION);
        put(text, scheme.as_bytes());
        text.extend_from_slice(&length);
    }
    text.extend_from_slice(host);
    let range = text.len() - host.len()..text.len();
    text[range.clone()].make_ascii_lowercase();
    range
}

fn host_of<'a>(scheme: &str, uri: &'a Uri, fields: &'a HeaderMap) -> &'a [u8] {
    let authority = uri
        .authority()
        .map(|authority| authority.as_str().as_bytes());
    let field = || fields.get(http::header::HOST).map(HeaderValue::as_bytes);
    let mut host = authority.or_else(field).unwrap_or(b"");
    if let Some(at) = host.iter().rposition(|byte| *byte == b'@') {
        host = &host[at + 1..];
    }
    let port: &[u8] = if scheme == "https" { b":443" } else { b":80" };
    host.strip_suffix(port).unwrap_or(host)
}

fn put_target(text: &mut Text, uri: &Uri, original: Option<&Uri>) -> Range<usize> {
    let (path, query) = (original.unwrap_or(uri).path(), uri.query());
    if query.is_none() {
        put(text, path.as_bytes());
        return text.len() - path.len()..text.len();
    }
    let length = path.len() + query.map_or(0, |query| query.len() + 1);
    text.extend_from_slice(&(length as u32).to_be_bytes());
    let start = text.len();
    text.extend_from_slice(path.as_bytes());
    if let Some(query) = query {
        text.push(b'?');
        text.extend_from_slice(query.as_bytes());
    }
    start..text.len()
}

fn put_rules(text: &mut Text, rules: &KeyRules, fields: &HeaderMap) {
    for name in &rules.headers {
        text.push(b'H');
        put(text, name.as_str().as_bytes());
        for value in fields.get_all(name) {
            put(text, value.as_bytes());
        }
    }
    for name in &rules.cookies {
        text.push(b'C');
        put(text, name.as_bytes());
        // Sent twice, one reader takes the first and another the last: every value counts.
        for value in cookies(fields, name) {
            put(text, value);
        }
    }
}

fn cookies<'a>(fields: &'a HeaderMap, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    let pairs = fields
        .get_all(COOKIE)
        .iter()
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b';'));
    pairs
        .filter_map(|pair| {
            let at = pair.iter().position(|byte| *byte == b'=')?;
            Some((pair[..at].trim_ascii(), pair[at + 1..].trim_ascii()))
        })
        .filter_map(|(own, value)| (own == name.as_bytes()).then_some(value))
}

fn put_poison(text: &mut Text, fields: &HeaderMap) {
    let mut found: SmallVec<[(&str, &[u8]); 4]> = fields
        .iter()
        .filter(|(name, _)| is_poison(name.as_str()))
        .map(|(name, value)| (name.as_str(), value.as_bytes()))
        .collect();
    // Several lines of one name keep their order.
    found.sort_by_key(|(name, _)| *name);
    for (name, value) in found {
        text.push(b'F');
        put(text, name.as_bytes());
        put(text, value);
    }
}

/// Reads host, path with query, and principal back out of a key's text.
pub(super) fn named_by(text: &[u8]) -> Option<(&str, &str, Option<[u8; 16]>)> {
    let (_scheme, rest) = part(text.strip_prefix(&[VERSION])?)?;
    let (host, rest) = part(rest)?;
    let (target, _) = part(rest)?;
    // Last in the text. Other parts that happen to end so only make one target more.
    let principal = match text.split_last_chunk::<21>() {
        Some((_, [b'P', 0, 0, 0, 16, digest @ ..])) => Some(*digest),
        _ => None,
    };
    Some((
        std::str::from_utf8(host).ok()?,
        std::str::from_utf8(target).ok()?,
        principal,
    ))
}

fn part(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = text.split_first_chunk()?;
    rest.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)
}

static SEED: LazyLock<(u64, u64)> = LazyLock::new(|| (entropy(), entropy()));
static DRAWS: LazyLock<(u64, u64)> = LazyLock::new(|| (entropy(), entropy()));

/// Hashes under this process's own random seed: for tables that nobody else reads.
pub(super) fn seeded(bytes: &[u8]) -> Hash128 {
    let mut sip = SipHasher13::new_with_keys(SEED.0, SEED.1);
    sip.write(bytes);
    Hash128(sip.finish128().as_bytes())
}

/// Hashes so that every process finds the same: SHA-256 cut to 128 bits, each part with its length.
pub(super) fn sha128(parts: &[&[u8]]) -> Hash128 {
    let mut sha = Sha256::new();
    for part in parts {
        sha.update((part.len() as u64).to_be_bytes());
        sha.update(part);
    }
    let mut cut = [0; 16];
    cut.copy_from_slice(&sha.finalize()[..16]);
    Hash128(cut)
}

/// Draws 64 bits that no other draw of this process repeats, and none of any other is likely to.
///
/// A counter from a random start, mixed one to one: a miss draws several, and nobody profits by guessing them.
pub(super) fn random() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let drawn = DRAWS.1.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
    // The finalizer of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
    let mixed = (drawn ^ (drawn >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Draws the token of a lease.
pub(super) fn token() -> u128 {
    u128::from(DRAWS.0) << 64 | u128::from(random())
}

fn entropy() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    // The standard library seeds these from the system's random source, and cannot fail.
    getrandom::u64().unwrap_or_else(|_| RandomState::new().build_hasher().finish())
}

#[cfg(test)]
mod tests;
