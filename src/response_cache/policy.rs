//! Pure decisions: which answers are stored, on what terms, and how a stored one may be used.

use std::time::Duration;

use http::StatusCode;
use http::header::{self, HeaderMap};
use smallvec::SmallVec;

use super::config::{CachePolicy, Config};
use super::consider::{Demands, Signals};
use super::directives::{Directives, MOST_SECONDS};
use super::entry::{Flags, Head};
use super::freshness::{self, MICROS, Source};
use super::seen::Seen;
use super::sent::Sent;
use super::stamps::Verdict;
use super::status::Reason;
use super::target::{Target, is_tag};
use super::targeted;
use super::vary::{self, Names};

/// Larger header blocks are not stored.
const LARGEST_FIELDS: usize = 16 * 1_024;
const MOST_TAGS: usize = 64;
const HOUR: u64 = 3_600 * MICROS;
const LONGEST_KEPT: u64 = 30 * 24 * HOUR;

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
    pub(super) request: &'a Sent,
    pub(super) host: &'a [u8],
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
    pub(super) hidden: SmallVec<[http::HeaderName; 1]>,
    pub(super) seen: Seen,
    /// Stored though one visitor's session was touched: the route is private, or the answer said public.
    pub(super) personal_too: bool,
}

/// Decides whether an answer to GET is stored, and on what terms: the response decides, the handler's
/// policy fills what it leaves open, the route's what both leave open; a restriction from any holds.
pub(super) fn plan(offer: &Offer<'_>) -> Result<Plan, Reason> {
    let Offer { config, fields, .. } = *offer;
    let none = CachePolicy::default();
    let own = offer.policy.unwrap_or(&none);
    let said = targeted::said(fields, &config.targeted);
    let seen = Seen::of(fields);
    refuse(offer, &said, own, seen)?;
    let names = if seen.varies {
        vary::names_of(fields, offer.request, config.private()).ok_or(Reason::Vary)?
    } else {
        Names::default()
    };
    let (lifetime, source) = lifetime(offer, &said, own)?;
    let targets = tags(offer, own, seen)?;
    let initial_age = if seen.age {
        freshness::initial_age(fields, offer.asked, offer.received)
    } else {
        offer.received.saturating_sub(offer.asked)
    };
    let has_validator = seen.validator;
    if (said.no_cache || lifetime <= initial_age) && !has_validator {
        return Err(Reason::Lifetime);
    }
    let flags = flags(config, &said, own, source);
    let windows = windows(&config.route, &said, own, flags);
    // Unsaid, an hour in place of errors; and an hour in which a validator may still confirm it.
    let unsaid = if source == Source::Policy { 0 } else { HOUR };
    let in_place = if flags.has(Flags::NEVER_STALE) {
        0
    } else {
        unsaid
    };
    let longest = windows.while_revalidate.unwrap_or(0);
    let longest = longest.max(windows.if_error.unwrap_or(in_place));
    let longest = longest.max(if has_validator { unsaid } else { 0 });
    let refresh_after = own.refresh_after.or(config.route.refresh_after).map(micros);
    Ok(Plan {
        lifetime,
        initial_age,
        refresh_after: refresh_after.filter(|after| *after < lifetime),
        stale_while_revalidate: windows.while_revalidate.unwrap_or(0),
        stale_if_error: windows.if_error,
        kept: lifetime
            .saturating_sub(initial_age)
            .saturating_add(longest)
            .min(LONGEST_KEPT),
        flags,
        names,
        targets,
        personal_too: config.private() || is_public(config, &said, own),
        hidden: said.hidden,
        seen,
    })
}

const fn is_public(config: &Config, said: &Directives, own: &CachePolicy) -> bool {
    said.public || own.public || config.public()
}

fn flags(config: &Config, said: &Directives, own: &CachePolicy, source: Source) -> Flags {
    let s_maxage = said.s_maxage.is_some() && !config.private();
    let windows = said.stale_while_revalidate.is_some() || said.stale_if_error.is_some();
    // `s-maxage=60, stale-while-revalidate=30` is common and means what it says.
    let strict = said.must_revalidate || said.proxy_revalidate || said.no_cache;
    let shared = is_public(config, said, own) || said.must_revalidate || s_maxage;
    let mut flags = Flags::default();
    flags.set(Flags::NO_CACHE, said.no_cache);
    flags.set(Flags::NEVER_STALE, strict || (s_maxage && !windows));
    flags.set(Flags::FOR_AUTHORIZED, shared || config.private());
    flags.set(Flags::BY_POLICY, source == Source::Policy);
    flags.set(
        Flags::OWN_CACHE_CONTROL,
        source == Source::Policy && !said.present,
    );
    flags
}

struct Windows {
    while_revalidate: Option<u64>,
    if_error: Option<u64>,
}

fn windows(route: &CachePolicy, said: &Directives, own: &CachePolicy, flags: Flags) -> Windows {
    let window = |said: Option<u64>, own: Option<Duration>, route: Option<Duration>| {
        let said = said.map(|seconds| seconds.saturating_mul(MICROS));
        said.or(own.or(route).map(micros))
            .filter(|_| !flags.has(Flags::NEVER_STALE))
    };
    Windows {
        while_revalidate: window(
            said.stale_while_revalidate,
            own.stale_while_revalidate,
            route.stale_while_revalidate,
        ),
        if_error: window(
            said.stale_if_error,
            own.stale_if_error,
            route.stale_if_error,
        ),
    }
}

/// As long as a directive can say at most.
fn micros(length: Duration) -> u64 {
    let longest = MOST_SECONDS * MICROS;
    u64::try_from(length.as_micros()).map_or(longest, |length| length.min(longest))
}

/// Everything that keeps an answer out, whatever its lifetime.
fn refuse(
    offer: &Offer<'_>,
    said: &Directives,
    own: &CachePolicy,
    seen: Seen,
) -> Result<(), Reason> {
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
    let public = is_public(config, said, own);
    if !private && !public {
        if seen.set_cookie && !config.replay_set_cookie {
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
    if seen.stream {
        return Err(Reason::Stream);
    }
    let length = if seen.content_length {
        content_length(fields)
    } else {
        None
    };
    if seen.block > LARGEST_FIELDS || length.is_some_and(|length| length > config.max_body as u64) {
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
        return Ok((micros(ttl), Source::Policy));
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

fn tags(offer: &Offer<'_>, own: &CachePolicy, seen: Seen) -> Result<Vec<Target>, Reason> {
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
    if !seen.tags {
        return Ok(targets);
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
        let host = std::str::from_utf8(offer.host).unwrap_or("");
        targets.push(Target::group_of(host, &group));
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

pub(super) fn content_length(fields: &HeaderMap) -> Option<u64> {
    fields
        .get(header::CONTENT_LENGTH)?
        .to_str()
        .ok()?
        .parse()
        .ok()
}

/// The statuses whose caching RFC 9110 defines.
fn is_understood(status: StatusCode) -> bool {
    matches!(status.as_u16(), 200..=205 | 300..=303 | 305 | 307 | 308 | 400..=417 | 421 | 422 | 426 | 500..=505)
}

#[cfg(test)]
#[path = "policy/tests.rs"]
mod tests;
