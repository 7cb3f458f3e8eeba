//! What a script answered, in words of our own: the driver's types stay in this folder.

use bytes::Bytes;

use crate::core::{StoreError, StoreErrorKind};

/// The answer of a script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Nothing.
    Nil,
    /// A whole number.
    Int(i64),
    /// Bytes, taken over without a copy.
    Bytes(Bytes),
    /// Several answers.
    Array(Vec<Self>),
}

impl Reply {
    /// Takes a whole number; a text of digits counts as one, since numbers over 2^53 travel as text.
    ///
    /// # Errors
    /// [`StoreErrorKind::Failed`] for anything else.
    pub fn int(self) -> Result<i64, StoreError> {
        match self {
            Self::Int(number) => Ok(number),
            Self::Bytes(text) => {
                let number = std::str::from_utf8(&text)
                    .ok()
                    .and_then(|text| text.parse().ok());
                number.ok_or_else(|| unexpected("a number"))
            }
            _ => Err(unexpected("a number")),
        }
    }

    /// Takes bytes.
    ///
    /// # Errors
    /// [`StoreErrorKind::Failed`] for anything else.
    pub fn bytes(self) -> Result<Bytes, StoreError> {
        self.opt_bytes()?.ok_or_else(|| unexpected("bytes"))
    }

    /// Takes bytes or nothing.
    ///
    /// # Errors
    /// [`StoreErrorKind::Failed`] for anything else.
    pub fn opt_bytes(self) -> Result<Option<Bytes>, StoreError> {
        match self {
            Self::Bytes(bytes) => Ok(Some(bytes)),
            Self::Nil => Ok(None),
            _ => Err(unexpected("bytes")),
        }
    }

    /// Takes several answers.
    ///
    /// # Errors
    /// [`StoreErrorKind::Failed`] for anything else.
    pub fn array(self) -> Result<Vec<Self>, StoreError> {
        match self {
            Self::Array(replies) => Ok(replies),
            _ => Err(unexpected("an array")),
        }
    }
}

fn unexpected(wanted: &str) -> StoreError {
    StoreError::with_source(
        StoreErrorKind::Failed,
        format!("the server's answer is not {wanted}"),
    )
}
