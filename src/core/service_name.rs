//! Names of data services: what stands in keys, channels and labels.

use std::fmt;
use std::sync::Arc;

/// A name of 1 to 64 of `a-z 0-9 . _ -`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServiceName(Arc<str>);

/// A text that is no name of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAServiceName;

impl ServiceName {
    /// Takes a literal name.
    ///
    /// # Panics
    /// If it is not 1 to 64 of `a-z 0-9 . _ -`.
    #[must_use]
    #[track_caller]
    #[allow(clippy::panic)]
    pub fn new(name: &str) -> Self {
        match Self::try_new(name) {
            Ok(name) => name,
            Err(why) => panic!("{name:?}: {why}"),
        }
    }

    /// Takes a name that is known only at run time.
    ///
    /// # Errors
    /// It is not 1 to 64 of `a-z 0-9 . _ -`.
    pub fn try_new(name: &str) -> Result<Self, NotAServiceName> {
        let is_plain =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte);
        if (1..=64).contains(&name.len()) && name.bytes().all(is_plain) {
            Ok(Self(Arc::from(name)))
        } else {
            Err(NotAServiceName)
        }
    }

    /// Returns the name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the name, shared.
    #[must_use]
    pub fn shared(&self) -> Arc<str> {
        Arc::clone(&self.0)
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for NotAServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a service's name is 1 to 64 of a-z 0-9 . _ -")
    }
}

impl std::error::Error for NotAServiceName {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_and_plain() {
        assert!(ServiceName::try_new("form_progress.v2-x").is_ok());
        let longest = "x".repeat(64);
        assert!(ServiceName::try_new(&longest).is_ok());
        for name in ["", "A", "a b", "a:b", "a{b}", &format!("{longest}x")] {
            assert_eq!(ServiceName::try_new(name), Err(NotAServiceName));
        }
    }
}
