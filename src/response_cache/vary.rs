//! `Vary`: which request fields select a variant, and the one form their values are compared in (RFC 9111 §4.1).

use std::fmt;
use std::sync::Arc;

use http::header::{
    self, ACCEPT_ENCODING, ACCEPT_LANGUAGE, ACCESS_CONTROL_ALLOW_ORIGIN, AUTHORIZATION,
    CONTENT_ENCODING, CONTENT_LANGUAGE, COOKIE, HeaderMap, HeaderName, ORIGIN,
};

use smallvec::SmallVec;

use super::directives::members;

/// More names than this are not worth storing for.
const MOST_NAMES: usize = 8;

/// The names of the fields that select a variant: lower case, sorted, each once.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Names(Option<Arc<str>>);

impl Names {
    /// Makes the set from its text form, names joined by commas.
    #[must_use]
    pub fn from_text(text: &str) -> Self {
        Self::from_list(text.split(',').filter(|name| !name.is_empty()).collect())
    }

    fn from_list(mut names: Vec<&str>) -> Self {
        names.sort_unstable();
        names.dedup();
        Self((!names.is_empty()).then(|| Arc::from(names.join(","))))
    }

    /// Returns the names joined by commas.
    #[must_use]
    pub fn as_text(&self) -> &str {
        self.0.as_deref().unwrap_or("")
    }

    /// Says whether nothing selects.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Returns the names one by one.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.as_text().split(',').filter(|name| !name.is_empty())
    }

    /// Returns the names of both.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        if self.is_empty() || self == other {
            return other.clone();
        }
        if other.is_empty() {
            return self.clone();
        }
        Self::from_list(self.iter().chain(other.iter()).collect())
    }

    /// Says whether there are more than may be stored for.
    pub(super) fn are_too_many(&self) -> bool {
        self.iter().count() > MOST_NAMES
    }
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_text())
    }
}

/// Reads the names that a response varies on; `None` is `*`, or what cannot be a name.
///
/// Two are implied though unsaid: the coding of an encoded answer was negotiated, and a repeated
/// `Origin` is one asker's. On private routes the principal covers Cookie and Authorization.
pub(super) fn names_of(response: &HeaderMap, request: &HeaderMap, private: bool) -> Option<Names> {
    if !response.contains_key(header::VARY)
        && !response.contains_key(CONTENT_ENCODING)
        && !response.contains_key(ACCESS_CONTROL_ALLOW_ORIGIN)
    {
        return Some(Names::default());
    }
    let mut names = Vec::new();
    for line in response.get_all(header::VARY) {
        for member in line.as_bytes().split(|byte| *byte == b',') {
            let member = member.trim_ascii();
            if member.is_empty() {
                continue;
            }
            if member.contains(&b'*') {
                return None;
            }
            names.push(HeaderName::from_bytes(member).ok()?);
        }
    }
    if response.contains_key(CONTENT_ENCODING) {
        names.push(ACCEPT_ENCODING);
    }
    if let (Some(allowed), Some(origin)) = (
        response.get(ACCESS_CONTROL_ALLOW_ORIGIN),
        request.get(ORIGIN),
    ) && allowed.as_bytes().eq_ignore_ascii_case(origin.as_bytes())
    {
        names.push(ORIGIN);
    }
    if private {
        names.retain(|name| name != COOKIE && name != AUTHORIZATION);
    }
    let names = Names::from_list(names.iter().map(HeaderName::as_str).collect());
    (!names.are_too_many()).then_some(names)
}

/// Writes the values that select, each with its length, in the one form they are compared in.
pub(super) fn selection(names: &Names, request: &HeaderMap) -> Vec<u8> {
    let mut out = Vec::new();
    for name in names.iter() {
        let mut lines = request.get_all(name).iter().peekable();
        // An absent field differs from an empty one.
        let absent = lines.peek().is_none();
        let values = lines.map(http::HeaderValue::as_bytes);
        let value = if name == ACCEPT_LANGUAGE.as_str() || name == ACCEPT_ENCODING.as_str() {
            preferences(values)
        } else if name == COOKIE.as_str() {
            crumbs(values)
        } else {
            plain(values)
        };
        let length = if absent { u32::MAX } else { value.len() as u32 };
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(&value);
    }
    out
}

/// Writes a selection for whoever takes an answer in `language`, whatever else its `Accept-Language` says; `None` where
/// that field does not select. No field can hold the byte that marks it.
pub(super) fn in_language(names: &Names, selection: &[u8], language: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(selection.len());
    let mut selects = false;
    for (name, length, value) in parts(names, selection) {
        if name == ACCEPT_LANGUAGE.as_str() {
            selects = true;
            out.extend_from_slice(&(language.len() as u32 + 1).to_be_bytes());
            out.push(0);
            out.extend_from_slice(language);
        } else {
            out.extend_from_slice(&length);
            out.extend_from_slice(value);
        }
    }
    selects.then_some(out)
}

