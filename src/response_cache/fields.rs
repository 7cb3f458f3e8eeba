//! Stored fields: as text in one allocation until somebody needs a map of them, which a miss never does.

use std::ops::Deref;
use std::sync::OnceLock;

use bytes::Bytes;
use http::header::{AGE, HeaderMap};
use http::{HeaderName, HeaderValue};

use crate::core::fields::CACHE_STATUS;

/// The fields of a stored response. Read as a map, which the first reader makes; it is led by room for Age and
/// Cache-Status, so that a hit need not grow it.
#[derive(Clone, Debug, Default)]
pub(super) struct Fields {
    map: OnceLock<HeaderMap>,
    lines: Box<[(HeaderName, usize)]>,
    values: Bytes,
}

impl Fields {
    /// The bytes of all values, and the number of lines.
    pub(super) fn size(&self) -> (usize, usize) {
        match self.map.get() {
            Some(map) => (map.values().map(HeaderValue::len).sum(), map.len()),
            None => (self.values.len(), self.lines.len() + ROOM),
        }
    }

    /// Returns the first value of a field, without making the map.
    pub(super) fn value(&self, name: &HeaderName) -> Option<HeaderValue> {
        if let Some(map) = self.map.get() {
            return map.get(name).cloned();
        }
        let mut all = self.all();
        all.find(|(own, _)| *own == name).map(|(_, value)| value)
    }

    fn all(&self) -> impl Iterator<Item = (&HeaderName, HeaderValue)> {
        let mut at = 0;
        self.lines.iter().map(move |(name, length)| {
            let value = self.values.slice(at..at + length);
            at += length;
            // It was a value before.
            let value = HeaderValue::from_maybe_shared(value);
            (name, value.unwrap_or_else(|_| HeaderValue::from_static("")))
        })
    }

    fn to_map(&self) -> HeaderMap {
        let mut map = room(self.lines.len());
        for (name, value) in self.all() {
            map.append(name, value);
        }
        map
    }
}

impl Deref for Fields {
    type Target = HeaderMap;

    fn deref(&self) -> &HeaderMap {
        self.map.get_or_init(|| self.to_map())
    }
}

impl From<HeaderMap> for Fields {
    fn from(map: HeaderMap) -> Self {
        Self {
            map: OnceLock::from(map),
            ..Self::default()
        }
    }
}

/// The fields that every hit gets.
const ROOM: usize = 2;

/// Makes a map for about `more` fields, led by room for the two that every hit gets.
pub(super) fn room(more: usize) -> HeaderMap {
    let mut fields = HeaderMap::with_capacity(more + ROOM);
    fields.insert(AGE, HeaderValue::from_static("0"));
    fields.insert(CACHE_STATUS, HeaderValue::from_static(""));
    fields
}

/// Fields while they are gathered.
#[derive(Clone, Debug, Default)]
pub(super) struct Gathered {
    lines: Vec<(HeaderName, usize)>,
    values: Vec<u8>,
}

impl Gathered {
    pub(super) fn with_room(lines: usize, bytes: usize) -> Self {
        Self {
            lines: Vec::with_capacity(lines),
            values: Vec::with_capacity(bytes),
        }
    }

    /// Adds a line. Its value is copied: no buffer of a connection is kept alive.
    pub(super) fn push(&mut self, name: HeaderName, value: &[u8]) {
        self.lines.push((name, value.len()));
        self.values.extend_from_slice(value);
    }

    pub(super) fn has(&self, name: &HeaderName) -> bool {
        self.lines.iter().any(|(own, _)| own == name)
    }

    /// Returns the first value of a field.
    pub(super) fn get(&self, name: &HeaderName) -> Option<&[u8]> {
        let mut at = 0;
        for (own, length) in &self.lines {
            if own == name {
                return self.values.get(at..at + length);
            }
            at += length;
        }
        None
    }

    pub(super) fn remove(&mut self, name: &HeaderName) {
        if !self.has(name) {
            return;
        }
        let (mut kept, mut at) = (Self::default(), 0);
        for (own, length) in &self.lines {
            if own != name {
                kept.push(own.clone(), &self.values[at..at + length]);
            }
            at += length;
        }
        *self = kept;
    }

    pub(super) fn finish(self) -> Fields {
        Fields {
            map: OnceLock::new(),
            lines: self.lines.into_boxed_slice(),
            values: Bytes::from(self.values.into_boxed_slice()),
        }
    }
}

#[cfg(test)]
mod tests {
    use http::header::{CONTENT_TYPE, ETAG, LINK};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn text_and_map_say_the_same_and_repeated_lines_keep_their_order() {
        let mut gathered = Gathered::with_room(1, 1);
        gathered.push(LINK, b"<a>");
        gathered.push(ETAG, b"\"\xff\"");
        gathered.push(LINK, b"");
        gathered.push(CONTENT_TYPE, b"a/b");
        assert_eq!(gathered.get(&CONTENT_TYPE), Some(&b"a/b"[..]));
        assert!(gathered.has(&LINK) && !gathered.has(&AGE));
        let mut more = gathered.clone();
        more.remove(&LINK);
        assert_eq!(more.get(&ETAG), Some(&b"\"\xff\""[..]));
        assert_eq!(more.finish().len(), 4);
        let fields = gathered.finish();
        assert_eq!(fields.value(&ETAG).unwrap().as_bytes(), b"\"\xff\"");
        assert_eq!(fields.size(), (9, 6));
        let lines: Vec<_> = fields.get_all(LINK).iter().collect();
        assert_eq!(lines, ["<a>", ""]);
        assert_eq!(fields.size(), (10, 6), "the room for Age has a digit");
        assert_eq!(
            fields.value(&CONTENT_TYPE),
            fields.get(CONTENT_TYPE).cloned()
        );
        let mut other = HeaderMap::clone(&fields);
        other.remove(ETAG);
        let other = Fields::from(other);
        assert_eq!((other.value(&ETAG), other.len()), (None, 5));
    }

    proptest! {
        #[test]
        fn what_is_gathered_is_what_a_map_would_have(lines in prop::collection::vec((0_usize..4, "[ -~]{0,9}"), 0..12)) {
            let names = [CONTENT_TYPE, ETAG, LINK, HeaderName::from_static("x-a")];
            let (mut gathered, mut map) = (Gathered::default(), room(0));
            for (at, value) in &lines {
                gathered.push(names[*at].clone(), value.as_bytes());
                map.append(&names[*at], value.parse().unwrap());
            }
            prop_assert_eq!(&*gathered.finish(), &map);
        }
    }
}
