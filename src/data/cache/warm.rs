//! Filling a cache before anybody asks, and holding it against its source.

use std::collections::{HashSet, VecDeque};
use std::error::Error;
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::LoadError;
use super::handle::Cache;
use super::loaded::Loaded;
use super::stats::Reads;
use crate::core::IntoKey;

/// How many keys [`Cache::warm`] loads in one call.
const WARM_AT_ONCE: usize = 100;

/// What became of a [`Cache::warm`]: numbers of keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WarmReport {
    /// Cached before.
    pub present: usize,
    /// Loaded.
    pub loaded: usize,
    /// Unknown to the loader.
    pub missing: usize,
    /// Of calls that failed.
    pub failed: usize,
}

/// What a [`Cache::verify`] has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verified {
    /// The cached value is the loader's.
    InSync,
    /// It is another.
    Differs,
    /// Nothing is cached.
    NotCached,
    /// A value is cached that the loader no longer knows.
    Gone,
}

impl<K, V> Cache<K, V>
where
    K: IntoKey + Hash + Eq + Clone + Send + Sync + 'static,
    V: Serialize + DeserializeOwned + Send + Sync + 'static,
{
    /// Loads what is not cached, 100 keys in a call and two calls at a time. None of it counts as a read.
    pub async fn warm<F, Fut, L, E>(
        &self,
        keys: impl IntoIterator<Item = K>,
        loader: F,
    ) -> WarmReport
    where
        F: Fn(Vec<K>) -> Fut + Clone + Send + 'static,
        Fut: Future<Output = Result<Vec<(K, L)>, E>> + Send + 'static,
        L: Into<Loaded<V>>,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let keys: HashSet<K> = keys.into_iter().collect();
        let keys: Vec<K> = keys.into_iter().collect();
        let parts: VecDeque<&[K]> = keys.chunks(WARM_AT_ONCE).collect();
        let parts = Mutex::new(parts);
        let lane = || async {
            let mut report = WarmReport::default();
            loop {
                let Some(part) = parts.lock().pop_front() else {
                    return report;
                };
                self.warm_part(part, loader.clone(), &mut report).await;
            }
        };
        let (one, two) = tokio::join!(lane(), lane());
        WarmReport {
            present: one.present + two.present,
            loaded: one.loaded + two.loaded,
            missing: one.missing + two.missing,
            failed: one.failed + two.failed,
        }
    }

    async fn warm_part<F, Fut, L, E>(&self, part: &[K], loader: F, report: &mut WarmReport)
    where
        F: Fn(Vec<K>) -> Fut + Clone + Send + 'static,
        Fut: Future<Output = Result<Vec<(K, L)>, E>> + Send + 'static,
        L: Into<Loaded<V>>,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let not_counted = &mut Reads::default();
        let Ok(known) = self.find_many(part, not_counted).await else {
            report.failed += part.len();
            return;
        };
        let absent = part.iter().zip(&known).filter(|(_, known)| known.is_none());
        let absent: Vec<K> = absent.map(|(key, _)| key.clone()).collect();
        report.present += part.len() - absent.len();
        if absent.is_empty() {
            return;
        }
        let found = self.find_many_or_load(&absent, loader, not_counted);
        match found.await {
            Ok(found) => {
                let loaded = found.iter().flatten().count();
                report.loaded += loaded;
                report.missing += found.len() - loaded;
            }
            Err(_) => report.failed += absent.len(),
        }
    }

    /// Loads and compares with what is cached; changes nothing, and counts as no read.
    ///
    /// # Errors
    /// The loader failed, or as `Failed` the store could not tell.
    pub async fn verify<F, Fut, L, E>(&self, key: &K, loader: F) -> Result<Verified, LoadError>
    where
        V: PartialEq,
        F: FnOnce(K) -> Fut,
        Fut: Future<Output = Result<Option<L>, E>>,
        L: Into<Loaded<V>>,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let failed = |error: Box<dyn Error + Send + Sync>| LoadError::Failed(Arc::from(error));
        let not_counted = &mut Reads::default();
        let cached = self.find_many(std::slice::from_ref(key), not_counted);
        let cached = cached.await.map_err(|error| failed(error.into()))?;
        let cached = cached.into_iter().next().flatten();
        let loaded = loader(key.clone())
            .await
            .map_err(|error| failed(error.into()))?;
        let loaded = loaded.map(|loaded| {
            let mut loaded: Loaded<V> = loaded.into();
            self.prepare(key, &mut loaded);
            loaded.value
        });
        Ok(match (cached, loaded) {
            (None, _) => Verified::NotCached,
            (Some(_), None) => Verified::Gone,
            (Some(cached), Some(loaded)) if *cached == loaded => Verified::InSync,
            _ => Verified::Differs,
        })
    }
}
