//! How a loader is run: looked at once where it is awaited, then in a task, up to its timeouts.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::error::LoadError;
use super::flight::{Loader, LoaderError, Loading, Told, Want};
use super::handle::State;
use super::loaded::Loaded;
use super::read::Start;
use super::target::CacheKey;
use crate::core::monotonic;
use crate::core::telemetry::{count, seconds, warn};

impl<V> State<V>
where
    V: Serialize + DeserializeOwned + Send + Sync + 'static,
{
    pub(super) async fn load(
        &self,
        key: &CacheKey,
        loader: Loader<V>,
        told: &Told<V>,
        start: &Start<V>,
        want: Want,
    ) -> Result<Option<Loaded<V>>, LoadError> {
        let stale = start.stale.as_ref().filter(|_| want != Want::Refresh);
        let soft = stale.map(|_| self.config.soft);
        let serve_stale = || {
            if let Some(stale) = stale {
                self.tell_stale_once(told, stale);
            }
        };
        self.run(Some(key), loader, soft, serve_stale).await
    }

    /// Runs a loader to its end or the hard timeout; after the soft one it may serve stale what it has.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        key: Option<&CacheKey>,
        loading: Loading<T>,
        soft: Option<Duration>,
        serve_stale: impl FnOnce(),
    ) -> Result<T, LoadError> {
        self.meter.loads.fetch_add(1, Ordering::Relaxed);
        let began = monotonic();
        let ended = self.ended(loading, began, soft, serve_stale).await;
        let (answer, result) = match ended {
            None => (Err(LoadError::TimedOut), "timeout"),
            Some(Err(Panicked)) => (Err(LoadError::Panicked), "panic"),
            Some(Ok(Err(error))) => (Err(LoadError::Failed(error)), "error"),
            Some(Ok(Ok(loaded))) => (Ok(loaded), "ok"),
        };
        if answer.is_err() {
            self.meter.load_errors.fetch_add(1, Ordering::Relaxed);
            let hashed = key.map(|key| crate::core::digest22(key.key.as_str().as_bytes()));
            let _ = &hashed;
            if let Some(silent) = self.meter.load_failed.turn() {
                warn!(cache = %self.label, key = hashed, result, silent, "a load failed");
                let _ = silent;
            }
        }
        let _ = result;
        count!("keep_cache_loads_total", 1, "cache" => self.label.clone(), "result" => result);
        seconds!("keep_cache_load_seconds", began.elapsed().as_secs_f64(), "cache" => self.label.clone());
        answer
    }

    /// What a load ends with; `None` at the hard timeout.
    async fn ended<T: Send + 'static>(
        &self,
        mut loading: Loading<T>,
        began: Instant,
        soft: Option<Duration>,
        serve_stale: impl FnOnce(),
    ) -> Option<Result<Result<T, LoaderError>, Panicked>> {
        // Not where a stale value waits: a loader that holds the thread would hold that back, too.
        if soft.is_none()
            && let Poll::Ready(ended) = first_look(&mut loading).await
        {
            return Some(ended);
        }
        // A task of its own: a panic ends it alone.
        let mut task = tokio::spawn(loading);
        let early = match soft {
            Some(soft) => tokio::time::timeout(soft, &mut task).await.ok(),
            None => None,
        };
        let ended = match early {
            Some(ended) => Ok(ended),
            None => {
                serve_stale();
                let rest = self.config.hard.saturating_sub(began.elapsed());
                let ended = tokio::time::timeout(rest, &mut task).await;
                ended.inspect_err(|_| task.abort())
            }
        };
        Some(ended.ok()?.map_err(|_| Panicked))
    }
}

/// Polls a load once where it is awaited: one that is done at once needs no task of its own. A panic is an end, too.
async fn first_look<T>(loading: &mut Loading<T>) -> Poll<Result<Result<T, LoaderError>, Panicked>> {
    let poll = |context: &mut Context<'_>| {
        // What a panic leaves half done is never looked at again: the load is dropped.
        let polled = catch_unwind(AssertUnwindSafe(|| loading.as_mut().poll(context)));
        Poll::Ready(match polled {
            Ok(polled) => polled.map(Ok),
            Err(_) => Poll::Ready(Err(Panicked)),
        })
    };
    std::future::poll_fn(poll).await
}

struct Panicked;