/// Reads the language that a selection likes strictly better than all others, lower case.
pub(super) fn liked_language<'a>(names: &'a Names, selection: &'a [u8]) -> Option<&'a [u8]> {
    if names.is_empty() {
        return None;
    }
    let mut parts = parts(names, selection);
    let (.., value) = parts.find(|(name, ..)| *name == ACCEPT_LANGUAGE.as_str())?;
    // Written by `preferences`: the best come first, and a weight is in thousandths.
    let mut members = value.split(|byte| *byte == b',').map(|member| {
        let at = member.windows(3).position(|part| part == b";q=");
        let weight = at.map(|at| std::str::from_utf8(&member[at + 3..]).ok()?.parse().ok());
        (
            &member[..at.unwrap_or(member.len())],
            weight.unwrap_or(Some(1_000)),
        )
    });
    let (language, weight) = members.next()?;
    let (weight, next) = (
        weight?,
        members.next().map_or(Some(0), |(_, weight)| weight)?,
    );
    let named = !language.is_empty()
        && !language
            .iter()
            .any(|byte| [b'*', b';', UNREAD].contains(byte));
    (named && weight > next).then_some(language)
}

/// Reads the one language that a response is in, lower case.
pub(super) fn language_of(fields: &HeaderMap) -> Option<Vec<u8>> {
    let mut lines = fields.get_all(CONTENT_LANGUAGE).iter();
    let (Some(line), None) = (lines.next(), lines.next()) else {
        return None;
    };
    let language = line.as_bytes().trim_ascii().to_ascii_lowercase();
    (!language.is_empty() && !language.contains(&b',')).then_some(language)
}

/// Reads a selection: each name with the length as it is written, and the value.
fn parts<'a>(
    names: &'a Names,
    selection: &'a [u8],
) -> impl Iterator<Item = (&'a str, [u8; 4], &'a [u8])> {
    let mut rest = selection;
    names.iter().map_while(move |name| {
        let (length, after) = rest.split_first_chunk::<4>()?;
        // An absent field has a length that none can have.
        let bytes = match u32::from_be_bytes(*length) {
            u32::MAX => 0,
            bytes => bytes as usize,
        };
        let (value, after) = after.split_at_checked(bytes)?;
        rest = after;
        Some((name, *length, value))
    })
}

/// Joins lines by `, ` and drops the space at the ends and around commas outside quoted strings.
fn plain<'a>(lines: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let all: Vec<&[u8]> = lines.flat_map(members).collect();
    all.join(&b","[..])
}

/// Keeps lines apart by a byte that none can hold. Cookies are no list (RFC 6265 §5.4): a comma is a part of a value, and
/// HTTP/2 gives each pair a line of its own (RFC 9113 §8.2.3), so that lines joined by one would be another cookie.
fn crumbs<'a>(lines: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let all: Vec<&[u8]> = lines.map(<[u8]>::trim_ascii).collect();
    all.join(&b"\n"[..])
}

/// Stands before what cannot be read as preferences; no field can hold it.
const UNREAD: u8 = 1;

/// Lower case, `q` in one form, members by falling preference, then name. With one member that is no name with a weight
/// the whole value stays as it came: who knows what a handler reads in that, and nobody else shall get it.
fn preferences<'a>(lines: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let lines: SmallVec<[&[u8]; 2]> = lines.collect();
    let all = lines.iter().flat_map(|line| members(line));
    let named = all.filter(|member| !member.is_empty()).map(preference);
    let Some(mut members) = named.collect::<Option<Vec<_>>>() else {
        let mut out = vec![UNREAD];
        out.extend_from_slice(&plain(lines.into_iter()));
        return out;
    };
    members.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    members.dedup();
    let mut out = Vec::new();
    for (quality, name) in members {
        if !out.is_empty() {
            out.push(b',');
        }
        out.extend_from_slice(&name);
        if quality != 1_000 {
            out.extend_from_slice(format!(";q={quality}").as_bytes());
        }
    }
    out
}

/// Reads `en;q=0.8` as thousandths and a name (RFC 9110 §12.4.2).
fn preference(member: &[u8]) -> Option<(u16, Vec<u8>)> {
    let (name, quality) = match member.iter().position(|byte| *byte == b';') {
        None => (member, 1_000),
        Some(at) => {
            let weight = member[at + 1..].trim_ascii_start();
            let (name, digits) = weight.split_at_checked(2)?;
            let quality = name.eq_ignore_ascii_case(b"q=").then_some(digits)?;
            (member[..at].trim_ascii_end(), thousandths(quality)?)
        }
    };
    let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    let is_name = !name.is_empty() && name.iter().all(is_token);
    is_name.then(|| (quality, name.to_ascii_lowercase()))
}

fn thousandths(text: &[u8]) -> Option<u16> {
    let (whole, fraction) = match text {
        [whole @ (b'0' | b'1')] => (whole, &[][..]),
        [whole @ (b'0' | b'1'), b'.', fraction @ ..] if fraction.len() <= 3 => (whole, fraction),
        _ => return None,
    };
    let mut sum = u16::from(whole - b'0') * 1_000;
    for (digit, worth) in fraction.iter().zip([100, 10, 1]) {
        sum += u16::from(digit.is_ascii_digit().then(|| digit - b'0')?) * worth;
    }
    (sum <= 1_000).then_some(sum)
}

#[cfg(test)]
mod tests;
