//! The service of one-time values.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::store::{Kept, OnceKey, OnceStore, PutOutcome};
use super::token::{self, Token};
use crate::core::size::KIB;
use crate::core::telemetry::count;
use crate::core::ttl::Ttl;
use crate::core::{NotAServiceName, Principal, ServiceName, Timestamp};
use crate::data::{DataError, DataErrorKind, record, tell_contradiction};

/// The largest value, as JSON.
pub(super) const LARGEST: usize = 64 * KIB;

/// Values that can be taken once: states of OAuth flows, verification tokens.
#[must_use]
pub struct Once<V> {
    store: Arc<dyn OnceStore>,
    name: ServiceName,
    owner: Option<Arc<str>>,
    ttl: Ttl,
    value: PhantomData<fn(V) -> V>,
}

/// A value that was taken or looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken<V> {
    /// The value.
    pub value: V,
    /// When it was put.
    pub stored_at: Timestamp,
    /// When it would have been gone.
    pub expires_at: Timestamp,
}

impl<V> Once<V> {
    /// Makes a service whose values live for `ttl`.
    ///
    /// # Panics
    /// If `name` is not 1 to 64 of `a-z 0-9 . _ -`.
    #[track_caller]
    pub fn new(store: impl OnceStore, name: &str, ttl: Ttl) -> Self {
        Self::of(store, ServiceName::new(name), ttl)
    }

    /// Like [`Once::new`], for a name that is known only at run time.
    ///
    /// # Errors
    /// The name is not 1 to 64 of `a-z 0-9 . _ -`.
    pub fn try_new(store: impl OnceStore, name: &str, ttl: Ttl) -> Result<Self, NotAServiceName> {
        Ok(Self::of(store, ServiceName::try_new(name)?, ttl))
    }

    fn of(store: impl OnceStore, name: ServiceName, ttl: Ttl) -> Self {
        let what = format!("{} {ttl:?}", std::any::type_name::<V>());
        if store.contradicts(&format!("once {name}"), &what) {
            tell_contradiction("once", name.as_str());
        }
        Self {
            store: Arc::new(store),
            name,
            owner: None,
            ttl,
            value: PhantomData,
        }
    }

    /// Binds tokens to `owner`: under another one they are unknown, and an attempt burns nothing.
    pub fn owned_by(&self, owner: &Principal) -> Self {
        Self {
            owner: Some(Arc::from(owner.id())),
            ..self.clone()
        }
    }

    /// Returns the name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.name.as_str()
    }

    fn key(&self, token: &str) -> Result<OnceKey, DataError> {
        Ok(OnceKey {
            name: self.name.shared(),
            key: token::digest(self.name.as_str(), self.owner.as_deref(), token)?,
        })
    }

    fn told(&self, result: &'static str) {
        count!("keep_once_total", 1, "name" => self.name.as_str().to_owned(), "result" => result);
    }
}

impl<V: Serialize + DeserializeOwned> Once<V> {
    /// Keeps `value` under a fresh token of 256 random bits.
    ///
    /// # Errors
    /// See [`Once::put`].
    pub async fn issue(&self, value: &V) -> Result<Token, DataError> {
        let token = Token::draw()?;
        self.put(&token, value).await?;
        Ok(token)
    }

    /// Keeps `value` under a token of at least 16 bytes, never over another value.
    ///
    /// # Errors
    /// `WeakToken`, `TooLarge` (64 KiB), `Full`; after `Unavailable` and `TimedOut` it may be kept.
    pub async fn put(&self, token: impl AsRef<str>, value: &V) -> Result<PutOutcome, DataError> {
        let (key, value) = (self.key(token.as_ref())?, encode(value)?);
        let outcome = self.store.put(&key, value, self.ttl).await?;
        self.told(match outcome {
            PutOutcome::Stored => "stored",
            PutOutcome::Exists => "exists",
        });
        Ok(outcome)
    }

    /// Takes the value: of any number of callers exactly one gets it. Unknown, used, expired and foreign tokens look
    /// alike. Dropping the future leaves it taken or not.
    ///
    /// # Errors
    /// After `Unavailable` and `TimedOut` the token may be burnt: it is never given twice.
    pub async fn take(&self, token: impl AsRef<str>) -> Result<Option<Taken<V>>, DataError> {
        let Some(key) = self.key_of_any(token.as_ref()) else {
            return Ok(None);
        };
        let kept = self.store.take(&key).await?;
        let is_there = kept.is_some();
        let taken = kept.and_then(decode);
        self.told(match (&taken, is_there) {
            (Some(_), _) => "taken",
            // Of another kind, or cut off: it is gone all the same.
            (None, true) => "undecodable",
            (None, false) => "unknown",
        });
        Ok(taken)
    }

    /// Looks at the value without taking it.
    ///
    /// # Errors
    /// The store cannot tell.
    pub async fn peek(&self, token: impl AsRef<str>) -> Result<Option<Taken<V>>, DataError> {
        let Some(key) = self.key_of_any(token.as_ref()) else {
            return Ok(None);
        };
        Ok(self.store.peek(&key).await?.and_then(decode))
    }

    /// Nothing was ever kept under a weak token: it is unknown like any other.
    fn key_of_any(&self, token: &str) -> Option<OnceKey> {
        self.key(token).ok()
    }
}

pub(super) fn encode<V: Serialize>(value: &V) -> Result<bytes::Bytes, DataError> {
    let value = record::encode(value)
        .map_err(|error| DataError::with_source(DataErrorKind::Unencodable, error))?;
    if record::size(&value) > LARGEST {
        return Err(DataError::of(DataErrorKind::TooLarge { limit: LARGEST }));
    }
    Ok(value)
}

fn decode<V: DeserializeOwned>(kept: Kept) -> Option<Taken<V>> {
    Some(Taken {
        value: record::decode(&kept.value)?,
        stored_at: kept.created_at,
        expires_at: kept.expires_at,
    })
}

impl<V> Clone for Once<V> {
    fn clone(&self) -> Self {
        Self {
            store: Arc::clone(&self.store),
            name: self.name.clone(),
            owner: self.owner.clone(),
            ttl: self.ttl,
            value: PhantomData,
        }
    }
}

impl<V> fmt::Debug for Once<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Once")
            .field("name", &self.name)
            .field("ttl", &self.ttl)
            .finish_non_exhaustive()
    }
}
