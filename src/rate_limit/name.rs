//! Names of groups and policies: they need no escape in a field, a key or a label.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

/// A name is not 1 to 64 characters of `a-z 0-9 . _ -`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameError {
    name: Cow<'static, str>,
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "a name must be 1 to 64 characters of a-z 0-9 . _ -, not {:?}",
            self.name
        )
    }
}

impl std::error::Error for NameError {}

pub(super) fn checked_name(name: &str) -> Result<Arc<str>, NameError> {
    let is_plain = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'_' | b'-')
    };
    if (1..=64).contains(&name.len()) && name.bytes().all(is_plain) {
        Ok(Arc::from(name))
    } else {
        let name = name.chars().take(80).collect();
        Err(NameError {
            name: Cow::Owned(name),
        })
    }
}
