//! Which requests are considered at all, and what they demand.

use http::header::{self, HeaderMap};
use http::{Method, Uri};

use super::directives::{self, Directives};
use super::key::is_poison;
use super::status::Bypass;

/// Longer targets are not looked up.
const LONGEST_TARGET: usize = 8 * 1_024;

/// What one pass over the request's fields shows.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Signals {
    pub(super) authorization: bool,
    pub(super) cookie: bool,
    pub(super) conditional: bool,
    pub(super) range: bool,
    pub(super) directives: bool,
    pub(super) poison: bool,
    upgrade: bool,
    method_override: bool,
    precondition: bool,
    hosts: usize,
    /// The last Host is a plain name.
    plain_host: bool,
}

impl Signals {
    pub(super) fn scan(fields: &HeaderMap) -> Self {
        let mut seen = Self::default();
        for (name, value) in fields {
            match name.as_str() {
                "host" => {
                    seen.hosts += 1;
                    seen.plain_host = is_plain_host(value.as_bytes());
                }
                "authorization" => seen.authorization = true,
                "cookie" => seen.cookie = true,
                "cache-control" | "pragma" => seen.directives = true,
                "if-none-match" | "if-modified-since" => seen.conditional = true,
                "if-match" | "if-unmodified-since" => seen.precondition = true,
                "range" => seen.range = true,
                "upgrade" => seen.upgrade = true,
                "x-http-method-override" | "x-http-method" | "x-method-override" => {
                    seen.method_override = true
                }
                other => seen.poison |= is_poison(other),
            }
        }
        seen
    }
}

/// Decides whether a request is considered at all (GET and HEAD without body and oddities).
pub(super) fn consider(
    method: &Method,
    uri: &Uri,
    fields: &HeaderMap,
    signals: &Signals,
    body_ended: bool,
) -> Result<(), Bypass> {
    if *method != Method::GET && *method != Method::HEAD {
        return Err(Bypass::Method);
    }
    if !body_ended {
        return Err(Bypass::Body);
    }
    if signals.upgrade {
        return Err(Bypass::Upgrade);
    }
    if signals.method_override {
        return Err(Bypass::Override);
    }
    if signals.precondition {
        return Err(Bypass::Precondition);
    }
    // The commonest: one plain name, and a target that names no other.
    let plain = signals.plain_host && uri.authority().is_none();
    let unfit = signals.hosts == 1 && !plain && !is_host(uri, fields);
    if signals.hosts > 1 || unfit || names_user(uri) {
        return Err(Bypass::Host);
    }
    if uri.path().len() + uri.query().map_or(0, str::len) > LONGEST_TARGET {
        return Err(Bypass::Length);
    }
    Ok(())
}

/// Says whether somebody stands before the host in the target: no key has that, and a handler may write it into links.
fn names_user(uri: &Uri) -> bool {
    uri.authority()
        .is_some_and(|authority| authority.as_str().contains('@'))
}

fn is_host(uri: &Uri, fields: &HeaderMap) -> bool {
    let Some(host) = fields.get(header::HOST).map(http::HeaderValue::as_bytes) else {
        return true;
    };
    // The key takes the target's authority; a handler that reads the field must not see another one.
    if let Some(authority) = uri.authority() {
        return authority.as_str().as_bytes().eq_ignore_ascii_case(host);
    }
    // An empty field is what a target without authority has (RFC 9110 §7.2); most others are plain names.
    host.is_empty()
        || http::uri::Authority::try_from(host).is_ok_and(|host| !host.as_str().contains('@'))
}

/// Letters, digits, dots and hyphens, then perhaps a port: what needs no parser.
fn is_plain_host(host: &[u8]) -> bool {
    let mut name = 0;
    while name < host.len() && PLAIN[host[name] as usize] {
        name += 1;
    }
    let port = &host[name..];
    name > 0
        && (port.is_empty()
            || (port[0] == b':'
                && matches!(port.len(), 2..=5)
                && port[1..].iter().all(u8::is_ascii_digit)))
}

/// Letters, digits, dots and hyphens.
const PLAIN: [bool; 256] = {
    let (mut plain, mut byte) = ([false; 256], 0_usize);
    while byte < 256 {
        plain[byte] = (byte as u8).is_ascii_alphanumeric() || matches!(byte as u8, b'.' | b'-');
        byte += 1;
    }
    plain
};

/// Says whether a method may change what is stored: all but the safe ones (RFC 9110 §9.2.1).
pub(super) fn is_unsafe(method: &Method) -> bool {
    ![Method::GET, Method::HEAD, Method::OPTIONS, Method::TRACE].contains(method)
}

/// What a request demands of a stored answer (RFC 9111 §5.2.1).
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Demands {
    pub(super) no_store: bool,
    pub(super) only_if_cached: bool,
    pub(super) stale_if_error: Option<u64>,
    pub(super) max_stale: Option<u64>,
    pub(super) no_cache: bool,
    pub(super) max_age: Option<u64>,
    pub(super) min_fresh: Option<u64>,
}

impl Demands {
    /// Reads what is obeyed: demands for a fresh answer only where the route allows them.
    pub(super) fn of(fields: &HeaderMap, allow_reload: bool) -> Self {
        let said = Directives::of(fields.get_all(header::CACHE_CONTROL));
        let pragma = !said.present
            && fields.get_all(header::PRAGMA).iter().any(|line| {
                let line = line.as_bytes().to_ascii_lowercase();
                directives::members(&line).any(|member| member == b"no-cache")
            });
        Self {
            no_store: said.no_store,
            only_if_cached: said.only_if_cached,
            stale_if_error: said.stale_if_error,
            max_stale: said.max_stale,
            no_cache: allow_reload && (said.no_cache || pragma),
            max_age: said.max_age.filter(|_| allow_reload),
            min_fresh: said.min_fresh.filter(|_| allow_reload),
        }
    }

    /// Says whether the request may make the handler run though something fresh is stored.
    pub(super) const fn reload(&self) -> bool {
        self.no_cache || self.max_age.is_some() || self.min_fresh.is_some()
    }
}
