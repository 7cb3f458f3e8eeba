//! Pure decisions: which requests are considered, which answers are stored, how a stored one may be used.

use http::header::{self, HeaderMap};
use http::{Method, StatusCode, Uri};

use super::config::{CachePolicy, Config};
use super::directives::Directives;
use super::entry::{Flags, Head};
use super::freshness::{self, MICROS, Source};
use super::key::is_poison;
use super::stamps::Verdict;
use super::status::{Bypass, Reason};
use super::target::{Target, is_tag};
use super::vary::{self, Names};

/// Longer targets are not looked up.
const LONGEST_TARGET: usize = 8 * 1_024;
/// Larger header blocks are not stored.
const LARGEST_FIELDS: usize = 16 * 1_024;
const MOST_TAGS: usize = 64;
const HOUR: u64 = 3_600 * MICROS;
const LONGEST_KEPT: u64 = 30 * 24 * HOUR;

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
}

impl Signals {
    pub(super) fn scan(fields: &HeaderMap) -> Self {
        let mut seen = Self::default();
        for name in fields.keys() {
            match name.as_str() {
                "host" => seen.hosts = fields.get_all(header::HOST).iter().count(),
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
    if signals.hosts > 1 || (signals.hosts == 1 && !is_host(fields)) {
        return Err(Bypass::Host);
    }
    if uri.path().len() + uri.query().map_or(0, str::len) > LONGEST_TARGET {
        return Err(Bypass::Length);
    }
    Ok(())
}

fn is_host(fields: &HeaderMap) -> bool {
    let Some(host) = fields.get(header::HOST).map(http::HeaderValue::as_bytes) else {
        return true;
    };
    // An empty field is what a target without authority has (RFC 9110 §7.2).
    host.is_empty()
        || http::uri::Authority::try_from(host).is_ok_and(|host| !host.as_str().contains('@'))
}

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
    max_stale: Option<u64>,
    no_cache: bool,
    max_age: Option<u64>,
    min_fresh: Option<u64>,
}

impl Demands {
    /// Reads what is obeyed: demands for a fresh answer only where the route allows them.
    pub(super) fn of(fields: &HeaderMap, allow_reload: bool) -> Self {
        let said = Directives::of(fields.get_all(header::CACHE_CONTROL));
        let pragma = !said.present
            && fields.get_all(header::PRAGMA).iter().any(|line| {
                let line = line.as_bytes().to_ascii_lowercase();
                super::directives::members(&line).any(|member| member == b"no-cache")
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

/// How a stored answer may be used now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// As it is.
    Fresh,
    /// As it is, with a refresh behind it.
    Due,
    /// Stale, with a refresh behind it.
    StaleWhileRevalidate,
    /// Stale, because the client takes it.
    MaxStale,
    /// Not before the inner service was asked.
    Validate,
    /// Not at all.
    Gone,
}

/// Decides how a stored answer may be used at `now`.
pub(super) fn use_of(head: &Head, now: u64, verdict: Verdict, demands: &Demands) -> Use {
    if verdict == Verdict::Gone || now >= head.expires_at {
        return Use::Gone;
    }
    if head.flags.has(Flags::NO_CACHE) || demands.no_cache {
        return Use::Validate;
    }
    let age = head.age(now);
    if demands
        .max_age
        .is_some_and(|most| age > most.saturating_mul(MICROS))
        && demands.max_stale.is_none()
    {
        return Use::Validate;
    }
    if verdict == Verdict::Live && age < head.lifetime {
        let left = head.lifetime - age;
        return if demands
            .min_fresh
            .is_some_and(|least| left < least.saturating_mul(MICROS))
        {
            Use::Validate
        } else if head.refresh_after.is_some_and(|after| age >= after) {
            Use::Due
        } else {
            Use::Fresh
        };
    }
    if head.flags.has(Flags::NEVER_STALE) || demands.reload() {
        return Use::Validate;
    }
    let staleness = age.saturating_sub(head.lifetime);
    if staleness < head.stale_while_revalidate {
        return Use::StaleWhileRevalidate;
    }
    if demands
        .max_stale
        .is_some_and(|most| staleness <= most.saturating_mul(MICROS))
    {
        return Use::MaxStale;
    }
    Use::Validate
}

/// Says whether a stale answer may stand in for an error: `None` is an inner error without a response (RFC 5861 §4).
pub(super) fn may_stand_in(
    head: &Head,
    now: u64,
    verdict: Verdict,
    asked: Option<u64>,
    error: Option<StatusCode>,
) -> bool {
    if verdict == Verdict::Gone || head.flags.has(Flags::NEVER_STALE) || head.status.as_u16() >= 500
    {
        return false;
    }
    let said = head
        .stale_if_error
        .or(asked.map(|seconds| seconds.saturating_mul(MICROS)));
    match error.map(|status| status.as_u16()) {
        None | Some(502..=504) => {}
        Some(500) if said.is_some() => {}
        Some(_) => return false,
    }
    let unsaid = if head.flags.has(Flags::BY_POLICY) {
        0
    } else {
        HOUR
    };
    let staleness = head.age(now).saturating_sub(head.lifetime);
    now < head.expires_at && staleness < said.unwrap_or(unsaid)
}

/// Everything that decides whether an answer is stored.
#[derive(Clone, Copy, Debug)]
pub(super) struct Offer<'a> {
    pub(super) config: &'a Config,
    pub(super) request: &'a HeaderMap,
    pub(super) host: &'a str,
    pub(super) status: StatusCode,
    pub(super) fields: &'a HeaderMap,
    pub(super) policy: Option<&'a CachePolicy>,
    pub(super) personal: bool,
    pub(super) signals: Signals,
    /// The store's clock when the fetch began, and when the head came.
    pub(super) asked: u64,
    pub(super) received: u64,
}

/// On what terms an answer is stored.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) lifetime: u64,
    pub(super) initial_age: u64,
    pub(super) refresh_after: Option<u64>,
    pub(super) stale_while_revalidate: u64,
    pub(super) stale_if_error: Option<u64>,
    pub(super) kept: u64,
    pub(super) flags: Flags,
    pub(super) names: Names,
    pub(super) targets: Vec<Target>,
    pub(super) hidden: Vec<http::HeaderName>,
    /// Stored though one visitor's session was touched: the route is private, or the answer said public.
    pub(super) personal_too: bool,
}

/// Decides whether an answer to GET is stored, and on what terms: the response decides, the handler's
/// policy fills what it leaves open, the route's what both leave open; a restriction from any holds.
pub(super) fn plan(offer: &Offer<'_>) -> Result<Plan, Reason> {
    let Offer { config, fields, .. } = *offer;
    let (private, route) = (config.private(), &config.route);
    let none = CachePolicy::default();
    let own = offer.policy.unwrap_or(&none);
    let said = Directives::of(fields.get_all(header::CACHE_CONTROL));
    refuse(offer, &said, own)?;
    let names = vary::names_of(fields, offer.request, private).ok_or(Reason::Vary)?;
    let (lifetime, source) = lifetime(offer, &said, own)?;
    let targets = tags(offer, own)?;
    let initial_age = freshness::initial_age(fields, offer.asked, offer.received);
    let has_validator = has_validator(fields);
    if (said.no_cache || lifetime <= initial_age) && !has_validator {
        return Err(Reason::Lifetime);
    }
    let s_maxage = said.s_maxage.is_some() && !private;
    let windows = said.stale_while_revalidate.is_some() || said.stale_if_error.is_some();
    let never_stale =
        said.must_revalidate || said.proxy_revalidate || said.no_cache || (s_maxage && !windows);
    let public = said.public || own.public || config.public();
    let mut flags = Flags::default();
    flags.set(Flags::NO_CACHE, said.no_cache);
    flags.set(Flags::NEVER_STALE, never_stale);
    flags.set(
        Flags::FOR_AUTHORIZED,
        public || said.must_revalidate || s_maxage || private,
    );
    flags.set(Flags::BY_POLICY, source == Source::Policy);
    flags.set(
        Flags::OWN_CACHE_CONTROL,
        source == Source::Policy && !said.present,
    );
    let micros =
        |window: std::time::Duration| u64::try_from(window.as_micros()).unwrap_or(u64::MAX);
    let seconds = |said: Option<u64>| said.map(|seconds| seconds.saturating_mul(MICROS));
    let window = |said: Option<u64>, own: Option<_>, route: Option<_>| {
        seconds(said)
            .or(own.or(route).map(micros))
            .filter(|_| !never_stale)
    };
    let while_revalidate = window(
        said.stale_while_revalidate,
        own.stale_while_revalidate,
        route.stale_while_revalidate,
    );
    let if_error = window(
        said.stale_if_error,
        own.stale_if_error,
        route.stale_if_error,
    );
    let refresh_after = own
        .refresh_after
        .or(route.refresh_after)
        .map(micros)
        .filter(|after| *after < lifetime);
    let by_headers = source != Source::Policy;
    let longer = [
        while_revalidate.unwrap_or(0),
        if_error.unwrap_or(if by_headers && !never_stale { HOUR } else { 0 }),
        if by_headers && has_validator { HOUR } else { 0 },
    ];
    let longest = longer.into_iter().max().unwrap_or(0);
    Ok(Plan {
        lifetime,
        initial_age,
        refresh_after,
        stale_while_revalidate: while_revalidate.unwrap_or(0),
        stale_if_error: if_error,
        kept: lifetime
            .saturating_sub(initial_age)
            .saturating_add(longest)
            .min(LONGEST_KEPT),
        flags,
        names,
        targets,
        hidden: said.hidden.to_vec(),
        personal_too: private || public,
    })
}

/// Everything that keeps an answer out, whatever its lifetime.
fn refuse(offer: &Offer<'_>, said: &Directives, own: &CachePolicy) -> Result<(), Reason> {
    let Offer {
        config,
        fields,
        status,
        ..
    } = *offer;
    let private = config.private();
    if status.is_informational() || matches!(status.as_u16(), 206 | 304) {
        return Err(Reason::Status);
    }
    // `must-understand` overrules `no-store` for the statuses that are understood, and only those may be stored.
    if said.must_understand && !is_understood(status) {
        return Err(Reason::Status);
    }
    if (said.no_store && !said.must_understand) || own.no_store || config.route.no_store {
        return Err(Reason::NoStore);
    }
    if (said.private || own.private) && !private {
        return Err(Reason::Private);
    }
    let public = said.public || own.public || config.public();
    if !private && !public {
        if fields.contains_key(header::SET_COOKIE) {
            return Err(Reason::SetCookie);
        }
        if offer.personal {
            return Err(Reason::Personal);
        }
    }
    let shared = public || said.must_revalidate || said.s_maxage.is_some();
    if offer.signals.authorization && !private && !shared {
        return Err(Reason::Authorization);
    }
    if is_stream(fields) {
        return Err(Reason::Stream);
    }
    let block: usize = fields
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len() + 4)
        .sum();
    let length = content_length(fields);
    if block > LARGEST_FIELDS || length.is_some_and(|length| length > config.max_body as u64) {
        return Err(Reason::TooLarge);
    }
    Ok(())
}

fn lifetime(
    offer: &Offer<'_>,
    said: &Directives,
    own: &CachePolicy,
) -> Result<(u64, Source), Reason> {
    let Offer {
        config,
        fields,
        status,
        ..
    } = *offer;
    let now = freshness::seconds_of(offer.received);
    if let Some(seconds) = freshness::said_seconds(said, fields, config.private(), now) {
        return Ok((seconds * MICROS, Source::Headers));
    }
    let own_ttl = own.ttl.filter(|_| freshness::is_heuristic(status));
    if let Some(ttl) = own_ttl.or_else(|| config.ttl_of(status)) {
        return Ok((
            u64::try_from(ttl.as_micros()).unwrap_or(u64::MAX),
            Source::Policy,
        ));
    }
    let may_guess = freshness::is_heuristic(status) || said.public;
    if !may_guess {
        return Err(Reason::Status);
    }
    let signals = offer.signals;
    if config.heuristics
        && !signals.cookie
        && !signals.authorization
        && let Some(seconds) = freshness::heuristic_seconds(fields, now)
    {
        return Ok((seconds * MICROS, Source::Heuristic));
    }
    // `no-cache` needs no lifetime: it is validated before each use.
    if said.no_cache {
        Ok((0, Source::Headers))
    } else {
        Err(Reason::Lifetime)
    }
}

fn tags(offer: &Offer<'_>, own: &CachePolicy) -> Result<Vec<Target>, Reason> {
    let mut targets = Vec::new();
    let mut put = |tag: &str| {
        if !is_tag(tag) || targets.len() == MOST_TAGS {
            return Err(Reason::Tags);
        }
        targets.push(Target::tag(tag));
        Ok(())
    };
    for tag in own.tags.iter().chain(&offer.config.route.tags) {
        put(tag)?;
    }
    for (name, separator) in [("surrogate-key", b' '), ("cache-tag", b',')] {
        for line in offer.fields.get_all(name) {
            let members = line
                .as_bytes()
                .split(|byte| *byte == separator)
                .map(<[u8]>::trim_ascii);
            for member in members.filter(|member| !member.is_empty()) {
                put(std::str::from_utf8(member).map_err(|_| Reason::Tags)?)?;
            }
        }
    }
    for group in groups(offer.fields, "cache-groups") {
        if targets.len() == MOST_TAGS {
            return Err(Reason::Tags);
        }
        targets.push(Target::group_of(offer.host, &group));
    }
    Ok(targets)
}

/// Reads a list of strings (RFC 9875 §2); an ill-formed member is left out, as nothing can name it.
pub(super) fn groups(fields: &HeaderMap, name: &str) -> Vec<String> {
    let lines = fields.get_all(name).iter();
    let members = lines.flat_map(|line| super::directives::members(line.as_bytes()));
    members
        .filter_map(|member| {
            let text = std::str::from_utf8(member).ok()?.strip_prefix('"')?;
            let mut out = String::new();
            let mut rest = text.chars();
            loop {
                match rest.next()? {
                    '\\' => out.push(rest.next()?),
                    '"' => return Some(out),
                    plain => out.push(plain),
                }
            }
        })
        .collect()
}

pub(super) fn has_validator(fields: &HeaderMap) -> bool {
    fields.contains_key(header::ETAG) || fields.contains_key(header::LAST_MODIFIED)
}

pub(super) fn content_length(fields: &HeaderMap) -> Option<u64> {
    fields
        .get(header::CONTENT_LENGTH)?
        .to_str()
        .ok()?
        .parse()
        .ok()
}

fn is_stream(fields: &HeaderMap) -> bool {
    let Some(kind) = fields.get(header::CONTENT_TYPE) else {
        return false;
    };
    let kind = kind
        .as_bytes()
        .split(|byte| *byte == b';')
        .next()
        .unwrap_or_default()
        .trim_ascii();
    [&b"text/event-stream"[..], b"multipart/x-mixed-replace"]
        .iter()
        .any(|stream| kind.eq_ignore_ascii_case(stream))
}

/// The statuses whose caching RFC 9110 defines.
fn is_understood(status: StatusCode) -> bool {
    matches!(status.as_u16(), 200..=205 | 300..=303 | 305 | 307 | 308 | 400..=417 | 421 | 422 | 426 | 500..=505)
}

#[cfg(test)]
#[path = "policy/tests.rs"]
mod tests;
