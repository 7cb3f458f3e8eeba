//! What an invalidation names: everything, a URL, a prefix, a tag, a group, a principal; kept as 64-bit hashes.

use std::fmt;
use std::hash::Hasher as _;

use http::Uri;
use siphasher::sip::SipHasher13;

/// The longest tag in bytes.
const LONGEST_TAG: usize = 128;
/// Prefixes deeper than this are not kept apart.
const DEEPEST_PREFIX: usize = 16;

/// Names stored answers that an invalidation hits, in constant time, however many there are.
///
/// Only a 64-bit hash is kept: a collision invalidates too much, never too little.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Target(u64);

/// The lowest bit tells tags and groups, which no request knows, from what a request names itself.
const SAID_BY_ANSWERS: u64 = 1;

impl Target {
    /// Every stored answer.
    #[must_use]
    pub fn everything() -> Self {
        hash("everything", &[], false)
    }

    /// One URL, path and query as the router sees them, with or without scheme and host; all its variants and principals.
    #[must_use]
    pub fn url(url: impl AsRef<str>) -> Self {
        let url = url.as_ref();
        match url.parse::<Uri>() {
            Ok(uri) => {
                let path = uri.path_and_query().map_or("/", |path| path.as_str());
                match uri.authority() {
                    Some(host) => Self::url_of(Some(&host_of(host.as_str())), path),
                    None => Self::url_of(None, path),
                }
            }
            Err(_) => Self::url_of(None, url),
        }
    }

    pub(super) fn url_of(host: Option<&str>, path_and_query: &str) -> Self {
        match host {
            // A key keeps a port that is not its scheme's default; whoever names the URL need not know it.
            Some(host) => {
                let host = host_of(host);
                hash("host", &[host.as_bytes(), path_and_query.as_bytes()], false)
            }
            None => hash("url", &[path_and_query.as_bytes()], false),
        }
    }

    /// Whole path segments, up to 16 deep: `/a/b` hits `/a/b`, `/a/b?x` and `/a/b/c`, not `/a/bc`.
    #[must_use]
    pub fn prefix(path: impl AsRef<str>) -> Self {
        let path = path.as_ref();
        let cut = path.find(['?', '#']).unwrap_or(path.len());
        hash(
            "prefix",
            &[path[..cut].trim_end_matches('/').as_bytes()],
            false,
        )
    }

    /// Every answer that carries this tag.
    #[must_use]
    pub fn tag(tag: impl AsRef<str>) -> Self {
        hash("tag", &[tag.as_ref().as_bytes()], true)
    }

    /// Every answer of `origin` (such as `https://example.com`) that named this group in `Cache-Groups` (RFC 9875).
    #[must_use]
    pub fn group(origin: impl AsRef<str>, group: impl AsRef<str>) -> Self {
        let origin = origin.as_ref();
        let host = origin.split_once("://").map_or(origin, |(_, host)| host);
        Self::group_of(&host_of(host.trim_end_matches('/')), group.as_ref())
    }

    pub(super) fn group_of(host: &str, group: &str) -> Self {
        let host = host_of(host);
        hash("group", &[host.as_bytes(), group.as_bytes()], true)
    }

    /// Every private answer of one principal; call it at logout.
    #[must_use]
    pub fn principal(id: impl AsRef<str>) -> Self {
        Self::principal_of(&principal_digest(id.as_ref()))
    }

    pub(super) fn principal_of(digest: &[u8; 16]) -> Self {
        hash("principal", &[digest], false)
    }

    pub(super) const fn bits(self) -> u64 {
        self.0
    }

    pub(super) const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// Says whether only an answer's head can tell that this target hits it.
    pub(super) const fn is_said_by_answers(self) -> bool {
        self.0 & SAID_BY_ANSWERS != 0
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Target({:016x})", self.0)
    }
}

/// All targets that a request names by itself: everything, its URL with and without host, its prefixes, its principal.
pub(super) fn known_from_request(
    host: &str,
    path_and_query: &str,
    principal: Option<&[u8; 16]>,
) -> Vec<Target> {
    let mut targets = vec![
        Target::everything(),
        Target::url_of(None, path_and_query),
        Target::url_of(Some(host), path_and_query),
    ];
    let end = path_and_query.find('?').unwrap_or(path_and_query.len());
    let path = path_and_query[..end].trim_end_matches('/');
    let ends = path
        .match_indices('/')
        .map(|(at, _)| at)
        .chain([path.len()]);
    targets.extend(
        ends.take(DEEPEST_PREFIX + 1)
            .map(|end| Target::prefix(&path[..end])),
    );
    targets.extend(principal.map(Target::principal_of));
    targets
}

