//! What the cache did with a request, as `Cache-Status` says it (RFC 9211).

use std::fmt::Write;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode};

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
}

impl Reason {
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
    bypasses: [HeaderValue; BYPASSES.len()],
}

impl Names {
    pub(super) fn new(name: &'static str) -> Self {
        let bypasses = BYPASSES.map(|(_, said)| value(&format!("{name};{said}")));
        Self {
            name,
            hidden: false,
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

    /// Makes the member of a hit: the commonest, so it is written by hand.
    pub(super) fn hit(&self, ttl: i64) -> HeaderValue {
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
        let (sign, digits): (&[u8], _) = (if ttl < 0 { b"-" } else { b"" }, &digits[at..]);
        let parts = [self.name.as_bytes(), b";hit;ttl=", sign, digits];
        // An exact allocation: what is larger is shrunk by another one.
        let mut out = Vec::with_capacity(parts.iter().map(|part| part.len()).sum());
        parts.iter().for_each(|part| out.extend_from_slice(part));
        HeaderValue::from_maybe_shared(Bytes::from(out))
            .unwrap_or_else(|_| HeaderValue::from_static("tower-keep"))
    }

    /// Makes the member.
    pub(super) fn value(&self, said: Said) -> HeaderValue {
        let mut out = String::with_capacity(self.name.len() + 40);
        out.push_str(self.name);
        // Writing to a `String` cannot fail.
        let _ = match said {
            Said::Fetched {
                forward,
                status,
                stored,
            } => {
                let _ = write!(out, ";{}", forward.as_str());
                if let Some(status) = status {
                    let _ = write!(out, ";fwd-status={}", status.as_u16());
                }
                match stored {
                    Ok(ttl) => write!(out, ";stored;ttl={ttl}"),
                    Err(Some(why)) => write!(out, ";detail={}", why.as_str()),
                    Err(None) => Ok(()),
                }
            }
            Said::Collapsed(forward) => write!(out, ";{};collapsed", forward.as_str()),
            Said::Alone(forward) => write!(out, ";{};collapsed=?0", forward.as_str()),
            Said::StandIn(status, ttl) => {
                out.push_str(";fwd=stale");
                if let Some(status) = status {
                    let _ = write!(out, ";fwd-status={}", status.as_u16());
                }
                write!(out, ";ttl={ttl};detail=stale-if-error")
            }
        };
        HeaderValue::try_from(out).unwrap_or_else(|_| HeaderValue::from_static("tower-keep"))
    }
}

fn value(text: &str) -> HeaderValue {
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("tower-keep"))
}

/// Says whether `name` may stand in `Cache-Status`: a token that begins with a letter (RFC 9651 §3.3.4).
pub(super) const fn is_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    if bytes.is_empty() || !bytes[0].is_ascii_alphabetic() {
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
