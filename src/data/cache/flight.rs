//! One load per key and process: a task of its own, and those who wait for it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::watch;

use super::cached::{CacheOutcome, Cached};
use super::error::LoadError;
use super::loaded::Loaded;
use crate::core::Key;

pub(super) type Loading<V> = Pin<
    Box<
        dyn Future<Output = Result<Option<Loaded<V>>, Arc<dyn std::error::Error + Send + Sync>>>
            + Send,
    >,
>;
pub(super) type Loader<V> = Box<dyn FnOnce() -> Loading<V> + Send>;

/// What a load ends with.
pub(super) type Answer<V> = Result<Option<Cached<V>>, LoadError>;

/// Which loads may be shared.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct FlightKey {
    pub(super) key: Key,
    pub(super) want: Want,
}

/// What the caller takes for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Want {
    /// A value: a remembered absence is loaded again.
    Value,
    /// A value, or that there is none.
    Either,
    /// What the loader says now.
    Refresh,
}

pub(super) struct Flight<V> {
    /// The process's sight when it began.
    pub(super) noted: u64,
    pub(super) answer: watch::Receiver<Option<Answer<V>>>,
}

impl<V> Flight<V> {
    pub(super) async fn wait(&self, joined: bool) -> Answer<V> {
        let mut answer = self.answer.clone();
        let answer = match answer.wait_for(Option::is_some).await {
            Ok(answer) => answer.clone(),
            // The task ended without a word: it panicked outside the loader, or the runtime stops.
            Err(_) => None,
        };
        let mut answer = answer.unwrap_or(Err(LoadError::Panicked));
        if joined
            && let Ok(Some(cached)) = &mut answer
            && cached.outcome == CacheOutcome::Loaded
        {
            cached.outcome = CacheOutcome::Joined;
        }
        answer
    }
}
