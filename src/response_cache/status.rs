//! What the cache did with a request, as `Cache-Status` says it (RFC 9211).

use http::{HeaderMap, HeaderValue, StatusCode};

use super::ready;
use crate::core::fields::CACHE_STATUS;

/// Why a request was not looked at: it is passed with its own body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bypass {
    Method,
    Body,
    Upgrade,
    Override,
    Precondition,
    Host,
    Length,
    Principal,
}

const BYPASSES: [(Bypass, &str); 8] = [
    (Bypass::Method, "fwd=method"),
    (Bypass::Body, "fwd=bypass;detail=body"),
    (Bypass::Upgrade, "fwd=bypass;detail=upgrade"),
    (Bypass::Override, "fwd=bypass;detail=override"),
    (Bypass::Precondition, "fwd=bypass;detail=precondition"),
    (Bypass::Host, "fwd=bypass;detail=host"),
    (Bypass::Length, "fwd=bypass;detail=length"),
    (Bypass::Principal, "fwd=bypass;detail=principal"),
];

impl Bypass {
    /// As a member of `Cache-Status` says it, behind the cache's name.
    pub(super) fn as_str(self) -> &'static str {
        let own = BYPASSES.iter().find(|(bypass, _)| *bypass == self);
        own.map_or("fwd=bypass", |(_, said)| said)
    }
}

/// Why an answer was not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    NoStore,
    Private,
    SetCookie,
    Personal,
    Authorization,
    Vary,
    Status,
    Lifetime,
    TooLarge,
    Cut,
    Stream,
    Tags,
    /// No room among the bodies that are being gathered.
    Bounds,
}

impl Reason {
    pub(super) const ALL: [Self; 13] = [
        Self::NoStore,
        Self::Private,
        Self::SetCookie,
        Self::Personal,
        Self::Authorization,
        Self::Vary,
        Self::Status,
        Self::Lifetime,
        Self::TooLarge,
        Self::Cut,
        Self::Stream,
        Self::Tags,
        Self::Bounds,
    ];

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::NoStore => "no-store",
            Self::Private => "private",
            Self::SetCookie => "set-cookie",
            Self::Personal => "personal",
            Self::Authorization => "authorization",
            Self::Vary => "vary",
            Self::Status => "status",
            Self::Lifetime => "lifetime",
            Self::TooLarge => "too-large",
            Self::Cut => "cut",
            Self::Stream => "stream",
            Self::Tags => "tags",
            Self::Bounds => "bounds",
        }
    }
}

/// Why a considered request went inwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Forward {
    UriMiss,
    VaryMiss,
    Stale,
    Request,
    Partial,
    Method,
    Store,
}

impl Forward {
    const fn as_str(self) -> &'static str {
        match self {
            Self::UriMiss => "fwd=uri-miss",
            Self::VaryMiss => "fwd=vary-miss",
            Self::Stale => "fwd=stale",
            Self::Request => "fwd=request",
            Self::Partial => "fwd=partial",
            Self::Method => "fwd=method",
            Self::Store => "fwd=bypass;detail=store",
        }
    }
}

/// One member of `Cache-Status` for a considered request.
#[derive(Clone, Copy, Debug)]
pub(super) enum Said {
    /// Fetched; with what is left of its lifetime where it was stored, else with the reason.
    Fetched {
        forward: Forward,
        status: Option<StatusCode>,
        stored: Result<i64, Option<Reason>>,
    },
    /// The answer of somebody else's fetch.
    Collapsed(Forward),
    /// Waited for somebody else's fetch in vain.
    Alone(Forward),
    /// A stale answer in place of an error.
    StandIn(Option<StatusCode>, i64),
}

/// The member name, with the values that never change made once.
#[derive(Clone, Debug)]
pub(super) struct Names {
    name: &'static str,
    hidden: bool,
    /// Members under this name are ready made.
    ready: bool,
    bypasses: [HeaderValue; BYPASSES.len()],
}

impl Names {
    pub(super) fn new(name: &'static str) -> Self {
        let bypasses = BYPASSES.map(|(_, said)| value(&format!("{name};{said}")));
        Self {
            name,
            hidden: false,
            ready: name == ready::NAME,
            bypasses,
        }
    }

    pub(super) const fn hide(&mut self) {
        self.hidden = true;
    }

    pub(super) const fn is_hidden(&self) -> bool {
        self.hidden
    }

