//! What things are kept under: keys of one or several segments, made from the application's own values.

use std::fmt;
use std::sync::Arc;

use super::key::{KeyBuilder, digest22};

/// A key of a data service: escaped segments, so that no two different ones ever look the same.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(Arc<str>);

impl Key {
    /// Makes a key from segments.
    #[must_use]
    pub fn of<S: AsRef<str>>(segments: impl IntoIterator<Item = S>) -> Self {
        let start = KeyBuilder::new("", "");
        let whole = segments
            .into_iter()
            .fold(start, KeyBuilder::segment)
            .finish();
        // The first two bytes are the colons before the part and the first segment.
        match whole.get(2..) {
            // An empty text is a key, too; `~` alone is what no other becomes.
            None | Some("") => Self(Arc::from("~")),
            Some(text) => Self(Arc::from(text)),
        }
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

impl fmt::Debug for Key {
    /// Hashed: a key may name a person, and Debug text ends up in logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key(#{})", digest22(self.0.as_bytes()))
    }
}

/// What can be a key: texts, whole numbers, and tuples of up to four of them; each part is one segment.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no key: use a text, a whole number, or a tuple of up to four of them"
)]
pub trait IntoKey {
    /// Appends the segments of this part.
    fn segments(&self, into: &mut Vec<String>);

    /// Makes the key.
    fn to_key(&self) -> Key {
        let mut segments = Vec::new();
        self.segments(&mut segments);
        Key::of(segments)
    }

    /// Makes the key.
    fn into_key(self) -> Key
    where
        Self: Sized,
    {
        self.to_key()
    }
}

impl IntoKey for str {
    fn segments(&self, into: &mut Vec<String>) {
        into.push(self.to_owned());
    }

    fn to_key(&self) -> Key {
        Key::of([self])
    }
}

impl IntoKey for String {
    fn segments(&self, into: &mut Vec<String>) {
        into.push(self.clone());
    }

    fn to_key(&self) -> Key {
        Key::of([self])
    }
}

impl<T: IntoKey + ?Sized> IntoKey for &T {
    fn segments(&self, into: &mut Vec<String>) {
        (**self).segments(into);
    }

    fn to_key(&self) -> Key {
        (**self).to_key()
    }
}

macro_rules! whole_numbers {
    ($($number:ty)*) => {$(
        impl IntoKey for $number {
            fn segments(&self, into: &mut Vec<String>) {
                into.push(self.to_string());
            }
        }
    )*};
}
whole_numbers!(u8 u16 u32 u64 u128 usize i8 i16 i32 i64 i128 isize);

macro_rules! tuples {
    ($(($($part:ident)+))*) => {$(
        impl<$($part: IntoKey),+> IntoKey for ($($part,)+) {
            #[allow(non_snake_case)]
            fn segments(&self, into: &mut Vec<String>) {
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

    #[test]
    fn each_part_is_one_segment() {
        assert_eq!(("e1", 7_u32).into_key().as_str(), "e1:7");
        assert_eq!("a:b".into_key().as_str(), "a%3Ab");
        assert_eq!(("", "a").into_key().as_str(), ":a");
        assert_eq!(
            ("".into_key().as_str(), "~".into_key().as_str()),
            ("~", "%7E")
        );
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
