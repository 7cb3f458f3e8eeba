//! Stored fields: as text until somebody needs a map of them, which a miss never does.

use std::ops::Deref;
use std::sync::OnceLock;

use bytes::{Buf, Bytes};
use http::header::{self, AGE, HeaderMap};
use http::{HeaderName, HeaderValue};

use crate::core::fields::CACHE_STATUS;

/// The fields of a stored response. Read as a map, which the first reader makes; it is led by room for Age and
/// Cache-Status, so that a hit need not grow it.
#[derive(Clone, Debug, Default)]
pub(super) struct Fields {
    map: OnceLock<Box<HeaderMap>>,
    lines: Lines,
}

/// Lines as text, one behind the other: a number for the name, with a bit for a sensitive value; the value's length, the
/// name if it has no number, the value. The text lies in one allocation with the body.
#[derive(Clone, Debug, Default)]
struct Lines {
    count: u32,
    /// See [`Fields::size`].
    bytes: u32,
    /// How much of the text are lines; the rest is the body.
    length: u32,
    text: Bytes,
}

/// Names that are told by a number.
static NUMBERED: [HeaderName; 14] = [
    header::CONTENT_TYPE,
    header::CONTENT_LENGTH,
    header::CACHE_CONTROL,
    header::ETAG,
    header::DATE,
    header::LAST_MODIFIED,
    header::EXPIRES,
    header::VARY,
    header::CONTENT_ENCODING,
    header::CONTENT_LANGUAGE,
    header::LOCATION,
    header::LINK,
    header::ACCESS_CONTROL_ALLOW_ORIGIN,
    header::SERVER,
];
/// The name is written out.
const UNNUMBERED: u8 = 0x7F;
/// The bit of a sensitive value.
const SENSITIVE: u8 = 0x80;

const fn number_of(name: &HeaderName) -> u8 {
    match *name {
        header::CONTENT_TYPE => 0,
        header::CONTENT_LENGTH => 1,
        header::CACHE_CONTROL => 2,
        header::ETAG => 3,
        header::DATE => 4,
        header::LAST_MODIFIED => 5,
        header::EXPIRES => 6,
        header::VARY => 7,
        header::CONTENT_ENCODING => 8,
        header::CONTENT_LANGUAGE => 9,
        header::LOCATION => 10,
        header::LINK => 11,
        header::ACCESS_CONTROL_ALLOW_ORIGIN => 12,
        header::SERVER => 13,
        _ => UNNUMBERED,
    }
}

/// The bit of a name's number; none for a name that is written out.
const fn bit_of(number: u8) -> u16 {
    if number == UNNUMBERED { 0 } else { 1 << number }
}

/// The bytes of a name that is written out.
fn written_out(name: &HeaderName) -> usize {
    match number_of(name) {
        UNNUMBERED => name.as_str().len(),
        _ => 0,
    }
}

/// One line, read where it lies.
#[derive(Clone, Copy)]
struct Line<'a> {
    number: u8,
    is_sensitive: bool,
    name: &'a [u8],
    value: &'a [u8],
    /// Where the value begins in the text.
    at: usize,
    /// Where the next line begins.
    end: usize,
}

impl Line<'_> {
    fn is(&self, name: &HeaderName) -> bool {
        let number = number_of(name);
        self.number == number && (number != UNNUMBERED || self.name == name.as_str().as_bytes())
    }

    /// The name; it was one before.
    fn name(&self) -> Option<HeaderName> {
        let numbered = NUMBERED.get(usize::from(self.number)).cloned();
        numbered.or_else(|| HeaderName::from_lowercase(self.name).ok())
    }

    /// See [`Fields::size`].
    const fn size(&self) -> usize {
        self.value.len() + 2 * self.name.len()
    }
}

fn lines(text: &[u8]) -> impl Iterator<Item = Line<'_>> {
    let mut next = 0;
    std::iter::from_fn(move || {
        let line = line(text, next)?;
        next = line.end;
        Some(line)
    })
}

