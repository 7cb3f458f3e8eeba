//! Keys made from what a form or a message says, where nobody sends a key.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::request::Parts;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::fingerprint::is_json;
use super::mac::Hasher;
use crate::core::Timestamp;

/// How a key is made from a request.
///
/// No character is replaced and every part carries its length: `a.b@x` and `a_b@x` are two keys.
#[derive(Clone)]
#[must_use]
pub struct DerivedKey {
    name: Box<str>,
    source: Source,
}

#[derive(Clone)]
enum Source {
    Fields(Vec<Field>),
    By(fn(&Parts, &Bytes) -> Option<Vec<u8>>),
}

#[derive(Clone)]
struct Field {
    name: Box<str>,
    kind: Kind,
}

#[derive(Clone, Copy)]
enum Kind {
    Text = 1,
    Email = 2,
    Instant = 3,
}

impl DerivedKey {
    /// Starts a key of fields of a urlencoded body or of the top level of a JSON object.
    pub fn fields(name: &str) -> Self {
        Self {
            name: name.into(),
            source: Source::Fields(Vec::new()),
        }
    }

    /// Makes the key by `material`; `None`, or nothing in it, is 400.
    pub fn by(name: &str, material: fn(&Parts, &Bytes) -> Option<Vec<u8>>) -> Self {
        Self {
            name: name.into(),
            source: Source::By(material),
        }
    }

    /// Adds a field whose value counts without white space around it.
    ///
    /// # Panics
    /// The key was made by [`DerivedKey::by`].
    pub fn text(self, field: &str) -> Self {
        self.field(field, Kind::Text)
    }

    /// Adds a field with an e-mail address: trimmed, in lower case.
    ///
    /// # Panics
    /// The key was made by [`DerivedKey::by`].
    pub fn email(self, field: &str) -> Self {
        self.field(field, Kind::Email)
    }

    /// Adds a field with an RFC 3339 time: one instant is one value, however it is written.
    ///
    /// # Panics
    /// The key was made by [`DerivedKey::by`].
    pub fn instant(self, field: &str) -> Self {
        self.field(field, Kind::Instant)
    }

    #[track_caller]
    fn field(mut self, name: &str, kind: Kind) -> Self {
        let is_fields = matches!(self.source, Source::Fields(_));
        assert!(is_fields, "fields belong to DerivedKey::fields()");
        if let Source::Fields(fields) = &mut self.source {
            fields.push(Field {
                name: name.into(),
                kind,
            });
        }
        self
    }

    /// Takes the key's material in.
    ///
    /// # Errors
    /// The name of the field that is missing, empty, repeated, no scalar or no instant; the key's own name for [`DerivedKey::by`].
    pub(super) fn hash(
        &self,
        hasher: &mut Hasher,
        parts: &Parts,
        body: &Bytes,
    ) -> Result<(), Box<str>> {
        hasher.part(self.name.as_bytes());
        match &self.source {
            Source::By(material) => {
                let material = material(parts, body).filter(|material| !material.is_empty());
                let material = material.ok_or_else(|| self.name.clone())?;
                hasher.number(0).part(&material);
            }
            Source::Fields(wanted) => {
                let found = read_fields(parts, body);
                hasher.number(wanted.len() as u64);
                for field in wanted {
                    let value = found
                        .one(&field.name)
                        .and_then(|value| field.kind.normal(value));
                    let value = value.ok_or_else(|| field.name.clone())?;
                    hasher.part(field.name.as_bytes()).number(field.kind as u64);
                    hasher.part(value.as_bytes());
                }
            }
        }
        Ok(())
    }
}

impl fmt::Debug for DerivedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DerivedKey")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Kind {
    fn normal(self, value: &str) -> Option<String> {
        let value = value.trim();
        if value.is_empty() {
            return None;
        }
        match self {
            Self::Text => Some(value.to_owned()),
            Self::Email => Some(value.to_lowercase()),
            Self::Instant => {
                let instant: Timestamp = value.parse().ok()?;
                Some(instant.as_millis().to_string())
            }
        }
    }
}

/// What the body says, every occurrence; no value where it is not a scalar.
struct Found<'a>(Vec<(Cow<'a, str>, Option<Cow<'a, str>>)>);

impl Found<'_> {
    /// Returns the only value of `name`.
    fn one(&self, name: &str) -> Option<&str> {
        let mut values = self.0.iter().filter(|(own, _)| own == name);
        let first = values.next()?;
        if values.next().is_some() {
            return None;
        }
        first.1.as_deref()
    }
}

fn read_fields<'a>(parts: &Parts, body: &'a Bytes) -> Found<'a> {
    let content_type = parts
        .headers
        .get(CONTENT_TYPE)
        .map_or(&b""[..], |value| value.as_bytes());
    let essence = content_type
        .split(|byte| *byte == b';')
        .next()
        .unwrap_or_default()
        .trim_ascii();
    if essence.eq_ignore_ascii_case(b"application/x-www-form-urlencoded") {
        // Bytes that are no UTF-8 were replaced, so that two values could look the same: such a value is none.
        let scalar = |value: Cow<'a, str>| (!value.contains('\u{FFFD}')).then_some(value);
        return Found(
            form_urlencoded::parse(body)
                .map(|(name, value)| (name, scalar(value)))
                .collect(),
        );
    }
    let mut json = serde_json::Deserializer::from_slice(body);
    if is_json(content_type)
        && let Ok(members) = json.deserialize_map(Members)
        && json.end().is_ok()
    {
        return Found(members);
    }
    Found(Vec::new())
}

/// Reads the members of an object in order, repeated ones included.
struct Members;

impl<'de> Visitor<'de> for Members {
    type Value = Vec<(Cow<'de, str>, Option<Cow<'de, str>>)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = Vec::new();
        while let Some((name, value)) = map.next_entry::<String, &RawValue>()? {
            let value = match value.get().as_bytes().first() {
                Some(b'"') => serde_json::from_str::<String>(value.get()).ok(),
                Some(b'{' | b'[' | b'n') | None => None,
                Some(_) => Some(value.get().to_owned()),
            };
            members.push((Cow::Owned(name), value.map(Cow::Owned)));
        }
        Ok(members)
    }
}

#[cfg(test)]
mod tests;
