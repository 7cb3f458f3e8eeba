//! What things are kept under: keys of one or several segments, made from the application's own values.

use std::borrow::Borrow;
use std::fmt::{self, Write as _};
use std::sync::Arc;

use smallvec::SmallVec;

use super::key::{KeyBuilder, Text, digest22, escape_into};

/// A key of a data service: escaped segments, so that no two different ones ever look the same.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(Arc<str>);

impl Key {
    /// Makes a key from segments.
    #[must_use]
    pub fn of<S: AsRef<str>>(segments: impl IntoIterator<Item = S>) -> Self {
        let mut text = Segments::default();
        for segment in segments {
            text.push(segment);
        }
        text.to_key()
    }

    /// Takes a key back as a store kept it.
    #[must_use]
    pub fn from_escaped(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    /// Returns the segments, escaped and joined by colons.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A key is looked for by its text.
impl Borrow<str> for Key {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Key {
    /// Hashed: a key may name a person, and Debug text ends up in logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key(#{})", digest22(self.0.as_bytes()))
    }
}

/// The segments of a key, escaped as they come: without an allocation while they are short, so that what is at hand
/// can be looked for before a [`Key`] is made.
#[derive(Clone, Default)]
pub struct Segments {
    text: SmallVec<[u8; INLINE]>,
    begun: bool,
}

/// Bytes of a key that lie on the stack.
const INLINE: usize = 96;

impl Segments {
    /// Takes in the segments of `key`.
    pub fn of(key: &(impl KeySegments + ?Sized)) -> Self {
        let mut segments = Self::default();
        key.segments(&mut segments);
        segments
    }

    /// Appends a segment.
    pub fn push(&mut self, segment: impl AsRef<str>) {
        self.separate();
        escape_into(&mut self.text, segment.as_ref());
    }

    /// Appends a segment of ours that needs no escape and is short: a number.
    fn push_number(&mut self, number: impl fmt::Display) {
        self.separate();
        // Writing to it cannot fail.
        let _ = write!(Plain(&mut self.text), "{number}");
    }

    /// Returns the bytes of the key's text.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        // An empty text is a key, too, and another than no text; nothing else becomes `~` or `~~`.
        match (self.text.is_empty(), self.begun) {
            (false, _) => &self.text,
            (true, true) => b"~",
            (true, false) => b"~~",
        }
    }

    /// Returns the key's text: [`Key::as_str`] of the key that this makes.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // Escaped text is ASCII: this never fails.
        std::str::from_utf8(self.as_bytes()).unwrap_or_default()
    }

    /// Makes the key.
    #[must_use]
    pub fn to_key(&self) -> Key {
        Key(Arc::from(self.as_str()))
    }

    fn separate(&mut self) {
        if self.begun {
            self.text.push(b':');
        }
        self.begun = true;
    }
}

impl fmt::Debug for Segments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_key().fmt(f)
    }
}

impl Text for SmallVec<[u8; INLINE]> {
    fn size(&self) -> usize {
        self.len()
    }

    fn put(&mut self, text: &str) {
        self.extend_from_slice(text.as_bytes());
    }

    fn cut(&mut self, size: usize) {
        self.truncate(size);
    }
}

/// Takes in what needs no escape.
struct Plain<'a>(&'a mut SmallVec<[u8; INLINE]>);

impl fmt::Write for Plain<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.put(text);
        Ok(())
    }
}

/// What the segments of a key are taken from: texts, whole numbers, tuples of up to four of them, and types of your own.
///
/// ```
/// use tower_keep::core::{IntoKey, KeySegments, Segments};
///
/// struct Seat {
///     hall: String,
///     number: u32,
/// }
///
/// impl KeySegments for Seat {
///     fn segments(&self, into: &mut Segments) {
///         (&self.hall, self.number).segments(into);
///     }
/// }
///
/// let seat = Seat { hall: "a:b".into(), number: 7 };
/// assert_eq!(seat.to_key(), ("a:b", 7_u32).into_key());
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no key: use a text, a whole number, or a tuple of up to four of them"
)]
pub trait KeySegments {
    /// Appends the segments of this part.
    fn segments(&self, into: &mut Segments);
}

