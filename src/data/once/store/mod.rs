//! Where one-time values and progress live: one atomic step per method.

mod fallback;
#[cfg(feature = "conformance")]
mod fault;
mod memory;
#[cfg(feature = "redis")]
mod redis;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod sql;

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::core::ttl::Ttl;
use crate::core::{Key, StoreFuture, Timestamp};

/// Names one value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct OnceKey {
    /// The service's name.
    pub name: Arc<str>,
    /// The value's key: for tokens a digest, never the token.
    pub key: Key,
}

/// A value as it lies in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The record.
    pub value: Bytes,
    /// 1 after the first save, one more with each.
    pub version: u64,
    /// When it was saved first.
    pub created_at: Timestamp,
    /// When it was saved last.
    pub updated_at: Timestamp,
    /// From then on it is gone.
    pub expires_at: Timestamp,
}

/// What became of a put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutOutcome {
    /// It is kept.
    Stored,
    /// Something is kept under this key already, and stays as it was.
    Exists,
}

/// What a save expects to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Whatever is there.
    Any,
    /// Nothing.
    Absent,
    /// This version.
    Version(u64),
}

/// What became of a save.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SaveOutcome {
    /// It is kept, under this version.
    Saved {
        /// The new version.
        version: u64,
    },
    /// Somebody else saved, removed or took it: nothing was changed.
    Conflict {
        /// The version that is there, 0 where nothing is.
        version: u64,
    },
}

/// How long a saved value lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    /// From this save on.
    pub ttl: Ttl,
    /// But no longer than this from the first save on.
    pub max_age: Ttl,
}

/// Keeps values that are used once, and progress that ends once.
///
/// # Behaviour
/// - Every method is one atomic step. At exactly `expires_at` a value is gone, on every engine.
/// - Nothing is ever evicted; a store without room refuses.
pub trait OnceStore: fmt::Debug + Send + Sync + 'static {
    /// Keeps `value` unless something is there.
    ///
    /// # Errors
    /// `Full`: nothing was kept. `Unavailable`, `TimedOut`: unknown.
    fn put(&self, key: &OnceKey, value: Bytes, ttl: Ttl) -> StoreFuture<PutOutcome>;

    /// Reads the value and removes it: of any number of callers exactly one gets it.
    ///
    /// # Errors
    /// `Unavailable`, `TimedOut`: unknown, and so it may be burnt. Never repeated.
    fn take(&self, key: &OnceKey) -> StoreFuture<Option<Kept>>;

    /// Reads the value.
    ///
    /// # Errors
    /// As the engine has them.
    fn peek(&self, key: &OnceKey) -> StoreFuture<Option<Kept>>;

    /// Writes the value if what is there is as expected.
    ///
    /// # Errors
    /// `Full`: nothing was changed. `Unavailable`, `TimedOut`: unknown.
    fn save(
        &self,
        key: &OnceKey,
        value: Bytes,
        expect: Expect,
        keep: Keep,
    ) -> StoreFuture<SaveOutcome>;

    /// Removes the value; says whether one was there.
    ///
    /// # Errors
    /// As the engine has them.
    fn remove(&self, key: &OnceKey) -> StoreFuture<bool>;

    /// Lets the handle remember that the service `name` keeps `what`; returns `true` the first time that it was told
    /// something else, since one of the two then reads what it cannot understand.
    fn contradicts(&self, name: &str, what: &str) -> bool;
}

impl<T: OnceStore + ?Sized> OnceStore for Arc<T> {
    fn put(&self, key: &OnceKey, value: Bytes, ttl: Ttl) -> StoreFuture<PutOutcome> {
        (**self).put(key, value, ttl)
    }

    fn take(&self, key: &OnceKey) -> StoreFuture<Option<Kept>> {
        (**self).take(key)
    }

    fn peek(&self, key: &OnceKey) -> StoreFuture<Option<Kept>> {
        (**self).peek(key)
    }

    fn save(
        &self,
        key: &OnceKey,
        value: Bytes,
        expect: Expect,
        keep: Keep,
    ) -> StoreFuture<SaveOutcome> {
        (**self).save(key, value, expect, keep)
    }

    fn remove(&self, key: &OnceKey) -> StoreFuture<bool> {
        (**self).remove(key)
    }

    fn contradicts(&self, name: &str, what: &str) -> bool {
        (**self).contradicts(name, what)
    }
}