fn line(text: &[u8], start: usize) -> Option<Line<'_>> {
    let mut rest = text.get(start..)?;
    let first = rest.try_get_u8().ok()?;
    let (number, is_sensitive) = (first & !SENSITIVE, first & SENSITIVE != 0);
    let length = read_length(&mut rest)?;
    let named = if number == UNNUMBERED {
        read_length(&mut rest)?
    } else {
        0
    };
    let (name, rest) = rest.split_at_checked(named)?;
    let value = rest.get(..length)?;
    let at = text.len() - rest.len();
    Some(Line {
        number,
        is_sensitive,
        name,
        value,
        at,
        end: at + length,
    })
}

fn put_length(text: &mut Vec<u8>, mut length: usize) {
    while length >= 0x80 {
        text.push((length & 0x7F) as u8 | 0x80);
        length >>= 7;
    }
    text.push(length as u8);
}

fn read_length(rest: &mut &[u8]) -> Option<usize> {
    let mut length = 0;
    for shift in (0..28).step_by(7) {
        let byte = rest.try_get_u8().ok()?;
        length |= usize::from(byte & 0x7F) << shift;
        if byte & 0x80 == 0 {
            return Some(length);
        }
    }
    None
}

impl Fields {
    /// The bytes of all values and of names that are written out, the latter in text and map, where there are both; and
    /// the number of lines.
    pub(super) fn size(&self) -> (usize, usize) {
        match self.map.get() {
            Some(map) => {
                let times = 1 + usize::from(self.lines.count > 0);
                let line =
                    |(name, value): (_, &HeaderValue)| value.len() + times * written_out(name);
                (map.iter().map(line).sum(), map.len())
            }
            None => (self.lines.bytes as usize, self.lines.count as usize + ROOM),
        }
    }

    /// The bytes that lie before the body in its allocation.
    pub(super) fn text_bytes(&self) -> usize {
        self.lines.length as usize
    }

    /// How many bytes lie behind the lines in their allocation.
    pub(super) fn bytes_behind(&self) -> usize {
        self.lines.text.len() - self.text_bytes()
    }

    /// What lies behind the lines in their allocation.
    pub(super) fn behind(&self) -> Bytes {
        self.lines.text.slice(self.text_bytes()..)
    }

    /// Returns the first value of a field, without making the map.
    pub(super) fn value(&self, name: &HeaderName) -> Option<HeaderValue> {
        if let Some(map) = self.map.get() {
            return map.get(name).cloned();
        }
        let line = lines(self.lines.lines()).find(|line| line.is(name))?;
        Some(self.lines.value(&line))
    }
}

impl Lines {
    fn lines(&self) -> &[u8] {
        &self.text[..self.length as usize]
    }

    fn value(&self, line: &Line<'_>) -> HeaderValue {
        // It was a value before.
        let mut value = HeaderValue::from_maybe_shared(self.text.slice(line.at..line.end))
            .unwrap_or_else(|_| HeaderValue::from_static(""));
        value.set_sensitive(line.is_sensitive);
        value
    }

    fn to_map(&self) -> Box<HeaderMap> {
        let mut map = room(self.count as usize);
        for line in lines(self.lines()) {
            if let Some(name) = line.name() {
                map.append(name, self.value(&line));
            }
        }
        // A map that was made by insertion is half empty; its clone is not.
        Box::new(map.clone())
    }
}

impl Deref for Fields {
    type Target = HeaderMap;

    fn deref(&self) -> &HeaderMap {
        self.map.get_or_init(|| self.lines.to_map())
    }
}

impl From<HeaderMap> for Fields {
    fn from(map: HeaderMap) -> Self {
        Self {
            map: OnceLock::from(Box::new(map)),
            ..Self::default()
        }
    }
}

/// The fields that every hit gets.
pub(super) const ROOM: usize = 2;

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
    count: u32,
    bytes: u32,
    /// A bit for each name with a number that is there.
    numbers: u16,
    text: Vec<u8>,
}

impl Gathered {
    /// Makes room for so many lines with values of so many bytes.
    pub(super) fn with_room(lines: usize, values: usize) -> Self {
        Self {
            text: Vec::with_capacity(lines * 4 + values),
            ..Self::default()
        }
    }