/// What can be a key: whatever has [`KeySegments`]. These alone decide, since what is at hand is looked for by them before
/// a key is made; so there is nothing here that a type of your own could say otherwise.
///
/// ```compile_fail,E0119
/// use tower_keep::core::{IntoKey, Key, KeySegments, Segments};
///
/// struct Mine;
///
/// impl KeySegments for Mine {
///     fn segments(&self, into: &mut Segments) {
///         into.push("a");
///     }
/// }
///
/// impl IntoKey for Mine {
///     fn to_key(&self) -> Key {
///         Key::of(["b"])
///     }
/// }
/// ```
pub trait IntoKey: KeySegments {
    /// Makes the key.
    fn to_key(&self) -> Key {
        Segments::of(self).to_key()
    }

    /// Makes the key.
    fn into_key(self) -> Key
    where
        Self: Sized,
    {
        self.to_key()
    }
}

impl<T: KeySegments + ?Sized> IntoKey for T {}

impl KeySegments for str {
    fn segments(&self, into: &mut Segments) {
        into.push(self);
    }
}

impl KeySegments for String {
    fn segments(&self, into: &mut Segments) {
        into.push(self);
    }
}

impl<T: KeySegments + ?Sized> KeySegments for &T {
    fn segments(&self, into: &mut Segments) {
        (**self).segments(into);
    }
}

macro_rules! whole_numbers {
    ($($number:ty)*) => {$(
        impl KeySegments for $number {
            fn segments(&self, into: &mut Segments) {
                into.push_number(self);
            }
        }
    )*};
}
whole_numbers!(u8 u16 u32 u64 u128 usize i8 i16 i32 i64 i128 isize);

macro_rules! tuples {
    ($(($($part:ident)+))*) => {$(
        impl<$($part: KeySegments),+> KeySegments for ($($part,)+) {
            #[allow(non_snake_case)]
            fn segments(&self, into: &mut Segments) {
                let ($($part,)+) = self;
                $($part.segments(into);)+
            }
        }
    )*};
}
tuples!((A) (A B) (A B C) (A B C D));

impl KeyBuilder {
    /// Appends a cluster hash tag made of a service's name and a key.
    pub fn tag_of(self, name: &str, key: &Key) -> Self {
        self.whole_tag(&format!("{name}:{}", key.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn different_tuples_make_different_keys(a in (".{0,20}", ".{0,20}"), b in (".{0,20}", ".{0,20}")) {
            prop_assert_eq!(a == b, (&a.0[..], &a.1[..]).into_key() == (&b.0[..], &b.1[..]).into_key());
        }
    }

    proptest! {
        #[test]
        fn a_text_is_the_same_key_however_it_is_made(text: String) {
            let alone = Key::of(vec![text.clone()]);
            prop_assert_eq!(&text.to_key(), &alone);
            prop_assert_eq!(&(&text[..]).into_key(), &alone);
            prop_assert_eq!((text,).into_key(), alone);
        }
    }

    proptest! {
        #[test]
        fn a_key_is_its_segments_each_escaped_and_joined(parts in prop::collection::vec(".{0,150}", 1..4), number: i128) {
            let built = parts.iter().fold(KeyBuilder::new("", ""), KeyBuilder::segment).plain(number).finish();
            let mut segments = Segments::default();
            for part in &parts {
                segments.push(part);
            }
            number.segments(&mut segments);
            let key = segments.to_key();
            prop_assert_eq!(key.as_str(), &built[2..]);
            prop_assert_eq!(segments.as_str(), &built[2..]);
            let found = std::collections::HashSet::from([segments.to_key()]);
            prop_assert!(found.contains(segments.as_str()));
        }
    }

    #[test]
    fn each_part_is_one_segment() {
        assert_eq!(("e1", 7_u32).into_key().as_str(), "e1:7");
        assert_eq!("a:b".into_key().as_str(), "a%3Ab");
        assert_eq!(("", "a").into_key().as_str(), ":a");
        assert_eq!(("a", "").into_key().as_str(), "a:");
        assert_eq!(
            (-7_i8, u128::MAX).into_key(),
            ("-7", &*u128::MAX.to_string()).into_key()
        );
        assert_eq!(
            ("".into_key().as_str(), "~".into_key().as_str()),
            ("~", "%7E")
        );
        let none: [&str; 0] = [];
        assert_ne!(Key::of(none), Key::of([""]));
        let key = ("e1", "x").into_key();
        let built = KeyBuilder::new("keep", "lock")
            .tag_of("payment", &key)
            .finish();
        assert_eq!(built, "keep:lock:{payment:e1:x}");
    }

    #[test]
    fn debug_text_names_nobody() {
        assert!(!format!("{:?}", "a@b.test".into_key()).contains("a@b"));
    }
}
