//! A value's name and type.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::marker::PhantomData;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use smallvec::SmallVec;

use super::data::Value;
use super::error::{SessionError, SessionErrorKind};

const LONGEST_NAME: usize = 128;

type Migrate<T> = fn(u8, &[u8]) -> Option<T>;

/// The name of a value and its type; a plain `&'static str` or `String` works as well.
///
/// ```
/// use tower_keep::session::SessionKey;
///
/// const THEME: SessionKey<String> = SessionKey::new("theme");
/// ```
pub struct SessionKey<T> {
    name: Cow<'static, str>,
    format: u8,
    migrate: Option<Migrate<T>>,
    value: PhantomData<fn() -> T>,
}

impl<T> SessionKey<T> {
    /// Names a value: 1 to 128 bytes.
    ///
    /// # Panics
    /// The name is empty or too long; in a `const` the compiler says so.
    #[must_use]
    pub const fn new(name: &'static str) -> Self {
        assert!(
            !name.is_empty() && name.len() <= LONGEST_NAME,
            "the name of a session key has 1 to 128 bytes"
        );
        Self::named(Cow::Borrowed(name))
    }

    /// Names a value whose type has changed: `migrate` gets the format and JSON that other versions left.
    ///
    /// # Panics
    /// The name is empty or too long; in a `const` the compiler says so.
    #[must_use]
    pub const fn versioned(name: &'static str, format: u8, migrate: Migrate<T>) -> Self {
        let mut key = Self::new(name);
        key.format = format;
        key.migrate = Some(migrate);
        key
    }

    const fn named(name: Cow<'static, str>) -> Self {
        Self {
            name,
            format: 0,
            migrate: None,
            value: PhantomData,
        }
    }
}

impl<T> SessionKey<T> {
    pub(super) const fn name(&self) -> &Cow<'static, str> {
        &self.name
    }

    pub(super) fn into_name(self) -> Cow<'static, str> {
        self.name
    }

    /// Names that came at run time are checked at their first use.
    pub(super) fn checked(&self) -> Result<&str, SessionError> {
        check_name(&self.name)
    }
}

pub(super) fn check_name(name: &str) -> Result<&str, SessionError> {
    if (1..=LONGEST_NAME).contains(&name.len()) {
        Ok(name)
    } else {
        Err(SessionError::new(SessionErrorKind::Key))
    }
}

impl<T: Serialize> SessionKey<T> {
    pub(super) fn encode(&self, value: &T) -> Result<Value, SessionError> {
        let mut json = Text(SmallVec::new());
        serde_json::to_writer(&mut json, value).map_err(SessionError::encode)?;
        Ok(Value {
            format: self.format,
            json: Bytes::copy_from_slice(&json.0),
        })
    }
}

/// JSON as it is written: small values need no heap until they are copied in their exact length.
struct Text(SmallVec<[u8; 128]>);

impl io::Write for Text {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<T: DeserializeOwned> SessionKey<T> {
    pub(super) fn decode(&self, value: &Value) -> Option<T> {
        if value.format == self.format {
            serde_json::from_slice(&value.json).ok()
        } else {
            self.migrate
                .and_then(|migrate| migrate(value.format, &value.json))
        }
    }
}

impl<T> From<&'static str> for SessionKey<T> {
    fn from(name: &'static str) -> Self {
        Self::named(Cow::Borrowed(name))
    }
}

impl<T> From<String> for SessionKey<T> {
    fn from(name: String) -> Self {
        Self::named(Cow::Owned(name))
    }
}

impl<T> AsRef<str> for SessionKey<T> {
    fn as_ref(&self) -> &str {
        &self.name
    }
}

impl<T> Clone for SessionKey<T> {
    fn clone(&self) -> Self {
        Self {
            name: self.name.clone(),
            ..*self
        }
    }
}

impl<T> fmt::Debug for SessionKey<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionKey")
            .field("name", &self.name)
            .field("format", &self.format)
            .finish()
    }
}