    /// Copies all of a map.
    pub(super) fn of(fields: &HeaderMap) -> Self {
        let size = |(name, value): (&HeaderName, &HeaderValue)| name.as_str().len() + value.len();
        let bytes = fields.iter().map(size).sum::<usize>();
        let mut gathered = Self {
            text: Vec::with_capacity(fields.len() * 5 + bytes),
            ..Self::default()
        };
        for (name, value) in fields {
            gathered.push_value(name, value);
        }
        gathered
    }

    /// The map that it was copied from.
    pub(super) fn to_map(&self) -> HeaderMap {
        let mut map = HeaderMap::with_capacity(self.count as usize);
        for line in lines(&self.text) {
            // They were a name and a value before.
            if let (Some(name), Ok(mut value)) = (line.name(), HeaderValue::from_bytes(line.value))
            {
                value.set_sensitive(line.is_sensitive);
                map.append(name, value);
            }
        }
        map
    }

    /// Adds a line. Its value is copied: no buffer of a connection is kept alive.
    pub(super) fn push(&mut self, name: &HeaderName, value: &[u8]) {
        self.put(name, value, number_of(name));
    }

    /// The same for a value that may be sensitive.
    pub(super) fn push_value(&mut self, name: &HeaderName, value: &HeaderValue) {
        let mark = if value.is_sensitive() { SENSITIVE } else { 0 };
        self.put(name, value.as_bytes(), number_of(name) | mark);
    }

    fn put(&mut self, name: &HeaderName, value: &[u8], first: u8) {
        self.text.push(first);
        put_length(&mut self.text, value.len());
        self.numbers |= bit_of(first & !SENSITIVE);
        let named = written_out(name);
        if named > 0 {
            put_length(&mut self.text, named);
            self.text.extend_from_slice(name.as_str().as_bytes());
        }
        self.text.extend_from_slice(value);
        self.count += 1;
        self.bytes += (value.len() + 2 * named) as u32;
    }

    pub(super) fn has(&self, name: &HeaderName) -> bool {
        match number_of(name) {
            UNNUMBERED => self.get(name).is_some(),
            number => self.numbers & bit_of(number) != 0,
        }
    }

    /// Returns the first value of a field.
    pub(super) fn get(&self, name: &HeaderName) -> Option<&[u8]> {
        let line = lines(&self.text).find(|line| line.is(name));
        line.map(|line| line.value)
    }

    pub(super) fn remove(&mut self, name: &HeaderName) {
        if !self.has(name) {
            return;
        }
        let mut kept = Self::default();
        let mut start = 0;
        for line in lines(&self.text) {
            if !line.is(name) {
                kept.text.extend_from_slice(&self.text[start..line.end]);
                kept.count += 1;
                kept.bytes += line.size() as u32;
                kept.numbers |= bit_of(line.number);
            }
            start = line.end;
        }
        *self = kept;
    }

    /// Ends it without a body.
    pub(super) fn finish(self) -> Fields {
        self.finish_with(&[])
    }

    /// Ends it, and copies a body behind the text: one exact allocation for both, which nobody counts until it is shared.
    pub(super) fn finish_with(self, body: &[Bytes]) -> Fields {
        let length = body.iter().map(Bytes::len).sum::<usize>();
        let mut all = Vec::with_capacity(self.text.len() + length);
        all.extend_from_slice(&self.text);
        for chunk in body {
            all.extend_from_slice(chunk);
        }
        let lines = Lines {
            count: self.count,
            bytes: self.bytes,
            length: self.text.len() as u32,
            text: Bytes::from(all),
        };
        let map = OnceLock::new();
        Fields { map, lines }
    }
}

#[cfg(test)]
mod tests {
    use http::header::{CONTENT_TYPE, ETAG, LINK};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_number_is_its_name() {
        for (at, name) in NUMBERED.iter().enumerate() {
            assert_eq!(usize::from(number_of(name)), at);
        }
        assert_eq!(number_of(&AGE), UNNUMBERED);
    }