/// The same, read out of a key's text.
pub(super) fn known_from_key(key: &[u8]) -> Box<[Target]> {
    let known = super::key::named_by(key)
        .map(|(host, target, principal)| known_from_request(host, target, principal.as_ref()));
    known.unwrap_or_else(|| vec![Target::everything()]).into()
}

/// Says whether `tag` is 1 to 128 bytes without control characters.
pub(super) const fn is_tag(tag: &str) -> bool {
    let bytes = tag.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] < 0x20 || bytes[at] == 0x7f {
            return false;
        }
        at += 1;
    }
    !bytes.is_empty() && bytes.len() <= LONGEST_TAG
}

/// Lower case, without user and default port.
pub(super) fn host_of(authority: &str) -> String {
    let host = authority
        .rsplit_once('@')
        .map_or(authority, |(_, host)| host);
    let host = host
        .strip_suffix(":443")
        .or(host.strip_suffix(":80"))
        .unwrap_or(host);
    host.to_ascii_lowercase()
}

/// Resolves a reference without host against the path and query that it was said of (RFC 3986 §5.2); `None` for
/// what is no path on the same host.
pub(super) fn resolved(base: &str, reference: &str) -> Option<String> {
    let base_path = &base[..base.find('?').unwrap_or(base.len())];
    if reference.is_empty() {
        return Some(base.to_owned());
    }
    if reference.starts_with('?') {
        return Some(format!("{base_path}{reference}"));
    }
    // The exact bytes are what a router sees.
    if reference.starts_with('/') {
        return Some(reference.to_owned());
    }
    let (path, query) = reference.split_at(reference.find('?').unwrap_or(reference.len()));
    // Another scheme.
    if path.split('/').next()?.contains(':') {
        return None;
    }
    let mut segments: Vec<&str> = base_path.split('/').collect();
    segments.pop();
    let mut own = path.split('/').peekable();
    while let Some(segment) = own.next() {
        let is_dots = matches!(segment, "." | "..");
        if segment == ".." && segments.len() > 1 {
            segments.pop();
        }
        if !is_dots {
            segments.push(segment);
        } else if own.peek().is_none() {
            segments.push("");
        }
    }
    let path = segments.join("/");
    path.starts_with('/').then(|| format!("{path}{query}"))
}

/// What stands for a principal in keys and targets: its id is not kept.
pub(super) fn principal_digest(id: &str) -> [u8; 16] {
    super::key::sha128(&[b"tower-keep principal", id.as_bytes()]).0
}

fn hash(kind: &str, parts: &[&[u8]], said_by_answers: bool) -> Target {
    // Every process must find the same hash, so there is no seed; who finds a collision only empties the cache.
    let mut sip = SipHasher13::new_with_keys(0x746f_7765_722d_6b65, 0x6570_2074_6172_6765);
    sip.write(kind.as_bytes());
    for part in parts {
        sip.write_u64(part.len() as u64);
        sip.write(part);
    }
    let bits = sip.finish() & !SAID_BY_ANSWERS;
    Target(bits | u64::from(said_by_answers))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_resolved_against_what_they_were_said_of() {
        for (reference, path) in [
            ("", Some("/a/b?x")),
            ("?y", Some("/a/b?y")),
            ("c", Some("/a/c")),
            ("c/d?z", Some("/a/c/d?z")),
            ("./c", Some("/a/c")),
            ("../c", Some("/c")),
            ("../../../c", Some("/c")),
            ("..", Some("/")),
            (".", Some("/a/")),
            ("/e/../f", Some("/e/../f")),
            ("mailto:x", None),
            ("c:d/e", None),
            ("./c:d", Some("/a/c:d")),
        ] {
            assert_eq!(
                resolved("/a/b?x", reference).as_deref(),
                path,
                "{reference}"
            );
        }
        assert_eq!(resolved("*", "c"), None);
    }
}
