//! The service of progress: what is saved step by step, and ended once.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::handle::encode;
use super::store::{Expect, Keep, Kept, OnceKey, OnceStore, SaveOutcome};
use crate::core::ttl::Ttl;
use crate::core::{IntoKey, Key, NotAServiceName, ServiceName, Timestamp};
use crate::data::{DataError, record, tell_contradiction};

/// Values that grow step by step: forms, wizards. Two tabs never overwrite each other unseen.
#[must_use]
pub struct Progress<V> {
    store: Arc<dyn OnceStore>,
    name: ServiceName,
    keep: Keep,
    value: PhantomData<fn(V) -> V>,
}

/// Progress as it was saved last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved<V> {
    /// The value.
    pub value: V,
    /// To be expected by the next save.
    pub version: u64,
    /// When it was saved last.
    pub updated_at: Timestamp,
    /// When it is gone, unless it is saved again.
    pub expires_at: Timestamp,
}

impl<V> Progress<V> {
    /// Makes a service whose values live for `ttl` after each save, at most 7 days.
    ///
    /// # Panics
    /// If `name` is not 1 to 64 of `a-z 0-9 . _ -`.
    #[track_caller]
    pub fn new(store: impl OnceStore, name: &str, ttl: Ttl) -> Self {
        Self::of(store, ServiceName::new(name), ttl)
    }

    /// Like [`Progress::new`], for a name that is known only at run time.
    ///
    /// # Errors
    /// The name is not 1 to 64 of `a-z 0-9 . _ -`.
    pub fn try_new(store: impl OnceStore, name: &str, ttl: Ttl) -> Result<Self, NotAServiceName> {
        Ok(Self::of(store, ServiceName::try_new(name)?, ttl))
    }

    fn of(store: impl OnceStore, name: ServiceName, ttl: Ttl) -> Self {
        let what = format!("{} {ttl:?}", std::any::type_name::<V>());
        if store.contradicts(&format!("progress {name}"), &what) {
            tell_contradiction("progress", name.as_str());
        }
        Self {
            store: Arc::new(store),
            name,
            keep: Keep {
                ttl,
                max_age: Ttl::days(7).max(ttl),
            },
            value: PhantomData,
        }
    }

    /// Sets how long after its first save a value is gone, however often it was saved since (7 days).
    pub const fn max_age(mut self, age: Ttl) -> Self {
        self.keep.max_age = age;
        self
    }

    fn key(&self, key: Key) -> OnceKey {
        // Apart from the tokens of a `Once` of the same name.
        OnceKey {
            name: self.name.shared(),
            key: Key::from_escaped(format!("progress:{}", key.as_str())),
        }
    }
}

impl<V: Serialize + DeserializeOwned> Progress<V> {
    /// Saves `value` if what is there is as expected.
    ///
    /// # Errors
    /// `TooLarge` (64 KiB), `Full`; after `Unavailable` and `TimedOut` it may be saved.
    pub async fn save(
        &self,
        key: impl IntoKey,
        value: &V,
        expect: Expect,
    ) -> Result<SaveOutcome, DataError> {
        let (key, value) = (self.key(key.into_key()), encode(value)?);
        Ok(self.store.save(&key, value, expect, self.keep).await?)
    }

    /// Reads what was saved last.
    ///
    /// # Errors
    /// The store cannot tell.
    pub async fn load(&self, key: impl IntoKey) -> Result<Option<Saved<V>>, DataError> {
        let key = self.key(key.into_key());
        Ok(self.store.peek(&key).await?.and_then(decode))
    }

    /// Reads and removes: of any number of callers exactly one ends the wizard.
    ///
    /// # Errors
    /// After `Unavailable` and `TimedOut` it may be gone: it is never given twice.
    pub async fn take(&self, key: impl IntoKey) -> Result<Option<Saved<V>>, DataError> {
        let key = self.key(key.into_key());
        Ok(self.store.take(&key).await?.and_then(decode))
    }

    /// Removes; says whether something was there.
    ///
    /// # Errors
    /// The store cannot tell.
    pub async fn remove(&self, key: impl IntoKey) -> Result<bool, DataError> {
        Ok(self.store.remove(&self.key(key.into_key())).await?)
    }
}

fn decode<V: DeserializeOwned>(kept: Kept) -> Option<Saved<V>> {
    Some(Saved {
        value: record::decode(&kept.value)?,
        version: kept.version,
        updated_at: kept.updated_at,
        expires_at: kept.expires_at,
    })
}

impl<V> Clone for Progress<V> {
    fn clone(&self) -> Self {
        Self {
            store: Arc::clone(&self.store),
            name: self.name.clone(),
            keep: self.keep,
            value: PhantomData,
        }
    }
}

impl<V> fmt::Debug for Progress<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Progress")
            .field("name", &self.name)
            .field("keep", &self.keep)
            .finish_non_exhaustive()
    }
}