    /// Appends the member for a passed request, after those of inner caches.
    pub(super) fn pass(&self, fields: &mut HeaderMap, why: Bypass) {
        let at = BYPASSES.iter().position(|(bypass, _)| *bypass == why);
        if let (false, Some(at)) = (self.hidden, at) {
            fields.append(CACHE_STATUS, self.bypasses[at].clone());
        }
    }

    /// Appends the member for a considered request.
    pub(super) fn say(&self, fields: &mut HeaderMap, said: Said) {
        if !self.hidden {
            fields.append(CACHE_STATUS, self.value(said));
        }
    }

    /// Makes the member of a hit.
    pub(super) fn hit(&self, ttl: i64) -> HeaderValue {
        if let Some(ready) = self.ready.then(|| ready::hit(ttl)).flatten() {
            return ready;
        }
        let mut out = Member::of(self.name);
        out.put(";hit");
        out.ttl(ttl);
        out.finish()
    }

    /// Makes the member.
    pub(super) fn value(&self, said: Said) -> HeaderValue {
        if let (
            true,
            Said::Fetched {
                forward: Forward::UriMiss,
                status: None,
                stored: Ok(ttl),
            },
        ) = (self.ready, &said)
            && let Some(ready) = ready::miss(*ttl)
        {
            return ready;
        }
        let mut out = Member::of(self.name);
        match said {
            Said::Fetched {
                forward,
                status,
                stored,
            } => {
                out.put(";");
                out.put(forward.as_str());
                out.status(status);
                match stored {
                    Ok(ttl) => {
                        out.put(";stored");
                        out.ttl(ttl);
                    }
                    Err(Some(why)) => {
                        out.put(";detail=");
                        out.put(why.as_str());
                    }
                    Err(None) => {}
                }
            }
            Said::Collapsed(forward) => {
                out.put(";");
                out.put(forward.as_str());
                out.put(";collapsed");
            }
            Said::Alone(forward) => {
                out.put(";");
                out.put(forward.as_str());
                out.put(";collapsed=?0");
            }
            Said::StandIn(status, ttl) => {
                out.put(";fwd=stale");
                out.status(status);
                out.ttl(ttl);
                out.put(";detail=stale-if-error");
            }
        }
        out.finish()
    }
}

/// One member while it is written: on the stack, then one exact allocation. Every hit writes one.
struct Member {
    bytes: [u8; LONGEST_NAME + 96],
    length: usize,
}

impl Member {
    fn of(name: &str) -> Self {
        let mut member = Self {
            bytes: [0; LONGEST_NAME + 96],
            length: 0,
        };
        member.put(name);
        member
    }

    /// Adds what has room; all that is ever said has.
    fn put(&mut self, text: &str) {
        let end = self.length + text.len();
        if let Some(room) = self.bytes.get_mut(self.length..end) {
            room.copy_from_slice(text.as_bytes());
            self.length = end;
        }
    }

    fn status(&mut self, status: Option<StatusCode>) {
        if let Some(status) = status {
            self.put(";fwd-status=");
            self.put(status.as_str());
        }
    }

    fn ttl(&mut self, ttl: i64) {
        self.put(if ttl < 0 { ";ttl=-" } else { ";ttl=" });
        let mut digits = [0; 20];
        let (mut at, mut rest) = (digits.len(), ttl.unsigned_abs());
        loop {
            at -= 1;
            digits[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        self.put(std::str::from_utf8(&digits[at..]).unwrap_or("0"));
    }

    fn finish(&self) -> HeaderValue {
        HeaderValue::from_bytes(&self.bytes[..self.length])
            .unwrap_or_else(|_| HeaderValue::from_static("tower-keep"))
    }
}

fn value(text: &str) -> HeaderValue {
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("tower-keep"))
}

/// Longer names are refused where they are set.
const LONGEST_NAME: usize = 64;

/// Says whether `name` may stand in `Cache-Status`: a token that begins with a letter (RFC 9651 §3.3.4).
pub(super) const fn is_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    if bytes.is_empty() || bytes.len() > LONGEST_NAME || !bytes[0].is_ascii_alphabetic() {
        return false;
    }
    let mut at = 1;
    while at < bytes.len() {
        if !(bytes[at].is_ascii_alphanumeric() || matches!(bytes[at], b'-' | b'_' | b'.')) {
            return false;
        }
        at += 1;
    }
    true
}
