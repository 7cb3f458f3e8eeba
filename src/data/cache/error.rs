//! Why a load gave no value.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

/// Why a load gave no value: the same for all who waited for it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum LoadError {
    /// The loader failed. Nothing is remembered of it.
    Failed(Arc<dyn Error + Send + Sync>),
    /// The loader took longer than its hard timeout, and was stopped.
    TimedOut,
    /// The loader panicked.
    Panicked,
}

impl LoadError {
    /// Returns the loader's own error, if it is an `E`.
    #[must_use]
    pub fn downcast_ref<E: Error + 'static>(&self) -> Option<&E> {
        match self {
            Self::Failed(error) => error.downcast_ref(),
            _ => None,
        }
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Failed(_) => "the loader failed",
            Self::TimedOut => "the loader took too long",
            Self::Panicked => "the loader panicked",
        })
    }
}

impl Error for LoadError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Failed(error) => Some(&**error),
            _ => None,
        }
    }
}