    #[test]
    fn text_and_map_say_the_same_and_repeated_lines_keep_their_order() {
        let mut gathered = Gathered::with_room(1, 1);
        gathered.push(&LINK, b"<a>");
        gathered.push(&ETAG, b"\"\xff\"");
        gathered.push(&LINK, b"");
        gathered.push(&CONTENT_TYPE, b"a/b");
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
        let room = 1 + 2 * (AGE.as_str().len() + CACHE_STATUS.as_str().len());
        assert_eq!(fields.size(), (9 + room, 6), "Age has a digit");
        assert_eq!(
            fields.value(&CONTENT_TYPE),
            fields.get(CONTENT_TYPE).cloned()
        );
        let mut other = HeaderMap::clone(&fields);
        other.remove(ETAG);
        let other = Fields::from(other);
        assert_eq!((other.value(&ETAG), other.len()), (None, 5));
    }

    #[test]
    fn a_body_lies_behind_its_fields_in_one_allocation() {
        let mut gathered = Gathered::with_room(2, 9);
        gathered.push(&ETAG, b"\"1\"");
        gathered.push(&HeaderName::from_static("x-a"), &[b'v'; 300]);
        let chunks = [Bytes::from_static(b"he"), Bytes::from_static(b"llo")];
        let fields = gathered.finish_with(&chunks);
        let body = fields.behind();
        assert_eq!(
            (&body[..], fields.get("x-a").unwrap().len()),
            (&b"hello"[..], 300)
        );
        assert_eq!((fields.bytes_behind(), fields.len()), (5, 4));
        let text = fields.lines.lines();
        assert_eq!(text.as_ptr().wrapping_add(text.len()), body.as_ptr());
    }

    #[test]
    fn a_name_of_any_length_is_counted_as_often_as_it_is_kept() {
        let name = HeaderName::from_bytes(&[b'n'; 15_000]).unwrap();
        let mut gathered = Gathered::default();
        gathered.push(&ETAG, b"\"1\"");
        gathered.push(&name, b"v");
        let mut less = gathered.clone();
        less.remove(&name);
        assert_eq!(less.finish().size(), (3, 3));
        let fields = gathered.finish();
        assert_eq!(fields.size(), (30_004, 4));
        assert_eq!(fields.len(), 4, "as a map");
        assert!((30_004..30_100).contains(&fields.size().0));
    }

    #[test]
    fn what_is_sensitive_stays_so_in_text_and_map() {
        let mut secret = HeaderValue::from_static("s");
        secret.set_sensitive(true);
        let mut gathered = Gathered::default();
        for name in [&ETAG, &HeaderName::from_static("x-a")] {
            gathered.push_value(name, &secret);
        }
        gathered.push_value(&LINK, &HeaderValue::from_static("<a>"));
        assert_eq!(gathered.get(&ETAG), Some(&b"s"[..]));
        let fields = gathered.finish();
        for is_map in [false, true] {
            let found = [ETAG, LINK, HeaderName::from_static("x-a")]
                .map(|name| fields.value(&name).unwrap().is_sensitive());
            assert_eq!(found, [true, false, true], "{is_map}");
            assert_eq!(fields.len(), 5);
        }
    }

    #[test]
    fn a_stored_head_takes_little_room() {
        use crate::response_cache::entry::Entry;
        assert!(size_of::<Fields>() <= 64, "{}", size_of::<Fields>());
        assert!(size_of::<Entry>() <= 400, "{}", size_of::<Entry>());
    }

    proptest! {
        #[test]
        fn what_is_gathered_is_what_a_map_would_have(lines in prop::collection::vec((0_usize..5, "[ -~]{0,200}"), 0..12)) {
            let names = [CONTENT_TYPE, ETAG, LINK, HeaderName::from_static("x-a"), AGE];
            let (mut gathered, mut map) = (Gathered::default(), room(0));
            for (at, value) in &lines {
                gathered.push(&names[*at], value.as_bytes());
                map.append(&names[*at], value.parse().unwrap());
            }
            prop_assert_eq!(&*gathered.finish(), &map);
        }
    }
}
